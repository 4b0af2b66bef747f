"""Every setting of a grid of trainings as a row: macro precision, recall and F1, grouped by recipe."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from neurotome.figures.bars import EDGE, Bar
from neurotome.figures.style import INK, MID_GREY, STYLE, can_spell

SCORES = ("Precision", "Recall", "F1")


class Setting(NamedTuple):
    """A row: its group, such as a recipe, its name, and three scores with the ends of their whiskers."""

    group: str
    name: str
    precision: Bar
    recall: Bar
    f1: Bar


@matplotlib.rc_context(STYLE)
def plot_settings(settings: Sequence[Setting], title: str = "", note: str = "") -> Figure:
    """Draws a row per setting and a panel each for precision, recall and F1: Figure 4 of the founding report.

    Rows of one group stand together under its name, in the order in which they come; `note` says what the whiskers are.
    """
    groups = [(name, list(members)) for name, members in groupby(settings, key=lambda setting: setting.group)]
    shades = matplotlib.colormaps["cividis"](np.linspace(0.25, 0.85, max(len(groups), 2)))
    rows = len(settings) + 1.3 * len(groups)
    figure = Figure(figsize=(10.5, 1.1 + 0.22 * rows))
    panels = figure.subplots(1, len(SCORES), sharey=True)
    place, places = 0.0, list[float]()
    for (group, members), colour in zip(groups, shades, strict=False):
        place += 1.3
        heading = group if can_spell(group) else f"group {len(places)}"
        panels[0].text(0, place - 0.95, heading, ha="left", va="center", fontsize=9, fontweight="bold")
        for setting in members:
            for axes, (value, ends) in zip(panels, setting[2:], strict=True):
                axes.barh(place, value or 0, 0.78, color=colour)
                if ends is not None:
                    axes.hlines(place, ends[0], ends[1], colors=[INK], linewidth=1.4, path_effects=[EDGE])
                reach = max([value or 0, *(ends or ())])
                text, shade = ("–", MID_GREY) if value is None else (f"{value:.3f}", INK)
                axes.text(reach + 0.015, place, text, ha="left", va="center", fontsize=7.5, color=shade)
            places.append(place)
            place += 1
    for axes, score in zip(panels, SCORES, strict=True):
        axes.set(xlim=(0, 1.17), xticks=np.linspace(0, 1, 6))
        axes.set_title(score, fontsize=10)
        axes.grid(True, axis="x")
        axes.tick_params(axis="y", length=0)
    names = [setting.name if can_spell(setting.name) else f"setting {number}" for number, setting in enumerate(settings, 1)]
    panels[0].set_yticks(places, names, fontsize=8)
    panels[0].set_ylim(place - 0.4, -0.2)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.supxlabel("; ".join(filter(None, ("mean over classes, pooled over all pixels", note))), fontsize=9)
    return figure
