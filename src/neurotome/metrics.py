"""Confusion matrices and the scores that follow from them: count first, divide after, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.errors import DatasetError


def confusion(truth: NDArray[Any], predicted: NDArray[Any], classes: ClassSet) -> NDArray[np.int64]:
    """Counts pixels by true and predicted class, 64 Ki at a time, so that memory-mapped labels are never expanded.

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
    for chunk in chunks:
        true, given = (labels[chunk[0] != classes.ignore] for labels in chunk)
        for name, labels in (("true", true), ("predicted", given)):
            wrong = labels[(labels < 0) | (labels >= k)]  # would be counted for another class
            if wrong.size:
                raise DatasetError(
                    f"{name} labels contain {wrong[0]}; expected 0..{k - 1} ({', '.join(classes.names)}) wherever the true "
                    f"label is not {classes.ignore}."
                )
        counts += np.bincount(true * k + given, minlength=k * k)
    return counts.reshape(k, k)


def scores(confusion: NDArray[np.int64], names: Sequence[str]) -> dict[str, Any]:
    """Computes all scores of a confusion matrix.

    A class absent from truth and prediction has no score (None) and is left out of means. For the others precision, recall,
    F1 and IoU (Jaccard) are 0 where their divisor is 0, and the means equal to the last digit those of scikit-learn's
    `classification_report` and `jaccard_score` with `labels` the classes present and `zero_division=0`.

    Args:
        confusion: Shape (classes, classes), rows true.
        names: One name per class.

    Returns:
        `{"per_class": {name: {"precision", "recall", "f1", "iou", "support"}}, "macro": {"precision", "recall", "f1",
        "iou"}, "weighted": the same, weighted by support, "accuracy"}`; scores are floats, None if there is nothing to
        score.
    """
    hit, true, given = np.diagonal(confusion), confusion.sum(1), confusion.sum(0)
    present = np.flatnonzero(true + given)
    hit, true, given = hit[present], true[present], given[present]
    # hit is 0 wherever a divisor is, so that a divisor of 1 makes the score 0
    values = {
        "precision": hit / np.maximum(given, 1),
        "recall": hit / np.maximum(true, 1),
        "f1": 2 * hit / (true + given),
        "iou": hit / (true + given - hit),
    }
    none = dict.fromkeys(values)
    per_class: dict[str, dict[str, Any]] = {name: {**none, "support": 0} for name in names}
    for place, class_id in enumerate(present.tolist()):
        per_class[names[class_id]] = {key: float(value[place]) for key, value in values.items()} | {
            "support": int(true[place])
        }
    if not present.size:
        return {"per_class": per_class, "macro": none, "weighted": dict(none), "accuracy": None}
    return {
        "per_class": per_class,
        "macro": {key: float(value.mean()) for key, value in values.items()},
        "weighted": {key: float(np.average(value, weights=true)) for key, value in values.items()},
        "accuracy": float(np.trace(confusion) / confusion.sum()),
    }
