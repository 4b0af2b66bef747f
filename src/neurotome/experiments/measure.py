"""measure: the command that turns labels into numbers."""

from __future__ import annotations

import dataclasses
import itertools
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter

from neurotome.atomic import atomic_folder, write_json
from neurotome.errors import RunError
from neurotome.io.identity import identify_input
from neurotome.io.sink import write_image
from neurotome.measuring.cells import RULES
from neurotome.measuring.model_errors import read_errors
from neurotome.measuring.run import Measurements, measure_labels
from neurotome.measuring.settings import MeasureSettings
from neurotome.measuring.source import Source, open_source
from neurotome.measuring.tables import write_table
from neurotome.outputs import plan_outputs
from neurotome.report.measures import PAGE, write_measures
from neurotome.runs.environment import describe_environment, measure_peak_memory
from neurotome.tables import Shown, Table
from neurotome.volume import Volume

PROVENANCE = "measure.json"

SHOWN = {
    "vessel_density": (
        *("region", "length_mm_per_mm3", "length_low_mm_per_mm3", "length_high_mm_per_mm3", "radius_um", "branch_points"),
        *("profiles_counted", "profiles_per_mm2", "profiles_low_per_mm2", "profiles_high_per_mm2", "diameter_um"),
        *("profiles_corrected_per_mm2", "profiles_corrected_low_per_mm2", "profiles_corrected_high_per_mm2"),
    ),
    "axon_direction": ("region", "angle_deg", "dip_deg", "coherence", "mean_cos2"),
}
"""Columns that are printed, where a table has them."""


@dataclass(frozen=True, repr=False)
class Measured(Shown):
    """What `measure` found; `tables` by name as in its files, columns as arrays."""

    folder: Path
    tables: Mapping[str, Mapping[str, Any]]
    notes: Sequence[str]

    def _show(self) -> Sequence[str | Table]:
        fractions = self.tables["fractions"]
        keys = ["region", "class", *(name for name in fractions if name.startswith("fraction"))]
        shown: list[str | Table] = [_tabulate(fractions, keys)]
        if density := self.tables.get("density"):
            shown.append(_tabulate(density, [name for name in density if not name.startswith("frame")]))
        for name, columns in SHOWN.items():
            if table := self.tables.get(name):
                shown.append(_tabulate(table, [column for column in columns if column in table]))
        return [*shown, *self.notes, f"The page: {self.folder / PAGE}"]


def measure(
    labels: Path,
    *,
    out: Path,
    regions: Path | None = None,
    scores: Path | None = None,
    settings: Annotated[MeasureSettings, Parameter(name="*")] = MeasureSettings(),
) -> Measured:
    """Measures labels: volume fractions, single cells, the network of vessels, the direction of axons, with intervals.

    Tables are written as CSV and as Parquet: fractions and fractions_grid; of cells cells, density and density_grid; of
    vessels vessels, vessel_branches, vessel_density and vessel_density_grid; of axons axon_direction, axon_direction_grid
    and axon_angles. maps/ has the coarse maps as TIFF, measure.json what all rests on, measure.html a page with pictures. A
    volume of any size is measured in bounded memory; a measurement is not resumed. OUT is there whole or not at all.

    Args:
        labels: What `predict` wrote, or any other labels: OME-Zarr, TIFF, PNG, npy, a folder of slices.
        out: Folder to write; it must be new, empty, or with --overwrite an earlier measurement.
        regions: Map of whole numbers, of the labels' shape or coarser by whole numbers: all is measured for each region too.
        scores: Run folder of the model that made the labels, or a file that `evaluate` wrote, of a test split: fractions and
            numbers of objects are also given corrected for the errors it says, with intervals that hold them.
        settings: What is measured, and how.

    Returns:
        The tables; printed are fractions, densities and directions.

    Raises:
        ImageError: Labels or map cannot be read, the voxel size or the classes are not known, a value is no class, or the
            map has another shape.
        RunError: OUT holds something else, or the scores do not fit the labels.
        SettingsError: A setting cannot be used with these labels.
    """
    labels, out = Path(labels), Path(out)
    regions, scores = (None if path is None else Path(path) for path in (regions, scores))
    _check_out(out, [path for path in (labels, regions, scores) if path], settings.overwrite)
    began = time.monotonic()
    source = open_source(labels, regions, settings)
    errors = None if scores is None else read_errors(scores, source, settings)
    measured = measure_labels(source, settings, errors)
    provenance = _describe(source, measured, settings, regions) | {
        "scores": None if errors is None else {"path": str(scores), "made_from": errors.scores.get("made_from")},
        "seconds": round(time.monotonic() - began, 1),
        "peak_memory_bytes": measure_peak_memory(),
    }
    with atomic_folder(out) as temporary:
        temporary.mkdir()
        for name, table in measured.tables.items():
            write_table(temporary / name, table)
        origin = tuple(part.start for part in source.box)
        files = provenance["maps"]
        for name, values in measured.maps.items():
            like = Volume(values, name, measured.cube_um, (origin[0], origin[1], origin[2]))
            write_image(temporary / "maps" / files[name], values, like)
        write_json(temporary / PROVENANCE, provenance)
        write_measures(
            temporary,
            measured,
            source.classes,
            _list_facts(provenance),
            title=f"Measured in {labels.name}",
            flat=source.flat,
            level=settings.level,
        )
    return Measured(out, measured.tables, measured.notes)


