"""The weakest baseline: every pixel is the most frequent class of the training data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.datasets.base import Dataset
from neurotome.datasets.statistics import count_slices
from neurotome.normalize import Normalization, fit_normalization


@dataclass(frozen=True)
class MajorityPredictor:
    """Gives every pixel the class frequencies of the training data; see `Predictor`.

    Attributes:
        classes: The classes.
        normalization: The training data's; the prediction does not depend on it.
        frequencies: Share of each class among the labelled training pixels, float32, shape (classes,).
    """

    classes: ClassSet
    normalization: Normalization
    frequencies: NDArray[np.float32]
    in_channels: int = 1
    halo_zyx: tuple[int, int, int] = (0, 0, 0)
    stride_zyx: tuple[int, int, int] = (1, 1, 1)
    voxel_size_um: tuple[float, float, float] | None = None
    bounded: bool = True
    preferred_tile: int | None = None

    def predict_probs(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the frequencies for every pixel, float32, shape (n, classes, y, x), for patches of shape (n, 1, y, x)."""
        n, _, height, width = patches.shape
        shape = (n, len(self.classes), height, width)
        return np.broadcast_to(self.frequencies[:, None, None], shape).copy()


def fit_majority(dataset: Dataset) -> MajorityPredictor:
    """Counts the classes of the training split.

    Raises:
        DatasetError: There is no training split, or none of its pixels is labelled.
        ImageError: The training images are constant.
    """
    counts = count_slices(dataset).sum(axis=0)
    normalization = fit_normalization(cutout.volume for cutout in dataset.split("train"))
    return MajorityPredictor(dataset.classes, normalization, (counts / counts.sum()).astype(np.float32))
