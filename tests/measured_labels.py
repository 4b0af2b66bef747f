"""Labels whose numbers are known, for tests of measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.blocks import parse_bbox
from neurotome.classes import ClassSet
from neurotome.measuring.run import Measurements, measure_labels
from neurotome.measuring.settings import MeasureSettings
from neurotome.measuring.source import Regions, Source

CLASSES = ClassSet(("background", "blood vessel", "cell"))
TISSUE = ClassSet((*CLASSES.names, "axon"))
VESSEL, CELL, AXON = 1, 2, 3


def draw_balls(
    shape: tuple[int, ...], centres: Any, radii: Any, size_um: tuple[float, ...] = (1.0, 1.0, 1.0)
) -> NDArray[np.uint8]:
    """Balls of cells; centres in voxels, radii in micrometres."""
    labels = np.zeros(shape, np.uint8)
    for centre, radius in zip(centres, radii, strict=True):
        reach = [int(radius / edge) + 2 for edge in size_um]
        box = tuple(slice(max(0, int(c) - r), max(0, int(c) + r + 1)) for c, r in zip(centre, reach, strict=True))
        axes = [np.arange(*part.indices(size)) for part, size in zip(box, shape, strict=True)]
        offsets = np.ix_(*((axis - c) * edge for axis, c, edge in zip(axes, centre, size_um, strict=True)))
        labels[box][sum(np.square(offset) for offset in offsets) <= radius**2] = CELL
    return labels


def make_source(
    labels: NDArray[Any],
    *,
    block: tuple[int, int, int] = (256, 256, 256),
    size_um: tuple[float, float, float] = (1.0, 1.0, 1.0),
    regions: NDArray[Any] | None = None,
    bbox: str = "",
    as_slices: bool = False,
) -> Source:
    """An array as labels that are to be measured."""
    return Source(
        path=Path("labels.tif"),
        labels=labels,
        classes=TISSUE,
        box=parse_bbox(bbox, labels.shape),  # type: ignore[arg-type]
        size_um=size_um,
        size_from="as stated",
        cell=CELL,
        flat=as_slices or labels.shape[0] == 1,
        block_zyx=block,
        regions=None if regions is None else Regions(regions, (1, 1, 1)),
        vessel=VESSEL,
        axon=AXON,
    )


def measure_array(
    labels: NDArray[Any],
    *,
    block: tuple[int, int, int] = (256, 256, 256),
    size_um: tuple[float, float, float] = (1.0, 1.0, 1.0),
    regions: NDArray[Any] | None = None,
    bbox: str = "",
    **settings: Any,
) -> Measurements:
    """Measures an array without a file."""
    asked = MeasureSettings(**settings)
    source = make_source(labels, block=block, size_um=size_um, regions=regions, bbox=bbox, as_slices=asked.as_slices)
    return measure_labels(source, asked)


def place_balls(rng: np.random.Generator, shape: tuple[int, ...], count: int, radius: float) -> NDArray[np.float64]:
    """Centres of balls that do not touch; they may lie outside, so that balls reach in."""
    centres: list[NDArray[np.float64]] = []
    while len(centres) < count:
        centre = rng.uniform(-2 * radius, np.array(shape) + 2 * radius)
        if all(np.linalg.norm(centre - other) > 2 * radius + 2 for other in centres):
            centres.append(centre)
    return np.array(centres)
