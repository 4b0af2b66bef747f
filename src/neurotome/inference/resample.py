"""Brings slices to the voxel size that a model was trained at, and probabilities back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import ImageError
from neurotome.volume import SIZE_TOLERANCE, Volume

if TYPE_CHECKING:
    from scipy.sparse import csr_array

MOST = 20.0
"""Largest factor by which slices are enlarged or shrunk; beyond it a voxel size is a slip of the pen."""


def choose_shape(volume: Volume, expected_um: tuple[float, float, float] | None) -> tuple[int, int]:
    """Returns the slices' shape (y, x) at a model's voxel size; their own if either size is not known or they are alike."""
    height, width = volume.shape[1:]
    if volume.voxel_size_um is None or expected_um is None:
        return height, width
    (_, own_y, own_x), (_, wanted_y, wanted_x) = volume.voxel_size_um, expected_um
    factors = own_y / wanted_y, own_x / wanted_x
    if not all(1 / MOST <= factor <= MOST for factor in factors):
        raise ImageError(
            f"{volume.path or volume.name}: voxel size {own_y:.4g} x {own_x:.4g} um, but the model expects {wanted_y:.4g} x "
            f"{wanted_x:.4g} um (y x x), a factor of {max(factors, key=lambda f: abs(math.log(f))):.3g}; expected "
            f"{1 / MOST:g} to {MOST:g}. Give the image's voxel size with --voxel-size-um."
        )
    if all(1 / SIZE_TOLERANCE <= factor <= SIZE_TOLERANCE for factor in factors):
        return height, width
    return max(1, round(height * factors[0])), max(1, round(width * factors[1]))


def resize(planes: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Returns planes (c, y, x) in another size: linear interpolation, and where they shrink, a triangle as wide as a pixel.

    Weights are not negative and sum to 1, so constants stay and probabilities still sum to 1; the outer edges stay put.
    """
    if planes.shape[1:] == shape:
        return planes
    # not torch's interpolate: with antialias it returns the first row everywhere for images one pixel wide (2.13)
    rows, columns = (_weigh(old, new) for old, new in zip(planes.shape[1:], shape, strict=True))
    return np.stack([(columns @ (rows @ plane).T).T for plane in planes]).astype(np.float32, copy=False)


def _weigh(old: int, new: int) -> csr_array:
    """Returns how much each old pixel counts in each new one, float32, shape (new, old), every row with sum 1."""
    from scipy.sparse import csr_array

    width = max(old / new, 1.0)
    centre = (np.arange(new) + 0.5) * (old / new) - 0.5
    reach = math.ceil(width)
    taps = np.floor(centre).astype(np.int64)[:, None] + np.arange(-reach, reach + 2)
    weights = np.maximum(0, 1 - np.abs(taps - centre[:, None]) / width) * ((taps >= 0) & (taps < old))
    weights /= weights.sum(1, keepdims=True)
    kept = weights > 0
    places = np.nonzero(kept)[0], taps[kept]
    return csr_array((weights[kept].astype(np.float32), places), shape=(new, old))
