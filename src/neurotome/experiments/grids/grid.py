"""grid: every run of a plan, each in a process of its own; goes on after interruptions, and several may share it."""

from __future__ import annotations

import dataclasses
import os
import pickle
import secrets
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from neurotome.atomic import write_json
from neurotome.datasets import open_dataset
from neurotome.datasets.base import Dataset, DatasetOrName
from neurotome.datasets.folds import check_folds
from neurotome.datasets.statistics import note_splits
from neurotome.documents import read_json
from neurotome.errors import ModelError, RunError
from neurotome.experiments.evaluate import trace_scores
from neurotome.experiments.grids.adapt import adapt_plan
from neurotome.experiments.grids.budget import scale_plan
from neurotome.experiments.grids.child import Worker, check_networks, execute, open_data
from neurotome.experiments.grids.leases import Leases
from neurotome.experiments.grids.plan import Plan, PlannedRun, read_grid
from neurotome.experiments.grids.summary import Summary
from neurotome.models.model_folder import read_digest
from neurotome.progress import Progress, format_duration
from neurotome.runs import Run
from neurotome.runs.contents import read_checked
from neurotome.runs.run import redo_damaged
from neurotome.tables import Shown, Table, count
from neurotome.training.recipe import parse_duration

WAIT_S = 2.0


@dataclass(frozen=True, repr=False)
class GridResult(Shown):
    """What has become of a grid.

    Attributes:
        folder: The grid's folder.
        finished: Names of the runs that are trained and scored.
        failed: The message of each run that is not.
    """

    plan: Plan
    folder: Path
    finished: tuple[str, ...]
    failed: Mapping[str, str]

    def _show(self) -> list[str | Table]:
        rows = []
        for run in self.plan.runs:
            if run.name in self.finished:
                scores = redo_damaged(partial(Run(self.folder / "runs" / run.name).read_scores, run.splits[-1]))
                f1 = scores["macro"]["f1"] if scores is not None else None
                rows.append((run.name, run.splits[-1], "–" if f1 is None else f"{f1:.3f}"))
            else:
                rows.append((run.name, "", "failed"))
        return [Table(("run", "split", "macro F1"), rows), str(self.folder / "summary.csv")]


def grid(
    plan: Path,
    *,
    data: DatasetOrName,
    out: Path,
    folds: int | None = None,
    gap: int | None = None,
    budget: str = "",
    reports: bool = False,
) -> GridResult:
    """Trains and scores every setting of a grid, each in a run folder of its own.

    The same command given again goes on where it was stopped, and tries again what has failed. It may be given several
    times at once, on several machines that share the folder: they share the work.

    Args:
        plan: YAML file of settings, or the name of one that comes with neurotome, such as founding_report/grid.
        data: Folder with dataset.yaml, mtneuro:FOLDER, phantom, or phantom-stream.
        out: Folder of the grid; new, or one of the same grid and data.
        folds: Cross-validate in so many parts instead of using the dataset's splits; in place of the file's folds.
        gap: Slices left out of training on each side of those that are scored, where folds cut a stack.
        budget: Wall-clock time that all runs together may take, such as 45m: epochs, batches, patches and the list of runs
            are made to fit. Counts when the folder is new; the same command goes on with what was planned then.
        reports: Write each run's report too.

    Returns:
        Which runs are finished; `out/summary.csv` and `out/summary.parquet` hold their scores.

    Raises:
        NeurotomeError: The grid, the data or the folder cannot be used, and nothing has been changed; or some runs have
            failed, and all others are done.
    """
    result = run_grid(fit_plan(read_grid(plan, folds, gap), data, Path(out), budget), data, Path(out), reports=reports)
    if result.failed:
        listed = "\n".join(f"  {name}: {message}" for name, message in result.failed.items())
        sys.stderr.write(f"\n{result}\n\n")
        raise RunError(
            f"{out}: {len(result.failed)} of {count(len(result.plan.runs), 'run')} failed:\n{listed}\n"
            "The others are done. The same command tries the failed ones again."
        )
    return result


def fit_plan(plan: Plan, data: DatasetOrName, out: Path, budget: str) -> Plan:
    """Returns a plan that data, machine and budget allow, and says what was changed; that of a begun folder stays."""
    seconds = parse_duration(budget, "budget")
    if _is_free(out):
        dataset = open_dataset(data)
        plan = adapt_plan(plan, dataset)
        plan = scale_plan(plan, dataset, seconds) if seconds else plan
        sys.stderr.writelines(f"note: {sentence}\n" for sentence in plan.scaled)
    return plan


