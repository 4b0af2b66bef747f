"""measure_labels: from a source to tables and maps, block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.blocks import Grid, Triple
from neurotome.engines import EngineSettings, open_engine
from neurotome.engines.base import Build, Engine
from neurotome.errors import ImageError
from neurotome.measuring.block import BlockWork
from neurotome.measuring.cells import (
    describe_lost_cells,
    list_cells,
    list_densities,
    list_density_map,
    map_density,
)
from neurotome.measuring.correction import correct_densities, correct_fractions, list_correction_notes
from neurotome.measuring.fractions import list_fraction_map, list_fractions, map_fraction
from neurotome.measuring.model_errors import ModelErrors
from neurotome.measuring.network import Network, build_network
from neurotome.measuring.objects import Part, Shaping, Stitcher
from neurotome.measuring.orientation import (
    gather_tensors,
    list_direction_map,
    list_directions,
    list_distribution,
    map_directions,
)
from neurotome.measuring.settings import MeasureSettings
from neurotome.measuring.skeleton import TileResult, TileWork, plan_tiles
from neurotome.measuring.source import Source
from neurotome.measuring.tally import Tally
from neurotome.measuring.vessels import (
    describe_network,
    list_branches,
    list_length_map,
    list_lengths,
    list_profile_densities,
    list_profiles,
    list_segments,
    locate_segments,
    map_length,
)
from neurotome.progress import Progress

CUBES = 24
SMALLEST_CUBE = 8


@dataclass(frozen=True)
class Measurements:
    """What was measured.

    Attributes:
        tables: By name; see `tables.Columns`. `fractions` and `fractions_grid` always; with cells `cells`, `density` and
            `density_grid`; with vessels `vessels`, `vessel_density`, `vessel_density_grid` and in 3D `vessel_branches`; with
            axons `axon_direction`, `axon_direction_grid` and `axon_angles`.
        maps: By name, float32 (z, y, x), NaN where nothing is known: `fraction_CLASS`; of cells `density_per_mm3`, of their
            profiles `profiles_per_mm2`; of vessels `vessel_mm_per_mm3` or `vessel_profiles_per_mm2`; `angle_deg` and
            `coherence` of axons.
        cube_um: Edges of a voxel of these maps (z, y, x).
        notes: What a reader must know.
        lines_um: Points (n, 3), zyx, of each segment of the table `vessels`, from the first voxel of the labels.
    """

    tables: Mapping[str, Mapping[str, Any]]
    maps: Mapping[str, NDArray[np.float32]]
    cube_um: tuple[float, float, float]
    notes: tuple[str, ...]
    lines_um: Sequence[NDArray[np.float64]] = ()


def measure_labels(source: Source, settings: MeasureSettings, errors: ModelErrors | None = None) -> Measurements:
    """Measures labels, in memory that depends on the blocks, on the number of cells and on the length of the vessels alone.

    With `errors` of the model that made them, fractions and numbers of objects get corrected columns beside the others.

    Raises:
        ImageError: A block cannot be read, or holds a value that is no class.
    """
    grid = Grid(source.shape, source.block_zyx, source.block_zyx)
    tiles = plan_tiles(source.shape, source.block_zyx)
    cube = plan_cube(source, settings)
    clusters = Grid(source.shape, cube, cube)
    shaping = Shaping(source.shape, source.size_um, settings.neck, source.flat, settings.smallest_um)
    found = _Found(Tally(clusters), grid)
    cells, profiles = Stitcher(shaping), Stitcher(shaping.without_parting())
    engine_settings = EngineSettings(workers=settings.workers, threads=1, retries=0)
    with open_engine(engine_settings, "cpu") as engine:
        for result in _run(engine, BlockWork(source, grid, clusters, shaping).build, grid, "measuring"):
            found.tally.add(result.counts)
            if result.pieces is not None:
                found.cells += cells.add(result.block, result.pieces)
            if result.profiles is not None:
                found.profiles += profiles.add(result.block, result.profiles)
        if source.axon is not None or (source.vessel is not None and not source.flat):
            for results in _run(engine, TileWork(source, tiles, clusters).build, tiles, "following vessels and axons"):
                found.tiles += results
    found.tiles.sort(key=lambda result: result.tile)
    if source.vessel is not None and not source.flat:
        found.network = build_network(found.tiles, tiles, source.size_um)
    return _tabulate(source, settings, found, errors)


@dataclass
class _Found:
    """What blocks and tiles found."""

    tally: Tally
    grid: Grid
    cells: list[Part] = field(default_factory=list)
    profiles: list[Part] = field(default_factory=list)
    tiles: list[TileResult] = field(default_factory=list)
    network: Network | None = None


def _run(engine: Engine, build: Build, grid: Grid, what: str) -> Iterator[Any]:
    """Yields what each block gives; raises ImageError if one fails."""
    progress, done = Progress(what, math.prod(grid.shape_zyx) / 1e6, "Mvoxel"), 0.0
    for outcome in engine.run(build, range(len(grid))):
        if outcome.error is not None:
            raise ImageError(outcome.error)
        yield outcome.result
        done += math.prod(part.stop - part.start for part in grid.place(outcome.task)) / 1e6
        progress.update(done)
    progress.finish(f"{done:.4g} Mvoxel")


def plan_cube(source: Source, settings: MeasureSettings) -> Triple:
    """Returns the edges of a cluster in voxels (z, y, x), about as long in micrometres, and no longer than the box."""
    edges_um = [size * edge for size, edge in zip(source.shape, source.size_um, strict=True)]
    wanted = max(max(edges_um) / CUBES, SMALLEST_CUBE * min(source.size_um))
    cube_um = wanted if settings.grid_um == "auto" else settings.grid_um
    z, y, x = (min(size, max(1, round(cube_um / edge))) for size, edge in zip(source.shape, source.size_um, strict=True))
    return z, y, x


def _tabulate(source: Source, settings: MeasureSettings, found: _Found, errors: ModelErrors | None) -> Measurements:
    tally, grid, level = found.tally, found.grid, settings.level
    fractions = list_fractions(source, tally, level)
    tables: dict[str, Mapping[str, Any]] = {"fractions": fractions, "fractions_grid": list_fraction_map(source, tally)}
    maps = {f"fraction_{name}": map_fraction(source, tally, number) for number, name in enumerate(source.classes.names)}
    if source.cell is not None:
        cells = list_cells(source, found.cells, settings, grid)
        tables |= {"cells": cells, "density": list_densities(source, cells, tally, settings)}
        tables["density_grid"] = list_density_map(source, cells, tally)
        maps["profiles_per_mm2" if source.flat else "density_per_mm3"] = map_density(source, cells, tally)
    if found.network is not None:
        tables["vessels"] = list_segments(source, found.network, grid)
        tables["vessel_branches"] = list_branches(source, found.network, grid)
        tables["vessel_density"] = list_lengths(source, found.network, tally, grid, level)
        tables["vessel_density_grid"] = list_length_map(source, found.network, tally)
        maps["vessel_mm_per_mm3"] = map_length(source, found.network, tally)
    elif source.vessel is not None:
        profiles = list_profiles(source, found.profiles, settings, grid)
        tables |= {"vessels": profiles, "vessel_density": list_profile_densities(source, profiles, tally, level)}
        tables["vessel_density_grid"] = list_density_map(source, profiles, tally)
        maps["vessel_profiles_per_mm2"] = map_density(source, profiles, tally)
    if source.axon is not None:
        tensors = gather_tensors([result.tensors for result in found.tiles if result.tensors is not None])
        directions = list_direction_map(source, tensors, tally)
        tables |= {"axon_direction": list_directions(source, tensors, tally, level), "axon_direction_grid": directions}
        tables["axon_angles"] = list_distribution(directions)
        maps |= map_directions(directions, tensors, tally, source.flat)
    notes = _list_notes(source, tables, found)
    if found.network is not None:
        notes += describe_network(found.network, source.classes.names[source.vessel or 0], source)
    if errors is not None:
        tables["fractions"] = {**fractions, **correct_fractions(source, tally, errors, level)}
        for objects, densities in (("cells", "density"), ("vessels", "vessel_density")):
            if densities in tables and (source.flat or densities == "density"):
                columns = correct_densities(source, tables[objects], tables[densities], tally, errors, level)
                tables[densities] = {**tables[densities], **columns}
        notes += list_correction_notes(source, tally, errors)
    z, y, x = (voxels * edge for voxels, edge in zip(tally.clusters.tile_zyx, source.size_um, strict=True))
    lines = () if found.network is None else locate_segments(source, found.network)
    return Measurements(tables, maps, (z, y, x), tuple(notes), lines)


def _list_notes(source: Source, tables: Mapping[str, Mapping[str, Any]], found: _Found) -> list[str]:
    notes = []
    fractions = tables["fractions"]
    whole = range(len(source.classes))
    if fractions["labelled_mm3"][0] == 0:
        raise ImageError(f"{source.path}: found no labelled voxel in the box; expected some. Check --bbox and the labels.")
    empty = [source.classes.names[i] for i in whole if fractions["volume_mm3"][i] == 0]
    if empty:
        notes.append(f"No voxel is {', '.join(empty)}: the fraction is 0, without an interval.")
    if source.cell is not None and (note := describe_lost_cells(found.cells)):
        notes.append(note)
    if source.cell is None:
        notes.append("Cells are not measured: no class is named cell, or --cells none was given.")
    elif tables["cells"]["too_large"].any():
        count = int(tables["cells"]["too_large"].sum())
        notes.append(f"{count} objects are far too large to be cells; they count as one each, without surface.")
    for what, known in (("Vessels", source.vessel), ("Directions of axons", source.axon)):
        if known is None:
            option = "--vessels" if what == "Vessels" else "--axons"
            notes.append(f"{what} are not measured: no class is named so, or {option} none was given.")
    if np.isnan(fractions["fraction_low"][[i for i in whole if fractions["volume_mm3"][i] > 0]]).any():
        notes.append(
            "There are too few cubes of the grid, or one class only, to say an interval: measure more, or lower --grid-um."
        )
    return notes
