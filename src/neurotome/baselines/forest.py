"""Random forest on hand-made features: the baseline that ilastik and its like set."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.datasets.base import Dataset
from neurotome.datasets.statistics import count_slices
from neurotome.errors import ModelError, SettingsError
from neurotome.features import FeatureSettings, compute_features, halo
from neurotome.normalize import Normalization, fit_normalization

if TYPE_CHECKING:
    from sklearn.ensemble import RandomForestClassifier

CHUNK_PIXELS = 1 << 17


@dataclass(frozen=True)
class ForestSettings:
    """How a random forest is trained."""

    trees: int = 60
    """Number of trees."""

    pixels_per_class: int = 20_000
    """Training pixels drawn from each class; all of them where a class has fewer."""

    max_depth: int | None = None
    """Depth at which trees stop growing; without limit if not given."""

    min_leaf: int = 5
    """Training pixels a leaf holds at least; more makes smaller trees and smoother probabilities."""

    seed: int = 0
    """Seed of the draw of pixels and of the trees."""

    features: FeatureSettings = field(default_factory=FeatureSettings)
    """Features of a pixel."""

    def __post_init__(self) -> None:
        for name in ("trees", "pixels_per_class", "max_depth", "min_leaf"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name} is {value}; expected at least 1.")
        if not 0 <= self.seed < 1 << 32:
            raise SettingsError(f"seed is {self.seed}; expected 0 to {(1 << 32) - 1}.")


@dataclass(frozen=True)
class ForestPredictor:
    """A trained random forest; see `Predictor`.

    Attributes:
        classes: The classes it predicts.
        normalization: How its input must be scaled.
        features: The features its trees ask for.
        frequencies: Share of each class among the labelled training pixels, float64, shape (classes,).
        forest: The classifier, trained on classes of equal weight; `classes_` are the ids it has seen.
    """

    classes: ClassSet
    normalization: Normalization
    features: FeatureSettings
    frequencies: NDArray[np.float64]
    forest: RandomForestClassifier
    in_channels: int = 1
    stride: int = 1

    @property
    def halo(self) -> int:
        """Pixels around a pixel that its features depend on."""
        return halo(self.features)

    def predict_probs(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the trees' mean class probabilities, 0 for a class the forest has not seen.

        The trees know a balanced sample; Bayes' rule brings their probabilities back to the training data's
        class frequencies (Saerens, Latinne and Decaestecker, 2002, doi:10.1162/089976602753284446).

        Args:
            patches: Scaled grey values, shape (n, 1, y, x); any y and x.

        Returns:
            float32, shape (n, classes, y, x).

        Raises:
            ModelError: The patches have another number of channels.
        """
        if patches.ndim != 4 or patches.shape[1] != 1:
            raise ModelError(f"found patches of shape {patches.shape}; a random forest reads (n, 1, y, x).")
        n, _, height, width = patches.shape
        seen = self.forest.classes_
        probs = np.zeros((n, len(self.classes), height * width), np.float32)
        for i in range(n):
            table = compute_features(patches[i, 0], self.features).reshape(-1, height * width).T
            for start in range(0, len(table), CHUNK_PIXELS):
                found = self.forest.predict_proba(table[start : start + CHUNK_PIXELS]) * self.frequencies[seen]
                probs[i, seen, start : start + CHUNK_PIXELS] = (found / found.sum(axis=1, keepdims=True)).T
        return probs.reshape(n, len(self.classes), height, width)


def fit_forest(dataset: Dataset, settings: ForestSettings) -> ForestPredictor:
    """Trains a random forest (Breiman, 2001, doi:10.1023/A:1010933404324) on pixels of the training split.

    Each class has the same say in growing the trees, however rare it is: as many pixels are drawn from each,
    and classes that have fewer are weighted up. A class without a training pixel is warned about and never
    predicted.

    Args:
        dataset: Must have a split `train`.
        settings: Size of the forest and of its sample.

    Raises:
        DatasetError: There is no training split, or none of its pixels is labelled.
        ImageError: The training images are constant or hold NaN.
    """
    from sklearn.ensemble import RandomForestClassifier

    counts = count_slices(dataset)
    totals = counts.sum(axis=0)
    absent = [name for name, total in zip(dataset.classes.names, totals, strict=True) if total == 0]
    if absent:
        warnings.warn(
            f"{dataset.name}: no training pixel of class {', '.join(absent)}; expected some of each. The "
            "forest never predicts it: label some, or drop the class.",
            stacklevel=2,
        )
    normalization = fit_normalization(cutout.volume for cutout in dataset.split("train"))
    table, labels = sample_pixels(dataset, counts, normalization, settings)
    forest = RandomForestClassifier(
        settings.trees,
        max_depth=settings.max_depth,
        min_samples_leaf=settings.min_leaf,
        class_weight="balanced",
        random_state=settings.seed,
        n_jobs=-1,
    )
    forest.fit(table, labels)
    return ForestPredictor(dataset.classes, normalization, settings.features, totals / totals.sum(), forest)


def sample_pixels(
    dataset: Dataset, counts: NDArray[np.int64], normalization: Normalization, settings: ForestSettings
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Draws labelled pixels of the training split, as many of each class, and computes their features.

    Every labelled pixel of a class is equally likely, from whatever slice; none is drawn twice. One slice is
    in memory at a time, and features are computed only for slices from which a pixel is drawn.

    Args:
        dataset: Must have a split `train`.
        counts: Pixels per training slice and class, from `count_slices`.
        normalization: Scaling of the grey values.
        settings: How many pixels, which features, seed.

    Returns:
        Features, float32, shape (pixels, features), and class ids, uint8, shape (pixels,).
    """
    # drawn as ranks among all pixels of a class, slice after slice, so that drawing needs no labels in memory
    rng = np.random.default_rng(settings.seed)
    ends = counts.cumsum(axis=0)
    ranks = [
        np.sort(rng.choice(total, min(settings.pixels_per_class, total), replace=False, shuffle=False))
        for total in ends[-1].tolist()
    ]
    tables, labels = [], []
    row = 0
    for cutout in dataset.split("train"):
        scale = normalization.scale_for(cutout.volume)
        for z in range(cutout.volume.shape[0]):
            truth = cutout.read_labels(z).reshape(-1)
            picked = []
            for i, drawn in enumerate(ranks):
                end = ends[row, i]
                first = end - counts[row, i]
                here = drawn[np.searchsorted(drawn, first) : np.searchsorted(drawn, end)] - first
                picked.append(np.flatnonzero(truth == i)[here] if here.size else here)
            row += 1
            pixels = np.concatenate(picked)
            if pixels.size:
                image = scale.apply(cutout.volume.read_context(z, 1)[0])
                found = compute_features(image, settings.features)
                tables.append(found.reshape(len(found), -1)[:, pixels].T)
                labels.append(truth[pixels])
    return np.concatenate(tables), np.concatenate(labels)
