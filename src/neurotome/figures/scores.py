"""Scores of one method by class, and its confusions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from neurotome.classes import ClassSet
from neurotome.figures.bars import bars_width, draw_bars, draw_rows
from neurotome.figures.style import (
    INK,
    PALE_GREY,
    STYLE,
    bar_colours,
    check_classes,
    class_patches,
    draw_legend,
    has_repeated_colours,
    label_classes,
    say_title,
)

SCORES = {"precision": "Precision", "recall": "Recall", "f1": "F1", "iou": "IoU"}
MEAN = "macro mean"
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

    Raises:
        SettingsError: `scores` are of other classes.
    """
    check_classes(scores["classes"], classes)
    known = scores["intervals"] or {}
    intervals = {**known.get("f1", {}), MEAN: known.get("macro_f1")}
    names = [*classes.names, MEAN]
    measured = {**scores["per_class"], MEAN: scores["macro"]}
    labels = [*label_classes(classes), MEAN]
    bars = {label: [measured[name][key] for key in SCORES] for label, name in zip(labels, names, strict=True)}
    whiskers = {
        label: [intervals.get(name) if key == "f1" else None for key in SCORES]
        for label, name in zip(labels, names, strict=True)
    }
    groups, colours = list(SCORES.values()), [*bar_colours(classes), INK]
    note = WHISKERS if known else ""
    if has_repeated_colours(classes):
        figure = draw_rows(groups, bars, colours, whiskers)
        figure.suptitle(say_title(scores["dataset"], scores["split"]), x=0.01, ha="left", fontsize=11)
        figure.supxlabel(f"score, pooled over all pixels{'; ' * bool(note)}{note}", fontsize=9)
        return figure
    figure = Figure(figsize=(bars_width(len(groups) * len(bars)), 4.2))
    axes = figure.subplots()
    draw_bars(axes, groups, bars, colours, whiskers)
    axes.set(title=say_title(scores["dataset"], scores["split"]), ylabel="score, pooled over all pixels")
    axes.set_xlabel(note, fontsize=9)
    draw_legend(figure, [*class_patches(classes), Patch(color=INK, label=MEAN)])
    return figure


@matplotlib.rc_context(STYLE)
def plot_confusion(scores: Mapping[str, Any], classes: ClassSet) -> Figure:
    """Draws the confusion matrix: pixels as numbers, their share of the true class as percentage and shade.

    Args:
        scores: The content of `scores/<split>.json`.
        classes: The same classes.

    Raises:
        SettingsError: `scores` are of other classes.
    """
    check_classes(scores["classes"], classes)
    counts = np.asarray(scores["confusion"], np.int64)
    total = counts.sum(1, keepdims=True)
    share = np.where(total > 0, counts / np.maximum(total, 1), np.nan)
    many = len(classes) > MOST_COUNTED
    cell, size = (0.34, 6.5) if many else (1.15, 9)
    side = 2.2 + cell * len(classes)
    figure = Figure(figsize=(side + 1.2, side))
    axes = figure.subplots()
    shades = matplotlib.colormaps["Blues"].with_extremes(bad=PALE_GREY)
    image = axes.imshow(np.ma.masked_invalid(share), cmap=shades, vmin=0, vmax=1)
    for (true, predicted), count in np.ndenumerate(counts):
        part = share[true, predicted]
        if many:
            text = f"{100 * part:.0f}" if part >= 0.005 else ""
        else:
            text = f"{count:,}" if np.isnan(part) else f"{100 * part:.1f} %\n{count:,}"
        colour = "white" if part > 0.5 else INK
        axes.text(predicted, true, text, ha="center", va="center", fontsize=size, color=colour, in_layout=False)
    ids = range(len(classes))
    labels = label_classes(classes)
    gap = " " if many else "\n"
    absent = [f"{label}{gap}(absent)" if n == 0 else label for label, n in zip(labels, total[:, 0], strict=True)]
    axes.set_xticks(ids, labels, rotation=60 if many else 30, ha="right", rotation_mode="anchor", fontsize=max(size, 8))
    axes.set_yticks(ids, absent, fontsize=max(size, 8))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    title = say_title(scores["dataset"], scores["split"])
    axes.set(title=title, xlabel="predicted class", ylabel="true class")
    words = "share of the true class's pixels" + "; numbers in %, none below 0.5 %" * many
    bar = figure.colorbar(image, shrink=0.4 if many else 0.8, label=words)
    bar.outline.set_visible(False)
    return figure
