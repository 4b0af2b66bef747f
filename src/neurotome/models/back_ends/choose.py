"""choose_back_end: the fastest of those installed that agrees with torch, on the user's own tile."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import ModelError
from neurotome.normalize import Scale
from neurotome.predictor import BackEnd, Predictor, Ranges

if TYPE_CHECKING:
    from neurotome.models.net_predictor import NetPredictor

AUTOMATIC: tuple[BackEnd, ...] = ("torch", "onnxruntime", "openvino")
"""What auto chooses from; 8 bit is taken only when it is asked for."""

FEWEST_VOXELS = 100_000_000
"""Below, converting and timing take longer than they can save."""

LEAST_AGREEMENT = 0.9999
"""Share of pixels with torch's label from which another back end counts as equal."""

ROUNDS = 3
"""How often each one is timed, in turn, so that a machine whose speed drifts treats all alike."""


@dataclass(frozen=True)
class BackEndReport:
    """How a back end did on the tile; JSON values.

    Attributes:
        back_end: Its name, by which another process attaches it.
        name: What it is, with its version.
        seconds: For the patches, median; None if it cannot take this network.
        agreement: Share of pixels with the label that torch gives; of torch itself, with the one in 32 bit.
        difference: Largest difference of a probability from torch's.
        chosen: Whether it is the one to use.
        ranges: What openvino-int8 must be given by another process, else None.
        problem: Why it cannot take this network, else empty.
    """

    back_end: BackEnd
    name: str
    seconds: float | None
    agreement: float = 1.0
    difference: float = 0.0
    chosen: bool = False
    ranges: Ranges | None = None
    problem: str = ""

    @property
    def sentence(self) -> str:
        """One line for a person."""
        if self.seconds is None:
            return f"{self.back_end}: not used, {self.problem}"
        chosen = ", chosen" if self.chosen else ""
        if self.back_end == "torch":
            equal = "" if self.agreement == 1 else f", labels equal those in 32 bit on {floor_percent(self.agreement)} %"
            return f"{self.name}: {self.seconds:.3g} s{equal}{chosen}"
        loss = ""
        if self.agreement < LEAST_AGREEMENT:
            loss = " (no longer the model's own labels: compare them with labels you trust before relying on them)"
        return (
            f"{self.name}: {self.seconds:.3g} s, labels equal torch's on {floor_percent(self.agreement)} %, probabilities "
            f"differ by at most {self.difference:.1e}{loss}{chosen}"
        )


def choose_back_end(
    predictor: Predictor,
    patches: NDArray[np.float32],
    candidates: Sequence[BackEnd] = ("auto",),
    voxels: int = FEWEST_VOXELS,
) -> tuple[Predictor, list[BackEndReport]]:
    """Times the back ends that are installed on patches of the user's image, and compares each with torch.

    Args:
        predictor: A trained network, where it is to run; a pixel classifier, or a network on a GPU, is returned with torch.
        patches: Scaled grey values, shape (n, in_channels, y, x), of the size that will be predicted; for openvino-int8 they
            are also what its ranges are measured on.
        candidates: auto: torch and all that are installed. One that is named alone is taken even if its labels differ.
        voxels: How many will be predicted; where they are few, auto is torch.

    Returns:
        The predictor with the fastest of those that agree (on `LEAST_AGREEMENT` of the pixels), and a report on each.

    Raises:
        SettingsError: One that is named alone is not installed, or does not run on this device.
        ModelError: It cannot take this network.
    """
    from neurotome.models.net_predictor import HALF, NetPredictor

    if not isinstance(predictor, NetPredictor):
        return predictor, []
    if "auto" in candidates and voxels < FEWEST_VOXELS:
        candidates = ["torch"]
    attached, reports = _attach_all(predictor, patches, candidates)
    if predictor.device.type in HALF:
        return attached["torch"][0], [_compare_half(attached["torch"][0], patches)]
    if len(attached) == 1:
        return attached["torch"][0], reports
    probs = {back_end: candidate.predict_probs(patches) for back_end, (candidate, _) in attached.items()}
    seconds: dict[BackEnd, list[float]] = {back_end: [] for back_end in attached}
    for _ in range(ROUNDS):
        for back_end, (candidate, _) in attached.items():
            began = time.perf_counter()
            candidate.predict_probs(patches)
            seconds[back_end].append(time.perf_counter() - began)
    expected = probs["torch"]
    for back_end, (candidate, ranges) in attached.items():
        agreement = float((probs[back_end].argmax(1) == expected.argmax(1)).mean())
        difference = float(np.abs(probs[back_end] - expected).max())
        median = statistics.median(seconds[back_end])
        reports.append(BackEndReport(back_end, candidate.back_end, median, agreement, difference, ranges=ranges))
    equal = [report for report in reports if report.seconds is not None and report.agreement >= LEAST_AGREEMENT]
    named = [report for report in reports if [report.back_end] == list(candidates)]
    best = named[0] if named else min(equal, key=lambda report: report.seconds or 0.0)
    chosen = attached[best.back_end][0]
    runtime = chosen.runtime
    if runtime is not None:  # anew, because what it has run keeps its memory
        chosen = dataclasses.replace(chosen, runtime=runtime._replace(run=runtime.build()))
    return chosen, [dataclasses.replace(report, chosen=report is best) for report in reports]


def _compare_half(predictor: NetPredictor, patches: NDArray[np.float32]) -> BackEndReport:
    """Compares labels in 16 bit, as a GPU computes them, with those in 32 bit."""
    whole = slice(0, patches.shape[2]), slice(0, patches.shape[3])
    expected = predictor.predict_probs(patches).argmax(1)
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        labels, _ = predictor.label_patches(patches, Scale(0.0, 1.0), whole, confidence=False)
        seconds.append(time.perf_counter() - began)
    agreement = float((labels == expected).mean())
    return BackEndReport("torch", predictor.back_end, statistics.median(seconds), agreement, chosen=True)


def _attach_all(
    predictor: NetPredictor, patches: NDArray[np.float32], candidates: Sequence[BackEnd]
) -> tuple[dict[BackEnd, tuple[NetPredictor, Ranges | None]], list[BackEndReport]]:
    """Returns torch and the candidates that can be used, with their ranges, and reports on those that cannot."""
    from neurotome.models.back_ends.attach import attach_back_end, is_installed

    is_named = len(candidates) == 1 and candidates[0] != "auto"
    wanted = list(AUTOMATIC if "auto" in candidates else candidates)
    if not is_named:
        wanted = [back_end for back_end in wanted if predictor.device.type == "cpu" and is_installed(back_end)]
    attached: dict[BackEnd, tuple[NetPredictor, Ranges | None]] = {"torch": (attach_back_end(predictor, "torch"), None)}
    refused = []
    for back_end in wanted:
        if back_end == "torch":
            continue
        try:
            ranges = None
            if back_end == "openvino-int8" and is_installed(back_end):
                from neurotome.models.back_ends.open_vino import measure_ranges

                ranges = measure_ranges(predictor, patches)
            attached[back_end] = attach_back_end(predictor, back_end, ranges), ranges
        except ModelError as error:
            if is_named:
                raise
            refused.append(BackEndReport(back_end, back_end, None, problem=str(error)))
    return attached, refused


def floor_percent(share: float) -> str:
    """Returns a share in percent with four decimals, rounded down: 100 means all."""
    return f"{int(share * 1e6) / 1e4:.4f}"
