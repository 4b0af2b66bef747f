"""Tubes: the vessels of synthetic tissue, and the lines along which they run.

Axes are zyx, lengths in voxels of 1.17 um; see `regions` for where the numbers come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.datasets.phantom.regions import Region

Shape = tuple[int, int, int]
Generator = np.random.Generator

Tubes = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.intp]]
"""Points (n, 3) along tubes, the radius at each (n,), and the number of its tube (n,), which grows."""

FAINT_VESSEL = (0.15, 0.6)  # how much of a capillary shows that is thinner than a voxel
NARROWEST = 0.9  # radius of a tube that is one voxel wide without holes
HALF_DIAGONAL = 0.75**0.5  # of a voxel
OBJECT_EDGE = 0.25  # voxels by which single objects are drawn wider or narrower than others


@dataclass(frozen=True)
class Course:
    """The line in the middle of a vessel that is labelled."""

    kind: str  # lumen, capillary or dash
    points: NDArray[np.float64]  # (n, 3), zyx, less than a voxel apart
    radius: float  # as labelled, mean along it


def stamp_tubes(mask: NDArray[np.bool_], points: NDArray[np.float64], radii: NDArray[np.float64]) -> None:
    """Sets the voxels of `mask` (z, y, x) within `radii` (n,) of `points` (n, 3); none outside."""
    for voxels, apart, near in _visit_tubes(mask.shape, points, radii):
        mask[tuple(voxels[apart <= radii[near]].T)] = True


def _visit_tubes(
    shape: Sequence[int], points: NDArray[np.float64], reach: NDArray[np.float64]
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.intp]]]:
    """Yields voxels (m, 3) within `reach` (n,) of `points` (n, 3), their distance (m,), and to which point (m,)."""
    if not len(points):
        return
    farthest = int(np.ceil(reach.max()))
    near = np.flatnonzero(((points > -farthest - 1) & (points < np.array(shape) + farthest)).all(1))
    near = near[np.argsort(-reach[near])]  # widest first: few reach far
    points, reach = points[near].astype(np.float32), reach[near].astype(np.float32)
    nearest = np.rint(points).astype(np.int32)
    rest = points - nearest
    own = np.square(rest).sum(1)
    for offset in np.ndindex((2 * farthest + 3,) * 3):
        step = np.array(offset, np.int32) - farthest - 1
        length = float(step @ step)
        count = int(np.searchsorted(-reach, HALF_DIAGONAL - np.sqrt(length), "right"))
        if not count:
            continue
        squared = own[:count] - rest[:count] @ (2 * step).astype(np.float32) + np.float32(length)
        which = np.flatnonzero(squared <= np.square(reach[:count]))
        voxels = nearest[which] + step
        within = ((voxels >= 0) & (voxels < shape)).all(1)
        which = which[within]
        yield voxels[within], np.sqrt(np.maximum(squared[which], 0)), near[which]


def draw_tubes(
    kind: str, tubes: Tubes, region: Region, shown: NDArray[np.float32], drawn: NDArray[np.bool_], rng: Generator
) -> list[Course]:
    """Puts capillaries into `shown` (how much of one shows, 0..1) and `drawn` (labelled as a vessel), both (z, y, x).

    What is thinner than a voxel is painted one voxel wide and lighter. Returns the courses of those that are labelled.
    """
    points, radii, number = tubes
    if not len(points):
        return []
    faint = rng.random(number[-1] + 1) < region.faint_vessels
    share = np.where(faint, rng.uniform(*FAINT_VESSEL, len(faint)), 1.0).astype(np.float32)[number]
    edge = region.vessel_edge + rng.uniform(-OBJECT_EDGE, OBJECT_EDGE, len(faint))
    left_out = faint & (rng.random(len(faint)) >= region.faint_vessels_drawn)
    widths = np.where(left_out[number], 0, np.maximum(radii + edge[number], NARROWEST))
    for voxels, apart, near in _visit_tubes(shown.shape, points, np.maximum(radii, widths)):
        inside = apart <= radii[near]
        np.maximum.at(shown, tuple(voxels[inside].T), share[near[inside]])
        drawn[tuple(voxels[apart <= widths[near]].T)] = True
    begins = np.flatnonzero(np.diff(number, prepend=-1))
    lines = zip(np.split(points, begins[1:]), widths[begins].tolist(), strict=True)
    return [Course(kind, line, width) for line, width in lines if width > 0]


def grow_lumens(region: Region, shape: Shape, rng: Generator) -> tuple[NDArray[np.bool_], NDArray[np.bool_], list[Course]]:
    """Returns where large vessels are and where they are drawn, bool (z, y, x), and their courses.

    They are bent tubes; most cross the plane.
    """
    lumens, drawn, courses = np.zeros(shape, bool), np.zeros(shape, bool), list[Course]()
    for expected, smallest, largest in region.lumens:
        # rounding at random, not a Poisson number: small pieces of tissue differ enough already
        for _ in range(int(expected * shape[1] * shape[2] / 256**2 + rng.random())):
            radius = np.float32(rng.uniform(smallest, largest) / 2)
            centre = rng.uniform(0, shape)
            course = rng.normal(size=3) * (1.0, 0.6, 0.6)
            course /= np.linalg.norm(course)
            sideways = np.cross(course, rng.normal(size=3))
            sideways /= np.linalg.norm(sideways)
            sway = sideways * rng.uniform(0.05, 0.4) * radius
            # a collapsed vessel is flat: distances grow along the third direction
            flat, stretch = np.cross(course, sideways), 1 / (1 - rng.uniform(0, region.lumen_squash)) ** 2 - 1
            edge = np.float32(region.vessel_edge + rng.uniform(-OBJECT_EDGE, OBJECT_EDGE))
            phase = rng.uniform(0, 2 * np.pi)
            box = _bound_tube(shape, centre, course, 1.6 * float(radius) + 1.5)
            axes = [np.arange(part.start, part.stop, dtype=np.float32) for part in box]
            offset = np.ix_(*(axis - np.float32(c) for axis, c in zip(axes, centre, strict=True)))
            t = sum(o * np.float32(d) for o, d in zip(offset, course, strict=True))
            bend = np.sin(t / (3 * radius) + np.float32(phase))
            squared: Any = 0.0
            aside: Any = 0.0
            for o, d, s, f in zip(offset, course, sway, flat, strict=True):
                distance = o - t * np.float32(d) - bend * np.float32(s)
                squared = squared + distance**2
                aside = aside + distance * np.float32(f)
            squared += np.float32(stretch) * aside**2
            width = radius * (1 + np.float32(0.12) * np.sin(t / (2 * radius)))
            lumens[box] |= squared <= width**2
            drawn[box] |= squared <= (width + edge) ** 2
            along = np.arange(-sum(shape), sum(shape), 0.8)[:, None]
            line = centre + along * course + np.sin(along / (3 * radius) + phase) * sway
            near = ((line > -1) & (line < shape)).all(1)
            courses.append(Course("lumen", line[near], float(radius + edge)))
    return lumens, drawn, courses


def _bound_tube(shape: Shape, centre: NDArray[np.float64], course: NDArray[np.float64], reach: float) -> tuple[slice, ...]:
    """Returns the box that holds a tube which runs through `centre`, within the field, from end to end."""
    size = np.array(shape)
    away = np.stack([-reach - centre, size + reach - centre]) / np.where(abs(course) < 1e-6, 1e-6, course)
    ends = centre + np.outer([away.min(0).max(), away.max(0).min()], course)
    low = np.clip(np.floor(ends.min(0) - reach), 0, size).astype(int)
    high = np.clip(np.ceil(ends.max(0) + reach) + 1, 0, size).astype(int)
    return tuple(map(slice, low, high))


def grow_dashes(region: Region, shape: Shape, fibres: NDArray[np.float32], rng: Generator) -> Tubes:
    """Returns short vessels that run along the fibres."""
    count = rng.poisson(region.dashes_per_mvox * 1e-6 * np.prod(shape))
    if not count:
        return np.empty((0, 3)), np.empty(0), np.empty(0, np.intp)
    middle = shape[0] // 2
    # the fibres' direction is where their coordinate across does not change
    gradient = np.stack(np.gradient(fibres[1, middle]))
    points, radii = [], []
    for _ in range(count):
        centre = rng.uniform(0, shape)
        dy, dx = gradient[:, int(centre[1]), int(centre[2])]
        norm = max(float(np.hypot(dy, dx)), 1e-6)
        course = np.array([rng.normal(0, 0.25), dx / norm, -dy / norm])
        aside = np.array([0.0, dy / norm, dx / norm])
        length = np.clip(rng.gamma(2.5, 5), 5, 45)
        t = np.linspace(-0.5, 0.5, int(length / 0.8) + 2)[:, None]
        points.append(centre + length * (t * course + rng.normal(0, 0.05) * np.cos(np.pi * t) * aside))
        radii.append(np.full(len(t), max(0.85 * rng.normal(*region.capillary_radius), NARROWEST)))
    return _join_tubes(points, radii)


def grow_capillaries(region: Region, shape: Shape, rng: Generator) -> Tubes:
    """Returns a connected network of capillaries.

    Random branch points are joined by their minimum spanning tree, then loops are closed along short edges of
    their Delaunay triangulation until the network is as long as asked.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree
    from scipy.spatial import Delaunay

    length = region.capillary_length
    # a random minimum spanning tree is 0.65 density^(2/3) long per volume; it shall be 60 % of the network
    density = (0.6 * length / 0.65) ** 1.5
    margin = density ** (-1 / 3)
    size = np.array(shape) + 2 * margin
    nodes = rng.uniform(-margin, np.array(shape) + margin, (max(int(density * size.prod()), 8), 3))
    simplices = Delaunay(nodes).simplices
    pairs = [simplices[:, [i, j]] for i in range(4) for j in range(i)]
    edges = np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0)
    lengths = np.linalg.norm(nodes[edges[:, 0]] - nodes[edges[:, 1]], axis=1)
    tree = minimum_spanning_tree(coo_array((lengths, tuple(edges.T)), (len(nodes), len(nodes)))).tocoo()
    chosen = np.isin(edges[:, 0] * len(nodes) + edges[:, 1], tree.row.astype(np.int64) * len(nodes) + tree.col)
    typical = np.median(lengths)
    missing = length * size.prod() - lengths[chosen].sum()
    spare = rng.permutation(np.flatnonzero(~chosen & (lengths > 0.6 * typical) & (lengths < typical)))
    chosen[spare[np.cumsum(lengths[spare]) < missing]] = True
    points, radii = [], []
    for edge, extent in zip(edges[chosen], lengths[chosen], strict=True):
        t = np.linspace(0, 1, int(extent / 0.8) + 2)[:, None]
        start, stop = nodes[edge]
        bulge = rng.normal(0, 0.07 * extent, 3) * np.sin(np.pi * t) + rng.normal(0, 0.02 * extent, 3) * np.sin(2 * np.pi * t)
        points.append(start + (stop - start) * t + bulge)
        radii.append(np.full(len(t), max(rng.normal(*region.capillary_radius), NARROWEST)))
    return _join_tubes(points, radii)


def _join_tubes(points: list[NDArray[np.float64]], radii: list[NDArray[np.float64]]) -> Tubes:
    return np.concatenate(points), np.concatenate(radii), np.repeat(np.arange(len(radii)), [len(r) for r in radii])
