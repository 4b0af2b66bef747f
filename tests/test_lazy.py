from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from neurotome.errors import NeurotomeError
from neurotome.lazy import import_extra, lazy_import


def test_a_lazy_module_runs_only_when_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "waiting_module.py").write_text("import sys\nsys.waiting_module_ran = True\nvalue = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "waiting_module_ran", False, raising=False)
    module = lazy_import("waiting_module")
    assert not sys.waiting_module_ran  # type: ignore[attr-defined]
    assert module.value == 7
    assert sys.waiting_module_ran  # type: ignore[attr-defined]
    assert module.value is sys.modules["waiting_module"].value
    del sys.modules["waiting_module"]


def test_a_module_that_is_missing_is_named_at_once() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        lazy_import("no_such_module")


def test_a_missing_extra_names_its_command() -> None:
    assert import_extra("json", "track").dumps(1) == "1"
    with pytest.raises(NeurotomeError, match=r"pip install 'neurotome\[track\]'"):
        import_extra("no_such_module", "track")


@pytest.mark.parametrize("module", ["neurotome", "neurotome.models.networks", "neurotome.predictor", "neurotome.scoring"])
def test_importing_does_not_wait_for_torch(module: str) -> None:
    heavy = "{'torch._C', 'torchvision', 'lightning', 'sklearn', 'skimage', 'matplotlib', 'segmentation_models_pytorch'}"
    program = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_networks_are_built_without_torchs_compiler_which_still_works_after() -> None:
    program = (
        "import sys, torch; from neurotome.models.networks import ModelSettings, build_network\n"
        "before = torch.compiler.disable\n"
        "net = build_network(ModelSettings(encoder='resnet18'), 2)\n"
        "assert 'torch._dynamo' not in sys.modules and torch.compiler.disable is before\n"
        "compiled = torch.compile(torch.nn.Linear(2, 3), backend='eager')\n"
        "print(tuple(compiled(torch.zeros(1, 2)).shape))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(1, 3)", done.stderr


def test_a_module_that_needs_the_compiler_gets_it(tmp_path: Path) -> None:
    (tmp_path / "needs_compiler.py").write_text("from torch._dynamo.utils import counters, is_compile_supported\n")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from neurotome.lazy import import_uncompiled\n"
        "print(type(import_uncompiled('needs_compiler').counters).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "defaultdict", done.stderr
