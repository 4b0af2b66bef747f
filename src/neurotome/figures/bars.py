"""Bars with their values written at them: in groups, or a row for each of many classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from neurotome.figures.style import INK, MID_GREY, Rgb

EDGE = withStroke(linewidth=3.2, foreground="white")
"""Around whiskers, which are seen on a dark bar too then."""


def draw_bars(
    axes: Axes,
    groups: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    colours: Sequence[Rgb],
    whiskers: Mapping[str, Sequence[Sequence[float] | None]] | None = None,
    *,
    write: Callable[[float], str] = "{:.2f}".format,
    top: float = 1.0,
) -> None:
    """Draws a bar per group and series with its value above; None is a gap that says "absent"."""
    width = 0.86 / len(series)
    for i, ((name, values), colour) in enumerate(zip(series.items(), colours, strict=True)):
        for group, value in enumerate(values):
            place = group + (i - (len(series) - 1) / 2) * width
            if value is None:
                axes.text(place, 0.012 * top, "absent", rotation=90, ha="center", va="bottom", fontsize=8, color=MID_GREY)
                continue
            axes.bar(place, value, width * 0.9, color=colour)
            reach = value
            interval = whiskers[name][group] if whiskers else None
            if interval is not None:
                low, high = interval
                axes.vlines(place, low, high, colors=[INK], linewidth=1.4, path_effects=[EDGE])
                reach = max(value, high)
            axes.text(place, reach + 0.012 * top, write(value), ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(groups)), groups)
    axes.tick_params(axis="x", length=0)
    axes.set(xlim=(-0.55, len(groups) - 0.45), ylim=(0, 1.06 * top))
    axes.set_yticks(np.linspace(0, top, 6))
    axes.grid(True, axis="y")


def draw_rows(
    groups: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    colours: Sequence[Rgb],
    whiskers: Mapping[str, Sequence[Sequence[float] | None]] | None = None,
    *,
    write: Callable[[float], str] = "{:.2f}".format,
    top: float = 1.0,
) -> Figure:
    """Returns a figure with a panel per group and a row per series: names fit beside rows where colours do not suffice."""
    figure = Figure(figsize=(2.6 + 2.0 * len(groups), 1.1 + 0.22 * len(series)))
    panels = list(figure.subplots(1, len(groups), sharey=True, squeeze=False).flat)
    for group, (axes, title) in enumerate(zip(panels, groups, strict=True)):
        for row, ((name, values), colour) in enumerate(zip(series.items(), colours, strict=True)):
            value = values[group]
            interval = whiskers[name][group] if whiskers else None
            if value is not None:
                axes.barh(row, value, 0.8, color=colour)
            if interval is not None:
                axes.hlines(row, *interval, colors=[INK], linewidth=1.4, path_effects=[EDGE])
            reach = 0 if value is None else max(value, interval[1] if interval else 0)
            text, shade = ("absent", MID_GREY) if value is None else (write(value), INK)
            axes.text(reach + 0.015 * top, row, text, ha="left", va="center", fontsize=7.5, color=shade)
        axes.set_xlim(0, 1.16 * top)
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.set_title(title, fontsize=10)
        axes.grid(True, axis="x")
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(series)), list(series), fontsize=8)
    panels[0].set_ylim(len(series) - 0.4, -0.6)
    return figure


def bars_width(bars: int) -> float:
    """Returns inches that leave room for a number over each bar."""
    return float(np.clip(1.5 + 0.36 * bars, 6.4, 30))
