"""Predictor: patch in, class probabilities out; networks and pixel classifiers alike.

`predict_slice` applies one to a slice of any size, in overlapping tiles where it is large. A tile is read with the
predictor's halo and on its stride's grid, so the tiles' result equals the whole slice's as far as the halo covers what an
output pixel can see.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from neurotome.blocks import plan_blocks
from neurotome.classes import ClassSet
from neurotome.normalize import Normalization


class Predictor(Protocol):
    """What predicts class probabilities.

    Attributes:
        classes: The classes it predicts.
        normalization: How its input must be scaled.
        in_channels: Neighbouring slices it reads as channels, odd.
        halo: Pixels around a pixel that its probabilities depend on.
        stride: Tiles must begin at multiples of this.
    """

    @property
    def classes(self) -> ClassSet: ...  # noqa: D102

    @property
    def normalization(self) -> Normalization: ...  # noqa: D102

    @property
    def in_channels(self) -> int: ...  # noqa: D102

    @property
    def halo(self) -> int: ...  # noqa: D102

    @property
    def stride(self) -> int: ...  # noqa: D102

    def predict_probs(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns class probabilities.

        Args:
            patches: Scaled grey values, shape (n, in_channels, y, x); any y and x.

        Returns:
            Shape (n, classes, y, x), summing to 1 over the classes.
        """
        ...


class Slice(Protocol):
    """A scaled slice with its neighbours, an array or what reads one piece by piece."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, y and x."""
        ...

    def __getitem__(self, key: tuple[slice, slice, slice], /) -> NDArray[np.float32]:
        """Returns a piece."""
        ...


def predict_slice(
    predictor: Predictor,
    image: Slice,
    tile: int = 1024,
    halo: int | None = None,
    on_tile: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Predicts one slice, whole if it is at most one tile large, otherwise in tiles.

    A predictor may have an `own_tile`, the edge of tiles that suit it better than those asked for.

    Args:
        predictor: A network or pixel classifier.
        image: Scaled grey values of a slice and its neighbours, shape (in_channels, y, x).
        tile: Edge of a tile's core in pixels; rounded up to the predictor's stride.
        halo: Pixels read around a core; the predictor's own if not given.
        on_tile: Called with the core's number of pixels after each tile.

    Returns:
        Class probabilities, float32, shape (classes, y, x).
    """
    height, width = image.shape[1:]
    stride = predictor.stride
    tile = min(getattr(predictor, "own_tile", None) or tile, max(height, width))
    edge = -(-tile // stride) * stride
    margin = predictor.halo if halo is None else halo
    probs = np.empty((len(predictor.classes), height, width), np.float32)
    for block in plan_blocks((height, width), (edge, edge), (margin, margin), (stride, stride)):
        patch = image[:, block.read[0], block.read[1]]
        found = predictor.predict_probs(patch[None])[0]
        probs[(slice(None), *block.core)] = found[(slice(None), *block.crop)]
        if on_tile is not None:
            on_tile(block.shape[0] * block.shape[1])
    return probs
