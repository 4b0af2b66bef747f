"""Traced tissue: label maps that people drew, bent, joined and painted with synthetic grey values.

The other tissue of the phantom has a geometry that is made up; here shapes, densities and what was worth drawing are
people's own. No grey value of a real image is used. A map is one slice, so traced tissue is 2D.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neurotome.datasets.phantom.image import SPECK_GREY, record_image
from neurotome.datasets.phantom.regions import REGIONS, Region, draw_instrument, draw_region
from neurotome.datasets.phantom.tissue import AXON, BACKGROUND, CELL, VESSEL, sample_slow_field
from neurotome.datasets.phantom.tubes import Generator
from neurotome.errors import DatasetError, unknown

Labels = NDArray[np.uint8]
Field = NDArray[np.float32]

MARGIN = 8
"""Pixels made around what is kept, so that neither blur nor a shifted edge sees the border."""

STRIDES = (1.5, 3.0, 6.0, 12.0, 24.0)
"""Steps along the fibres by which noise is smoothed, each after the one before."""

WEIGHTS = {"cortex": 1.0, "striatum": 1.25, "vp": 2.0, "zi": 0.75}
"""How often maps of a region are drawn: more often where they vary more."""

NEVER = 99.0
"""Distance from an edge that is nowhere."""


@dataclass(frozen=True)
class Style:
    """How somebody drew, and what they left out; lengths in pixels, grey values 0..255."""

    cell_edge: float  # mean distance from the drawn edge of a cell inwards to the true one
    vessel_edge: float  # the same of a vessel
    axon_edge: float  # the same of a bundle
    edge_spread: float  # standard deviation of that distance from one cell or vessel to the next
    weak_cells: float  # share of the drawn cells that are hardly seen
    thin_vessels: float  # expected number of thin vessels per 256 x 256 pixels that nobody drew
    axon_contrast: float  # grey of bundles above the neuropil
    axon_change: float  # standard deviation of that grey from place to place, as a share of it
    axon_softness: float  # width of a bundle's edge
    axon_roughness: float  # how far that edge wanders, in pixels
    gaps: float  # depth of thin dark gaps between fibres, as a share of the contrast; 0 for none
    loose_fibres: float  # height of thin fibres in the neuropil that nobody drew, as a share of the contrast


def draw_style(rng: Generator) -> Style:
    """Draws a style from ranges that cover how people draw: cells more often within the true edge, vessels on both sides."""
    has_gaps = rng.random() < 0.6
    return Style(
        cell_edge=rng.normal(-0.5, 0.4),
        vessel_edge=rng.normal(0.1, 0.5),
        axon_edge=rng.normal(0.0, 0.6),
        edge_spread=rng.uniform(0.1, 0.4),
        weak_cells=rng.uniform(0.0, 0.1),
        thin_vessels=rng.uniform(0, 10),
        axon_contrast=rng.uniform(20, 55),
        axon_change=rng.uniform(0, 0.4),
        axon_softness=rng.uniform(0.5, 2.5),
        axon_roughness=rng.uniform(0, 1.5),
        gaps=rng.uniform(0.3, 1.0) if has_gaps else 0.0,
        loose_fibres=rng.uniform(0.2, 0.8) if has_gaps else 0.0,
    )


@cache
def read_maps(path: Path) -> Mapping[str, tuple[Labels, ...]]:
    """Reads label maps from an .npz file: arrays named after regions of the phantom, uint8 (n, y, x), classes 0 to 3.

    Raises:
        DatasetError: The file cannot be read, or holds something else; says what was found.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        message = f"{path}: cannot be read as label maps ({error}); expected an .npz file, see stream.maps."
        raise DatasetError(message) from error
    if not arrays:
        raise DatasetError(f"{path}: holds no array; expected one per region, named {', '.join(REGIONS)}.")
    for name, array in arrays.items():
        if name not in REGIONS:
            raise DatasetError(f"{path}: {unknown('region', name, REGIONS)}")
        if array.dtype != np.uint8 or array.ndim != 3 or not array.size or min(array.shape[1:]) < 32:
            raise DatasetError(
                f"{path}: {name} is {array.dtype} of shape {array.shape}; expected uint8 label maps (n, y, x) of at least "
                "32 x 32 pixels."
            )
        if array.max() > AXON:
            raise DatasetError(
                f"{path}: {name} holds the label {array.max()}; expected 0 background, 1 blood vessel, 2 cell, 3 axon."
            )
    return {name: tuple(array) for name, array in arrays.items()}


