"""The model folder: model.safetensors and model.json, all that prediction needs; loading never touches the network."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from neurotome.atomic import atomic_path, write_json
from neurotome.classes import ClassSet
from neurotome.errors import DatasetError, ModelError, unknown
from neurotome.models.networks import ModelSettings, build_network, settle_network
from neurotome.normalize import Normalization

if TYPE_CHECKING:
    from neurotome.models.net_predictor import NetPredictor

FORMAT = 1
NEXT = "model.next.json"

NETWORK, PIXELS = "network", "pixels"
"""Kinds of models, as `kind` in model.json says it; a file without it is a network."""

ZOO = Path(__file__).parent / "zoo"
"""Models that come with the package, a folder each."""


Storage = Literal["float32", "float16"]


def save_model(
    predictor: NetPredictor, folder: Path, facts: Mapping[str, Any] | None = None, storage: Storage = "float32"
) -> None:
    """Writes a model folder that is whole at every moment.

    The description names the weights' digest. It is written beside the old one before the new weights take their place, so
    whatever weights are there, one of the two describes them.

    Args:
        predictor: What to save.
        folder: Created if missing.
        facts: Scores, licence, citation, training data, versions; JSON values.
        storage: How weights are written; float16 halves the file and rounds them to 11 bits. What a network counts, such as
            the statistics of batch normalisation, stays float32, and loading gives float32.

    Raises:
        ModelError: A weight is too large for float16.
    """
    import torch
    from safetensors.torch import save_file

    weights = {key: value.detach().cpu().contiguous() for key, value in predictor.net.state_dict().items()}
    if storage == "float16":
        for key, parameter in predictor.net.named_parameters():
            weights[key] = weights[key].to(torch.float16)
            if not torch.isfinite(weights[key]).all() and torch.isfinite(parameter).all():
                raise ModelError(
                    f"{folder}: weight {key} reaches {parameter.abs().max():.3g}, more than the 65504 that float16 holds; "
                    "use storage float32."
                )
    voxel_size = predictor.voxel_size_um
    description = {
        "format": FORMAT,
        "model": {**dataclasses.asdict(settle_network(predictor.settings)), "encoder_weights": "none"},
        "storage": storage,
        "pretraining": predictor.settings.encoder_weights,
        "classes": predictor.classes.to_json(),
        "normalization": predictor.normalization.to_json(),
        "halo": predictor.halo,
        "bounded": predictor.bounded,
        "patch": predictor.patch,
        "voxel_size_um": None if voxel_size is None else list(voxel_size),
        "versions": {name: metadata.version(name) for name in ("neurotome", "torch", "segmentation-models-pytorch", "timm")},
        "facts": dict(predictor.facts if facts is None else facts),
    }
    write_parts(folder, description, lambda path: save_file(weights, path))


def write_parts(folder: Path, description: dict[str, Any], save: Callable[[Path], None]) -> None:
    """Writes weights and the description that names their digest, so that the folder is whole at every moment.

    Args:
        folder: Created if missing.
        description: The content of model.json; gets `weights_sha256`.
        save: Writes model.safetensors to the path it is given.
    """
    with atomic_path(folder / "model.safetensors") as temporary:
        save(temporary)
        write_json(folder / NEXT, {**description, "weights_sha256": _hash(temporary)})
    (folder / NEXT).replace(folder / "model.json")


def add_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Adds facts, such as scores, to the description of a model that is there."""
    content = read_description(folder)  # after a kill between weights and description, the one that fits
    write_json(folder / "model.json", {**content, "facts": {**content["facts"], **facts}})


def list_packaged() -> list[str]:
    """Returns the names of the models that come with the package."""
    return sorted(path.parent.name for path in ZOO.glob("*/model.json"))


def find_model(path: Path) -> Path:
    """Returns the model folder of a run folder, a model folder or a packaged model.

    Args:
        path: A folder; or where none is there, the bare name of a model that comes with the package.

    Raises:
        ModelError: There is none.
    """
    known = list_packaged() if len(path.parts) == 1 and not path.exists() else []
    if path.name in known:
        return ZOO / path.name
    for folder in (path, path / "model"):
        if (folder / "model.json").is_file() or (folder / NEXT).is_file():
            return folder
    if known:
        raise ModelError(f"{path}: no such run or model folder; {unknown('packaged model', path.name, known)}")
    if not path.exists():
        raise ModelError(f"{path}: no such run or model folder.")
    if (path / "config.yaml").is_file():
        raise ModelError(f"{path}: this run has no model yet; run its training command again, it goes on where it was.")
    raise ModelError(f"{path}: no model.json here or in its model/ folder; expected a run or a model folder.")


def read_digest(path: Path) -> str:
    """Returns the SHA-256 of a model's weights.

    Args:
        path: Run folder, model folder or the name of a packaged model.

    Raises:
        ModelError: It is missing or damaged.
    """
    folder = find_model(path)
    if not (folder / "model.safetensors").is_file():
        raise ModelError(f"{folder / 'model.safetensors'}: missing; copy the whole model folder.")
    return _hash(folder / "model.safetensors")


def load_model(path: Path) -> NetPredictor:
    """Loads a trained model.

    Args:
        path: Run folder, model folder or the name of a packaged model.

    Raises:
        ModelError: It is missing, damaged, or of another format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from neurotome.models.net_predictor import NetPredictor

    folder = find_model(path)
    weights_path = folder / "model.safetensors"
    try:
        content = read_description(folder)
        if content.get("kind", NETWORK) != NETWORK:
            raise ModelError(
                f"{folder}: this model is a pixel classifier ({content['kind']}), and a network is needed here. Name a "
                "model that neurotome train has made."
            )
        settings = ModelSettings(**content["model"])
        classes = ClassSet.from_json(content["classes"])
        size = content["voxel_size_um"]
        if settings.encoder_weights != "none":
            raise ModelError(f"{folder / 'model.json'}: encoder_weights must be none in a trained model.")
        net = build_network(settings, len(classes))
        net.load_state_dict(load_file(weights_path))
        return NetPredictor(
            net=net,
            settings=settings,
            classes=classes,
            normalization=Normalization.from_json(content["normalization"]),
            halo=int(content["halo"]),
            bounded=bool(content["bounded"]),
            patch=int(content["patch"]),
            voxel_size_um=None if size is None else (float(size[0]), float(size[1]), float(size[2])),
            facts=content["facts"],
        )
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, DatasetError, SafetensorError) as error:
        raise ModelError(f"{folder}: damaged model folder ({error}); copy it again or train again.") from error


def read_description(folder: Path) -> dict[str, Any]:
    """Returns the description that fits the weights, of a model of any kind.

    Raises:
        ModelError: A file is missing, weights and description do not belong together, or the format is another one.
        ValueError: The description is no valid JSON.
        KeyError: It lacks what every description has.
    """
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ModelError(f"{weights}: missing; copy the whole model folder.")
    digest = _hash(weights)
    for path in (folder / "model.json", folder / NEXT):
        if path.is_file():
            content: dict[str, Any] = json.loads(path.read_text())
            if content["weights_sha256"] == digest:
                if content.get("format") != FORMAT:
                    raise ModelError(
                        f"{path}: format {content.get('format')!r}; this version reads format {FORMAT}. Install the "
                        "neurotome that wrote it."
                    )
                return content
    raise ModelError(
        f"{weights}: the weights are not those that model.json describes (SHA-256 differs); copy the model folder again."
    )


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
