"""What is in a dataset: grey values and shares of the classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.figures.bars import Bar, plot_class_bars
from neurotome.figures.style import (
    INK,
    MID_GREY,
    STYLE,
    can_spell,
    draw_legend,
    has_repeated_colours,
    label_classes,
    line_colours,
    say_title,
)
from neurotome.tables import count

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@matplotlib.rc_context(STYLE)
def plot_histograms(statistics: Mapping[str, Any], split: str, classes: ClassSet) -> Figure:
    """Draws how the grey values of each class are distributed in a split, from what `measure_dataset` returned."""
    edges = np.asarray(statistics["histogram_edges"])
    histogram = np.asarray([statistics["splits"][split]["histogram"][name] for name in classes.names], np.float64)
    title = f"Grey values, {say_title(statistics['dataset'], split)}"
    if has_repeated_colours(classes):
        return _draw_ranges(histogram, edges, classes, title)
    figure = Figure(figsize=(8, 4.2))
    axes = figure.subplots()
    percent = 100 * histogram / np.maximum(histogram.sum(1, keepdims=True), 1)
    handles = []
    for label, shares, colour in zip(label_classes(classes), percent, line_colours(classes), strict=True):
        handles.append(Line2D([], [], color=colour, label=label if shares.any() else f"{label} (absent)"))
        if shares.any():
            axes.stairs(shares, edges, color=colour, linewidth=1.6, label=label)
            axes.stairs(shares, edges, color=colour, alpha=0.12, fill=True)
    axes.set(ylabel="% of the class's pixels per bin", title=title)
    axes.set_ylim(0, _cut_peaks(axes, percent, edges, classes))
    pixels = histogram.sum(0)
    first, last = np.searchsorted(np.cumsum(pixels) / max(pixels.sum(), 1), (0.0005, 0.9995))
    low, high = edges[first], edges[min(last, len(pixels) - 1) + 1]
    beyond = ""
    if high - low < (edges[-1] - edges[0]) / 2:
        axes.set_xlim(low, high)
        beyond = ", the outermost 0.1 % of pixels not shown"
    axes.set_xlabel(f"grey value (bins of {edges[1] - edges[0]:.3g}{beyond})")
    axes.grid(True, axis="y")
    draw_legend(figure, handles)
    return figure


def _cut_peaks(axes: Axes, percent: NDArray[np.float64], edges: NDArray[np.float64], classes: ClassSet) -> float:
    """Returns the top of the axis; single bins that dwarf all others (clipped values) are cut and told in words."""
    highest = np.sort(percent.ravel())[::-1]
    usual = float(highest[min(len(classes), highest.size - 1)])
    if usual == 0 or highest[0] <= 3 * usual:
        return 1.05 * float(highest[0])
    labels = label_classes(classes)
    for row, (number, bin_) in enumerate(np.argwhere(percent > 1.3 * usual)):
        grey = (edges[bin_] + edges[bin_ + 1]) / 2
        left = grey > (edges[0] + edges[-1]) / 2
        axes.annotate(
            f"{labels[number]}: {percent[number, bin_]:.0f} % at {grey:.3g}",
            (grey, (1.2 - 0.07 * row) * usual),
            xytext=(-8 if left else 8, 0),
            textcoords="offset points",
            ha="right" if left else "left",
        )
    return 1.3 * usual


def _draw_ranges(histogram: NDArray[np.float64], edges: NDArray[np.float64], classes: ClassSet, title: str) -> Figure:
    """Draws a row per class with its median and the ranges of half and of nine tenths of its pixels."""
    figure = Figure(figsize=(8, 1.1 + 0.22 * len(classes)))
    axes = figure.subplots()
    middles = (edges[1:] + edges[:-1]) / 2
    for row, (counts, colour) in enumerate(zip(histogram, line_colours(classes), strict=True)):
        if not counts.any():
            axes.text(edges[0], row, "absent", va="center", fontsize=7.5, color=MID_GREY)
            continue
        below = np.cumsum(counts) / counts.sum()
        lowest, low, median, high, highest = middles[np.searchsorted(below, QUANTILES)]
        axes.hlines(row, lowest, highest, colors=[colour], linewidth=1.5)
        axes.hlines(row, low, high, colors=[colour], linewidth=7)
        axes.plot(median, row, "o", color=INK, markersize=4)
    axes.set_yticks(range(len(classes)), label_classes(classes), fontsize=8)
    axes.set(ylim=(len(classes) - 0.4, -0.6), title=title)
    axes.set_xlabel("grey value: median, half of the class's pixels (thick), nine tenths (thin)")
    axes.grid(True, axis="x")
    return figure


@matplotlib.rc_context(STYLE)
def plot_class_shares(statistics: Mapping[str, Any], classes: ClassSet) -> Figure:
    """Draws the percentage of labelled pixels that each class has in each split, from what `measure_dataset` returned."""
    splits = statistics["splits"]
    # a class without a pixel is absent, which differs from one whose share rounds to nothing
    percent: dict[str, list[Bar]] = {
        label: [(100 * measured["share"][name] if measured["counts"][name] else None, None) for measured in splits.values()]
        for label, name in zip(label_classes(classes), classes.names, strict=True)
    }
    groups = [
        f"{split}\n{count(measured['images'], 'image')}, {count(measured['slices'], 'slice')}"
        for split, measured in splits.items()
    ]
    title = f"Classes of {statistics['dataset']}" if can_spell(statistics["dataset"]) else "Classes"
    largest = max(share or 0 for shares in percent.values() for share, _ in shares)
    top = (largest or 1) if has_repeated_colours(classes) else 100
    return plot_class_bars(classes, groups, percent, title, "% of labelled pixels", write=_write_percent, top=top)


def _write_percent(value: float) -> str:
    """Returns one decimal, or as many as a rare class needs to be more than 0."""
    return f"{value:.1f}" if value >= 0.1 else f"{value:.1g}"
