"""Fractions and numbers of objects, corrected for the errors of the model that made the labels.

Fractions: of what was predicted as class i, the share p(j | i) is truly j, as the confusion matrix of the test images says;
so the share of j is the sum of p(j | i) times the share of i over all i (post-stratification; Olofsson et al. 2014,
doi:10.1016/j.rse.2014.02.015, equation 9; Card 1982). Shares stay between 0 and 1 and sum to 1, which the inverse of the
matrix does not promise. Numbers: true objects per found one, which is precision / recall.

Intervals join two variances that are independent: that of the measured tissue, by cubes, and that of the scores, by slices
or tiles of the test images, whose influences are summed with the windows of `block_bootstrap`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.measuring.cells import UM2_PER_MM2, count_by_cluster
from neurotome.measuring.fractions import UM3_PER_MM3
from neurotome.measuring.intervals import NOTHING, Ratio, estimate_density, estimate_share
from neurotome.measuring.model_errors import ModelErrors
from neurotome.measuring.source import Source
from neurotome.measuring.tally import Tally

Columns = dict[str, NDArray[np.float64]]


def correct_fractions(source: Source, tally: Tally, errors: ModelErrors, level: float) -> Columns:
    """Returns columns for the table `fractions`, in the order of its rows; NaN where nothing can be said."""
    confusion, ids = errors.confusion, range(len(source.classes))
    given = confusion.sum(0)
    shares = confusion / np.where(given > 0, given, 1)  # p(true | predicted), columns sum to 1
    found: list[Ratio] = []
    for region in _list_regions(source, tally):
        counts = np.stack([tally.count((number,), region) for number in ids])
        labelled, predicted = counts.sum(0), counts.sum((1, 2, 3))
        if (predicted[given == 0] > 0).any() or not predicted.any():
            found += [Ratio(None)] * len(ids)
            continue
        added = errors.vary_shares(predicted / predicted.sum())
        for number in ids:
            hits = np.tensordot(shares[number], counts, 1)
            ratio = estimate_share(hits, labelled, level, NOTHING if added is None else added[number])
            found.append(Ratio(ratio.value) if added is None else ratio)
    return _name(found, "fraction_corrected{}")


def correct_densities(
    source: Source, objects: Mapping[str, Any], table: Mapping[str, Any], tally: Tally, errors: ModelErrors, level: float
) -> Columns:
    """Returns columns for the table `density`, or of slices also `vessel_density`, in the order of its rows.

    Args:
        source: The labels.
        objects: The table `cells`, or of profiles `vessels`.
        table: The table without these columns.
        tally: Counts of voxels.
        errors: Of the model.
        level: Of the intervals.
    """
    what = "profiles" if source.flat else "cells"
    number = source.vessel if "class" in table else source.cell
    assert number is not None
    name = source.classes.names[number]
    known = name not in errors.uncounted
    ratio, added = (errors.count_ratio(name), errors.vary_count(name)) if known else (math.nan, None)
    unit = source.size_um[1] * source.size_um[2] / UM2_PER_MM2 if source.flat else source.voxel_um3 / UM3_PER_MM3
    found = []
    for region in _list_regions(source, tally) if known else ():
        label = objects.get("region")
        inside = np.ones(len(objects["counted"]), bool) if region is None or label is None else label == region
        counts = count_by_cluster(source, dict(objects), tally, inside)
        frame = tally.count_frame(region) * unit
        counted = estimate_density(counts, frame, level, added or NOTHING)
        scaled = Ratio(*(None if value is None else value * ratio for value in counted))
        found.append(Ratio(scaled.value) if added is None else scaled)
    found = found or [Ratio(None)] * len(table["region"])
    columns = {f"{what}_counted_corrected": table[f"{what}_counted"] * ratio}
    if not source.flat:
        return columns | _name(found, "density_corrected{}_per_mm3")
    columns |= _name(found, "profiles_corrected{}_per_mm2")
    if "density_per_mm3" in table:
        with np.errstate(invalid="ignore", divide="ignore"):
            per_profile = table["density_per_mm3"] / table["profiles_per_mm2"]
        for bound in ("", "_low", "_high"):
            columns[f"density_corrected{bound}_per_mm3"] = columns[f"profiles_corrected{bound}_per_mm2"] * per_profile
    return columns


def list_correction_notes(source: Source, tally: Tally, errors: ModelErrors) -> Iterator[str]:
    """Yields what of the correction cannot be done, or is less sure than it looks."""
    given, true = errors.confusion.sum(0), errors.confusion.sum(1)
    names = source.classes.names
    unseen = [name for i, name in enumerate(names) if given[i] == 0 and tally.count((i,)).any()]
    if unseen:
        yield (
            f"Fractions are not corrected where there is {', '.join(unseen)}: in the test images no pixel is predicted so. "
            "Score a split that has it."
        )
    absent = [name for i, name in enumerate(names) if true[i] == 0 and given[i] > 0 and tally.count((i,)).any()]
    if absent:
        yield f"In the test images no pixel is truly {', '.join(absent)}, so all that is labelled so is taken for wrong."
    if errors.vary_shares(np.full(len(names), 1 / len(names))) is None:
        yield "There are too few test images to say an interval of corrected figures; at least 5 slices, or larger ones, do."
    for name, reason in errors.uncounted.items():
        yield f"The number of {name} is not corrected: {reason}."
    yield from errors.notes


def _list_regions(source: Source, tally: Tally) -> tuple[int | None, ...]:
    return (None, *(tally.regions if source.regions else ()))


def _name(ratios: list[Ratio], pattern: str) -> Columns:
    columns = zip(*ratios, strict=True)
    return {
        pattern.format(bound): np.array([math.nan if value is None else value for value in column], np.float64)
        for bound, column in zip(("", "_low", "_high"), columns, strict=True)
    }
