"""Tissue: geometry of synthetic brain tissue in 3D, and its labels.

Axes are zyx, lengths in voxels of 1.17 um; see `regions` for where the numbers come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.datasets.phantom.regions import Region
from neurotome.datasets.phantom.tubes import (
    OBJECT_EDGE,
    Course,
    Generator,
    Shape,
    draw_tubes,
    grow_capillaries,
    grow_dashes,
    grow_lumens,
)

BACKGROUND, VESSEL, CELL, AXON = range(4)

CELL_ASPECT = 1.4
FAINT_CONTRAST = (0.1, 0.45)
BEND_SIGMA = 40.0  # correlation length of the bends of fibres and borders
PERIOD = 200  # steps of a field's grid; a fine texture seen along all three axes would need a grid of many millions
GRID_SIGMA = 1.5  # a field's smoothing on its own grid, in that grid's steps


@dataclass(frozen=True)
class Cell:
    """A cell body: an ellipsoid."""

    centre: NDArray[np.float64]  # (3,), zyx
    to_sphere: NDArray[np.float64]  # (3, 3): maps an offset from the centre so that the surface lies at length 1
    radius: float  # of the sphere of its volume
    contrast: float  # 1 is as dark as the soma can be, 0 invisible
    nucleus: float  # grey values by which the nucleus of a large cell is lighter than the soma
    nucleolus: float  # the same at the centre
    drawn: bool = True  # by a person; those that are not are seen, but not labelled


@dataclass(frozen=True)
class Tissue:
    """The geometry of a piece of tissue, before it has grey values."""

    labels: NDArray[np.uint8]  # (z, y, x), class ids
    cells: tuple[Cell, ...]
    fibres: NDArray[np.float32]  # (3, z, y, x): every voxel's coordinates in z, across and along the fibres
    bundles: NDArray[np.float32]  # (z, y, x): 1 within axon bundles, 0 outside, between at their edges
    lumens: NDArray[np.bool_]  # (z, y, x): within a large vessel
    capillaries: NDArray[np.float32] | None = None  # (z, y, x): how much of a capillary shows; None: all that is labelled
    beyond: NDArray[np.float32] | None = None  # (z, y, x): 1 beyond a border between two regions, 0 before it
    owners: NDArray[np.int32] | None = None  # (z, y, x): where a cell is labelled, its place in `cells`, from 1
    courses: tuple[Course, ...] = ()  # of the vessels that are labelled


def build_tissue(region: Region, shape: Shape, rng: Generator) -> Tissue:
    """Lays out fibres, vessels and cells, and labels them; vessels win over cells, cells over axons."""
    fibres = locate_fibres(shape, region, rng)
    beyond = _draw_border(region, shape, rng)
    bundles = _grow_bundles(region, fibres, beyond, rng)
    lumens, drawn, courses = grow_lumens(region, shape, rng)
    capillaries = np.zeros(shape, np.float32)
    for kind, tubes in (
        ("capillary", grow_capillaries(region, shape, rng)),
        ("dash", grow_dashes(region, shape, fibres, rng)),
    ):
        courses += draw_tubes(kind, tubes, region, capillaries, drawn, rng)
    labels, owners = np.zeros(shape, np.uint8), np.zeros(shape, np.int32)
    cells = _place_cells(region, bundles > 0.5, fibres, lumens, rng)
    for number, cell in enumerate(cells, 1):
        edge = region.cell_edge + rng.uniform(-OBJECT_EDGE, OBJECT_EDGE)
        if cell.drawn:
            box, distance = locate_cell(cell, shape, 1.0 + max(region.cell_edge + OBJECT_EDGE, 0) / cell.radius)
            seen = distance.min(axis=(1, 2), initial=1.0) < np.sqrt(1 - region.cell_pole**2)
            inside = (distance <= 1 + edge / cell.radius) & seen[:, None, None]
            labels[box][inside], owners[box][inside] = CELL, number
    labels[drawn] = VESSEL
    labels[(labels == BACKGROUND) & (bundles > 0.5)] = AXON
    owners[drawn] = 0
    return Tissue(labels, cells, fibres, bundles, lumens, capillaries, beyond, owners, tuple(courses))


def locate_fibres(shape: Shape, region: Region, rng: Generator) -> NDArray[np.float32]:
    """Returns every voxel's coordinates across (2) and along fibres that fan out from a point, float32 (3, z, y, x).

    In the middle the fibres are at `fibre_angle_deg` above the x axis, `fibre_fan` voxels from where they meet.
    """
    fan = max(region.fibre_fan, 0.75 * float(np.hypot(*shape[1:])))  # fibres must not meet within the field
    angle = np.deg2rad(region.fibre_angle_deg + rng.normal(0, 4))
    side = rng.choice([-1.0, 1.0])
    y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) - n / 2 for n in shape[1:]), indexing="ij", sparse=True)
    along = side * (np.cos(angle) * x - np.sin(angle) * y) + fan
    across = np.sin(angle) * x + np.cos(angle) * y
    across = across + np.float32(region.fibre_bend) * sample_slow_field(rng, shape[1:], BEND_SIGMA)
    z = (np.arange(shape[0], dtype=np.float32) - shape[0] / 2)[:, None, None]
    # tilted in z: the field shifts sideways and along from slice to slice
    tilt = rng.normal(0, 0.25, 2)
    across, along = fan * np.arctan2(across, along) + tilt[0] * z, np.hypot(across, along) + tilt[1] * z
    dip = np.deg2rad(region.fibre_dip_deg)
    axes = (np.cos(dip) * z - np.sin(dip) * along, across, np.cos(dip) * along + np.sin(dip) * z)
    return np.stack([np.broadcast_to(axis, shape) for axis in axes]).astype(np.float32)


def _draw_border(region: Region, shape: Shape, rng: Generator) -> NDArray[np.float32] | None:
    """Returns a wavy border's far side, or a sheet, float32 (z, y, x): 1 there, 0 before it; None for no border."""
    if region.beyond_share == region.axon_share:
        return None
    angle = rng.uniform(0, 2 * np.pi)
    z, y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) - n / 2 for n in shape), indexing="ij", sparse=True)
    height = np.float32(np.cos(angle)) * y + np.float32(np.sin(angle)) * x + np.float32(rng.normal(0, 0.3)) * z
    height = height + np.float32(rng.uniform(2, 20)) * sample_slow_field(rng, shape, BEND_SIGMA)
    height += np.float32(rng.uniform(-0.3, 0.3) * min(shape[1:]))
    if region.sheet_width > 0:
        height = region.sheet_width / 2 - abs(height)
    return np.asarray(np.clip(height / np.float32(rng.uniform(1, 20)) + 0.5, 0, 1), np.float32)


