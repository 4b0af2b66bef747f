"""open_source: labels that are to be measured, with all that the numbers depend on: classes, voxel size, box, regions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.blocks import Box, Grid, Triple, parse_bbox
from neurotome.classes import ClassSet
from neurotome.errors import ImageError, SettingsError, unknown
from neurotome.io.meanings import find_listed_size, read_meanings
from neurotome.io.opening import open_label_volume
from neurotome.measuring.settings import MeasureSettings
from neurotome.volume import Size, Volume

BLOCK_EDGE = 256
BLOCK_VOXELS = BLOCK_EDGE**3
NOT_LABELLED = 255
"""Within this room: a voxel of which nothing is known."""
NO_CLASS = 254
"""A value that should not be there."""


@dataclass(frozen=True)
class Regions:
    """A map of whole numbers, of the labels' shape or coarser by whole numbers; 0 is a region like any other.

    Attributes:
        data: Its voxels (z, y, x).
        factors: How many of the labels' voxels one of its is long (z, y, x).
    """

    data: Any
    factors: Triple

    def read(self, box: Box) -> NDArray[np.int64]:
        """Returns the region of every voxel of a box of the labels, int64 (z, y, x)."""
        last = [size - 1 for size in self.data.shape]
        # the last voxel of a map that was rounded down stands for the rest
        spans = [
            np.minimum(np.arange(part.start, part.stop) // factor, most)
            for part, factor, most in zip(box, self.factors, last, strict=True)
        ]
        coarse = np.asarray(self.data[tuple(slice(int(span[0]), int(span[-1]) + 1) for span in spans)])
        return coarse[np.ix_(*(span - span[0] for span in spans))].astype(np.int64)


@dataclass(frozen=True)
class Source:
    """Labels and what is known of them.

    Attributes:
        labels: Integers as stored, (z, y, x), lazy where the format allows.
        classes: What they mean.
        box: Which voxels are measured.
        size_um: Edges of a voxel (z, y, x).
        size_from: Who says so.
        cell: Id of the class of cells, None if none is measured.
        flat: Whether every slice is taken by itself.
        block_zyx: Voxels that are read at once.
        regions: None if there is no map.
        made: What the labels say of how they were made, JSON.
        vessel: Id of the class of vessels, None if none is measured.
        axon: Id of the class of axons, None if no direction is measured.
    """

    path: Path
    labels: Any
    classes: ClassSet
    box: Box
    size_um: Size
    size_from: str
    cell: int | None
    flat: bool
    block_zyx: Triple
    regions: Regions | None = None
    made: Mapping[str, Any] = field(default_factory=dict)
    vessel: int | None = None
    axon: int | None = None

    @property
    def shape(self) -> Triple:
        """Voxels of the box (z, y, x)."""
        z, y, x = (part.stop - part.start for part in self.box)
        return z, y, x

    @property
    def voxel_um3(self) -> float:
        """Volume of a voxel."""
        return math.prod(self.size_um)

    def read(self, place: Box) -> NDArray[np.uint8]:
        """Returns class ids of a place within the box, uint8 (z, y, x), `NOT_LABELLED` where nothing is known.

        Raises:
            ImageError: There is a value that is no class.
        """
        where: Any = tuple(
            slice(start.start + part.start, start.start + part.stop) for start, part in zip(self.box, place, strict=True)
        )
        stored = np.asarray(self.labels[where])
        known = np.full(256, NO_CLASS, np.uint8)
        known[self.classes.first_id : self.classes.first_id + len(self.classes)] = np.arange(len(self.classes))
        known[[self.classes.stored_ignore, NOT_LABELLED]] = NOT_LABELLED
        if stored.dtype == np.uint8:
            # an array's own look-up makes whole numbers of 8 bytes of what it looks up
            labels: NDArray[np.uint8] = np.empty(stored.shape, np.uint8)
            for plane, found in zip(stored, labels, strict=True):
                found[:] = np.frombuffer(plane.tobytes().translate(known.tobytes()), np.uint8).reshape(plane.shape)
        else:
            fits = (stored >= 0) & (stored <= 255)
            labels = np.where(fits, known[np.where(fits, stored, 0)], np.uint8(NO_CLASS))
        if (wrong := labels == NO_CLASS).any():
            values, counts = np.unique(stored[wrong], return_counts=True)
            listed = ", ".join(f"{value} ({count} voxels)" for value, count in zip(values[:5], counts[:5], strict=True))
            raise ImageError(
                f"{self.path}: found {listed}{', ...' * (len(values) > 5)} within {_show_box(where)}; expected "
                f"{self.classes.describe_stored()}. Name the right classes with --classes, or give class labels, not "
                "numbered objects."
            )
        return labels


def open_source(path: Path, regions: Path | None, settings: MeasureSettings) -> Source:
    """Opens labels and the region map, and settles what is `auto`.

    Raises:
        ImageError: A file cannot be read; nobody says the voxel size or the classes; the map has another shape.
        SettingsError: The box lies outside, or the class of cells, vessels or axons is not among the classes.
    """
    volume = open_label_volume(path, stack=True)
    classes, made = read_meanings(path)
    if settings.classes:
        classes = ClassSet(settings.classes)
    if classes is not None and len(classes) > NO_CLASS:
        raise ImageError(f"{path}: found {len(classes)} classes; expected at most {NO_CLASS}.")
    if classes is None:
        raise ImageError(
            f"{path}: found labels that do not say what their ids mean; expected the names of the classes. Give them, the "
            "name of id 0 first: --classes background 'blood vessel' cell axon."
        )
    size, size_from = _find_size(volume, settings, made)
    box = parse_bbox(settings.bbox, volume.shape)
    flat = settings.as_slices or volume.shape[0] == 1 or box[0].stop - box[0].start == 1
    if not flat and (settings.cell_diameter_um != "auto" or settings.slice_thickness_um):
        raise SettingsError(
            f"--cell-diameter-um and --slice-thickness-um correct the numbers of single slices, and {path} is measured as a "
            "volume. Leave them out, or say --as-slices."
        )
    return Source(
        path,
        volume.data,
        classes,
        box,
        size,
        size_from,
        _find_class(classes, "cells", settings.cells),
        flat,
        plan_block(volume.data, settings.block),
        None if regions is None else _open_regions(regions, volume),
        made,
        _find_class(classes, "vessels", settings.vessels),
        _find_class(classes, "axons", settings.axons),
    )


def find_regions(source: Source, voxels: NDArray[np.int64], grid: Grid) -> NDArray[np.int64]:
    """Returns the region at each voxel (n, 3) of the box; the map is read block by block where there are any."""
    assert source.regions is not None
    found = np.zeros(len(voxels), np.int64)
    blocks = np.ravel_multi_index(tuple((voxels // grid.block_zyx).T), grid.blocks_zyx)
    for block in np.unique(blocks).tolist():
        place = grid.place(block)
        z, y, x = (slice(p.start + b.start, p.stop + b.start) for p, b in zip(place, source.box, strict=True))
        inside = np.flatnonzero(blocks == block)
        found[inside] = source.regions.read((z, y, x))[tuple((voxels[inside] - [p.start for p in place]).T)]
    return found


def plan_block(data: Any, block: int | str) -> Triple:
    """Returns how many voxels (z, y, x) are read at once: whole chunks, or whole slices of a file that has no chunks."""
    if block != "auto":
        return (int(block),) * 3
    _, y, x = data.shape
    chunk = getattr(data, "chunk_zyx", None)
    if chunk is None or chunk == (1, y, x):
        return max(1, BLOCK_VOXELS // (y * x)), y, x
    edges = [size * max(1, BLOCK_EDGE // size) for size in chunk]
    return edges[0], edges[1], edges[2]


def _find_size(volume: Volume, settings: MeasureSettings, made: Mapping[str, Any]) -> tuple[Size, str]:
    if settings.size_um is not None:
        return settings.size_um, "as stated"
    if volume.voxel_size_um is not None:
        return volume.voxel_size_um, "from the file"
    if (listed := find_listed_size(made)) is not None:
        return listed, "from dataset.yaml"
    raise ImageError(
        f"{volume.path}: found labels without a voxel size; expected one, because volumes and densities follow from it. "
        "State it, in micrometres: --voxel-size-um 1.17, or three numbers, z y x."
    )


def _find_class(classes: ClassSet, what: str, name: str) -> int | None:
    if name == "none":
        return None
    if name == "auto":
        return classes.find_kind(what)
    if name not in classes.names:
        raise SettingsError(f"{what}: {unknown('class', name, classes.names)} Or none, to leave {what} out.")
    return classes.index(name)


def _open_regions(path: Path, labels: Volume) -> Regions:
    regions = open_label_volume(path, stack=True)
    most = max(labels.shape)
    fitting = [
        [f for f in range(1, most + 1) if small in (size // f, -(-size // f))]
        for small, size in zip(regions.shape, labels.shape, strict=True)
    ]
    shapes = f"{path}: the region map has shape {regions.shape}, the labels {labels.shape} (z, y, x)"
    if not all(fitting):
        raise ImageError(
            f"{shapes}; expected the same, or along every axis a whole number of times less. Resample the map to the "
            "labels, nearest neighbour."
        )
    factors = _choose_factors(fitting, regions, labels)
    if factors is None:
        possible = min((axis for axis in fitting if len(axis) > 1), key=len)
        raise ImageError(
            f"{shapes}, so that it may be coarser by {' or '.join(map(str, possible[:4]))}; expected only one "
            "that fits. Give both files their voxel size, or resample the map to the labels, nearest neighbour."
        )
    return Regions(regions.data, factors)


def _choose_factors(fitting: list[list[int]], regions: Volume, labels: Volume) -> Triple | None:
    """Returns by how much a map is coarser along each axis, of what its shape allows; None if that cannot be told."""
    if regions.voxel_size_um is not None and labels.voxel_size_um is not None:
        z, y, x = (round(a / b) for a, b in zip(regions.voxel_size_um, labels.voxel_size_um, strict=True))
        if all(f in axis for f, axis in zip((z, y, x), fitting, strict=True)):
            return z, y, x
    exact = [size // small if size % small == 0 else None for small, size in zip(regions.shape, labels.shape, strict=True)]
    common = set(fitting[0]).intersection(*fitting[1:])
    if common:
        most = max(map(exact.count, common))
        best = [factor for factor in common if exact.count(factor) == most]
        return (best[0],) * 3 if len(best) == 1 else None
    z, y, x = (e or (axis[0] if len(axis) == 1 else 0) for e, axis in zip(exact, fitting, strict=True))
    return (z, y, x) if z and y and x else None


def _show_box(box: Box) -> str:
    return ",".join(f"{part.start}:{part.stop}" for part in box)
