"""Scores from labels: pooled over all pixels, per image and per tile, and how sure they are."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.block_bootstrap import KEYS, IntervalSettings, list_metrics, plan_tiles
from neurotome.classes import ClassSet
from neurotome.errors import DatasetError
from neurotome.metrics import confusion, scores
from neurotome.objects.scores import MATCHINGS, ObjectScorer, ObjectSettings, describe_objects, list_object_rows, show_rates
from neurotome.statistics import FEWEST_SLICES, estimate_all, find_stack, say_method
from neurotome.tables import Shown, Table, count
from neurotome.volume import Size

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
    interval: IntervalSettings = IntervalSettings(),
    objects: ObjectSettings = ObjectSettings(),
    sizes_um: Mapping[str, Size] | None = None,
) -> dict[str, Any]:
    """Counts all images, then scores.

    Args:
        dataset: Its name.
        split: Its name.
        classes: What the labels mean; ignored pixels of the truth are left out.
        images: Name, true labels and predicted labels of each image, shapes (y, x). The slices of a stack are named
            `stack/0000` and so on; other neighbours in the list are taken for serial sections, which resemble each other.
        interval: How intervals are measured.
        objects: Which objects are scored, and how they are matched.
        sizes_um: Edges of a voxel (z, y, x) by the name of an image, for distances between objects.

    Returns:
        The content of `scores/<split>.json`. `per_class`, `macro`, `weighted` and `accuracy` are pooled over all pixels;
        `per_image` scores every image by itself; its `mean` and `per_class` are the other aggregation that is published.
        Where an absent class counts as 0 in it, as some libraries have it, the mean over all n images is the score times
        images / n. `per_image.confusion` is a matrix for each image, rows true. Where there are fewer than
        `FEWEST_SLICES`, `per_image.tiles` has the matrices of tiles, summed over the images of a stack. `intervals` is as
        `measure_intervals` returns it. `objects` is there if any are scored: for each class and matching the counts
        (`true`, `found`, `matched`), precision, recall and F1 with intervals; its `per_image` and `tiles` have the counts of
        what has its centre there.

    Raises:
        DatasetError: There is no image.
        SettingsError: A class of objects is not known.
    """
    names, counts, tiles = [], [], []
    scorer = ObjectScorer(classes, objects, sizes_um or {})
    for name, truth, predicted in images:
        names.append(name)
        grid = _count_tiles(truth, predicted, classes) if len(names) < FEWEST_SLICES else None
        counts.append(confusion(truth, predicted, classes) if grid is None else grid.sum((0, 1)))
        tiles.append(grid)
        scorer.add(name, truth, predicted)
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
    content = {
        "dataset": dataset,
        "split": split,
        "classes": list(classes.names),
        "confusion": pooled.tolist(),
        **scores(pooled, classes.names),
        "per_image": {
            "name": names,
            "confusion": stacked.tolist(),
            "tiles": _sum_tiles(names, tiles) if len(names) < FEWEST_SLICES else [],
            **per_image,
            "mean": {key: _mean(values) for key, values in per_image.items()},
            "per_class": per_class,
        },
        "note": AGGREGATIONS,
    }
    content["intervals"] = measure_intervals(content, interval)
    if (found := scorer.finish(interval)) is not None:
        content["objects"] = found
    return content


def measure_intervals(content: Mapping[str, Any], settings: IntervalSettings = IntervalSettings()) -> dict[str, Any]:
    """Returns the intervals of all scores of one run, each low and high or None, and how they were measured.

    `content` is that of `scores/<split>.json`, with or without intervals. `warning` says in plain words where they are
    missing or may be too narrow, and is None otherwise.
    """
    metrics = list_metrics(content["classes"])
    found = estimate_all([content], metrics, settings)
    first = found["macro.f1"]
    bounds = {metric: None if one.low is None else [one.low, one.high] for metric, one in found.items()}
    means = {mean: {key: bounds[f"{mean}.{key}"] for key in KEYS} for mean in ("macro", "weighted")}
    return {
        "level": settings.level,
        "method": say_method(first, settings.resamples),
        "unit": first.unit,
        "block": first.block,
        "blocks": first.blocks,
        "warning": first.note or None,
        **means,
        "accuracy": bounds["accuracy"],
        "per_class": {name: {key: bounds[f"per_class.{name}.{key}"] for key in KEYS} for name in content["classes"]},
    }


def say_interval(intervals: Mapping[str, Any]) -> str:
    """Returns the interval of macro F1 and how it was measured, or why there is none, in a line."""
    warning = intervals["warning"]
    if intervals["macro"]["f1"] is None:
        return "no interval: no labelled pixel" if intervals["blocks"] else str(warning)
    low, high = intervals["macro"]["f1"]
    said = f"macro F1, {100 * intervals['level']:g} % interval {low:.3f} to {high:.3f} ({intervals['method']})"
    return f"{said}; {warning}" if warning else said


def _count_tiles(truth: NDArray[Any], predicted: NDArray[Any], classes: ClassSet) -> NDArray[np.int64] | None:
    """Returns the confusion matrices of a grid of tiles, shape (rows, columns, classes, classes); None if shapes differ."""
    if truth.shape != predicted.shape or truth.ndim != 2:
        return None
    rows, columns = (list(itertools.pairwise(ends)) for ends in plan_tiles(truth.shape))
    return np.array(
        [
            [confusion(truth[top:bottom, left:right], predicted[top:bottom, left:right], classes) for left, right in columns]
            for top, bottom in rows
        ]
    )


def _sum_tiles(names: Sequence[str], tiles: Sequence[NDArray[np.int64] | None]) -> list[dict[str, Any]]:
    """Returns the matrices of tiles summed over the images of each stack, for what lies above each other is alike."""
    summed: dict[tuple[str, tuple[int, ...]], NDArray[np.int64]] = {}
    for name, grid in zip(names, tiles, strict=True):
        if grid is not None:
            key = find_stack(name), grid.shape
            summed[key] = summed[key] + grid if key in summed else grid
    return [
        {"grid": list(shape[:2]), "confusion": grid.reshape(-1, *shape[2:]).tolist()} for (_, shape), grid in summed.items()
    ]


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
        pieces.append(say_interval(self["intervals"]))
        if found := self.get("objects"):  # older files have none
            headings = ("objects", "matched by", "true", "found", "matched", "precision", "recall", "F1")
            listed = [
                (row["class"], row["by"], *(f"{row[key]:,}" for key in ("true", "found", "matched")), *show_rates(row))
                for row in list_object_rows(found)
            ]
            pieces += [Table(headings, listed), *describe_objects(found)]
            warnings = {found[matching]["warning"] for matching in MATCHINGS} - {None, self["intervals"]["warning"]}
            pieces += [f"Objects: {warning}" for warning in sorted(warnings)]
        return pieces


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
