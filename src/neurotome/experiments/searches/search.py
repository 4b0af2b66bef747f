"""search: finds good settings by many short trainings, which are judged on the split val alone."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from cyclopts import Parameter

from neurotome.atomic import write_text
from neurotome.datasets import open_dataset
from neurotome.datasets.base import Dataset, DatasetOrName
from neurotome.datasets.statistics import note_splits
from neurotome.errors import NeurotomeError, RunError, SettingsError, explain_system_error, is_out_of_memory
from neurotome.experiments.run_network import train_and_score
from neurotome.experiments.searches.space import Space, apply_values, choose_space, draw_values, find_values, read_space
from neurotome.experiments.searches.trials import DATABASE, KILLS, Trials, check_folder, explain_database
from neurotome.lazy import import_extra
from neurotome.progress import Progress, format_duration
from neurotome.tables import Shown, Table
from neurotome.training.prepare import settle_recipe
from neurotome.training.recipe import Recipe, TrainSettings, parse_duration

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

TRIAL_TIME = "2m"
SHOWN = 5
"""Trials in the table that is printed."""


@dataclass(frozen=True)
class SearchSettings:
    """How long is searched."""

    trials: int = 20
    """Trainings in all; the first has the settings as they are given, so that what is found is seen beside them."""

    trial_time: str = "auto"
    """Training time of each, such as 90s or 5m; auto: as --train.max-time or --train.epochs say, 2m if neither does."""

    workers: int = 1
    """Processes that train at the same time; the same command given elsewhere on the same folder is one more."""

    seed: int = 0
    """Seed of what is tried; the trainings' own is --train.seed."""