def make_traced(maps: Mapping[str, tuple[Labels, ...]], depth: int, edge: int, rng: Generator) -> tuple[Labels, Labels]:
    """Makes slices that have nothing to do with each other, images and labels, both uint8 (depth, edge, edge)."""
    slices = [_make_slice(maps, edge, rng) for _ in range(depth)]
    return np.stack([image for image, _ in slices]), np.stack([labels for _, labels in slices])


def _make_slice(maps: Mapping[str, tuple[Labels, ...]], edge: int, rng: Generator) -> tuple[Labels, Labels]:
    name, labels = compose_labels(maps, edge + 2 * MARGIN, rng)
    region = draw_region(REGIONS[name], rng)
    instrument = replace(draw_instrument(rng), air=0.0)
    style = draw_style(rng)
    if name == "vp":  # people call axons what hardly differs in grey there, only in texture
        style = replace(style, axon_contrast=rng.uniform(8, 50))
    painted = paint_labels(labels, region, style, rng)
    recorded = record_image(painted[None], None, region, instrument, rng)[0]
    kept = (slice(MARGIN, -MARGIN),) * 2
    return recorded[kept].copy(), labels[kept].copy()


def compose_labels(maps: Mapping[str, tuple[Labels, ...]], edge: int, rng: Generator) -> tuple[str, Labels]:
    """Returns a bent piece of a map and the name of its region; some pieces are joined with another one along a border.

    On the other side lies a piece of any region, or one whose background is filled with axons, because no map shows white
    matter as wide as it can be.
    """
    names, weights = tuple(maps), np.array([WEIGHTS[name] for name in maps])
    name, beside = rng.choice(names, 2, p=weights / weights.sum())
    labels = bend_map(maps[name], edge, rng)
    kind = rng.random()
    if kind < 0.25:
        other = bend_map(maps[beside], edge, rng)
        share = rng.uniform(0.2, 0.8)
    elif kind < 0.45:
        other = bend_map(maps[beside], edge, rng)
        kept_cells = _choose_objects(other == CELL, rng.uniform(0, 0.3), rng)
        other[(other == BACKGROUND) | ((other == CELL) & ~kept_cells)] = AXON
        share = rng.uniform(0.2, 1.0)
    else:
        return name, labels
    y, x = np.mgrid[:edge, :edge] - edge / 2
    angle = rng.uniform(0, 2 * np.pi)
    height = np.cos(angle) * y + np.sin(angle) * x + rng.uniform(5, 60) * _slow(rng, (edge, edge), 30.0)
    return name, np.where(height > np.quantile(height, 1 - share), other, labels)


def bend_map(maps: tuple[Labels, ...], edge: int, rng: Generator) -> Labels:
    """Returns a piece of one of the maps: turned, mirrored, scaled by 0.8 to 1.25, bent; mirrored beyond its border."""
    from scipy.ndimage import map_coordinates

    labels = maps[rng.integers(len(maps))]
    angle = rng.uniform(0, 2 * np.pi) if rng.random() < 0.5 else rng.integers(4) * np.pi / 2
    side, zoom = rng.choice([-1.0, 1.0]), np.exp(rng.uniform(-0.22, 0.22))
    y, x = np.mgrid[:edge, :edge] - (edge - 1) / 2
    bend = rng.uniform(0, 6)
    rows = (np.cos(angle) * y - side * np.sin(angle) * x) * zoom + bend * _slow(rng, (edge, edge), 28.0)
    columns = (np.sin(angle) * y + side * np.cos(angle) * x) * zoom + bend * _slow(rng, (edge, edge), 28.0)
    centre = [size * rng.uniform(0.3, 0.7) for size in labels.shape]
    return np.asarray(map_coordinates(labels, [rows + centre[0], columns + centre[1]], order=0, mode="mirror"))


