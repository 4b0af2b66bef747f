"""Grey values of synthetic tissue: what each structure looks like, then blur, noise and other faults.

Grey values 0..255, axes zyx, lengths in voxels of 1.17 um; numbers as in `phantom_regions`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neurotome.datasets.phantom_regions import Region
from neurotome.datasets.phantom_tissue import AXON, VESSEL, Cell, Generator, Tissue, locate_cell, sample_field

CAPILLARY_GREY = 20.0
LUMEN_GREY = -30.0  # the reconstruction undershoots and is clipped: large lumina are 0 with hardly any noise

# Phase contrast: offset from the neuropil at a distance (voxels) outside a large lumen. Measured at 1..5
# voxels: -62, 13, 35, 28, 9. Blur takes from the peak, so what is painted stands above it.
HALO_DISTANCE = (0.0, 0.5, 1.0, 1.6, 2.3, 3.0, 4.0, 5.0, 6.0)
HALO_OFFSET = (-140.0, -110.0, -72.0, -10.0, 40.0, 50.0, 34.0, 10.0, 0.0)
# Peak of a vessel's halo by its calibre, as a share of the large ones' (4, 17 and 35 grey levels)
HALO_CALIBRE = (5.0, 10.5, 18.0)
HALO_SHARE = (0.11, 0.49, 1.0)

# A cell's grey value by distance from the centre in radii: small cells are dark throughout, large ones show a
# lighter nucleus within the dark soma. The share is how much of the cell, not of the neuropil, shows there.
CELL_DISTANCE = (0.0, 0.85, 1.0, 1.15, 1.3, 1.5)
CELL_SHARE = (1.0, 1.0, 0.75, 0.2, -0.12, 0.0)  # below 0: a thin bright rim, as around vessels
SOMA_GREY = 28.0
NUCLEUS_DISTANCE = (0.0, 0.15, 0.3, 0.5, 0.65)
NUCLEUS_RING_GREY = 80.0
SMALLEST_WITH_NUCLEUS = 4.2  # radius

STREAK_SIGMA = (2.0, 1.5, 12.0)  # texture across (z, plane) and along the fibres

EDGE_SIGMA = 0.7  # edges are 2 voxels wide
NOISE_SIGMA_ZYX = (1.2, 1.45, 1.0)  # autocorrelation at lag 1: y 0.89, x 0.75; z is assumed
LOW_FREQUENCY_SIGMA = 12.0
SPECK_GREY = 140.0  # above the neuropil, at a speck's centre


def paint_tissue(region: Region, tissue: Tissue, rng: Generator) -> NDArray[np.float32]:
    """Gives every structure its grey value, without any fault of the instrument but the phase-contrast halo.

    Args:
        region: What the structures look like.
        tissue: Where they are.
        rng: Source of the fibres' texture.

    Returns:
        float32, shape (z, y, x).
    """
    image = np.full(tissue.labels.shape, region.neuropil, np.float32)
    axons = (tissue.labels == AXON).astype(np.float32)
    image += axons * (region.axon - region.neuropil)
    image += (region.strand_sd + axons * (region.streak_sd - region.strand_sd)) * sample_field(
        rng, tissue.fibres, STREAK_SIGMA
    )
    for cell in tissue.cells:
        _paint_cell(image, cell)
    halo = np.interp(tissue.lumen_distance, HALO_DISTANCE, HALO_OFFSET)
    share = np.interp(tissue.lumen_calibre, HALO_CALIBRE, HALO_SHARE)
    image += np.where(halo > 0, share, 1) * halo
    image[tissue.labels == VESSEL] = CAPILLARY_GREY
    image[tissue.lumen_distance <= 0] = LUMEN_GREY
    return image


def add_artefacts(image: NDArray[np.float32], region: Region, rng: Generator) -> NDArray[np.uint8]:
    """Adds what the instrument does: partial volume, slow brightness changes, specks, noise, 8 bits.

    Args:
        image: Grey values, shape (z, y, x).
        region: How strong the faults are.
        rng: Source of everything random.

    Returns:
        uint8, shape (z, y, x), clipped to 0..255.
    """
    from scipy.ndimage import gaussian_filter

    blurred = gaussian_filter(image, EDGE_SIGMA)
    bright = blurred > region.neuropil / 2  # air and empty vessels stay dark
    grid = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in image.shape), indexing="ij"))
    slow = sample_field(rng, grid, (LOW_FREQUENCY_SIGMA,) * 3)
    blurred += bright * region.low_sd * slow
    specks = np.zeros_like(image)
    count = rng.poisson(region.specks_per_mvox * 1e-6 * image.size)
    specks[tuple(rng.integers(0, image.shape, (count, 3)).T)] = 1
    blurred += SPECK_GREY * (2 * np.pi) ** 1.5 * gaussian_filter(specks, 1.0)
    noise = gaussian_filter(rng.standard_normal(image.shape, np.float32), NOISE_SIGMA_ZYX, mode="wrap")
    blurred += region.noise_sd / noise.std() * noise
    return np.clip(np.rint(blurred), 0, 255).astype(np.uint8)


def _paint_cell(image: NDArray[np.float32], cell: Cell) -> None:
    """Paints one cell body into `image` (z, y, x)."""
    box, distance = locate_cell(cell, image.shape, CELL_DISTANCE[-1])
    if cell.radius >= SMALLEST_WITH_NUCLEUS:
        centre = (cell.nucleus, 0.5 * (cell.nucleus + NUCLEUS_RING_GREY), NUCLEUS_RING_GREY)
        inner = np.interp(distance, NUCLEUS_DISTANCE, (*centre, SOMA_GREY, SOMA_GREY))
    else:
        inner = np.full(distance.shape, SOMA_GREY)
    share = cell.contrast * np.interp(distance, CELL_DISTANCE, CELL_SHARE)
    image[box] += share * (inner - image[box])
