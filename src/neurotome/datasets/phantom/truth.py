"""What is true of a phantom's labels: cells, vessels and shares of classes; tables against which measures are tested."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neurotome.atomic import write_text
from neurotome.datasets.base import Dataset
from neurotome.datasets.phantom.regions import VOXEL_SIZE_UM
from neurotome.datasets.phantom.tissue import CELL, VESSEL, Tissue


class CellRow(NamedTuple):
    """A labelled cell.

    Attributes:
        image: The cutout in which it is.
        centre_z_um: Of the ellipsoid that it is, from the first voxel of the cutout; may lie outside.
        centroid_z_um: Of the voxels that are labelled.
        volume_um3: Of these voxels.
        equivalent_diameter_um: Of a ball of this volume.
        made_diameter_um: Of a ball of the ellipsoid's volume.
        cut_by_border: Whether a labelled voxel lies at the border of the cutout.
    """

    image: str
    centre_z_um: float
    centre_y_um: float
    centre_x_um: float
    centroid_z_um: float
    centroid_y_um: float
    centroid_x_um: float
    volume_um3: float
    equivalent_diameter_um: float
    made_diameter_um: float
    cut_by_border: bool


class VesselRow(NamedTuple):
    """A vessel of which something is labelled. Vessels that meet have an end in common.

    Attributes:
        image: The cutout in which it is.
        kind: capillary, dash (a short one along the fibres) or lumen (a wide one).
        length_um: Of its middle line within the cutout; what runs within a lumen is part of that.
        radius_um: As labelled, mean.
        start_z_um: Where its line begins, from the first voxel of the cutout; may lie outside.
        stop_z_um: Where it ends.
    """

    image: str
    kind: str
    length_um: float
    radius_um: float
    start_z_um: float
    start_y_um: float
    start_x_um: float
    stop_z_um: float
    stop_y_um: float
    stop_x_um: float


class Truth(NamedTuple):
    """Cells and vessels of some cutouts."""

    cells: list[CellRow]
    vessels: list[VesselRow]


def list_vessels(tissue: Tissue, labels: NDArray[np.uint8], pad: int, image: str) -> list[VesselRow]:
    """Returns the vessels whose middle line is labelled somewhere in a cutout, which lies `pad` voxels within the tissue."""
    rows = []
    for course in tissue.courses:
        middles = (course.points[1:] + course.points[:-1]) / 2
        z, y, x = np.rint(middles).astype(np.int64).T - pad
        inside = ((z >= 0) & (y >= 0) & (x >= 0)) & ((z < len(labels)) & (y < labels.shape[1]) & (x < labels.shape[2]))
        at = z[inside], y[inside], x[inside]
        inside[inside] = labels[at] == VESSEL
        if course.kind != "lumen":
            inside[inside] = ~tissue.lumens[tuple(np.rint(middles[inside]).astype(np.int64).T)]
        length = np.linalg.norm(np.diff(course.points, axis=0), axis=1)[inside].sum()
        if length > 0:
            ends = (np.concatenate([course.points[0], course.points[-1]]) - pad).tolist()
            sizes = float(length) * VOXEL_SIZE_UM, course.radius * VOXEL_SIZE_UM
            rows.append(VesselRow._make((image, course.kind, *sizes, *(end * VOXEL_SIZE_UM for end in ends))))
    return rows


def list_cells(tissue: Tissue, labels: NDArray[np.uint8], pad: int, image: str) -> list[CellRow]:
    """Returns the cells that have a voxel in a cutout's labels, which lie `pad` voxels within the tissue."""
    from scipy import ndimage

    assert tissue.owners is not None
    owners = np.where(labels == CELL, tissue.owners[(slice(pad, -pad),) * 3], 0)
    numbers = np.unique(owners[owners > 0])
    voxels = np.bincount(owners.ravel(), minlength=len(tissue.cells) + 1)
    cut = {number for axis in range(3) for end in (0, -1) for number in owners.take(end, axis).ravel().tolist()}
    rows = []
    for number, centroid in zip(numbers.tolist(), ndimage.center_of_mass(owners > 0, owners, numbers), strict=True):
        cell, volume = tissue.cells[number - 1], float(voxels[number]) * VOXEL_SIZE_UM**3
        places = (np.concatenate([cell.centre - pad, centroid]) * VOXEL_SIZE_UM).tolist()
        sizes = volume, (6 * volume / math.pi) ** (1 / 3), 2 * cell.radius * VOXEL_SIZE_UM
        rows.append(CellRow._make((image, *places, *sizes, number in cut)))
    return rows


def write_truth(folder: Path, dataset: Dataset, truth: Truth) -> None:
    """Writes cells.csv, vessels.csv and fractions.csv."""
    shares: list[tuple[Any, ...]] = [("image", "class", "fraction")]
    for cutouts in dataset.splits.values():
        for cutout in cutouts:
            counts = np.bincount(np.asarray(cutout.labels).ravel(), minlength=len(dataset.classes))
            shares += [
                (cutout.name, name, count / counts.sum())
                for name, count in zip(dataset.classes.names, counts.tolist(), strict=True)
            ]
    cells, vessels = [CellRow._fields, *truth.cells], [VesselRow._fields, *truth.vessels]
    for name, lines in (("cells", cells), ("vessels", vessels), ("fractions", shares)):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        write_text(folder / f"{name}.csv", text.getvalue())