def sample_field(rng: Generator, coordinates: NDArray[np.float32], sigmas: Sequence[float]) -> NDArray[np.float32]:
    """Samples a Gaussian random field of mean 0 and standard deviation 1, float32 (z, y, x), at coordinates (3, z, y, x).

    White noise is drawn and smoothed by `sigmas` on a grid no finer than the field needs, and interpolated; a field longer
    than `PERIOD` steps of that grid repeats itself.
    """
    from scipy.ndimage import map_coordinates

    steps = [sigma / GRID_SIGMA for sigma in sigmas]
    where = np.empty_like(coordinates)
    sizes = []
    for axis, (values, step) in enumerate(zip(coordinates, steps, strict=True)):
        low, high = float(values.min()), float(values.max())
        np.subtract(values, low, out=where[axis])
        where[axis] /= step
        sizes.append(min(int(np.ceil((high - low) / step)) + 2, PERIOD))
    return np.asarray(map_coordinates(_smooth_noise(rng, sizes), where, np.float32, order=1, mode="grid-wrap"))


def sample_slow_field(rng: Generator, shape: Sequence[int], sigma: float) -> NDArray[np.float32]:
    """Samples a Gaussian random field like `sample_field`, the same in every direction, along the voxel grid."""
    step = sigma / GRID_SIGMA
    grid = _smooth_noise(rng, [int(np.ceil(n / step)) + 1 for n in shape])
    # one axis after the other: a weighted sum of two planes each, much cheaper than interpolating in 3D
    for axis, n in enumerate(shape):
        at = np.arange(n) / step
        low = at.astype(int)
        weight = (at - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(len(shape))])
        high = np.minimum(low + 1, grid.shape[axis] - 1)
        grid = grid.take(low, axis) * (1 - weight) + grid.take(high, axis) * weight
    return grid


def _smooth_noise(rng: Generator, sizes: Sequence[int]) -> NDArray[np.float32]:
    from scipy.ndimage import gaussian_filter

    white = rng.standard_normal(sizes, dtype=np.float32)
    # variance of white noise after a Gaussian filter: 1 / (2 sqrt(pi) sigma) per axis
    return gaussian_filter(white, GRID_SIGMA, mode="wrap", truncate=3) * np.float32((2 * np.sqrt(np.pi) * GRID_SIGMA) ** 1.5)


def grow_air(shape: Shape, share: float, rng: Generator) -> NDArray[np.float32]:
    """Returns how deep every voxel lies in the air on one side of the tissue, float32 (z, y, x), negative within it."""
    angle = rng.uniform(0, 2 * np.pi)
    z, y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    height = np.float32(np.cos(angle)) * y + np.float32(np.sin(angle)) * x + np.float32(rng.normal(0, 0.3)) * z
    height = height + np.float32(rng.uniform(2, 14)) * sample_slow_field(rng, shape, 25.0)
    height += np.float32(rng.uniform(0, 2)) * sample_slow_field(rng, shape, 4.0)
    return np.asarray(height - np.quantile(height[:, ::2, ::2], 1 - share), np.float32)


