"""Block, plan_blocks, Grid, parse_bbox: patches, tiles, blocks, halos as pure geometry.

Every array is cut the same way: a *core* that is written and a *read* region around it, the core plus a halo clipped at
the array's border. Cores of a plan partition the array; axes are zyx.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import SettingsError

Slices = tuple[slice, ...]

Box = tuple[slice, slice, slice]
"""Index (z, y, x) of a box in a volume, with start and stop."""

Triple = tuple[int, int, int]


class Block(NamedTuple):
    """A box of voxels and what must be read to compute it.

    Attributes:
        core: Index of the box in the whole array.
        read: Index of the region to read in the whole array, at least the core.
        crop: Index of the core within the region that was read.
    """

    core: Slices
    read: Slices
    crop: Slices


def plan_blocks(
    shape: Sequence[int], block: Sequence[int], halo: Sequence[int], align: Sequence[int] | None = None
) -> list[Block]:
    """Cuts an array into blocks, last axis fastest.

    Args:
        shape: Voxels per axis of the array.
        block: Voxels per axis of a core; the last core of an axis is what is left.
        halo: Voxels read on each side of a core, clipped at the array's border.
        align: Reads begin at a multiple of this (a network's stride), so that a tile is pooled on the same grid as the
            whole array; 1 if not given.
    """
    align = [1] * len(shape) if align is None else align
    if not len(shape) == len(block) == len(halo) == len(align):
        raise SettingsError(f"shape {shape}, block {block}, halo {halo} and align {align} need one number per axis.")
    if min(block, default=1) < 1 or min(halo, default=0) < 0 or min(align, default=1) < 1:
        raise SettingsError(f"block {block} and align {align} must be at least 1, halo {halo} at least 0.")
    axes = []
    for size, step, margin, stride in zip(shape, block, halo, align, strict=True):
        spans = []
        for start in range(0, size, step):
            stop, first = min(start + step, size), max(0, start - margin) // stride * stride
            spans.append((slice(start, stop), slice(first, min(size, stop + margin)), slice(start - first, stop - first)))
        axes.append(spans)
    return [Block(*zip(*spans, strict=True)) for spans in product(*axes)]


def parse_bbox(bbox: str, shape_zyx: Triple) -> Box:
    """Returns the box that `z0:z1,y0:y1,x0:x1` means, in voxels of the volume; an end that is left out is the volume's.

    Raises:
        SettingsError: It is written in another way, is empty, or lies outside.
    """
    parts = bbox.replace(" ", "").split(",") if bbox else [":"] * 3
    matched = [re.fullmatch(r"(\d*):(\d*)", part, re.ASCII) for part in parts]
    shown = " x ".join(map(str, shape_zyx))
    if len(parts) != 3 or not all(matched):
        raise SettingsError(
            f"bbox is {bbox!r}; expected z0:z1,y0:y1,x0:x1 in voxels, the stops left out, of a volume of {shown} (z, y, x); "
            "an end may be left empty. For example, :,0:512,512:1024."
        )
    ends = [
        slice(int(found[1] or 0), int(found[2] or size)) for found, size in zip(matched, shape_zyx, strict=True) if found
    ]
    for axis, part, size in zip("zyx", ends, shape_zyx, strict=True):
        if not part.start < part.stop <= size:
            raise SettingsError(
                f"bbox is {bbox!r}: {axis} from {part.start} to {part.stop}; expected a first voxel, then a larger stop, "
                f"of at most {size}, because the volume has {shown} voxels (z, y, x)."
            )
    return ends[0], ends[1], ends[2]


@dataclass(frozen=True)
class Grid:
    """A volume cut into tiles, and tiles gathered into blocks; both are numbered from 0 with the last axis fastest.

    A tile is the smallest box that is ever computed, a block what one task writes. Boxes are clipped at the volume's border.

    Attributes:
        shape_zyx: Voxels of the volume.
        tile_zyx: Voxels of a tile.
        block_zyx: Voxels of a block, along every axis a whole multiple of the tile's.
    """

    shape_zyx: Triple
    tile_zyx: Triple
    block_zyx: Triple

    def __post_init__(self) -> None:
        sizes = (self.shape_zyx, self.tile_zyx, self.block_zyx)
        if any(len(size) != 3 or min(size) < 1 for size in sizes) or any(
            block % tile for block, tile in zip(self.block_zyx, self.tile_zyx, strict=True)
        ):
            raise SettingsError(
                f"found a grid of shape {self.shape_zyx}, tiles {self.tile_zyx} and blocks {self.block_zyx} (z, y, x); "
                "expected three whole numbers of at least 1 each, and blocks that are whole multiples of the tiles."
            )

    @property
    def tiles_zyx(self) -> Triple:
        """Tiles along every axis."""
        return _count(self.shape_zyx, self.tile_zyx)

    @property
    def blocks_zyx(self) -> Triple:
        """Blocks along every axis."""
        return _count(self.shape_zyx, self.block_zyx)

    def __len__(self) -> int:
        """Returns how many blocks there are."""
        return prod(self.blocks_zyx)

    def count_tiles(self) -> int:
        """Returns how many tiles there are in the whole volume."""
        return prod(self.tiles_zyx)

    def place(self, block: int) -> Box:
        """Returns the box of a block in the volume."""
        return _place(block, self.blocks_zyx, self.block_zyx, self.shape_zyx)

    def tile_place(self, tile: int) -> Box:
        """Returns the box of a tile in the volume."""
        return _place(tile, self.tiles_zyx, self.tile_zyx, self.shape_zyx)

    def tiles(self, block: int) -> NDArray[np.int64]:
        """Returns the numbers of a block's tiles, increasing."""
        spans = (
            np.arange(span.start // edge, -(-span.stop // edge))
            for span, edge in zip(self.place(block), self.tile_zyx, strict=True)
        )
        z, y, x = np.meshgrid(*spans, indexing="ij")
        _, rows, columns = self.tiles_zyx
        numbers: NDArray[np.int64] = ((z * rows + y) * columns + x).astype(np.int64).ravel()
        return numbers


def _count(shape: Triple, edge: Triple) -> Triple:
    z, y, x = (-(-size // step) for size, step in zip(shape, edge, strict=True))
    return z, y, x


def _place(number: int, counts: Triple, edge: Triple, shape: Triple) -> Box:
    if not 0 <= number < prod(counts):
        raise IndexError(f"{number} is no box of a grid of {prod(counts)}")
    number = int(number)  # numpy's whole numbers would go on into every index
    index = (number // (counts[1] * counts[2]), number // counts[2] % counts[1], number % counts[2])
    z, y, x = (slice(i * step, min((i + 1) * step, size)) for i, step, size in zip(index, edge, shape, strict=True))
    return z, y, x
