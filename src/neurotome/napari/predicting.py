"""label_volume: what the panel Predict does in a thread of its own; needs neither napari nor Qt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.inference.predict import iterate_probs
from neurotome.inference.predict_settings import PredictSettings
from neurotome.models.model_folder import name_version
from neurotome.volume import Volume, note_unknown_size

Report = Callable[[float, str], None]
"""Told how far a task is, 0 to 1, and what is done; raises `StoppedError` to end it."""


class StoppedError(Exception):
    """Somebody has stopped a task."""


@dataclass(frozen=True)
class Predicted:
    """What a model says of a volume.

    Attributes:
        labels: As stored, uint8, shape (z, y, x).
        confidence: The probability of the chosen class times 255, uint8, same shape; None if it was not asked for.
        classes: What the labels mean.
    """

    labels: NDArray[np.uint8]
    confidence: NDArray[np.uint8] | None
    classes: ClassSet


def label_volume(model: str, volume: Volume, settings: PredictSettings, report: Report) -> Predicted:
    """Labels a volume as `predict` does, in memory.

    Args:
        model: Run folder, model folder, package (.zip) or the name of a packaged model.
        volume: The image; may be lazy.
        settings: How the model is applied.
        report: Called before the first tile and after each.

    Raises:
        NeurotomeError: As for `predict`.
        StoppedError: `report` has raised it.
    """
    report(0.0, "loading the model")
    from neurotome.load import load_predictor

    predictor = load_predictor(Path(name_version(model)), settings.device)
    note_unknown_size(volume, predictor.voxel_size_um)
    depth, height, width = volume.shape
    labels = np.empty(volume.shape, np.uint8)
    confidence = np.empty(volume.shape, np.uint8) if settings.confidence else None
    done = 0

    def advance(megapixels: float) -> None:
        share = min(1.0, megapixels * 1e6 / (depth * height * width))
        report(share, f"slice {min(done + 1, depth)} of {depth}")

    advance(0.0)
    for z, probs in enumerate(iterate_probs(predictor, volume, settings, advance)):
        labels[z] = predictor.classes.to_stored(probs.argmax(0).astype(np.uint8))
        if confidence is not None:
            confidence[z] = (probs.max(0) * 255).round()
        done = z + 1
        advance(done * height * width / 1e6)
    return Predicted(labels, confidence, predictor.classes.with_palette(settings.palette))
