"""The smallest halo that changes nothing that matters, measured with this model on this image."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from neurotome.blocks import Box, Grid
from neurotome.inference.geometry import Geometry, find_stride
from neurotome.inference.labelling import Region, predict_box
from neurotome.io.chunks import list_chunks
from neurotome.normalize import Scale
from neurotome.predictor import TILE, Predictor
from neurotome.resampling import PLANE, choose_factors
from neurotome.volume import Volume

AGREEMENT = 0.9999
"""Share of a tile's labels that a smaller halo must keep."""

CORE = 128
"""Edge of a measured tile in pixels of the model: what a smaller halo changes is strongest at a tile's border."""

MOST_PLACES = 6
FEWEST_PLACES = 2
TRIED_PLACES = 48
"""Places that are read until so many are found that are not empty."""

MOST_LISTED = 10_000
"""Places of which the listing of a sparse volume is asked whether anything is stored there."""

LONGEST_S = 40.0
"""Seconds that measuring may take, roughly: a slow model is measured at fewer places."""


@dataclass(frozen=True)
class HaloChoice:
    """A halo and how it was found.

    Attributes:
        halo: Pixels of the model to read around a tile.
        difference: Largest difference of a probability from that with the full halo, at the measured places.
        agreement: Share of a tile's labels that are those with the full halo.
        full: Pixels that the model can see.
        measured: All this, as the end of a sentence about the halo.
    """

    halo: int
    difference: float
    agreement: float
    full: int
    measured: str


