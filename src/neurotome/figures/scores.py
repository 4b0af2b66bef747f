"""Scores of one method by class, and its confusions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from neurotome.classes import ClassSet
from neurotome.figures.bars import bars_width, draw_bars
from neurotome.figures.style import INK, PALE_GREY, STYLE, bar_colours, check_classes, class_patches, draw_legend

SCORES = {"precision": "Precision", "recall": "Recall", "f1": "F1", "iou": "IoU"}
MEAN = "macro mean"
WHISKERS = "whiskers: 95 % interval of F1"


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
    found = {**scores["per_class"], MEAN: scores["macro"]}
    names = [*classes.names, MEAN]
    figure = Figure(figsize=(bars_width(len(SCORES) * len(names)), 4.2))
    axes = figure.subplots()
    draw_bars(
        axes,
        list(SCORES.values()),
        {name: [found[name][key] for key in SCORES] for name in names},
        [*bar_colours(classes), INK],
        {name: [intervals.get(name) if key == "f1" else None for key in SCORES] for name in names},
    )
    axes.set(title=f"{scores['dataset']}, split {scores['split']}", ylabel="score, pooled over all pixels")
    if known:
        axes.set_xlabel(WHISKERS, fontsize=9)
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
    side = 2.2 + 1.15 * len(classes)
    figure = Figure(figsize=(side + 1.2, side))
    axes = figure.subplots()
    shades = matplotlib.colormaps["Blues"].with_extremes(bad=PALE_GREY)
    image = axes.imshow(np.ma.masked_invalid(share), cmap=shades, vmin=0, vmax=1)
    for (true, found), count in np.ndenumerate(counts):
        part = share[true, found]
        text = f"{count:,}" if np.isnan(part) else f"{100 * part:.1f} %\n{count:,}"
        axes.text(found, true, text, ha="center", va="center", fontsize=9, color="white" if part > 0.5 else INK)
    ids = range(len(classes))
    absent = [f"{name}\n(absent)" if n == 0 else name for name, n in zip(classes.names, total[:, 0], strict=True)]
    axes.set_xticks(ids, classes.names, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(ids, absent)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(title=f"{scores['dataset']}, split {scores['split']}", xlabel="predicted class", ylabel="true class")
    bar = figure.colorbar(image, shrink=0.8, label="share of the true class's pixels")
    bar.outline.set_visible(False)
    return figure
