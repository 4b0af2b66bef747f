"""Scores of one method by class, and its confusions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from neurotome.classes import ClassSet
from neurotome.figures.bars import Bar, plot_class_bars
from neurotome.figures.style import INK, PALE_GREY, STYLE, label_classes, say_title

SCORES = {"precision": "Precision", "recall": "Recall", "f1": "F1", "iou": "IoU"}
SCALE = "score, pooled over all pixels"
WHISKERS = "whiskers: 95 % interval of F1"
MOST_COUNTED = 12
"""Classes up to which the confusion matrix has room for counts; beyond there are percentages alone."""


@matplotlib.rc_context(STYLE)
def plot_class_scores(scores: Mapping[str, Any], classes: ClassSet) -> Figure:
    """Draws precision, recall, F1 and IoU of each class as bars, and their macro means.

    F1 has whiskers, the 95 % interval, where `scores` has intervals.

    Args:
        scores: The content of `scores/<split>.json`.
        classes: The same classes.
    """
    intervals = scores["intervals"] or {"f1": {}, "macro_f1": None}

    def list_bars(measured: Mapping[str, float | None], f1_interval: Any) -> list[Bar]:
        return [(measured[key], f1_interval if key == "f1" else None) for key in SCORES]

    bars = {
        label: list_bars(scores["per_class"][name], intervals["f1"].get(name))
        for label, name in zip(label_classes(classes), classes.names, strict=True)
    }
    bars["macro mean"] = list_bars(scores["macro"], intervals["macro_f1"])
    note = WHISKERS if scores["intervals"] else ""
    return plot_class_bars(classes, list(SCORES.values()), bars, say_title(scores["dataset"], scores["split"]), SCALE, note)


@matplotlib.rc_context(STYLE)
def plot_confusion(scores: Mapping[str, Any], classes: ClassSet) -> Figure:
    """Draws the confusion matrix: pixels as numbers, their share of the true class as percentage and shade."""
    counts = np.asarray(scores["confusion"], np.int64)
    total = counts.sum(1, keepdims=True)
    shares = np.where(total > 0, counts / np.maximum(total, 1), np.nan)
    many = len(classes) > MOST_COUNTED
    cell, size = (0.34, 6.5) if many else (1.15, 9)
    side = 2.2 + cell * len(classes)
    figure = Figure(figsize=(side + 1.2, side))
    axes = figure.subplots()
    shades = matplotlib.colormaps["Blues"].with_extremes(bad=PALE_GREY)
    image = axes.imshow(np.ma.masked_invalid(shares), cmap=shades, vmin=0, vmax=1)
    for true, predicted in np.argwhere(shares >= 0.005) if many else np.ndindex(counts.shape):
        count, share = counts[true, predicted], shares[true, predicted]
        if many:
            text = f"{100 * share:.0f}"
        elif np.isnan(share):
            text = f"{count:,}"
        else:
            text = f"{100 * share:.1f} %\n{count:,}"
        colour = "white" if share > 0.5 else INK
        axes.text(predicted, true, text, ha="center", va="center", fontsize=size, color=colour, in_layout=False)
    labels = label_classes(classes)
    gap = " " if many else "\n"
    rows = [f"{label}{gap}(absent)" if n == 0 else label for label, n in zip(labels, total[:, 0], strict=True)]
    ids, font = range(len(classes)), max(size, 8)
    axes.set_xticks(ids, labels, rotation=60 if many else 30, ha="right", rotation_mode="anchor", fontsize=font)
    axes.set_yticks(ids, rows, fontsize=font)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(title=say_title(scores["dataset"], scores["split"]), xlabel="predicted class", ylabel="true class")
    words = "share of the true class's pixels" + "; numbers in %, none below 0.5 %" * many
    bar = figure.colorbar(image, shrink=0.4 if many else 0.8, label=words)
    bar.outline.set_visible(False)
    return figure
