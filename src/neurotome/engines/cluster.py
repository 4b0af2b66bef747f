"""cluster: workers of dask.distributed, on other machines or here; they come and go, and only numbers are sent to them.

How the function is built is told to the scheduler once, as a plug-in that every worker gets, also one that joins later. A
task is one number and what comes back is small, so that the scheduler holds nothing: futures are released as they end, and
no more are in flight than keep the workers busy. What was done is known by whoever wrote it down, not by dask, which forgets
it with its scheduler.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import pickle
import queue
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from distributed import KilledWorker

from neurotome.documents import read_yaml
from neurotome.engines.base import Attempt, Build, EngineSettings, Outcome, Pending, TimeLimit
from neurotome.engines.ending import Ending
from neurotome.engines.processes import share_cores
from neurotome.engines.site import Plugin, do_task
from neurotome.errors import RunError, SettingsError
from neurotome.lazy import import_extra

POLL_S = 0.5
COUNT_S = 5.0
"""How often the scheduler is asked for its workers."""
PER_THREAD = 2
"""Tasks in flight for each thread of a worker: one in work, one already there."""
NOTE_S = 60.0
CONNECT_S = 20
DASHBOARD = "127.0.0.1:0"  # any free port: the usual one may be taken, and dask warns then

GO_ON = "What is written down is done; the same command goes on from there."


@dataclass(frozen=True)
class Cluster:
    """Does tasks on the workers that a client's scheduler has, `threads` at once on each."""

    client: Any
    threads: int = 2
    retries: int = 2
    block_timeout_s: float | Literal["auto"] = "auto"
    cores: int | None = None

    def run(self, build: Build, tasks: Iterable[int]) -> Iterator[Outcome]:
        """See `Engine.run`. When it is stopped, what is under way on workers ends there, and is not waited for."""
        job = _ClusterJob(self, Pending(tasks, self.retries))
        plugin = Plugin(job.token, pickle.dumps(build), self.threads, self.cores)
        with self.explain_loss():
            self.register(plugin)
        try:
            with self.explain_loss():
                yield from job.run()
        finally:
            job.release()
            if self.client.status == "running":
                with contextlib.suppress(Exception):  # a scheduler that has just gone needs no tidying
                    self.client.unregister_worker_plugin(plugin.name)

    def register(self, plugin: Plugin) -> None:
        """Sends a plug-in to the scheduler and all workers, which only understand it if they have neurotome."""
        try:
            self.client.register_plugin(plugin)
        except (ImportError, AttributeError) as error:
            raise RunError(
                f"workers of the dask scheduler at {_name(self.client)} cannot load what they are sent ({error}). Install "
                f"neurotome {plugin.version} and its extra `cluster` there, as here, and start them again."
            ) from error

    @contextlib.contextmanager
    def explain_loss(self) -> Iterator[None]:
        """Turns what a lost connection raises, here and there, into one error."""
        from concurrent.futures import CancelledError

        try:
            yield
        except (CancelledError, TimeoutError, ConnectionError) as error:
            raise self.lost() from error
        except OSError as error:
            if error.errno is not None:  # a full disk
                raise
            raise self.lost() from error

    def lost(self) -> RunError:
        """Returns the error for a scheduler that does not answer any more."""
        return RunError(f"the dask scheduler at {_name(self.client)} has gone. {GO_ON}")


