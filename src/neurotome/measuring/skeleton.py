"""Skeleton of the vessels, tile by tile, in such a way that it is that of the whole volume.

Thinning (Lee, Kashyap & Chu 1994, doi:10.1006/cgip.1994.1042) looks at neighbours alone, and ends after as many rounds as a
vessel is voxels thick. So the skeleton within a tile is that of the whole volume if enough is read around the tile: `REACH`
times the widest radius there was enough in every volume that was tried. Tiles lie where the box begins, whatever is read at
once, and a tile with a vessel too wide for its halo is done again with a larger one. Every tile also says what it found just
beyond its upper faces: where its neighbour says otherwise, the two did not see enough (`Network.differing`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neurotome.blocks import Box, Grid, Triple
from neurotome.measuring.connected import connect
from neurotome.measuring.orientation import Tensors, sum_tensors
from neurotome.measuring.source import NOT_LABELLED, Source
from neurotome.objects.masks import Mask

TILE: Triple = (128, 256, 256)
LARGEST_BLOCK = 1 << 28
"""Voxels that are read at once where a tile is not larger, so that whole slices of a large file fit into memory."""
HALO, LARGEST_HALO = 16, 64
"""Voxels that are read around a tile: usually, and at most."""
REACH = 2.5
CLOSE = 1.5
"""Voxels' edges by which an end may be farther from a border than from the vessel's wall, to be one that the border cuts."""


class Thinned(NamedTuple):
    """The skeleton's voxels in a tile, by number in the box, increasing.

    Attributes:
        voxels: Their numbers.
        radius_um: Distance of each from the nearest voxel that is no vessel.
        to_border_um: How far the border of what is known is if about as near, otherwise NaN: an end there is no end.
        beyond: Those in the first planes of the tiles that follow along one axis: three times the number, and the axis.
        shallow: Whether a vessel was too wide even for the largest halo.
    """

    voxels: NDArray[np.int64]
    radius_um: NDArray[np.float64]
    to_border_um: NDArray[np.float64]
    beyond: NDArray[np.int64]
    shallow: bool


class TileResult(NamedTuple):
    """What was found in a tile; None where the class is not measured or not there."""

    tile: int
    thinned: Thinned | None
    tensors: Tensors | None


def plan_tiles(shape: Triple, block_zyx: Triple, tile_zyx: Triple = TILE) -> Grid:
    """Returns the box cut into tiles, and these gathered into blocks of about the stated size, which are read at once."""
    edges = [-(-block // tile) * tile for block, tile in zip(block_zyx, tile_zyx, strict=True)]
    for axis in (1, 2, 0):
        others = math.prod(min(edges[a], shape[a]) for a in range(3) if a != axis)
        fitting = LARGEST_BLOCK // others // tile_zyx[axis] * tile_zyx[axis]
        edges[axis] = max(tile_zyx[axis], min(edges[axis], fitting))
    return Grid(shape, tile_zyx, (edges[0], edges[1], edges[2]))


@dataclass(frozen=True)
class TileWork:
    """Measures vessels and axons in the tiles of a block by its number, for an engine.

    Attributes:
        source: The labels.
        grid: The box cut into tiles and blocks.
        clusters: The box cut into the cubes of the coarse map.
    """

    source: Source
    grid: Grid
    clusters: Grid

    def build(self) -> Callable[[int], list[TileResult]]:
        """Returns what an engine calls in every process."""
        return self.measure

    def measure(self, number: int) -> list[TileResult]:
        """Reads a block and measures its tiles."""
        source = self.source
        halo = (0 if source.flat else HALO, HALO, HALO)
        read = _extend(self.grid.place(number), halo, source.shape)
        labels = source.read(read)
        found = []
        for tile in self.grid.tiles(number).tolist():
            place = self.grid.tile_place(tile)
            around = _extend(place, halo, source.shape)
            seen = labels[_shift(around, read)]
            thinned = tensors = None
            if source.vessel is not None and not source.flat and (labels[_shift(place, read)] == source.vessel).any():
                thinned = self._thin(seen, place, around)
            if source.axon is not None:
                tensors = sum_tensors(source, seen, place, around, self.clusters)
            if thinned is not None or tensors is not None:
                found.append(TileResult(tile, thinned, tensors))
        return found

    def _thin(self, seen: NDArray[np.uint8], place: Box, around: Box) -> Thinned:
        halo = HALO
        while True:
            found, widest = thin(seen, self.source, place, around)
            needed = REACH * widest
            all_seen = all(p.stop - p.start == size for p, size in zip(around, self.source.shape, strict=True))
            if needed <= halo or all_seen:
                return found
            if halo == LARGEST_HALO:
                return found._replace(shallow=True)
            halo = min(2 * halo, LARGEST_HALO)
            around = _extend(place, (halo, halo, halo), self.source.shape)
            seen = self.source.read(around)


def thin(seen: NDArray[np.uint8], source: Source, place: Box, around: Box) -> tuple[Thinned, float]:
    """Returns the skeleton in a tile, and the radius of the widest vessel in sight, in the shortest edge of a voxel.

    Args:
        seen: Labels of `around`.
        source: Where they are from.
        place: The tile.
        around: The tile and its halo.
    """
    from scipy.spatial import KDTree

    vessel = _fill_cavities(seen == source.vessel)
    points = _list_voxels(skeletonize_whole(vessel))
    # whatever is nearest to a voxel of a vessel lies at its wall
    walls = _list_voxels(_find_walls(vessel))
    size = np.asarray(source.size_um)
    radii: NDArray[np.float64] = np.full(len(points), math.inf)
    unknown = np.zeros(len(points), bool)
    if len(walls):
        found, nearest = KDTree(walls * size, 32, compact_nodes=False, balanced_tree=False).query(points * size)
        # rounded, so that what is as far is so to the bit, wherever the tile begins
        radii = np.round(found, 9)
        unknown = seen[tuple(walls[nearest].T)] == NOT_LABELLED
    places = points + [part.start for part in around]
    to_faces = np.minimum(places + 0.5, np.array(source.shape) - places - 0.5) * size
    to_faces[to_faces > radii[:, None] + CLOSE * size] = math.inf
    to_border = np.minimum(to_faces.min(1, initial=math.inf), np.where(unknown, radii - size.min() / 2, math.inf))
    to_border[np.isinf(to_border)] = math.nan
    to_border = np.fmin(to_border, _reach_faces(vessel, places, radii, source, around))
    low, high = np.array([part.start for part in place]), np.array([part.stop for part in place])
    inside = ((places >= low) & (places < high)).all(1)
    numbers = np.ravel_multi_index(tuple(places.T), source.shape).astype(np.int64)
    beyond = (places >= low).all(1) & (places <= high).all(1) & ((places == high).sum(1) == 1)
    keys = 3 * numbers[beyond] + (places == high)[beyond].argmax(1)
    widest = float(radii.max(initial=0.0) / size.min())
    most = float((np.array(seen.shape) * size).max())
    radii = np.minimum(radii, most)
    return Thinned(numbers[inside], radii[inside], to_border[inside], keys, shallow=False), widest


def _reach_faces(
    vessel: Mask, places: NDArray[np.int64], radii: NDArray[np.float64], source: Source, around: Box
) -> NDArray[np.float64]:
    """Returns how far faces of the box are, along axes of longer voxels, if the vessel reaches them there; otherwise NaN.

    Thinning takes as many voxels off an end as the vessel has in radius, which along such an axis is farther.
    """
    size = np.asarray(source.size_um)
    found = np.full(len(places), math.nan)
    for axis in np.flatnonzero(size > size.min()):
        for face, apart in (
            (0, places[:, axis] + 0.5),
            (source.shape[axis] - 1, source.shape[axis] - places[:, axis] - 0.5),
        ):
            if not around[axis].start <= face < around[axis].stop:
                continue
            there = places - [part.start for part in around]
            there[:, axis] = face - around[axis].start
            reached = (apart <= radii / size.min() + CLOSE) & vessel[tuple(there.T)]
            found = np.fmin(found, np.where(reached, apart * size[axis], math.nan))
    return found


def skeletonize_whole(mask: Mask) -> Mask:
    """Returns the skeleton of a mask (z, y, x): lines one voxel wide, of every object at least its deepest voxel.

    scikit-image's thinning loses some objects as a whole, such as solid cubes of even edges.
    """
    from scipy import ndimage
    from skimage import morphology

    thin_out: Any = morphology.skeletonize  # untyped
    skeleton: Mask = np.asarray(thin_out(mask, method="lee")) != 0
    objects = connect(mask, corners=True)
    kept = np.zeros(objects.count, bool)
    kept[objects.find_owners(_list_voxels(skeleton))] = True
    for number in np.flatnonzero(~kept).tolist():
        voxels = objects.list_voxels(number)
        corner = voxels.min(0) - 1
        found = np.zeros(voxels.max(0) - corner + 2, bool)
        found[tuple((voxels - corner).T)] = True
        depth = ndimage.distance_transform_edt(found)
        skeleton[tuple(corner + np.unravel_index(int(depth.argmax()), depth.shape))] = True
    return skeleton


def _fill_cavities(mask: Mask) -> Mask:
    """Returns a mask with all that it encloses: of a vessel with a hole within, thinning would keep a shell."""
    rest = ~mask
    around = connect(rest)
    is_open = around.find_at_faces()
    if is_open.all():
        return mask
    filled = np.ones(mask.shape, bool)
    filled[rest] = around.spread(~is_open)
    return filled


def _find_walls(mask: Mask) -> Mask:
    """Returns the voxels outside of a mask that share a face with one of it."""
    beside = np.zeros(mask.shape, bool)
    for axis in range(3):
        lower, upper = (tuple(part if a == axis else slice(None) for a in range(3)) for part in (slice(-1), slice(1, None)))
        beside[upper] |= mask[lower]
        beside[lower] |= mask[upper]
    return beside & ~mask


def _list_voxels(mask: Mask) -> NDArray[np.int64]:
    """Returns the places (n, 3) of a mask's voxels, as argwhere does, but faster."""
    return np.stack(np.unravel_index(np.flatnonzero(mask), mask.shape), 1).astype(np.int64)


def _extend(place: Box, halo: Triple, shape: Triple) -> Box:
    spans = zip(place, halo, shape, strict=True)
    z, y, x = (slice(max(0, part.start - more), min(size, part.stop + more)) for part, more, size in spans)
    return z, y, x


def _shift(place: Box, within: Box) -> Box:
    z, y, x = (slice(p.start - w.start, p.stop - w.start) for p, w in zip(place, within, strict=True))
    return z, y, x