def _grow_bundles(
    region: Region, fibres: NDArray[np.float32], beyond: NDArray[np.float32] | None, rng: Generator
) -> NDArray[np.float32]:
    """Returns the axon bundles, 1 within and 0 outside: long along the fibres, with rough and more or less soft edges."""
    if max(region.axon_share, region.beyond_share) <= 0:
        return np.zeros(fibres.shape[1:], np.float32)
    field = sample_field(rng, fibres, region.fibre_sigma) + 0.2 * sample_field(rng, fibres, (2.5, 2.0, 7.0))
    low, high = np.quantile(field[:, ::2, ::2], (1 - region.axon_share, 1 - region.beyond_share))
    threshold = low if beyond is None else low + np.float32(high - low) * beyond
    return np.asarray(np.clip((field - threshold) / region.bundle_edge + 0.5, 0, 1), np.float32)


def _place_cells(
    region: Region, bundles: NDArray[np.bool_], fibres: NDArray[np.float32], lumens: NDArray[np.bool_], rng: Generator
) -> tuple[Cell, ...]:
    """Returns cells that hardly overlap, avoid large vessels, form clusters, and are rarer among fibres."""
    shape = np.array(bundles.shape)
    margin = 8.0  # a cell whose centre lies outside still reaches in
    clear = int(region.cells_per_mvox * 1e-6 * (shape + 2 * margin).prod() + rng.random())
    wanted = int(clear * (1 + region.faint_cells))
    centres, radii = np.empty((wanted, 3)), np.empty(wanted)
    cells: list[Cell] = []
    slope_y, slope_x = np.gradient(fibres[1, len(fibres[1]) // 2]) if min(shape[1:]) > 1 else (fibres[1, 0], fibres[1, 0])
    for _ in range(40 * wanted):
        n = len(cells)
        if n == wanted:
            break
        radius = float(np.clip(rng.normal(*region.cell_diameter) / 2, 2.5, 9.0))
        if n and rng.random() < region.cell_clusters:
            beside = int(rng.integers(n))
            y, x = np.clip(centres[beside, 1:], 0, shape[1:] - 1).astype(int)
            row = region.cell_rows * rng.choice([-1.0, 1.0])
            direction = rng.normal(size=3) + row * np.array([0, slope_x[y, x], -slope_y[y, x]])
            centre = centres[beside] + direction / np.linalg.norm(direction) * (radii[beside] + radius) * rng.uniform(
                0.9, 1.6
            )
        else:
            centre = rng.uniform(-margin, shape + margin)
        z, y, x = (int(v) for v in np.clip(centre, 0, shape - 1))
        if (np.square(centres[:n] - centre).sum(1) < (0.9 * (radii[:n] + radius)) ** 2).any() or lumens[z, y, x]:
            continue
        if bundles[z, y, x] and rng.random() >= region.cells_in_axon:
            continue
        centres[n], radii[n] = centre, radius
        cell = shape_cell(centre, radius, region, rng, faint=n >= clear)
        cells.append(replace(cell, drawn=n < clear or rng.random() < region.faint_cells_drawn))
    return tuple(cells)


def shape_cell(centre: NDArray[np.float64], radius: float, region: Region, rng: Generator, faint: bool = False) -> Cell:
    """Returns a cell of a radius at a place (3,), of random direction, contrast and nucleus."""
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    aspect = max(rng.normal(CELL_ASPECT, 0.15), 1.0)
    lengths = radius * aspect ** (-1 / 3) * np.array([aspect, 1.0, 1.0])
    nucleus, nucleolus = rng.uniform(-15, 40), rng.uniform(-40, 10)
    contrast = rng.uniform(*(FAINT_CONTRAST if faint else region.cell_contrast))
    return Cell(centre, axes.T / lengths[:, None], radius, contrast, nucleus, nucleolus)


def locate_cell(cell: Cell, shape: Sequence[int], reach: float) -> tuple[tuple[slice, ...], NDArray[np.float64]]:
    """Returns the box out to `reach` radii of a cell, and its voxels' distance to the centre in radii."""
    half = reach * 1.6 * cell.radius + 1
    low = np.clip(np.floor(cell.centre - half), 0, shape).astype(int)
    high = np.clip(np.ceil(cell.centre + half) + 1, 0, shape).astype(int)
    z, y, x = np.ix_(*(np.arange(start, stop) - middle for start, stop, middle in zip(low, high, cell.centre, strict=True)))
    squared: Any = 0.0
    for along_z, along_y, along_x in cell.to_sphere:
        squared = squared + (along_z * z + along_y * y + along_x * x) ** 2
    return tuple(map(slice, low, high)), np.sqrt(squared)
