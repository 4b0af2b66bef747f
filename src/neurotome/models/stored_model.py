"""A model folder, read once: what every kind of model has is checked here, before anything is built from it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from neurotome.atomic import atomic_path, write_bytes, write_json
from neurotome.classes import ClassSet
from neurotome.documents import read_json
from neurotome.errors import ModelError, is_out_of_memory, show
from neurotome.normalize import Normalization
from neurotome.predictor import Predictor

FORMAT = 1
NEXT = "model.next.json"

NETWORK, PIXELS = "network", "pixels"
"""Kinds of models, as `kind` in model.json says it; a file without it is a network."""

MOST_HALO = 1 << 16
"""Pixels; what a model may ask to be read around every tile."""

MOST_WEIGHT = 1e9
"""Of any trained network; larger ones overflow float32 within a few layers."""

MOST_BYTES = 2 << 30
"""Of a file in a package, unpacked; a stranger's archive may claim any size."""

REMEDY = "Copy the model again or train again."

Place = Path | zipfile.Path
"""Where a model's files lie: a folder, or a package (.zip), which is read as it is and never unpacked."""


@dataclass(frozen=True)
class StoredModel:
    """What a model folder holds.

    Attributes:
        folder: Where it is: a folder, or a package (.zip).
        kind: `NETWORK` or `PIXELS`.
        content: The whole of model.json; only what the other attributes hold has been checked.
        tensors: The weights by name; their numbers are finite.
    """

    folder: Path
    kind: str
    content: Mapping[str, Any]
    tensors: Mapping[str, NDArray[Any]]
    classes: ClassSet
    normalization: Normalization
    halo: int
    voxel_size_um: tuple[float, float, float] | None
    facts: Mapping[str, Any]


def read_model(folder: Path) -> StoredModel:
    """Reads and checks a model folder of any kind, as `model_folder.find_model` returns it; ModelError if it is damaged."""
    from safetensors.numpy import load

    content, weights = read_description(folder)
    with refuse_damaged(folder):
        tensors = load(weights)
        _check_weights(tensors)
        kind, facts = content.get("kind", NETWORK), content["facts"]
        if kind not in (NETWORK, PIXELS) or not isinstance(facts, dict):
            raise ValueError(f"kind {show(kind)} and facts {show(facts)}")
        return StoredModel(
            folder=folder,
            kind=kind,
            content=content,
            tensors=tensors,
            classes=_read_classes(content["classes"]),
            normalization=Normalization.from_json(content["normalization"]),
            halo=read_whole(content, "halo", 0, MOST_HALO),
            voxel_size_um=_read_size(content["voxel_size_um"]),
            facts=facts,
        )


def copy_model(folder: Path, target: Path) -> None:
    """Copies weights and the description that fits them into a folder; ModelError as `read_description`."""
    content, weights = read_description(folder)
    write_json(target / "model.json", content)
    write_bytes(target / "model.safetensors", weights)


