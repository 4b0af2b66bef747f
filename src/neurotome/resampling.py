"""Planes brought to a model's voxel size and back, region by region: a region equals the same part of the whole."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import ImageError
from neurotome.volume import SIZE_TOLERANCE, Volume

MOST_RESIZED = 20.0
"""Largest factor by which planes are enlarged or shrunk; beyond it a voxel size is a slip of the pen."""

PLANE = {"z": (0, 1, 2), "y": (1, 0, 2), "x": (2, 0, 1)}
"""The axis along which planes follow each other, then those of their rows and columns."""


def choose_factors(volume: Volume, axis: str, expected_um: Sequence[float] | None) -> tuple[float, float]:
    """Returns how many pixels of a model one pixel of a volume's planes is, in rows and columns.

    Args:
        volume: What is predicted.
        axis: Along which planes follow each other, "z", "y" or "x".
        expected_um: The model's voxel size (z, y, x), or None.

    Returns:
        1 and 1 where either size is not known, or both are alike within `SIZE_TOLERANCE`.

    Raises:
        ImageError: A factor is beyond `MOST_RESIZED`.
    """
    if volume.voxel_size_um is None or expected_um is None:
        return 1.0, 1.0
    own_y, own_x = (volume.voxel_size_um[d] for d in PLANE[axis][1:])
    _, wanted_y, wanted_x = expected_um
    factors = own_y / wanted_y, own_x / wanted_x
    if not all(1 / MOST_RESIZED <= factor <= MOST_RESIZED for factor in factors):
        raise ImageError(
            f"{volume.path or volume.name}: voxel size {own_y:.4g} x {own_x:.4g} um, but the model expects {wanted_y:.4g} x "
            f"{wanted_x:.4g} um ({' x '.join('zyx'[d] for d in PLANE[axis][1:])}), a factor of "
            f"{max(factors, key=lambda f: abs(math.log(f))):.3g}; expected {1 / MOST_RESIZED:g} to {MOST_RESIZED:g}. Give "
            "the image's voxel size with --voxel-size-um."
        )
    if all(1 / SIZE_TOLERANCE <= factor <= SIZE_TOLERANCE for factor in factors):
        return 1.0, 1.0
    return factors


def count_resampled(size: int, factor: float) -> int:
    """Returns how many pixels a line of `size` pixels has at a model's voxel size."""
    return max(1, round(size * factor))


def find_needed(wanted: slice, size: int, source: int) -> slice:
    """Returns which pixels of a line of `source` pixels the pixels `wanted` of it resampled to `size` depend on."""
    ratio = source / size
    support = max(1.0, ratio)
    first, last = (wanted.start + 0.5) * ratio - support, (wanted.stop - 0.5) * ratio + support
    return slice(max(0, math.floor(first)), min(source, math.ceil(last)))


def resample(
    lines: NDArray[np.float32], axis: int, have: slice, source: int, wanted: slice, size: int
) -> NDArray[np.float32]:
    """Resamples along one axis as whole lines would be: linear, and where they shrink, a triangle as wide as a pixel.

    Weights are not negative and sum to 1, the outer edges stay put, and a pixel's value does not depend on `wanted`. The
    filter is that of `PIL.Image.resize` with `BILINEAR`, to float32's precision.

    Args:
        lines: Values, of which `axis` holds the pixels `have` of lines of `source` pixels.
        axis: Which axis.
        have: At least what `find_needed` says.
        source: Pixels of a whole line before.
        wanted: Which pixels to return of lines of `size` pixels.
        size: Pixels of a whole line after.

    Returns:
        float32, of the same shape but for `axis`, which has the pixels `wanted`.
    """
    if source == size:
        return lines[(slice(None),) * (axis % lines.ndim) + (slice(wanted.start - have.start, wanted.stop - have.start),)]
    ratio = source / size
    support = max(1.0, ratio)
    centres = (np.arange(wanted.start, wanted.stop) + 0.5) * ratio
    taps = np.floor(centres - support).astype(np.int64)[:, None] + np.arange(math.ceil(2 * support) + 1)
    weights = np.maximum(0, 1 - np.abs(taps + 0.5 - centres[:, None]) / support)
    weights[(taps < 0) | (taps >= source)] = 0
    weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    places = np.clip(taps - have.start, 0, have.stop - have.start - 1)
    column = (-1,) + (1,) * (lines.ndim - 1 - axis % lines.ndim)
    total = np.zeros((), np.float32)
    for place, weight in zip(places.T, weights.T, strict=True):
        total = total + np.take(lines, place, axis) * weight.reshape(column)
    return total
