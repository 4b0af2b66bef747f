"""Run: a folder that holds one training and all that came of it; the only place that knows the names of its files."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from neurotome.atomic import hold_folder, sweep_partials, write_json, write_text
from neurotome.datasets.base import SPLITS
from neurotome.documents import flatten, read_yaml
from neurotome.errors import ModelError, NeurotomeError, RunError
from neurotome.models.model_folder import find_model
from neurotome.runs.contents import REDO, check_importance, check_scores, check_training, read_checked
from neurotome.runs.environment import describe_environment
from neurotome.runs.record import KINDS, Record, compare_configs, compare_data

CONFIG, RECORD, ENVIRONMENT = "config.yaml", "run.json", "environment.json"
RESTORE = "Restore it, or use a new folder with --out."

T = TypeVar("T")
Growing = Mapping[str, Callable[[Any], float]]
"""Settings that may become larger, so that a finished run goes on, each with what its size is."""


class Run:
    """A run folder.

    Readers return None where there is no such file, and raise RunError where it is damaged. Writers replace a file whole.

    Attributes:
        config: The complete settings.
        metrics: A row per epoch of a network's training.
        checkpoints: Folder of what training needs to go on.
        figures: Folder of the report's figures.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.config = self.folder / CONFIG
        self.metrics = self.folder / "metrics.csv"
        self.checkpoints = self.folder / "checkpoints"
        self.model = self.folder / "model"
        self.figures = self.folder / "figures"
        self.report = self.folder / "report.html"

    def __str__(self) -> str:
        return str(self.folder)

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """Opens a run folder; raises RunError if it is not there, or a file."""
        if not Path(folder).is_dir():
            raise RunError(f"{folder}: no such folder; expected a run folder, which neurotome train or baseline makes.")
        return cls(folder)

    # whose it is

    def check(self, config: Mapping[str, Any], record: Record, growing: Growing | None = None) -> list[str]:
        """Checks that a folder is free, or holds the run of these complete settings and data; changes nothing.

        A folder in which nothing was trained yet is free, whatever settings it was claimed for.

        Returns:
            The growing settings that have become larger.

        Raises:
            RunError: It holds something else: another run, or other training data than when it was made.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise RunError(f"{self}: a file is in the way; choose another run folder with --out.")
        if not self._is_trained():
            return []
        there, known = self.read_record(), self.read_config()
        if there is None or not known:
            missing = RECORD if there is None else CONFIG
            raise RunError(f"{self.folder / missing}: missing, but something was trained in this folder. {RESTORE}")
        if there.kind != record.kind:
            raise RunError(
                f"{self}: holds the run of {KINDS[there.kind]}; asked for is {KINDS[record.kind]}. Choose another folder "
                "with --out."
            )
        differing = compare_configs(known, json.loads(json.dumps(config)))
        larger = [key for key, size in (growing or {}).items() if key in differing and _grows(size, *differing[key])]
        others = [
            f"{key} ({_say(before)} there, {_say(asked)} asked)"
            for key, (before, asked) in differing.items()
            if key not in larger
        ]
        if others:
            raise RunError(
                f"{self}: holds another run, which differs in {'; '.join(others)}. Choose another folder with --out, "
                "or repeat that run's settings to go on with it."
            )
        if there.init_sha256 != record.init_sha256:
            flat = flatten(config)
            named = next((f" ({key} {flat[key]})" for key in ("init", "encoder.model") if flat.get(key)), "")
            raise RunError(
                f"{self}: the model that this run began with{named} has other weights now, or another one is asked for. "
                "Restore it to go on, or use a new --out."
            )
        if there.reference_sha256 != record.reference_sha256:
            before, asked = (flatten(settings).get("train.reference") for settings in (known, config))
            raise RunError(
                f"{self}: the reference over which this run measured the grey scale is another now, or its images changed "
                f"(train.reference {before!r} there, {asked!r} asked). Give or restore it to go on, or use a new --out."
            )
        if changes := compare_data(there, record, ("train", "val")):
            raise RunError(
                f"{self}: the training or validation data changed since this run began: {'; '.join(changes)}. Restore "
                "them to go on, or use a new --out."
            )
        return larger

    @contextlib.contextmanager
    def claim(self, config: Mapping[str, Any], record: Record, growing: Growing | None = None) -> Iterator[None]:
        """Makes the folder this run's and keeps other processes from it; RunError as of `check`, or if one works there.

        Sweeps what killed writers have left. Says what has become stale since the run was made.
        """
        with hold_folder(self.folder):
            larger = self.check(config, record, growing)
            sweep_partials(self.folder)
            there = self.read_record() if self._is_trained() else None
            if there and (changes := compare_data(there, record, ("test",))):
                warnings.warn(
                    f"{self}: the test data changed since they were scored ({'; '.join(changes)}); they are scored again.",
                    stacklevel=3,
                )
            if larger:
                warnings.warn(f"{self}: the run goes on, with larger {', '.join(larger)}.", stacklevel=3)
                if (summary := redo_damaged(self.read_training)) is not None:  # a run killed in between goes on too
                    self.write_training({**summary, "finished": False})
            if there != record:  # first: a config.yaml alone may be somebody's own
                write_json(self.folder / RECORD, dataclasses.asdict(record))
            if larger or there is None:
                plain = json.loads(json.dumps(config))  # YAML has no tuples
                write_text(self.config, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
            if there is None or redo_damaged(self.read_environment) is None:
                write_json(self.folder / ENVIRONMENT, describe_environment())
            yield

    def _is_trained(self) -> bool:
        """Says whether the folder holds more than a claim; raises RunError if it holds files that are no run's.

        Hidden files are what killed writers and file managers leave.
        """
        paths = (path.relative_to(self.folder) for path in self.list_files() if not path.name.startswith("."))
        names = {path.as_posix() for path in paths}
        if names and (names == {CONFIG} or not names & {CONFIG, RECORD}):
            raise RunError(f"{self}: this folder holds files that are not a run; choose a new folder with --out.")
        return bool(names - {CONFIG, RECORD, ENVIRONMENT})

    @property
    def is_finished(self) -> bool:
        """Whether training has come to its end; where its summary is damaged, training sees to it again."""
        summary = redo_damaged(self.read_training)
        return summary is not None and bool(summary["finished"])

    # its files

    def read_config(self) -> dict[str, Any]:
        """Returns the complete settings, nothing if there are none."""
        return dict(read_yaml(self.config, RunError, RESTORE)) if self.config.is_file() else {}

    def read_record(self) -> Record | None:
        """Returns what the run is."""
        return self._read(RECORD, Record.from_json, RESTORE)

    def read_environment(self) -> dict[str, Any] | None:
        """Returns versions, machine and command."""
        return self._read(ENVIRONMENT, dict)

    def read_training(self) -> dict[str, Any] | None:
        """Returns the summary of the training: whether it is finished, time, memory and so on."""
        return self._read("training.json", check_training)

    def write_training(self, summary: Mapping[str, Any]) -> None:
        """Writes the summary of the training."""
        write_json(self.folder / "training.json", summary)

    def read_importance(self) -> dict[str, Any] | None:
        """Returns how much a pixel classifier relies on each feature."""
        return self._read("importance.json", check_importance)

    def write_importance(self, importance: Mapping[str, Any]) -> None:
        """Writes how much a pixel classifier relies on each feature."""
        write_json(self.folder / "importance.json", importance)

    def read_metrics(self) -> list[dict[str, float | None]]:
        """Returns a row per epoch, nothing if there are none."""
        if not self.metrics.is_file():
            return []
        try:
            table = csv.DictReader(io.StringIO(self.metrics.read_text(encoding="utf-8")), strict=True)
            rows = [{key: float(value) if value else None for key, value in row.items()} for row in table]
            if not rows or not {"epoch", "step"} <= rows[0].keys():
                raise ValueError("found no rows of epoch and step")
        except (csv.Error, TypeError, ValueError) as error:
            raise RunError(
                f"{self.metrics}: cannot be read as a table of numbers ({error}); delete it to report without it."
            ) from error
        return rows

    def write_metrics(self, rows: Sequence[Mapping[str, float | None]]) -> None:
        """Writes a row per epoch; None becomes an empty cell."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.metrics, text.getvalue())

    def read_scores(self, split: str) -> dict[str, Any] | None:
        """Returns the scores of a split."""
        return self._read(f"scores/{split}.json", check_scores)

    def write_scores(self, split: str, scores: Mapping[str, Any]) -> None:
        """Writes the scores of a split."""
        write_json(self.folder / "scores" / f"{split}.json", scores)

    def delete_split(self, split: str) -> None:
        """Deletes the scores of a split, its predictions and its uncertainty, so that they can be made anew."""
        (self.folder / "scores" / f"{split}.json").unlink(missing_ok=True)  # first: they say that the others are whole
        for folder in (self.predictions(split), self.uncertainty(split)):
            if folder.is_dir():
                shutil.rmtree(folder)

    def list_files(self) -> list[Path]:
        """Returns every file of the folder."""
        return [path for path in self.folder.rglob("*") if path.is_file()]

    def list_scored(self) -> list[str]:
        """Returns the splits that have scores, train first."""
        return [split for split in SPLITS if (self.folder / "scores" / f"{split}.json").is_file()]

    def predictions(self, split: str) -> Path:
        """Returns the folder of predicted labels, a file for each image of a split."""
        return self.folder / "predictions" / split

    def uncertainty(self, split: str) -> Path:
        """Returns the folder of uncertainty, a file for each image: 1 - the probability of the chosen class, times 255."""
        return self.folder / "uncertainty" / split

    def _read(self, name: str, build: Callable[[dict[str, Any]], T], remedy: str = REDO) -> T | None:
        path = self.folder / name
        return read_checked(path, build, remedy) if path.is_file() else None


def find_method(model: str) -> str | None:
    """Returns the `method_sha256` of the run that made a model, None if it is not known.

    A model is a run folder, a model folder or the name of a packaged model; "" for none.
    """
    folder = find_model(Path(model)) if model else Path()
    record = Run(folder.parent).read_record() if folder.name == "model" else None
    return record.method_sha256 if record else None


def redo_damaged(read: Callable[[], T]) -> T | None:
    """Returns what a reader returns; None with a note if the file is damaged, for callers who make it again."""
    try:
        return read()
    except (RunError, ModelError) as error:
        warnings.warn(f"{str(error).removesuffix(REDO).rstrip()} It is made again now.", stacklevel=3)
        return None


def _grows(size: Callable[[Any], float], before: Any, asked: Any) -> bool:
    try:
        sizes = [size(value) or math.inf for value in (before, asked)]  # no limit is the largest
    except (TypeError, ValueError, NeurotomeError):
        return False
    return sizes[1] > sizes[0]


def _say(value: Any) -> str:
    return "nothing" if value in ("", None) else str(value)
