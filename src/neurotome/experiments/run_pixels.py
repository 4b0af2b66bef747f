"""fit_and_score: a pixel classifier trained and scored in its run folder."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from neurotome.datasets.base import SPLITS, Dataset
from neurotome.experiments.evaluate import score_splits
from neurotome.models.model_folder import read_digest
from neurotome.models.stored_model import read_model
from neurotome.pixels.importance import measure_importance
from neurotome.pixels.train import BaselineSettings, check_baseline, fit_baseline
from neurotome.runs import Run, find_method, record_run
from neurotome.runs.environment import measure_peak_memory
from neurotome.runs.run import redo_damaged


def fit_and_score(
    dataset: Dataset,
    name: str,
    out: Path,
    settings: BaselineSettings,
    device: str = "auto",
    splits: Sequence[str] = SPLITS,
    method: str = "",
) -> Run:
    """Does what `baseline` does, but for the report, with a dataset that `config.yaml` calls `name`.

    Scores the splits that are named and there; the run's record calls it `method`, without one as `name_method` does.
    """
    from neurotome.models.net import choose_device
    from neurotome.pixels.saving import build_pixels, save_pixels

    dataset.split("train")
    config = {"dataset": name, **dataclasses.asdict(settings)}
    model = settings.encoder.model if settings.features == "encoder" else ""
    origin = find_method(model), read_digest(Path(model)) if model else None
    record = record_run("pixels", method or name_method(settings), config, dataset, settings.seed, *origin)
    run = Run(out)
    run.check(config, record)
    place = choose_device(device)
    has_model = (run.model / "model.safetensors").is_file()
    predictor = redo_damaged(lambda: build_pixels(read_model(run.model), place)) if has_model else None
    trained = predictor is not None
    if not trained:
        check_baseline(dataset, settings)
    with run.claim(config, record):
        if predictor is None:
            sys.stderr.write(f"training {settings.learner} on {settings.features}\n")
            predictor = fit_baseline(dataset, settings, place)
            save_pixels(predictor, run.model)
            training = predictor.facts["training"]
            sys.stderr.write(f"{sum(training['pixels'].values()):,} pixels, {training['seconds']:.1f} s\n")
        if redo_damaged(run.read_importance) is None:
            run.write_importance(measure_importance(predictor, dataset, settings.seed))
        if redo_damaged(run.read_training) is None:
            # what an earlier process did, this one has not measured and leaves null
            measured = {"scoring_mpixel_per_s": None, "peak_memory_bytes": None if trained else measure_peak_memory()}
            place_and_kind = {"device": place, "precision": "32-true"}
            run.write_training({"finished": True, **predictor.facts["training"], **measured, **place_and_kind})
        score_splits(predictor, dataset, run, splits, uncertainty=True)
    return run


def name_method(settings: BaselineSettings) -> str:
    """Returns what a pixel classifier is called, such as `rf on filters`."""
    encoder = settings.encoder
    if settings.features == "encoder" and not encoder.model:
        return f"{settings.learner} on {encoder.name} with weights {encoder.weights}"
    return f"{settings.learner} on {settings.features}"
