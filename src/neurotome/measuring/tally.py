"""Tally: voxels of every class, by cluster and region, gathered from blocks in any order."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from neurotome.blocks import Grid
from neurotome.measuring.block import FRAME

ROWS = 1 << 20
"""Rows that are gathered before those of the same cluster, region and kind are summed."""


class Tally:
    """Counts that `BlockWork` returns, summed; rows are kept by region, cluster and kind, in this order."""

    def __init__(self, clusters: Grid, parts: Iterable[NDArray[np.int64]] = ()) -> None:
        """Begins with what is given: rows of cluster, region, kind and number."""
        self.clusters = clusters
        self._rows = [np.zeros((0, 4), np.int64)]
        for part in parts:
            self.add(part)

    def add(self, rows: NDArray[np.int64]) -> None:
        """Adds the counts of a block."""
        self._rows.append(rows[:, [1, 0, 2, 3]])
        if sum(map(len, self._rows[1:])) > ROWS:
            self._sum()

    @property
    def regions(self) -> list[int]:
        """Those that have a labelled voxel, increasing."""
        return sorted(set(self._sum()[:, 0].tolist()))

    def count(self, kinds: Iterable[int], region: int | None = None) -> NDArray[np.float64]:
        """Returns the voxels of some kinds together, float64, a number for each cluster (z, y, x); None: of all regions."""
        rows = self._sum()
        if region is not None:
            rows = rows[np.searchsorted(rows[:, 0], region) : np.searchsorted(rows[:, 0], region, "right")]
        rows = rows[np.isin(rows[:, 2], list(kinds))]
        summed = np.bincount(rows[:, 1], rows[:, 3], self.clusters.count_tiles())
        return np.asarray(summed.reshape(self.clusters.tiles_zyx), np.float64)

    def count_frame(self, region: int | None = None) -> NDArray[np.float64]:
        """Returns the voxels at which a cell that counts may begin."""
        return self.count((FRAME,), region)

    def _sum(self) -> NDArray[np.int64]:
        if len(self._rows) > 1:
            rows = np.concatenate(self._rows)
            keys, inverse = np.unique(rows[:, :3], axis=0, return_inverse=True)
            numbers = np.zeros(len(keys), np.int64)
            np.add.at(numbers, inverse.ravel(), rows[:, 3])
            self._rows = [np.concatenate([keys, numbers[:, None]], 1)]
        return self._rows[0]
