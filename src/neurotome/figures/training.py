"""How a training went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.errors import RunError
from neurotome.figures.style import INK, MID_GREY, STYLE, Rgb, draw_legend, label_classes, line_colours, line_styles

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@matplotlib.rc_context(STYLE)
def plot_training(rows: Sequence[Mapping[str, float | None]], classes: ClassSet) -> Figure:
    """Draws losses, validation F1 of each class, and learning rate against training steps, from the rows of `metrics.csv`.

    Raises:
        RunError: A column is missing.
    """
    steps = _column(rows, "step")
    macro = _column(rows, "val_macro_f1")
    figure = Figure(figsize=(12, 4))
    left, middle, right = figure.subplots(1, 3, width_ratios=(5, 5, 3))

    losses = [_column(rows, key) for key in ("train_loss", "val_loss")]
    for values, label, colour in zip(losses, ("training", "validation"), (MID_GREY, INK), strict=True):
        _draw_line(left, steps, values, colour, label)
    _choose_scale(left, np.concatenate(losses))
    left.set(title="Loss", ylabel=f"loss{' (logarithmic)' if left.get_yscale() == 'log' else ''}")
    left.legend()

    styles = zip(classes.names, label_classes(classes), line_colours(classes), line_styles(classes), strict=True)
    for name, label, colour, style in styles:
        _draw_line(middle, steps, _column(rows, f"val_f1_{name}"), colour, label, linestyle=style)
    _draw_line(middle, steps, macro, INK, "macro mean", linewidth=2.5)
    if np.isfinite(macro).any():
        best = int(np.nanargmax(macro))
        middle.axvline(steps[best], color=INK, linestyle=":", linewidth=1, zorder=0)
        middle.set_title(f"Validation F1, best macro mean {macro[best]:.3f} at step {steps[best]:,.0f}")
    else:
        middle.set_title("Validation F1")
    middle.set(ylabel="F1", ylim=(-0.02, 1.02))

    rates = _column(rows, "learning_rate")
    highest = float(np.nanmax(rates, initial=0))
    _draw_line(right, steps, rates, INK, "learning rate")
    right.set(title="Learning rate", ylabel="learning rate")
    right.set_ylim(0, 1.1 * highest or 1)  # of a single epoch it may have fallen to 0
    if highest:
        power = math.floor(math.log10(highest))
        right.set_ylabel(f"learning rate (× 10{str(power).translate(SUPERSCRIPTS)})")
        right.ticklabel_format(axis="y", style="sci", scilimits=(power, power))
        right.yaxis.get_offset_text().set_visible(False)

    minutes = np.nanmax(_column(rows, "seconds"), initial=0) / 60
    for axes in (left, middle, right):
        axes.set_xlim(0, float(steps.max()) * 1.05 or 1)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(True)
    left.set_xlabel("training steps")
    middle.set_xlabel(f"training steps ({steps.max():,.0f} in {minutes:,.1f} minutes)")
    right.set_xlabel("training steps (ends of epochs)")
    draw_legend(figure, middle.get_legend_handles_labels()[0])
    return figure


def _draw_line(
    axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], colour: Rgb, label: str, linewidth: float = 1.5, **style: Any
) -> None:
    # a single epoch has no line, and neither has one between two that were not validated
    size = 3.5 if len(x) <= 40 else 1.5
    axes.plot(x, y, color=colour, label=label, linewidth=linewidth, marker="o", markersize=size, **style)


def _choose_scale(axes: Axes, values: NDArray[np.float64]) -> None:
    """Uses a logarithmic axis where the first epochs would else flatten all that follow."""
    known = values[np.isfinite(values)]
    if known.size and known.min() > 0 and known.max() > 10 * known.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif known.size and known.min() >= 0:
        axes.set_ylim(bottom=0)


def _column(rows: Sequence[Mapping[str, float | None]], key: str) -> NDArray[np.float64]:
    """Returns a column of metrics, float64 with NaN for None."""
    if any(key not in row for row in rows):
        raise RunError(f"the metrics have no column {key}; found {', '.join(rows[0])}. Were they written by another run?")
    return np.asarray([np.nan if row[key] is None else row[key] for row in rows], np.float64)