def run_grid(plan: Plan, dataset: DatasetOrName, out: Path, *, reports: bool = False) -> GridResult:
    """Does what `grid` does with a plan; failed runs do not raise.

    Args:
        plan: What is asked. Where `out` holds the same grid, its own plan, which a budget may have scaled, is gone on with.
        dataset: What `open_dataset` opens. Each run opens it anew or is handed it: a Dataset must be picklable.
        out: The grid's folder.
        reports: Write each run's report.

    Raises:
        NeurotomeError: The plan, the data or the folder cannot be used; nothing has been changed then.
        KeyboardInterrupt: Asked to stop; the run under way has written its checkpoint.
    """
    worker = Worker(networks=any(run.kind == "network" for run in plan.runs))
    data = open_dataset(dataset)
    # the phantom is made as it is opened, which takes seconds; made once, it is handed to every run
    source = data if isinstance(dataset, Dataset) or str(dataset) == "phantom" else str(dataset)
    if isinstance(source, Dataset):
        try:
            pickle.dumps(source)
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            raise RunError(
                f"the dataset {source.name} is read from files as it is used and cannot be handed to the processes of a "
                "grid; give its name or its folder, as on the command line."
            ) from error
    plan = _claim_folder(plan, data, source, out, worker)
    return _Work(plan, data, source, out, reports, worker).do()


def open_grid(folder: str | Path) -> Plan:
    """Returns the plan of a grid's folder; RunError if it holds none or a damaged one."""
    path = Path(folder) / "grid.json"
    if not path.is_file():
        raise RunError(f"{folder}: holds no grid.json; expected the folder of a grid, which neurotome grid makes.")
    return read_checked(path, Plan.from_json, "Restore it, or use a new folder with --out.")


def list_failures(folder: str | Path) -> dict[str, str]:
    """Returns the messages of the runs of a grid that have failed, by the name of the run."""
    failures = {}
    for path in sorted((Path(folder) / "failures").glob("*.json")):
        content = read_json(path, RunError, "Delete it.")
        failures[str(content.get("run"))] = str(content.get("message"))
    return failures


def _claim_folder(plan: Plan, data: Dataset, source: str | Dataset, out: Path, worker: Worker) -> Plan:
    """Returns the plan that is to be run in a folder, which it makes this grid's; RunError if it is something else's."""
    digests = {split: data.fingerprint(split) for split, cutouts in data.splits.items() if cutouts}
    if _is_free(out):
        _check_runs(plan, data, source, worker)
        name = source.name if isinstance(source, Dataset) else source
        content = dataclasses.replace(plan, dataset=name, data=digests).to_json()
        temporary = out / f".grid.{secrets.token_hex(4)}.partial.json"
        write_json(temporary, content)
        try:
            os.link(temporary, out / "grid.json")  # whole at once, and refused where another process was first
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            temporary.replace(out / "grid.json")
        finally:
            temporary.unlink(missing_ok=True)
    there = open_grid(out)
    differing = {
        "only there": [name for name in there.asked if name not in plan.asked],
        "only asked for": [name for name in plan.asked if name not in there.asked],
        "other settings": [n for n, digest in plan.asked.items() if there.asked.get(n, digest) != digest],
        "other data": [s for s in {**digests, **there.data} if digests.get(s) != there.data.get(s)],
    }
    listed = "; ".join(
        f"{what}: {count(len(names), 'split' if names is differing['other data'] else 'run')} ({_name_some(names)})"
        for what, names in differing.items()
        if names
    )
    if listed:
        raise RunError(
            f"{out}: holds another grid: {listed}. Choose another folder with --out, or repeat that grid's command."
        )
    return there


def _is_free(out: Path) -> bool:
    """Says whether no grid has begun in a folder; RunError if it holds something else."""
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: a file is in the way; choose another folder with --out.")
    if (out / "grid.json").is_file():
        return False
    # names that begin with a dot are what killed writers and file managers leave
    if out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()) and not (out / "grid.json").is_file():
        raise RunError(f"{out}: this folder holds something else than a grid; choose a new folder with --out.")
    return True


def _check_runs(plan: Plan, data: Dataset, source: str | Dataset, worker: Worker) -> None:
    """Raises NeurotomeError where a run cannot work, as far as that can be told before any begins."""
    if not plan.folds:
        for split in ("train", *dict.fromkeys(split for run in plan.runs for split in run.splits)):
            data.split(split)
        note_splits(data)
    else:
        check_folds(data, plan.folds, plan.gap)
    networks = tuple(run for run in plan.runs if run.kind == "network")
    if networks:
        worker.check(check_networks, (networks, len(data.classes)))