class _ClusterJob:
    """The tasks in flight, at most `PER_THREAD` for each thread of the workers that are there now."""

    def __init__(self, engine: Cluster, pending: Pending) -> None:
        self.engine, self.client, self.pending = engine, engine.client, pending
        self.token = secrets.token_hex(8)
        self.limit = TimeLimit(engine.block_timeout_s)
        self.ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.flying: dict[Any, tuple[Attempt, bool, float]] = {}
        self.numbers = itertools.count()
        self.workers = 0
        self.counted = -math.inf
        self.alone_since = time.monotonic()

    def run(self) -> Iterator[Outcome]:
        while True:
            self.count_workers()
            self.fill()
            if not self.flying and self.pending.is_empty():
                return
            for future, message in self.collect():
                yield from self.end(future, message)

    def release(self) -> None:
        for future in self.flying:
            with contextlib.suppress(Exception):
                future.cancel()
        self.flying.clear()

    def count_workers(self) -> None:
        now = time.monotonic()
        if self.client.status != "running":
            raise self.engine.lost()
        if now - self.counted < (COUNT_S if self.workers else POLL_S):
            return
        self.workers, self.counted = len(self.client.nthreads()), now
        if self.workers:
            self.alone_since = now
        elif now - self.alone_since > NOTE_S:
            sys.stderr.write(f"waiting for workers of the dask scheduler at {_name(self.client)}\n")
            self.alone_since = now

    def fill(self) -> None:
        """Submits what fits; suspects take a worker to themselves, so there are few of them at once."""
        suspects = sum(suspect for _, suspect, _ in self.flying.values())
        while suspects < max(1, self.workers // 2) and (attempt := self.pending.take_suspect()) is not None:
            self.submit(attempt, suspect=True)
            suspects += 1
        while len(self.flying) < PER_THREAD * self.engine.threads * max(1, self.workers):
            attempt = self.pending.take()
            if attempt is None:
                return
            self.submit(attempt, suspect=False)

    def submit(self, attempt: Attempt, *, suspect: bool) -> None:
        key = f"neurotome-{self.token}-{attempt.task}-{next(self.numbers)}"  # a key seen before is not computed again
        future = self.client.submit(
            do_task, self.token, attempt.task, self.limit.seconds, suspect, key=key, retries=0, pure=False
        )
        self.flying[future] = attempt, suspect, time.monotonic()
        future.add_done_callback(self.ended.put)

    def collect(self) -> list[tuple[Any, Ending | None]]:
        """Waits for futures that have ended; returns them with what the worker said, None if it died."""
        try:
            ended = [self.ended.get(timeout=POLL_S)]
        except queue.Empty:
            return []
        while not self.ended.empty():
            ended.append(self.ended.get())
        if any(future.cancelled() for future in ended):
            raise self.engine.lost()
        finished = [future for future in ended if future.status == "finished"]
        try:
            told = dict(zip(finished, self.client.gather(finished), strict=True))
        except KilledWorker:  # a worker has gone with a result that it had not yet told, and so has the next one
            told = {}
            for future in finished:
                with contextlib.suppress(KilledWorker):
                    told[future] = future.result()
        return [(future, told.get(future)) for future in ended]

    def end(self, future: Any, message: Ending | None) -> Iterator[Outcome]:
        attempt, suspect, began = self.flying.pop(future)
        outcome = None
        if message is None:
            error = future.exception()
            if not isinstance(error, KilledWorker):
                raise RunError(f"a worker cannot do what it is sent: {type(error).__name__}: {error}. {GO_ON}")
            seconds = time.monotonic() - began
            if suspect:
                text = "the worker that did it ended, probably because memory ran out"
                outcome = self.pending.fail(attempt, text, seconds, suspect=True)
            else:
                self.pending.doubt(attempt, counts=False)  # a worker that was preempted is no fault of its tasks
        elif message.kind == "broken":
            raise RunError(f"a worker cannot begin: {message.error}")
        elif message.disk_full:
            raise message.disk_error()
        elif message.error:
            outcome = self.pending.fail(attempt, message.error, message.seconds, suspect=message.kind == "hung")
        else:
            self.limit.add(message.seconds)
            outcome = Outcome(attempt.task, message.result, None, attempt.number, message.seconds)
        if outcome is not None:
            yield outcome


@contextlib.contextmanager
def open_cluster(settings: EngineSettings) -> Iterator[Cluster]:
    """Connects to a scheduler, or starts one here or for Slurm, and yields the engine; what it started ends with it.

    Args:
        settings: Settled, with a scheduler or Slurm's options.

    Raises:
        NeurotomeError: The extra `cluster` is not installed.
        SettingsError: Slurm's options are wrong.
        RunError: No scheduler answers, or Slurm takes no job.
    """
    distributed, dask = (import_extra(name, "cluster") for name in ("distributed", "dask"))
    assert settings.workers != "auto"
    assert settings.threads != "auto"
    own = {
        "distributed.scheduler.allowed-failures": 0,  # attempts are counted here
        "distributed.comm.timeouts.connect": CONNECT_S,
        "distributed.admin.low-level-log-length": 10,
    }
    with contextlib.ExitStack() as opened, dask.config.set(own):
        opened.enter_context(_quiet())
        cores = None
        if settings.slurm:
            cluster, cores = _start_slurm(Path(settings.slurm), settings.workers)
            opened.enter_context(cluster)
        elif settings.scheduler == "local":
            cores = max(1, len(share_cores(0, settings.workers)))
            cluster = opened.enter_context(
                distributed.LocalCluster(
                    n_workers=settings.workers,
                    threads_per_worker=settings.threads,
                    memory_limit=0,
                    dashboard_address=DASHBOARD,
                    silence_logs=logging.CRITICAL,
                )
            )
        else:
            cluster = settings.scheduler
        try:
            client = opened.enter_context(distributed.Client(cluster, timeout=CONNECT_S, set_as_default=False))
        except (OSError, ValueError) as error:
            raise RunError(
                f"no dask scheduler answers at {cluster} ({error}). Expected tcp://host:port of one that runs; start it "
                "with `dask scheduler`, and workers with `dask worker tcp://host:port`."
            ) from error
        yield Cluster(client, settings.threads, settings.retries, settings.block_timeout_s, cores)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps dask from logging: what a user should know of loss and retries is said in our words."""
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.split(".")[0] == "distributed"]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _start_slurm(path: Path, workers: int) -> tuple[Any, int | None]:
    """Returns a cluster that asks Slurm for workers, and again for those that it loses, and each worker's cores."""
    jobqueue = import_extra("dask_jobqueue", "cluster")
    if not path.is_file():
        raise SettingsError(f"{path}: not found; expected a YAML file with options of dask_jobqueue.SLURMCluster.")
    options = dict(read_yaml(path, SettingsError, "Expected options of dask_jobqueue.SLURMCluster, such as 'cores: 8'."))
    try:
        cluster = jobqueue.SLURMCluster(**{"scheduler_options": {"dashboard_address": DASHBOARD}, **options})
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{path}: {error}. Expected options of dask_jobqueue.SLURMCluster.") from error
    refused = _try_script(cluster.job_script())
    if refused:
        cluster.close()
        raise RunError(f"{path}: Slurm takes no such job: {refused} Expected the command sbatch, and options that it takes.")
    cluster.adapt(minimum=workers, maximum=workers)
    cores, processes = (options.get(name) for name in ("cores", "processes"))
    return cluster, max(1, cores // (processes or 1)) if isinstance(cores, int) else None


def _try_script(script: str) -> str:
    """Asks Slurm whether it would take a worker's script, since dask would only log its no; returns what it says then."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        try:
            told = subprocess.run(["sbatch", "--test-only", file.name], capture_output=True, text=True, timeout=60.0)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{error}."
    return f"{told.stderr.strip() or told.stdout.strip()}." if told.returncode else ""


def _name(client: Any) -> str:
    return str(getattr(client.scheduler, "address", "") or "its address")
