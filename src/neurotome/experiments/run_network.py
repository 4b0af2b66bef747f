"""train_and_score: a network trained and scored in its run folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurotome.datasets.base import SPLITS, Dataset
from neurotome.errors import ModelError, RunError
from neurotome.experiments.evaluate import score_splits
from neurotome.load import load_predictor
from neurotome.models.stored_model import read_model
from neurotome.runs import Run, find_method, record_run
from neurotome.runs.run import redo_damaged
from neurotome.training.fit import fit
from neurotome.training.prepare import prepare, settle_recipe
from neurotome.training.recipe import Recipe, parse_duration

if TYPE_CHECKING:
    from neurotome.training.keeper import OnEpoch

GROWING: dict[str, Callable[[Any], float]] = {"train.epochs": float, "train.max_time": parse_duration}
"""Settings by which a run can be prolonged, and how large a value of theirs is."""


def train_and_score(
    dataset: Dataset,
    name: str,
    out: Path,
    recipe: Recipe,
    splits: Sequence[str] = SPLITS,
    method: str = "",
    on_epoch: OnEpoch | None = None,
) -> Run:
    """Does what `train` does, but for the report, with a dataset that `config.yaml` calls `name`.

    Scores the splits that are named and there; the run's record calls it `method`, without one decoder and encoder.
    `on_epoch` is told of each epoch, see `fit`.
    """
    settled = settle_recipe(dataset, recipe)
    config = {"dataset": name, **dataclasses.asdict(settled.recipe)}
    model = settled.recipe.model
    method = method or f"{model.decoder}, {model.encoder}{', 3D' if model.dimensions == 3 else ''}"
    origin = find_method(recipe.init), settled.init_sha256
    record = record_run("network", method, config, dataset, recipe.train.seed, *origin, settled.reference_sha256)
    run = Run(out)
    longer = run.check(config, record, GROWING)
    if run.is_finished:
        _check_finished(run, longer)
    # a damaged table of epochs is written again from the checkpoint, as a damaged summary is
    rows = redo_damaged(run.read_metrics)
    module = None if run.is_finished and rows and not longer else prepare(dataset, settled)
    with run.claim(config, record, GROWING):
        if module is not None:
            fit(module, run, on_epoch)
            del module  # the optimiser's memory is not needed for scoring
        score_splits(load_predictor(run.folder, recipe.train.device), dataset, run, splits)
    return run


def _check_finished(run: Run, longer: Sequence[str]) -> None:
    """Checks that a finished run has its model, or what prolonging it needs.

    Raises:
        RunError: It has not; nothing was changed then.
    """
    if longer:
        from neurotome.training.checkpoints import list_checkpoints

        if list_checkpoints(run.checkpoints):
            return
        raise RunError(
            f"{run}: the training is finished and its checkpoints are gone, so it cannot go on with larger "
            f"{', '.join(longer)}. Restore {run.checkpoints}, or train in a new --out, with --init {run} from its weights."
        )
    try:
        if not (run.model / "model.json").is_file():
            raise RunError(f"{run.model}: found no model, though the training is finished.")
        read_model(run.model)
    except (ModelError, RunError) as error:
        raise RunError(f"{error} Restore {run.model} from a copy, or train in a new --out.") from error
