"""Confusion matrices and the scores that follow from them: count first, divide after, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.errors import DatasetError

SCORES = ("precision", "recall", "f1", "iou")


def confusion(truth: NDArray[Any], predicted: NDArray[Any], classes: ClassSet) -> NDArray[np.int64]:
    """Counts pixels by true and predicted class.

    Reads 64 Ki pixels at a time, so that memory-mapped labels are never expanded.

    Args:
        truth: True labels of any shape and integer dtype; pixels with the ignore value are left out.
        predicted: Predicted labels, same shape, any integer dtype; class ids wherever `truth` is not ignored.
        classes: The classes and the ignore value.

    Returns:
        Shape (classes, classes), rows true, columns predicted.

    Raises:
        DatasetError: Shapes differ, a dtype is not integer, or a value is no class id.
    """
    if truth.shape != predicted.shape:
        raise DatasetError(
            f"true labels have shape {truth.shape}, predicted labels {predicted.shape}; expected the same shape."
        )
    for name, labels in (("true", truth), ("predicted", predicted)):
        if labels.dtype.kind not in "iu":
            raise DatasetError(f"{name} labels have dtype {labels.dtype}; expected integers.")
    k = len(classes)
    counts = np.zeros(k * k, np.int64)
    chunks = np.nditer(
        (truth, predicted),
        flags=("external_loop", "buffered", "zerosize_ok"),
        op_dtypes=(np.int64, np.int64),
        casting="same_kind",
        buffersize=1 << 16,
    )
    for true, found in chunks:
        valid = true != classes.ignore
        true, found = true[valid], found[valid]
        _check_ids(true, "true", classes)
        _check_ids(found, "predicted", classes)
        counts += np.bincount(true * k + found, minlength=k * k)
    return counts.reshape(k, k)


def _check_ids(labels: NDArray[np.int64], name: str, classes: ClassSet) -> None:
    """Raises DatasetError unless all labels are class ids; a wrong one would be counted for another class."""
    if labels.size and (labels.min() < 0 or labels.max() >= len(classes)):
        wrong = labels[(labels < 0) | (labels >= len(classes))]
        raise DatasetError(
            f"{name} labels contain {wrong[0]}; expected 0..{len(classes) - 1} ({', '.join(classes.names)}) "
            f"wherever the true label is not {classes.ignore}."
        )


def scores(confusion: NDArray[np.int64], names: Sequence[str]) -> dict[str, Any]:
    """Computes all scores of a confusion matrix.

    A class absent from truth and prediction has no score (None) and is left out of means. For the others
    precision, recall, F1 and IoU (Jaccard) are 0 where their divisor is 0, and the means equal to the last
    digit those of scikit-learn's `classification_report` and `jaccard_score` with `labels` the classes
    present and `zero_division=0`.

    Args:
        confusion: Shape (classes, classes), rows true.
        names: One name per class.

    Returns:
        `{"per_class": {name: {"precision", "recall", "f1", "iou", "support"}}, "macro": {"precision",
        "recall", "f1", "iou"}, "weighted": the same, weighted by support, "accuracy"}`; scores are floats,
        None if there is nothing to score.

    Raises:
        DatasetError: There is not one name per class.
    """
    if confusion.shape != (len(names), len(names)):
        raise DatasetError(
            f"a confusion matrix of shape {confusion.shape} does not fit the {len(names)} classes {', '.join(names)}."
        )
    present, values = _score_present(confusion)
    support = confusion.sum(1)
    empty = dict.fromkeys(SCORES)
    per_class: dict[str, dict[str, Any]] = {name: {**empty, "support": 0} for name in names}
    for column, c in enumerate(present):
        found = {score: float(values[score][column]) for score in SCORES}
        per_class[names[c]] = {**found, "support": int(support[c])}
    if not present.size:
        return {"per_class": per_class, "macro": dict(empty), "weighted": dict(empty), "accuracy": None}
    return {
        "per_class": per_class,
        "macro": {score: float(values[score].mean()) for score in SCORES},
        "weighted": {score: float(np.average(values[score], weights=support[present])) for score in SCORES},
        "accuracy": float(np.trace(confusion) / confusion.sum()),
    }


def image_scores(confusion: NDArray[np.int64]) -> dict[str, float | None]:
    """Computes the scores of one image, over the classes in its truth or prediction.

    Args:
        confusion: Shape (classes, classes), rows true.

    Returns:
        `{"macro_f1", "mean_iou"}`; None if every pixel is ignored.
    """
    present, values = _score_present(confusion)
    if not present.size:
        return {"macro_f1": None, "mean_iou": None}
    return {"macro_f1": float(values["f1"].mean()), "mean_iou": float(values["iou"].mean())}


def class_scores_per_image(confusions: NDArray[np.int64], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Scores every class in every image, then averages over the images that have the class in truth or prediction.

    Args:
        confusions: One matrix per image, shape (images, classes, classes), rows true.
        names: One name per class.

    Returns:
        `{name: {"f1", "iou", "images"}}`; scores are None for a class that no image has. Where an absent class counts as 0,
        as some libraries have it, the mean over all n images is the score times images / n.
    """
    hit = np.diagonal(confusions, axis1=1, axis2=2)
    true, found = confusions.sum(2), confusions.sum(1)
    per_class: dict[str, dict[str, Any]] = {}
    for c, name in enumerate(names):
        has = np.flatnonzero(true[:, c] + found[:, c])
        both, hits = (true + found)[has, c], hit[has, c]
        per_class[name] = {
            "f1": float((2 * hits / both).mean()) if has.size else None,
            "iou": float((hits / (both - hits)).mean()) if has.size else None,
            "images": int(has.size),
        }
    return per_class


def _score_present(confusion: NDArray[np.int64]) -> tuple[NDArray[np.intp], dict[str, NDArray[np.float64]]]:
    """Returns the ids of classes in truth or prediction, and each score of these classes."""
    hit, true, found = np.diagonal(confusion), confusion.sum(1), confusion.sum(0)
    present = np.flatnonzero(true + found)
    hit, true, found = hit[present], true[present], found[present]
    # hit is 0 wherever a divisor is, so that a divisor of 1 makes the score 0
    values = {
        "precision": hit / np.maximum(found, 1),
        "recall": hit / np.maximum(true, 1),
        "f1": 2 * hit / (true + found),
        "iou": hit / (true + found - hit),
    }
    return present, values
