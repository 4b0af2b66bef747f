"""split_touching: parts an object that is several cells which touch.

Every voxel's distance to the object's edge has a peak in each cell. Watersheds between the peaks part the object; where the
distance at the highest point of a border between two parts, half of the neck's width, is `neck` of the lower peak or more,
the two are one: a share, because what is a neck of a large cell would be a whole small one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.objects.masks import Mask, Sides, pad_mask
from neurotome.volume import Size

NECK = 0.7
"""What touches is parted where the neck between them is narrower than this share of the smaller one (docs/measuring.md)."""

LARGEST = 1 << 23
"""Voxels, of an object or of the box around it, above which it is no cell but a mistake: it is counted, not parted."""


def split_touching(mask: Mask, size_um: Size, neck: float, cut: Sides) -> NDArray[np.int32]:
    """Returns the parts of one object, int32 (z, y, x), 1, 2, ... within it and 0 outside; 1 alone if it is one cell.

    Args:
        mask: The object in its bounding box.
        size_um: Edges of a voxel (z, y, x).
        neck: Share of the smaller cell's width below which a neck parts two.
        cut: For each axis, 1 where the object is cut by the border of what was measured, at its lower and its upper end:
            nobody knows that it ends there.
    """
    from scipy import ndimage
    from skimage import segmentation

    whole = mask.astype(np.int32)
    if neck <= 0 or mask.sum() < 8:  # too small for two peaks with anything between them
        return whole
    around = [(1 - low, 1 - high) for low, high in cut]
    inside = tuple(slice(low, low + size) for (low, _), size in zip(around, mask.shape, strict=True))
    padded = pad_mask(mask, around)
    if padded.all():
        return whole
    # rounded, so that equal distances are equal whatever the order in which they were summed
    distance = np.round(ndimage.distance_transform_edt(padded, size_um)[inside], 6).astype(np.float32)
    peaks = (_find_largest_beside(distance) == distance) & mask
    marked, count = ndimage.label(peaks, np.ones((3, 3, 3)))
    if count < 2:
        return whole
    part: Any = segmentation.watershed  # untyped
    basins: NDArray[np.int32] = part(-distance, marked, mask=mask, connectivity=1)
    heights = np.zeros(count + 1, np.float32)
    np.maximum.at(heights, basins[mask], distance[mask])
    joined = _join(basins, distance, heights, neck)
    return np.asarray(joined[basins], np.int32)


def _find_largest_beside(field: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the largest of every voxel and its 26 neighbours."""
    # faster than scipy's filter on what is as small as a cell
    for axis in range(3):
        lower, upper = (tuple(part if a == axis else slice(None) for a in range(3)) for part in (slice(-1), slice(1, None)))
        largest = field.copy()
        np.maximum(largest[upper], field[lower], out=largest[upper])
        np.maximum(largest[lower], field[upper], out=largest[lower])
        field = largest
    return field


def _join(
    basins: NDArray[np.int32], distance: NDArray[np.float32], heights: NDArray[np.float32], neck: float
) -> NDArray[np.int32]:
    """Returns the number of the part that each basin belongs to, 0 for 0; widest necks first. `heights` begins with 0's."""
    found, narrow = [], []
    for axis in range(3):
        lower, upper = (tuple(part if a == axis else slice(None) for a in range(3)) for part in (slice(-1), slice(1, None)))
        before, after = basins[lower], basins[upper]
        border = (before != after) & (before > 0) & (after > 0)
        one, two = before[border], after[border]
        found.append(np.minimum(one, two).astype(np.int64) * len(heights) + np.maximum(one, two))
        narrow.append(np.minimum(distance[lower][border], distance[upper][border]))
    pairs, which = np.unique(np.concatenate(found), return_inverse=True)
    widest = np.zeros(len(pairs), np.float32)
    np.maximum.at(widest, which, np.concatenate(narrow))
    widths = {divmod(pair, len(heights)): width for pair, width in zip(pairs.tolist(), widest.tolist(), strict=True)}
    parent = list(range(len(heights)))
    height = heights.tolist()

    def find(basin: int) -> int:
        while parent[basin] != basin:
            basin = parent[basin]
        return basin

    for (a, b), width in sorted(widths.items(), key=lambda entry: (-entry[1], entry[0])):
        first, second = find(a), find(b)
        if first != second and width >= neck * min(height[first], height[second]):
            keep, gone = sorted((first, second))
            parent[gone], height[keep] = keep, max(height[first], height[second])
    roots = [find(basin) for basin in range(len(parent))]
    return np.unique(roots, return_inverse=True)[1].astype(np.int32)
