"""Cells as a table, and their density, with those that the border cuts counted by an unbiased rule.

A cell counts unless it touches an exclusion face: the lower ones (z, y, x) of the measured box. Cells cut by the upper faces
count (Gundersen 1977, doi:10.1111/j.1365-2818.1977.tb00062.x; Sterio 1984, doi:10.1111/j.1365-2818.1984.tb02501.x). So a
cell is counted where its lowest voxels lie, which cannot be the first plane of each axis: the volume that density refers to,
the frame, leaves these out. What is not labelled may have any shape. There a cell counts if its first voxel (lowest z, then
y, then x) is not beside it, and the frame leaves out all voxels that are: the associated point rule (Miles 1974, On the
elimination of edge effects in planar sampling, in: Stochastic Geometry, Wiley), right for convex cells.

Profiles in single slices are counted by the same rule within the slice. Their number per area becomes a density in 3D by
Abercrombie (1946), doi:10.1002/ar.1090940210: a slice of thickness T shows every cell of height H whose centre lies within
T + H.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.blocks import Grid
from neurotome.measuring.fractions import UM3_PER_MM3, WHOLE, locate_clusters
from neurotome.measuring.intervals import Ratio, estimate_density
from neurotome.measuring.objects import BESIDE, CUT, LOW, Part
from neurotome.measuring.settings import MeasureSettings
from neurotome.measuring.shapes import measure_circularity, measure_sphericity
from neurotome.measuring.source import Source, find_regions
from neurotome.measuring.tables import gather
from neurotome.measuring.tally import Tally

UM2_PER_MM2 = 1e6
MOST_LOST = 0.1
"""Share of cells that may begin beside what is not labelled without a note."""

RULES = {
    False: "inclusion and exclusion faces of a box",
    True: "inclusion and exclusion edges of a slice, Abercrombie 1946",
}

DENSITIES = {
    **{"region": str, "cells_counted": int, "cells_seen": int, "frame_mm3": float, "density_per_mm3": float},
    **{"density_low_per_mm3": float, "density_high_per_mm3": float},
}

PROFILES = {
    **{"region": str, "profiles_counted": int, "profiles_seen": int, "frame_mm2": float, "profiles_per_mm2": float},
    **{"cell_height_um": float, "density_per_mm3": float, "density_low_per_mm3": float, "density_high_per_mm3": float},
}


def list_cells(source: Source, parts: Sequence[Part], settings: MeasureSettings, grid: Grid) -> dict[str, Any]:
    """Returns a table with a row per cell, in the order of their first voxels, however blocks were cut.

    Of profiles in slices it has areas instead of volumes. Positions are in micrometres from the first voxel of the labels.
    """
    kept = sorted(part for part in parts if part.flags & CUT or _diameter(part, source) >= settings.smallest_um)
    voxels = np.array([part.voxels for part in kept], float)
    centres = np.array([part.centre for part in kept], float).reshape(-1, 3)
    edges = np.array([part.edge_um for part in kept], float)
    shifted = (centres + [part.start for part in source.box]) * source.size_um
    table: dict[str, Any] = {"cell": np.arange(1, len(kept) + 1)}
    table |= {f"centroid_{axis}_um": shifted[:, number] for number, axis in enumerate("zyx")}
    if source.flat:
        areas = voxels * source.size_um[1] * source.size_um[2]
        table["slice"] = np.array([round(centre[0]) + source.box[0].start for centre in centres], np.int64)
        table |= {"area_um2": areas, "perimeter_um": edges, "circularity": measure_circularity(areas, edges)}
    else:
        volumes = voxels * source.voxel_um3
        table |= {"volume_um3": volumes, "surface_um2": edges, "sphericity": measure_sphericity(volumes, edges)}
    table["equivalent_diameter_um"] = np.array([_diameter(part, source) for part in kept], float)
    table["nearest_neighbour_um"] = _find_nearest(shifted, table.get("slice"))
    table["counted"] = np.array([not part.flags & (LOW | BESIDE) for part in kept], bool)
    table["cut_by_border"] = np.array([bool(part.flags & CUT) for part in kept], bool)
    table["cells_in_object"] = np.array([part.parts for part in kept], np.int64)
    table["too_large"] = np.isnan(edges)
    if source.regions is not None:
        table["region"] = find_regions(source, np.rint(centres).astype(np.int64), grid)
    return table


def list_densities(source: Source, cells: dict[str, Any], tally: Tally, settings: MeasureSettings) -> dict[str, Any]:
    """Returns a table with a row per region, the whole box first; the height of cells is that of the whole box."""
    rows = []
    height = find_height(cells, settings) if source.flat else math.nan
    for region in (None, *(tally.regions if source.regions else ())):
        inside = np.ones(len(cells["cell"]), bool) if region is None else cells["region"] == region
        counts = count_by_cluster(source, cells, tally, inside)
        frame = tally.count_frame(region)
        seen: dict[str, Any] = {"region": WHOLE if region is None else str(region)}
        counted, in_sight = int(counts.sum()), int(np.count_nonzero(inside))
        if source.flat:
            area = frame * source.size_um[1] * source.size_um[2] / UM2_PER_MM2
            found = estimate_density(counts, area, settings.level)
            depth_mm = (settings.slice_thickness_um + height) / 1000
            ratio = Ratio(*(None if value is None or math.isnan(depth_mm) else value / depth_mm for value in found))
            seen |= {"profiles_counted": counted, "profiles_seen": in_sight}
            seen |= {"frame_mm2": area.sum(), "profiles_per_mm2": found.value, "cell_height_um": height}
        else:
            volume = frame * source.voxel_um3 / UM3_PER_MM3
            ratio = estimate_density(counts, volume, settings.level)
            seen |= {"cells_counted": counted, "cells_seen": in_sight, "frame_mm3": volume.sum()}
        limits = {"density_low_per_mm3": ratio.low, "density_high_per_mm3": ratio.high}
        rows.append(seen | {"density_per_mm3": ratio.value} | limits)
    return gather(rows, PROFILES if source.flat else DENSITIES)


def describe_lost_cells(parts: Sequence[Part]) -> str | None:
    """Returns what a reader must know where many cells begin beside what is not labelled."""
    lost = sum(bool(part.flags & BESIDE) for part in parts)
    if lost <= MOST_LOST * len(parts):
        return None
    return (
        f"{lost} of {len(parts)} cells begin beside voxels that are not labelled, and do not count. The frame leaves out "
        "such voxels too; but if it is cells' outlines that nobody labelled, the density is too low: label them."
    )


def find_height(profiles: dict[str, Any], settings: MeasureSettings) -> float:
    """Returns the height across slices within which a cell shows a profile, in um, by the mean of cells; NaN if unknown.

    It is that of spheres of one diameter with such profiles, or with the diameter as stated. Profiles that are smaller than
    `smallest_um` are left out, so that a sphere shows none near its poles (lost caps, Floderus 1944). Profiles that the
    border cuts say nothing of the diameter.
    """
    from scipy.optimize import brentq

    smallest = settings.smallest_um
    whole = profiles["equivalent_diameter_um"][~profiles["cut_by_border"]]

    def share(diameter: float) -> float:
        return math.sqrt(max(0.0, 1 - (smallest / diameter) ** 2))

    def mean_profile(diameter: float) -> float:
        seen = share(diameter)
        return diameter / 2 * (math.sqrt(1 - seen**2) + math.asin(seen) / seen) if seen else diameter

    if settings.cell_diameter_um != "auto":
        diameter = settings.cell_diameter_um
    elif len(whole):
        mean = float(whole.mean())
        diameter = float(brentq(lambda tried: mean_profile(tried) - mean, mean, 2 * mean))
    else:
        return math.nan
    return diameter * share(diameter) or math.nan


def list_density_map(source: Source, cells: dict[str, Any], tally: Tally) -> dict[str, Any]:
    """Returns a table with a row per cube of the grid in which cells may begin; of slices the numbers are per area."""
    counts, frame = count_by_cluster(source, cells, tally).ravel(), tally.count_frame().ravel()
    there = np.flatnonzero(frame)
    table = {name: values[there] for name, values in locate_clusters(source, tally).items()}
    table["profiles_counted" if source.flat else "cells_counted"] = counts[there].astype(np.int64)
    if source.flat:
        table["frame_mm2"] = frame[there] * source.size_um[1] * source.size_um[2] / UM2_PER_MM2
        return table | {"profiles_per_mm2": counts[there] / table["frame_mm2"]}
    table["frame_mm3"] = frame[there] * source.voxel_um3 / UM3_PER_MM3
    return table | {"density_per_mm3": counts[there] / table["frame_mm3"]}


def map_density(source: Source, cells: dict[str, Any], tally: Tally) -> Any:
    """Returns the coarse map of density per mm3 (of slices: profiles per mm2), float32 (z, y, x), NaN outside the frame."""
    frame = tally.count_frame()
    unit = source.size_um[1] * source.size_um[2] / UM2_PER_MM2 if source.flat else source.voxel_um3 / UM3_PER_MM3
    counts = count_by_cluster(source, cells, tally)
    found = np.divide(counts, frame * unit, out=np.full(frame.shape, math.nan), where=frame > 0)
    return found.astype(np.float32)


def _diameter(part: Part, source: Source) -> float:
    if source.flat:
        return math.sqrt(4 / math.pi * part.voxels * source.size_um[1] * source.size_um[2])
    return float((6 / math.pi * part.voxels * source.voxel_um3) ** (1 / 3))


def count_by_cluster(
    source: Source, cells: dict[str, Any], tally: Tally, chosen: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Returns how many of the chosen cells that count have their centre in each cluster, float64 (z, y, x)."""
    counted = cells["counted"] if chosen is None else cells["counted"] & chosen
    places = np.stack([cells[f"centroid_{axis}_um"][counted] for axis in "zyx"], 1) / source.size_um
    index = np.rint(places - [part.start for part in source.box]).astype(np.int64) // tally.clusters.tile_zyx
    numbers = np.ravel_multi_index(tuple(index.T), tally.clusters.tiles_zyx)
    return np.bincount(numbers, minlength=tally.clusters.count_tiles()).reshape(tally.clusters.tiles_zyx).astype(float)


def _find_nearest(places_um: NDArray[np.float64], slices: NDArray[np.int64] | None) -> NDArray[np.float64]:
    """Returns the distance from each cell's centre to the nearest other one, NaN if it is alone; within slices, if given."""
    from scipy.spatial import KDTree

    nearest = np.full(len(places_um), math.nan)
    for group in [None] if slices is None else np.unique(slices):
        inside = np.arange(len(places_um)) if group is None else np.flatnonzero(slices == group)
        if len(inside) > 1:
            nearest[inside] = np.asarray(KDTree(places_um[inside]).query(places_um[inside], 2)[0])[:, 1]
    return nearest
