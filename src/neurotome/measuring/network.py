"""Network of vessels: the skeleton's voxels as branch points and the segments between them.

Voxels that touch, also by a corner, belong together. Those with three or more neighbours are where segments meet; such
voxels that touch each other are one branch point, or a thick junction would be a hub with many tiny segments. Then artefacts
go: side branches that end within the vessel they leave, loops of a few voxels, and branch points at which only two are
left. What remains is joined, whatever tile it came from.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neurotome.blocks import Grid, Triple
from neurotome.measuring.connected import join_pairs
from neurotome.measuring.graph import Floats, Ints, clean_graph, trace_graph
from neurotome.measuring.skeleton import CLOSE, TileResult
from neurotome.volume import Size

SMOOTHINGS = 4
"""How often a voxel's place is averaged with those before and after it (1, 2, 1): straight lines in any direction then come
out within 2 %, but for their ends; without, 9 % too long."""


@dataclass(frozen=True)
class Network:
    """Segments and branch points; places in micrometres from the box's first voxel.

    Attributes:
        points: Of every segment one after the other, the number of the voxel at each of its points (n,).
        length_um: What of the segment's length is nearest to each point (n,); an end reaches half a voxel beyond its last
            point, or to the border that cuts it.
        radius_um: At each point (n,).
        first: Where each segment begins in these (m + 1,).
        tortuosity: Length of each segment between its ends, per their distance (m,); NaN of a loop.
        ends_um: Both ends of each segment (m, 2, 3), zyx.
        degrees: How many segments meet at each end (m, 2), 1 where it ends, 0 where it is a loop or a point by itself.
        cut: Whether an end of each segment is at the border (m,).
        part: Number of the connected part that each segment belongs to (m,); 1 is the longest.
        branch_voxels: Voxels of the branch points (k,).
        branch_um: Their places (k, 3), zyx.
        branch_degrees: How many segments meet at each (k,).
        branch_radius_um: Largest radius there (k,).
        differing: Voxels at which neighbouring tiles disagree.
        shallow: How many tiles have a vessel too wide for what was read around them.
    """

    points: Ints
    length_um: Floats
    radius_um: Floats
    first: Ints
    tortuosity: Floats
    ends_um: Floats
    degrees: Ints
    cut: NDArray[np.bool_]
    part: Ints
    branch_voxels: Ints
    branch_um: Floats
    branch_degrees: Ints
    branch_radius_um: Floats
    differing: int
    shallow: int


def build_network(results: Sequence[TileResult], grid: Grid, size_um: Size) -> Network:
    """Joins the skeletons of tiles.

    Args:
        results: Of all tiles with vessels, by number.
        grid: The tiles.
        size_um: Edges of a voxel (z, y, x).
    """
    found = [(result.tile, result.thinned) for result in results if result.thinned is not None]
    numbers = np.concatenate([np.zeros(0, np.int64), *(thinned.voxels for _, thinned in found)])
    order = np.argsort(numbers)
    numbers = numbers[order]
    radius = np.concatenate([np.zeros(0), *(thinned.radius_um for _, thinned in found)])[order]
    to_border = np.concatenate([np.zeros(0), *(thinned.to_border_um for _, thinned in found)])[order]
    places = np.stack(np.unravel_index(numbers, grid.shape_zyx), 1).astype(np.int64)
    beyond = np.concatenate([np.zeros(0, np.int64), *(thinned.beyond for _, thinned in found)])
    differing = _count_differing(numbers, places, beyond, grid, np.array([tile for tile, _ in found], np.int64))

    pairs = link_voxels(numbers, places, grid.shape_zyx)
    count = len(numbers)
    degree = np.bincount(pairs.ravel(), minlength=count)
    junction = degree >= 3
    cluster, _ = join_pairs(pairs[junction[pairs].all(1)], count)
    members = np.flatnonzero(junction)
    labels, which = np.unique(cluster[members], return_inverse=True)
    node_of = np.full(count, -1, np.int64)
    node_of[members] = count + which.ravel()
    sizes = np.bincount(which.ravel(), minlength=len(labels))
    scaled = places * np.asarray(size_um)
    summed = [np.bincount(which.ravel(), scaled[members, axis], len(labels)) for axis in range(3)]
    centres = np.stack(summed, 1) / np.maximum(sizes, 1)[:, None]
    central = _find_central(members, which.ravel(), scaled, centres)
    widths = np.zeros(len(labels))
    np.maximum.at(widths, which.ravel(), radius[members])

    graph = trace_graph(pairs, degree, node_of, len(labels))
    where = np.concatenate([scaled, centres])
    clean_graph(graph, where, widths + max(size_um))

    voxel_of = np.concatenate([np.arange(count), central])
    chains = sorted((np.array(chain) for chain in graph.segments.values()), key=lambda chain: voxel_of[chain].min())
    points = np.concatenate([np.zeros(0, np.int64), *chains])
    first = np.cumsum([0, *map(len, chains)])
    ends = np.stack([points[first[:-1]], points[first[1:] - 1]], 1)
    meeting = {end: len(segments) for end, segments in graph.at.items()}
    degrees = np.array([[meeting.get(end, 1) for end in pair] for pair in ends.tolist()], np.int64).reshape(-1, 2)
    degrees[(ends[:, 0] == ends[:, 1]) & (ends[:, 0] < count)] = 0
    steps = smooth_lengths(where[points], first)
    chords = np.linalg.norm(where[ends[:, 0]] - where[ends[:, 1]], axis=1)
    tortuosity = np.divide(sum_segments(steps, first), chords, out=np.full(len(chords), np.nan), where=chords > 0)
    lengths = steps / 2
    lengths[1:] += steps[:-1] / 2
    cut = np.isfinite(to_border[voxel_of[ends]]) & (degrees == 1)
    for side, (last, inner) in enumerate(((first[:-1], first[:-1]), (first[1:] - 1, first[1:] - 2))):
        beyond_end = np.where(cut[:, side], to_border[voxel_of[ends[:, side]]], steps[np.maximum(inner, 0)] / 2)
        lengths[last] += np.where(degrees[:, side] == 1, beyond_end, 0)
    singles = np.flatnonzero(np.diff(first) == 1)
    alone = voxel_of[ends[singles, 0]]
    through = span_box(places[alone], radius[alone], grid.shape_zyx, size_um)
    lengths[first[singles]] = through
    cut[singles, 0] |= through > 0
    parts = join_pairs(pairs, count)[0][voxel_of[ends[:, 0]]]
    branches = np.array([end for end, number in meeting.items() if number >= 3], np.int64)
    return Network(
        points=numbers[voxel_of[points]],
        length_um=lengths,
        radius_um=radius[voxel_of[points]],
        first=first,
        tortuosity=tortuosity,
        ends_um=where[ends],
        degrees=degrees,
        cut=cut.any(1),
        part=_rank(parts, sum_segments(lengths, first)),
        branch_voxels=numbers[voxel_of[branches]],
        branch_um=where[branches],
        branch_degrees=np.array([meeting[end] for end in branches.tolist()], np.int64),
        branch_radius_um=widths[branches - count],
        differing=differing,
        shallow=sum(thinned.shallow for _, thinned in found),
    )


def link_voxels(numbers: Ints, places: Ints, shape: Triple) -> Ints:
    """Returns which voxels touch, int64 (n, 2), as places in `numbers` (which increase), the smaller first."""
    found = [np.zeros((0, 2), np.int64)]
    for step in itertools.product((-1, 0, 1), repeat=3):
        if step <= (0, 0, 0):
            continue
        moved = places + step
        inside = np.flatnonzero(((moved >= 0) & (moved < shape)).all(1))
        wanted = np.ravel_multi_index(tuple(moved[inside].T), shape)
        at = np.minimum(np.searchsorted(numbers, wanted), len(numbers) - 1)
        there = numbers[at] == wanted if len(numbers) else np.zeros(0, bool)
        found.append(np.stack([inside[there], at[there]], 1))
    return np.concatenate(found)


def span_box(places: Ints, radius_um: Floats, shape: Triple, size_um: Size) -> Floats:
    """Returns the length (n,) of vessels that run through a box from face to face; 0 of those that do not.

    Thinning makes a single point of a vessel that is wider than the box is deep.

    Args:
        places: Those points (n, 3), zyx.
        radius_um: There (n,).
        shape: Voxels of the box.
        size_um: Edges of a voxel.
    """
    size, edges = np.asarray(size_um), np.array(shape)
    farther = np.maximum(places + 0.5, edges - places - 0.5)
    reach = radius_um / size.min() + CLOSE
    spans = np.where(farther <= reach[:, None], edges * size, np.inf).min(1, initial=np.inf)
    return np.where(np.isfinite(spans), spans, 0.0)


def smooth_lengths(where: Floats, first: Ints) -> Floats:
    """Returns how long each step of lines is after smoothing, 0 where the next point is another line's.

    Args:
        where: Points of all lines, one after the other (n, 3).
        first: Where each begins, and the end (m + 1,).
    """
    free = np.ones(len(where), bool)
    free[first[:-1]] = free[first[1:] - 1] = False
    inner = np.flatnonzero(free)
    for _ in range(SMOOTHINGS):
        where = where.copy()
        where[inner] = (where[inner - 1] + 2 * where[inner] + where[inner + 1]) / 4
    steps = np.zeros(len(where))
    steps[:-1] = np.linalg.norm(np.diff(where, axis=0), axis=1)
    steps[first[1:] - 1] = 0
    return steps


def _count_differing(numbers: Ints, places: Ints, beyond: Ints, grid: Grid, tiles: Ints) -> int:
    """Returns at how many voxels next to a tile its neighbour found something else than it did itself."""
    own = [np.zeros(0, np.int64)]
    for axis in range(3):
        at = np.flatnonzero((places[:, axis] % grid.tile_zyx[axis] == 0) & (places[:, axis] > 0))
        index = places[at] // grid.tile_zyx
        index[:, axis] -= 1
        below = np.ravel_multi_index(tuple(index.T), grid.tiles_zyx)
        own.append(3 * numbers[at[np.isin(below, tiles)]] + axis)
    return len(np.setxor1d(np.concatenate(own), beyond, assume_unique=True))


def _find_central(members: Ints, which: Ints, scaled: Floats, centres: Floats) -> Ints:
    """Returns of each node the voxel that is nearest to its centre."""
    apart = np.round(np.linalg.norm(scaled[members] - centres[which], axis=1), 9)
    order = np.lexsort((members, apart, which))
    _, first = np.unique(which[order], return_index=True)
    return members[order[first]]


def sum_segments(values: Floats, first: Ints) -> Floats:
    """Returns the sum of each segment's values (m,)."""
    summed = np.bincount(np.repeat(np.arange(len(first) - 1), np.diff(first)), values, len(first) - 1)
    return summed.astype(np.float64)


def find_medians(values: Floats, first: Ints) -> Floats:
    """Returns the median of each segment's values (m,)."""
    ordered = values[np.lexsort((values, np.repeat(np.arange(len(first) - 1), np.diff(first))))]
    lower, upper = (first[:-1] + first[1:] - 1) // 2, (first[:-1] + first[1:]) // 2
    return np.asarray((ordered[lower] + ordered[upper]) / 2)


def _rank(parts: Ints, lengths: Floats) -> Ints:
    """Returns the number of each segment's part, 1 for the longest."""
    labels, which = np.unique(parts, return_inverse=True)
    totals = np.bincount(which.ravel(), lengths, len(labels))
    rank = np.empty(len(labels), np.int64)
    rank[np.argsort(-totals, kind="stable")] = np.arange(1, len(labels) + 1)
    return rank[which.ravel()]
