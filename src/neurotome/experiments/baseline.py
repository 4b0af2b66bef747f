"""baseline: a pixel classifier from dataset to report, in a run folder like a network's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from neurotome.classes import Palette
from neurotome.datasets import open_dataset
from neurotome.datasets.base import Dataset, DatasetOrName
from neurotome.datasets.statistics import note_splits
from neurotome.experiments.cross_validate import FoldScores, cross_validate, refuse_gap
from neurotome.experiments.evaluate import finish
from neurotome.experiments.run_pixels import fit_and_score
from neurotome.pixels.train import BaselineSettings
from neurotome.predictor import Device


def baseline(
    dataset: DatasetOrName,
    *,
    out: Path,
    settings: Annotated[BaselineSettings, Parameter(name="*")] = BaselineSettings(),
    device: Device = "auto",
    folds: int = 0,
    gap: int | None = None,
    palette: Palette = "colour-blind-safe",
) -> Path | FoldScores:
    """Trains a pixel classifier, scores it on every split and writes a report.

    The same command given again goes on where it was stopped; once all is done it changes nothing.

    Args:
        dataset: Folder with dataset.yaml, mtneuro:FOLDER, or phantom.
        out: Run folder; new, or one of the same settings.
        settings: Features, learner and how training pixels are drawn.
        device: Where an encoder runs: auto (a GPU if there is one), cpu, cuda, cuda:1 (the second GPU) or mps; auto with
            folds.
        folds: Cross-validate instead: divide the images into so many parts, and train for each part on the others. `out`
            is then the folder of a grid of runs, without reports.
        gap: Slices left out of training on each side of those that are scored, where folds cut a stack; by default 5 % of
            the stack, but at least 1 and at most 8.
        palette: Colours of the report's pictures.

    Returns:
        The report, `out/report.html`; with folds the scores over all of them.

    Raises:
        NeurotomeError: The data, a setting or the run folder cannot be used; nothing has been changed then.
    """
    if folds:
        return cross_validate(settings, dataset, Path(out), folds, gap)
    refuse_gap(gap)
    data = open_dataset(dataset)
    note_splits(data)
    name = dataset.name if isinstance(dataset, Dataset) else str(dataset)
    return finish(fit_and_score(data, name, Path(out), settings, device), data, palette)
