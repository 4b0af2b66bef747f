"""Volume fractions of classes: whole, by region, and by cube of a coarse grid."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from neurotome.measuring.intervals import estimate_share
from neurotome.measuring.source import Source
from neurotome.measuring.tables import gather
from neurotome.measuring.tally import Tally

WHOLE = "whole"
UM3_PER_MM3 = 1e9

FRACTIONS = {
    **{"region": str, "class": str, "fraction": float, "fraction_low": float, "fraction_high": float},
    **{"volume_mm3": float, "labelled_mm3": float},
}


def list_fractions(source: Source, tally: Tally, level: float) -> dict[str, Any]:
    """Returns a table: a row per region (the whole box first) and class, of the labelled voxels."""
    rows = []
    ids = range(len(source.classes))
    voxel_mm3 = source.voxel_um3 / UM3_PER_MM3
    for region in (None, *(tally.regions if source.regions else ())):
        labelled = tally.count(ids, region)
        for class_id, name in enumerate(source.classes.names):
            counts = tally.count((class_id,), region)
            share = estimate_share(counts, labelled, level)
            row: dict[str, Any] = {"region": WHOLE if region is None else str(region), "class": name}
            row |= {"fraction": share.value, "fraction_low": share.low, "fraction_high": share.high}
            rows.append(row | {"volume_mm3": counts.sum() * voxel_mm3, "labelled_mm3": labelled.sum() * voxel_mm3})
    return gather(rows, FRACTIONS)


def locate_clusters(source: Source, tally: Tally) -> dict[str, Any]:
    """Returns the centre of each cluster in micrometres from the first voxel of the labels, by column, flat."""
    clusters, found = tally.clusters, []
    for size, edge, part, edge_um in zip(clusters.shape_zyx, clusters.tile_zyx, source.box, source.size_um, strict=True):
        starts = np.arange(0, size, edge)
        found.append(((starts + np.minimum(starts + edge, size) - 1) / 2 + part.start) * edge_um)
    centres = np.meshgrid(*found, indexing="ij")
    return {f"centre_{axis}_um": values.ravel() for axis, values in zip("zyx", centres, strict=True)}


def list_fraction_map(source: Source, tally: Tally) -> dict[str, Any]:
    """Returns a table: a row per cube of the grid that has a labelled voxel, and class."""
    places = locate_clusters(source, tally)
    labelled = tally.count(range(len(source.classes))).ravel()
    there = np.flatnonzero(labelled)
    tables = []
    for class_id in range(len(source.classes)):
        counts = tally.count((class_id,)).ravel()
        table = {name: values[there] for name, values in places.items()}
        table["fraction"] = counts[there] / labelled[there]
        tables.append(table | {"labelled_mm3": labelled[there] * (source.voxel_um3 / UM3_PER_MM3)})
    joined: dict[str, Any] = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    joined["class"] = [name for name in source.classes.names for _ in there]
    return joined


def map_fraction(source: Source, tally: Tally, class_id: int) -> Any:
    """Returns the coarse map of a class, float32 (z, y, x), NaN where nothing is labelled."""
    labelled = tally.count(range(len(source.classes)))
    shares = np.divide(tally.count((class_id,)), labelled, out=np.full(labelled.shape, math.nan), where=labelled > 0)
    return shares.astype(np.float32)
