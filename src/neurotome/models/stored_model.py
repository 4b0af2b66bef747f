"""A model folder, read once: what every kind of model has is checked here, before anything is built from it."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.documents import read_json
from neurotome.errors import ModelError, NeurotomeError, is_out_of_memory, show
from neurotome.normalize import Normalization

FORMAT = 1
NEXT = "model.next.json"

NETWORK, PIXELS = "network", "pixels"
"""Kinds of models, as `kind` in model.json says it; a file without it is a network."""

MOST_HALO = 1 << 16
"""Pixels; what a model may ask to be read around every tile."""

MOST_CHANNELS = 257
"""Neighbouring slices; more than any model is trained on."""

MOST_WEIGHT = 1e9
"""Of any trained network; larger ones overflow float32 within a few layers."""

DAMAGE = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError, NeurotomeError)
"""What code raises that is given values which it does not expect."""

REMEDY = "Copy the model again or train again."


@dataclass(frozen=True)
class StoredModel:
    """What a model folder holds.

    Attributes:
        folder: Where it is.
        kind: `NETWORK` or `PIXELS`.
        content: The whole of model.json; only what follows has been checked.
        sha256: Digest of the weights' file.
        tensors: The weights by name; their numbers are finite.
        classes: What the model predicts.
        normalization: How its input is scaled.
        halo: Pixels around a pixel that its output depends on.
        voxel_size_um: Voxel size (z, y, x) of the training data, None if not known.
        facts: Scores, licence, citation, training data.
    """

    folder: Path
    kind: str
    content: Mapping[str, Any]
    sha256: str
    tensors: Mapping[str, NDArray[Any]]
    classes: ClassSet
    normalization: Normalization
    halo: int
    voxel_size_um: tuple[float, float, float] | None
    facts: Mapping[str, Any]


def read_model(folder: Path) -> StoredModel:
    """Reads and checks a model folder of any kind.

    Args:
        folder: As `model_folder.find_model` returns it.

    Raises:
        ModelError: It is damaged or of another format.
    """
    from safetensors.numpy import load

    content, weights = read_description(folder)
    with refuse_damaged(folder):
        tensors = load(weights)
        check_weights(tensors)
        kind, facts = content.get("kind", NETWORK), content["facts"]
        if kind not in (NETWORK, PIXELS) or not isinstance(facts, dict):
            raise ValueError(f"kind {show(kind)} and facts {show(facts)}")
        return StoredModel(
            folder=folder,
            kind=kind,
            content=content,
            sha256=content["weights_sha256"],
            tensors=tensors,
            classes=_read_classes(content["classes"]),
            normalization=Normalization.from_json(content["normalization"]),
            halo=read_whole(content, "halo", 0, MOST_HALO),
            voxel_size_um=_read_size(content["voxel_size_um"]),
            facts=facts,
        )


def read_description(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Returns the description that fits the weights, of a model of any kind, and the weights' file as it is.

    Raises:
        ModelError: A file is missing, no JSON object, or of another format, or the two do not belong together.
    """
    path = folder / "model.safetensors"
    if not path.is_file():
        raise ModelError(f"{path}: missing; copy the whole model folder.")
    weights = path.read_bytes()
    digest = hashlib.sha256(weights).hexdigest()
    for description in (folder / "model.json", folder / NEXT):
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


@contextlib.contextmanager
def refuse_damaged(folder: Path) -> Iterator[None]:
    """Turns what is raised while a model is rebuilt from its folder into one message; too little memory stays what it is.

    Raises:
        ModelError: The folder is damaged.
    """
    from safetensors import SafetensorError

    try:
        yield
    except ModelError:
        raise
    except (
        LookupError,
        TypeError,
        ValueError,
        ArithmeticError,
        AttributeError,
        RuntimeError,
        NeurotomeError,
        SafetensorError,
    ) as e:
        if is_out_of_memory(e):
            raise
        raise ModelError(f"{folder}: damaged model folder ({str(e)[:500]}). {REMEDY}") from e


def check_weights(tensors: Mapping[str, NDArray[Any]]) -> None:
    """Checks that every weight is a number that a network can be trained to, and no variance negative.

    Raises:
        ValueError: Names the tensor.
    """
    for name, tensor in tensors.items():
        if not tensor.size or tensor.dtype.kind != "f":
            continue
        least, most = float(tensor.min()), float(tensor.max())  # NaN if any is
        if not (least > -MOST_WEIGHT and most < MOST_WEIGHT):
            raise ValueError(f"weights {show(name)} from {least} to {most}")
        if name.endswith("running_var") and least < 0:
            raise ValueError(f"{show(name)} has the variance {least}")


def read_whole(content: Mapping[str, Any], key: str, least: int, most: int) -> int:
    """Returns a whole number of a description.

    Raises:
        ValueError: It is missing, something else, or out of range.
    """
    value = content.get(key)
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{key} is {show(value)}; expected a whole number from {least} to {most}")
    return value


def read_channels(content: Mapping[str, Any], key: str = "in_channels") -> int:
    """Returns a number of neighbouring slices, an odd one.

    Raises:
        ValueError: It is missing, something else, or out of range.
    """
    channels = read_whole(content, key, 1, MOST_CHANNELS)
    if channels % 2 == 0:
        raise ValueError(f"{key} is {channels}; expected an odd number")
    return channels


def _read_classes(content: Mapping[str, Any]) -> ClassSet:
    names = content["names"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class names {show(names)}; expected texts")
    return ClassSet.from_json({**content, "ignore": read_whole(content, "ignore", 0, 255)})


def _read_size(size: Any) -> tuple[float, float, float] | None:
    if size is None:
        return None
    if (
        not isinstance(size, list)
        or len(size) != 3
        or not all(type(edge) in (int, float) and 0 < edge < 1e6 and math.isfinite(edge) for edge in size)
    ):
        raise ValueError(f"voxel size {show(size)}; expected three numbers above 0")
    return float(size[0]), float(size[1]), float(size[2])
