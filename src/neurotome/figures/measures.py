"""What was measured in labels: fractions with their intervals, coarse maps, sizes of cells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.figures.style import INK, MID_GREY, STYLE, bar_colours, label_classes

MOST_COLUMNS = 3


@matplotlib.rc_context(STYLE)
def plot_fractions(fractions: Mapping[str, Any], classes: ClassSet, level: float) -> Figure:
    """Draws the volume fraction of each class in the whole box, from the first rows of the table `fractions`."""
    count = len(classes)
    figure = Figure(figsize=(8, 1.2 + 0.4 * count))
    axes = figure.subplots()
    value, low, high = (100 * np.asarray(fractions[name][:count]) for name in ("fraction", "fraction_low", "fraction_high"))
    reach = np.nan_to_num(np.stack([value - low, high - value]))
    axes.barh(range(count), value, color=bar_colours(classes), xerr=reach, ecolor=INK, capsize=3)
    for row in range(count):
        axes.annotate(
            f"{value[row]:.3g} %", (value[row] + reach[1, row], row), (6, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(range(count), label_classes(classes))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * float((value + reach[1]).max()))
    axes.set(xlabel=f"% of the labelled volume, {100 * level:g} % interval", title="Volume fractions")
    axes.grid(True, axis="x")
    return figure


@matplotlib.rc_context(STYLE)
def plot_coarse_maps(maps: Mapping[str, NDArray[np.float32]], cube_um: tuple[float, float, float], unit: str) -> Figure:
    """Draws coarse maps (z, y, x) seen along z: the mean of what is known at each place, a panel each, by their title."""
    columns = min(MOST_COLUMNS, len(maps))
    rows = math.ceil(len(maps) / columns)
    _, height, width = next(iter(maps.values())).shape
    aspect = min(2.0, max(0.3, height * cube_um[1] / (width * cube_um[2])))
    figure = Figure(
        figsize=(10, 0.4 + rows * (10 / columns * 0.8 * aspect + 0.5)) if columns > 1 else (6.5, 0.8 + 5 * aspect)
    )
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(maps) :]:
        axes.remove()
    for axes, (title, values) in zip(panels, maps.items(), strict=False):
        known = np.isfinite(values)
        seen = np.where(known, values, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)
        extent = (0, width * cube_um[2], height * cube_um[1], 0)
        top = float(np.nanmax(seen, initial=0)) or 1.0
        picture = axes.imshow(seen, cmap="viridis", vmin=0, vmax=top, extent=extent, interpolation="nearest")
        axes.set(title=title, xlabel="x (um)", ylabel="y (um)")
        figure.colorbar(picture, ax=axes, label=unit)
    return figure


@matplotlib.rc_context(STYLE)
def plot_diameters(diameters_um: NDArray[np.float64], what: str) -> Figure:
    """Draws how equivalent diameters are distributed; `what` says whose, such as cells."""
    figure = Figure(figsize=(8, 3.6))
    axes = figure.subplots()
    bins = min(60, max(8, round(math.sqrt(len(diameters_um)))))
    axes.hist(diameters_um, bins=bins, color=MID_GREY)
    median = float(np.median(diameters_um))
    axes.axvline(median, color=INK, linewidth=1.2)
    axes.annotate(
        f"median {median:.3g} um", (median, 1), (5, -12), xycoords=("data", "axes fraction"), textcoords="offset points"
    )
    axes.set(xlabel="equivalent diameter (um)", ylabel=what, title=f"Size of {len(diameters_um):,} {what}")
    axes.grid(True, axis="y")
    return figure
