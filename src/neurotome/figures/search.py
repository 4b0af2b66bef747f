"""What a search has tried and found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from neurotome.figures.style import INK, LONGEST_LABEL, MID_GREY, STYLE, draw_legend, unit

COMPLETE, BEST, GIVEN = unit((0, 114, 178)), unit((213, 94, 0)), INK
"""Blue and vermilion are told apart by all eyes (Okabe and Ito 2008); forms differ too."""

ACROSS = 3
"""Panels of settings in a row."""

Row = Mapping[str, Any]

SCORE = "validation macro F1"


@matplotlib.rc_context(STYLE)
def plot_search(rows: Sequence[Row], settings: Sequence[str], logarithmic: Sequence[str] = ()) -> Figure:
    """Draws the score of each trial with the best so far, and the scores against every setting that was searched.

    Args:
        rows: A row for each trial in order: `trial`, `state`, `score` (None where there is none), `values` by setting.
        settings: Names of the settings, each a panel.
        logarithmic: Those that were drawn on a logarithmic scale.
    """
    down = math.ceil(len(settings) / ACROSS)
    figure = Figure(figsize=(11, 3.4 + 2.7 * down))
    grid = figure.add_gridspec(1 + down, ACROSS, height_ratios=[3.0, *[2.4] * down])
    top = figure.add_subplot(grid[0, :])
    complete = [row for row in rows if row["state"] == "complete"]
    best = max(complete, key=lambda row: row["score"], default=None)
    _draw_points(top, rows, [row["trial"] for row in rows], best)
    if complete:
        numbers = [row["trial"] for row in complete]
        running = np.maximum.accumulate([row["score"] for row in complete])
        top.step([*numbers, rows[-1]["trial"]], [*running, running[-1]], where="post", color=BEST, zorder=1)
    for row in rows:
        if row["score"] is None and row["state"] == "failed":
            top.plot(row["trial"], 0.02, "x", color=MID_GREY, transform=top.get_xaxis_transform(), clip_on=False)
    top.set(xlabel="trial (0: the settings as given)", ylabel=SCORE)
    top.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    top.set_xlim(-0.6, max((row["trial"] for row in rows), default=0) + 0.6)
    top.set_title(_say_result(best, complete))
    top.grid(True)
    for place, name in enumerate(settings):
        axes = figure.add_subplot(grid[1 + place // ACROSS, place % ACROSS], sharey=top)
        _draw_setting(axes, rows, name, name in logarithmic, best)
        if place % ACROSS == 0:
            axes.set_ylabel(SCORE)
    draw_legend(figure, _list_handles(rows))
    return figure


def _draw_setting(axes: Axes, rows: Sequence[Row], name: str, log: bool, best: Row | None) -> None:
    """Draws scores against one setting: numbers on an axis, anything else in columns."""
    values = [row["values"].get(name) for row in rows]
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values if value is not None):
        _draw_points(axes, rows, values, best)
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if _spans(values) < 1.5 else (1,)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(f"{name}{' (logarithmic)' if log else ''}")
    else:
        names = list(dict.fromkeys(str(value) for value in values if value is not None))
        # side by side within a column, in the order of the trials, so that equal scores do not hide each other
        spread = np.linspace(-0.25, 0.25, max(2, len(rows)))
        places = [None if v is None else names.index(str(v)) + spread[i] for i, v in enumerate(values)]
        _draw_points(axes, rows, places, best)
        short = [text if len(text) <= LONGEST_LABEL else f"{text[: LONGEST_LABEL - 1]}…" for text in names]
        labels = [text.replace(" + ", "\n+ ") for text in short]
        axes.set_xticks(range(len(names)), labels, fontsize=8)
        axes.set_xlim(-0.6, len(names) - 0.4)
        axes.set_xlabel(name)
        if sum(max(map(len, text.split("\n"))) for text in labels) > 48:
            axes.tick_params(axis="x", rotation=25)
    axes.grid(True, axis="y")


def _draw_points(axes: Axes, rows: Sequence[Row], places: Sequence[Any], best: Row | None) -> None:
    """Draws a point for each trial with a score: hollow where it was ended early, in a square as given, a star the best."""
    for row, place in zip(rows, places, strict=True):
        if row["score"] is None or place is None:
            continue
        if row["state"] == "pruned":
            axes.plot(place, row["score"], "o", markerfacecolor="white", color=MID_GREY, markersize=5)
        elif row is best:
            axes.plot(place, row["score"], "*", color=BEST, markersize=14, markeredgecolor="white", zorder=4)
        else:
            axes.plot(place, row["score"], "o", color=COMPLETE, markersize=5.5, zorder=3)
        if row["trial"] == 0:
            axes.plot(place, row["score"], "s", color=GIVEN, markersize=12, markerfacecolor="none", zorder=5)


def _list_handles(rows: Sequence[Row]) -> list[Line2D]:
    states = {row["state"] for row in rows}
    handles = [
        Line2D([], [], linestyle="", marker="o", color=COMPLETE, label="trial"),
        Line2D([], [], linestyle="", marker="*", markersize=11, color=BEST, label="best"),
        Line2D([], [], color=BEST, label="best so far"),
        Line2D(
            [], [], linestyle="", marker="s", markersize=9, markerfacecolor="none", color=GIVEN, label="settings as given"
        ),
    ]
    if "pruned" in states:
        hollow = Line2D([], [], linestyle="", marker="o", markerfacecolor="white", color=MID_GREY)
        hollow.set_label("ended early (its last score)")
        handles.append(hollow)
    if "failed" in states:
        handles.append(Line2D([], [], linestyle="", marker="x", color=MID_GREY, label="failed"))
    return handles


def _say_result(best: Row | None, complete: Sequence[Row]) -> str:
    if best is None:
        return "No trial has a score"
    given = next((row["score"] for row in complete if row["trial"] == 0), None)
    beside = "" if given is None else f", settings as given {given:.3f}"
    return f"Best {best['score']:.3f} by trial {best['trial']}{beside}"


def _spans(values: Sequence[Any]) -> float:
    """Returns how many powers of ten positive numbers span."""
    known = [value for value in values if value]
    return math.log10(max(known) / min(known)) if known else 0.0
