"""The model folder: model.safetensors and model.json, all that prediction needs; loading never touches the network."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from neurotome.atomic import atomic_path, write_json
from neurotome.errors import ModelError, show, unknown
from neurotome.models.networks import ModelSettings, build_network, settle_network
from neurotome.models.stored_model import (
    FORMAT,
    MOST_HALO,
    NETWORK,
    NEXT,
    StoredModel,
    read_channels,
    read_description,
    read_model,
    read_whole,
    refuse_damaged,
)

if TYPE_CHECKING:
    from torch import nn

    from neurotome.models.net_predictor import NetPredictor

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
    """Adds facts, such as scores, to the description of a model that is there.

    Raises:
        ModelError: The folder is damaged.
    """
    content, _ = read_description(folder)  # after a kill between weights and description, the one that fits
    write_json(folder / "model.json", {**content, "facts": {**content["facts"], **facts}})


def list_packaged() -> list[str]:
    """Returns the names of the models that come with the package."""
    return sorted(path.parent.name for path in ZOO.glob("*/model.json"))


def find_model(path: Path | str) -> Path:
    """Returns the model folder of a run folder, a model folder or a packaged model.

    Args:
        path: A folder; or where none is there, the bare name of a model that comes with the package.

    Raises:
        ModelError: There is none.
    """
    path = Path(path)
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


def read_digest(path: Path | str) -> str:
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


def load_model(path: Path | str) -> NetPredictor:
    """Loads a trained network.

    Args:
        path: Run folder, model folder or the name of a packaged model.

    Raises:
        ModelError: It is missing, damaged, of another format, or a pixel classifier.
    """
    return build_predictor(read_model(find_model(path)))


def build_predictor(stored: StoredModel) -> NetPredictor:
    """Builds the network of a model folder that has been read; never touches the internet.

    Raises:
        ModelError: It is a pixel classifier, or damaged.
    """
    from neurotome.models.net_predictor import NetPredictor

    if stored.kind != NETWORK:
        raise ModelError(
            f"{stored.folder}: this model is a pixel classifier ({stored.kind}), and a network is needed here. Name a model "
            "that neurotome train has made."
        )
    with refuse_damaged(stored.folder):
        settings = read_settings(stored.content["model"])
        bounded = stored.content["bounded"]
        if type(bounded) is not bool:
            raise ValueError(f"bounded is {show(bounded)}; expected true or false")
        net = build_network(settings, len(stored.classes))
        load_weights(net, stored.tensors)
        predictor = NetPredictor(
            net=net,
            settings=settings,
            classes=stored.classes,
            normalization=stored.normalization,
            halo=stored.halo,
            bounded=bounded,
            patch=read_whole(stored.content, "patch", 1, MOST_HALO),
            voxel_size_um=stored.voxel_size_um,
            facts=stored.facts,
        )
        # weights may be numbers each and overflow together
        patch = np.random.default_rng(0).standard_normal((1, predictor.in_channels, 64, 64), np.float32)
        if not np.isfinite(predictor.predict_probs(patch)).all():
            raise ValueError("its probabilities are no numbers")
        return predictor


def read_settings(content: Mapping[str, Any]) -> ModelSettings:
    """Returns the network that a description names, with nothing left to decide or to download.

    Raises:
        ValueError: A value is of another type or out of range.
        TypeError: A setting is not known.
    """
    settings = ModelSettings(**content)
    if settings.encoder_weights != "none":
        raise ValueError("encoder_weights must be none in a trained model")
    if not isinstance(settings.decoder, str) or not isinstance(settings.encoder, str):
        raise ValueError(f"decoder {show(settings.decoder)} and encoder {show(settings.encoder)}; expected names")
    read_channels(content)
    read_whole(content, "encoder_depth", 3, 5)
    return settings


def load_weights(net: nn.Module, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Copies weights into a network of the same tensors.

    Raises:
        ValueError: A tensor is of another kind of number than the network's.
        RuntimeError: Tensors are missing, left over, or of other shapes.
    """
    import torch

    weights = {name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()}
    for name, wanted in net.state_dict().items():
        if name in weights and weights[name].is_floating_point() != wanted.is_floating_point():
            raise ValueError(f"weights {name} are {weights[name].dtype}, expected {wanted.dtype}")
    net.load_state_dict(weights)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
