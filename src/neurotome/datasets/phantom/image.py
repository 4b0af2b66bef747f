"""Grey values of synthetic tissue: what each structure looks like, then what the instrument does to it.

Grey values 0..255, axes zyx, lengths in voxels of 1.17 um; numbers as in `regions`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neurotome.datasets.phantom.regions import Instrument, Region
from neurotome.datasets.phantom.tissue import (
    VESSEL,
    Cell,
    Tissue,
    locate_cell,
    sample_field,
    sample_slow_field,
)
from neurotome.datasets.phantom.tubes import Generator, Shape, stamp_tubes

# How much of a cell, not of the neuropil, shows at a distance from the centre in radii.
CELL_DISTANCE = (0.0, 0.85, 1.0, 1.15, 1.3)
CELL_SHARE = (1.0, 1.0, 0.7, 0.2, 0.0)
# Grey value within a cell relative to its soma: dark centre, or a lighter nucleus with a dark nucleolus.
NUCLEUS_DISTANCE = (0.0, 0.15, 0.3, 0.5, 0.7)
SMALLEST_WITH_NUCLEUS = 4.2  # radius

FADE_SIGMA = 12.0  # capillaries are fainter here and there
LOW_FREQUENCY_SIGMA = 12.0
GAP = 0.9  # standard deviations below the mean of the texture along fibres where a gap begins
SPECK_GREY = 140.0  # above the neuropil, at a speck's centre
AIR_GREY = 3.0
RIM_WIDTH = 4.0


def paint_tissue(region: Region, tissue: Tissue, rng: Generator) -> NDArray[np.float32]:
    """Returns the grey value of every structure, float32 (z, y, x), sharp and without any fault of the instrument."""
    shape = tissue.labels.shape
    image = region.strand_sd * sample_field(rng, tissue.fibres, region.strand_sigma)
    if tissue.beyond is not None:
        image += region.beyond_grey * tissue.beyond
    if tissue.bundles.any():
        streaks = sample_field(rng, tissue.fibres, region.streak_sigma)
        gaps = region.gap_depth * np.clip(-GAP - streaks, 0, 1)
        image += tissue.bundles * (region.axon - region.neuropil + region.streak_sd * streaks - gaps - image)
    image += region.neuropil + region.low_sd * sample_slow_field(rng, shape, LOW_FREQUENCY_SIGMA)
    for cell in tissue.cells:
        _paint_cell(image, cell, region.soma)
    shown = (tissue.labels == VESSEL).astype(np.float32) if tissue.capillaries is None else tissue.capillaries
    where = shown > 0
    fade = np.clip(0.1 + 0.3 * sample_slow_field(rng, shape, FADE_SIGMA)[where], 0, 0.6)
    image[where] += shown[where] * (1 - fade) * (region.capillary - image[where])
    image[tissue.lumens] = region.lumen
    specks = rng.integers(0, shape, (rng.poisson(region.specks_per_mvox * 1e-6 * image.size), 3))
    for offset in np.ndindex(2, 2, 2):  # a speck is two voxels wide
        image[tuple(np.minimum(specks + offset, np.array(shape) - 1).T)] = region.neuropil + SPECK_GREY
    return image


def record_image(
    image: NDArray[np.float32], air: NDArray[np.float32] | None, region: Region, instrument: Instrument, rng: Generator
) -> NDArray[np.uint8]:
    """Adds what the instrument does: air around the tissue, partial volume, phase contrast, streaks, noise, 8 bits.

    Takes painted tissue (z, y, x), which changes where there is air, and `grow_air`'s depths; returns uint8 (z, y, x).
    """
    from scipy.ndimage import gaussian_filter

    if air is not None:
        image += np.float32(instrument.rim) * np.exp(np.minimum(air, 0) / RIM_WIDTH)
        image[air > 0] = AIR_GREY
        image[(air > 0) & _grow_debris(image.shape, rng)] = rng.uniform(90, 255)
    recorded = gaussian_filter(image, instrument.blur_sigma, truncate=3)
    wide = gaussian_filter(image, instrument.edge_sigma, truncate=2.5)
    recorded += instrument.edge_gain * (recorded - wide)
    noise = gaussian_filter(
        rng.standard_normal(image.shape, np.float32), instrument.noise_sigma_zyx, mode="wrap", truncate=3
    )
    noise *= region.noise_sd / noise.std()
    # air and empty vessels carry hardly any noise: the reconstruction clips them
    recorded += noise * np.clip(recorded / (0.5 * region.neuropil), 0.15, 1)
    _add_streaks(recorded, instrument, rng)
    recorded += instrument.shift
    recorded *= instrument.gain
    if instrument.grey_step > 1:
        recorded = np.rint(recorded / np.float32(instrument.grey_step)) * np.float32(instrument.grey_step)
    return np.clip(np.rint(recorded), 0, 255).astype(np.uint8)


def _grow_debris(shape: Shape, rng: Generator) -> NDArray[np.bool_]:
    """Returns threads that lie about in the air, bool (z, y, x)."""
    threads = np.zeros(shape, bool)
    for _ in range(rng.integers(0, 5)):
        start = rng.uniform(0, shape)
        steps = np.cumsum(rng.normal(0, 0.15, (int(rng.integers(40, 400)), 3)), axis=0) * (0.2, 1, 1)
        steps += rng.normal(size=3) * (0, 1, 1)
        path = start + np.cumsum(steps / np.linalg.norm(steps, axis=1, keepdims=True), axis=0)
        stamp_tubes(threads, path, np.full(len(path), rng.uniform(0.9, 2.0)))
    return threads


def _add_streaks(image: NDArray[np.float32], instrument: Instrument, rng: Generator) -> None:
    """Draws dark vertical streaks, 20 to 40 voxels long and 2 to 4 wide, within one band of columns."""
    depth, height, width = image.shape
    count = rng.poisson(instrument.streaks * depth * height * width / 256**2)
    centre = rng.uniform(0, width)
    for _ in range(count):
        z, y = int(rng.integers(0, depth)), int(rng.integers(-20, height))
        x = int(np.clip(rng.normal(centre, 60), 1, width - 2))
        rows = slice(max(y, 0), max(y + int(rng.integers(20, 41)), 0))
        image[z, rows, x] -= instrument.streak_depth
        image[z, rows, x - 1 : x + 2] -= 0.4 * instrument.streak_depth
    if rng.random() < instrument.seam:
        image[:, :, int(rng.integers(0, width))] -= 2 * instrument.streak_depth


def _paint_cell(image: NDArray[np.float32], cell: Cell, soma: float) -> None:
    """Paints one cell body into `image` (z, y, x)."""
    box, distance = locate_cell(cell, image.shape, CELL_DISTANCE[-1])
    if cell.radius >= SMALLEST_WITH_NUCLEUS:
        centre, ring = soma + cell.nucleolus, soma + cell.nucleus
        inner = np.interp(distance, NUCLEUS_DISTANCE, (centre, 0.5 * (centre + ring), ring, soma, soma))
    else:
        inner = soma + cell.nucleolus * np.clip(1 - distance / 0.6, 0, 1)
    share = cell.contrast * np.interp(distance, CELL_DISTANCE, CELL_SHARE)
    image[box] += share * (inner - image[box])
