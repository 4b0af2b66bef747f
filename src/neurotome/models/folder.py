"""The model folder: model.safetensors and model.json, all that prediction needs; loading never touches the network."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurotome.atomic import atomic_path, write_json
from neurotome.classes import ClassSet
from neurotome.errors import DatasetError, ModelError
from neurotome.models.build import ModelSettings, build_network
from neurotome.normalize import Normalization

if TYPE_CHECKING:
    from neurotome.models.net import NetPredictor

FORMAT = 1


def save_model(predictor: NetPredictor, folder: Path, facts: Mapping[str, Any] | None = None) -> None:
    """Writes a model folder; the description is renamed into place last and names the weights' digest.

    Args:
        predictor: What to save.
        folder: Created if missing.
        facts: Scores, licence, citation, training data, versions; JSON values.
    """
    from safetensors.torch import save_file

    weights = {key: value.detach().cpu().contiguous() for key, value in predictor.net.state_dict().items()}
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file(weights, temporary)
        digest = _hash(temporary)
    voxel_size = predictor.voxel_size_um
    write_json(
        folder / "model.json",
        {
            "format": FORMAT,
            "model": {**dataclasses.asdict(predictor.settings), "encoder_weights": "none"},
            "pretraining": predictor.settings.encoder_weights,
            "classes": predictor.classes.to_json(),
            "normalization": predictor.normalization.to_json(),
            "halo": predictor.halo,
            "bounded": predictor.bounded,
            "patch": predictor.patch,
            "voxel_size_um": None if voxel_size is None else list(voxel_size),
            "weights_sha256": digest,
            "facts": dict(predictor.facts if facts is None else facts),
        },
    )


def find_model(path: Path) -> Path:
    """Returns the model folder of a run folder or model folder.

    Raises:
        ModelError: There is none.
    """
    for folder in (path, path / "model"):
        if (folder / "model.json").is_file():
            return folder
    if not path.exists():
        raise ModelError(f"{path}: no such run or model folder.")
    if (path / "config.yaml").is_file():
        raise ModelError(f"{path}: this run has no model yet; run its training command again, it goes on where it was.")
    raise ModelError(f"{path}: no model.json here or in its model/ folder; expected a run or a model folder.")


def load_model(path: Path) -> NetPredictor:
    """Loads a trained model.

    Args:
        path: Run folder or model folder.

    Raises:
        ModelError: It is missing, damaged, or of another format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from neurotome.models.net import NetPredictor

    folder = find_model(path)
    weights_path = folder / "model.safetensors"
    try:
        content = json.loads((folder / "model.json").read_text())
        if content.get("format") != FORMAT:
            raise ModelError(
                f"{folder / 'model.json'}: format {content.get('format')!r}; this version reads format {FORMAT}. "
                "Install the neurotome that wrote it."
            )
        settings = ModelSettings(**content["model"])
        classes = ClassSet.from_json(content["classes"])
        size = content["voxel_size_um"]
        if not weights_path.is_file():
            raise ModelError(f"{weights_path}: missing; copy the whole model folder.")
        if _hash(weights_path) != content["weights_sha256"]:
            raise ModelError(
                f"{weights_path}: the weights are not those that model.json describes (SHA-256 differs); copy the model "
                "folder again."
            )
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


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
