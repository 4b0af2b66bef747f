"""paint_labels: grey values for label maps that somebody else drew, such as real ones, in place of grown tissue."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.datasets.base import check_labels
from neurotome.datasets.phantom.image import paint_tissue, record_image
from neurotome.datasets.phantom.make import CLASSES, PAD
from neurotome.datasets.phantom.regions import Instrument, Region
from neurotome.datasets.phantom.tissue import AXON, CELL, VESSEL, Cell, Tissue, locate_fibres, shape_cell
from neurotome.errors import DatasetError

WIDEST_CAPILLARY = 7.0


def paint_labels(
    labels: NDArray[np.uint8], region: Region, instrument: Instrument, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Makes the image that a label map could have been drawn from.

    The map says nothing about what lies above and below, so every structure goes on there unchanged.

    Args:
        labels: Class ids 0..3 (background, blood vessel, cell, axon), shape (y, x).
        region: What the structures look like.
        instrument: What recording them does.
        rng: Source of everything random.

    Returns:
        uint8, shape (y, x).

    Raises:
        DatasetError: The map is not 2D or holds other labels.
    """
    if labels.ndim != 2:
        raise DatasetError(f"the label map has shape {labels.shape}; expected (y, x).")
    check_labels(labels[None], ClassSet(CLASSES), "the label map")
    # an ignored pixel has no look of its own
    known = np.where(labels < len(CLASSES), labels, 0).astype(np.uint8)
    solid = np.pad(np.repeat(known[None], 2 * PAD + 1, axis=0), ((0, 0), (PAD, PAD), (PAD, PAD)), mode="symmetric")
    fibres = locate_fibres(solid.shape, region, rng)
    bundles = (solid == AXON).astype(np.float32)
    tissue = Tissue(solid, _trace_cells(solid[PAD], region, rng), fibres, bundles, _find_lumens(solid))
    painted = paint_tissue(region, tissue, rng)
    return record_image(painted, None, region, instrument, rng)[PAD, PAD:-PAD, PAD:-PAD].copy()


def _find_lumens(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Returns the vessels wider than a capillary, bool (z, y, x)."""
    from scipy.ndimage import distance_transform_edt, label

    plane = labels[PAD] == VESSEL
    marked, count = label(plane)
    if not count:
        return np.zeros(labels.shape, bool)
    width = np.zeros(count + 1)
    np.maximum.at(width, marked.ravel(), 2 * distance_transform_edt(plane).ravel())
    return np.broadcast_to((width > WIDEST_CAPILLARY)[marked], labels.shape).copy()


def _trace_cells(plane: NDArray[np.uint8], region: Region, rng: np.random.Generator) -> tuple[Cell, ...]:
    """Returns an ellipsoid for each drawn profile of a cell, in its middle plane and of its second moments."""
    from scipy.ndimage import label

    cells = []
    marked, count = label(plane == CELL)
    for number in range(1, count + 1):
        pixels = np.argwhere(marked == number)
        radius = max(float(np.sqrt(len(pixels) / np.pi)), 1.0)
        cell = shape_cell(np.array([PAD, *pixels.mean(0)]), radius, region, rng)
        moments = np.diag([radius**2, 1.0, 1.0])
        if len(pixels) > 1:
            # an ellipse's half axis is twice the standard deviation; a pixel's own extent keeps single rows from vanishing
            moments[1:, 1:] = 4 * np.cov(pixels.T, bias=True) + np.eye(2) / 3
        values, axes = np.linalg.eigh(moments)
        cells.append(replace(cell, to_sphere=axes.T / np.sqrt(values)[:, None]))
    return tuple(cells)
