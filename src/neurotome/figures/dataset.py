"""What is in a dataset: grey values and shares of the classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.errors import DatasetError, unknown
from neurotome.figures.bars import bars_width, draw_bars
from neurotome.figures.style import STYLE, bar_colours, check_classes, class_patches, draw_legend, line_colours


@matplotlib.rc_context(STYLE)
def plot_histograms(statistics: Mapping[str, Any], split: str, classes: ClassSet) -> Figure:
    """Draws how the grey values of each class are distributed.

    Args:
        statistics: What `measure_dataset` returned.
        split: Which split.
        classes: The same classes.

    Raises:
        DatasetError: There is no such split.
        SettingsError: The statistics are of other classes.
    """
    check_classes(statistics["classes"], classes)
    if split not in statistics["splits"]:
        raise DatasetError(f"{statistics['dataset']}: {unknown('split', split, statistics['splits'])}")
    edges = np.asarray(statistics["histogram_edges"])
    histogram = np.asarray([statistics["splits"][split]["histogram"][name] for name in classes.names], np.float64)
    figure = Figure(figsize=(8, 4.2))
    axes = figure.subplots()
    for name, counts, colour in zip(classes.names, histogram, line_colours(classes), strict=True):
        if counts.any():
            percent = 100 * counts / counts.sum()
            axes.stairs(percent, edges, color=colour, linewidth=1.6, label=name)
            axes.stairs(percent, edges, color=colour, alpha=0.12, fill=True)
        else:
            axes.plot([], [], color=colour, label=f"{name} (absent)")
    axes.set(ylabel="% of the class's pixels per bin", title=f"Grey values, {statistics['dataset']}, split {split}")
    axes.set_ylim(0, _cut_peaks(axes, histogram, edges, classes))
    low, high = _trim(histogram.sum(0), edges)
    beyond = ""
    if high - low < (edges[-1] - edges[0]) / 2:
        axes.set_xlim(low, high)
        beyond = ", the outermost 0.1 % of pixels not shown"
    axes.set_xlabel(f"grey value (bins of {edges[1] - edges[0]:.3g}{beyond})")
    axes.grid(True, axis="y")
    axes.legend()
    return figure


def _cut_peaks(axes: Axes, histogram: NDArray[np.float64], edges: NDArray[np.float64], classes: ClassSet) -> float:
    """Returns the top of the axis; single bins that dwarf all others (clipped values) are cut and told in words."""
    percent = 100 * histogram / np.maximum(histogram.sum(1, keepdims=True), 1)
    highest = np.sort(percent.ravel())[::-1]
    usual = float(highest[min(len(classes), highest.size - 1)])
    if usual == 0 or highest[0] <= 3 * usual:
        return 1.05 * float(highest[0])
    for one, bin_ in np.argwhere(percent > 1.3 * usual):
        grey = (edges[bin_] + edges[bin_ + 1]) / 2
        axes.annotate(
            f"{classes.names[one]}: {percent[one, bin_]:.0f} % at {grey:.3g}",
            (grey, 1.2 * usual - 0.07 * usual * one),
            xytext=(8, 0),
            textcoords="offset points",
        )
    return 1.3 * usual


@matplotlib.rc_context(STYLE)
def plot_class_shares(statistics: Mapping[str, Any], classes: ClassSet) -> Figure:
    """Draws the percentage of labelled pixels that each class has, per split.

    Args:
        statistics: What `measure_dataset` returned.
        classes: The same classes.

    Raises:
        SettingsError: The statistics are of other classes.
    """
    check_classes(statistics["classes"], classes)
    splits = statistics["splits"]
    # a class without a pixel is absent, which differs from one whose share rounds to nothing
    percent = {
        name: [100 * found["share"][name] if found["counts"][name] else None for found in splits.values()]
        for name in classes.names
    }
    figure = Figure(figsize=(bars_width(len(splits) * len(classes)), 4.2))
    axes = figure.subplots()
    labels = [
        f"{split}\n{_count(found['images'], 'image')}, {_count(found['slices'], 'slice')}" for split, found in splits.items()
    ]
    draw_bars(axes, labels, percent, bar_colours(classes), write=_write_percent, top=100)
    axes.set(ylabel="% of labelled pixels", title=f"Classes of {statistics['dataset']}")
    draw_legend(figure, class_patches(classes))
    return figure


def _trim(counts: NDArray[np.float64], edges: NDArray[np.float64]) -> tuple[float, float]:
    """Returns the range of grey values without the outermost 0.05 % of pixels at either end."""
    below = np.cumsum(counts) / max(counts.sum(), 1)
    first, last = np.searchsorted(below, (0.0005, 0.9995))
    return float(edges[first]), float(edges[min(last, len(counts) - 1) + 1])


def _write_percent(value: float) -> str:
    """Returns one decimal, or as many as a rare class needs to be more than 0."""
    return f"{value:.1f}" if value >= 0.1 else f"{value:.1g}"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'s' * (number != 1)}"
