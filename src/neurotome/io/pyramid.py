"""The coarser levels of a label store: halved step by step, block by block, by any engine, and not made again in vain.

A voxel of labels takes the id that most of the voxels beneath have (their mode), one of a grey map
their mean. Levels are written like the finest one, and each has a ledger of its own: a block is left as it is where its file
and those it was made of are as they were.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.blocks import Grid
from neurotome.errors import RunError
from neurotome.io.block_array import NO_FILES, BlockArray
from neurotome.io.block_ledger import BlockLedger, name_writer
from neurotome.io.label_store import NOT_PREDICTED, LabelStore, open_label_store
from neurotome.io.lazy_array import Place
from neurotome.progress import Progress
from neurotome.volume import Size

Triple = tuple[int, int, int]

COARSEST = 256
"""No level is made of one that has no more voxels than this on its longest axis."""

BLOCK_VOXELS = 1 << 24

SLAB_VOXELS = 1 << 24
"""Of the finer level that are in memory at once."""

Run = Callable[[Callable[[], Callable[[int], Any]], Iterable[int]], Iterable[Any]]
"""`run` of an engine: takes what builds a function and the tasks, and yields an outcome with `task` and `error` for each."""


@dataclass(frozen=True)
class Level:
    """An array of a pyramid.

    Attributes:
        path: Within the store.
        shape_zyx: Voxels.
        block_zyx: Voxels per block.
        factors: How many voxels of the finest level one of its voxels covers (z, y, x).
        step: How many of the level before.
    """

    path: str
    shape_zyx: Triple
    block_zyx: Triple
    factors: Triple = (1, 1, 1)
    step: Triple = (1, 1, 1)

    @property
    def grid(self) -> Grid:
        """Its blocks."""
        return Grid(self.shape_zyx, self.block_zyx, self.block_zyx)


def plan_levels(shape_zyx: Sequence[int], block_zyx: Sequence[int], voxel_size_um: Size | None) -> list[Level]:
    """Returns the levels of a volume, the finest first, until the longest axis has at most `COARSEST` voxels.

    An axis is halved unless its voxels are at least twice as long as the shortest: slices far apart are left until their
    planes have become as coarse. An axis of one voxel is left too, and counts for nothing.
    """
    levels = [Level("0", _triple(shape_zyx), _triple(block_zyx))]
    sizes = voxel_size_um or (1.0, 1.0, 1.0)
    while max(levels[-1].shape_zyx) > COARSEST:
        before = levels[-1]
        edges = [size * factor for size, factor in zip(sizes, before.factors, strict=True)]
        finest = min(edge for edge, voxels in zip(edges, before.shape_zyx, strict=True) if voxels > 1)
        step = _triple(
            2 if voxels > 1 and edge < 1.999 * finest else 1  # sizes are measured, and rounded
            for edge, voxels in zip(edges, before.shape_zyx, strict=True)
        )
        shape = _triple(-(-voxels // by) for voxels, by in zip(before.shape_zyx, step, strict=True))
        factors = _triple(factor * by for factor, by in zip(before.factors, step, strict=True))
        levels.append(Level(str(len(levels)), shape, _choose_block(shape), factors, step))
    return levels


def build_pyramid(store: LabelStore, run: Run) -> list[Level]:
    """Makes the coarser levels of a finished store, or what of them is not as it should be, and lists them in the metadata.

    A thread of a worker takes at most 150 MB for a block (nine times `BLOCK_VOXELS`), 35 MB where slices are many.

    Args:
        store: The finest level is whole.
        run: An engine's.

    Raises:
        RunError: Blocks failed; the levels are not listed then.
    """
    levels = plan_levels(store.shape_zyx, store.block_zyx, store.voxel_size_um)
    progress = Progress(f"coarser levels of {store.path.name}", sum(len(level.grid) for level in levels[1:]), "block")
    done = 0
    for finer, level in itertools.pairwise(levels):
        store.open_level(level.path, level.shape_zyx, level.block_zyx)
        build = functools.partial(LevelWorker, str(store.path), finer, level)
        failed = []
        for outcome in run(build, range(len(level.grid))):
            failed += [] if outcome.error is None else [outcome.error]
            done += 1
            progress.update(done)
        if failed:
            raise RunError(
                f"{store.path}: {len(failed)} of {len(level.grid)} blocks of level {level.path} failed, the first with: "
                f"{failed[0]} The same command tries them again; where the finer level is damaged, give neurotome "
                f"verify {store.path} --repair first."
            )
    if done:
        progress.finish()
    method = "mode" if store.is_labels else "mean"
    store.set_levels({level.path: level.factors for level in levels}, method=method)
    return levels


class LevelWorker:
    """Makes blocks of one level of the level before; one per process, called from several threads."""

    def __init__(self, store: str, finer: Level, level: Level) -> None:
        """Opens both levels, which are there."""
        labels = open_label_store(Path(store))
        self._finer, self._level, self._step = _open(labels, finer), _open(labels, level), level.step
        self._grid, self._is_labels = level.grid, labels.is_labels
        self._ledger = BlockLedger(
            Path(store) / level.path / "ledger",
            {"made_of": finer.path, "step": list(level.step), "block": list(level.block_zyx), "is_labels": self._is_labels},
            writer=name_writer(),
        )

    def __call__(self, block: int) -> bool:
        """Makes a block; returns False if it was there and made of what is there."""
        place = self._grid.place(block)
        source: Place = tuple(
            slice(part.start * by, min(part.stop * by, size))
            for part, by, size in zip(place, self._step, self._finer.shape_zyx, strict=True)
        )  # type: ignore[assignment]
        stamp, found = self._finer.stamp(source), self._ledger.find(block)
        if found and found["made_of"] == stamp and found["sha256"] == self._level.digest_block(place):
            return False
        if stamp == NO_FILES:  # most of a sparse volume
            self._level.delete_block(place)
            sha256 = NO_FILES
        else:
            sha256 = self._level.write_block(place, self._shrink(source, place))
        self._ledger.add(block, sha256=sha256, counts={}, tiles="all", made_of=stamp)
        return True

    def _shrink(self, source: Place, place: Place) -> NDArray[np.uint8]:
        """Returns a block's voxels; the finer level is read slab by slab, each of whole chunks."""
        z, y, x = source
        shrunk = np.empty([part.stop - part.start for part in place], np.uint8)
        least = math.lcm(self._finer.chunk_zyx[0], self._step[0])
        slices = SLAB_VOXELS // ((y.stop - y.start) * (x.stop - x.start))
        depth = max(slices // least, 1) * least
        for start in range(0, z.stop - z.start, depth):
            slab = self._finer.read((slice(z.start + start, min(z.start + start + depth, z.stop)), y, x))
            made = shrink_labels(slab, self._step) if self._is_labels else shrink_grey(slab, self._step)
            first = start // self._step[0]
            shrunk[first : first + len(made)] = made
        return shrunk


def shrink_labels(labels: NDArray[np.uint8], step: Sequence[int]) -> NDArray[np.uint8]:
    """Returns the most frequent id of each box of voxels, the smaller of several; 255 only where all of them are 255.

    Args:
        labels: uint8, shape (z, y, x).
        step: Voxels of a box along each axis, 1 or 2; those at the end of an odd axis have fewer.

    Returns:
        uint8, shape (ceil(z / step), ...).
    """
    lowest, highest = int(labels.min()), int((labels + np.uint8(1)).max()) - 1  # of those below 255, which becomes 0
    if lowest == labels.max():
        return np.full([-(-size // by) for size, by in zip(labels.shape, step, strict=True)], lowest, np.uint8)
    labels = _pad(labels, step, mode="constant", constant_values=NOT_PREDICTED)
    shrunk = np.empty([size // by for size, by in zip(labels.shape, step, strict=True)], np.uint8)
    for z, plane in enumerate(shrunk):  # what a plane is made of stays in the processor's cache
        boxes, best = labels[z * step[0] : (z + 1) * step[0]], np.zeros(plane.shape, np.uint16)
        for label in range(lowest, highest + 1):
            votes = _add_up((boxes == label).view(np.uint8), step).astype(np.uint16)
            np.maximum(best, (votes << 8) | (NOT_PREDICTED - label), out=best)  # most votes first, then the smaller id
        plane[:] = np.where(best < 256, NOT_PREDICTED, NOT_PREDICTED - best.astype(np.uint8))
    return shrunk


def shrink_grey(grey: NDArray[np.uint8], step: Sequence[int]) -> NDArray[np.uint8]:
    """Returns the mean of each box of voxels, rounded; arguments as for `shrink_labels`."""
    grey = _pad(grey, step, mode="edge")  # a voxel counted twice along an axis leaves the mean as it is
    boxes = math.prod(step)
    shrunk = np.empty([size // by for size, by in zip(grey.shape, step, strict=True)], np.uint8)
    for z, plane in enumerate(shrunk):
        plane[:] = (_add_up(grey[z * step[0] : (z + 1) * step[0]].astype(np.uint16), step) + boxes // 2) // boxes
    return shrunk


def _add_up(boxes: NDArray[Any], step: Sequence[int]) -> NDArray[Any]:
    """Returns the sums of boxes, of one layer along z, shape (y, x)."""
    total: NDArray[Any] = boxes[0] + boxes[1] if step[0] == 2 else boxes[0]
    total = total[::2] + total[1::2] if step[1] == 2 else total
    return total[:, ::2] + total[:, 1::2] if step[2] == 2 else total


def _pad(voxels: NDArray[np.uint8], step: Sequence[int], **how: Any) -> NDArray[np.uint8]:
    missing = [-size % by for size, by in zip(voxels.shape, step, strict=True)]
    return np.pad(voxels, [(0, more) for more in missing], **how) if any(missing) else voxels


def _open(store: LabelStore, level: Level) -> BlockArray:
    return store if level.path == store.level else store.open_level(level.path, level.shape_zyx, level.block_zyx)


def _choose_block(shape_zyx: Triple) -> Triple:
    """Returns a block of about `BLOCK_VOXELS`, of whole chunks of 64 where an axis is long enough."""
    block, left = [0, 0, 0], BLOCK_VOXELS
    for done, axis in enumerate(sorted(range(3), key=lambda axis: shape_zyx[axis])):
        most = max(round(left ** (1 / (3 - done))) // 64 * 64, 64)
        block[axis] = min(most, -(-shape_zyx[axis] // 64) * 64) if shape_zyx[axis] > 64 else shape_zyx[axis]
        left //= block[axis]
    return _triple(block)


def _triple(sizes: Iterable[int]) -> Triple:
    z, y, x = (int(size) for size in sizes)
    return z, y, x
