"""One run of a grid in a process of its own: a crash costs that run alone, and its peak memory is its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any, Literal

from neurotome.datasets import open_dataset
from neurotome.datasets.base import Dataset
from neurotome.engines.processes import end_with_parent, explain_exit
from neurotome.errors import BusyError, ModelError, NeurotomeError, explain_system_error
from neurotome.experiments.grids.plan import PlannedRun
from neurotome.training.recipe import Recipe

Ending = Literal["done", "failed", "stopped", "busy"]

POLL_S = 0.5


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and its message if it failed or another process works in its folder."""

    ending: Ending
    message: str = ""


def open_data(dataset: str | Dataset, run: PlannedRun | None, folds: int = 0, gap: int | None = None) -> Dataset:
    """Opens a grid's dataset as a run sees it: its own tissue where that is made by settings, its own fold."""
    recipe = run.build() if run is not None else None
    data = open_dataset(dataset, recipe.stream) if isinstance(recipe, Recipe) else open_dataset(dataset)
    if run is not None and run.fold is not None:
        from neurotome.datasets.folds import make_fold

        data = make_fold(data, run.fold, folds, gap)
    return data


def execute(run: PlannedRun, dataset: str | Dataset, folds: int, gap: int | None, folder: Path, reports: bool) -> None:
    """Trains and scores a run in its folder, or goes on with it; any error of its kind."""
    from neurotome.experiments.evaluate import finish
    from neurotome.experiments.run_network import train_and_score
    from neurotome.experiments.run_pixels import fit_and_score

    settings, data = run.build(), open_data(dataset, run, folds, gap)
    name = dataset.name if isinstance(dataset, Dataset) else dataset
    if isinstance(settings, Recipe):
        done = train_and_score(data, name, folder, settings, run.splits, run.method)
    else:
        done = fit_and_score(data, name, folder, settings, splits=run.splits, method=run.method)
    if reports:
        finish(done, data, "colour-blind-safe")


def check_networks(runs: tuple[PlannedRun, ...], classes: int) -> None:
    """Builds each network once, with random weights; raises what `build_network` does where one is impossible."""
    import dataclasses

    import torch

    from neurotome.models.networks import build_network

    recipes = {run.name: run.build() for run in runs}
    models = {recipe.model: name for name, recipe in recipes.items() if isinstance(recipe, Recipe)}
    for model, name in models.items():
        try:
            with torch.device("meta"):  # shapes alone
                build_network(dataclasses.replace(model, encoder_weights="none"), classes)
        except NeurotomeError as error:
            raise type(error)(f"{name}: {error}") from error


class Worker:
    """Does one piece of work after another, each in a process of its own.

    Where forking is safe, processes come from one that has imported what takes long. A process ends with its parent,
    however that ends.
    """

    def __init__(self, networks: bool) -> None:
        self.context = _choose_context(networks)

    def run(self, work: Callable[..., None], arguments: tuple[Any, ...], log: Path, watch: Callable[[], bool]) -> Outcome:
        """Does `work(*arguments)` and returns how it ended; what it prints is added to the file `log`.

        `watch` is called twice a second; when it says False the process is ended, as it is by KeyboardInterrupt, which is
        raised again once a training has written its checkpoint.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        ours, theirs = self.context.Pipe(duplex=False)
        process = self.context.Process(target=_enter, args=(work, arguments, log, theirs))
        try:
            process.start()
            theirs.close()
            outcome = None
            while outcome is None:
                if ours.poll(POLL_S):
                    with contextlib.suppress(EOFError):
                        outcome = ours.recv()
                    break
                if not watch():
                    outcome = Outcome("busy", "another process has taken over this run")
                    process.kill()
            process.join()
        except KeyboardInterrupt:
            if process.pid is not None:
                sys.stderr.write("stopping; a training writes a checkpoint after the step under way\n")
                process.terminate()
                process.join()
            raise
        finally:
            ours.close()
        return outcome or Outcome("failed", _explain_exit(process.exitcode, log))

    def check(self, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        """Does `work(*arguments)` in a process of its own; raises ModelError with its message where it fails."""
        outcome = self.run(work, arguments, Path(os.devnull), lambda: True)
        if outcome.ending != "done":
            raise ModelError(outcome.message)


def _choose_context(networks: bool) -> ForkServerContext | SpawnContext:
    """Returns how processes are made; a process that has spoken to a GPU cannot be forked, so there each begins anew."""
    if "forkserver" in multiprocessing.get_all_start_methods() and not Path("/dev/nvidiactl").exists():
        context = multiprocessing.get_context("forkserver")
        usual = ["neurotome.experiments.run_pixels", "neurotome.pixels.saving"]
        context.set_forkserver_preload(["neurotome.experiments.grids.preloaded"] if networks else usual)
        return context
    return multiprocessing.get_context("spawn")


def _enter(work: Callable[..., None], arguments: tuple[Any, ...], log: Path, connection: Connection) -> None:
    """Is what a process does: the work, with its output in a file and its end told to the parent."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C is the parent's to hear, which then asks this process to stop
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=end_with_parent, daemon=True).start()
    with _print_to(log):
        try:
            work(*arguments)
            outcome = Outcome("done")
        except BusyError as error:
            outcome = Outcome("busy", str(error))
        except KeyboardInterrupt:
            outcome = Outcome("stopped", "asked to stop")
        except Exception as error:
            traceback.print_exc()
            known = str(error) if isinstance(error, NeurotomeError) else explain_system_error(error)
            outcome = Outcome("failed", known or f"{type(error).__name__}: {error}; the whole message is in {log}")
    with contextlib.suppress(OSError):
        connection.send(outcome)


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _print_to(log: Path) -> Iterator[None]:
    """Adds what this process and its libraries print to a file."""
    with log.open("a", encoding="utf-8", buffering=1, errors="replace") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
        sys.stdout = sys.stderr = file
        yield


def _explain_exit(status: int | None, log: Path) -> str:
    """Returns the message for a process that has ended without one."""
    if status is not None and status < 0:
        return f"it {explain_exit(status)}; the same command goes on with it. What it printed is in {log}"
    return f"the process {explain_exit(status)}; what it printed is in {log}"
