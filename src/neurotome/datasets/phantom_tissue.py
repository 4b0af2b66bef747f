"""Tissue: geometry of synthetic brain tissue in 3D, and its labels.

Axes are zyx, lengths in voxels of 1.17 um; see `phantom_regions` for where the numbers come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.datasets.phantom_regions import Region

Shape = tuple[int, int, int]
Generator = np.random.Generator

BACKGROUND, VESSEL, CELL, AXON = range(4)

CELL_ASPECT = 1.4
CAPILLARY_RADIUS = (1.6, 0.25)  # mean, standard deviation


@dataclass(frozen=True)
class Cell:
    """A cell body: an ellipsoid.

    Attributes:
        centre: Shape (3,), zyx.
        to_sphere: Shape (3, 3); maps an offset from the centre so that the surface lies at length 1.
        radius: Radius of the sphere of its volume.
        contrast: 1 is as dark as the mean cell in focus, 0 invisible.
        nucleus: Grey value at the centre of a cell large enough to show its nucleus.
    """

    centre: NDArray[np.float64]
    to_sphere: NDArray[np.float64]
    radius: float
    contrast: float
    nucleus: float


@dataclass(frozen=True)
class Tissue:
    """The geometry of a piece of tissue, before it has grey values.

    Attributes:
        labels: uint8 (z, y, x), class ids.
        cells: The cell bodies.
        fibres: float32 (3, z, y, x): every voxel's coordinates in z, across and along the fibres.
        lumen_distance: float32 (z, y, x): voxels to the nearest large vessel's wall, negative within.
        lumen_calibre: float32 (z, y, x): calibre of that vessel.
    """

    labels: NDArray[np.uint8]
    cells: tuple[Cell, ...]
    fibres: NDArray[np.float32]
    lumen_distance: NDArray[np.float32]
    lumen_calibre: NDArray[np.float32]


def build_tissue(region: Region, shape: Shape, rng: Generator) -> Tissue:
    """Lays out fibres, vessels and cells, and labels them; vessels win over cells, cells over axons."""
    fibres = locate_fibres(shape, region.fibre_angle_deg, region.fibre_fan, rng)
    bundles = _grow_bundles(region, fibres, rng)
    distance, calibre = _grow_lumens(region, shape, rng)
    vessels = distance <= 0
    stamp_tubes(vessels, *_grow_capillaries(region.capillary_length, shape, rng))
    labels = np.zeros(shape, np.uint8)
    cells = _place_cells(region, bundles, distance, rng)
    for cell in cells:
        box, reach = locate_cell(cell, shape, 1.0)
        labels[box][reach <= 1] = CELL
    labels[vessels] = VESSEL
    if region.axon_share > 0:
        free = labels == BACKGROUND
        share = min(region.axon_share * labels.size / max(int(free.sum()), 1), 1.0)
        labels[free & (bundles >= np.quantile(bundles[free], 1 - share))] = AXON
    return Tissue(labels, cells, fibres, distance, calibre)


def locate_fibres(shape: Shape, angle_deg: float, fan: float, rng: Generator) -> NDArray[np.float32]:
    """Returns every voxel's coordinates in a frame that follows fibres which fan out from a point.

    Args:
        shape: Voxels (z, y, x).
        angle_deg: Angle of the fibres above the x axis in the middle.
        fan: Voxels from the middle to the point where the fibres meet.
        rng: Chooses the side of that point, and how the fibres tilt in z.

    Returns:
        float32, shape (3, z, y, x): z, voxels across and voxels along the fibres.
    """
    fan = max(fan, 0.75 * float(np.hypot(*shape[1:])))  # fibres must not meet within the field
    angle = np.deg2rad(angle_deg + rng.normal(0, 4))
    side = rng.choice([-1.0, 1.0])
    z, y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) - n / 2 for n in shape), indexing="ij", sparse=True)
    along = side * (np.cos(angle) * x - np.sin(angle) * y) + fan
    across = np.sin(angle) * x + np.cos(angle) * y + rng.normal(0, 0.25) * z
    return np.stack(np.broadcast_arrays(z, fan * np.arctan2(across, along), np.hypot(across, along)), dtype=np.float32)


def sample_field(rng: Generator, coordinates: NDArray[np.float32], sigmas: Sequence[float]) -> NDArray[np.float32]:
    """Samples a Gaussian random field of mean 0 and standard deviation 1.

    White noise is drawn and smoothed on a grid no finer than the field needs, and interpolated.

    Args:
        rng: Source of the noise.
        coordinates: Shape (3, z, y, x): where each voxel lies in the field.
        sigmas: Smoothing along the field's axes, in the units of `coordinates`.

    Returns:
        float32, shape (z, y, x).
    """
    from scipy.ndimage import gaussian_filter, map_coordinates

    grid_sigma = 2.0
    steps = [sigma / grid_sigma for sigma in sigmas]
    low = coordinates.min(axis=(1, 2, 3))
    sizes = [int(np.ceil((c.max() - c.min()) / s)) + 2 for c, s in zip(coordinates, steps, strict=True)]
    white = rng.standard_normal(sizes, dtype=np.float32)
    # variance of white noise after a Gaussian filter: 1 / (2 sqrt(pi) sigma) per axis
    grid = gaussian_filter(white, grid_sigma, mode="wrap") * (2 * np.sqrt(np.pi) * grid_sigma) ** 1.5
    where = np.stack([(c - o) / s for c, o, s in zip(coordinates, low, steps, strict=True)])
    return np.asarray(map_coordinates(grid, where, np.float32, order=1, mode="nearest"))


def stamp_tubes(mask: NDArray[np.bool_], points: NDArray[np.float64], radii: NDArray[np.float64]) -> None:
    """Sets the voxels of `mask` (z, y, x) within `radii` (n,) of `points` (n, 3); none outside."""
    reach = int(np.ceil(radii.max()))
    near = ((points > -reach - 1) & (points < np.array(mask.shape) + reach)).all(1)
    points, radii = points[near].astype(np.float32), radii[near].astype(np.float32)
    nearest = np.rint(points).astype(np.int32)
    rest = points - nearest
    for offset in np.ndindex((2 * reach + 3,) * 3):
        step = np.array(offset, np.int32) - reach - 1
        if step @ step > (reach + 1) ** 2:
            continue
        voxels = (nearest + step)[np.square(step - rest).sum(1) <= radii**2]
        voxels = voxels[((voxels >= 0) & (voxels < mask.shape)).all(1)]
        mask[tuple(voxels.T)] = True


def _grow_bundles(region: Region, fibres: NDArray[np.float32], rng: Generator) -> NDArray[np.float32]:
    """Returns a field whose highest values are the axon bundles: long along the fibres, with rough edges."""
    if region.axon_share == 0:
        return np.zeros(fibres.shape[1:], np.float32)
    return sample_field(rng, fibres, region.fibre_sigma) + 0.25 * sample_field(rng, fibres, (2.5, 2.0, 7.0))


def _grow_lumens(region: Region, shape: Shape, rng: Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns distance to the nearest large vessel's wall and its calibre, float32 (z, y, x)."""
    distance = np.full(shape, 1e3, np.float32)
    calibre = np.zeros(shape, np.float32)
    grid = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    for expected, smallest, largest in region.lumens:
        # rounding at random, not a Poisson number: small pieces of tissue differ enough already
        for _ in range(int(expected * shape[1] * shape[2] / 256**2 + rng.random())):
            radius = rng.uniform(smallest, largest) / 2
            centre = rng.uniform(0, shape)
            course = rng.normal(size=3) * (1.0, 0.4, 0.4)  # most cross the plane
            course /= np.linalg.norm(course)
            sway = np.cross(course, rng.normal(size=3))
            sway *= 0.1 * radius / np.linalg.norm(sway)
            offset = [g - c for g, c in zip(grid, centre, strict=True)]
            t = sum(o * d for o, d in zip(offset, course, strict=True))
            bend = np.sin(t / (3 * radius) + rng.uniform(0, 2 * np.pi))
            squared: Any = 0.0
            for o, d, s in zip(offset, course, sway, strict=True):
                squared = squared + (o - t * d - bend * s) ** 2
            wall = (np.sqrt(squared) - radius).astype(np.float32)
            nearer = wall < distance
            distance[nearer] = wall[nearer]
            calibre[nearer] = 2 * radius
    return distance, calibre