def paint_labels(labels: Labels, region: Region, style: Style, rng: Generator) -> Field:
    """Returns grey values for drawn labels (y, x), float32, sharp and without any fault of the instrument.

    True edges off the drawn ones, faint cells and vessels nobody drew, gaps and loose fibres are part of it; the labels stay
    as they were drawn.
    """
    shape = labels.shape
    bundles = _fill_bundles(labels)
    fibres = Fibres(bundles, rng)
    depth = measure_depth(bundles) - style.axon_edge + style.axon_roughness * fibres.draw_field(1.5, 6.0, rng)
    share = np.clip(depth / style.axon_softness + 0.5, 0, 1)
    length = np.exp(rng.uniform(np.log(6), np.log(35)))
    streaks = 1.4 * region.streak_sd * fibres.draw_field(rng.uniform(0.8, 1.8), length, rng)
    strands = region.strand_sd * fibres.draw_field(rng.uniform(0.7, 1.5), rng.uniform(3, 9), rng)
    image: Field = np.asarray(strands * (1 - 0.7 * share), np.float32)
    if style.gaps:
        threads = fibres.draw_field(1.0, rng.uniform(6, 20), rng)
        streaks -= style.gaps * style.axon_contrast * np.clip(threads - rng.uniform(1, 2), 0, 1)
        image += (1 - share) * style.loose_fibres * style.axon_contrast * np.clip(threads - rng.uniform(1.2, 2.2), 0, 1)
    axons = style.axon_contrast * np.clip(1 + style.axon_change * _slow(rng, shape, 20.0), 0.2, 2)
    image += share * (axons + streaks)
    image += region.neuropil + 0.5 * region.low_sd * _slow(rng, shape, 12.0) + rng.uniform(0, 8) * _slow(rng, shape, 50.0)
    contrasts = (*region.cell_contrast, style.weak_cells)
    _paint_cells(image, labels == CELL, contrasts, style.cell_edge, style, region, rng)
    _paint_cells(image, _draw_faint_cells(labels, region, rng), (0.1, 0.5, 0.0), style.cell_edge, style, region, rng)
    _paint_vessels(image, labels == VESSEL, style, region, rng)
    for _ in range(rng.poisson(style.thin_vessels * labels.size / 256**2)):
        _paint_thin_vessel(image, region.capillary, rng)
    specks = rng.integers(0, np.array(shape) - 1, (rng.poisson(region.specks_per_mvox * 4e-6 * labels.size), 2))
    for offset in np.ndindex(2, 2):
        image[tuple((specks + offset).T)] = region.neuropil + SPECK_GREY
    return image


