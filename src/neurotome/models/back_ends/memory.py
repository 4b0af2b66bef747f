"""measure_bytes_per_pixel: what a forward pass takes in memory."""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from neurotome.predictor import Predictor

CAUTIOUS = 4000.0
"""Bytes per pixel where a peak cannot be measured; a UNet on ResNet50 takes about half of it."""

SAFETY = 1.1
"""What is measured is multiplied by this: allocators round up, and a larger tile may be computed another way."""


def measure_bytes_per_pixel(predictor: Predictor) -> float:
    """Measures how much memory a forward pass takes per pixel of its input, all channels, batch of one.

    Two sizes are predicted, and the difference of their peaks is divided by that of their pixels. Linux alone can reset a
    process's peak, a GPU always; elsewhere it is `CAUTIOUS`.
    """
    small, large = (_measure_peak(predictor, edge) for edge in (256, 640))
    if small is None or large is None:
        return CAUTIOUS
    return max(SAFETY * (large - small) / (640**2 - 256**2), 8.0 * predictor.in_channels)


def _measure_peak(predictor: Predictor, edge: int) -> int | None:
    patches = np.random.default_rng(0).standard_normal((1, predictor.in_channels, edge, edge), np.float32)
    if getattr(predictor, "device", None) is not None and predictor.device.type == "cuda":  # type: ignore[attr-defined]
        import torch

        torch.cuda.synchronize(predictor.device)  # type: ignore[attr-defined]
        torch.cuda.reset_peak_memory_stats(predictor.device)  # type: ignore[attr-defined]
        before = torch.cuda.memory_allocated(predictor.device)  # type: ignore[attr-defined]
        predictor.predict_probs(patches)
        return torch.cuda.max_memory_allocated(predictor.device) - before  # type: ignore[attr-defined]
    return measure_process_peak(lambda: predictor.predict_probs(patches))


def measure_process_peak(work: Callable[[], object]) -> int | None:
    """Returns by how many bytes this process's memory rose at most while `work` ran; None where that cannot be measured."""
    with contextlib.suppress(OSError):
        work()  # what is allocated once, such as buffers of a runtime, is not counted
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # glibc keeps what was freed, and would serve the work from it unseen
        Path("/proc/self/clear_refs").write_text("5")
        before = _read_status("VmRSS")
        work()
        return max(0, _read_status("VmHWM") - before)
    return None


def _read_status(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
