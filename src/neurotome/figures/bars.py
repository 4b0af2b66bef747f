"""Bars with their values written at them: in groups, or a row for each of many classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from neurotome.classes import ClassSet
from neurotome.figures.style import INK, MID_GREY, Rgb, bar_colours, draw_legend, has_repeated_colours

Bar = tuple[float | None, Sequence[float] | None]
"""Height, None for a gap that says "absent", and the ends of the whiskers, if it has any."""

EDGE = withStroke(linewidth=3.2, foreground="white")
"""Around whiskers, which are seen on a dark bar too then."""


def plot_class_bars(
    classes: ClassSet,
    groups: Sequence[str],
    bars: Mapping[str, Sequence[Bar]],
    title: str,
    scale: str,
    note: str = "",
    *,
    write: Callable[[float], str] = "{:.2f}".format,
    top: float = 1.0,
) -> Figure:
    """Draws bars of each class, and of what else is in `bars`, side by side in groups; in rows where colours repeat."""
    colours = bar_colours(classes) + [INK] * (len(bars) - len(classes))
    if has_repeated_colours(classes):
        figure = _draw_rows(groups, bars, colours, write, top)
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        figure.supxlabel("; ".join(filter(None, (scale, note))), fontsize=9)
        return figure
    figure = Figure(figsize=(bars_width(len(groups) * len(bars)), 4.2))
    axes = figure.subplots()
    draw_bars(axes, groups, bars, colours, write, top)
    axes.set(title=title, ylabel=scale)
    axes.set_xlabel(note, fontsize=9)
    draw_legend(figure, [Patch(color=colour, label=name) for name, colour in zip(bars, colours, strict=True)])
    return figure


def draw_bars(
    axes: Axes,
    groups: Sequence[str],
    bars: Mapping[str, Sequence[Bar]],
    colours: Sequence[Rgb],
    write: Callable[[float], str] = "{:.2f}".format,
    top: float = 1.0,
) -> None:
    """Draws a bar per group and series with its value above."""
    width = 0.86 / len(bars)
    for i, (members, colour) in enumerate(zip(bars.values(), colours, strict=True)):
        for group, (value, interval) in enumerate(members):
            place = group + (i - (len(bars) - 1) / 2) * width
            if value is None:
                axes.text(place, 0.012 * top, "absent", rotation=90, ha="center", va="bottom", fontsize=8, color=MID_GREY)
                continue
            axes.bar(place, value, width * 0.9, color=colour)
            if interval is not None:
                axes.vlines(place, interval[0], interval[1], colors=[INK], linewidth=1.4, path_effects=[EDGE])
            reach = max([value, *(interval or ())])
            axes.text(place, reach + 0.012 * top, write(value), ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(groups)), groups)
    axes.tick_params(axis="x", length=0)
    axes.set(xlim=(-0.55, len(groups) - 0.45), ylim=(0, 1.06 * top))
    axes.set_yticks(np.linspace(0, top, 6))
    axes.grid(True, axis="y")


def _draw_rows(
    groups: Sequence[str],
    bars: Mapping[str, Sequence[Bar]],
    colours: Sequence[Rgb],
    write: Callable[[float], str],
    top: float,
) -> Figure:
    """Returns a panel per group and a row per series: names fit beside rows where colours do not suffice."""
    figure = Figure(figsize=(2.6 + 2.0 * len(groups), 1.1 + 0.22 * len(bars)))
    panels = list(figure.subplots(1, len(groups), sharey=True, squeeze=False).flat)
    for group, (axes, title) in enumerate(zip(panels, groups, strict=True)):
        for row, (members, colour) in enumerate(zip(bars.values(), colours, strict=True)):
            value, interval = members[group]
            axes.barh(row, value or 0, 0.8, color=colour)
            if interval is not None:
                axes.hlines(row, interval[0], interval[1], colors=[INK], linewidth=1.4, path_effects=[EDGE])
            reach = max([value or 0, *(interval or ())])
            text, shade = ("absent", MID_GREY) if value is None else (write(value), INK)
            axes.text(reach + 0.015 * top, row, text, ha="left", va="center", fontsize=7.5, color=shade)
        axes.set_xlim(0, 1.16 * top)
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.set_title(title, fontsize=10)
        axes.grid(True, axis="x")
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(bars)), list(bars), fontsize=8)
    panels[0].set_ylim(len(bars) - 0.4, -0.6)
    return figure


def bars_width(bars: int) -> float:
    """Returns inches that leave room for a number over each bar."""
    return float(np.clip(1.5 + 0.36 * bars, 6.4, 30))
