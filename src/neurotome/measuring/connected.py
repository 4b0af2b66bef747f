"""Which voxels of a mask belong together, from its runs: voxels in a row along x.

A mask has far fewer runs than voxels, and which runs touch is asked of sorted numbers: less than half of the time of scipy's
labelling, which looks at every voxel's neighbours, for the same objects in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.blocks import Box, Triple
from neurotome.objects.masks import Mask

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Connected:
    """The objects of a mask, numbered from 0 in the order of their first voxels.

    Attributes:
        shape: Voxels of the mask (z, y, x).
        first: Place of the first voxel of every run (n,), increasing. Places count along x, y and z through the mask with a
            voxel more at the end of every line and a line more in every plane, so that no run goes on in the next line.
        last: Place of the last voxel of every run (n,).
        owner: Which object each run belongs to (n,).
        count: How many objects there are.
    """

    shape: Triple
    first: Ints
    last: Ints
    owner: Ints
    count: int

    def spread(self, values: NDArray[Any]) -> NDArray[Any]:
        """Returns of every voxel of the mask, in their order, what its object has."""
        return np.repeat(values[self.owner], self.last - self.first + 1)

    def find_owners(self, voxels: Ints) -> Ints:
        """Returns which object each of some voxels (n, 3) of the mask belongs to."""
        places = np.ravel_multi_index(tuple(voxels.T), self._padded)
        return np.asarray(self.owner[np.searchsorted(self.first, places, "right") - 1])

    def list_voxels(self, number: int) -> Ints:
        """Returns the voxels (n, 3) of an object, in their order."""
        runs = np.flatnonzero(self.owner == number)
        lengths = self.last[runs] - self.first[runs] + 1
        skipped = np.cumsum(lengths) - lengths
        places = np.arange(lengths.sum()) + np.repeat(self.first[runs] - skipped, lengths)
        return np.stack(np.unravel_index(places, self._padded), 1).astype(np.int64)

    def find_boxes(self) -> list[Box]:
        """Returns the bounding box of every object."""
        if not self.count:
            return []
        order = np.argsort(self.owner, kind="stable")
        begin = np.searchsorted(self.owner[order], np.arange(self.count))
        low, high = (np.stack(np.unravel_index(ends[order], self._padded)) for ends in (self.first, self.last))
        starts, stops = np.minimum.reduceat(low, begin, 1).T, np.maximum.reduceat(high, begin, 1).T + 1
        pairs = zip(starts.tolist(), stops.tolist(), strict=True)
        return [(slice(a[0], b[0]), slice(a[1], b[1]), slice(a[2], b[2])) for a, b in pairs]

    def find_at_faces(self) -> NDArray[np.bool_]:
        """Returns which objects have a voxel in the first or last plane along any axis."""
        (z, y, low), (_, _, high) = (np.unravel_index(ends, self._padded) for ends in (self.first, self.last))
        at = (z == 0) | (z == self.shape[0] - 1) | (y == 0) | (y == self.shape[1] - 1)
        found = np.zeros(self.count, bool)
        found[self.owner[at | (low == 0) | (high == self.shape[2] - 1)]] = True
        return found

    @property
    def _padded(self) -> Triple:
        return self.shape[0], self.shape[1] + 1, self.shape[2] + 1


def connect(mask: Mask, *, corners: bool = False, flat: bool = False) -> Connected:
    """Returns the objects of a mask (z, y, x): voxels that share a face, or with `corners` a face, an edge or a corner.

    Args:
        mask: Voxels.
        corners: Whether voxels that touch by an edge or a corner belong together too.
        flat: Whether every slice is taken by itself.
    """
    z, y, x = mask.shape
    row, plane = x + 1, (x + 1) * (y + 1)
    line = np.zeros(z * plane + 1, bool)
    line[1:].reshape(z, y + 1, x + 1)[:, :y, :x] = mask
    changes = np.flatnonzero(line[1:] != line[:-1]).astype(np.int64)
    first, last = changes[::2], changes[1::2] - 1
    steps = [row] if flat else [row, plane - row, plane, plane + row] if corners else [row, plane]
    more = int(corners)
    pairs = [np.zeros((0, 2), np.int64)]
    for step in steps:
        begin = np.searchsorted(last, first + (step - more), "left")
        counts = np.searchsorted(first, last + (step + more), "right") - begin
        here = np.repeat(np.arange(len(first)), counts)
        skipped = np.cumsum(counts) - counts
        pairs.append(np.stack([here, np.arange(len(here)) + np.repeat(begin - skipped, counts)], 1))
    owner, count = join_pairs(np.concatenate(pairs), len(first))
    return Connected((z, y, x), first, last, owner, count)


def join_pairs(pairs: Ints, count: int) -> tuple[Ints, int]:
    """Returns which group each of `count` things belongs to, numbered by their first members, and how many groups there are.

    Args:
        pairs: Which things belong together (n, 2).
        count: How many things there are.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(pairs), bool)
    groups, found = connected_components(coo_array((ones, (pairs[:, 0], pairs[:, 1])), (count, count)), directed=False)
    first = np.empty(groups, np.int64)
    first[found[::-1]] = np.arange(count)[::-1]
    rank = np.empty(groups, np.int64)
    rank[np.argsort(first)] = np.arange(groups)
    return rank[found], int(groups)