def _name_maps(names: Iterable[str]) -> dict[str, str]:
    """Returns the file of each map, named as it is but for signs, and numbered where only these differ."""
    files: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        stem = re.sub(r"\W+", "_", name)
        tried = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
        numbered = next(each for each in tried if each.casefold() not in taken)
        taken.add(numbered.casefold())
        files[name] = f"{numbered}.tif"
    return files


def _check_out(out: Path, inputs: Sequence[Path], overwrite: bool) -> None:
    plan_outputs([out / PROVENANCE], inputs=inputs, existing="replace")
    for path in inputs:
        if out.resolve() in path.resolve().parents:
            raise RunError(f"{out}: holds the input {path}, and would be replaced as a whole. Choose another output.")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / PROVENANCE).is_file():
        raise RunError(f"{out}: holds something that is no measurement. Choose another output, or empty it.")
    if not overwrite:
        raise RunError(f"{out}: holds a measurement already. Choose another output, or say --overwrite.")


def _describe(source: Source, measured: Measurements, settings: MeasureSettings, regions: Path | None) -> dict[str, Any]:
    """Returns all that the numbers depend on, JSON."""

    def name_class(number: int | None) -> str | None:
        return None if number is None else source.classes.names[number]

    return {
        "labels": {"path": str(source.path), **identify_input(source.path)},
        "made_by": dict(source.made),
        "regions": None if regions is None else {"path": str(regions), **identify_input(regions)},
        "classes": source.classes.to_json(),
        "cell_class": name_class(source.cell),
        "vessel_class": name_class(source.vessel),
        "axon_class": name_class(source.axon),
        "voxel_size_um": list(source.size_um),
        "voxel_size_from": source.size_from,
        "box": ",".join(f"{part.start}:{part.stop}" for part in source.box),
        "as_slices": source.flat,
        "counting_rule": RULES[source.flat],
        "cube_um": list(measured.cube_um),
        "region_factors_zyx": None if source.regions is None else list(source.regions.factors),
        "maps": _name_maps(measured.maps),
        "notes": list(measured.notes),
        "settings": dataclasses.asdict(settings),
        "environment": describe_environment(),
    }


def _list_facts(provenance: Mapping[str, Any]) -> dict[str, str]:
    made, environment, settings = provenance["made_by"], provenance["environment"], provenance["settings"]
    facts = {
        "Labels": f"{provenance['labels']['path']}, sha256 of a sample {provenance['labels']['sha256'][:16]}",
        "Model": str(made.get("model", "not said by the labels")),
        "Box (voxels z, y, x)": provenance["box"],
        "Voxel size (um z, y, x)": f"{' x '.join(f'{edge:.4g}' for edge in provenance['voxel_size_um'])}, "
        f"{provenance['voxel_size_from']}",
        "Cubes of the maps and intervals (um z, y, x)": " x ".join(f"{edge:.4g}" for edge in provenance["cube_um"]),
        "Settings": ", ".join(f"{name} {value}" for name, value in settings.items() if value not in ((), "")),
        "Command": environment["command"],
        "neurotome": f"{environment['neurotome']}, commit {environment['git_commit'] or 'not known'}",
        "Time and memory": f"{provenance['seconds']:g} s, {provenance['peak_memory_bytes'] / 1e6:.0f} MB at most",
    }
    if provenance["cell_class"]:
        facts["Cells are of class"] = f"{provenance['cell_class']}; counted by {provenance['counting_rule']}"
    for key, what in (("vessel_class", "Vessels"), ("axon_class", "Axons")):
        if provenance[key]:
            facts[f"{what} are of class"] = provenance[key]
    if provenance["scores"]:
        facts["Corrected by the scores"] = provenance["scores"]["path"]
    if provenance["regions"]:
        facts["Regions"] = provenance["regions"]["path"]
    return facts


def _tabulate(table: Mapping[str, Any], keys: Sequence[str]) -> Table:
    def show(value: Any) -> str:
        if isinstance(value, (str, int, np.integer)):
            return str(value)
        return f"{value:.4g}" if np.isfinite(value) else "–"

    return Table(keys, [[show(value) for value in row] for row in zip(*(table[key] for key in keys), strict=True)])
