"""What readers of a run's files rely on; a file that lacks it is damaged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

MEASURED = ("seconds", "peak_memory_bytes", "best_val_macro_f1", "scoring_mpixel_per_s")


def check_scores(content: Mapping[str, Any]) -> None:
    """Checks the content of `scores/<split>.json`.

    Raises:
        LookupError, TypeError, ValueError, AttributeError: It cannot be used.
    """
    _demand(content, str, "dataset", "split")
    _demand(content, list, "classes", "confusion")
    _demand(content["per_image"], list, "name", "macro_f1", "mean_iou")
    classes, images = content["classes"], content["per_image"]
    _check_numbers(content, "accuracy")
    for mean in (content["macro"], content["weighted"], *(content["per_class"][name] for name in classes)):
        _check_numbers(mean, "precision", "recall", "f1", "iou")
    for name in classes:
        _demand(content["per_class"][name], int, "support")
        _check_numbers(images["per_class"][name], "f1", "iou")
    _check_numbers(images["mean"], "macro_f1", "mean_iou")
    for values in (images["macro_f1"], images["mean_iou"]):
        if len(values) != len(images["name"]):
            raise ValueError(f"{len(values)} scores of {len(images['name'])} images")
        _check_numbers(dict(enumerate(values)), *range(len(values)))
    if not all(isinstance(name, str) for name in (*classes, *images["name"])):
        raise ValueError("names that are no text")
    if [len(row) for row in content["confusion"]] != [len(classes)] * len(classes):
        raise ValueError("a confusion matrix of another shape than the classes")
    if content["intervals"] is not None:
        for interval in (content["intervals"][key] for key in ("macro_f1", "accuracy")):
            _check_interval(interval)
        for name in classes:
            _check_interval(content["intervals"]["f1"][name])


def check_training(content: Mapping[str, Any]) -> None:
    """Checks the content of `training.json`; raises as `check_scores` does."""
    _demand(content, bool, "finished")
    _check_numbers(content, *(key for key in MEASURED if key in content))
    if "pixels" in content or "steps" not in content:  # of a pixel classifier
        _check_numbers(content["pixels"], *content["pixels"])
        _demand(content, str, "method")
    else:
        _demand(content, int, "epochs", "steps")
    _demand(content, str, "device", "precision")


def check_importance(content: Mapping[str, Any]) -> None:
    """Checks the content of `importance.json`; raises as `check_scores` does."""
    _demand(content, str, "split")
    _demand(content, int, "pixels", "repeats")
    _check_numbers(content, "macro_f1")
    _demand(content, list, "features")
    for feature in content["features"]:
        _demand(feature, str, "name")
        _demand(feature, (int, float), "drop", "std")


def _demand(content: Mapping[str, Any], kind: type | tuple[type, ...], *keys: str) -> None:
    for key in keys:
        if not isinstance(content[key], kind):
            raise ValueError(f"{key} is a {type(content[key]).__name__}")


def _check_numbers(content: Mapping[Any, Any], *keys: Any) -> None:
    for key in keys:
        value = content[key]
        if value is not None and type(value) is not int and not (isinstance(value, float) and math.isfinite(value)):
            raise ValueError(f"{key} is {str(value)[:40]}")


def _check_interval(interval: Iterable[Any] | None) -> None:
    if interval is not None:
        low, high = interval
        _check_numbers({"low": low, "high": high}, "low", "high")
