"""The model folder of a pixel classifier: model.safetensors and model.json, like a network's; no pickle.

Trees and linear classifiers are saved as their numbers, in the same file format as a network's weights: the smallest and the
fastest to load, needing neither LightGBM nor the scikit-learn that trained them, and what is read can be checked in full
before it is used. ONNX would need two more packages to write and read; the booster's own text is parsed by code that trusts
it; and skops checks the types that a file names, but not a tree's nodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import ModelError, show, unknown
from neurotome.features import EncoderSettings, Extractor, FeatureSettings, FilterSettings, build_extractor
from neurotome.features.encoder import EncoderFeatures, freeze
from neurotome.models.model_folder import load_weights, read_settings
from neurotome.models.networks import build_network
from neurotome.models.stored_model import PIXELS, StoredModel, read_whole, refuse_damaged, write_model
from neurotome.pixels.classifiers import DTYPES, Linear, rebuild
from neurotome.pixels.predictor import PixelPredictor

MOST_CLASSES = 255
"""Outputs of the network that an encoder is taken from, as many as a `ClassSet` may have."""


def save_pixels(predictor: PixelPredictor, folder: Path) -> None:
    """Writes a model folder that is whole at every moment; an encoder's weights are in it.

    Args:
        predictor: What to save.
        folder: Created if missing.
    """
    extractor = predictor.extractor
    classifier = "linear" if isinstance(predictor.classifier, Linear) else "trees"
    arrays = {f"classifier.{name}": np.ascontiguousarray(getattr(predictor.classifier, name)) for name in DTYPES[classifier]}
    own: dict[str, Any] = {
        "kind": PIXELS,
        "classifier": classifier,
        "features": dataclasses.asdict(predictor.settings),
        "seen": predictor.seen.tolist(),
        "weights": predictor.weights.astype(float).tolist(),
        "in_channels": predictor.in_channels,
        "facts": dict(predictor.facts),
    }
    if isinstance(extractor, EncoderFeatures):
        for name, value in extractor.net.state_dict().items():
            arrays[f"encoder.{name}"] = value.detach().cpu().contiguous().numpy()
        own["encoder"] = {
            "model": {**dataclasses.asdict(extractor.model), "encoder_weights": "none"},
            "pretraining": extractor.model.encoder_weights,
            "classes": extractor.classes,
            "stages": list(extractor.net.stages),
            "bounded": extractor.bounded,
            "source": dict(extractor.source),
        }
    write_model(folder, predictor, own, arrays, ["scikit-learn"])


def build_pixels(stored: StoredModel, device: str = "cpu") -> PixelPredictor:
    """Builds the pixel classifier of a model folder that has been read; every number is checked first.

    Args:
        stored: What the folder holds.
        device: Where an encoder runs.

    Raises:
        ModelError: It is damaged, or a network.
    """
    folder, content = stored.folder, stored.content
    if stored.kind != PIXELS:
        raise ModelError(f"{folder}: this model is a network, and a pixel classifier is needed here.")
    with refuse_damaged(folder):
        settings = _read_settings(content["features"])
        extractor = (
            _rebuild_encoder(stored, _pick(stored.tensors, "encoder."), device)
            if settings.kind == "encoder"
            else build_extractor(settings, stored.voxel_size_um)
        )
        if (extractor.halo, extractor.in_channels) != (stored.halo, content["in_channels"]):
            raise ValueError(f"features of halo {stored.halo} and {content['in_channels']} channels")
        if not all(type(index) is int for index in content["seen"]):
            raise ValueError(f"seen classes {show(content['seen'])}; expected whole numbers")
        seen = np.asarray(content["seen"], np.int64)
        weights = np.asarray(content["weights"], np.float32)
        if not seen.size or seen.min() < 0 or seen.max() >= len(stored.classes) or (np.diff(seen) <= 0).any():
            raise ValueError(f"seen classes {seen.tolist()} of {len(stored.classes)}")
        if weights.shape != seen.shape or not (np.isfinite(weights) & (weights > 0)).all():
            raise ValueError("weights of classes that are not positive numbers")
        if content["classifier"] not in DTYPES:
            raise ModelError(f"{folder / 'model.json'}: {unknown('classifier', str(content['classifier']), DTYPES)}")
        classifier = rebuild(content["classifier"], _pick(stored.tensors, "classifier."), len(extractor.names), len(seen))
        return PixelPredictor(
            stored.classes,
            stored.normalization,
            settings,
            extractor,
            classifier,
            seen,
            weights,
            stored.voxel_size_um,
            stored.facts,
        )


def _pick(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _read_settings(content: Mapping[str, Any]) -> FeatureSettings:
    filters, encoder = dict(content["filters"]), dict(content["encoder"])
    filters["sigmas"] = tuple(float(sigma) for sigma in filters["sigmas"])
    encoder["stages"] = tuple(str(stage) for stage in encoder["stages"])
    return FeatureSettings(content["kind"], FilterSettings(**filters), EncoderSettings(**encoder))


def _rebuild_encoder(stored: StoredModel, weights: Mapping[str, NDArray[Any]], device: str) -> Extractor:
    encoder = stored.content["encoder"]
    model = read_settings(encoder["model"])
    _check_encoder(int(model.in_channels), weights)
    classes = read_whole(encoder, "classes", 1, MOST_CLASSES)
    features = freeze(
        build_network(model, classes).core,
        model,
        classes,
        tuple(str(stage) for stage in encoder["stages"]),
        dict(encoder["source"]),
        stored.normalization,
        (stored.halo, bool(encoder["bounded"])),
        device,
    )
    load_weights(features.net, weights)
    return features


def _check_encoder(in_channels: int, weights: Mapping[str, NDArray[Any]]) -> None:
    """Checks what a stranger may have written before a network is built, which could be of any size.

    Raises:
        ValueError: The input channels are not those of a stored convolution.
    """
    # a multiple of them, because some encoders first turn neighbouring pixels into channels
    if not any(array.ndim == 4 and array.shape[1] and array.shape[1] % in_channels == 0 for array in weights.values()):
        raise ValueError(f"an encoder of {in_channels} input channels, and no stored convolution that reads them")