class Fibres:
    """The directions of fibres, along which texture is drawn."""

    def __init__(self, bundles: NDArray[np.bool_], rng: Generator) -> None:
        """Takes the directions from the bundles' edges (structure tensor), or at random where there are none."""
        from scipy.ndimage import gaussian_filter

        dy, dx = np.gradient(gaussian_filter(bundles.astype(np.float32), 3))
        yy, xx, xy = (gaussian_filter(product, 12) for product in (dy * dy, dx * dx, dy * dx))
        usual = rng.uniform(0, np.pi)
        if 0.05 < bundles.mean() < 1:
            usual = 0.5 * np.arctan2(2 * xy.mean(), (xx - yy).mean())
        weak = 0.1 * np.median(yy + xx) + 1e-6
        angle = 0.5 * np.arctan2(2 * xy + weak * np.sin(2 * usual), (xx - yy) + weak * np.cos(2 * usual)) + np.pi / 2
        angle += rng.exponential(0.2) * _slow(rng, bundles.shape, 20.0)  # fibres bend; some stretches are whorls
        y, x = np.indices(bundles.shape, np.float32)
        height, width = bundles.shape
        self.shape = bundles.shape
        self.neighbours = []
        for stride in STRIDES:
            for step in (stride, -stride):
                rows = np.rint(y + step * np.sin(angle)).astype(np.int32) % height
                self.neighbours.append((rows * width + np.rint(x + step * np.cos(angle)).astype(np.int32) % width).ravel())

    def draw_field(self, across: float, along: float, rng: Generator) -> Field:
        """Draws noise of mean 0 and standard deviation 1 that is correlated over `across` and `along` pixels."""
        from scipy.ndimage import gaussian_filter

        noise = gaussian_filter(rng.standard_normal(self.shape, np.float32), across, mode="wrap", truncate=2.5).ravel()
        variance = 0.0
        for number, stride in enumerate(STRIDES):
            if variance >= along**2:
                break
            ahead, behind = self.neighbours[2 * number : 2 * number + 2]
            # a kernel of 1/4, 1/2, 1/4 has the variance of half its squared stride
            noise = 0.5 * noise + 0.25 * (noise[ahead] + noise[behind])
            variance += stride**2 / 2
        field = noise.reshape(self.shape)
        return np.asarray((field - field.mean()) / field.std(), np.float32)


def measure_depth(mask: NDArray[np.bool_]) -> Field:
    """Returns how far pixels lie within a mask (y, x), negative outside, 0 on its edge between two pixels."""
    from scipy.ndimage import distance_transform_edt

    if mask.all() or not mask.any():
        return np.full(mask.shape, NEVER if mask.all() else -NEVER, np.float32)
    depth = distance_transform_edt(mask) - distance_transform_edt(~mask)
    return np.asarray(depth - np.where(mask, 0.5, -0.5), np.float32)


def _slow(rng: Generator, shape: tuple[int, ...], sigma: float) -> Field:
    return np.asarray(sample_slow_field(rng, (1, *shape), sigma)[0])


def _fill_bundles(labels: Labels) -> NDArray[np.bool_]:
    """Returns where axons are or would be if there were no cells and vessels."""
    from scipy.ndimage import gaussian_filter

    solid = (labels == AXON) | (labels == BACKGROUND)
    near = gaussian_filter(solid.astype(np.float32), 4.0) + 1e-6
    beneath = gaussian_filter((labels == AXON).astype(np.float32), 4.0) / near > 0.5
    return np.where(solid, labels == AXON, beneath)


def _choose_objects(mask: NDArray[np.bool_], share: float, rng: Generator) -> NDArray[np.bool_]:
    """Keeps a share of a mask's objects."""
    from scipy.ndimage import label

    objects, count = label(mask)
    return (np.append(False, rng.random(count) < share))[objects]


def _number_objects(mask: NDArray[np.bool_]) -> tuple[NDArray[np.intp], Field, Field]:
    """Returns the number of the nearest object of every pixel, from 0, the depth of the pixel and that object's radius."""
    from scipy.ndimage import distance_transform_edt, label, maximum

    objects, count = label(mask, np.ones((3, 3)))
    depth = measure_depth(mask)
    radius = np.asarray(maximum(depth, objects, np.arange(1, count + 1)), np.float32) + 0.5
    nearest = distance_transform_edt(~mask, return_distances=False, return_indices=True)
    numbers = objects[tuple(nearest)] - 1
    return numbers, depth, radius


