"""Methods side by side, as in Figure 4 of the founding report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from neurotome.figures.bars import Bar, bars_width, draw_bars
from neurotome.figures.scores import SCALE, SCORES, WHISKERS
from neurotome.figures.style import STYLE, Rgb, can_spell, draw_legend

KEYS = ("precision", "recall", "f1")
MOST_BESIDE = 5
"""Methods whose two means stand side by side."""
MEANS = {"macro": "Mean over classes", "weighted": "Mean weighted by pixels"}


@matplotlib.rc_context(STYLE)
def plot_methods(scores: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draws macro and weighted means of precision, recall and F1 of several methods side by side.

    A method with several runs, such as of several seeds, is drawn as their mean with whiskers from the lowest to the
    highest; a single run has whiskers on macro F1, its 95 % interval, where it has intervals.

    Args:
        scores: By the method's name, the content of `scores/<split>.json` of each of its runs.
    """
    shades = matplotlib.colormaps["cividis"](np.linspace(0.15, 0.95, max(len(scores), 2)))
    colours: list[Rgb] = [(float(r), float(g), float(b)) for r, g, b, _ in shades[: len(scores)]]
    # one below the other where side by side would be too wide for a page
    many = len(scores) > MOST_BESIDE
    figure = Figure(figsize=(bars_width((3 if many else 6) * len(scores)), 7.4 if many else 4.2))
    panels = figure.subplots(*((2, 1) if many else (1, 2)), sharey=True)
    for axes, (mean, title) in zip(panels, MEANS.items(), strict=True):
        bars = {name: [_summarise_mean(runs, mean, key) for key in KEYS] for name, runs in scores.items()}
        draw_bars(axes, [SCORES[key] for key in KEYS], bars, colours)
        axes.set_title(title)
    notes = ["whiskers: lowest and highest of several seeds"] if any(len(runs) > 1 for runs in scores.values()) else []
    if any(len(runs) == 1 and runs[0]["intervals"] for runs in scores.values()):
        notes.append(f"single runs: {WHISKERS.removeprefix('whiskers: ')}" if notes else WHISKERS)
    panels[-1 if many else 0].set_xlabel("\n".join(notes), fontsize=9)
    for axes in panels[: 2 if many else 1]:
        axes.set_ylabel(SCALE)
    names = [name if can_spell(name) else f"method {number}" for number, name in enumerate(scores, 1)]
    draw_legend(figure, [Patch(color=colour, label=name) for name, colour in zip(names, colours, strict=True)])
    return figure


def _summarise_mean(runs: Sequence[Mapping[str, Any]], mean: str, key: str) -> Bar:
    height, reach = summarise([run[mean][key] for run in runs])
    if len(runs) == 1 and (mean, key) == ("macro", "f1"):
        reach = (runs[0]["intervals"] or {}).get("macro_f1")
    return height, reach


def summarise(values: Sequence[float | None]) -> Bar:
    """Returns the mean of what is known of a score of some runs; lowest and highest too if there are several runs."""
    known = [float(value) for value in values if value is not None]
    if not known:
        return None, None
    return float(np.mean(known)), (min(known), max(known)) if len(values) > 1 else None
