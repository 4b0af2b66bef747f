"""Methods side by side, as in Figure 4 of the founding report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from neurotome.errors import SettingsError
from neurotome.figures.bars import bars_width, draw_bars
from neurotome.figures.scores import SCORES, WHISKERS
from neurotome.figures.style import STYLE, Rgb, can_spell, draw_legend

KEYS = ("precision", "recall", "f1")
MOST_BESIDE = 5
"""Methods whose two means stand side by side."""
MEANS = {"macro": "Mean over classes", "weighted": "Mean weighted by pixels"}


@matplotlib.rc_context(STYLE)
def plot_methods(scores: Mapping[str, Mapping[str, Any] | Sequence[Mapping[str, Any]]]) -> Figure:
    """Draws macro and weighted means of precision, recall and F1 of several methods side by side.

    A method with several runs, such as of several seeds, is drawn as their mean with whiskers from the lowest to the
    highest; a single run has whiskers on macro F1, its 95 % interval, where it has intervals.

    Args:
        scores: The content of `scores/<split>.json` of each method, by its name, or those of its runs.

    Raises:
        SettingsError: There is no method, or one has no run.
    """
    if not scores or not all(scores.values()):
        raise SettingsError("found no method to compare; expected the scores of at least one.")
    runs = {name: [members] if isinstance(members, Mapping) else list(members) for name, members in scores.items()}
    shades = matplotlib.colormaps["cividis"](np.linspace(0.15, 0.95, max(len(runs), 2)))
    colours: list[Rgb] = [(float(r), float(g), float(b)) for r, g, b, _ in shades[: len(runs)]]
    # one below the other where side by side would be too wide for a page
    many = len(runs) > MOST_BESIDE
    figure = Figure(figsize=(bars_width((3 if many else 6) * len(runs)), 7.4 if many else 4.2))
    panels = figure.subplots(*((2, 1) if many else (1, 2)), sharey=True)
    for axes, (mean, title) in zip(panels, MEANS.items(), strict=True):
        bars = {name: [summarise(members, mean, key) for key in KEYS] for name, members in runs.items()}
        draw_bars(
            axes,
            [SCORES[key] for key in KEYS],
            {name: [value for value, _ in members] for name, members in bars.items()},
            colours,
            {name: [reach for _, reach in members] for name, members in bars.items()},
        )
        axes.set_title(title)
    notes = ["whiskers: lowest and highest of several seeds"] if any(len(members) > 1 for members in runs.values()) else []
    if any(len(members) == 1 and members[0]["intervals"] for members in runs.values()):
        notes.append(f"single runs: {WHISKERS.removeprefix('whiskers: ')}" if notes else WHISKERS)
    panels[-1 if many else 0].set_xlabel("\n".join(notes), fontsize=9)
    for axes in panels[: 2 if many else 1]:
        axes.set_ylabel("score, pooled over all pixels")
    names = [name if can_spell(name) else f"method {number}" for number, name in enumerate(runs, 1)]
    draw_legend(figure, [Patch(color=colour, label=name) for name, colour in zip(names, colours, strict=True)])
    return figure


def summarise(runs: Sequence[Mapping[str, Any]], mean: str, key: str) -> tuple[float | None, tuple[float, float] | None]:
    """Returns the height of a bar and the ends of its whiskers.

    Args:
        runs: The scores of each run of a method.
        mean: macro or weighted.
        key: precision, recall, f1 or iou.

    Returns:
        The mean over the runs, None if none has this score; lowest and highest of several runs, or the interval of a single
        one, or None.
    """
    known = [float(run[mean][key]) for run in runs if run[mean][key] is not None]
    if not known:
        return None, None
    if len(runs) > 1:
        return float(np.mean(known)), (min(known), max(known))
    interval = (runs[0]["intervals"] or {}).get("macro_f1") if (mean, key) == ("macro", "f1") else None
    return known[0], None if interval is None else (interval[0], interval[1])
