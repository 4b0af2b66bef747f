"""Objects of a mask that is seen block by block: each is measured once, whole, by whoever holds its last piece.

A block measures the objects that lie within it. Of those that reach one of its faces it keeps the voxels as pieces, and
which piece lies at which voxel of each face. `Stitcher` joins pieces across faces (union-find) as blocks come in, in any
order, and measures an object as soon as no face of it is missing. So every voxel is read once, memory holds the pieces along
the front between blocks that are done and those that are not, and an object has the same voxels, and numbers, however the
volume was cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neurotome.blocks import Box, Triple
from neurotome.measuring.connected import connect
from neurotome.measuring.shapes import measure_perimeter_um, measure_surface_um2
from neurotome.objects.masks import Mask, Sides
from neurotome.objects.splitting import LARGEST, split_touching
from neurotome.volume import Size

LOW, CUT, BESIDE = 1, 2, 4
"""Flags of a voxel: it lies at an exclusion face of the box; at any border of what is known; beside what is not labelled."""

WIDEST = 16
"""Voxels up to which what is not labelled may be too narrow for a cell: so much more is read around a block."""

Faces = dict[tuple[int, int, int, int], tuple[NDArray[np.int64], NDArray[np.int64]]]
"""By block (z, y, x) and axis, of the face towards the next block: places on it, increasing, and the piece at each."""


class Part(NamedTuple):
    """What is known of a cell; lengths in voxels of the box where nothing else is said.

    Attributes:
        first: Its first voxel, by number.
        voxels: How many it has.
        centre: Mean of its voxels (z, y, x).
        edge_um: Surface in um2, of a profile perimeter in um; NaN if it is too large to be a cell.
        flags: `LOW` and `CUT` of its voxels together, and `BESIDE` of its first one.
        parts: As how many cells its object counts.
    """

    first: int
    voxels: int
    centre: tuple[float, float, float]
    edge_um: float
    flags: int
    parts: int


@dataclass(frozen=True)
class Shaping:
    """How objects become cells.

    Attributes:
        shape: Voxels of the box (z, y, x).
        size_um: Edges of a voxel.
        neck: See `split_touching`.
        flat: Whether objects are profiles in single slices.
        smallest_um: Edge of a cube (in slices, a square) in which a cell could hide, where nothing is labelled.
    """

    shape: Triple
    size_um: Size
    neck: float
    flat: bool
    smallest_um: float = 0.0

    @property
    def smallest_zyx(self) -> Triple:
        """Edges of that cube in voxels, at least 1 and at most `WIDEST`."""
        z, y, x = (max(1, min(WIDEST, math.ceil(round(self.smallest_um / edge, 6)))) for edge in self.size_um)
        return (1 if self.flat else z), y, x

    def without_parting(self) -> Shaping:
        """Returns the same for objects that are not parted, however narrow their necks are."""
        return replace(self, neck=0.0)

    def measure(self, mask: Mask, flags: NDArray[np.uint8] | None, start: Triple) -> list[Part]:
        """Returns the cells of an object that begins at a voxel of the box."""
        from scipy import ndimage

        ends = [a + size for a, size in zip(start, mask.shape, strict=True)]
        cut: Sides = [(int(a == 0), int(b == size)) for a, b, size in zip(start, ends, self.shape, strict=True)]
        if self.flat:
            cut = [(1, 1), *cut[1:]]
        parted = split_touching(mask, self.size_um, self.neck, cut)
        places = ndimage.find_objects(parted)
        found = []
        for number, place in enumerate(places, 1):
            part = parted[place] == number
            corner = [a + span.start for a, span in zip(start, place, strict=True)]
            z, y, x = np.nonzero(part)
            centre = (corner[0] + float(z.mean()), corner[1] + float(y.mean()), corner[2] + float(x.mean()))
            first = ((corner[0] + int(z[0])) * self.shape[1] + corner[1] + int(y[0])) * self.shape[2] + corner[2] + int(x[0])
            flagged = 0 if flags is None else _join_flags(flags[place][part])
            edge = (measure_perimeter_um if self.flat else measure_surface_um2)(part, self.size_um)
            found.append(Part(first, len(z), centre, edge, flagged, len(places)))
        return found


class Pieces(NamedTuple):
    """What a block found.

    Attributes:
        whole: The cells of objects that lie within it.
        voxels: Of every piece, numbered from 0, its voxels by number.
        flags: Their flags, None where none has any.
        lower: For each axis, the face towards the block before, if there is one.
        upper: For each axis, the face towards the block after.
    """

    whole: list[Part]
    voxels: list[NDArray[np.int64]]
    flags: list[NDArray[np.uint8] | None]
    lower: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]]
    upper: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]]


def find_pieces(mask: Mask, flags: NDArray[np.uint8] | None, place: Box, shaping: Shaping) -> Pieces:
    """Finds the objects of a block: voxels that share a face, in profiles an edge within the slice.

    Args:
        mask: Voxels (z, y, x) of the block.
        flags: See `LOW`; None if no voxel has any.
        place: Where the block lies in the box.
        shaping: How objects become cells.
    """
    connected = connect(mask, flat=shaping.flat)
    labelled = np.zeros(mask.shape, np.int32)
    labelled[mask] = connected.spread(np.arange(1, connected.count + 1, dtype=np.int32))
    faces = {}
    for axis in range(1 if shaping.flat else 0, 3):
        ends = (place[axis].start > 0, 0), (place[axis].stop < shaping.shape[axis], -1)
        faces[axis] = [labelled.take(at, axis).ravel() if inner else None for inner, at in ends]
    is_open = np.zeros(connected.count + 1, bool)
    for pair in faces.values():
        for face in pair:
            if face is not None:
                is_open[face] = True
    is_open[0] = False
    numbers = np.cumsum(is_open) - 1
    whole, voxels, kept = [], [], []
    for number, box in enumerate(connected.find_boxes(), 1):
        found = labelled[box] == number
        flagged = None if flags is None else flags[box]
        start = tuple(part.start + span.start for part, span in zip(place, box, strict=True))
        if is_open[number]:
            voxels.append(_number(np.nonzero(found), start, shaping.shape))
            kept.append(None if flagged is None else flagged[found])
        elif found.size > LARGEST:
            inside = _number(np.nonzero(found), start, shaping.shape)
            whole.append(_sum_up(inside, None if flagged is None else flagged[found], shaping.shape))
        else:
            whole += shaping.measure(found, flagged, (start[0], start[1], start[2]))

    def list_face(face: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        where = np.flatnonzero(face)
        return where, numbers[face[where]]

    lower = {axis: list_face(pair[0]) for axis, pair in faces.items() if pair[0] is not None}
    upper = {axis: list_face(pair[1]) for axis, pair in faces.items() if pair[1] is not None}
    return Pieces(whole, voxels, kept, lower, upper)


@dataclass
class _Object:
    """Pieces that are known to belong together, and how many of their faces are not joined yet."""

    voxels: list[NDArray[np.int64]]
    flags: list[NDArray[np.uint8] | None]
    missing: int
    lost: list[Part] = field(default_factory=list)  # what became too large to keep its voxels

    @property
    def size(self) -> int:
        return sum(map(len, self.voxels))


class Stitcher:
    """Joins the pieces of blocks; `add` returns the cells of objects that are whole by then."""

    def __init__(self, shaping: Shaping) -> None:
        """Begins with no block."""
        self.shaping = shaping
        self._objects: dict[int, _Object] = {}
        self._parent: dict[int, int] = {}
        self._faces: Faces = {}
        self._next = 0

    def add(self, block: Triple, pieces: Pieces) -> list[Part]:
        """Takes in what a block (its number along z, y, x) found.

        Returns:
            The cells that are measured now: those within the block, and those of which it held the last piece.
        """
        base, self._next = self._next, self._next + len(pieces.voxels)
        for number, (voxels, flags) in enumerate(zip(pieces.voxels, pieces.flags, strict=True)):
            self._objects[base + number], self._parent[base + number] = _Object([voxels], [flags], 0), base + number
        touched = set()
        for side, faces in ((0, pieces.lower), (1, pieces.upper)):
            for axis, (where, which) in faces.items():
                which = which + base
                z, y, x = (at - (1 - side) * (a == axis) for a, at in enumerate(block))
                key = (z, y, x, axis)
                for piece in np.unique(which).tolist():
                    self._objects[self._find(piece)].missing += 1
                if key not in self._faces:
                    self._faces[key] = where, which
                    continue
                other_where, other = self._faces.pop(key)
                _, here, there = np.intersect1d(where, other_where, assume_unique=True, return_indices=True)
                for one, two in {*zip(which[here].tolist(), other[there].tolist(), strict=True)}:
                    self._unite(one, two)
                for piece in (*np.unique(which).tolist(), *np.unique(other).tolist()):
                    root = self._find(piece)
                    self._objects[root].missing -= 1
                    touched.add(root)
        done = list(pieces.whole)
        for root in sorted({self._find(piece) for piece in touched}):
            if self._objects[root].missing == 0:
                done += self._finish(self._objects.pop(root))
        return done

    def _find(self, piece: int) -> int:
        while self._parent[piece] != piece:
            self._parent[piece] = self._parent[self._parent[piece]]
            piece = self._parent[piece]
        return piece

    def _unite(self, one: int, two: int) -> None:
        one, two = sorted((self._find(one), self._find(two)))
        if one == two:
            return
        self._parent[two] = one
        kept, gone = self._objects[one], self._objects.pop(two)
        kept.voxels += gone.voxels
        kept.flags += gone.flags
        kept.lost += gone.lost
        kept.missing += gone.missing
        if kept.size > LARGEST or (kept.lost and kept.voxels):
            kept.lost.append(_sum_up(*_gather(kept), self.shaping.shape))
            kept.voxels, kept.flags = [], []

    def _finish(self, found: _Object) -> list[Part]:
        if found.lost:
            return [_add_up(found.lost)]
        voxels, flags = _gather(found)
        places = np.unravel_index(voxels, self.shaping.shape)
        start = tuple(int(along.min()) for along in places)
        shape = tuple(int(along.max()) + 1 - first for along, first in zip(places, start, strict=True))
        if math.prod(shape) > LARGEST:
            return [_sum_up(voxels, flags, self.shaping.shape)]
        inside = tuple(along - first for along, first in zip(places, start, strict=True))
        mask = np.zeros(shape, bool)
        mask[inside] = True
        flagged = None
        if flags is not None:
            flagged = np.zeros(shape, np.uint8)
            flagged[inside] = flags
        return self.shaping.measure(mask, flagged, (start[0], start[1], start[2]))


def _number(places: tuple[NDArray[np.intp], ...], start: tuple[int, ...], shape: Triple) -> NDArray[np.int64]:
    z, y, x = (along + first for along, first in zip(places, start, strict=True))
    return np.asarray((z * shape[1] + y) * shape[2] + x, np.int64)


def _gather(found: _Object) -> tuple[NDArray[np.int64], NDArray[np.uint8] | None]:
    voxels = np.concatenate(found.voxels)
    if all(flags is None for flags in found.flags):
        return voxels, None
    pairs = zip(found.voxels, found.flags, strict=True)
    return voxels, np.concatenate([np.zeros(len(at), np.uint8) if flags is None else flags for at, flags in pairs])


def _sum_up(voxels: NDArray[np.int64], flags: NDArray[np.uint8] | None, shape: Triple) -> Part:
    """Returns an object that is too large to be looked at as one part."""
    z, y, x = (float(along.mean()) for along in np.unravel_index(voxels, shape))
    flagged = 0 if flags is None else _join_flags(flags[np.argsort(voxels)])
    return Part(int(voxels.min()), len(voxels), (z, y, x), math.nan, flagged, 1)


def _add_up(parts: list[Part]) -> Part:
    voxels = sum(part.voxels for part in parts)
    z, y, x = (sum(part.centre[axis] * part.voxels for part in parts) / voxels for axis in range(3))
    flags = _join_flags(np.array([part.flags for part in sorted(parts)], np.uint8))
    return Part(min(parts).first, voxels, (z, y, x), math.nan, flags, 1)


def _join_flags(flags: NDArray[np.uint8]) -> int:
    """Returns the flags of an object from those of its voxels, or of its parts, in their order."""
    return int(np.bitwise_or.reduce(flags) & (LOW | CUT) | flags[0] & BESIDE)
