"""Trials: what a search has tried, in one SQLite file from which several processes take trials without asking each other."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurotome.atomic import hold_folder
from neurotome.documents import flatten
from neurotome.errors import RunError, show
from neurotome.lazy import import_extra

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

DATABASE, CLAIMS = "search.db", "claims"
NAME = "neurotome search"
IDENTITY = "search"
"""The study's attribute that says what is searched, on which data, and how."""

KILLS, MOST_KILLS = "kills", 3
"""How often a trial was left by a process that died, with no epoch done since, and how often it is gone on with."""

TABLES = ("stud", "trial", "version_info", "alembic_version")
"""What the names of optuna's tables begin with."""

STARTUP = 5
"""Trials drawn at random, before which nothing is modelled and nothing ended early."""

WARMUP = 3
"""Tenths of a trial before which it is not ended: until then the learning rate, not the settings, decides."""

LOCK_SECONDS = 120
"""How long a process waits for another that writes into the file."""


class Trials:
    """The trials of a search.

    A process that works on a trial holds its claim, a lock that ends with the process. A trial that runs and is not held was
    killed; whoever takes it next goes on with it.

    Attributes:
        study: Optuna's view of the file.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], seed: int) -> None:
        """Opens the search of a folder, or begins one.

        Raises:
            RunError: The folder holds something else, or another search.
        """
        self.folder, self.seed = folder, seed
        check_folder(folder)
        with self._turn():
            self.study = self._open(identity)

    def take(self, asked: int, defaults: Mapping[str, Any]) -> tuple[Trial, ExitStack] | None:
        """Returns the next trial and its claim, which is to be closed when the trial has ended; None if there is none.

        Args:
            asked: How many trials the search shall have, those that failed or were ended early too.
            defaults: Values of the first trial; the search is judged by what it finds beyond them.
        """
        import optuna

        with self._turn():
            begun = [trial for trial in self.list() if trial.state != optuna.trial.TrialState.WAITING]
            for trial in begun:
                if trial.state == optuna.trial.TrialState.RUNNING and (claim := self._claim(trial.number)):
                    self._choose_sampler(trial.number)
                    left = optuna.trial.Trial(self.study, trial._trial_id)
                    kills = 1 + trial.user_attrs.get(KILLS, 0)
                    if kills <= MOST_KILLS:
                        left.set_user_attr(KILLS, kills)
                        return left, claim
                    with claim:
                        self.fail(left, f"its process was killed {kills} times in the same epoch, perhaps for its memory.")
            if len(begun) >= asked:
                return None
            if not self.list():
                self.study.enqueue_trial(dict(defaults))
            self._choose_sampler(len(begun))
            new = self.study.ask()
            claim = self._claim(new.number)
            assert claim is not None  # nobody else takes one at this moment
            return new, claim

    def fail(self, trial: Trial, message: str) -> None:
        """Writes down that a trial has failed, and why."""
        import optuna

        trial.set_user_attr("message", message)
        self.study.tell(trial, state=optuna.trial.TrialState.FAIL)

    def list(self) -> list[FrozenTrial]:
        """Returns all trials, in order."""
        return self.study.get_trials(deepcopy=False)

    def _claim(self, number: int) -> ExitStack | None:
        """Returns what holds a trial, None if another process does."""
        claim = ExitStack()
        try:
            claim.enter_context(hold_folder(self.folder / CLAIMS / f"{number:04d}"))
        except RunError:
            return None
        return claim

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Waits until no other process takes a trial, and keeps others from it."""
        with ExitStack() as turn:
            while True:
                try:
                    turn.enter_context(hold_folder(self.folder / CLAIMS))
                    break
                except RunError:
                    time.sleep(0.05)
            yield

    def _choose_sampler(self, number: int) -> None:
        """Seeds what draws a trial's values by its number, so that a search that was killed draws as if it had not been."""
        import optuna

        seed = self.seed * 1_000_003 + number
        self.study.sampler = optuna.samplers.TPESampler(n_startup_trials=STARTUP, seed=seed % 2**32)

    def _open(self, identity: Mapping[str, Any]) -> Study:
        import optuna

        path = self.folder / DATABASE
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with explain_database(path, RuntimeError, ValueError):
            storage = optuna.storages.RDBStorage(
                "sqlite:///search.db",
                # by a function, because an address would take signs in the path for its own
                engine_kwargs={"creator": lambda: _connect(path)},
            )
            known = [study.study_name for study in optuna.get_all_study_summaries(storage, include_best_trial=False)]
            if known and NAME not in known:
                raise RunError(f"{path}: holds another study, {show(known[0])}; choose another folder with --out.")
            study = optuna.create_study(
                storage=storage,
                study_name=NAME,
                direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP - 1, n_warmup_steps=WARMUP),
            )
            there = study.user_attrs.get(IDENTITY)
            if there is None and not study.get_trials(deepcopy=False):
                study.set_user_attr(IDENTITY, dict(identity))
            elif there != identity:
                raise RunError(
                    f"{self.folder}: holds another search, which differs in {_compare(there, identity)}. Choose another "
                    "folder with --out, or repeat that search's settings to go on with it."
                )
        return study


def check_folder(folder: Path) -> None:
    """Checks that a folder is free or holds a search; changes nothing.

    Raises:
        RunError: It holds something else.
    """
    path = folder / DATABASE
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: a file is in the way; choose another folder with --out.")
    if not path.is_file():
        if folder.is_dir() and any(file.name != CLAIMS for file in folder.iterdir()):
            raise RunError(f"{folder}: this folder holds files, but no search; choose a new folder with --out.")
        return
    with explain_database(path), contextlib.closing(_connect(path)) as connection:
        tables = [str(name) for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    if strange := [name for name in tables if not name.startswith(TABLES)]:
        raise RunError(
            f"{path}: a database of something else, with a table {show(strange[0])}; choose another folder with --out."
        )


@contextlib.contextmanager
def explain_database(path: Path, *more: type[Exception]) -> Iterator[None]:
    """Turns what a damaged file, or one of another version, raises into a RunError that names it; `more` does too."""
    optuna = import_extra("optuna", "hpo")
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (sqlite3.Error, SQLAlchemyError, optuna.exceptions.OptunaError, *more) as error:
        if isinstance(error, optuna.exceptions.TrialPruned):
            raise
        if "disk is full" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        reason = str(error.__cause__ or error).splitlines()
        raise RunError(
            f"{path}: cannot be used as the file of a search ({reason[0] if reason else type(error).__name__}). Restore it, "
            "or choose another folder with --out."
        ) from error


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=LOCK_SECONDS, check_same_thread=False)


def _compare(there: Any, asked: Mapping[str, Any]) -> str:
    """Returns in words how two searches differ."""
    if not isinstance(there, Mapping):
        return "everything that can be compared"
    before, now = flatten(there), flatten(asked)
    differing = [key for key in before | now if before.get(key) != now.get(key)]
    data = [key for key in differing if key.startswith("data.")]
    named = [f"the content of split {key.removeprefix('data.')}" for key in data]
    named += [
        f"{key.removeprefix('settings.')} ({show(before.get(key))} there, {show(now.get(key))} asked)"
        for key in differing
        if key not in data
    ]
    return "; ".join(named)
