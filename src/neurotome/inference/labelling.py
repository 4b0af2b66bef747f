"""Labels of a block: its voxels are read once, and every tile is computed alike whatever block it stands in."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.blocks import Box
from neurotome.inference.geometry import Geometry
from neurotome.normalize import Scale
from neurotome.predictor import Predictor
from neurotome.resampling import PLANE, resample
from neurotome.volume import Volume

NOT_PREDICTED = 255
"""What stands in the labels where nothing was predicted."""


@dataclass(frozen=True)
class BlockLabels:
    """What was computed of a block.

    Attributes:
        labels: Ids as they are stored, uint8, shape of the block's box (z, y, x); `NOT_PREDICTED` where not asked, or air.
        confidence: 255 x the probability of the label, uint8, same shape, 0 where nothing was predicted; None if not asked.
        air_tiles: Numbers of the tiles that were asked for and not computed, because nothing is there.
    """

    labels: NDArray[np.uint8]
    confidence: NDArray[np.uint8] | None
    air_tiles: list[int]


def label_block(
    predictor: Predictor,
    volume: Volume,
    scale: Scale,
    geometry: Geometry,
    block: int,
    tiles: Sequence[int],
    *,
    confidence: bool,
    lock: AbstractContextManager[Any],
    air_below: float | None = None,
    fill: float = 0.0,
) -> BlockLabels:
    """Labels tiles of a block.

    Args:
        predictor: What predicts.
        volume: What is predicted; the block's part of it is read in one go, in its own dtype.
        scale: Of the volume's grey values.
        geometry: How the volume is cut.
        block: Number of the block.
        tiles: Numbers of its tiles that are wanted.
        confidence: Whether to return it.
        lock: Held while the predictor works, and only then.
        air_below: A tile all of whose greys are below is not predicted.
        fill: A tile that holds this value only, or 0 only, is not predicted.

    Raises:
        ImageError: Voxels cannot be read.
    """
    grid = geometry.grid
    place = grid.place(block)
    shape = [span.stop - span.start for span in place]
    labels = np.full(shape, NOT_PREDICTED, np.uint8)
    certainty = np.zeros(shape, np.uint8) if confidence else None
    air: list[int] = []
    boxes = [grid.tile_place(tile) for tile in tiles]
    if not boxes:
        return BlockLabels(labels, certainty, air)
    z, y, x = (slice(min(s.start for s in spans), max(s.stop for s in spans)) for spans in zip(*boxes, strict=True))
    region = Region.read(volume, geometry.read_box((z, y, x)))
    for tile, box in zip(tiles, boxes, strict=True):
        if _is_air(region.cut(box), (0, fill), air_below):
            air.append(int(tile))
            continue
        chosen, sure = _label_tile(predictor, region, scale, geometry, box, confidence, lock)
        inside = _shift(box, place)
        labels[inside] = predictor.classes.to_stored(chosen)
        if certainty is not None and sure is not None:
            certainty[inside] = sure
    return BlockLabels(labels, certainty, air)


def _is_air(grey: NDArray[Any], empty: tuple[float, ...], air_below: float | None) -> bool:
    first = grey[0, 0, 0]
    if first in empty and bool((grey == first).all()):  # in this order: nearly every tile ends at its first voxel
        return True
    return air_below is not None and bool(grey.max() < air_below)


@dataclass(frozen=True)
class Region:
    """Voxels of a box of a volume."""

    voxels: NDArray[Any]
    box: Box

    @classmethod
    def read(cls, volume: Volume, box: Box) -> Region:
        """Reads a box, in the volume's own dtype."""
        return cls(np.ascontiguousarray(volume.data[box]), box)

    def cut(self, box: Box) -> NDArray[Any]:
        """Returns the voxels of a box within this one."""
        return self.voxels[_shift(box, self.box)]

    def cut_planes(self, geometry: Geometry, axis: str, planes: slice, rows: slice, columns: slice) -> NDArray[Any]:
        """Returns planes with their neighbours as channels (n, channels, y, x); beyond the ends the last one is repeated.

        For what sees volumes, planes that `_extend` has extended.
        """
        along, down, across = PLANE[axis]
        view = self.voxels.transpose(along, down, across)
        rows, columns = (_shift((span,), (self.box[d],))[0] for span, d in ((rows, down), (columns, across)))
        numbers = np.arange(planes.start, planes.stop)[:, None] + np.arange(-geometry.reach, geometry.reach + 1)
        picked = np.clip(numbers, 0, geometry.grid.shape_zyx[along] - 1) - self.box[along].start
        return np.ascontiguousarray(view[:, rows, columns][picked])


