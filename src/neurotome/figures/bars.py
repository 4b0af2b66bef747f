"""Grouped bars with their values written above."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from neurotome.figures.style import INK, MID_GREY, Rgb


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
                edge = withStroke(linewidth=3.2, foreground="white")  # seen on a dark bar too
                axes.vlines(place, low, high, colors=[INK], linewidth=1.4, path_effects=[edge])
                reach = max(value, high)
            axes.text(place, reach + 0.012 * top, write(value), ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(groups)), groups)
    axes.tick_params(axis="x", length=0)
    axes.set(xlim=(-0.55, len(groups) - 0.45), ylim=(0, 1.06 * top))
    axes.set_yticks(np.linspace(0, top, 6))
    axes.grid(True, axis="y")


def bars_width(bars: int) -> float:
    """Returns inches that leave room for a number over each bar."""
    return float(np.clip(1.5 + 0.36 * bars, 6.4, 30))
