"""Which tiles of a volume are computed: those of a box and of a mask, as far as anything is stored there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neurotome.blocks import Box, Grid, parse_bbox
from neurotome.errors import ImageError
from neurotome.io.chunks import ChunkMap, Spans, any_within, list_chunks
from neurotome.volume import Volume

MASK_VOXELS = 1 << 22
"""Voxels of a mask that are read at once, or one chunk where that is larger."""

Triple = tuple[int, int, int]


class Selection(NamedTuple):
    """What is to be computed of a grid.

    Attributes:
        wanted: For every tile, in the order of their numbers, whether it is.
        empty: How many tiles within the box meet no stored chunk and are therefore not.
        blocks: Numbers of the blocks that hold any wanted tile, increasing.
        notes: What was selected and what was skipped, a sentence each.
    """

    wanted: NDArray[np.bool_]
    empty: int
    blocks: NDArray[np.int64]
    notes: list[str]


def select_tiles(grid: Grid, *, bbox: str = "", mask: Volume | None = None, chunks: ChunkMap | None = None) -> Selection:
    """Selects whole tiles, so that a region's result is the same as if the whole volume had been computed.

    Args:
        grid: The tiles.
        bbox: See `blocks.parse_bbox`; all of the volume if empty. Every tile that it touches is taken.
        mask: A volume of the same shape, or smaller by a whole number along every axis; a tile is taken if any voxel of the
            mask within it is not 0. It is read chunk by chunk, and only where its voxels can still decide.
        chunks: Which chunks of the image are stored; a tile that meets none is left out.

    Raises:
        SettingsError: The box cannot be read, or lies outside.
        ImageError: The mask has another shape, or selects nothing.
    """
    box = parse_bbox(bbox, grid.shape_zyx)
    spans = [_cut(size, edge) for size, edge in zip(grid.shape_zyx, grid.tile_zyx, strict=True)]
    wanted = np.zeros(grid.tiles_zyx, bool)
    region = tuple(slice(cut.start // edge, -(-cut.stop // edge)) for cut, edge in zip(box, grid.tile_zyx, strict=True))
    wanted[region] = True
    asked, notes = int(np.count_nonzero(wanted)), []
    if bbox:
        ends = [
            (part.start * edge, min(part.stop * edge, size))
            for part, edge, size in zip(region, grid.tile_zyx, grid.shape_zyx, strict=True)
        ]
        listed = ",".join(f"{first}:{last}" for first, last in ends)
        notes.append(f"The box {bbox} is computed in whole tiles: {listed}, {_share(asked, wanted.size, 'tiles')}.")
    empty = 0
    if chunks is not None:
        wanted &= chunks.touch(spans)
        empty = asked - int(np.count_nonzero(wanted))
        notes += [f"The image: {chunks.note}"] * bool(chunks.note)
        notes += [f"Skipped as empty, no chunk is stored there: {_share(empty, asked, 'tiles')}."] * bool(empty)
    if mask is not None:
        left = int(np.count_nonzero(wanted))
        wanted &= _find_masked(mask, grid, spans, wanted)
        chosen = int(np.count_nonzero(wanted))
        if left and not chosen:
            raise ImageError(
                f"{mask.path or mask.name}: the mask is 0 wherever the image has voxels to be predicted; expected at least "
                "one voxel that is not. Check that it belongs to this volume and this box."
            )
        notes.append(f"The mask {mask.path or mask.name} leaves {_share(chosen, left, 'tiles')}.")
    per_block = [block // tile for block, tile in zip(grid.block_zyx, grid.tile_zyx, strict=True)]
    gathered = [_cut(count, edge) for count, edge in zip(grid.tiles_zyx, per_block, strict=True)]
    blocks = np.flatnonzero(any_within(wanted, gathered)).astype(np.int64)
    return Selection(wanted.ravel(), empty, blocks, notes)


def _cut(size: int, edge: int) -> Spans:
    """Returns where the parts of an axis begin and end."""
    starts = np.arange(0, size, edge, dtype=np.int64)
    return starts, np.minimum(starts + edge, size)


def _share(count: int, of: int, what: str) -> str:
    return f"{count} of {of} {what} ({count / max(of, 1):.1%})"


def _find_masked(mask: Volume, grid: Grid, spans: Sequence[Spans], undecided: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns for every tile whether a voxel of the mask is not 0 in it; read only where tiles are undecided."""
    factors = _find_factors(mask, grid.shape_zyx)
    # a mask that was rounded down ends before the volume does; its last voxels then stand for the rest
    small = [
        (np.minimum(starts // factor, size - 1), np.minimum(-(-stops // factor), size))
        for (starts, stops), factor, size in zip(spans, factors, mask.shape, strict=True)
    ]
    stored = list_chunks(mask.data)
    found = np.zeros(grid.tiles_zyx, bool)
    for box in _plan_reading(mask):
        tiles = tuple(
            slice(int(np.searchsorted(stops, part.start, "right")), int(np.searchsorted(starts, part.stop, "left")))
            for part, (starts, stops) in zip(box, small, strict=True)
        )
        if not undecided[tiles].any() or found[tiles].all():
            continue
        if stored is not None and stored.fill == 0 and not stored.meets(box):
            continue
        inside = [
            (np.maximum(starts[cut], part.start) - part.start, np.minimum(stops[cut], part.stop) - part.start)
            for part, cut, (starts, stops) in zip(box, tiles, small, strict=True)
        ]
        found[tiles] |= any_within(np.asarray(mask.data[box]) != 0, inside)
    return found


def _find_factors(mask: Volume, shape_zyx: Triple) -> list[int]:
    """Returns how many voxels of the volume one of the mask stands for along every axis; sizes may have been rounded."""
    factors = []
    for small, size in zip(mask.shape, shape_zyx, strict=True):
        fitting = [
            factor
            for factor in sorted({max(size // small, 1), -(-size // small)})
            if small in (size // factor, -(-size // factor))
        ]
        if not fitting:
            raise ImageError(
                f"{mask.path or mask.name}: the mask has shape {mask.shape}, the volume {shape_zyx} (z, y, x); expected the "
                "same, or along every axis a whole number of times less."
            )
        factors.append(min(fitting, key=lambda factor: abs(small * factor - size)))
    return factors


def _plan_reading(mask: Volume) -> Iterator[Box]:
    """Yields boxes that cover a mask, whole chunks each; of one that is not cut into chunks whole slices."""
    edges = list(getattr(mask.data, "chunk_zyx", None) or (1, *mask.shape[1:]))
    for axis in (2, 1, 0):
        room = max(MASK_VOXELS // math.prod(edges), 1)
        edges[axis] = min(edges[axis] * room, -(-mask.shape[axis] // edges[axis]) * edges[axis])
    axes = [_cut(size, edge) for size, edge in zip(mask.shape, edges, strict=True)]
    z, y, x = ([slice(int(a), int(b)) for a, b in zip(*span, strict=True)] for span in axes)
    yield from product(z, y, x)
