"""Scores from labels: pooled over all pixels, per image, and how sure they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.errors import DatasetError
from neurotome.metrics import class_scores_per_image, confusion, image_scores, scores
from neurotome.tables import Table, to_html

FEWEST_IMAGES = 5
"""Fewer images than this say nothing about how much images differ."""

RESAMPLES = 2000

AGGREGATIONS = (
    "Scores per class, macro and weighted are pooled: pixels of all images are counted first, then divided. Scores per "
    "image are divided image by image, then averaged over the images that have the class."
)
"""Stands in every file of scores, because tables are often compared with the wrong one."""


def score_images(
    dataset: str,
    split: str,
    classes: ClassSet,
    images: Iterable[tuple[str, NDArray[Any], NDArray[Any]]],
) -> dict[str, Any]:
    """Counts all images, then scores.

    Args:
        dataset: Name of the dataset.
        split: Name of the split.
        classes: What the labels mean; ignored pixels of the truth are left out.
        images: Name, true labels and predicted labels of each image, shapes (y, x).

    Returns:
        The content of `scores/<split>.json`. `per_class`, `macro`, `weighted` and `accuracy` are pooled over all pixels;
        `per_image` scores every image by itself; its `mean` and `per_class` are the other aggregation that is published.

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
    single = [image_scores(matrix) for matrix in stacked]
    return {
        "dataset": dataset,
        "split": split,
        "classes": list(classes.names),
        "confusion": pooled.tolist(),
        **scores(pooled, classes.names),
        "per_image": {
            "name": names,
            "macro_f1": [s["macro_f1"] for s in single],
            "mean_iou": [s["mean_iou"] for s in single],
            "mean": {
                "macro_f1": _mean([s["macro_f1"] for s in single]),
                "mean_iou": _mean([s["mean_iou"] for s in single]),
            },
            "per_class": class_scores_per_image(stacked, classes.names),
        },
        "note": AGGREGATIONS,
        "intervals": bootstrap(stacked, classes.names),
    }


def bootstrap(confusions: NDArray[np.int64], names: Sequence[str], seed: int = 0) -> dict[str, Any] | None:
    """Returns 95 % intervals of pooled scores by drawing images with replacement.

    Percentile bootstrap, Efron (1979), doi:10.1214/aos/1176344552. Slices of one stack resemble each other, so for
    stacks the intervals are a lower bound of the uncertainty.

    Args:
        confusions: One matrix per image, shape (images, classes, classes), rows true.
        names: Class names.
        seed: Seed of the draws.

    Returns:
        Low and high of `macro_f1`, `accuracy` and of `f1` per class, each None if no draw has it; None in place of all
        for fewer than `FEWEST_IMAGES` images.
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


class Scores(Mapping[str, Any]):
    """Scores of one split: the content of `scores/<split>.json` as a mapping, and a table as text and in notebooks."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.content = dict(content)

    def __getitem__(self, key: str) -> Any:
        return self.content[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.content)

    def __len__(self) -> int:
        return len(self.content)

    def __str__(self) -> str:
        return format_scores(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return to_html(_title(self), _tabulate(self), "\n".join(_note(self)))


def format_scores(scores: Mapping[str, Any]) -> str:
    """Returns scores as a table for the terminal, pooled and per image; an en dash stands where a class is absent."""
    return "\n".join([_title(scores), _tabulate(scores).to_text(), *_note(scores)])


def _title(scores: Mapping[str, Any]) -> str:
    images = len(scores["per_image"]["name"])
    counted = f"{images} image{'s' * (images != 1)}"
    return f"{scores['dataset']}, split {scores['split']}, {counted}; pooled over pixels, and /image: mean over images"


def _tabulate(scores: Mapping[str, Any]) -> Table:
    rows = []
    for name in scores["classes"]:
        pooled, single = scores["per_class"][name], scores["per_image"]["per_class"][name]
        rows.append((name, *_cells(pooled), _cell(single["f1"]), _cell(single["iou"]), f"{pooled['support']:,}"))
    mean = scores["per_image"]["mean"]
    rows.append(("macro mean", *_cells(scores["macro"]), _cell(mean["macro_f1"]), _cell(mean["mean_iou"]), ""))
    rows.append(("weighted mean", *_cells(scores["weighted"]), "", "", ""))
    rows.append(("accuracy", _cell(scores["accuracy"]), *[""] * 6))
    return Table(("", "precision", "recall", "F1", "IoU", "F1/image", "IoU/image", "pixels"), rows)


def _note(scores: Mapping[str, Any]) -> list[str]:
    """Returns what is said below the table."""
    intervals = scores["intervals"]
    if intervals is None:
        return [f"no interval: fewer than {FEWEST_IMAGES} images"]
    if intervals["macro_f1"] is None:
        return []
    low, high = intervals["macro_f1"]
    return [f"macro F1, 95 % interval {low:.3f} to {high:.3f} ({intervals['method']})"]


def _cells(pooled: Mapping[str, float | None]) -> list[str]:
    return [_cell(pooled[key]) for key in ("precision", "recall", "f1", "iou")]


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _interval(values: NDArray[np.float64]) -> list[float] | None:
    known = values[~np.isnan(values)]
    return [float(v) for v in np.quantile(known, (0.025, 0.975))] if known.size else None
