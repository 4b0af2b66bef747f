"""Imports that wait: heavy packages load on first use, missing extras name their install command."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

from neurotome.errors import NeurotomeError


class LazyModule(ModuleType):
    """A stand-in that imports its module when something of it is first asked for.

    importlib's own LazyLoader is not used: since Python 3.12 torch does not load under it.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


def lazy_import(name: str) -> ModuleType:
    """Returns a module, its name without dots, that is loaded when it is first used: `--help` need not wait for torch."""
    if importlib.util.find_spec(name) is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return LazyModule(name)


def import_extra(name: str, extra: str) -> ModuleType:
    """Imports an optional package; NeurotomeError with the command if it, an extra of neurotome, is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise NeurotomeError(
            f"{name} is not installed, and this needs it. Install it with: pip install 'neurotome[{extra}]'"
        ) from error


def mend_torchvision() -> None:
    """Makes `import torchvision` work where its compiled operators do not fit torch; call before what imports it.

    A torch built for the CPU beside torchvision's CUDA build cannot load those operators, and the import then fails
    while it describes two of them. Nothing here calls them, so declaring their signatures is enough.
    """
    try:
        import_uncompiled("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        import torch

        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import_uncompiled("torchvision")


def import_uncompiled(name: str) -> ModuleType:
    """Imports a module without torch's compiler, which torchvision and timm import for two functions that are not needed.

    The compiler takes longer to load than torch itself. Where it is loaded already, or something needs more of it, the
    import is the usual one.
    """
    compiler = "torch._dynamo.utils"
    if name in sys.modules or compiler in sys.modules:
        return importlib.import_module(name)
    import torch

    standin = ModuleType(compiler)
    standin.__dict__["is_compile_supported"] = lambda device: False  # asked when boxes are pooled
    disable = torch.compiler.disable
    sys.modules[compiler] = standin
    torch.compiler.disable = lambda function=None, **_: function or (lambda inner: inner)  # marks what not to compile
    try:
        return importlib.import_module(name)
    except ImportError:
        pass
    finally:
        torch.compiler.disable = disable
        if sys.modules.get(compiler) is standin:
            del sys.modules[compiler]
    for half in [half for half in sys.modules if half.startswith(("torch._dynamo", f"{name}."))]:
        del sys.modules[half]
    return importlib.import_module(name)
