"""The model folder of a pixel classifier: model.safetensors and model.json, like a network's; no pickle.

Trees and linear classifiers are saved as their numbers, in the same file format as a network's weights: the smallest and the
fastest to load, needing neither LightGBM nor the scikit-learn that trained them, and what is read can be checked in full
before it is used. ONNX would need two more packages to write and read; the booster's own text is parsed by code that trusts
it; and skops checks the types that a file names, but not a tree's nodes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.errors import DatasetError, ModelError, SettingsError, unknown
from neurotome.features import EncoderSettings, Extractor, FeatureSettings, FilterSettings, build_extractor
from neurotome.features.encoder import EncoderFeatures, freeze
from neurotome.models.model_folder import FORMAT, PIXELS, find_model, read_description, write_parts
from neurotome.models.networks import ModelSettings, build_network
from neurotome.normalize import Normalization
from neurotome.pixels.classifiers import Linear, Trees
from neurotome.pixels.predictor import PixelPredictor

MOST_CHANNELS = 257
"""Input channels of an encoder that is loaded: more neighbouring slices than any is trained on."""

MOST_CLASSES = 255
"""Outputs of the network that an encoder is taken from, as many as a `ClassSet` may have."""

CLASSIFIERS: dict[str, type[Linear | Trees]] = {"linear": Linear, "trees": Trees}


def save_pixels(predictor: PixelPredictor, folder: Path, facts: Mapping[str, Any] | None = None) -> None:
    """Writes a model folder that is whole at every moment; an encoder's weights are in it.

    Args:
        predictor: What to save.
        folder: Created if missing.
        facts: Scores, licence, citation, training data, versions; JSON values.
    """
    from safetensors.numpy import save_file

    extractor = predictor.extractor
    arrays = {f"classifier.{name}": np.ascontiguousarray(array) for name, array in predictor.classifier.to_arrays().items()}
    description = {
        "format": FORMAT,
        "kind": PIXELS,
        "classifier": predictor.classifier.kind,
        "features": dataclasses.asdict(predictor.settings),
        "classes": predictor.classes.to_json(),
        "normalization": predictor.normalization.to_json(),
        "seen": predictor.seen.tolist(),
        "weights": predictor.weights.astype(float).tolist(),
        "halo": extractor.halo,
        "in_channels": predictor.in_channels,
        "voxel_size_um": None if predictor.voxel_size_um is None else list(predictor.voxel_size_um),
        "versions": {name: metadata.version(name) for name in ("neurotome", "scikit-learn", "torch")},
        "facts": dict(predictor.facts if facts is None else facts),
    }
    if isinstance(extractor, EncoderFeatures):
        for name, value in extractor.net.state_dict().items():
            arrays[f"encoder.{name}"] = value.detach().cpu().contiguous().numpy()
        description["encoder"] = {
            "model": {**dataclasses.asdict(extractor.model), "encoder_weights": "none"},
            "pretraining": extractor.model.encoder_weights,
            "classes": extractor.classes,
            "stages": list(extractor.stages),
            "bounded": extractor.bounded,
            "source": dict(extractor.source),
        }
    write_parts(folder, description, lambda path: save_file(arrays, path))


def load_pixels(path: Path, device: str = "cpu") -> PixelPredictor:
    """Loads a trained pixel classifier. Nothing in the files is executed, and every number is checked first.

    Args:
        path: Run folder or model folder.
        device: Where an encoder runs.

    Raises:
        ModelError: It is missing, damaged, of another format, or a network.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    folder = find_model(path)
    try:
        content = read_description(folder)
        if content.get("kind") != PIXELS:
            raise ModelError(f"{folder}: this model is a network, and a pixel classifier is needed here.")
        arrays = load_file(folder / "model.safetensors")
        classes = ClassSet.from_json(content["classes"])
        voxel_size_um = _read_size(content["voxel_size_um"])
        settings = _read_settings(content["features"])
        normalization = Normalization.from_json(content["normalization"])
        extractor = (
            _rebuild_encoder(content, _pick(arrays, "encoder."), normalization, device)
            if settings.kind == "encoder"
            else build_extractor(settings, voxel_size_um)
        )
        if (extractor.halo, extractor.in_channels) != (content["halo"], content["in_channels"]):
            raise ValueError(f"features of halo {content['halo']} and {content['in_channels']} channels")
        seen = np.asarray(content["seen"], np.int64)
        weights = np.asarray(content["weights"], np.float32)
        if not seen.size or seen.min() < 0 or seen.max() >= len(classes) or (np.diff(seen) <= 0).any():
            raise ValueError(f"seen classes {seen.tolist()} of {len(classes)}")
        if weights.shape != seen.shape or not (np.isfinite(weights) & (weights > 0)).all():
            raise ValueError("weights of classes that are not positive numbers")
        if content["classifier"] not in CLASSIFIERS:
            raise ModelError(f"{folder / 'model.json'}: {unknown('classifier', str(content['classifier']), CLASSIFIERS)}")
        classifier = CLASSIFIERS[content["classifier"]].from_arrays(
            _pick(arrays, "classifier."), len(extractor.names), len(seen)
        )
        return PixelPredictor(
            classes, normalization, settings, extractor, classifier, seen, weights, voxel_size_um, content["facts"]
        )
    except (
        LookupError,
        TypeError,
        ValueError,
        ArithmeticError,
        AttributeError,
        RuntimeError,
        DatasetError,
        SettingsError,
        SafetensorError,
    ) as error:
        raise ModelError(f"{folder}: damaged model folder ({error}); copy it again or train again.") from error


