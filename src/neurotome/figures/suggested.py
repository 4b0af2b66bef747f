"""Where to annotate next: numbered frames over a slice and over how uncertain the model is of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from neurotome.figures.style import STYLE

MOST_SHOWN = 1000
"""Pixels along an edge from which on a slice is shown at every second, third, ... pixel."""

Frame = tuple[int, int, int, int]
"""Number, first row, first column and edge in pixels."""


@matplotlib.rc_context(STYLE)
def plot_suggested(
    title: str, grey: NDArray[np.uint8], uncertainty: NDArray[np.float32], frames: Sequence[Frame], measure: str
) -> Figure:
    """Draws a slice and its uncertainty side by side, both with the frames.

    Args:
        title: Which slice it is.
        grey: Shape (y, x).
        uncertainty: Of the same view, coarser; any shape.
        frames: What is suggested in this slice.
        measure: What the uncertainty is, with its unit.
    """
    height, width = grey.shape
    tall = float(np.clip(height / width, 0.3, 2.5))
    figure = Figure(figsize=(9.2, 4.2 * tall + 1.0))
    image, unsure = figure.subplots(1, 2, sharex=True, sharey=True)
    extent = (0, width, height, 0)
    step = -(-max(grey.shape) // MOST_SHOWN)
    image.imshow(grey[::step, ::step], cmap="gray", vmin=0, vmax=255, extent=extent)
    # the hundredth that is least certain would leave nothing but itself to see
    most = max(float(np.percentile(uncertainty, 99)), 1e-6)
    shades: Any = unsure.imshow(uncertainty, cmap="cividis", vmin=0, vmax=most, extent=extent)
    for axes in (image, unsure):
        axes.set_xlabel("x (pixels)")
        for frame in frames:
            _draw_frame(axes, *frame)
    image.set_ylabel("y (pixels)")
    image.set_title(title)
    unsure.set_title("Uncertainty")
    bar = figure.colorbar(shades, ax=unsure, location="right", shrink=0.8, extend="max", label=measure)
    bar.outline.set_visible(False)
    return figure


def _draw_frame(axes: Axes, number: int, y: int, x: int, edge: int) -> None:
    outline = [withStroke(linewidth=3.5, foreground="black")]  # white on black is seen on every grey and every shade
    axes.add_patch(Rectangle((x, y), edge, edge, fill=False, edgecolor="white", linewidth=1.5, path_effects=outline))
    axes.text(
        x + edge / 2,
        y + edge / 2,
        str(number),
        color="white",
        ha="center",
        va="center",
        fontsize=12,
        fontweight="bold",
        path_effects=outline,
    )
