"""Vessels as tables: segments and branch points of their network, and densities; in single slices, their profiles.

Length is that of the middle lines within the labelled volume, at the cubes and in the regions where these run. Of profiles
in slices those that touch an exclusion edge do not count, as for cells. Twice their number per area is the length per volume
of lines that run in all directions alike (Smith & Guttman 1953, doi:10.1007/BF03397456); of others it is not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.blocks import Grid
from neurotome.measuring.cells import UM2_PER_MM2, count_by_cluster, list_cells
from neurotome.measuring.fractions import UM3_PER_MM3, WHOLE, locate_clusters
from neurotome.measuring.intervals import Ratio, estimate_density
from neurotome.measuring.network import Network, find_medians, sum_segments
from neurotome.measuring.objects import Part
from neurotome.measuring.settings import MeasureSettings
from neurotome.measuring.source import Source, find_regions
from neurotome.measuring.tables import gather
from neurotome.measuring.tally import Tally

UM_PER_MM = 1e3
HUB = 4
"""A branch point at which more segments meet is hardly one."""

LENGTHS = {
    **{"region": str, "class": str, "length_mm": float, "labelled_mm3": float, "length_mm_per_mm3": float},
    **{"length_low_mm_per_mm3": float, "length_high_mm_per_mm3": float, "radius_um": float, "radius_from_volume_um": float},
    **{"tortuosity": float, "connected_share": float, "segments": int, "branch_points": int, "hubs": int},
    **{"branch_points_per_mm3": float, "branch_points_low_per_mm3": float, "branch_points_high_per_mm3": float},
}

PROFILES = {
    **{"region": str, "class": str, "profiles_counted": int, "profiles_seen": int, "frame_mm2": float},
    **{"profiles_per_mm2": float, "profiles_low_per_mm2": float, "profiles_high_per_mm2": float, "diameter_um": float},
    **{"length_if_isotropic_mm_per_mm3": float},
}


def list_segments(source: Source, network: Network, grid: Grid) -> dict[str, Any]:
    """Returns a table with a row per segment, places in micrometres from the first voxel of the labels.

    A degree is how many segments meet at an end: 1 where the vessel ends, 0 of a loop or a point by itself. The region is
    that of the segment's middle.
    """
    count = len(network.cut)
    ends = network.ends_um + np.array([part.start for part in source.box]) * source.size_um
    middles = network.points[(network.first[:-1] + network.first[1:]) // 2]
    table: dict[str, Any] = {"segment": np.arange(1, count + 1), "network": network.part}
    table["length_um"] = sum_segments(network.length_um, network.first)
    table["radius_um"] = find_medians(network.radius_um, network.first)
    table["tortuosity"] = network.tortuosity
    for side, end in enumerate(("start", "stop")):
        table |= {f"{end}_{axis}_um": ends[:, side, number] for number, axis in enumerate("zyx")}
        table[f"{end}_degree"] = network.degrees[:, side]
    table["cut_by_border"] = network.cut
    if source.regions is not None:
        table["region"] = _find(source, middles, grid)
    return table


def locate_segments(source: Source, network: Network) -> list[NDArray[np.float64]]:
    """Returns the points (n, 3), zyx, of each segment in micrometres from the first voxel of the labels."""
    places = np.stack(np.unravel_index(network.points, source.shape), 1) + [part.start for part in source.box]
    return np.split(places * np.asarray(source.size_um), network.first[1:-1])


def list_branches(source: Source, network: Network, grid: Grid) -> dict[str, Any]:
    """Returns a table with a row per branch point: its place, how many segments meet, the largest radius."""
    places = network.branch_um + np.array([part.start for part in source.box]) * source.size_um
    table: dict[str, Any] = {"branch_point": np.arange(1, len(places) + 1)}
    table |= {f"{axis}_um": places[:, number] for number, axis in enumerate("zyx")}
    table |= {"degree": network.branch_degrees, "radius_um": network.branch_radius_um}
    if source.regions is not None:
        table["region"] = _find(source, network.branch_voxels, grid)
    return table


def list_lengths(source: Source, network: Network, tally: Tally, grid: Grid, level: float) -> dict[str, Any]:
    """Returns a table with a row per region, the whole box first.

    `radius_um` is the mean along the lines; `radius_from_volume_um` that of one tube with this length and that volume.
    Of the length, `connected_share` belongs to the network that is the longest of the whole box.
    """
    assert source.vessel is not None
    owners = np.repeat(np.arange(len(network.cut)), np.diff(network.first))
    middles = (network.first[:-1] + network.first[1:]) // 2
    regions = branch_regions = np.zeros(0, np.int64)
    if source.regions is not None:
        regions, branch_regions = _find(source, network.points, grid), _find(source, network.branch_voxels, grid)
    rows = []
    for region in (None, *(tally.regions if source.regions else ())):
        inside = np.ones(len(network.points), bool) if region is None else regions == region
        branches = np.ones(len(network.branch_voxels), bool) if region is None else branch_regions == region
        lengths = np.where(inside, network.length_um, 0.0)
        total = float(lengths.sum())
        volumes = tally.count(range(len(source.classes)), region) * source.voxel_um3 / UM3_PER_MM3
        by_cube = _sum_by_cube(source, network.points, tally, lengths / UM_PER_MM)
        length = estimate_density(by_cube, volumes, level) if total else Ratio(0.0)
        numbers = _sum_by_cube(source, network.branch_voxels, tally, branches.astype(float))
        branching = estimate_density(numbers, volumes, level)
        known = np.isfinite(network.tortuosity[owners])
        volume = float(tally.count((source.vessel,), region).sum()) * source.voxel_um3
        row: dict[str, Any] = {"region": WHOLE if region is None else str(region)}
        row |= {"class": source.classes.names[source.vessel], "length_mm": total / UM_PER_MM, "labelled_mm3": volumes.sum()}
        row |= {
            "length_mm_per_mm3": length.value,
            "length_low_mm_per_mm3": length.low,
            "length_high_mm_per_mm3": length.high,
        }
        row |= {
            "radius_um": _average(network.radius_um, lengths),
            "radius_from_volume_um": math.sqrt(volume / (math.pi * total)) if total else None,
            "tortuosity": _average(network.tortuosity[owners][known], lengths[known]),
            "connected_share": _average((network.part == 1)[owners], lengths),
            "segments": int(inside[middles].sum()),
            "branch_points": int(branches.sum()),
            "hubs": int((network.branch_degrees[branches] > HUB).sum()),
            "branch_points_per_mm3": branching.value,
            "branch_points_low_per_mm3": branching.low,
            "branch_points_high_per_mm3": branching.high,
        }
        rows.append(row)
    return gather(rows, LENGTHS)


def list_length_map(source: Source, network: Network, tally: Tally) -> dict[str, Any]:
    """Returns a table with a row per cube of the grid that has a labelled voxel."""
    labelled = tally.count(range(len(source.classes))).ravel() * source.voxel_um3 / UM3_PER_MM3
    there = np.flatnonzero(labelled)
    table = {name: values[there] for name, values in locate_clusters(source, tally).items()}
    table["length_mm"] = _sum_by_cube(source, network.points, tally, network.length_um / UM_PER_MM).ravel()[there]
    ones = np.ones(len(network.branch_voxels))
    table["branch_points"] = _sum_by_cube(source, network.branch_voxels, tally, ones).ravel()[there].astype(np.int64)
    table["labelled_mm3"] = labelled[there]
    return table | {"length_mm_per_mm3": table["length_mm"] / table["labelled_mm3"]}


def map_length(source: Source, network: Network, tally: Tally) -> NDArray[np.float32]:
    """Returns the coarse map of length in mm per mm3, float32 (z, y, x), NaN where nothing is labelled."""
    labelled = tally.count(range(len(source.classes))) * source.voxel_um3 / UM3_PER_MM3
    lengths = _sum_by_cube(source, network.points, tally, network.length_um / UM_PER_MM)
    found: NDArray[np.float64] = np.divide(lengths, labelled, out=np.full(labelled.shape, math.nan), where=labelled > 0)
    return found.astype(np.float32)


def list_profiles(source: Source, parts: Sequence[Part], settings: MeasureSettings, grid: Grid) -> dict[str, Any]:
    """Returns a table with a row per profile of a vessel in a slice; see `cells.list_cells`."""
    table = list_cells(source, parts, dataclasses.replace(settings, smallest_um=0.0), grid)
    left_out = ("cell", "cells_in_object", "too_large")
    return {"profile": table["cell"], **{name: values for name, values in table.items() if name not in left_out}}


def list_profile_densities(source: Source, profiles: dict[str, Any], tally: Tally, level: float) -> dict[str, Any]:
    """Returns a table with a row per region; `diameter_um` is the mean of discs of the areas of what no border cuts."""
    assert source.vessel is not None
    rows = []
    for region in (None, *(tally.regions if source.regions else ())):
        inside = np.ones(len(profiles["profile"]), bool) if region is None else profiles["region"] == region
        counts = count_by_cluster(source, profiles, tally, inside)
        frame = tally.count_frame(region) * source.size_um[1] * source.size_um[2] / UM2_PER_MM2
        found = estimate_density(counts, frame, level)
        whole = profiles["equivalent_diameter_um"][inside & ~profiles["cut_by_border"]]
        row: dict[str, Any] = {"region": WHOLE if region is None else str(region)}
        row |= {"class": source.classes.names[source.vessel], "profiles_counted": int(counts.sum())}
        row |= {"profiles_seen": int(inside.sum()), "frame_mm2": frame.sum(), "profiles_per_mm2": found.value}
        row |= {"profiles_low_per_mm2": found.low, "profiles_high_per_mm2": found.high}
        row |= {"diameter_um": float(whole.mean()) if len(whole) else None}
        rows.append(row | {"length_if_isotropic_mm_per_mm3": None if found.value is None else 2 * found.value})
    return gather(rows, PROFILES)


def describe_network(network: Network, name: str, source: Source) -> Iterator[str]:
    """Yields what a reader must know of a network of a class."""
    if not len(network.points):
        return
    thickness, widest = min(s * edge for s, edge in zip(source.shape, source.size_um, strict=True)), network.radius_um.max()
    if thickness < 2 * widest:
        yield (
            f"The box is {thickness:.3g} um thick, and {name} up to {2 * widest:.3g} um wide: of what is wider than the box "
            "the length is that through the box, and the rest is rough. --as-slices counts profiles instead."
        )
    hubs = int((network.branch_degrees > HUB).sum())
    if hubs:
        yield (
            f"{hubs} of {len(network.branch_degrees)} branch points of {name} join more than {HUB} segments: there vessels "
            "touch, or are labelled too wide (column degree of vessel_branches)."
        )
    if network.shallow:
        yield (
            f"{network.shallow} tiles have {name} so wide that their skeleton may depend on where the tile ends. Measure a "
            "coarser level of these labels too, and compare."
        )
    if network.differing:
        yield (
            f"At {network.differing} voxels two tiles found another skeleton of {name}, which has "
            f"{len(network.points):,} in all: a vessel may end there, or branch, that does not."
        )


def _average(values: NDArray[Any], weights: NDArray[np.float64]) -> float | None:
    total = float(weights.sum())
    return float((values * weights).sum()) / total if total else None


def _sum_by_cube(
    source: Source, numbers: NDArray[np.int64], tally: Tally, values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns the sums of values at voxels in each cluster, float64 (z, y, x)."""
    index = np.stack(np.unravel_index(numbers, source.shape), 1) // tally.clusters.tile_zyx
    cubes = np.ravel_multi_index(tuple(index.T), tally.clusters.tiles_zyx)
    summed = np.bincount(cubes, values, tally.clusters.count_tiles())
    return summed.reshape(tally.clusters.tiles_zyx).astype(np.float64)


def _find(source: Source, numbers: NDArray[np.int64], grid: Grid) -> NDArray[np.int64]:
    return find_regions(source, np.stack(np.unravel_index(numbers, source.shape), 1), grid)