class _Work:
    """A process's share of a grid."""

    def __init__(self, plan: Plan, data: Dataset, source: str | Dataset, out: Path, reports: bool, worker: Worker) -> None:
        self.plan, self.data, self.source, self.out, self.reports, self.worker = plan, data, source, out, reports, worker
        self.summary = Summary(plan, out)
        self.finished: dict[str, None] = {}
        self.failed: dict[str, str] = {}
        self.earlier = {path: path.stat().st_mtime_ns for path in (out / "failures").glob("*.json")}
        self.opened: dict[str, Dataset] = {}
        self.seconds: list[float] = []
        self.progress = Progress("grid", len(plan.runs))

    def do(self) -> GridResult:
        """Does runs until none is left, or waits for those that others do."""
        self._look()
        self.progress.start_at(len(self.finished))
        if self.finished:
            sys.stderr.write(f"{len(self.finished)} of {count(len(self.plan.runs), 'run')} are finished already\n")
        with Leases(self.out / "claims") as leases:
            while pending := self._list_pending():
                taken = next((run for run in pending if leases.take(run.name)), None)
                if taken is None:
                    self._wait(pending, leases)
                    continue
                try:
                    if not self._is_finished(taken) and not self._has_failed(taken):  # since others were looked at
                        self._do(taken, leases)
                finally:
                    leases.release(taken.name)
                self._look()
                self.summary.write(list(self.finished), self.failed)
        self.summary.write(list(self.finished), self.failed)
        self.progress.finish(
            f"{count(len(self.finished), 'run')} finished" + f", {len(self.failed)} failed" * bool(self.failed)
        )
        return GridResult(self.plan, self.out, tuple(self.finished), dict(self.failed))

    def _do(self, run: PlannedRun, leases: Leases) -> None:
        """Does one run and writes down how it ended."""
        began = time.monotonic()
        sys.stderr.write(f"{run.name}: {len(self.finished) + 1} of {len(self.plan.runs)}\n")

        def watch() -> bool:
            expected = sum(self.seconds) / len(self.seconds) if self.seconds else 0.0
            share = min(0.95, (time.monotonic() - began) / expected) if expected else 0.0
            self.progress.update(len(self.finished) + len(self.failed) + share, run.name)
            return not leases.is_lost(run.name)

        folder = self.out / "runs" / run.name
        log = self.out / "logs" / f"{_to_file(run.name)}.log"
        outcome = self.worker.run(
            execute, (run, self.source, self.plan.folds, self.plan.gap, folder, self.reports), log, watch
        )
        seconds = time.monotonic() - began
        failure = self._failure(run)
        if outcome.ending == "busy":
            time.sleep(WAIT_S)  # a process that is about to end, or somebody at work in this very folder
        elif outcome.ending == "done" and self._is_finished(run):
            self.seconds.append(seconds)
            failure.unlink(missing_ok=True)
            sys.stderr.write(f"{run.name}: done in {format_duration(seconds)}\n")
        else:
            message = {
                "failed": outcome.message,
                "stopped": "asked to stop by a signal; the same command goes on with it",
                "done": "its data have changed while it was trained; restore them, or use a new folder",
            }[outcome.ending]
            write_json(failure, {"run": run.name, "message": message, "log": str(log), "seconds": seconds})
            sys.stderr.write(f"{run.name}: failed: {message}\n")

    def _look(self) -> None:
        """Notes which runs are finished and which have failed meanwhile, by whomever."""
        for run in self.plan.runs:
            if run.name not in self.finished and self._is_finished(run):
                self.finished[run.name] = None
                self.failed.pop(run.name, None)
            elif run.name not in self.finished and self._has_failed(run):
                self.failed[run.name] = list_failures(self.out).get(run.name, "")

    def _list_pending(self) -> list[PlannedRun]:
        return [run for run in self.plan.runs if run.name not in self.finished and run.name not in self.failed]

    def _wait(self, pending: list[PlannedRun], leases: Leases) -> None:
        """Waits a moment for the runs that others do."""
        holders = {run.name: host for run in pending if (host := leases.find_holder(run.name)) is not None}
        if holders:
            name, host = next(iter(holders.items()))
            note = f"waiting for {count(len(holders), 'run')} of others ({name} on {host})"
            self.progress.update(len(self.finished) + len(self.failed), note)
        time.sleep(WAIT_S)
        self._look()

    def _failure(self, run: PlannedRun) -> Path:
        return self.out / "failures" / f"{_to_file(run.name)}.json"

    def _has_failed(self, run: PlannedRun) -> bool:
        """Says whether a run has failed since this command was given; earlier failures are tried again."""
        path = self._failure(run)
        try:
            return path.stat().st_mtime_ns != self.earlier.get(path)
        except FileNotFoundError:
            return False

    def _is_finished(self, run: PlannedRun) -> bool:
        """Says whether a run is trained, and scored on all its splits as the data and its weights are now."""
        done = Run(self.out / "runs" / run.name)
        if not done.folder.is_dir() or not done.is_finished or (self.reports and not done.report.is_file()):
            return False
        try:
            weights = read_digest(done.folder)
        except ModelError:
            return False  # it says so itself when it goes on
        for split in run.splits:
            scores = redo_damaged(partial(done.read_scores, split))
            if scores is None or scores.get("made_from") != self._trace(run, split, weights):
                return False
        return True

    def _trace(self, run: PlannedRun, split: str, weights: str) -> dict[str, str]:
        """Returns what scores of a run are made from; the data are read once for each fold and split."""
        if run.fold is None and self.data.source is None:
            return trace_scores(self.data, split, weights)
        key = f"{run.fold} {run.settings.get('stream')}"  # what the run's own data depend on
        if key not in self.opened:
            self.opened[key] = open_data(self.source, run, self.plan.folds, self.plan.gap)
        return trace_scores(self.opened[key], split, weights)


def _name_some(names: list[str]) -> str:
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


def _to_file(name: str) -> str:
    return name.replace("/", "__")
