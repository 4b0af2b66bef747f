"""export: the command that makes of a model what others can use."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from neurotome.atomic import atomic_folder, write_bytes, write_text
from neurotome.errors import RunError, SettingsError
from neurotome.models.model_folder import build_predictor, find_model, name_version
from neurotome.models.stored_model import StoredModel, copy_model, read_model
from neurotome.outputs import plan_outputs
from neurotome.sharing.bioimageio import write_package
from neurotome.sharing.card import write_card
from neurotome.sharing.graph import build_graph

Format = Literal["onnx", "bioimageio", "hub"]

ENDINGS = {"onnx": ".onnx", "bioimageio": ".zip"}
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "bioimageio": ("onnx", "onnxscript", "onnxruntime", "bioimageio")}
EXTRAS = {"onnx": "onnx", "bioimageio": "share"}


def export(
    model: Path,
    *,
    out: Path,
    format: Format,
    licence: str = "",
    author: Sequence[str] = (),
    citation: str = "",
    sample: Path | None = None,
) -> Path:
    """Makes of a trained model a file or folder for other programs and people.

    onnx: one file that takes grey values and gives class probabilities; what a reader must know (scaling, padding, halo,
    classes) is JSON in its metadata. A scale that each image has of its own is its second input, so that no reader leaves
    it out. bioimageio: a package that ilastik, Fiji and others read, whose graph measures the scale in the image it is
    given; `predict PACKAGE.zip` takes it back. hub: a folder with a card for a model hub; nothing is uploaded.

    Args:
        model: Run folder, model folder, the name of a packaged model, or a package.
        out: File (.onnx, .zip) or folder (hub) to write; it must not be there yet.
        format: onnx, bioimageio or hub.
        licence: SPDX identifier, such as CC-BY-4.0; the model's own if not given.
        author: Names; asked for by bioimageio.
        citation: With a DOI; the model's own if not given.
        sample: An image for a package's test, from which others see that it runs; synthetic tissue if not given.

    Returns:
        What was written.

    Raises:
        ModelError: There is no such model, or its network has no such form.
        RunError: OUT is there already.
        SettingsError: OUT has another ending, a package is not installed, or licence, author or citation are missing.
    """
    out = Path(out)
    _check_out(out, format)
    stored = read_model(find_model(name_version(str(model))))
    name = _name_model(stored, out)
    licence = licence or str(stored.facts.get("licence") or "")
    citation = citation or str(stored.facts.get("citation") or "")
    if format == "hub":
        _write_hub(stored, out, name, licence)
        return out
    predictor = build_predictor(stored)
    if format == "onnx":
        write_bytes(out, build_graph(predictor, False, {"licence": licence, "citation": citation}))
        return out
    missing = [f"--{key}" for key, value in (("licence", licence), ("author", author), ("citation", citation)) if not value]
    if missing:
        raise SettingsError(
            f"{name}: a bioimage.io package says who made it, under which licence, and what to cite. Give "
            f"{', '.join(missing)}."
        )
    with tempfile.TemporaryDirectory(prefix="neurotome-") as scratch:
        write_package(
            stored,
            predictor,
            out,
            name=name,
            licence=licence,
            authors=author,
            citation=citation,
            sample=None if sample is None else Path(sample),
            scratch=Path(scratch),
        )
    return out


def _check_out(out: Path, format: Format) -> None:
    ending = ENDINGS.get(format, "")
    if ending and out.suffix.lower() != ending:
        raise SettingsError(f"{out}: the format {format} is one file that ends in {ending}. Name it so.")
    if out.exists():
        raise RunError(f"{out}: is there already. Choose another output.")
    plan_outputs([out if ending else out / "model.json"])
    lacking = [package for package in NEEDED.get(format, ()) if importlib.util.find_spec(package) is None]
    if lacking:
        raise SettingsError(f"--format {format} needs {', '.join(lacking)}: pip install 'neurotome[{EXTRAS[format]}]'")


def _name_model(stored: StoredModel, out: Path) -> str:
    """Returns the folder's name; of a run's `model/` the run's."""
    folder = stored.folder.resolve()
    return (folder.parent.name if folder.name == "model" else folder.stem) or out.stem


def _write_hub(stored: StoredModel, out: Path, name: str, licence: str) -> None:
    """Writes model and card, with the front matter that hubs read."""
    tags = ["image-segmentation", "microscopy", "neurotome"]
    front = ["---", *([f"license: {json.dumps(licence.lower())}"] if licence else []), "library_name: neurotome"]
    front += ["pipeline_tag: image-segmentation", "tags:", *(f"- {tag}" for tag in tags), "---", ""]
    with atomic_folder(out) as temporary:
        temporary.mkdir()
        copy_model(stored.folder, temporary)
        write_text(temporary / "README.md", write_card(stored, name, "\n".join(front) + "\n"))