def choose_halo(
    predictor: Predictor, volume: Volume, scale: Scale, *, axes: str, tolerance: float, tile: int = TILE
) -> HaloChoice:
    """Returns the smallest halo that keeps probabilities within a tolerance and 99.99 % of the labels.

    At places spread over the volume, tiles are predicted with the full halo and with smaller ones, multiples of the stride,
    by bisection. Places that hold one value only are left out. What differs lies at a tile's border, so small tiles show it,
    and labels that change are counted per length of it.

    Args:
        predictor: A network or pixel classifier.
        volume: What will be predicted.
        scale: Of its grey values.
        axes: Along which axes, as of `Geometry`.
        tolerance: Largest difference of a probability; 0: the full halo, without measuring.
        tile: Edge in pixels of the volume of the tiles to which the share of the labels refers.

    Raises:
        ImageError: The volume cannot be read, or its voxel size does not fit.
    """
    full, stride = max(predictor.halo_zyx[1:]), find_stride(predictor)
    if tolerance <= 0 or full == 0:
        return HaloChoice(full, 0.0, 1.0, full, f"The halo is {full} pixels, all that the model can see.")
    if not predictor.bounded:
        return HaloChoice(
            full, 0.0, 1.0, full, f"The halo is {full} pixels; the model sees whole images, so that tiles approximate them."
        )
    began = time.monotonic()
    places = _Places(predictor, volume, scale, axes, full, stride)
    full_probs = places.predict(0, full) if places.boxes else None
    if full_probs is None:
        return HaloChoice(
            full, 0.0, 1.0, full, f"The halo is {full} pixels, all that the model can see; there is nothing to measure on."
        )
    passes = 1 + np.log2(full / stride + 1)  # of each place
    affordable = int(LONGEST_S / max((time.monotonic() - began) * passes, 1e-9))
    count = min(len(places.boxes), max(FEWEST_PLACES, affordable))
    expected = [full_probs, *(places.predict(i, full) for i in range(1, count))]

    def measure(halo: int) -> tuple[float, float]:
        difference, changed = 0.0, 0.0
        for i, probs in enumerate(expected):
            found = places.predict(i, halo)
            difference = max(difference, float(np.abs(found - probs).max()))
            if difference > tolerance:
                return difference, 0.0
            shape = sorted(found.shape[1:])[1:]
            flipped = np.count_nonzero(found.argmax(0) != probs.argmax(0))
            changed += flipped / (2 * sum(shape)) * 4 / max(min(tile, min(volume.shape[1:])), *shape)
        return difference, float(1 - changed / len(expected))

    low, high, best = -1, -(-full // stride), (0.0, 1.0)
    while high - low > 1:
        middle = (low + high) // 2
        found = measure(middle * stride)
        if found[0] <= tolerance and found[1] >= AGREEMENT:
            high, best = middle, found
        else:
            low = middle
    halo = min(full, high * stride)
    difference, agreement = best
    edges = " x ".join(str(n) for n in sorted(expected[0].shape[1:])[1:])
    kept = (
        f"probabilities differ by at most {difference:.2g}, and {100 * agreement:.4f} % of a tile's labels are the same"
        if halo < full
        else "no smaller one keeps to it"
    )
    return HaloChoice(
        halo,
        difference,
        agreement,
        full,
        f"of {full} that the model can see; measured at {count} places of {edges} pixels "
        f"with a tolerance of {tolerance:g}, {kept}",
    )


class _Places:
    """Small tiles spread over a volume, predicted one by one with any halo."""

    def __init__(self, predictor: Predictor, volume: Volume, scale: Scale, axes: str, full: int, stride: int) -> None:
        """Finds the places that are not empty; along the axes in turn."""
        self.predictor, self.scale = predictor, scale
        self.geometries: list[Geometry] = []
        self.regions: list[Region] = []
        self.boxes: list[Box] = []
        chunks, tried = list_chunks(volume.data), 0
        for number in range(MOST_LISTED):
            axis = axes[len(self.boxes) % len(axes)]
            factors = choose_factors(volume, axis, predictor.voxel_size_um)
            grid = Grid(volume.shape, (1, 1, 1), (1, 1, 1))
            geometry = Geometry(axis, grid, full, stride, predictor.in_channels // 2, 1, (factors,), predictor.halo_zyx[0])
            box = _place_core(geometry, number)
            if all(box[d].stop - box[d].start == volume.shape[d] for d in PLANE[axis][1:]):
                return  # tiles as large as planes have no seams
            if chunks is not None and not chunks.meets(box):
                continue
            grey, tried = volume.data[box], tried + 1
            if grey.min() != grey.max():
                self.boxes.append(box)
                self.geometries.append(geometry)
                self.regions.append(Region.read(volume, geometry.read_box(box)))
            if len(self.boxes) == MOST_PLACES or tried == TRIED_PLACES:
                break

    def predict(self, i: int, halo: int) -> NDArray[np.float32]:
        """Returns probabilities (classes, z, y, x) of a place."""
        geometry = replace(self.geometries[i], halo=halo)
        return predict_box(self.predictor, self.regions[i], self.scale, geometry, self.boxes[i], contextlib.nullcontext())


def _place_core(geometry: Geometry, number: int) -> Box:
    """Returns the box of a tile, far enough from the plane's border that its full halo is inside, where there is room.

    Places follow a low-discrepancy sequence (Roberts 2018, "The unreasonable effectiveness of quasirandom sequences"); tiles
    begin at multiples of the stride, as those of a grid do.
    """
    axis, factors = geometry.list_axes()[0]
    box = [slice(0, 0)] * 3
    shares = [(0.5 + (number + 1) * 0.8191725133961645 ** (d + 1)) % 1 for d in range(3)]
    along, *plane = PLANE[axis]
    z = int(shares[along] * geometry.grid.shape_zyx[along])
    box[along] = slice(z, z + 1)
    for d, factor in zip(plane, factors, strict=True):
        size, halo, stride = geometry.grid.shape_zyx[d], round(geometry.halo / factor), geometry.stride
        edge = min(size, max(1, round(max(CORE, 2 * stride) / factor)))
        room = size - edge - 2 * halo
        start = halo + int(shares[d] * (room + 1)) if room >= 0 else (size - edge) // 2
        start = start // stride * stride
        box[d] = slice(start, min(start + edge, size))
    return box[0], box[1], box[2]
