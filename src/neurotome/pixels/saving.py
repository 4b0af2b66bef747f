"""The model folder of a pixel classifier: model.safetensors and model.json, like a network's; no pickle.

Trees and linear classifiers are saved as their numbers: small, fast to load without what trained them, and checked in full
before they are used, which neither ONNX nor skops nor a booster's own text would allow.
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

MOST_CLASSES = 255  # outputs of the network that an encoder is taken from, as many as a `ClassSet` may have


def save_pixels(predictor: PixelPredictor, folder: Path) -> None:
    """Writes a model folder that is whole at every moment, created if missing; an encoder's weights are in it."""
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
        ids = content["seen"]
        if not all(type(i) is int and 0 <= i < len(stored.classes) for i in ids) or not ids or sorted({*ids}) != ids:
            raise ValueError(f"seen classes {show(ids)} of {len(stored.classes)}; expected whole numbers in order")
        seen, weights = np.asarray(ids, np.int64), np.asarray(content["weights"], np.float32)
        if weights.shape != seen.shape or not (np.isfinite(weights) & (weights > 0)).all():
            raise ValueError("weights of classes that are not positive numbers")
        if content["classifier"] not in DTYPES:
            raise ModelError(f"{folder / 'model.json'}: {unknown('classifier', str(content['classifier']), DTYPES)}")
        classifier = rebuild(content["classifier"], _pick(stored.tensors, "classifier."), len(extractor.names), len(seen))
        scale, size = stored.normalization, stored.voxel_size_um
        return PixelPredictor(stored.classes, scale, settings, extractor, classifier, seen, weights, size, stored.facts)


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
    # before a network is built, which could be of any size; some encoders first turn neighbouring pixels into channels
    if not any(array.ndim == 4 and array.shape[1] and array.shape[1] % model.in_channels == 0 for array in weights.values()):
        raise ValueError(f"an encoder of {model.in_channels} input channels, and no stored convolution that reads them")
    classes = read_whole(encoder, "classes", 1, MOST_CLASSES)
    core, stages = build_network(model, classes).core, tuple(str(stage) for stage in encoder["stages"])
    source, reach = dict(encoder["source"]), (stored.halo, bool(encoder["bounded"]))
    features = freeze(core, model, classes, stages, source, stored.normalization, reach, device)
    load_weights(features.net, weights)
    return features
