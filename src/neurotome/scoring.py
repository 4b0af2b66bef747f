"""Scores from labels: pooled over all pixels, per image, and how sure they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.errors import DatasetError
from neurotome.metrics import confusion, scores
from neurotome.tables import Shown, Table, count

FEWEST_IMAGES = 5  # fewer say nothing about how much images differ
RESAMPLES = 2000

AGGREGATIONS = (
    "Scores per class, macro and weighted are pooled: pixels of all images are counted first, then divided. Scores per "
    "image are divided image by image, then averaged over the images that have the class."
)
"""Stands in every file of scores, because tables are often compared with the wrong one."""


def score_images(
    dataset: str, split: str, classes: ClassSet, images: Iterable[tuple[str, NDArray[Any], NDArray[Any]]]
) -> dict[str, Any]:
    """Counts all images, then scores.

    Args:
        dataset: Its name.
        split: Its name.
        classes: What the labels mean; ignored pixels of the truth are left out.
        images: Name, true labels and predicted labels of each image, shapes (y, x).

    Returns:
        The content of `scores/<split>.json`. `per_class`, `macro`, `weighted` and `accuracy` are pooled over all pixels;
        `per_image` scores every image by itself; its `mean` and `per_class` are the other aggregation that is published.
        Where an absent class counts as 0 in it, as some libraries have it, the mean over all n images is the score times
        images / n.

    Raises:
        DatasetError: There is no image.
    """
    names, counts = [], []
    for name, truth, predicted in images:
        names.append(name)
        counts.append(confusion(truth, predicted, classes))
    if not names:
        raise DatasetError(f"{dataset}: no image to score in split {split!r}; expected at least one.")
    stacked = np.stack(counts)
    pooled = stacked.sum(0)
    single = [scores(matrix, classes.names) for matrix in stacked]
    per_image = {
        "macro_f1": [image["macro"]["f1"] for image in single],
        "mean_iou": [image["macro"]["iou"] for image in single],
    }
    per_class = {}
    for name in classes.names:
        having = [image["per_class"][name] for image in single if image["per_class"][name]["f1"] is not None]
        per_class[name] = {key: _mean([image[key] for image in having]) for key in ("f1", "iou")} | {"images": len(having)}
    return {
        "dataset": dataset,
        "split": split,
        "classes": list(classes.names),
        "confusion": pooled.tolist(),
        **scores(pooled, classes.names),
        "per_image": {
            "name": names,
            **per_image,
            "mean": {key: _mean(values) for key, values in per_image.items()},
            "per_class": per_class,
        },
        "note": AGGREGATIONS,
        "intervals": bootstrap(stacked, classes.names),
    }


def bootstrap(confusions: NDArray[np.int64], names: Sequence[str], seed: int = 0) -> dict[str, Any] | None:
    """Returns 95 % intervals of pooled scores by drawing images with replacement, None for fewer than `FEWEST_IMAGES`.

    Percentile bootstrap, Efron (1979), doi:10.1214/aos/1176344552. Slices of one stack resemble each other, so for stacks
    the intervals are a lower bound of the uncertainty. Each is low and high, or None if no draw has the score.

    `confusions` holds a matrix per image, shape (images, classes, classes), rows true; `names` are the classes'.
    """
    images = len(confusions)
    if images < FEWEST_IMAGES:
        return None
    draws = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), RESAMPLES)
    pooled = np.tensordot(draws, confusions, 1).astype(np.float64)
    right = np.diagonal(pooled, axis1=1, axis2=2)
    both = pooled.sum(1) + pooled.sum(2)
    with np.errstate(invalid="ignore"):
        f1 = 2 * right / both  # NaN where a draw lacks the class, as is the rest where it has no labelled pixel
        macro = np.nansum(f1, 1) / (both > 0).sum(1)
        accuracy = right.sum(1) / pooled.sum((1, 2))
    return {
        "level": 0.95,
        "method": f"percentile bootstrap over {images} images, {RESAMPLES} draws",
        "macro_f1": _interval(macro),
        "accuracy": _interval(accuracy),
        "f1": {name: _interval(f1[:, i]) for i, name in enumerate(names)},
    }


class Scores(Shown, dict[str, Any]):
    """The content of `scores/<split>.json`, and its table as text and in notebooks; "–" stands where a class is absent."""

    def _show(self) -> list[str | Table]:
        def cells(values: Mapping[str, Any], keys: Sequence[str] = ("precision", "recall", "f1", "iou")) -> list[str]:
            return ["–" if values[key] is None else f"{values[key]:.3f}" for key in keys]

        per_image, rows = self["per_image"], []
        for name in self["classes"]:
            pooled, single = self["per_class"][name], per_image["per_class"][name]
            rows.append((name, *cells(pooled), *cells(single, ("f1", "iou")), f"{pooled['support']:,}"))
        rows.append(("macro mean", *cells(self["macro"]), *cells(per_image["mean"], ("macro_f1", "mean_iou")), ""))
        rows.append(("weighted mean", *cells(self["weighted"]), "", "", ""))
        rows.append(("accuracy", *cells(self, ("accuracy",)), *[""] * 6))
        title = f"{self['dataset']}, split {self['split']}, {count(len(per_image['name']), 'image')}; "
        headings = ("", "precision", "recall", "F1", "IoU", "F1/image", "IoU/image", "pixels")
        pieces: list[str | Table] = [title + "pooled over pixels, and /image: mean over images", Table(headings, rows)]
        if self["intervals"] is None:
            return [*pieces, f"no interval: fewer than {FEWEST_IMAGES} images"]
        if self["intervals"]["macro_f1"] is None:
            return pieces
        low, high = self["intervals"]["macro_f1"]
        return [*pieces, f"macro F1, 95 % interval {low:.3f} to {high:.3f} ({self['intervals']['method']})"]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _interval(values: NDArray[np.float64]) -> list[float] | None:
    known = values[~np.isnan(values)]
    return [float(v) for v in np.quantile(known, (0.025, 0.975))] if known.size else None
