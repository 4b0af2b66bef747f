"""Which stored level answers for a scale that neuroglancer's client asks for, and how coarse it may ask.

A scale says how many voxels (z, y, x) of the finest level one that is asked for covers. The client doubles the shortest
edges first, and is told one number: the most voxels that one may cover.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.io.lazy_array import Coarser
from neurotome.volume import Size

Triple = tuple[int, int, int]

THINNED = 64
"""Most stored voxels that are read for one that is shown, 4 along each axis; neuroglancer's own limit."""

SMALLEST = 128
"""No scale follows one whose longest axis has no more voxels than this; neuroglancer's own."""

Axes = tuple[int, ...]
ALL: tuple[Axes, ...] = ((0, 1, 2),)
SECTIONS: tuple[Axes, ...] = ((0, 1), (0, 2), (1, 2))


@dataclass(frozen=True)
class Source:
    """A level, and what is done to it.

    Attributes:
        level: Its number; 0 is the finest.
        repeats: How often each of its voxels is repeated along each axis.
        thinned: How many of those become one that is shown.
    """

    level: int
    repeats: Triple
    thinned: Triple


def choose_source(scale: Triple, levels: Sequence[Triple], sizes: Size, *, flat: bool) -> Source:
    """Returns what is read for a scale: the level of which the fewest voxels are read.

    A level will do whose factors divide the scale. Sections of a file that stores every slice by itself (`flat`) are not
    thinned along the axis that is looked along; a level whose voxels are longer there will do as well, as long as they are
    no longer than those that are shown are wide.

    Args:
        scale: What is asked for.
        levels: Factors of the stored levels, the finest, (1, 1, 1), first.
        sizes: Edges of its voxels (z, y, x), in any unit.
        flat: Whether sections are asked for.
    """
    widest = max(edge * by for edge, by in zip(sizes, scale, strict=True) if by > 1) if max(scale) > 1 else 0.0
    found = []
    for level, factors in enumerate(levels):
        repeats, thinned = [1, 1, 1], [1, 1, 1]
        for axis, (asked, stored) in enumerate(zip(scale, factors, strict=True)):
            if asked % stored == 0:
                thinned[axis] = asked // stored
            elif flat and asked == 1 and sizes[axis] * stored <= widest:
                repeats[axis] = stored
            else:
                break
        else:
            found.append((math.prod(thinned), math.prod(repeats), Source(level, _triple(repeats), _triple(thinned))))
    return min(found, key=lambda each: each[:2])[2]


def choose_limit(shape: Triple, levels: Sequence[Triple], sizes: Size, *, flat: bool) -> int:
    """Returns the most voxels that one may cover, so that no scale the client asks for is thinned by more than `THINNED`."""
    limit = THINNED
    while limit < math.prod(shape):
        scales = itertools.chain(*(list_scales(shape, sizes, axes, 2 * limit) for axes in (SECTIONS if flat else ALL)))
        if any(math.prod(choose_source(scale, levels, sizes, flat=flat).thinned) > THINNED for scale in scales):
            break
        limit *= 2
    return limit


def list_scales(shape: Triple, sizes: Size, axes: Axes, limit: int) -> Iterator[Triple]:
    """Yields the scales that neuroglancer's client asks for, as its function of the same purpose finds them.

    References:
        https://github.com/google/neuroglancer/blob/master/src/datasource/python/frontend.ts
    """
    scale = [1, 1, 1]
    yield _triple(scale)
    while math.prod(scale) < limit and any(size / by > SMALLEST for size, by in zip(shape, scale, strict=True)):
        edges = [edge * by for edge, by in zip(sizes, scale, strict=True)]
        shortest = min(axes, key=lambda axis: edges[axis])
        scale[shortest] *= 2
        for axis in axes:
            nearer = abs(edges[axis] - 2 * edges[shortest]) > abs(2 * edges[axis] - 2 * edges[shortest])
            if axis != shortest and nearer and math.prod(scale) < limit:
                scale[axis] *= 2
        yield _triple(scale)


class Repeated:
    """A level as an array (z, y, x) in which its voxels are repeated, and what is not stored is 0.

    Some writers leave out the last voxel of an axis where it would cover fewer of the finest level's than others.
    """

    def __init__(self, level: Coarser, repeats: Triple, finest: Triple) -> None:
        """Takes the shape of the finest level."""
        self._data, self._repeats, self.dtype = level.data, repeats, level.data.dtype
        self.shape = _triple(
            -(-size // (factor // repeat)) for size, factor, repeat in zip(finest, level.factors, repeats, strict=True)
        )

    def __getitem__(self, place: tuple[slice, slice, slice]) -> NDArray[Any]:
        """Reads a place: three slices with start and stop."""
        voxels = self._data[
            tuple(slice(part.start // by, -(-part.stop // by)) for part, by in zip(place, self._repeats, strict=True))
        ]
        missing = [
            -(-part.stop // by) - part.start // by - found
            for part, by, found in zip(place, self._repeats, voxels.shape, strict=True)
        ]
        voxels = np.pad(voxels, [(0, more) for more in missing]) if any(missing) else voxels
        for axis, (part, by) in enumerate(zip(place, self._repeats, strict=True)):
            if by > 1:
                voxels = voxels.take(np.arange(part.start, part.stop) // by - part.start // by, axis)
        return voxels


def _triple(numbers: Any) -> Triple:
    z, y, x = numbers
    return z, y, x