def read_description(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Returns the description that fits the weights (after a kill maybe the next one), and the weights' file as it is."""
    place = open_place(folder)
    path = place / "model.safetensors"
    if not path.is_file():
        raise ModelError(f"{path}: missing; copy the whole model folder.")
    try:
        weights = path.read_bytes()
    except PACKAGE_ERRORS as error:
        raise ModelError(f"{folder}: damaged package ({str(error)[:200]}). Copy it again.") from error
    digest = hashlib.sha256(weights).hexdigest()
    for description in (place / "model.json", place / NEXT):
        if description.is_file():
            content = read_json(description, ModelError, f"This is a damaged model folder. {REMEDY}")
            if content.get("weights_sha256") == digest:
                if content.get("format") != FORMAT:
                    raise ModelError(
                        f"{description}: format {show(content.get('format'))}; this version reads format {FORMAT}. Install "
                        "the neurotome that wrote it."
                    )
                return content, weights
    raise ModelError(
        f"{path}: the weights are not those that model.json describes (SHA-256 differs): a damaged model folder. {REMEDY}"
    )


PACKAGE_ERRORS = (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError)
"""What reading from a damaged archive raises, or from one packed in a way that Python does not know."""


def open_place(folder: Path) -> Place:
    """Returns where a model's files lie; ModelError if it is a package that cannot be read or holds no model of ours."""
    if folder.suffix.lower() != ".zip" or not folder.is_file():
        return folder
    try:
        with zipfile.ZipFile(folder) as archive:
            members = archive.infolist()
        sizes = {one.filename: one.file_size for one in members}
        place = zipfile.Path(folder)
    except PACKAGE_ERRORS as error:
        raise ModelError(f"{folder}: no readable package ({str(error)[:200]}). Copy it again.") from error
    if any(one.flag_bits & 1 for one in members):
        raise ModelError(f"{folder}: this package is encrypted; expected an open one. Unpack it with its password first.")
    if "model.json" not in sizes:
        raise ModelError(
            f"{folder}: this package holds no model.json; only packages that neurotome export has made can be read back."
        )
    if (largest := max(sizes.values())) > MOST_BYTES:
        raise ModelError(
            f"{folder}: a file of {largest / 1e9:.1f} GB in this package; expected at most {MOST_BYTES / 1e9:.1f}."
        )
    return place


def write_model(
    folder: Path,
    predictor: Predictor,
    own: Mapping[str, Any],
    tensors: Mapping[str, NDArray[Any]],
    packages: Sequence[str],
) -> None:
    """Writes a model folder of any kind that is whole at every moment.

    The description names the weights' digest. It is written beside the old one before the new weights take their place, so
    whatever weights are there, one of the two describes them.

    Args:
        folder: Created if missing.
        predictor: What to save.
        own: What is described of this kind of model alone, and `facts`.
        tensors: The weights by name.
        packages: Those whose versions are written down.
    """
    from safetensors.numpy import save_file

    description = {
        "format": FORMAT,
        **own,
        "classes": predictor.classes.to_json(),
        "normalization": dataclasses.asdict(predictor.normalization),
        "halo": predictor.halo_zyx[2],
        "voxel_size_um": predictor.voxel_size_um,
        "versions": {name: metadata.version(name) for name in ("neurotome", "torch", *packages)},
    }
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file(dict(tensors), temporary)
        digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
        write_json(folder / NEXT, {**description, "weights_sha256": digest})
    (folder / NEXT).replace(folder / "model.json")


@contextlib.contextmanager
def refuse_damaged(folder: Path) -> Iterator[None]:
    """Turns what values of a model's files raise while it is rebuilt into one ModelError, whatever code meets them first."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error) or isinstance(error, (OSError, ImportError)):
            raise
        raise ModelError(f"{folder}: damaged model folder ({str(error)[:500]}). {REMEDY}") from error


def _check_weights(tensors: Mapping[str, NDArray[Any]]) -> None:
    """Checks that every weight is a number that a network can be trained to, and no variance negative."""
    for name, tensor in tensors.items():
        if not tensor.size or tensor.dtype.kind != "f":
            continue
        least, most = float(tensor.min()), float(tensor.max())  # NaN if any is
        if not (least > -MOST_WEIGHT and most < MOST_WEIGHT):
            raise ValueError(f"weights {show(name)} from {least} to {most}")
        if name.endswith("running_var") and least < 0:
            raise ValueError(f"{show(name)} has the variance {least}")


def read_whole(content: Mapping[str, Any], key: str, least: int, most: int) -> int:
    """Returns a whole number of a description; ValueError if it is missing, something else, or out of range."""
    value = content.get(key)
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{key} is {show(value)}; expected a whole number from {least} to {most}")
    return value


def _read_classes(content: Mapping[str, Any]) -> ClassSet:
    names = content["names"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class names {show(names)}; expected texts")
    return ClassSet.from_json({**content, "ignore": read_whole(content, "ignore", 0, 255)})


def _read_size(size: Any) -> tuple[float, float, float] | None:
    if size is None:
        return None
    z, y, x = size
    if not all(type(edge) in (int, float) and 0 < edge < 1e6 for edge in (z, y, x)):
        raise ValueError(f"voxel size {show(size)}; expected three numbers above 0")
    return float(z), float(y), float(x)
