"""What is done with one block of labels: voxels of every class are counted by cluster and region, and cells are found."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neurotome.blocks import Box, Grid, Triple
from neurotome.measuring.objects import BESIDE, CUT, LOW, Pieces, Shaping, find_pieces
from neurotome.measuring.source import NOT_LABELLED, Source
from neurotome.objects.masks import Mask

FRAME = 256
"""Beside the ids of the classes: voxels at which a cell that counts may begin."""


class BlockResult(NamedTuple):
    """What was found in a block: its place in the plan (z, y, x), counts (see `count`), cells, and in slices vessels."""

    block: Triple
    counts: NDArray[np.int64]
    pieces: Pieces | None
    profiles: Pieces | None


@dataclass(frozen=True)
class BlockWork:
    """Measures a block by its number, for an engine.

    Attributes:
        source: The labels.
        grid: The box cut into blocks.
        clusters: The box cut into the cubes of the coarse map.
        shaping: How objects become cells.
    """

    source: Source
    grid: Grid
    clusters: Grid
    shaping: Shaping

    def build(self) -> Callable[[int], BlockResult]:
        """Returns what an engine calls in every process."""
        return self.measure

    def measure(self, number: int) -> BlockResult:
        """Reads a block and measures it."""
        place = self.grid.place(number)
        shape = self.source.shape
        # a voxel more on every side, to know what is cut by voxels that are not labelled
        around = tuple(slice(max(0, p.start - 1), min(size, p.stop + 1)) for p, size in zip(place, shape, strict=True))
        seen = self.source.read((around[0], around[1], around[2]))
        core = tuple(slice(p.start - a.start, p.stop - a.start) for p, a in zip(place, around, strict=True))
        flags = self._flag(self._find_unknown(seen, place), around)[core] if self._has_border(seen, place) else None
        labels = seen[core]
        z, y, x = (int(i) for i in np.unravel_index(number, self.grid.blocks_zyx))
        pieces = profiles = None
        if self.source.cell is not None:
            pieces = find_pieces(labels == self.source.cell, flags, place, self.shaping)
        if self.source.vessel is not None and self.source.flat:
            profiles = find_pieces(labels == self.source.vessel, flags, place, self.shaping.without_parting())
        return BlockResult((z, y, x), self._count(labels, flags, place), pieces, profiles)

    @property
    def _axes(self) -> list[int]:
        """Axes along which a cell can be cut: not across a slice that is taken by itself."""
        return [axis for axis in range(3) if not (self.shaping.flat and axis == 0)]

    def _has_border(self, seen: NDArray[np.uint8], place: Box) -> bool:
        ends = [(place[axis].start == 0) or (place[axis].stop == self.source.shape[axis]) for axis in self._axes]
        return any(ends) or bool((seen == NOT_LABELLED).any())

    def _find_unknown(self, seen: NDArray[np.uint8], place: Box) -> Mask:
        """Returns which voxels of a place and one more on every side are not labelled, where the smallest cell fits in.

        What is narrower, such as outlines that nobody labelled, hides no cell, and is no border of one.
        """
        from scipy import ndimage

        unknown: Mask = seen == NOT_LABELLED
        fitting = self.shaping.smallest_zyx
        if not unknown.any() or unknown.all() or max(fitting) == 1:
            return unknown
        shape = self.source.shape
        spans = [(p.start - edge, p.stop + edge) for p, edge in zip(place, fitting, strict=True)]
        wide = [slice(max(0, low), min(size, high)) for (low, high), size in zip(spans, shape, strict=True)]
        # nothing is known outside of the box
        beyond = [(w.start - low, high - w.stop) for w, (low, high) in zip(wide, spans, strict=True)]
        unknown = np.pad(self.source.read((wide[0], wide[1], wide[2])) == NOT_LABELLED, beyond, constant_values=True)
        opened = np.asarray(ndimage.grey_opening(unknown.view(np.uint8), fitting), bool)
        first = [max(0, p.start - 1) - low for p, (low, _) in zip(place, spans, strict=True)]
        z, y, x = (slice(start, start + size) for start, size in zip(first, seen.shape, strict=True))
        return opened[z, y, x]

    def _flag(self, unknown: Mask, around: tuple[slice, ...]) -> NDArray[np.uint8]:
        """Returns which voxels lie at a border, see `LOW`: of the box, or beside a voxel that is not labelled."""
        flags = np.zeros(unknown.shape, np.uint8)
        some = unknown.any()
        for axis in self._axes:
            first, last, lower, upper = (
                tuple(part if a == axis else slice(None) for a in range(3))
                for part in (slice(1), slice(-1, None), slice(-1), slice(1, None))
            )
            if some:
                flags[upper] |= np.where(unknown[lower], CUT | BESIDE, 0).astype(np.uint8)
                flags[lower] |= np.where(unknown[upper], CUT | BESIDE, 0).astype(np.uint8)
            if around[axis].start == 0:
                flags[first] |= LOW | CUT
            if around[axis].stop == self.source.shape[axis]:
                flags[last] |= CUT
        return flags

    def _count(self, labels: NDArray[np.uint8], flags: NDArray[np.uint8] | None, place: Box) -> NDArray[np.int64]:
        """Returns rows of cluster, region, class (or `FRAME`) and number of voxels, int64 (n, 4), where there are some."""
        regions = self.source.regions
        if regions is None:
            return self._count_without_regions(labels, flags, place)
        shift = [part.start for part in self.source.box]
        rows = []
        edges = self.clusters.tile_zyx
        for index in itertools.product(*(range(p.start // e, -(-p.stop // e)) for p, e in zip(place, edges, strict=True))):
            number = int(np.ravel_multi_index(index, self.clusters.tiles_zyx))
            cube = self.clusters.tile_place(number)
            both = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(place, cube, strict=True)]
            inside = tuple(slice(a.start - p.start, a.stop - p.start) for a, p in zip(both, place, strict=True))
            z, y, x = (slice(a.start + s, a.stop + s) for a, s in zip(both, shift, strict=True))
            codes: NDArray[Any] = labels[inside].ravel()
            ids, which = np.unique(regions.read((z, y, x)), return_inverse=True)
            codes = which.ravel() * 256 + codes
            counts = np.bincount(codes, minlength=256 * len(ids)).reshape(-1, 256)
            frame = counts
            if flags is not None:
                begin = (flags[inside].ravel() & (LOW | BESIDE)) == 0
                frame = np.bincount(codes[begin], minlength=256 * len(ids)).reshape(-1, 256)
            known = np.concatenate([counts, frame[:, :NOT_LABELLED].sum(1, keepdims=True)], 1)
            known[:, NOT_LABELLED] = 0
            region, kind = np.nonzero(known)
            rows.append(np.stack([np.full(len(region), number), ids[region], kind, known[region, kind]], 1))
        return np.concatenate(rows)

    def _count_without_regions(
        self, labels: NDArray[np.uint8], flags: NDArray[np.uint8] | None, place: Box
    ) -> NDArray[np.int64]:
        """Returns what `_count` does, class by class, which is faster than voxel by voxel."""
        rows = []
        for kind in (*range(len(self.source.classes)), FRAME):
            if kind == FRAME:
                mask = labels != NOT_LABELLED if flags is None else (labels != NOT_LABELLED) & (flags & (LOW | BESIDE) == 0)
            else:
                mask = labels == kind
            numbers, counts = _sum_by_cube(mask, place, self.clusters)
            there = np.flatnonzero(counts)
            rows.append(np.stack([numbers[there], np.zeros_like(there), np.full(len(there), kind), counts[there]], 1))
        return np.concatenate(rows)


def _sum_by_cube(mask: Mask, place: Box, clusters: Grid) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the numbers of the cubes that a place has a part in, and how many voxels of a mask lie in each."""
    spans = [range(p.start // edge, -(-p.stop // edge)) for p, edge in zip(place, clusters.tile_zyx, strict=True)]
    starts = [
        [max(0, index * edge - p.start) for index in span]
        for span, p, edge in zip(spans, place, clusters.tile_zyx, strict=True)
    ]
    stops = [*starts[0][1:], len(mask)]
    # planes first: their sums need one number where the mask has as many as a cube has planes
    summed = np.stack([mask[low:high].sum(0, dtype=np.int32) for low, high in zip(starts[0], stops, strict=True)])
    for axis in (2, 1):
        summed = np.add.reduceat(summed, starts[axis], axis)
    numbers = np.ravel_multi_index(np.meshgrid(*spans, indexing="ij"), clusters.tiles_zyx)
    return numbers.ravel(), summed.ravel().astype(np.int64)
