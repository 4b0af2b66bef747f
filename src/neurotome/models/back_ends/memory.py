"""measure_bytes_per_pixel: what a forward pass takes in memory."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from neurotome.models.back_ends.heap import release_heap
from neurotome.models.net_predictor import NetPredictor
from neurotome.predictor import Predictor

EDGES = 256, 640
"""Pixels along the edges of the patches that are predicted."""

CAUTIOUS = 4000.0
"""Bytes per pixel where a peak cannot be measured; a UNet on ResNet50 takes about half of it."""

SAFETY = 1.2
"""What is measured is multiplied by this: allocators round up (ONNX Runtime's most), and large tiles may be computed another
way."""


def measure_bytes_per_pixel(predictor: Predictor) -> float:
    """Measures how much memory a forward pass takes per pixel of its input, all channels together.

    It is the slope from a small patch to a larger one, so that what is loaded once is not counted. Linux
    alone can reset a process's peak, a GPU always; elsewhere it is `CAUTIOUS`.
    """
    device = getattr(predictor, "device", None)
    if device is not None and device.type == "cuda":
        import torch

        def measure(work: Callable[[], object]) -> int | None:
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            work()
            return torch.cuda.max_memory_allocated(device) - before
    else:
        measure = measure_process_peak
    small, large = (measure(_prepare(predictor, edge)) for edge in EDGES)
    if small is None or large is None:
        return CAUTIOUS
    return max(SAFETY * (large - small) / (EDGES[1] ** 2 - EDGES[0] ** 2), 8.0 * predictor.in_channels)


def _prepare(predictor: Predictor, edge: int) -> Callable[[], object]:
    """Returns a prediction of a square patch by a runtime that is new: what has run keeps its memory, and rises no more."""
    runtime = getattr(predictor, "runtime", None)
    if isinstance(predictor, NetPredictor) and runtime is not None:
        predictor = dataclasses.replace(predictor, runtime=runtime._replace(run=runtime.build()))
    patches = np.random.default_rng(0).standard_normal((1, predictor.in_channels, edge, edge), np.float32)
    return lambda: predictor.predict_probs(patches)


def measure_device_bytes(device: str) -> int | None:
    """Returns the memory that is free on a GPU, less a fifth that its allocator loses; None for what shares the host's."""
    if not device.startswith("cuda"):
        return None
    import torch

    free, _ = torch.cuda.mem_get_info(torch.device(device))
    return int(0.8 * free)


def measure_process_peak(work: Callable[[], object]) -> int | None:
    """Returns by how many bytes this process's memory rose at most while `work` ran; None where that cannot be measured."""
    release_heap()  # glibc keeps what was freed, and would serve the work from it unseen
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _read_status("VmRSS")
        work()
        return max(0, _read_status("VmHWM") - before)
    except OSError:
        return None


def _read_status(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
