"""Block, plan_blocks: patches, tiles, halos as pure geometry.

Every array is cut the same way: a *core* that is written and a *read* region around it, the core plus a halo clipped at
the array's border. Cores of a plan partition the array; axes are zyx.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from neurotome.errors import SettingsError

Slices = tuple[slice, ...]


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
