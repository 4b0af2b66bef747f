"""Run: a folder that holds one training and all that came of it; the only place that knows the names of its files."""

from __future__ import annotations

import contextlib
import csv
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
from neurotome.documents import read_json, read_yaml
from neurotome.errors import NeurotomeError, RunError
from neurotome.models.model_folder import find_model
from neurotome.runs.contents import check_importance, check_scores, check_training
from neurotome.runs.environment import describe_environment
from neurotome.runs.record import Record, compare_configs, compare_data, flatten

CONFIG, RECORD, ENVIRONMENT = "config.yaml", "run.json", "environment.json"
REDO = "Delete it and give the run's command again: it is made again."
RESTORE = "Restore it, or use a new folder with --out."
KINDS = {"pixels": "a pixel classifier (baseline)", "network": "a network (train)"}

T = TypeVar("T")


class Run:
    """A run folder.

    Readers return None where there is no such file, and raise RunError where it is damaged. Writers replace a file whole.

    Attributes:
        folder: Where it is.
        config: The complete settings.
        metrics: A row per epoch of a network's training.
        checkpoints: Folder of what training needs to go on.
        model: Folder of the trained model.
        figures: Folder of the report's figures.
        report: The report.
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
        """Opens a run folder that is there.

        Raises:
            RunError: It is not there, or a file.
        """
        if not Path(folder).is_dir():
            raise RunError(f"{folder}: no such folder; expected a run folder, which neurotome train or baseline makes.")
        return cls(folder)

    # whose it is

    def check(
        self, config: Mapping[str, Any], record: Record, growing: Mapping[str, Callable[[Any], float]] | None = None
    ) -> list[str]:
        """Checks that a folder is free, or holds the run of these settings and data; changes nothing.

        A folder in which nothing was trained yet is free, whatever settings it was claimed for.

        Args:
            config: The complete settings.
            record: What the run is.
            growing: Settings that may become larger, so that a finished run goes on, each with what its size is.

        Returns:
            The settings that have become larger.

        Raises:
            RunError: It holds something else: another run, or other training data than when it was made.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise RunError(f"{self}: a file is in the way; choose another run folder with --out.")
        if not self._is_trained():
            return []
        there = self.read_record()
        if there is None or not self.read_config():
            missing = self.folder / (CONFIG if there is not None else RECORD)
            raise RunError(f"{missing}: missing, but something was trained in this folder. {RESTORE}")
        if there.kind != record.kind:
            raise RunError(
                f"{self}: holds the run of {KINDS[there.kind]}; asked for is {KINDS[record.kind]}. Choose another folder "
                "with --out."
            )
        differing = compare_configs(self.read_config(), json.loads(json.dumps(config)))
        larger = [key for key, size in (growing or {}).items() if key in differing and _grows(size, *differing[key])]
        described = [
            f"{key} ({_say(before)} there, {_say(asked)} asked)"
            for key, (before, asked) in differing.items()
            if key not in larger
        ]
        if described:
            raise RunError(
                f"{self}: holds another run, which differs in {'; '.join(described)}. Choose another folder with --out, "
                "or repeat that run's settings to go on with it."
            )
        if there.init_sha256 != record.init_sha256:
            flat = flatten(config)
            named = next((f" ({key} {flat[key]})" for key in ("init", "encoder.model") if flat.get(key)), "")
            raise RunError(
                f"{self}: the model that this run began with{named} has other weights now, or another one is asked for. "
                "Restore it to go on, or use a new --out."
            )
        if changes := compare_data(there, record, ("train", "val")):
            raise RunError(
                f"{self}: the training or validation data changed since this run began: {'; '.join(changes)}. Restore "
                "them to go on, or use a new --out."
            )
        return larger

    @contextlib.contextmanager
    def claim(
        self, config: Mapping[str, Any], record: Record, growing: Mapping[str, Callable[[Any], float]] | None = None
    ) -> Iterator[None]:
        """Makes the folder this run's and keeps other processes from it; arguments as of `check`.

        Sweeps what killed writers have left. Says what has become stale since the run was made.

        Raises:
            RunError: It holds something else, or another process works there.
        """
        self.check(config, record, growing)
        with hold_folder(self.folder):
            sweep_partials(self.folder)
            larger = self.check(config, record, growing)  # another process may have worked here since
            if not self._is_trained():
                # config.yaml first: with it alone the folder is still a run's, in which nothing was trained
                self._write_config(config)
                write_json(self.folder / RECORD, record.to_json())
                write_json(self.folder / ENVIRONMENT, describe_environment())
            else:
                self._go_on(config, record, larger)
            yield

    def _go_on(self, config: Mapping[str, Any], record: Record, larger: Sequence[str]) -> None:
        there = self.read_record()
        if there is not None and (changes := compare_data(there, record, ("test",))):
            warnings.warn(
                f"{self}: the test data changed since they were scored ({'; '.join(changes)}); they are scored again.",
                stacklevel=3,
            )
        if larger:
            summary = redo_damaged(self.read_training)
            warnings.warn(f"{self}: the run goes on, with larger {', '.join(larger)}.", stacklevel=3)
            if summary is not None:  # first, so that a run killed in between goes on too
                self.write_training({**summary, "finished": False})
            self._write_config(config)
        if there != record:
            write_json(self.folder / RECORD, record.to_json())
        if redo_damaged(self.read_environment) is None:
            write_json(self.folder / ENVIRONMENT, describe_environment())

    def _is_trained(self) -> bool:
        """Says whether the folder holds more than a claim: files that training has written.

        Hidden files are what killed writers and file managers leave.

        Raises:
            RunError: It holds files that are no run's.
        """
        if not self.folder.is_dir():
            return False
        names = {path.name for path in self.folder.iterdir() if not (path.name.startswith(".") and path.is_file())}
        if not names & {CONFIG, RECORD} and names:
            raise RunError(f"{self}: this folder holds files that are not a run; choose a new folder with --out.")
        paths = (
            path
            for name in names - {CONFIG, RECORD, ENVIRONMENT}
            for path in (self.folder / name, *_walk(self.folder / name))
        )
        return any(path.is_file() and not path.name.startswith(".") for path in paths)

    @property
    def is_finished(self) -> bool:
        """Whether training has come to its end; where its summary is damaged, training sees to it again."""
        summary = redo_damaged(self.read_training)
        return summary is not None and bool(summary["finished"])

    # its files

    def read_config(self) -> dict[str, Any]:
        """Returns the complete settings, nothing if there are none."""
        path = self.folder / CONFIG
        return dict(read_yaml(path, RunError, RESTORE)) if path.is_file() else {}

    def _write_config(self, config: Mapping[str, Any]) -> None:
        plain = json.loads(json.dumps(config))  # YAML has no tuples
        write_text(self.folder / CONFIG, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))

    def read_record(self) -> Record | None:
        """Returns what the run is."""
        path = self.folder / RECORD
        return _check(path, Record.from_json, read_json(path, RunError, RESTORE), RESTORE) if path.is_file() else None

    def read_environment(self) -> dict[str, Any] | None:
        """Returns versions, machine and command."""
        return self._read(ENVIRONMENT, lambda content: None)

    def read_training(self) -> dict[str, Any] | None:
        """Returns the summary of the training: whether it is finished, time, memory and so on."""
        return self._read("training.json", check_training)

    def write_training(self, summary: Mapping[str, Any]) -> None:
        """Writes the summary of the training."""
        write_json(self.folder / "training.json", dict(summary))

    def read_importance(self) -> dict[str, Any] | None:
        """Returns how much a pixel classifier relies on each feature."""
        return self._read("importance.json", check_importance)

    def write_importance(self, importance: Mapping[str, Any]) -> None:
        """Writes how much a pixel classifier relies on each feature."""
        write_json(self.folder / "importance.json", dict(importance))

    def read_metrics(self) -> list[dict[str, float | None]]:
        """Returns a row per epoch, nothing if there are none.

        Raises:
            RunError: It is no table of numbers.
        """
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
        writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
        write_text(self.metrics, text.getvalue())

    def read_scores(self, split: str) -> dict[str, Any] | None:
        """Returns the scores of a split."""
        return self._read(f"scores/{split}.json", check_scores)

    def write_scores(self, split: str, scores: Mapping[str, Any]) -> None:
        """Writes the scores of a split."""
        write_json(self.folder / "scores" / f"{split}.json", dict(scores))

    def delete_split(self, split: str) -> None:
        """Deletes the scores of a split, its predictions and its uncertainty, so that they can be made anew."""
        (self.folder / "scores" / f"{split}.json").unlink(missing_ok=True)  # first: they say that the others are whole
        for folder in (self.predictions(split), self.uncertainty(split)):
            if folder.is_dir():
                shutil.rmtree(folder)

    def list_files(self) -> list[Path]:
        """Returns every file of the folder."""
        return [path for path in _walk(self.folder) if path.is_file()]

    def list_scored(self) -> list[str]:
        """Returns the splits that have scores, train first."""
        return [split for split in SPLITS if (self.folder / "scores" / f"{split}.json").is_file()]

    def predictions(self, split: str) -> Path:
        """Returns the folder of predicted labels, a file for each image of a split."""
        return self.folder / "predictions" / split

    def uncertainty(self, split: str) -> Path:
        """Returns the folder of uncertainty, a file for each image: 1 - the probability of the chosen class, times 255."""
        return self.folder / "uncertainty" / split

    def _read(self, name: str, check: Callable[[dict[str, Any]], None]) -> dict[str, Any] | None:
        path = self.folder / name
        if not path.is_file():
            return None
        content = read_json(path, RunError, REDO)
        _check(path, check, content, REDO)
        return content


