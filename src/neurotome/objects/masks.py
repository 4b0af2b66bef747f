"""Mask, Sides, pad_mask: the voxels of an object, and what lies around them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Sides = Sequence[tuple[int, int]]
"""For each axis, how many voxels at its lower and at its upper end."""


def pad_mask(mask: Mask, around: Sides) -> Mask:
    """Returns a mask (z, y, x) with so many voxels of nothing before and after it along each axis."""
    # numpy's pad takes longer than most of what is done with a cell
    padded = np.zeros([size + before + after for size, (before, after) in zip(mask.shape, around, strict=True)], bool)
    padded[tuple(slice(before, before + size) for size, (before, _) in zip(mask.shape, around, strict=True))] = mask
    return padded
