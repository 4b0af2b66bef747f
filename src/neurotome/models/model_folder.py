"""The model folder: model.safetensors and model.json, all that prediction needs; loading never touches the network."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from neurotome.atomic import write_json
from neurotome.errors import ModelError, show, unknown
from neurotome.models.networks import ModelSettings, build_network, settle_network
from neurotome.models.stored_model import (
    MOST_HALO,
    NETWORK,
    NEXT,
    StoredModel,
    read_description,
    read_model,
    read_whole,
    refuse_damaged,
    write_model,
)

if TYPE_CHECKING:
    from torch import nn

    from neurotome.models.net_predictor import NetPredictor

ZOO = Path(__file__).parent / "zoo"
"""Models that come with the package, a folder each."""

MOST_CHANNELS = 257
"""Neighbouring slices; more than any model is trained on."""

Storage = Literal["float32", "float16"]


def save_model(
    predictor: NetPredictor, folder: Path, facts: Mapping[str, Any] | None = None, storage: Storage = "float32"
) -> None:
    """Writes the model folder of a network, whole at every moment.

    Args:
        predictor: What to save.
        folder: Created if missing.
        facts: Scores, licence, citation, training data, versions; JSON values.
        storage: How weights are written; float16 halves the file and rounds them to 11 bits. What a network counts, such as
            the statistics of batch normalisation, stays float32, and loading gives float32.

    Raises:
        ModelError: A weight is too large for float16.
    """
    weights = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in predictor.net.state_dict().items()}
    if storage == "float16":
        for name, _ in predictor.net.named_parameters():
            most = np.abs(weights[name]).max(initial=0)
            if most > np.finfo(np.float16).max:
                raise ModelError(f"{folder}: weight {name} reaches {most:.3g}, more than the 65504 of float16; use float32.")
            weights[name] = weights[name].astype(np.float16)
    own = {
        "model": {**dataclasses.asdict(settle_network(predictor.settings)), "encoder_weights": "none"},
        "storage": storage,
        "pretraining": predictor.settings.encoder_weights,
        "bounded": predictor.bounded,
        "patch": predictor.patch,
        "facts": dict(predictor.facts if facts is None else facts),
    }
    write_model(folder, predictor, own, weights, ["segmentation-models-pytorch", "timm"])


def add_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Adds facts, such as scores, to the description of a model that is there; ModelError if it is damaged."""
    content, _ = read_description(folder)
    write_json(folder / "model.json", {**content, "facts": {**content["facts"], **facts}})


def list_packaged() -> list[str]:
    """Returns the names of the models that come with the package, each with its version, such as microct-base-1."""
    return sorted(path.parent.name for path in ZOO.glob("*/model.json"))


def name_version(name: str) -> str:
    """Returns the name of a packaged model with its version, the newest where none is given; other names as they are.

    A folder of that name goes before a packaged model.
    """
    known = [] if Path(name).exists() else list_packaged()
    versions = [match for packaged in known if (match := re.fullmatch(re.escape(name) + r"-(\d+)", packaged))]
    return max(versions, key=lambda match: int(match[1]))[0] if versions else name


def find_model(path: Path | str) -> Path:
    """Returns the model folder of a run folder, a model folder or a packaged model, or a package (.zip) as it is.

    Args:
        path: A folder or package; or where none is there, the bare name of a model that comes with the package.

    Raises:
        ModelError: There is none.
    """
    path = Path(path)
    if path.suffix.lower() == ".zip" and path.is_file():
        return path
    for folder in (path, path / "model"):
        if (folder / "model.json").is_file() or (folder / NEXT).is_file():
            return folder
    if not path.exists():
        known = list_packaged() if len(path.parts) == 1 else []
        if (name := name_version(path.name)) in known:
            return ZOO / name
        hint = f"; {unknown('packaged model', path.name, known)}" if known else "."
        raise ModelError(f"{path}: no such run or model folder{hint}")
    if (path / "config.yaml").is_file():
        raise ModelError(f"{path}: this run has no model yet; run its training command again, it goes on where it was.")
    raise ModelError(f"{path}: no model.json here or in its model/ folder; expected a run or a model folder.")


def read_digest(path: Path | str) -> str:
    """Returns the SHA-256 of a model's weights; arguments and errors as of `load_model`."""
    return str(read_description(find_model(path))[0]["weights_sha256"])


def load_model(path: Path | str) -> NetPredictor:
    """Loads a trained network.

    Args:
        path: Run folder, model folder or the name of a packaged model.

    Raises:
        ModelError: It is missing, damaged, of another format, or a pixel classifier.
    """
    return build_predictor(read_model(find_model(path)))


def build_predictor(stored: StoredModel) -> NetPredictor:
    """Builds the network of a model folder that has been read; ModelError if it is a pixel classifier, or damaged."""
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
    """Returns the network that a description names, with nothing left to decide or to download, of any size."""
    settings = settle_network(ModelSettings(**content))  # older models say nothing of what came later
    if settings.encoder_weights != "none":
        raise ValueError("encoder_weights must be none in a trained model")
    if read_whole(content, "in_channels", 1, MOST_CHANNELS) % 2 == 0:
        raise ValueError(f"in_channels is {settings.in_channels}; expected an odd number")
    read_whole(content, "encoder_depth", 3, 5)
    return settings


def load_weights(net: nn.Module, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Copies weights into a network of the same tensors; ValueError or RuntimeError if they are not its own."""
    import torch

    weights = {name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()}
    for name, wanted in net.state_dict().items():
        if name in weights and weights[name].is_floating_point() != wanted.is_floating_point():
            raise ValueError(f"weights {name} are {weights[name].dtype}, expected {wanted.dtype}")
    net.load_state_dict(weights)
