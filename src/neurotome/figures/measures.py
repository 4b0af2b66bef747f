"""What was measured in labels: fractions with intervals, coarse maps, sizes of cells, vessels, directions of axons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import matplotlib
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.figures.style import INK, MID_GREY, STYLE, bar_colours, label_classes

MOST_COLUMNS = 3
MOST_SEGMENTS = 20_000
"""Of a network that are drawn, the longest."""


@matplotlib.rc_context(STYLE)
def plot_fractions(fractions: Mapping[str, Any], classes: ClassSet, level: float) -> Figure:
    """Draws the volume fraction of each class in the whole box, from the first rows of the table `fractions`.

    Where the table has fractions that are corrected for a model's errors, a diamond with its interval stands below each.
    """
    count = len(classes)
    figure = Figure(figsize=(8, 1.2 + 0.4 * count))
    axes = figure.subplots()
    value, low, high = (100 * np.asarray(fractions[name][:count]) for name in ("fraction", "fraction_low", "fraction_high"))
    reach = np.nan_to_num(np.stack([value - low, high - value]))
    both = "fraction_corrected" in fractions
    axes.barh(range(count), value, 0.5 if both else 0.8, color=bar_colours(classes), xerr=reach, ecolor=INK, capsize=3)
    farthest = float((value + reach[1]).max())
    if both:
        keys = ("fraction_corrected", "fraction_corrected_low", "fraction_corrected_high")
        corrected, low, high = (100 * np.asarray(fractions[name][:count]) for name in keys)
        around = np.nan_to_num(np.stack([corrected - low, high - corrected]))
        rows = np.arange(count) + 0.4
        label = f"corrected for the model's errors, {100 * level:g} % interval"
        axes.errorbar(corrected, rows, xerr=around, fmt="D", color=INK, mfc="white", capsize=3, label=label)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.35 if count < 4 else -0.25), frameon=False)
        farthest = max(farthest, float(np.nan_to_num(corrected + around[1]).max()))
    for row in range(count):
        axes.annotate(
            f"{value[row]:.3g} %", (value[row] + reach[1, row], row), (6, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(range(count), label_classes(classes))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * farthest)
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


@matplotlib.rc_context(STYLE)
def plot_network(vessels: Mapping[str, Any], lines_um: Sequence[NDArray[np.float64]]) -> Figure:
    """Draws a network seen along z, each segment coloured by its radius and the thicker the wider it is.

    Args:
        vessels: The table `vessels`.
        lines_um: Points (n, 3), zyx, of each of its segments.
    """
    longest = np.argsort(-vessels["length_um"], kind="stable")[:MOST_SEGMENTS]
    radii, lines_um = np.asarray(vessels["radius_um"])[longest], [lines_um[number] for number in longest]
    low, high = np.percentile(radii, (2, 98))
    wide = max(float(np.ptp(np.concatenate(lines_um)[:, 2])), 1.0)
    high_um = max(float(np.ptp(np.concatenate(lines_um)[:, 1])), 1.0)
    figure = Figure(figsize=(9, 0.8 + 7.2 * min(1.6, max(0.25, high_um / wide))))
    axes = figure.subplots()
    order = np.argsort(radii, kind="stable")  # the widest last, on top
    drawn = LineCollection(
        [lines_um[number][:, [2, 1]] for number in order],
        cmap="viridis",
        norm=Normalize(low, max(high, low + 1e-6)),
        linewidths=np.clip(0.6 + 1.6 * radii[order] / max(float(np.median(radii)), 1e-6), 0.8, 7),
        capstyle="round",
    )
    drawn.set_array(radii[order])
    axes.add_collection(drawn)
    axes.autoscale_view()
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.set(xlabel="x (um)", ylabel="y (um)", title=f"{len(radii):,} segments of vessels, seen along z")
    figure.colorbar(drawn, ax=axes, label="radius (um)", shrink=0.8)
    return figure


@matplotlib.rc_context(STYLE)
def plot_directions(grid: Mapping[str, Any], angles: Mapping[str, Any], cube_um: tuple[float, float, float]) -> Figure:
    """Draws where axons run: a stroke per place of the coarse grid, seen along z, and a rose of the angles in the slice.

    Args:
        grid: The table `axon_direction_grid`.
        angles: The table `axon_angles`.
        cube_um: Edges of the grid's cubes.
    """
    figure = Figure(figsize=(10, 4.6))
    axes = figure.add_subplot(1, 2, 1)
    places, which = np.unique(np.stack([grid["centre_y_um"], grid["centre_x_um"]], 1), axis=0, return_inverse=True)
    weights = np.asarray(grid["volume_mm3"]) * np.asarray(grid["coherence"])
    doubled = np.radians(2 * np.asarray(grid["angle_deg"]))  # an angle and its opposite are one direction
    cosines, sines = (np.bincount(which.ravel(), weights * part, len(places)) for part in (np.cos(doubled), np.sin(doubled)))
    mean = np.arctan2(sines, cosines) / 2
    steps = 0.45 * min(cube_um[1:]) * np.stack([-np.sin(mean), np.cos(mean)], 1)
    strokes = LineCollection(
        [np.stack([place - step, place + step])[:, ::-1] for place, step in zip(places, steps, strict=True)],
        cmap="twilight",
        norm=Normalize(-90, 90),
        linewidths=1.4,
    )
    strokes.set_array(np.degrees(mean))
    axes.add_collection(strokes)
    axes.autoscale_view()
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.set(xlabel="x (um)", ylabel="y (um)", title="Direction in the slice, mean over z")
    figure.colorbar(strokes, ax=axes, label="angle above the x axis (degrees)", ticks=range(-90, 91, 45), shrink=0.8)
    rose = cast(Any, figure.add_subplot(1, 2, 2, projection="polar"))
    centres = np.radians((np.asarray(angles["angle_from_deg"]) + np.asarray(angles["angle_to_deg"])) / 2)
    width = float(np.radians(angles["angle_to_deg"][0] - angles["angle_from_deg"][0]))
    for turn in (0, np.pi):
        rose.bar(centres + turn, 100 * np.nan_to_num(angles["share"]), width, color=MID_GREY, edgecolor="white")
    rose.set_title("% of the axons' volume by angle")
    rose.set_thetagrids(range(0, 360, 45))
    return figure
