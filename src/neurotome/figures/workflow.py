"""How slices become a trained network, labels and scores: Figure 2 of the founding report, of neurotome's own way."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from neurotome.figures.style import INK, MID_GREY, STYLE, Rgb

DATA: Rgb = (0.84, 0.90, 0.96)
STEP: Rgb = (0.97, 0.93, 0.82)
ENCODER: Rgb = (0.45, 0.62, 0.79)
DECODER: Rgb = (0.53, 0.73, 0.62)

TRAINING, NETWORK, APPLICATION = 7.2, 4.9, 2.2  # heights at which things stand
LEVELS = (6.8, 4.8, 3.1, 1.8)  # heights of the feature maps, from the image's resolution to the coarsest

Point = tuple[float, float]


@matplotlib.rc_context(STYLE)
def plot_workflow() -> Figure:
    """Draws the way from data over patches, augmentation, network and loss to labels and scores."""
    figure = Figure(figsize=(11, 4.5))
    axes = figure.subplots()
    axes.set(xlim=(0, 25.6), ylim=(0.3, 10.2), aspect="equal")
    axes.axis("off")
    for text, y in (("Training", TRAINING + 1.3), ("Application", APPLICATION + 1.3)):
        axes.text(0.4, y, text, fontsize=10, fontweight="bold", va="center")
    _draw_network(axes, 14.7)
    _draw_row(axes, TRAINING, [(1.9, "train slices\nand labels", DATA), (5.7, "patches", STEP), (9.5, "augmentation", STEP)])
    _draw_row(axes, APPLICATION, [(1.9, "test slices", DATA), (5.7, "tiles with\na halo", STEP)])
    _draw_row(axes, TRAINING, [(20, "loss", STEP)])
    _draw_row(axes, APPLICATION, [(20, "labels", DATA), (23.9, "scores", DATA)])
    for start, stop in ((11, 12), (17.4, 18.5)):
        _draw_arrow(axes, [(start, TRAINING), (stop, TRAINING)])
    for start, stop in ((7.2, 12), (17.4, 18.5)):
        _draw_arrow(axes, [(start, APPLICATION), (stop, APPLICATION)])
    _draw_arrow(axes, [(9.5, TRAINING + 0.75), (9.5, 9.3), (20, 9.3), (20, TRAINING + 0.75)])
    axes.text(14.7, 9.5, "labels, moved as the image is", fontsize=8.5, ha="center", va="bottom")
    _draw_arrow(axes, [(20, TRAINING - 0.75), (20, NETWORK), (17.4, NETWORK)], dashed=True)
    axes.text(20.2, NETWORK, "gradient:\nnew weights", fontsize=8.5, ha="left", va="center")
    _draw_arrow(axes, [(23.9, NETWORK - 0.4), (23.9, APPLICATION + 0.75)])
    axes.text(23.9, NETWORK - 0.3, "test labels", fontsize=8.5, ha="center", va="bottom")
    return figure


def _draw_row(axes: Axes, y: float, boxes: Sequence[tuple[float, str, Rgb]]) -> None:
    """Draws boxes of one height, each with its middle, text and colour, and arrows from one to the next."""
    for x, text, colour in boxes:
        shape = "round,pad=0,rounding_size=0.2"
        axes.add_patch(FancyBboxPatch((x - 1.5, y - 0.75), 3, 1.5, boxstyle=shape, facecolor=colour, edgecolor=MID_GREY))
        axes.text(x, y, text, ha="center", va="center", fontsize=9)
    for (left, *_), (right, *_) in pairwise(boxes):
        _draw_arrow(axes, [(left + 1.5, y), (right - 1.5, y)])


def _draw_network(axes: Axes, middle: float) -> None:
    """Draws the feature maps of encoder and decoder as bars, and what the decoder takes over from each level."""
    for level, height in enumerate(LEVELS):
        away = 2.4 - 0.62 * level
        for side, colour in ((-1, ENCODER), (1, DECODER)):
            left, bottom = middle + side * away - 0.21, NETWORK - height / 2
            axes.add_patch(Rectangle((left, bottom), 0.42, height, facecolor=colour, edgecolor=INK, linewidth=0.8))
        y = NETWORK + height / 2 - 0.3
        _draw_arrow(axes, [(middle - away + 0.21, y), (middle + away - 0.21, y)], size=6)
    names: Sequence[tuple[float, str]] = ((middle - 1.5, "encoder"), (middle + 1.5, "decoder"))
    for x, name in names:
        axes.text(x, NETWORK - LEVELS[0] / 2 - 0.25, name, ha="center", va="top", fontsize=9)


def _draw_arrow(axes: Axes, corners: Sequence[Point], dashed: bool = False, size: float = 12) -> None:
    """Draws a line through corners with a head at its end."""
    style, width = "--" if dashed else "-", 1.2 if size > 6 else 0.8
    axes.plot(*zip(*corners[:-1], strict=True), color=INK, linestyle=style, linewidth=width)
    head = FancyArrowPatch(*corners[-2:], arrowstyle="-|>", mutation_scale=size, color=INK, shrinkA=0, shrinkB=0)
    head.set(linestyle=style, linewidth=width)
    axes.add_patch(head)
