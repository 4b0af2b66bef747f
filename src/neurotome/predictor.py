"""Predictor: patch in, class probabilities out; networks and pixel classifiers alike.

`predict_slice` applies one to a slice of any size, in overlapping tiles where it is large. A tile is read with the
predictor's halo and on its stride's grid, so the tiles' result equals the whole slice's as far as the halo covers what an
output pixel can see.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import product
from math import prod
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray

from neurotome.blocks import plan_blocks
from neurotome.classes import ClassSet
from neurotome.errors import SettingsError, unknown
from neurotome.normalize import Normalization, Scale

TILE = 1024
"""Edge in pixels of the square tile whose memory is used where neither a person nor the predictor asks for another."""

WHOLE = 1 << 30
"""Larger than any slice."""


def check_device(_: Any, name: str) -> None:
    """Raises a SettingsError unless a word can be the name of a device; whether this machine has it is not asked."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?|mps", name):
        raise SettingsError(unknown("device", name, ("auto", "cpu", "cuda", "cuda:1", "mps")))


BackEnd = Literal["auto", "torch", "onnxruntime", "openvino", "openvino-int8"]
"""What computes a network. auto: the fastest installed one that agrees with torch; openvino-int8: 8 bit, with a loss."""

Ranges = Sequence[Sequence[float]]
"""The smallest and the largest value that each convolution of a network reads, which openvino-int8 needs."""

Device = Annotated[str, Parameter(validator=check_device)]
"""Where a network runs: auto, cpu, cuda, cuda:1 (the second GPU) or mps."""


class Predictor(Protocol):
    """What predicts class probabilities.

    Attributes:
        classes: The classes it predicts.
        normalization: How its input must be scaled.
        in_channels: Neighbouring slices it reads as channels, odd.
        halo_zyx: Voxels around a voxel that its probabilities depend on; 0 along z where neighbours are channels. Where it
            is not, it sees volumes: the patches of a call are then slices of one that follow each other.
        stride_zyx: Tiles must begin at multiples of this; 1 along z for what predicts slices.
        voxel_size_um: Voxel size (z, y, x) of the training data, None if not known.
        bounded: False if it looks at the whole image, so that no halo makes tiles exact.
        preferred_tile: Edge in pixels of the tiles that suit it, `WHOLE` for any slice in one piece; None where any do.
        back_end: What computes it, where and how exactly, such as "torch 2.13.0, cpu, float32"; goes into records.
    """

    # ruff: disable[D102]
    @property
    def classes(self) -> ClassSet: ...
    @property
    def normalization(self) -> Normalization: ...
    @property
    def in_channels(self) -> int: ...
    @property
    def halo_zyx(self) -> tuple[int, int, int]: ...
    @property
    def stride_zyx(self) -> tuple[int, int, int]: ...
    @property
    def voxel_size_um(self) -> tuple[float, float, float] | None: ...
    @property
    def bounded(self) -> bool: ...
    @property
    def preferred_tile(self) -> int | None: ...
    @property
    def back_end(self) -> str: ...

    # ruff: enable[D102]
    def predict_probs(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns class probabilities (n, classes, y, x) of scaled grey values (n, in_channels, y, x); any y and x."""
        ...

    def label_patches(
        self, grey: NDArray[Any], scale: Scale, crop: tuple[slice, slice], confidence: bool
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Labels patches, without probabilities that leave the device.

        Args:
            grey: Unscaled grey values of the volume's dtype, shape (n, in_channels, y, x).
            scale: How they are scaled.
            crop: Rows and columns of the patches that are wanted.
            confidence: Whether the second result is wanted.

        Returns:
            Class indices from 0, shape (n, y', x'), and the chosen class's probability times 255, rounded; None if it is not
            wanted.
        """
        ...


def label_by_probs(
    predictor: Predictor, grey: NDArray[Any], scale: Scale, crop: tuple[slice, slice], confidence: bool
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Does what `Predictor.label_patches` promises for a predictor that gives probabilities alone."""
    probs = predictor.predict_probs(scale.apply(grey))[:, :, crop[0], crop[1]]
    labels = probs.argmax(1).astype(np.uint8)
    return labels, (probs.max(1) * 255).round().astype(np.uint8) if confidence else None


def predict_slice(
    predictor: Predictor,
    image: Any,
    tile: int | None = None,
    halo: int | None = None,
    on_tile: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Predicts a slice, or several of one shape together, whole if they are at most one tile large, otherwise in tiles.

    Args:
        predictor: A network or pixel classifier.
        image: Scaled grey values of a slice and its neighbours, float32, shape (in_channels, y, x), may be lazy; or of
            several, shape (n, in_channels, y, x), which a predictor of volumes takes as one volume.
        tile: Edge of a tile's core in pixels, rounded up to the predictor's stride; what suits it if not given.
        halo: Pixels read around a core; the predictor's own if not given.
        on_tile: Called with the core's number of pixels in a slice after each tile.

    Returns:
        Class probabilities, float32, shape (classes, y, x), or (n, classes, y, x).
    """
    *several, _, height, width = image.shape
    cores = choose_cores(predictor, (height, width), tile, halo, several[0] if several and predictor.halo_zyx[0] else 1)
    margins = predictor.halo_zyx[1:] if halo is None else (halo, halo)
    probs = np.empty((*several, len(predictor.classes), height, width), np.float32)
    for block in plan_blocks((height, width), cores, margins, predictor.stride_zyx[1:]):
        patch = image[(*(slice(None),) * (image.ndim - 2), *block.read)]
        core = predictor.predict_probs(patch if several else patch[None])[..., block.crop[0], block.crop[1]]
        probs[..., block.core[0], block.core[1]] = core if several else core[0]
        if on_tile is not None:
            on_tile(core[0, 0].size)
    return probs


def choose_cores(
    predictor: Predictor,
    shape: tuple[int, int],
    tile: int | None = None,
    halo: int | None = None,
    slices: int = 1,
) -> tuple[int, int]:
    """Returns the edges (y, x) of the cores in which `predict_slice` predicts a slice of this shape, or so many at once.

    Where nobody asks for a tile, they are those for which the fewest pixels are read, of tiles that read no more than a
    square core of `TILE` pixels does; where all read more, the smallest.
    """
    stride = predictor.stride_zyx[1:]
    margins = predictor.halo_zyx[1:] if halo is None else (halo, halo)
    asked = predictor.preferred_tile if tile is None else tile
    if asked is not None:
        edge = min(asked, max(shape))
        return -(-edge // stride[0]) * stride[0], -(-edge // stride[1]) * stride[1]
    most = prod(
        -(-TILE // step) * step + 2 * -(-margin // step) * step for margin, step in zip(margins, stride, strict=True)
    )
    options = []
    for size, margin, step in zip(shape, margins, stride, strict=True):
        usual = min(max(step, int(TILE / slices**0.5)), size)
        edges = {-(-size // (parts * step)) * step for parts in range(1, -(-size // usual) + 1)}
        reads = [[b.read[0].stop - b.read[0].start for b in plan_blocks((size,), (e,), (margin,), (step,))] for e in edges]
        options.append([(sum(read), max(read), edge) for edge, read in zip(edges, reads, strict=True)])
    pairs = list(product(*options))
    most = max(most // slices, min(y[1] * x[1] for y, x in pairs))
    _, rows, columns = min((y[0] * x[0], y[2], x[2]) for y, x in pairs if y[1] * x[1] <= most)
    return rows, columns
