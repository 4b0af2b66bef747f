"""ObjectFinder: objects of a class in the truth and the prediction of an image, slice by slice.

Voxels that share a face are one object, as in `measure`. Parts are found in each slice; parts that touch the slice below are
joined at the end. So no volume is held, and memory grows with the number of objects alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Objects:
    """Objects of one class in one image.

    Attributes:
        voxels: How many each has where the truth is known, int64 (n,).
        ignored: How many it has besides, where the truth is not known, int64 (n,).
        centres: Mean place of the former (z, y, x) in voxels of the image, float64 (n, 3); NaN where there are none.
    """

    voxels: Numbers
    ignored: Numbers
    centres: NDArray[np.float64]


@dataclass(frozen=True)
class Shared:
    """Voxels that true and found objects share.

    Attributes:
        pairs: Number of the true object and of the found one, int64 (m, 2); each pair once.
        voxels: How many they share, int64 (m,).
    """

    pairs: Numbers
    voxels: Numbers


class ObjectFinder:
    """Finds the objects of one class in the truth and the prediction of one image."""

    def __init__(self) -> None:
        """Begins an image."""
        self._true, self._found = _Parts(), _Parts()
        self._shared: list[tuple[Numbers, Numbers]] = []

    def add(self, truth: Mask, found: Mask, known: Mask) -> None:
        """Adds the next slice: where the class is truly, where it was found, and where the truth is known, (y, x)."""
        true_parts, found_parts = self._true.add(truth, known), self._found.add(found, known)
        self._shared.append(count_shared(true_parts, found_parts))

    def finish(self) -> tuple[Objects, Objects, Shared]:
        """Returns the true objects, those that were found, and what they share."""
        (owners, true), (found_owners, found) = self._true.join(), self._found.join()
        pairs = np.concatenate([np.zeros((0, 2), np.int64), *(pairs for pairs, _ in self._shared)])
        voxels = np.concatenate([np.zeros(0, np.int64), *(voxels for _, voxels in self._shared)])
        owned = np.stack([owners[pairs[:, 0] - 1], found_owners[pairs[:, 1] - 1]], 1)
        unique, inverse = np.unique(owned, axis=0, return_inverse=True)
        summed = np.bincount(inverse.ravel(), voxels, len(unique)).astype(np.int64)
        return true, found, Shared(unique, summed)


def count_shared(first: NDArray[Any], second: NDArray[Any]) -> tuple[Numbers, Numbers]:
    """Returns which numbers above 0 of two images of one shape lie on each other, int64 (m, 2), and in how many voxels."""
    both = (first > 0) & (second > 0)
    base = int(second.max(initial=0)) + 1
    keys, counts = np.unique(first[both].astype(np.int64) * base + second[both], return_counts=True)
    return np.stack(np.divmod(keys, base), 1), counts.astype(np.int64)


class _Parts:
    """Parts of objects, each within a slice, and which of them are one object."""

    def __init__(self) -> None:
        self._sums = [np.zeros((0, 5))]
        self._links = [np.zeros((0, 2), np.int64)]
        self._last: NDArray[Any] | None = None
        self._count = self._slices = 0

    def add(self, mask: Mask, known: Mask) -> NDArray[Any]:
        """Returns the part of each pixel of the next slice, from 1 on; 0 where there is none."""
        from scipy import ndimage

        parts, count = ndimage.label(mask)
        places = np.flatnonzero(mask)
        number, inside = parts.ravel()[places] - 1, known.ravel()[places]
        y, x = np.divmod(places, mask.shape[1])
        columns = (inside, ~inside, inside * self._slices, inside * y, inside * x)
        self._sums.append(np.stack([np.bincount(number, column, count) for column in columns], 1))
        parts[mask] += self._count
        if self._last is not None:
            self._links.append(count_shared(self._last, parts)[0])
        self._last, self._count, self._slices = parts, self._count + count, self._slices + 1
        return parts

    def join(self) -> tuple[Numbers, Objects]:
        """Returns the object of each part, and the objects."""
        from scipy import sparse

        links = np.concatenate(self._links).T - 1
        graph = sparse.coo_array((np.ones(links.shape[1], bool), (links[0], links[1])), shape=(self._count,) * 2)
        count, owners = sparse.csgraph.connected_components(graph, directed=False) if self._count else (0, np.zeros(0, int))
        summed = np.stack([np.bincount(owners, column, count) for column in np.concatenate(self._sums).T], 1)
        voxels, ignored = summed[:, 0].astype(np.int64), summed[:, 1].astype(np.int64)
        centres = np.divide(summed[:, 2:], summed[:, :1], out=np.full((count, 3), np.nan), where=summed[:, :1] > 0)
        return owners.astype(np.int64), Objects(voxels, ignored, centres)
