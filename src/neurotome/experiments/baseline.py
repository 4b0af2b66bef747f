"""baseline: a pixel classifier from dataset to report, in a run folder like a network's."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from neurotome.atomic import hold_folder, write_json
from neurotome.classes import Palette
from neurotome.datasets import open_dataset
from neurotome.datasets.base import SPLITS, Dataset, DatasetOrName
from neurotome.experiments.commands import check_same_run, claim_run, note_scores, score_splits
from neurotome.memory import measure_peak_memory
from neurotome.models.model_folder import read_digest
from neurotome.pixels.importance import measure_importance
from neurotome.pixels.train import BaselineSettings, check_baseline, fit_baseline
from neurotome.scoring import format_scores
from neurotome.training.fit import check_run_folder


def baseline(
    dataset: DatasetOrName,
    *,
    out: Path,
    settings: Annotated[BaselineSettings, Parameter(name="*")] = BaselineSettings(),
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    palette: Palette = "colour-blind-safe",
) -> Path:
    """Trains a pixel classifier, scores it on every split and writes a report.

    The same command given again goes on where it was stopped; once all is done it changes nothing.

    Args:
        dataset: Folder with dataset.yaml, mtneuro:FOLDER, or phantom.
        out: Run folder; new, or one of the same settings.
        settings: Features, learner and how training pixels are drawn.
        device: Where an encoder runs.
        palette: Colours of the report's pictures.

    Returns:
        The report, `out/report.html`.

    Raises:
        NeurotomeError: The data, a setting or the run folder cannot be used; nothing has been changed then.
    """
    out = Path(out)  # text from Python
    data = open_dataset(dataset)
    coloured = dataclasses.replace(data, classes=data.classes.with_palette(palette))
    name = str(dataset) if isinstance(dataset, (str, Path)) else data.name
    fit_and_score(data, name, out, settings, device)
    last = next(split for split in reversed(SPLITS) if (out / "scores" / f"{split}.json").is_file())
    sys.stderr.write(f"\n{format_scores(json.loads((out / 'scores' / f'{last}.json').read_text()))}\n\n")
    from neurotome.report import build_report

    return build_report(out, coloured)


def fit_and_score(data: Dataset, name: str, out: Path, settings: BaselineSettings, device: str = "auto") -> None:
    """Does what `baseline` does, but for the report.

    Args:
        data: What to train on.
        name: What `config.yaml` calls it, so that its settings repeat the run.
        out: Run folder.
        settings: Settings.
        device: Where an encoder runs.
    """
    from neurotome.models.net import choose_device
    from neurotome.pixels.saving import load_pixels, save_pixels

    check_run_folder(out)
    data.split("train")
    config = {"dataset": name, **dataclasses.asdict(settings)}
    hashes = {split: data.fingerprint(split) for split in ("train", "val") if data.splits.get(split)}
    model = settings.encoder.model if settings.features == "encoder" else ""
    init = read_digest(Path(model)) if model else None
    check_same_run(out, config, hashes, init)
    place = choose_device(device)
    finished = (out / "model" / "model.json").is_file()
    if not finished:
        check_baseline(data, settings)
    with hold_folder(out):
        if not finished:
            claim_run(out, config, hashes, init)
            sys.stderr.write(f"training {settings.learner} on {settings.features}\n")
            predictor = fit_baseline(data, settings, place)
            save_pixels(predictor, out / "model")
            training = predictor.facts["training"]
            sys.stderr.write(f"{sum(training['pixels'].values()):,} pixels, {training['seconds']:.1f} s\n")
        if not (out / "importance.json").is_file():
            write_json(out / "importance.json", measure_importance(load_pixels(out, place), data, settings.seed))
        predictor = load_pixels(out, place)
        began = time.monotonic()
        fresh = sum(
            cutout.volume.data.size
            for split in SPLITS
            if not (out / "scores" / f"{split}.json").is_file()
            for cutout in data.splits.get(split, ())
        )
        score_splits(predictor, data, out, uncertainty=True)
        speed = fresh / 1e6 / (time.monotonic() - began) if fresh else None
        summary = out / "training.json"
        if not summary.is_file():
            write_json(summary, _summarise(predictor.facts, speed, None if finished else measure_peak_memory(), place))
        elif fresh:
            write_json(summary, {**json.loads(summary.read_text()), "scoring_mpixel_per_s": speed})
        note_scores(out)


def _summarise(facts: Any, speed: float | None, peak_memory: int | None, device: str) -> dict[str, Any]:
    """Returns the content of training.json; what an earlier process did, this one has not measured and leaves null."""
    return {
        "finished": True,
        **facts["training"],
        "scoring_mpixel_per_s": speed,
        "peak_memory_bytes": peak_memory,
        "device": device,
        "precision": "32-true",
    }
