"""Scores: by class, as confusions, of methods side by side, and what they owe to each feature of pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from neurotome.classes import ClassSet
from neurotome.figures.bars import Bar, bars_width, draw_bars, plot_class_bars
from neurotome.figures.style import INK, PALE_GREY, STYLE, Rgb, can_spell, draw_legend, label_classes, say_title
from neurotome.statistics import Estimate, IntervalSettings, estimate_all

SCORES = {"precision": "Precision", "recall": "Recall", "f1": "F1", "iou": "IoU"}
SCALE = "score, pooled over all pixels"
WHISKERS = "whiskers: 95 % interval"
KEYS = ("precision", "recall", "f1")
MEANS = {"macro": "Mean over classes", "weighted": "Mean weighted by pixels"}
MOST_COUNTED = 12  # classes up to which the confusion matrix has room for counts; beyond there are percentages alone
MOST_BESIDE = 5  # methods whose two means stand side by side
MOST_FEATURES = 25  # that are drawn; the table has all


@matplotlib.rc_context(STYLE)
def plot_class_scores(scores: Mapping[str, Any], classes: ClassSet) -> Figure:
    """Draws precision, recall, F1 and IoU of each class as bars, and their macro means.

    Whiskers are the intervals where `scores`, the content of `scores/<split>.json`, has some.
    """
    intervals = scores["intervals"]

    def list_bars(measured: Mapping[str, float | None], reaches: Mapping[str, Any]) -> list[Bar]:
        return [(measured[key], reaches[key]) for key in SCORES]

    bars = {
        label: list_bars(scores["per_class"][name], intervals["per_class"][name])
        for label, name in zip(label_classes(classes), classes.names, strict=True)
    }
    bars["macro mean"] = list_bars(scores["macro"], intervals["macro"])
    note = WHISKERS if intervals["macro"]["f1"] else ""
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


@matplotlib.rc_context(STYLE)
def plot_methods(
    scores: Mapping[str, Sequence[Mapping[str, Any]]], interval: IntervalSettings = IntervalSettings()
) -> Figure:
    """Draws macro and weighted means of several methods side by side, as in Figure 4 of the founding report.

    Whiskers are the intervals of the mean over runs, where there is enough to measure them.

    Args:
        scores: By the method's name, the content of `scores/<split>.json` of each of its runs.
        interval: How intervals are measured.
    """
    paths = {(mean, key): f"{mean}.{key}" for mean in MEANS for key in KEYS}
    found = {name: estimate_all(runs, list(paths.values()), interval) for name, runs in scores.items()}
    shades = matplotlib.colormaps["cividis"](np.linspace(0.15, 0.95, max(len(scores), 2)))
    colours: list[Rgb] = [(float(r), float(g), float(b)) for r, g, b, _ in shades[: len(scores)]]
    # one below the other where side by side would be too wide for a page
    many = len(scores) > MOST_BESIDE
    figure = Figure(figsize=(bars_width((3 if many else 6) * len(scores)), 7.4 if many else 4.2))
    panels = figure.subplots(*((2, 1) if many else (1, 2)), sharey=True)
    for axes, (mean, title) in zip(panels, MEANS.items(), strict=True):
        bars = {name: [_to_bar(estimates[paths[mean, key]]) for key in KEYS] for name, estimates in found.items()}
        draw_bars(axes, [SCORES[key] for key in KEYS], bars, colours)
        axes.set_title(title)
    whiskers = any(one.low is not None for estimates in found.values() for one in estimates.values())
    seeds = "slices and seeds" if any(len(runs) > 1 for runs in scores.values()) else "slices"
    if whiskers:
        panels[-1 if many else 0].set_xlabel(f"whiskers: {100 * interval.level:g} % interval over {seeds}", fontsize=9)
    for axes in panels[: 2 if many else 1]:
        axes.set_ylabel(SCALE)
    names = [name if can_spell(name) else f"method {number}" for number, name in enumerate(scores, 1)]
    draw_legend(figure, [Patch(color=colour, label=name) for name, colour in zip(names, colours, strict=True)])
    return figure


def _to_bar(found: Estimate) -> Bar:
    return found.value, None if found.low is None or found.high is None else (found.low, found.high)


def summarise(values: Sequence[float | None]) -> Bar:
    """Returns the mean of what is known of a score of some runs; lowest and highest too if there are several runs."""
    known = [float(value) for value in values if value is not None]
    if not known:
        return None, None
    return float(np.mean(known)), (min(known), max(known)) if len(values) > 1 else None


@matplotlib.rc_context(STYLE)
def plot_importance(importance: Mapping[str, Any]) -> Figure:
    """Draws how much macro F1 falls when each feature is shuffled, from the content of `importance.json`."""
    shown = importance["features"][:MOST_FEATURES]
    figure = Figure(figsize=(6.4, 1.3 + 0.22 * len(shown)))
    axes = figure.subplots()
    places = np.arange(len(shown))[::-1]
    names, drops, stds = ([feature[key] for feature in shown] for key in ("name", "drop", "std"))
    axes.barh(places, drops, xerr=stds, color=(0.2, 0.4, 0.6), ecolor=INK)
    axes.set_yticks(places, names)
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x")
    more = len(importance["features"]) - len(shown)
    axes.set(
        ylim=(-0.6, len(shown) - 0.4),
        xlabel=f"fall of macro F1 (from {importance['macro_f1']:.3f}) when the feature is shuffled",
        title=f"Permutation importance, split {importance['split']}{f'; {more} less important not shown' if more else ''}",
    )
    return figure
