"""How slices become a trained network and labels: the founding report's Figure 2, of neurotome's own way."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon

from neurotome.figures.style import INK, MID_GREY, PALE_GREY, STYLE, Rgb

DATA: Rgb = (0.86, 0.91, 0.96)
STEP: Rgb = (0.96, 0.93, 0.84)
NETWORK: Rgb = (0.62, 0.75, 0.87)

Point = tuple[float, float]


@matplotlib.rc_context(STYLE)
def plot_workflow() -> Figure:
    """Draws the way from data over patches, augmentation, network and loss to labels and scores."""
    figure = Figure(figsize=(11, 4.6))
    axes = figure.subplots()
    axes.set(xlim=(0, 22), ylim=(0, 9.2), aspect="equal")
    axes.axis("off")
    axes.add_patch(FancyBboxPatch((0.2, 4.9), 21.6, 3.9, boxstyle="round,pad=0,rounding_size=0.3", color=PALE_GREY))
    axes.text(0.5, 8.4, "training", fontsize=10, fontweight="bold", va="center")
    axes.text(0.5, 4.35, "application", fontsize=10, fontweight="bold", va="center")

    _draw_box(axes, (2.2, 6.6), "train slices\nwith labels", DATA)
    _draw_box(axes, (6.0, 6.6), "patches", STEP)
    _draw_box(axes, (9.8, 6.6), "augmentation\nflips, turns, grey", STEP)
    _draw_box(axes, (19.6, 6.6), "loss\nagainst labels", STEP)
    _draw_network(axes, 14.6, 6.6)
    for start, stop in ((3.7, 4.5), (7.5, 8.3), (11.3, 12.3), (16.9, 18.1)):
        _draw_arrow(axes, (start, 6.6), (stop, 6.6))
    _draw_arrow(axes, (19.6, 7.35), (14.6, 8.0), bend=0.18, dashed=True)
    axes.text(17.6, 8.45, "gradient, new weights", fontsize=8.5, ha="center", va="center", color=MID_GREY)

    _draw_box(axes, (2.2, 2.2), "test slices", DATA)
    _draw_box(axes, (6.0, 2.2), "tiles\nwith a halo", STEP)
    _draw_box(axes, (12.2, 2.2), "probabilities\nof the classes", STEP)
    _draw_box(axes, (16.0, 2.2), "labels", DATA)
    _draw_box(axes, (19.6, 2.2), "scores", DATA)
    return figure


def _draw_box(axes: Axes, middle: Point, text: str, colour: Rgb) -> None:
    x, y = middle
    box = FancyBboxPatch((x - 1.5, y - 0.75), 3, 1.5, boxstyle="round,pad=0,rounding_size=0.2", fc=colour, ec=MID_GREY)
    axes.add_patch(box)
    axes.text(x, y, text, ha="center", va="center", fontsize=9)


def _draw_network(axes: Axes, x: float, y: float) -> None:
    encoder: Sequence[Point] = ((x - 2.2, y + 1.2), (x - 0.2, y + 0.5), (x - 0.2, y - 0.5), (x - 2.2, y - 1.2))
    decoder = [(2 * x - px, py) for px, py in encoder]
    for corners, name, place in ((encoder, "encoder", x - 1.15), (decoder, "decoder", x + 1.15)):
        axes.add_patch(Polygon(corners, closed=True, facecolor=NETWORK, edgecolor=INK))
        axes.text(place, y, name, ha="center", va="center", fontsize=9)


def _draw_arrow(axes: Axes, start: Point, stop: Point, bend: float = 0, dashed: bool = False) -> None:
    style = {"color": MID_GREY, "linestyle": "--"} if dashed else {"color": INK}
    arrow = FancyArrowPatch(
        start, stop, arrowstyle="-|>", mutation_scale=12, connectionstyle=f"arc3,rad={bend}", shrinkA=0, shrinkB=0, **style
    )
    axes.add_patch(arrow)
