"""summary: a grid's scores as one tidy table, a row per run, split and class."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from neurotome.atomic import atomic_path, write_text
from neurotome.documents import flatten
from neurotome.experiments.grids.plan import Plan, PlannedRun
from neurotome.runs import Run
from neurotome.runs.run import redo_damaged

SCORES = ("precision", "recall", "f1", "iou", "support")
COLUMNS = ("run", "method", "recipe", "label", "kind", "seed", "fold", "split", "class", *SCORES, "accuracy")
MEASURED = ("seconds", "steps", "peak_memory_bytes", "scoring_mpixel_per_s", "status")
INTEGERS = ("seed", "fold", "support", "steps", "peak_memory_bytes")
NUMBERS = (*SCORES[:4], "accuracy", "seconds", "scoring_mpixel_per_s")

Row = dict[str, Any]


class Summary:
    """The tables `summary.csv` and `summary.parquet` of a grid's folder, kept as runs finish.

    `class` is a class, or `macro` or `weighted` for the means over classes. Scores are pooled over the pixels of a split;
    a class that is neither in it nor predicted has none. A setting's column is its dotted name after `set.`. A run that is
    not finished has one row, whose `status` is `failed` or `missing`.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.folder = plan, folder
        self._rows: dict[str, list[Row]] = {}

    def write(self, finished: Sequence[str], failed: Mapping[str, str]) -> None:
        """Writes both tables; the rows of a run are read once, when it is finished."""
        rows = []
        for run in self.plan.runs:
            if run.name in finished and run.name not in self._rows:
                self._rows[run.name] = _list_rows(run, Run(self.folder / "runs" / run.name))
            status = "failed" if run.name in failed else "missing"
            rows += self._rows.get(run.name) or [{**_describe(run), "status": status}]
        settings = sorted({key for row in rows for key in row if key.startswith("set.")})
        columns = [*COLUMNS, *settings, *MEASURED]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.folder / "summary.csv", text.getvalue())
        _write_parquet(self.folder / "summary.parquet", {name: [row.get(name) for row in rows] for name in columns})


def _list_rows(run: PlannedRun, done: Run) -> list[Row]:
    """Returns the rows of a finished run."""
    training = redo_damaged(done.read_training) or {}
    measured = {key: training.get(key) for key in MEASURED} | {"status": "finished"}
    rows = []
    for split in run.splits:
        scores = redo_damaged(partial(done.read_scores, split))
        if scores is None:
            continue
        for name, values in {**scores["per_class"], "macro": scores["macro"], "weighted": scores["weighted"]}.items():
            row = {"split": split, "class": name, "accuracy": scores["accuracy"]}
            rows.append({**_describe(run), **row, **{key: values.get(key) for key in SCORES}, **measured})
    return rows


def _describe(run: PlannedRun) -> Row:
    """Returns what a run is; settings that are neither number nor text are written as JSON."""
    settings = {f"set.{key}": value for key, value in flatten(run.settings).items()}
    plain = {key: json.dumps(value) if isinstance(value, (list, dict)) else value for key, value in settings.items()}
    names = ("method", "recipe", "label", "kind", "seed", "fold")
    return {"run": run.name, **{key: getattr(run, key) for key in names}, **plain}


def _write_parquet(path: Path, columns: Mapping[str, list[Any]]) -> None:
    """Writes a table whose columns have the same types in every grid, however few rows it has."""
    import pyarrow
    from pyarrow import parquet

    arrays = {}
    for name, values in columns.items():
        known = {type(value) for value in values} - {type(None)}
        if name in INTEGERS:
            arrays[name] = pyarrow.array(values, pyarrow.int64())
        elif name in NUMBERS or (name.startswith("set.") and known and known <= {int, float}):
            arrays[name] = pyarrow.array(values, pyarrow.float64())
        elif known == {bool}:
            arrays[name] = pyarrow.array(values, pyarrow.bool_())
        else:
            arrays[name] = pyarrow.array([None if value is None else str(value) for value in values], pyarrow.string())
    with atomic_path(path) as temporary:
        parquet.write_table(pyarrow.table(arrays), temporary)
