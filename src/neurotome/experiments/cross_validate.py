"""cross_validate: one method trained on every fold of a dataset, and its scores over all of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurotome.datasets.base import DatasetOrName
from neurotome.errors import RunError, SettingsError
from neurotome.experiments.grids.grid import run_grid
from neurotome.experiments.grids.plan import list_folds
from neurotome.models.networks import settle_network
from neurotome.pixels.train import BaselineSettings
from neurotome.runs import Run
from neurotome.statistics import Estimate, estimate_all
from neurotome.tables import Shown, Table, count
from neurotome.training.recipe import Recipe

COLUMNS = ("precision", "recall", "f1", "iou")


@dataclass(frozen=True, repr=False)
class FoldScores(Shown):
    """The scores of a method over all folds; every annotated slice is tested once.

    Attributes:
        folder: A grid's folder, in whose `runs` each fold's run is.
        f1: Macro F1 of each fold by itself, None where nothing is labelled.
        estimates: For each score, such as `macro.f1` or `per_class.cell.recall`, that of the pooled pixels of all folds, and
            its interval.
    """

    folder: Path
    f1: tuple[float | None, ...]
    estimates: Mapping[str, Estimate]

    def _show(self) -> list[str | Table]:
        places = dict.fromkeys(metric.rpartition(".")[0] for metric in self.estimates if "." in metric)
        rows = [
            (place.removeprefix("per_class."), *(_say(self.estimates[f"{place}.{column}"]) for column in COLUMNS))
            for place in places
        ]
        single = ", ".join("–" if f1 is None else f"{f1:.3f}" for f1 in self.f1)
        note = next((estimate.note for estimate in self.estimates.values() if estimate.note), "")
        lines = [f"macro F1 of each fold: {single}", *([note] if note else []), str(self.folder / "summary.csv")]
        headline = f"scores over {count(len(self.f1), 'fold')}, 95 % intervals"
        return [headline, Table(("", *COLUMNS), rows), "\n".join(lines)]


def cross_validate(
    settings: Recipe | BaselineSettings, dataset: DatasetOrName, out: Path, folds: int, gap: int | None = None
) -> FoldScores:
    """Trains one method for each fold, each in a process and a run folder of its own, and scores it on the fold's test part.

    The same call goes on where it was stopped.

    Args:
        settings: Of a network or of a pixel classifier.
        dataset: One whose splits are not fixed.
        out: Folder of the runs; new, or one of the same call.
        folds: Number of parts, 3 or more.
        gap: See `make_fold`.

    Raises:
        NeurotomeError: The data, a setting or the folder cannot be used, and nothing has been changed; or a fold has failed.
    """
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings)))
    if isinstance(settings, BaselineSettings):
        plan = list_folds("pixels", settings.learner, plain, folds, gap)
    else:
        network = settle_network(settings.model)
        label = "from-model" if settings.init else f"{network.decoder}-{network.encoder}"
        plan = list_folds("network", label, plain, folds, gap)
    result = run_grid(plan, dataset, out)
    if result.failed:
        listed = "\n".join(f"  {name}: {message}" for name, message in result.failed.items())
        raise RunError(f"{out}: {len(result.failed)} of {folds} folds failed:\n{listed}\nThe same command tries them again.")
    scores = [Run(out / "runs" / run.name).read_scores("test") for run in plan.runs]
    whole = [fold for fold in scores if fold is not None]
    places = ["macro", "weighted", *(f"per_class.{name}" for name in whole[0]["classes"])]
    metrics = [f"{place}.{column}" for place in places for column in COLUMNS]
    return FoldScores(out, tuple(fold["macro"]["f1"] for fold in whole), estimate_all(whole, metrics))


def refuse_gap(gap: int | None) -> None:
    """Raises SettingsError where a gap is given for what has no folds."""
    if gap is not None:
        raise SettingsError("--gap is for folds, and there are none; add --folds 5, or leave it out.")


def _say(estimate: Estimate) -> str:
    if estimate.value is None:
        return "–"
    interval = "" if estimate.low is None else f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    return f"{estimate.value:.3f}{interval}"
