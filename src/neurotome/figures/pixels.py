"""What a pixel classifier relies on, and where it is unsure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from neurotome.errors import ImageError
from neurotome.figures.pictures import make_panels, paint_errors
from neurotome.figures.style import INK, STYLE
from neurotome.volume import to_display

MOST_BARS = 25
"""Features that are drawn; the table has all."""


@matplotlib.rc_context(STYLE)
def plot_importance(importance: Mapping[str, Any]) -> Figure:
    """Draws how much macro F1 falls when each feature is shuffled, the most important first, with its standard deviation.

    Args:
        importance: The content of `importance.json`.
    """
    shown = importance["features"][:MOST_BARS]
    figure = Figure(figsize=(6.4, 1.3 + 0.22 * len(shown)))
    axes = figure.subplots()
    places = np.arange(len(shown))[::-1]
    axes.barh(
        places,
        [feature["drop"] for feature in shown],
        xerr=[feature["std"] for feature in shown],
        color=(0.2, 0.4, 0.6),
        ecolor=INK,
    )
    axes.set_yticks(places, [feature["name"] for feature in shown])
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x")
    more = len(importance["features"]) - len(shown)
    axes.set(
        ylim=(-0.6, len(shown) - 0.4),
        xlabel=f"fall of macro F1 (from {importance['macro_f1']:.3f}) when the feature is shuffled",
        title=f"Permutation importance, split {importance['split']}"
        + (f"; {more} less important not shown" if more else ""),
    )
    return figure


@matplotlib.rc_context(STYLE)
def plot_uncertainty(
    examples: Sequence[tuple[str, NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.uint8]]], classes: int
) -> Figure:
    """Draws a row per example: image, how unsure the classifier is, and where it is wrong.

    Args:
        examples: Name, grey values, labelled pixels, those of them that are wrong, and uncertainty: 1 - the probability of
            the chosen class, times 255. Shapes (y, x).
        classes: How many there are; with all equally likely the uncertainty is 1 - 1 / classes.

    Raises:
        ImageError: There is no example.
    """
    if not examples:
        raise ImageError("found no image to draw; expected at least one.")
    figure, panels = make_panels([[grey.shape] * 3 for _, grey, *_ in examples])
    figure.set_figheight(figure.get_figheight() + 0.3 + 0.35 * len(examples))  # for the colour bar and the words below rows
    shades = matplotlib.colormaps["cividis"]  # made to look alike with and without colour vision
    for row, (name, grey, labelled, wrong, uncertainty) in zip(panels, examples, strict=True):
        row[0].imshow(to_display(grey), cmap="gray", vmin=0, vmax=255)
        row[0].set_ylabel(name, fontsize=9)
        image = row[1].imshow(uncertainty / 255, cmap=shades, vmin=0, vmax=1 - 1 / classes)
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