def _paint_cells(
    image: Field,
    mask: NDArray[np.bool_],
    contrasts: tuple[float, float, float],
    edge: float,
    style: Style,
    region: Region,
    rng: Generator,
) -> None:
    """Paints the objects of a mask as cell bodies; contrasts from, to, and the share of those that are hardly seen."""
    if not mask.any():
        return
    numbers, depth, radius = _number_objects(mask)
    count = len(radius)
    contrast = rng.uniform(*contrasts[:2], count)
    weak = rng.random(count) < contrasts[2]
    contrast[weak] = rng.uniform(0.2, 0.6, weak.sum())
    within = depth - np.minimum(edge + rng.normal(0, style.edge_spread, count), 0.5 * radius)[numbers]
    share = np.clip(within / rng.uniform(1, 2) + 0.5, 0, 1) * contrast[numbers]
    distance = 1 - np.clip(within, 0, None) / radius[numbers]  # from the centre, in radii
    nucleus, nucleolus = rng.uniform(-15, 60, count)[numbers], rng.uniform(-40, 10, count)[numbers]
    ring = np.clip(1 - np.abs(distance - 0.35) / 0.3, 0, 1) * nucleus
    core = np.clip(1 - distance / 0.3, 0, 1) * nucleolus
    inner = np.where((radius >= 3.4)[numbers], ring + core, np.clip(1 - distance / 0.6, 0, 1) * nucleolus)
    image += share * (region.soma + inner - image)


def _draw_faint_cells(labels: Labels, region: Region, rng: Generator) -> NDArray[np.bool_]:
    """Draws ellipses apart from the cells that are labelled."""
    from scipy.ndimage import distance_transform_edt

    mask = np.zeros(labels.shape, bool)
    far = distance_transform_edt(labels != CELL) >= 9
    # profiles per area are cells per volume times the cell's diameter
    expected = region.faint_cells * region.cells_per_mvox * 1e-6 * region.cell_diameter[0] * labels.size
    for centre in rng.integers(0, labels.shape, (rng.poisson(expected), 2)):
        radius, aspect, angle = rng.uniform(1.8, 4.5), rng.uniform(1, 1.8), rng.uniform(0, np.pi)
        if not far[tuple(centre)]:
            continue
        box = tuple(slice(max(at - 9, 0), min(at + 10, size)) for at, size in zip(centre, labels.shape, strict=True))
        y, x = (index - at for index, at in zip(np.mgrid[box], centre, strict=True))
        along, across = np.cos(angle) * y + np.sin(angle) * x, np.cos(angle) * x - np.sin(angle) * y
        mask[box] |= along**2 / aspect + across**2 * aspect <= radius**2
    return np.asarray(mask & (labels != CELL))


def _paint_vessels(image: Field, mask: NDArray[np.bool_], style: Style, region: Region, rng: Generator) -> None:
    """Paints the objects of a mask as vessels: wide ones empty, thin ones fainter here and there."""
    if not mask.any():
        return
    numbers, depth, radius = _number_objects(mask)
    offset = style.vessel_edge + rng.normal(0, style.edge_spread, len(radius))
    within = depth - np.minimum(offset, 0.5 * radius - 0.35)[numbers]
    fade = 0.05 + 0.3 * _slow(rng, mask.shape, 12.0) + rng.normal(0, 0.15, len(radius))[numbers]
    thin = region.capillary + np.clip(fade, 0, 0.7) * (region.neuropil - region.capillary)
    grey = np.where((radius >= 3.75)[numbers], region.lumen, thin)
    image += np.clip(within + 0.5, 0, 1) * (grey - image)


def _paint_thin_vessel(image: Field, capillary: float, rng: Generator) -> None:
    length, angle = rng.gamma(2, 4), rng.uniform(0, np.pi)
    steps = np.arange(-length / 2, length / 2, 0.5)[:, None] * (np.sin(angle), np.cos(angle))
    points = np.unique(np.rint(rng.uniform(0, image.shape) + steps).astype(int), axis=0)
    points = points[((points >= 0) & (points < image.shape)).all(1)]
    image[tuple(points.T)] += rng.uniform(0.1, 0.4) * (capillary - image[tuple(points.T)])