def find_method(model: str) -> str | None:
    """Returns the `method_sha256` of the run that made a model, None if it is not known.

    Args:
        model: Run folder, model folder or the name of a packaged model; "" for none.
    """
    folder = find_model(Path(model)) if model else Path()
    record = Run(folder.parent).read_record() if folder.name == "model" else None
    return record.method_sha256 if record else None


def redo_damaged(read: Callable[[], T]) -> T | None:
    """Returns what a reader returns; None with a note if the file is damaged, for callers who make it again."""
    try:
        return read()
    except RunError as error:
        warnings.warn(str(error).replace(REDO, "It is made again now."), stacklevel=3)
        return None


def _check(path: Path, check: Callable[[dict[str, Any]], T], content: dict[str, Any], remedy: str) -> T:
    try:
        return check(content)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise RunError(f"{path}: not what neurotome writes ({reason}). {remedy}") from error


def _grows(size: Callable[[Any], float], before: Any, asked: Any) -> bool:
    try:
        sizes = [size(value) or math.inf for value in (before, asked)]  # no limit is the largest
    except (TypeError, ValueError, NeurotomeError):
        return False
    return sizes[1] > sizes[0]


def _say(value: Any) -> str:
    return "nothing" if value in ("", None) else str(value)


def _walk(path: Path) -> Iterator[Path]:
    return path.rglob("*") if path.is_dir() else iter(())
