"""What a pixel classifier relies on, and where it is unsure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.figures.pictures import Example, make_panels, paint_errors, show_grey
from neurotome.figures.style import INK, STYLE

MOST_BARS = 25
"""Features that are drawn; the table has all."""


@matplotlib.rc_context(STYLE)
def plot_importance(importance: Mapping[str, Any]) -> Figure:
    """Draws how much macro F1 falls when each feature is shuffled, from the content of `importance.json`."""
    shown = importance["features"][:MOST_BARS]
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


@matplotlib.rc_context(STYLE)
def plot_uncertainty(examples: Sequence[tuple[Example, NDArray[np.uint8]]], classes: ClassSet) -> Figure:
    """Draws a row per example: image, how unsure the classifier is, and where it is wrong.

    Args:
        examples: Slices with their uncertainty: 1 - the probability of the chosen class, times 255; shape (y, x).
        classes: What the labels mean; with all equally likely the uncertainty is 1 - 1 / their number.
    """
    figure, panels = make_panels([[example.grey.shape] * 3 for example, _ in examples])
    figure.set_figheight(figure.get_figheight() + 0.3 + 0.35 * len(examples))  # for the colour bar and the words below rows
    shades = matplotlib.colormaps["cividis"]  # made to look alike with and without colour vision
    for row, ((name, grey, truth, predicted), uncertainty) in zip(panels, examples, strict=True):
        labelled = truth != classes.ignore
        wrong = labelled & (truth != predicted)
        show_grey(row[0], grey)
        row[0].set_ylabel(name, fontsize=9)
        image = row[1].imshow(uncertainty / 255, cmap=shades, vmin=0, vmax=1 - 1 / len(classes))
        row[2].imshow(paint_errors(grey, wrong))
        row[2].set_xlabel(_say_share(labelled, wrong, uncertainty), fontsize=9)
    for axes, title in zip(panels[0], ("Image", "Uncertainty", "Errors"), strict=True):
        axes.set_title(title, loc="center")
    # below all columns: below one of them it would move that column's panels against the others
    bar = figure.colorbar(
        image,
        ax=[axes for row in panels for axes in row],
        location="bottom",
        shrink=0.3,
        aspect=16,
        pad=0.1 / figure.get_figheight(),
        label="1 − probability of the chosen class",
    )
    bar.outline.set_visible(False)
    return figure


def _say_share(labelled: NDArray[np.bool_], wrong: NDArray[np.bool_], uncertainty: NDArray[np.uint8]) -> str:
    """Returns how many of the errors lie in the tenth of the labelled pixels that is least sure."""
    if not wrong.any():
        return "no error"
    # pixels and errors of each uncertainty, the least sure first
    pixels = np.bincount(uncertainty[labelled], minlength=256)[::-1]
    errors = np.bincount(uncertainty[wrong], minlength=256)[::-1]
    before = np.cumsum(pixels) - pixels
    # where the tenth ends among equally unsure pixels, it has its share of their errors, wherever in the image they lie
    taken = (pixels.sum() / 10 - before).clip(0, pixels)
    caught = (errors * np.divide(taken, pixels, out=np.zeros(256), where=pixels > 0)).sum()
    return f"{100 * caught / wrong.sum():.0f} % of the errors are in the least\nsure tenth of the labelled pixels"
