"""measure_labels: from a source to tables and maps, block by block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.blocks import Grid, Triple
from neurotome.engines import EngineSettings, open_engine
from neurotome.errors import ImageError
from neurotome.measuring.block import BlockResult, BlockWork
from neurotome.measuring.cells import list_cells, list_densities, list_density_map, map_density
from neurotome.measuring.fractions import list_fraction_map, list_fractions, map_fraction
from neurotome.measuring.objects import Part, Shaping, Stitcher
from neurotome.measuring.settings import MeasureSettings
from neurotome.measuring.source import Source
from neurotome.measuring.tally import Tally
from neurotome.progress import Progress

CUBES = 24
SMALLEST_CUBE = 8


@dataclass(frozen=True)
class Measurements:
    """What was measured.

    Attributes:
        tables: By name; see `tables.Columns`. `fractions` and `fractions_grid` always; with cells `cells`, `density` and
            `density_grid`.
        maps: By name, float32 (z, y, x), NaN where nothing is known: `fraction_CLASS`, and of cells `density_per_mm3`, or of
            profiles `profiles_per_mm2`.
        cube_um: Edges of a voxel of these maps (z, y, x).
        notes: What a reader must know.
    """

    tables: Mapping[str, Mapping[str, Any]]
    maps: Mapping[str, NDArray[np.float32]]
    cube_um: tuple[float, float, float]
    notes: tuple[str, ...]


def measure_labels(source: Source, settings: MeasureSettings) -> Measurements:
    """Measures labels, in memory that depends on the blocks and on the number of cells (some 500 bytes each) alone.

    Raises:
        ImageError: A block cannot be read, or holds a value that is no class.
    """
    grid = Grid(source.shape, source.block_zyx, source.block_zyx)
    cube = plan_cube(source, settings)
    clusters = Grid(source.shape, cube, cube)
    shaping = Shaping(source.shape, source.size_um, settings.neck, source.flat)
    tally, stitcher, parts = Tally(clusters), Stitcher(shaping), list[Part]()
    work = BlockWork(source, grid, clusters, shaping)
    progress = Progress("measuring", source.shape[0] * source.shape[1] * source.shape[2] / 1e6, "Mvoxel")
    done = 0.0
    engine_settings = EngineSettings(workers=settings.workers, threads=1, retries=0)
    with open_engine(engine_settings, "cpu") as engine:
        for outcome in engine.run(work.build, range(len(grid))):
            if outcome.error is not None:
                raise ImageError(outcome.error)
            assert isinstance(outcome.result, BlockResult)
            tally.add(outcome.result.counts)
            if outcome.result.pieces is not None:
                parts += stitcher.add(outcome.result.block, outcome.result.pieces)
            done += float(np.prod([part.stop - part.start for part in grid.place(outcome.task)])) / 1e6
            progress.update(done)
    progress.finish(f"{done:.4g} Mvoxel")
    return _tabulate(source, settings, tally, parts, grid)


def plan_cube(source: Source, settings: MeasureSettings) -> Triple:
    """Returns the edges of a cluster in voxels (z, y, x), about as long in micrometres, and no longer than the box."""
    edges_um = [size * edge for size, edge in zip(source.shape, source.size_um, strict=True)]
    wanted = max(max(edges_um) / CUBES, SMALLEST_CUBE * min(source.size_um))
    cube_um = wanted if settings.grid_um == "auto" else settings.grid_um
    z, y, x = (min(size, max(1, round(cube_um / edge))) for size, edge in zip(source.shape, source.size_um, strict=True))
    return z, y, x


def _tabulate(source: Source, settings: MeasureSettings, tally: Tally, parts: list[Part], grid: Grid) -> Measurements:
    fractions = list_fractions(source, tally, settings.level)
    tables: dict[str, Mapping[str, Any]] = {"fractions": fractions, "fractions_grid": list_fraction_map(source, tally)}
    maps = {f"fraction_{name}": map_fraction(source, tally, number) for number, name in enumerate(source.classes.names)}
    if source.cell is not None:
        cells = list_cells(source, parts, settings, grid)
        tables |= {"cells": cells, "density": list_densities(source, cells, tally, settings)}
        tables["density_grid"] = list_density_map(source, cells, tally)
        maps["profiles_per_mm2" if source.flat else "density_per_mm3"] = map_density(source, cells, tally)
    z, y, x = (voxels * edge for voxels, edge in zip(tally.clusters.tile_zyx, source.size_um, strict=True))
    return Measurements(tables, maps, (z, y, x), tuple(_list_notes(source, tables)))


def _list_notes(source: Source, tables: Mapping[str, Mapping[str, Any]]) -> list[str]:
    notes = []
    fractions = tables["fractions"]
    whole = range(len(source.classes))
    if fractions["labelled_mm3"][0] == 0:
        raise ImageError(f"{source.path}: found no labelled voxel in the box; expected some. Check --bbox and the labels.")
    empty = [source.classes.names[i] for i in whole if fractions["volume_mm3"][i] == 0]
    if empty:
        notes.append(f"No voxel is {', '.join(empty)}: the fraction is 0, without an interval.")
    if source.cell is None:
        notes.append("Cells are not measured: no class is named cell, or --cells none was given.")
    elif tables["cells"]["too_large"].any():
        count = int(tables["cells"]["too_large"].sum())
        notes.append(f"{count} objects are far too large to be cells; they count as one each, without surface.")
    if np.isnan(fractions["fraction_low"][[i for i in whole if fractions["volume_mm3"][i] > 0]]).any():
        notes.append(
            "There are too few cubes of the grid, or one class only, to say an interval: measure more, or lower --grid-um."
        )
    return notes