def _grow_capillaries(length: float, shape: Shape, rng: Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns points (n, 3) and radii (n,) along a connected network of capillaries.

    Random branch points are joined by their minimum spanning tree, then loops are closed along short edges of
    their Delaunay triangulation until the network is as long as asked.

    Args:
        length: Voxels of capillary per voxel of tissue.
        shape: Voxels (z, y, x).
        rng: Source of everything random.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree
    from scipy.spatial import Delaunay

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
    missing = length * size.prod() - lengths[chosen].sum()
    spare = rng.permutation(np.flatnonzero(~chosen & (lengths < np.median(lengths))))
    chosen[spare[np.cumsum(lengths[spare]) < missing]] = True
    points, radii = [], []
    for edge, extent in zip(edges[chosen], lengths[chosen], strict=True):
        t = np.linspace(0, 1, int(extent / 0.6) + 2)[:, None]
        start, stop = nodes[edge]
        bulge = rng.normal(0, 0.07 * extent, 3) * np.sin(np.pi * t) + rng.normal(0, 0.02 * extent, 3) * np.sin(2 * np.pi * t)
        points.append(start + (stop - start) * t + bulge)
        radii.append(np.full(len(t), max(rng.normal(*CAPILLARY_RADIUS), 1.0)))
    return np.concatenate(points), np.concatenate(radii)


def _place_cells(
    region: Region, bundles: NDArray[np.float32], lumen_distance: NDArray[np.float32], rng: Generator
) -> tuple[Cell, ...]:
    """Returns cells that hardly overlap, avoid large vessels, and are rarer among fibres."""
    shape = np.array(bundles.shape)
    margin = 8.0  # a cell whose centre lies outside still reaches in
    wanted = int(region.cells_per_mvox * 1e-6 * (shape + 2 * margin).prod() + rng.random())
    fibrous = float(np.quantile(bundles, 1 - region.axon_share)) if region.axon_share else np.inf
    centres, radii = np.empty((wanted, 3)), np.empty(wanted)
    cells: list[Cell] = []
    for _ in range(40 * wanted):
        if len(cells) == wanted:
            break
        n = len(cells)
        centre = rng.uniform(-margin, shape + margin)
        radius = float(np.clip(rng.normal(*region.cell_diameter) / 2, 2.5, 9.0))
        voxel = tuple(np.clip(centre, 0, shape - 1).astype(int))
        crowded = np.linalg.norm(centres[:n] - centre, axis=1) < 0.9 * (radii[:n] + radius)
        if crowded.any() or lumen_distance[voxel] < radius:
            continue
        if bundles[voxel] >= fibrous and rng.random() >= region.cells_in_axon:
            continue
        centres[n], radii[n] = centre, radius
        cells.append(_shape_cell(centre, radius, rng))
    return tuple(cells)


def _shape_cell(centre: NDArray[np.float64], radius: float, rng: Generator) -> Cell:
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    aspect = max(rng.normal(CELL_ASPECT, 0.15), 1.0)
    lengths = radius * aspect ** (-1 / 3) * np.array([aspect, 1.0, 1.0])
    return Cell(centre, axes.T / lengths[:, None], radius, rng.uniform(0.6, 1.1), rng.uniform(20, 110))


def locate_cell(cell: Cell, shape: Sequence[int], reach: float) -> tuple[tuple[slice, ...], NDArray[np.float64]]:
    """Returns the box out to `reach` radii of a cell, and its voxels' distance to the centre in radii."""
    half = reach * 1.6 * cell.radius + 1
    low = np.clip(np.floor(cell.centre - half), 0, shape).astype(int)
    high = np.clip(np.ceil(cell.centre + half) + 1, 0, shape).astype(int)
    offsets = np.stack(np.meshgrid(*map(np.arange, low, high), indexing="ij"), -1) - cell.centre
    return tuple(map(slice, low, high)), np.linalg.norm(offsets @ cell.to_sphere.T, axis=-1)
