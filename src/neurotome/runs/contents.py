"""What readers of a run's files rely on; a file that lacks it is damaged.

Each check raises LookupError, TypeError, ValueError or AttributeError then.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from neurotome.documents import read_json
from neurotome.errors import RunError

T = TypeVar("T")

REDO = "Delete it and give the run's command again: it is made again."

NUMBER = int | float | None
SCORES = {"precision": NUMBER, "recall": NUMBER, "f1": NUMBER, "iou": NUMBER}


def read_checked(path: Path, build: Callable[[dict[str, Any]], T], remedy: str = REDO) -> T:
    """Returns what a check makes of a JSON file; RunError if it is damaged."""
    content = read_json(path, RunError, remedy)
    try:
        return build(content)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise RunError(f"{path}: not what neurotome writes ({reason}). {remedy}") from error


def check_scores(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of `scores/<split>.json`."""
    check_types(content, {"dataset": str, "split": str, "classes": [str], "macro": SCORES, "weighted": SCORES})
    classes = content["classes"]
    images = {
        "name": [str],
        "confusion": [[[int]]],
        "tiles": [{"grid": [int], "confusion": [[[int]]]}],
        "macro_f1": [NUMBER],
        "mean_iou": [NUMBER],
        "mean": {"macro_f1": NUMBER, "mean_iou": NUMBER},
        "per_class": {name: {"f1": NUMBER, "iou": NUMBER} for name in classes},
    }
    per_class = {name: {**SCORES, "support": int} for name in classes}
    check_types(content, {"accuracy": NUMBER, "confusion": [[int]], "per_class": per_class, "per_image": images})
    if len({len(content["per_image"][key]) for key in ("name", "confusion", "macro_f1", "mean_iou")}) != 1:
        raise ValueError("not as many scores as images")
    tiles = content["per_image"]["tiles"]
    matrices = [content["confusion"], *content["per_image"]["confusion"]]
    matrices += [matrix for group in tiles for matrix in group["confusion"]]
    if any([len(row) for row in matrix] != [len(classes)] * len(classes) for matrix in matrices):
        raise ValueError("a confusion matrix of another shape than the classes")
    for group in tiles:
        rows, columns = group["grid"]
        if rows * columns != len(group["confusion"]):
            raise ValueError("not as many tiles as their grid has")
    intervals = content["intervals"]
    check_types(intervals, {"level": float, "method": str, "unit": str, "blocks": NUMBER, "warning": str | None})
    means = [intervals["macro"], intervals["weighted"], *(intervals["per_class"][name] for name in classes)]
    for interval in (intervals["accuracy"], *(mean[key] for mean in means for key in SCORES)):
        low, high = (0, 0) if interval is None else interval
        check_types([low, high], [int | float])
    if "objects" in content:  # older files have none
        _check_objects(content["objects"], len(content["per_image"]["name"]))
    return content


def _check_objects(objects: dict[str, Any], images: int) -> None:
    """Checks what scores say of objects."""
    check_types(objects, {"dimensions": int, "unit": str, "per_image": {"name": [str], "counts": [[[int]]]}})
    check_types(objects["tiles"], [{"grid": [int], "counts": [[[int]]]}], "tiles")
    names = list(objects["per_class"])
    known = {"true": int, "found": int, "left_out": int, "mean_diameter": NUMBER, "smallest": NUMBER, "within": NUMBER}
    check_types(objects["per_class"], dict.fromkeys(names, known))
    necks = {name: one["neck"] for name, one in objects["per_class"].items() if "neck" in one}  # older files have none
    check_types(necks, dict.fromkeys(necks, int | float))
    rates = dict.fromkeys(("precision", "recall", "f1"), NUMBER)
    for matching in ("overlap", "distance"):
        one = {"matched": int, **rates, "intervals": dict.fromkeys(rates, list | None)}
        check_types(objects[matching], {"warning": str | None, "method": str, "per_class": dict.fromkeys(names, one)})
        for name in names:
            for interval in objects[matching]["per_class"][name]["intervals"].values():
                low, high = (0, 0) if interval is None else interval
                check_types([low, high], [int | float])
    counts = objects["per_image"]["counts"]
    tiles = [tile for group in objects["tiles"] for tile in group["counts"]]
    if len(counts) != images or len(objects["per_image"]["name"]) != images:
        raise ValueError("not as many counts of objects as images")
    if any(len(group["counts"]) != group["grid"][0] * group["grid"][1] for group in objects["tiles"]):
        raise ValueError("not as many tiles of objects as their grid has")
    if any([len(row) for row in image] != [4] * len(names) for image in [*counts, *tiles]):
        raise ValueError("counts of objects of another shape than the classes")


def check_training(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of `training.json`."""
    measured = ("seconds", "peak_memory_bytes", "best_val_macro_f1", "scoring_mpixel_per_s")
    check_types(content, {"finished": bool, "device": str, "precision": str})
    check_types(content, {key: NUMBER for key in measured if key in content})
    if "pixels" in content or "steps" not in content:  # of a pixel classifier
        check_types(content, {"pixels": dict.fromkeys(content["pixels"], NUMBER), "method": str})
    else:
        check_types(content, {"epochs": int, "steps": int})
    return content


def check_importance(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of `importance.json`."""
    features = [{"name": str, "drop": int | float, "std": int | float}]
    check_types(content, {"split": str, "pixels": int, "repeats": int, "macro_f1": NUMBER, "features": features})
    return content


def check_types(content: Any, expected: Any, name: str = "it") -> None:
    """Checks JSON values against a type, a list of one type for every item, or types by key."""
    if isinstance(expected, dict):
        for key, kind in expected.items():
            check_types(content[key], kind, key)
    elif not isinstance(content, list if isinstance(expected, list) else expected):
        raise ValueError(f"{name} is {str(content)[:40]}")
    elif isinstance(expected, list):
        for item in content:
            check_types(item, expected[0], name)