def _pick(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _read_size(content: Any) -> tuple[float, float, float] | None:
    """Returns a voxel size (z, y, x), None if it is not known.

    Raises:
        ValueError: It is no three numbers above 0.
    """
    if content is None:
        return None
    z, y, x = (float(edge) for edge in content)
    if not all(0 < edge < math.inf for edge in (z, y, x)):
        raise ValueError(f"voxel size {content}; expected three numbers above 0")
    return z, y, x


def _read_settings(content: Mapping[str, Any]) -> FeatureSettings:
    filters, encoder = dict(content["filters"]), dict(content["encoder"])
    filters["sigmas"] = tuple(float(sigma) for sigma in filters["sigmas"])
    encoder["stages"] = tuple(str(stage) for stage in encoder["stages"])
    return FeatureSettings(content["kind"], FilterSettings(**filters), EncoderSettings(**encoder))


def _rebuild_encoder(
    content: Mapping[str, Any], weights: Mapping[str, NDArray[Any]], normalization: Normalization, device: str
) -> Extractor:
    import torch

    encoder = content["encoder"]
    model = ModelSettings(**encoder["model"])
    if model.encoder_weights != "none":
        raise ValueError("encoder_weights that are not none in a trained model")
    classes = int(encoder["classes"])
    if not 1 <= classes <= MOST_CLASSES:
        raise ValueError(f"an encoder of {classes} classes; expected 1 to {MOST_CLASSES}")
    if int(content["halo"]) < 0:
        raise ValueError(f"an encoder of halo {content['halo']}; expected 0 or more")
    _check_encoder(model.in_channels, weights)
    core = build_network(model, classes).core
    features = freeze(
        core,
        model,
        classes,
        tuple(str(stage) for stage in encoder["stages"]),
        encoder["source"],
        normalization,
        (int(content["halo"]), bool(encoder["bounded"])),
        device,
    )
    features.net.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in weights.items()})
    return features


def _check_encoder(in_channels: Any, weights: Mapping[str, NDArray[Any]]) -> None:
    """Checks what a stranger may have written before a network is built, which could be of any size.

    Raises:
        ValueError: The input channels are not those of a stored convolution, or a weight is NaN or infinite.
    """
    if type(in_channels) is not int or not 1 <= in_channels <= MOST_CHANNELS or in_channels % 2 == 0:
        raise ValueError(f"an encoder of {in_channels} input channels; expected an odd number up to {MOST_CHANNELS}")
    # a multiple of them, because some encoders first turn neighbouring pixels into channels
    if not any(array.ndim == 4 and array.shape[1] and array.shape[1] % in_channels == 0 for array in weights.values()):
        raise ValueError(f"an encoder of {in_channels} input channels, and no stored convolution that reads them")
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise ValueError(f"encoder weights {name} that are NaN or infinite")