class SearchResult(Shown):
    """What a search has found.

    Attributes:
        rows: A row for each trial, the best first: `trial`, `state` (complete, pruned, failed, running), `score` (validation
            macro F1, of a pruned one its last), `values` by setting, `seconds` and `message`.
        best: Settings of the best trial, for `--config`.
        picture: The picture of all trials.
        unfinished: Trials that are still to come or under way in another process.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], best: Path, picture: Path, unfinished: int) -> None:
        self.rows, self.best, self.picture, self.unfinished = rows, best, picture, unfinished

    def _show(self) -> Sequence[str | Table]:
        scored = [row for row in self.rows if row["state"] == "complete"]
        shown = scored[:SHOWN] + [row for row in scored[SHOWN:] if row["trial"] == 0]
        names = list(shown[0]["values"])
        table = Table(
            ["trial", "val macro F1", *names],
            [[_name(row), f"{row['score']:.4f}", *(_write(row["values"][name]) for name in names)] for row in shown],
        )
        states = [str(row["state"]) for row in self.rows]
        counts = [f"{states.count(state)} {state}" for state in ("complete", "pruned", "failed") if state in states]
        failed = [f"trial {row['trial']} failed: {row['message']}" for row in self.rows if row["message"]]
        lines = [f"\n{', '.join(counts)}{f', {self.unfinished} not ended yet' if self.unfinished else ''}.", *failed]
        # the best of many by one measure flatters itself by that measure
        lines += [
            "Chosen by the split val, which flatters the chosen; the split test was not looked at.",
            f"picture: {self.picture}",
            f"best settings: {self.best}, for neurotome train DATASET --out RUN --config {self.best}",
        ]
        return [table, "\n".join(lines)]


def search(
    dataset: DatasetOrName,
    *,
    out: Path,
    settings: Annotated[SearchSettings, Parameter(name="*")] = SearchSettings(),
    recipe: Annotated[Recipe, Parameter(name="*")] = Recipe(),
    space: Annotated[
        dict[str, Any] | None, Parameter(name="search", converter=lambda _, tokens: _read_tokens(tokens), n_tokens=-1)
    ] = None,
) -> SearchResult:
    """Finds good settings by many short trainings (extra: hpo), judged on the split val alone.

    The same command given again goes on where it was stopped or killed, and with more --trials it looks further. Every trial
    is a run folder of its own, `out/trials/0007`; one that lags behind is ended early.

    Args:
        dataset: Folder with dataset.yaml, mtneuro:FOLDER, phantom, or phantom-stream.
        out: Folder of the search; new, or one of the same settings.
        settings: How long is searched.
        recipe: Settings that are not searched, and those of the first trial.
        space: What is searched, by setting: values to choose from, or two numbers and log or linear. In a --config file:
            search: {train.learning_rate: [1e-4, 1e-2, log], loss.terms: [focal, dice]}; augment.strength scales all of
            augment. Without it: learning rate, loss, class weights, augmentation strength and encoder.

    Returns:
        The best trials, the picture of all and the best settings as a file.

    Raises:
        NeurotomeError: The data, a setting or the folder cannot be used, or no trial has succeeded.
    """
    optuna = import_extra("optuna", "hpo")
    out = Path(out)  # text from Python
    base = _set_length(recipe, settings)
    if settings.workers > 1 and isinstance(dataset, Dataset):
        raise SettingsError("workers must open the dataset themselves; name it by its folder, or use one worker.")
    check_folder(out)
    data = _hide_test(open_dataset(dataset, recipe.stream))
    name = dataset.name if isinstance(dataset, Dataset) else str(dataset)
    note_splits(data)
    settled = settle_recipe(data, base).recipe
    dimensions = read_space(space or choose_space(settled), base)
    identity = {
        "data": {split: data.fingerprint(split) for split in ("train", "val")},
        "settings": dataclasses.asdict(base),
        "space": {key: dimension.to_json() for key, dimension in dimensions.items()},
        "seed": settings.seed,
    }
    with explain_database(out / DATABASE):
        trials = Trials(out, json.loads(json.dumps(identity)), settings.seed)
        job = _Job(trials, data, name, base, dimensions, find_values(settled, dimensions), settings.trials)
        write_text(out / "search.yaml", _write_settings(base, settings, dimensions))
        if settings.workers > 1:
            _start_workers(job, name, settings.workers)
        else:
            while (taken := trials.take(settings.trials, job.enqueued)) is not None:
                with taken[1]:
                    job.try_out(taken[0], optuna)
        return job.conclude()


@dataclass(frozen=True)
class _Job:
    """What all trials of a search share."""

    trials: Trials
    dataset: Dataset
    name: str
    base: Recipe
    space: Space
    defaults: Mapping[str, Any]
    asked: int

    @property
    def enqueued(self) -> dict[str, Any]:
        """Values of the first trial, those that the space holds."""
        return {key: value for key, value in self.defaults.items() if self.space[key].holds(value)}

    def try_out(self, trial: Trial, optuna: Any) -> None:
        """Trains with the values of a trial, and writes down what came of it."""
        states, study, number = optuna.trial.TrialState, self.trials.study, trial.number
        values = draw_values(trial, self.space, self.defaults)
        told = ", ".join(f"{key} {_write(value)}" for key, value in values.items())
        sys.stderr.write(f"trial {number} ({number + 1} of {self.asked}{self._say_left(number)}): {told}\n")
        reported = set(self.trials.list()[number].intermediate_values)

        def report(row: Mapping[str, float | None], done: float) -> None:
            if trial.user_attrs.get(KILLS):
                trial.set_user_attr(KILLS, 0)
            # by tenths of the cost: trials of one length in time differ in their number of epochs
            tenth, score = int(10 * done + 1e-9), row["val_macro_f1"]
            if score is None or tenth in reported or tenth >= 10:
                return
            reported.add(tenth)
            trial.report(score, tenth)
            if number and trial.should_prune():
                raise optuna.TrialPruned

        folder = self.trials.folder / "trials" / f"{number:04d}"
        try:
            recipe = apply_values(self.base, values)
            run = train_and_score(self.dataset, self.name, folder, recipe, splits=("val",), on_epoch=report)
            scores = run.read_scores("val")
            if scores is None or scores["macro"]["f1"] is None:
                raise RunError("no pixel of the split val has a label, so that nothing tells good from bad.")
        except KeyboardInterrupt:
            trial.set_user_attr(KILLS, -1)  # whoever goes on with it will count one more
            raise
        except optuna.TrialPruned:
            study.tell(trial, state=states.PRUNED)
            sys.stderr.write(f"trial {number}: ended early, behind half of the others\n")
        except Exception as error:
            if not isinstance(error, NeurotomeError) and not is_out_of_memory(error):
                raise
            message = str(error) if isinstance(error, NeurotomeError) else str(explain_system_error(error))
            self.trials.fail(trial, message)
            sys.stderr.write(f"trial {number} failed: {message}\n")
        else:
            score = scores["macro"]["f1"]
            study.tell(trial, score)
            best = study.best_trial
            sys.stderr.write(f"trial {number}: val macro F1 {score:.4f}, best {best.value:.4f} ({best.number})\n")

    def list_rows(self) -> list[dict[str, Any]]:
        """Returns a row for each trial that was begun, in order."""
        rows = []
        for trial in self.trials.list():
            state = {"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())
            ended, began = trial.datetime_complete, trial.datetime_start
            if state != "waiting":
                rows.append(
                    {
                        "trial": trial.number,
                        "state": state,
                        "score": trial.value if state in ("complete", "pruned") else None,
                        "values": self._find_values(trial),
                        "seconds": (ended - began).total_seconds() if ended and began else None,
                        "message": trial.user_attrs.get("message", ""),
                    }
                )
        return rows

    def conclude(self) -> SearchResult:
        """Writes the best settings and the picture of all trials that have ended."""
        from neurotome import figures

        rows = self.list_rows()
        scored = sorted((row for row in rows if row["state"] == "complete"), key=lambda row: -row["score"])
        if not scored:
            reasons = [row["message"] for row in rows if row["message"]]
            raise RunError(f"{self.trials.folder}: no trial has succeeded; {reasons[0] if reasons else 'none has ended.'}")
        best, picture = self.trials.folder / "best.yaml", self.trials.folder / "search.png"
        chosen, first = scored[0], next((row for row in scored if row["trial"] == 0), None)
        beside = f", the settings as given {first['score']:.4f}" if first else ""
        head = f"# Trial {chosen['trial']} of {len(rows)} of a search on {self.name!r}: validation macro F1 "
        head += f"{chosen['score']:.4f}{beside}.\n"
        recipe = apply_values(self.base, chosen["values"])
        write_text(best, head + _dump(dataclasses.asdict(recipe)))
        logarithmic = [key for key, dimension in self.space.items() if getattr(dimension, "log", False)]
        figures.save_figure(figures.plot_search(rows, list(self.space), logarithmic), picture)
        others = [row for row in rows if row["state"] != "complete"]
        ended = sum(row["state"] != "running" for row in rows)
        return SearchResult(scored + others, best, picture, max(self.asked, len(rows)) - ended)

    def _say_left(self, number: int) -> str:
        """Returns how long one process alone still takes, by the trials that have ended."""
        seconds = [row["seconds"] for row in self.list_rows() if row["seconds"]]
        if not seconds:
            return ""
        return f", about {format_duration((self.asked - number) * sum(seconds) / len(seconds))} left"

    def _find_values(self, trial: FrozenTrial) -> dict[str, Any]:
        defaults = self.defaults if trial.number == 0 else {}
        return {key: trial.params.get(key, defaults.get(key)) for key in self.space}


def _set_length(recipe: Recipe, settings: SearchSettings) -> Recipe:
    """Returns settings of trainings as long as a trial; SettingsError where that or the number of trials cannot be."""
    for key in ("trials", "workers"):
        if getattr(settings, key) < 1:
            raise SettingsError(f"{key} is {getattr(settings, key)}; expected at least 1.")
    if not 0 <= settings.seed < 2**31:
        raise SettingsError(f"seed is {settings.seed}; expected a number from 0 to {2**31 - 1}.")
    if settings.workers > 1 and sys.platform == "win32":
        raise SettingsError("workers is above 1; expected 1, because Windows has no locks by which they keep apart.")
    length = settings.trial_time
    if length == "auto":
        is_said = recipe.train.max_time or recipe.train.epochs != TrainSettings().epochs
        length = recipe.train.max_time if is_said else TRIAL_TIME
    elif recipe.train.max_time not in ("", length):
        raise SettingsError(
            f"trial_time is {length!r} and train.max_time {recipe.train.max_time!r}; expected one of the two. Leave one out."
        )
    try:
        parse_duration(length)
    except SettingsError as error:
        raise SettingsError(f"trial_time is {length!r}; expected a time such as 90s, 12m or 2h.") from error
    return dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, max_time=length))


def _hide_test(dataset: Dataset) -> Dataset:
    """Returns a dataset without its split test, which nothing can look at then; DatasetError if there is no val."""
    dataset.split("val")
    splits = {split: cutouts for split, cutouts in dataset.splits.items() if split != "test"}
    return dataclasses.replace(dataset, splits=splits)


def _start_workers(job: _Job, name: str, workers: int) -> None:
    """Runs worker processes until no trial is left, and shows how far they are together.

    They are told by a signal when this process is to stop; one that dies leaves its trial to the others.
    """
    out = job.trials.folder
    command = [sys.executable, "-m", "neurotome", "search", name, "--out", str(out), "--config", str(out / "search.yaml")]
    shares = _share_machine(workers, job.base.train.device)
    (out / "workers").mkdir(exist_ok=True)
    logs = [out / "workers" / f"{number}.log" for number in range(1, workers + 1)]
    processes = []
    progress = Progress("searching", job.asked, "trial")
    try:
        for log, share in zip(logs, shares, strict=True):
            with log.open("w") as stream:
                processes.append(
                    subprocess.Popen(
                        [*command, "--workers", "1"],
                        stdout=stream,
                        stderr=stream,
                        stdin=subprocess.DEVNULL,
                        env={**os.environ, **share},
                        start_new_session=True,  # Ctrl-C is for this process, which then asks them once
                    )
                )
        before = None
        while any(process.poll() is None for process in processes):
            rows = job.list_rows()
            ended = [row for row in rows if row["state"] != "running"]
            before = len(ended) if before is None else before
            progress.start_at(before)
            best = max((row["score"] for row in ended if row["state"] == "complete"), default=None)
            progress.update(len(ended), "" if best is None else f"best val macro F1 {best:.4f}")
            time.sleep(0.5)
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            process.wait()
    progress.finish()
    failed = [log for log, process in zip(logs, processes, strict=True) if process.returncode]
    if failed and all(row["state"] != "complete" for row in job.list_rows()):
        raise RunError(f"{failed[0]}: a worker ended with an error: {_read_end(failed[0])}")
    for log in failed:
        sys.stderr.write(f"a worker ended with an error, see {log}: {_read_end(log)}\n")


def _share_machine(workers: int, device: str) -> list[dict[str, str]]:
    """Returns what each worker's environment says of its part: some of the cores, and one of the GPUs in turn."""
    import torch

    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // workers))  # more are in the way
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    visible = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))).split(",")
    return [
        {"OMP_NUM_THREADS": threads, **({"CUDA_VISIBLE_DEVICES": visible[number % gpus]} if gpus > 1 else {})}
        for number in range(workers)
    ]


def _read_end(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing."


def _write_settings(base: Recipe, settings: SearchSettings, space: Space) -> str:
    """Returns a --config file of the whole search."""
    own = {"trials": settings.trials, "seed": settings.seed}
    searched = {"search": {key: dimension.to_json() for key, dimension in space.items()}}
    return "# The settings of this search, for --config.\n" + _dump({**own, **searched, **dataclasses.asdict(base)})


def _dump(content: Any) -> str:
    plain = json.loads(json.dumps(content))  # YAML has no tuples
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))


def _read_tokens(tokens: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the command line or a --config file says is searched, as text by setting."""
    return {
        key: _read_tokens(value) if isinstance(value, Mapping) else [token.value for token in value]
        for key, value in tokens.items()
    }


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['trial']}{' (as given)' if row['trial'] == 0 else ''}"


def _write(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
