"""The page of a measurement: fractions, cells, vessels, axons, maps, what they rest on, in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from neurotome.atomic import write_text
from neurotome.classes import ClassSet
from neurotome.measuring.run import Measurements
from neurotome.report.page import fill_template
from neurotome.report.slides import to_url

PAGE = "measure.html"
MOST_ROWS = 200
"""Of a table on the page; its files have all."""


def write_measures(
    folder: Path,
    measured: Measurements,
    classes: ClassSet,
    facts: Mapping[str, str],
    *,
    title: str,
    flat: bool,
    level: float,
) -> Path:
    """Writes the page, which needs no other file and no network, and its pictures in `figures/`.

    Args:
        folder: Where to.
        measured: What to show.
        classes: Of the labels.
        facts: What it rests on, by what it is.
        title: Heading.
        flat: Whether cells were measured as profiles in slices.
        level: Of the intervals.
    """
    cells = measured.tables.get("cells")
    page = fill_template(
        "measures.html.j2",
        {"number": _show},
        title=title,
        facts=facts,
        notes=measured.notes,
        level=f"{100 * level:g} %",
        fractions=_list_rows(measured.tables["fractions"]),
        density=_list_rows(measured.tables.get("density", {})),
        cells=None if cells is None else _describe_cells(cells, flat),
        vessels=_list_rows(measured.tables.get("vessel_density", {})),
        axons=_list_rows(measured.tables.get("axon_direction", {})),
        flat=flat,
        corrected="fraction_corrected" in measured.tables["fractions"],
        most=MOST_ROWS,
        figures=_draw(folder, measured, classes, flat, level),
        version=metadata.version("neurotome"),
    )
    write_text(folder / PAGE, page)
    return folder / PAGE


def _draw(folder: Path, measured: Measurements, classes: ClassSet, flat: bool, level: float) -> dict[str, dict[str, Any]]:
    from neurotome import figures
    from neurotome.figures.style import DPI

    table = measured.tables["fractions"]
    shown = [name for name in classes.names[1 - classes.first_id :] if table["volume_mm3"][classes.index(name)] > 0]
    drawn = {"fractions": figures.plot_fractions(table, classes, level)}
    if shown:
        fractions = {name: 100 * measured.maps[f"fraction_{name}"] for name in shown}
        drawn["fraction_maps"] = figures.plot_coarse_maps(fractions, measured.cube_um, "% of the volume")
    if "cells" in measured.tables:
        key, unit = ("profiles_per_mm2", "profiles per mm2") if flat else ("density_per_mm3", "cells per mm3")
        what = "profiles" if flat else "cells"
        drawn["density_map"] = figures.plot_coarse_maps({f"Density of {what}": measured.maps[key]}, measured.cube_um, unit)
        diameters = _whole(measured.tables["cells"], "equivalent_diameter_um")
        if len(diameters):
            drawn["diameters"] = figures.plot_diameters(diameters, what)
    vessels = measured.tables.get("vessels", {})
    if vessels and len(vessels["cut_by_border"]):
        key, unit = ("vessel_profiles_per_mm2", "profiles per mm2") if flat else ("vessel_mm_per_mm3", "mm per mm3")
        drawn["vessel_map"] = figures.plot_coarse_maps({"Density of vessels": measured.maps[key]}, measured.cube_um, unit)
        if flat and len(diameters := _whole(vessels, "equivalent_diameter_um")):
            drawn["vessel_diameters"] = figures.plot_diameters(diameters, "profiles of vessels")
        if not flat:
            drawn["network"] = figures.plot_network(vessels, measured.lines_um)
    directions = measured.tables.get("axon_direction_grid", {})
    if directions and len(directions["angle_deg"]):
        drawn["directions"] = figures.plot_directions(directions, measured.tables["axon_angles"], measured.cube_um)
    pictures = {}
    for name, figure in drawn.items():
        path = folder / "figures" / f"{name}.png"
        figures.save_figure(figure, path)
        width = round(96 * round(figure.get_figwidth() * DPI) / DPI)
        pictures[name] = {"source": to_url("png", path.read_bytes()), "width": width}
    return pictures


def _whole(cells: Mapping[str, Any], column: str) -> Any:
    """Returns a column of the cells that no border cuts, without what is not known."""
    values = cells[column][~cells["cut_by_border"]]
    return values[np.isfinite(values)]


def _describe_cells(cells: Mapping[str, Any], flat: bool) -> dict[str, dict[str, float]]:
    """Returns quartiles of what is known of single cells, by what it is."""
    shape = {"Area (um2)": "area_um2", "Circularity": "circularity"}
    if not flat:
        shape = {"Volume (um3)": "volume_um3", "Sphericity": "sphericity"}
    columns = {
        "Equivalent diameter (um)": "equivalent_diameter_um",
        **shape,
        "Nearest neighbour (um)": "nearest_neighbour_um",
    }
    found = {}
    for name, column in columns.items():
        values = _whole(cells, column)
        if len(values):
            low, median, high = np.percentile(values, (25, 50, 75)).tolist()
            found[name] = {"low": low, "median": median, "high": high, "cells": len(values)}
    return found


def _list_rows(table: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    columns = {name: values if isinstance(values, list) else values.tolist() for name, values in table.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _show(value: float) -> str:
    """Returns a number with four digits, – for none."""
    if not np.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