def predict_box(
    predictor: Predictor,
    region: Region,
    scale: Scale,
    geometry: Geometry,
    box: Box,
    lock: AbstractContextManager[Any],
) -> NDArray[np.float32]:
    """Returns class probabilities of a box, summed over the axes along which it is predicted.

    Where a geometry has factors, planes are resampled to the model's voxel size and their probabilities back, as those of
    whole planes would be.

    Args:
        predictor: What predicts.
        region: Voxels, at least those that `Geometry.read_box` names.
        scale: Of the volume's grey values.
        geometry: How the volume is cut.
        box: What to predict.
        lock: Held while the predictor works, and only then.

    Returns:
        float32, shape (classes, z, y, x).
    """
    total = np.zeros((len(predictor.classes), *(span.stop - span.start for span in box)), np.float32)
    for axis, (factor_y, factor_x) in geometry.list_axes():
        along, down, across = PLANE[axis]
        rows, columns = geometry.plan_span(box[down], down, factor_y), geometry.plan_span(box[across], across, factor_x)
        sizes = geometry.grid.shape_zyx[down], geometry.grid.shape_zyx[across]
        target = total.transpose(1 + along, 0, 1 + down, 1 + across)  # (planes, classes, rows, columns)
        for start in range(box[along].start, box[along].stop, geometry.planes):
            planes = slice(start, min(start + geometry.planes, box[along].stop))
            seen = _extend(planes, geometry, along)
            patches = scale.apply(region.cut_planes(geometry, axis, seen, rows.read, columns.read))
            patches = resample(patches, 2, rows.read, sizes[0], rows.model_read, rows.model_size)
            patches = resample(patches, 3, columns.read, sizes[1], columns.model_read, columns.model_size)
            with lock:
                probs = predictor.predict_probs(np.ascontiguousarray(patches))
            probs = probs[_shift((planes,), (seen,))]
            probs = resample(probs, 2, rows.model_read, rows.model_size, box[down], sizes[0])
            probs = resample(probs, 3, columns.model_read, columns.model_size, box[across], sizes[1])
            target[planes.start - box[along].start : planes.stop - box[along].start] += probs
    return total


def _label_tile(
    predictor: Predictor,
    region: Region,
    scale: Scale,
    geometry: Geometry,
    box: Box,
    confidence: bool,
    lock: AbstractContextManager[Any],
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Returns class indices of a tile (z, y, x), and 255 x their probability if asked."""
    if len(geometry.axes) > 1 or geometry.is_resampled:
        probs = predict_box(predictor, region, scale, geometry, box, lock)
        labels = np.empty(probs.shape[1:], np.uint8)
        certainty = np.empty_like(labels) if confidence else None
        for z, plane in enumerate(labels):  # argmax gives 8 bytes a voxel
            plane[...] = probs[:, z].argmax(0)
            if certainty is not None:
                certainty[z] = (probs[:, z].max(0) * np.float32(255 / len(geometry.axes))).round()
        return labels, certainty
    along, down, across = PLANE[geometry.axes]
    rows, columns = geometry.plan_span(box[down], down, 1), geometry.plan_span(box[across], across, 1)
    seen = _extend(box[along], geometry, along)
    patches = region.cut_planes(geometry, geometry.axes, seen, rows.read, columns.read)
    crop = _shift((box[down],), (rows.read,))[0], _shift((box[across],), (columns.read,))[0]
    with lock:
        chosen, sure = predictor.label_patches(patches, scale, crop, confidence)
    order, kept = np.argsort(PLANE[geometry.axes]), _shift((box[along],), (seen,))
    return chosen[kept].transpose(order), None if sure is None else sure[kept].transpose(order)


def _extend(planes: slice, geometry: Geometry, along: int) -> slice:
    """Returns planes with those beside them that what sees volumes needs, as far as the volume goes."""
    return slice(max(0, planes.start - geometry.margin), min(geometry.grid.shape_zyx[along], planes.stop + geometry.margin))


def _shift(box: tuple[slice, ...], origin: tuple[slice, ...]) -> tuple[slice, ...]:
    """Returns where a box lies in one that begins at `origin`."""
    return tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, origin, strict=True))
