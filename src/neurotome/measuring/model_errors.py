"""read_errors: what the scores of a test split say of the errors in a model's labels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.block_bootstrap import FEWEST_UNITS, Units, measure_variance
from neurotome.errors import RunError
from neurotome.measuring.intervals import Added
from neurotome.measuring.settings import MeasureSettings
from neurotome.measuring.source import Source
from neurotome.objects.scores import read_units
from neurotome.runs import Run
from neurotome.runs.contents import check_scores, read_checked
from neurotome.statistics import find_stack
from neurotome.tables import count

Floats = NDArray[np.float64]
SPLIT = "test"


@dataclass(frozen=True)
class ModelErrors:
    """Errors of a model on a test split.

    Attributes:
        scores: The content of `scores/test.json`.
        notes: What a reader must know.
        uncounted: Why the number of objects of a class cannot be corrected, by its name.
    """

    scores: Mapping[str, Any]
    notes: tuple[str, ...]
    uncounted: Mapping[str, str]

    @property
    def confusion(self) -> Floats:
        """Pixels by true and predicted class, float64 (classes, classes), rows true."""
        return np.asarray(self.scores["confusion"], np.float64)

    def vary_shares(self, predicted: Floats) -> Sequence[Added] | None:
        """Returns how sure the corrected share of each class is, as far as the scores go; None if they say nothing of it.

        Args:
            predicted: Share of each predicted class in what is measured, float64 (classes,).
        """
        total = self.confusion.sum(0)
        kept = total > 0
        weights = np.where(kept, predicted / np.where(kept, total, 1), 0.0)
        shares = self.confusion / np.where(kept, total, 1)
        found: list[tuple[Floats, Units]] = []
        for kind, confusions, shapes in self._list_pixel_units():
            # a unit adds its own pixels to p(true | predicted), and takes its share of the pooled one away
            slopes = ((confusions - shares * confusions.sum(1, keepdims=True)) * weights).sum(2)
            found.append((slopes.T, Units(kind, confusions[None], shapes)))
        return _vary(found)

    def count_ratio(self, name: str) -> float:
        """Returns true objects per found one: precision / recall, by any matching, since what matches cancels."""
        one = self.scores["objects"]["per_class"][name]
        return float(one["true"] / one["found"])

    def vary_count(self, name: str) -> Added | None:
        """Returns how sure the ratio is, relative to it, as far as the scores go; None if they say nothing of it."""
        place = list(self.scores["objects"]["per_class"]).index(name)
        found = []
        for units in read_units(self.scores["objects"], "distance"):
            true, given = units.counts[0, :, 1, place], units.counts[0, :, 2, place]
            found.append(((true / true.sum() - given / given.sum())[None], units))
        varied = _vary(found)
        return None if varied is None else varied[0]

    def _list_pixel_units(self) -> Iterator[tuple[Any, Floats, list[tuple[int, int]]]]:
        images = self.scores["per_image"]
        stacks = [(len(list(group)), 1) for _, group in itertools.groupby(images["name"], find_stack)]
        yield "slices", np.asarray(images["confusion"], np.float64), stacks
        if tiles := images["tiles"]:
            listed = [matrix for group in tiles for matrix in group["confusion"]]
            yield "tiles", np.asarray(listed, np.float64), [(group["grid"][0], group["grid"][1]) for group in tiles]


def _vary(found: Sequence[tuple[Floats, Units]]) -> list[Added] | None:
    """Returns variances by the kind of unit that says more uncertainty; None where there are too few of any kind."""
    measured = [measure_variance(slopes, units) for slopes, units in found if slopes.shape[1] >= FEWEST_UNITS]
    if not measured:
        return None
    variances, freedom = max(measured, key=lambda one: float(one[0].sum()))
    return [Added(variance, freedom) for variance in variances.tolist()]


def read_errors(path: Path, source: Source, settings: MeasureSettings) -> ModelErrors:
    """Reads scores and refuses those that say nothing of these labels.

    Args:
        path: Run folder, or file of scores.
        source: The labels.
        settings: What is measured in them.

    Raises:
        RunError: There are no scores of a test split, they are damaged, of other classes or of another model, or lack the
            objects that are measured.
    """
    scores = _read(path)
    if tuple(scores["classes"]) != source.classes.names:
        raise RunError(
            f"{path}: the scores are of the classes {', '.join(scores['classes'])}, the labels of "
            f"{', '.join(source.classes.names)}. Give scores of the model that made the labels."
        )
    made, scored = source.made.get("inference", {}).get("model_sha256"), scores.get("made_from", {}).get("weights_sha256")
    if made and scored and made != scored:
        raise RunError(
            f"{path}: the scores are of the model {scored[:12]}, the labels were made by {made[:12]}. Give scores of the "
            "model that made the labels."
        )
    unsaid = [what for what, known in (("these labels do", made), ("the scores do", scored)) if not known]
    tested = f"{scores['dataset']}, split {scores['split']}, {count(len(scores['per_image']['name']), 'image')}"
    notes = [f"Corrected figures hold where tissue, staining and scan are like those of the test images ({tested})."]
    if unsaid:
        notes.append(f"That the scores are of the model that made the labels is taken on trust: {unsaid[0]} not say theirs.")
    if warning := scores["intervals"]["warning"]:
        notes.append(f"Of the scores: {warning}.")
    uncounted = {}
    if source.cell is not None:
        name = source.classes.names[source.cell]
        _check_objects(path, scores, name, "cells", source)
        uncounted[name] = _find_reason(scores["objects"], name, source)
        notes += _list_doubts(scores["objects"], name, settings)
    if source.vessel is not None and source.flat:
        name = source.classes.names[source.vessel]
        _check_objects(path, scores, name, "vessels", source)
        uncounted[name] = _find_reason(scores["objects"], name, source)
    elif source.vessel is not None:
        notes.append("Lengths and branch points of vessels are not corrected: scores say nothing of them.")
    return ModelErrors(scores, tuple(notes), {name: reason for name, reason in uncounted.items() if reason})


def _read(path: Path) -> dict[str, Any]:
    again = f"Score the test split: neurotome evaluate MODEL --data DATASET --split {SPLIT} --out scores.json."
    if path.is_dir():
        found = Run(path).read_scores(SPLIT)
        if found is None:
            raise RunError(f"{path}: found no scores of the split {SPLIT}. {again}")
        return found
    scores = read_checked(path, check_scores, again)
    if scores["split"] != SPLIT:
        raise RunError(f"{path}: found scores of the split {scores['split']}; expected images that no training saw. {again}")
    return scores


def _check_objects(path: Path, scores: Mapping[str, Any], name: str, option: str, source: Source) -> None:
    """Raises RunError where scoring again would give objects by which the number of a class can be corrected."""
    objects, leave_out = scores.get("objects"), f"or leave them out: --{option} none."
    if objects is None or name not in objects["per_class"]:
        raise RunError(
            f"{path}: found no objects of class {name} in the scores; expected them, to correct their number. Score again "
            f"with neurotome evaluate (--objects.classes '{name}' if its default leaves them out), {leave_out}"
        )
    if source.flat and objects["dimensions"] == 3:
        raise RunError(
            f"{path}: objects of class {name} were scored in volumes; expected slices, as the labels are measured. Score "
            f"again with neurotome evaluate --objects.as-slices, {leave_out}"
        )


def _find_reason(objects: Mapping[str, Any], name: str, source: Source) -> str:
    """Returns why the number of objects cannot be corrected, nothing if it can."""
    one = objects["per_class"][name]
    if not source.flat and objects["dimensions"] == 2:
        return "the test images are slices, which do not say how many are found in a volume"
    if not objects["distance"]["per_class"][name]["matched"]:
        return f"the test images have {one['true']}, {one['found']} were found, and none of them match"
    return ""


def _list_doubts(objects: Mapping[str, Any], name: str, settings: MeasureSettings) -> Iterator[str]:
    """Yields where objects of the scores are others than the cells that are measured."""
    one = objects["per_class"][name]
    neck = one.get("neck", 0.0)  # older scores parted nothing
    if neck != settings.neck:
        yield (
            f"Touching {name} are parted by --neck {settings.neck:g} here and by {neck:g} in the scores, so that the "
            f"corrected number may be off: give --neck {neck:g}, or score again with neurotome evaluate --objects.neck "
            f"{settings.neck:g}."
        )
    if (one["smallest"], objects["unit"]) != (settings.smallest_um, "um"):
        yield (
            f"The scores leave out {name} below {one['smallest']:g} {objects['unit']}, these figures below "
            f"{settings.smallest_um:g} um, so that the corrected number may be off."
        )
