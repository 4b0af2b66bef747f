"""load_predictor: the one place that knows which kinds of trained models there are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from neurotome.errors import ModelError
from neurotome.models.model_folder import PIXELS, find_model, load_model, read_description

if TYPE_CHECKING:
    from neurotome.models.net_predictor import NetPredictor
    from neurotome.pixels.predictor import PixelPredictor


def load_predictor(path: Path, device: str = "auto") -> NetPredictor | PixelPredictor:
    """Loads a trained model of any kind, as its model.json says.

    Args:
        path: Run folder, model folder or the name of a packaged model.
        device: Where a network runs: auto, cpu, cuda or mps.

    Raises:
        ModelError: It is missing, damaged, or of another format.
        SettingsError: This machine has no such device.
    """
    folder = find_model(path)
    try:
        kind = read_description(folder).get("kind")
    except (LookupError, TypeError, ValueError) as error:
        raise ModelError(f"{folder}: damaged model folder ({error}); copy it again or train again.") from error
    from neurotome.models.net import choose_device

    if kind == PIXELS:
        from neurotome.pixels.saving import load_pixels

        return load_pixels(folder, choose_device(device))
    predictor = load_model(folder)
    predictor.net.to(choose_device(device))
    return predictor
