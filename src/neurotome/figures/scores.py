"""Scores of one method by class, its confusions, and methods side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from neurotome.classes import ClassSet
from neurotome.errors import SettingsError
from neurotome.figures.bars import bars_width, draw_bars
from neurotome.figures.style import INK, PALE_GREY, STYLE, Rgb, bar_colours, check_classes, class_patches, draw_legend

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


@matplotlib.rc_context(STYLE)
def plot_methods(scores: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draws macro and weighted means of precision, recall and F1 of several methods side by side.

    The macro F1 has whiskers, the 95 % interval, where a method has intervals.

    Args:
        scores: The content of `scores/<split>.json` of each method, by its name.

    Raises:
        SettingsError: There is no method.
    """
    if not scores:
        raise SettingsError("found no method to compare; expected the scores of at least one.")
    keys = ("precision", "recall", "f1")
    shades = matplotlib.colormaps["cividis"](np.linspace(0.15, 0.95, max(len(scores), 2)))
    colours: list[Rgb] = [(float(r), float(g), float(b)) for r, g, b, _ in shades[: len(scores)]]
    figure = Figure(figsize=(bars_width(6 * len(scores)), 4.2))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, mean, title in zip(
        panels, ("macro", "weighted"), ("Mean over classes", "Mean weighted by pixels"), strict=True
    ):
        whiskers = {
            name: [(found["intervals"] or {}).get("macro_f1") if (mean, key) == ("macro", "f1") else None for key in keys]
            for name, found in scores.items()
        }
        values = {name: [found[mean][key] for key in keys] for name, found in scores.items()}
        draw_bars(axes, [SCORES[key] for key in keys], values, colours, whiskers)
        axes.set_title(title)
    if any(found["intervals"] for found in scores.values()):
        panels[0].set_xlabel(WHISKERS, fontsize=9)
    panels[0].set_ylabel("score, pooled over all pixels")
    draw_legend(figure, [Patch(color=colour, label=name) for name, colour in zip(scores, colours, strict=True)])
    return figure
