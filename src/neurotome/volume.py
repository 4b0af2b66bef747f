"""Volume: a zyx array of grey values with its voxel size and origin."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import ImageError, SettingsError

Size = tuple[float, float, float]
"""Edge lengths of a voxel (z, y, x) in micrometres."""

SIZE_TOLERANCE = 1.05
"""Voxel sizes that differ by less than this factor are taken as equal: cells vary far more."""


@dataclass(frozen=True)
class Volume:
    """Grey values and where they are; a 2D image has one slice.

    Attributes:
        data: Shape (z, y, x), uint8, uint16 or float32: a numpy array, or one that reads on demand when it is indexed by
            whole numbers and slices (`io.lazy_array.LazyArray`), as everybody does who does not know which.
        name: Short name without folder or suffix.
        voxel_size_um: None if not known.
        origin_zyx: Voxel of the larger volume at which `data` begins.
        path: The file it came from, for messages.
    """

    data: Any
    name: str
    voxel_size_um: Size | None = None
    origin_zyx: tuple[int, int, int] = (0, 0, 0)
    path: Path | None = None

    def __post_init__(self) -> None:
        if self.data.ndim != 3 or 0 in self.data.shape:
            raise ImageError(
                f"{self.path or self.name}: shape {self.data.shape}; expected (z, y, x) with at least one pixel."
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels (z, y, x)."""
        z, y, x = self.data.shape
        return z, y, x

    @property
    def stack(self) -> Any:
        """The array (z, y, x) that has the neighbours of each slice: `data`, or the one that its slices were picked from."""
        return getattr(self.data, "whole", self.data)

    @property
    def numbers(self) -> NDArray[np.int64]:
        """Which slices of `stack` those of `data` are, int64, increasing."""
        return np.asarray(getattr(self.data, "numbers", np.arange(self.data.shape[0])), np.int64)

    def read_context(self, z: int, slices: int, rows: slice = slice(None), columns: slice = slice(None)) -> NDArray[Any]:
        """Returns slice `z` with its neighbours in `stack` as channels; beyond the ends the last slice is repeated.

        The shape is (slices, y, x), of an odd number of slices; the dtype is the volume's own. All are read at once, since
        stored slices may be compressed together.
        """
        stack, reach = self.stack, slices // 2
        at, last = z if stack is self.data else int(self.numbers[z]), stack.shape[0] - 1
        picked = np.clip(np.arange(at - reach, at + reach + 1), 0, last)
        return np.asarray(np.asarray(stack[picked[0] : picked[-1] + 1, rows, columns])[picked - picked[0]])

    def read_slab(self, first: int, stop: int, margin: int) -> tuple[NDArray[Any], slice]:
        """Returns slices that follow each other in `stack`, with as many more on either side as there are up to `margin`.

        The array has the shape (slices, y, x); the second result is where `first` up to `stop` are in it.
        """
        numbers = self.numbers
        start, end = int(numbers[first]), int(numbers[stop - 1]) + 1
        low = max(0, start - margin)
        return np.asarray(self.stack[low : end + margin]), slice(start - low, end - low)

    def plan_slabs(self, most: int) -> list[tuple[int, int]]:
        """Returns first and stop of slabs that hold all slices, each at most so many that follow each other in `stack`."""
        runs = np.split(np.arange(self.shape[0]), np.flatnonzero(np.diff(self.numbers) != 1) + 1)
        return [(int(z), min(int(z) + most, int(run[-1]) + 1)) for run in runs for z in run[::most]]


def state_size(edges_um: Sequence[float]) -> Size | None:
    """Returns the voxel size (z, y, x) that somebody states as three edges in micrometres, or as one for all; None for none.

    Raises:
        SettingsError: It is something else.
    """
    if len(edges_um) not in (0, 1, 3) or not all(0 < edge < math.inf for edge in edges_um):
        raise SettingsError(
            f"voxel_size_um is {' '.join(map(str, edges_um))}; expected three edges in micrometres, z y x, or one number "
            "for all."
        )
    if not edges_um:
        return None
    z, y, x = tuple(edges_um) * (1 if len(edges_um) == 3 else 3)
    return z, y, x


def note_other_size(model: str, trained_um: Size | None, data_um: Size | None) -> None:
    """Warns where a trained model will learn from voxels of another size than it knows."""
    if trained_um is None or data_um is None:
        return
    if any(max(a / b, b / a) > SIZE_TOLERANCE for a, b in zip(trained_um[1:], data_um[1:], strict=True)):
        warnings.warn(
            f"{model} was trained on voxels of {trained_um[1]:.4g} x {trained_um[2]:.4g} um (y x x), and the data have "
            f"{data_um[1]:.4g} x {data_um[2]:.4g} um. Less of what it knows helps then; resample the images to keep it.",
            stacklevel=3,
        )


def note_unknown_size(volume: Volume, expected_um: Size | None) -> bool:
    """Says so if the model has a voxel size and the volume has none, and returns whether it has said so."""
    if expected_um is None or volume.voxel_size_um is not None:
        return False
    warnings.warn(
        f"{volume.path or volume.name}: the image's voxel size is not known; the model expects {expected_um[1]:.4g} x "
        f"{expected_um[2]:.4g} um (y x x). If it differs, give --voxel-size-um, or sizes will mislead the model.",
        stacklevel=3,
    )
    return True


def to_display(grey: NDArray[Any], low: float | None = None, high: float | None = None) -> NDArray[np.uint8]:
    """Returns grey values of any shape as uint8 for a picture: uint8 as they are, others stretched.

    `low` is shown black and `high` white; the 0.5th and the 99.5th percentile if not given.
    """
    if grey.dtype == np.uint8 and low is None and high is None:
        return grey
    sample = grey if grey.size <= 1 << 20 else grey.reshape(-1)[:: grey.size >> 20]
    low = float(np.percentile(sample, 0.5)) if low is None else low
    high = float(np.percentile(sample, 99.5)) if high is None else high
    scaled = (grey.astype(np.float32) - low) / max(high - low, 1e-12)
    shown: NDArray[np.uint8] = (np.clip(scaled, 0, 1) * 255).round().astype(np.uint8)
    return shown
