"""finish: what a command that trains does at its end."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from neurotome.classes import Palette
from neurotome.datasets.base import Dataset
from neurotome.report import build_report, verdict
from neurotome.runs import Run
from neurotome.scoring import Scores


def finish(run: Run, dataset: Dataset, palette: Palette) -> Path:
    """Says the scores of the most telling split and what to do next, and writes the report.

    Args:
        run: Trained and scored.
        dataset: What it was trained and scored on.
        palette: Colours of the report's pictures.

    Returns:
        The report.
    """
    scores = run.read_scores(run.list_scored()[-1])
    assert scores is not None  # it is listed
    sys.stderr.write(f"\n{Scores(scores)}\n\n")
    sys.stderr.writelines(f"- {sentence}\n" for sentence in verdict(run))
    sys.stderr.write("\n")
    return build_report(run, dataclasses.replace(dataset, classes=dataset.classes.with_palette(palette)))


def spell_dataset(dataset: str | Path | Dataset) -> str:
    """Returns what `config.yaml` calls a dataset, so that its settings repeat the run."""
    return dataset.name if isinstance(dataset, Dataset) else str(dataset)
