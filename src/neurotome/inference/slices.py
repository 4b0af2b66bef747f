"""A predictor applied to a volume slice by slice, in memory that does not grow with the number of slices."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from neurotome.classes import ClassSet
from neurotome.inference.jobs import Output
from neurotome.inference.overlay import Painter
from neurotome.io.lazy_array import LazyArray, Place
from neurotome.io.sink import Sink, create_image, create_labels
from neurotome.models.back_ends.heap import release_heap, share_heap
from neurotome.normalize import Scale
from neurotome.predictor import Predictor, choose_cores, predict_slice
from neurotome.resampling import choose_factors, count_resampled
from neurotome.volume import Volume

SLAB = 16
"""Slices that a predictor of volumes labels at once; more take more memory, fewer read the slices beside them more often."""


def predict_slices(
    predictor: Predictor,
    volume: Volume,
    scale: Scale | None = None,
    *,
    tile: int | Literal["auto"] = "auto",
    halo: int | Literal["auto"] = "auto",
    on_progress: Callable[[float], None] | None = None,
) -> Iterator[NDArray[np.float32]]:
    """Predicts a volume slice by slice, at the predictor's voxel size if both sizes are known and differ.

    Args:
        predictor: A network or pixel classifier.
        volume: What to predict; may be lazy.
        scale: Its grey scale, where it shares one with others; None: its own.
        tile: Edge of a tile in pixels; auto: the predictor's own.
        halo: Pixels read around a tile; auto: the predictor's own.
        on_progress: Called with the Mpixels done so far.

    Yields:
        Class probabilities of every slice, float32, shape (classes, y, x).

    Raises:
        ImageError: The volume has no scale that fits the predictor, or a voxel size that cannot be right.
    """
    factors = choose_factors(volume, "z", predictor.voxel_size_um)
    shape = count_resampled(volume.shape[1], factors[0]), count_resampled(volume.shape[2], factors[1])
    edge, margin = None if tile == "auto" else tile, None if halo == "auto" else halo
    together = min(SLAB + 2 * predictor.halo_zyx[0], volume.shape[0]) if predictor.halo_zyx[0] else 1
    rows, columns = choose_cores(predictor, shape, edge, margin, together)
    if (rows < shape[0] or columns < shape[1]) and not predictor.bounded:
        warnings.warn(
            f"{volume.path or volume.name}: this network looks at the whole image at once, so tiles of {rows} x {columns} "
            f"pixels only approximate it. Raise tile above {max(shape)} if memory allows.",
            stacklevel=2,
        )
    scale = scale or predictor.normalization.scale_for(volume)
    done = 0.0

    def count(pixels: int, slices: int = 1) -> None:
        nonlocal done
        done += slices * pixels * (volume.shape[1] * volume.shape[2]) / (shape[0] * shape[1])
        if on_progress is not None:
            on_progress(done / 1e6)

    share_heap()
    try:
        if predictor.halo_zyx[0]:
            for first, stop in volume.plan_slabs(SLAB):
                grey, kept = volume.read_slab(first, stop, predictor.halo_zyx[0])
                slab = resize(scale.apply(grey), shape)[:, None]
                found = predict_slice(predictor, slab, edge, margin, partial(count, slices=stop - first))
                yield from (resize(probs, volume.shape[1:]) for probs in found[kept])
            return
        for z in range(volume.shape[0]):
            image: Any = _open_context(volume, z, predictor.in_channels, scale)
            if shape != volume.shape[1:]:
                image = resize(image[:, :, :], shape)
            probs = predict_slice(predictor, image, edge, margin, count)
            yield resize(probs, volume.shape[1:])
    finally:
        release_heap()


def label_slices(
    probabilities: Iterable[NDArray[np.float32]],
    files: Mapping[Output, Path],
    volume: Volume,
    classes: ClassSet,
    painter: Painter | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """Labels slices and writes files meanwhile, which appear when all slices were taken, labels last.

    Args:
        probabilities: Of the volume's slices, in their order, as `predict_slices` yields them.
        files: `labels`, as the ids that the dataset has; `confidence`, the probability of the chosen class times 255;
            `uncertainty`, 255 - confidence; `overlay`, by the painter.
        volume: What was predicted; the files get its voxel size.
        classes: Names and colours of the labels.
        painter: Needed for an overlay.

    Yields:
        Class ids of every slice, uint8, shape (y, x).
    """
    with contextlib.ExitStack() as stack:
        sinks: dict[Output, Sink] = {}
        for kind, path in files.items():
            if kind == "labels":
                sinks[kind] = stack.enter_context(create_labels(path, volume.shape, classes, volume))
            else:
                sinks[kind] = stack.enter_context(create_image(path, volume.shape, np.uint8, kind == "overlay", volume))
        for z, probs in enumerate(probabilities):
            labels = probs.argmax(0).astype(np.uint8)
            confidence = (probs.max(0) * 255).round().astype(np.uint8)
            values = {"labels": labels, "confidence": confidence, "uncertainty": 255 - confidence}
            if painter is not None:
                values["overlay"] = painter.paint(z, labels)
            for kind, sink in sinks.items():
                sink.write((slice(z, z + 1), slice(None), slice(None)), values[kind][None])
            yield labels


def _open_context(volume: Volume, z: int, slices: int, scale: Scale) -> LazyArray:
    """Returns a slice with its neighbours, scaled piece by piece as it is read: hundreds of slices would not fit whole."""

    def read(place: Place) -> NDArray[np.float32]:
        return scale.apply(volume.read_context(z, slices, *place[1:]))

    return LazyArray(volume.path or Path(volume.name), (slices, *volume.shape[1:]), np.float32, read)


def resize(planes: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Returns planes (c, y, x) in another size: linear interpolation, and where they shrink, a triangle as wide as a pixel.

    Weights are not negative and sum to 1, so constants stay and probabilities still sum to 1; the outer edges stay put.
    """
    if planes.shape[1:] == shape:
        return planes
    # not torch's interpolate: with antialias it returns the first row everywhere for images one pixel wide (2.13)
    images = (Image.fromarray(plane).resize(shape[::-1], Image.Resampling.BILINEAR) for plane in planes)
    return np.stack([np.asarray(image) for image in images])
