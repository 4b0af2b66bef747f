"""Extractor: a patch in, features of the pixels of any window of it out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import ImageError, ModelError
from neurotome.normalize import Normalization

Read = Callable[[slice, slice], NDArray[np.float32]]
"""Takes rows and columns of a patch and returns the features of that window, float32, shape (features, y, x); from several
threads at once."""


class Extractor(ABC):
    """What computes features.

    Attributes:
        names: One per feature.
        in_channels: Neighbouring slices it reads, odd.
        halo: Pixels around a pixel that its features depend on.
        stride: Patches must begin at multiples of this.
        bounded: False if the features look at the whole image, so that no halo makes tiles exact.
        normalization: How the grey values must be scaled; None where it does not matter.
        window: Edge in pixels of the windows that suit it: large enough that little is computed twice, small enough for the
            caches and for several threads.
    """

    names: tuple[str, ...]
    in_channels: int
    halo: int
    stride: int = 1
    bounded: bool = True
    normalization: Normalization | None = None
    window: int

    @abstractmethod
    def prepare(self, patch: NDArray[np.float32]) -> Read:
        """Does what all windows of a patch share.

        Args:
            patch: Scaled grey values, shape (in_channels, y, x); any y and x.

        Raises:
            ModelError: The patch has another number of channels.
            ImageError: It is empty, or holds NaN or infinity.
        """


def check_patch(patch: NDArray[np.float32], channels: int) -> None:
    """Checks a patch before features are computed from it; raises what `Extractor.prepare` does."""
    if patch.ndim != 3 or patch.shape[0] != channels:
        raise ModelError(
            f"found a patch of shape {patch.shape}; these features are computed from ({channels}, y, x): {channels} "
            f"slice{'s' * (channels != 1)} as input channels. Read the image with that many."
        )
    if patch.size == 0:
        raise ImageError(f"found a patch of shape {patch.shape}; expected at least one pixel.")
    # a tree would take NaN for a value like any other
    if not np.isfinite(patch).all():
        raise ImageError(
            f"{np.count_nonzero(~np.isfinite(patch))} of {patch.size} grey values are NaN or infinite; "
            "expected finite ones. Replace them before computing features."
        )
