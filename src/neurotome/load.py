"""load_predictor: the one place that knows which kinds of trained models there are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from neurotome.models.model_folder import build_predictor, find_model
from neurotome.models.stored_model import PIXELS, read_model

if TYPE_CHECKING:
    from neurotome.models.net_predictor import NetPredictor
    from neurotome.pixels.predictor import PixelPredictor
    from neurotome.predictor import BackEnd, Ranges


def load_predictor(
    path: Path | str, device: str = "auto", back_end: BackEnd = "torch", ranges: Ranges | None = None
) -> NetPredictor | PixelPredictor:
    """Loads a trained model of any kind, as its model.json says.

    Args:
        path: Run folder, model folder or the name of a packaged model.
        device: Where a network runs: auto, cpu, cuda, cuda:1 (the second GPU) or mps.
        back_end: What runs a network there. auto is torch until `choose_back_end` has seen a tile; pixel classifiers have
            one of their own.
        ranges: What openvino-int8 needs, as `choose_back_end` reports it.

    Raises:
        ModelError: It is missing, damaged, of another format, or the back end cannot take it.
        SettingsError: This machine has no such device or back end.
    """
    stored = read_model(find_model(path))
    from neurotome.models.back_ends.attach import attach_back_end
    from neurotome.models.net import choose_device

    device = choose_device(device)
    if stored.kind == PIXELS:
        from neurotome.pixels.saving import build_pixels

        return build_pixels(stored, device)
    predictor = build_predictor(stored)
    predictor.net.to(device)
    return attach_back_end(predictor, back_end, ranges)
