"""processes: several workers on this machine, one per GPU or per share of the cores; what kills a block costs that block.

Tasks go through a pipe to each worker and what became of them comes back, numbers and small results only. A worker that
dies, of a crash or because memory ran out, is replaced in its place, on its GPU; a worker whose task hangs is ended.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Literal

from neurotome.engines.base import Attempt, Build, Outcome, Pending, TimeLimit, describe
from neurotome.engines.ending import Ending, attempt_task, describe_hanging
from neurotome.errors import RunError

POLL_S = 0.2
JOIN_S = 5.0
BUILD_LIMIT_S = 1800.0
MOST_FALSE_STARTS = 3
MOST_DEATHS = 30
"""Workers that may die without one task done between them; each costs the time that a worker takes to start."""


@dataclass(frozen=True)
class Processes:
    """Does tasks in `workers` processes of `threads` threads each; `gpus` as CUDA_VISIBLE_DEVICES names them."""

    workers: int
    threads: int = 2
    retries: int = 2
    block_timeout_s: float | Literal["auto"] = "auto"
    gpus: Sequence[str] = ()

    def run(self, build: Build, tasks: Iterable[int]) -> Iterator[Outcome]:
        """See `Engine.run`. When it is stopped, its workers are ended at once."""
        tasks = iter(tasks)
        first = list(islice(tasks, self.workers))  # no more workers than tasks
        pool = _Pool(self, pickle.dumps(build), len(first), Pending(chain(first, tasks), self.retries))
        try:
            yield from pool.run()
            pool.dismiss()
        finally:
            pool.kill()


@dataclass
class _Worker:
    """A process, its end of the pipe, and what it has in work with the time at which each was sent."""

    place: int
    process: BaseProcess
    pipe: Connection
    since: float
    ready: bool = False
    alone: bool = False
    under_way: dict[int, tuple[Attempt, float]] = field(default_factory=dict)


class _Pool:
    def __init__(self, engine: Processes, build: bytes, workers: int, pending: Pending) -> None:
        self.engine, self.build, self.pending = engine, build, pending
        self.limit = TimeLimit(engine.block_timeout_s)
        self.context = multiprocessing.get_context("spawn")  # what has spoken to a GPU or started threads cannot be forked
        self.deaths = self.false_starts = 0
        self.workers: dict[int, _Worker] = {}
        for place in range(workers):
            self.start(place)

    def start(self, place: int) -> None:
        ours, theirs = self.context.Pipe()
        cores = share_cores(place, self.engine.workers)
        process = self.context.Process(
            target=_enter, args=(theirs, self.build, self.engine.threads, cores), daemon=True, name=f"worker-{place}"
        )
        own = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, len(cores))))}
        if self.engine.gpus:
            own["CUDA_VISIBLE_DEVICES"] = self.engine.gpus[place % len(self.engine.gpus)]
        with _environment(own):
            process.start()
        theirs.close()
        self.workers[place] = _Worker(place, process, ours, time.monotonic())

    def run(self) -> Iterator[Outcome]:
        while True:
            for worker in self.workers.values():
                self.give(worker)
            if not any(worker.under_way for worker in self.workers.values()) and self.pending.is_empty():
                return
            pipes = {worker.pipe: worker for worker in self.workers.values()}
            for pipe in wait(list(pipes), POLL_S):
                worker = pipes[pipe]  # type: ignore[index]  # nothing but pipes were waited for
                alive, outcomes = self.read(worker)
                yield from outcomes
                if not alive:
                    yield from self.replace(worker)
            yield from self.end_hanging()

    def give(self, worker: _Worker) -> None:
        """Sends a worker as much as it has threads, or one suspect alone."""
        if not worker.ready:
            return
        if not worker.under_way:
            suspect = self.pending.take_suspect()
            worker.alone = suspect is not None
            if suspect is not None:
                self.send(worker, suspect)
        while not worker.alone and len(worker.under_way) < self.engine.threads:
            attempt = self.pending.take()
            if attempt is None or not self.send(worker, attempt):
                return

    def send(self, worker: _Worker, attempt: Attempt) -> bool:
        try:
            worker.pipe.send(attempt.task)
        except OSError:  # it has died just now, which the next look at its pipe tells
            self.pending.give_back(attempt)
            return False
        worker.under_way[attempt.task] = attempt, time.monotonic()
        return True

    def read(self, worker: _Worker) -> tuple[bool, list[Outcome]]:
        """Reads all that a worker has sent; returns whether it lives, and what has ended."""
        outcomes, alive = [], True
        while alive:
            try:
                if not worker.pipe.poll():
                    break
                message = worker.pipe.recv()
            except (EOFError, OSError):
                alive = False
            else:
                outcome = self.note(worker, message)
                outcomes += [] if outcome is None else [outcome]
        return alive, outcomes

    def note(self, worker: _Worker, message: Ending) -> Outcome | None:
        if message.kind == "broken":
            raise RunError(f"a worker cannot begin: {message.error}")
        if message.kind == "ready":
            worker.ready, self.false_starts = True, 0
            return None
        attempt, _ = worker.under_way.pop(message.task)
        if message.disk_full:
            raise message.disk_error()
        self.deaths = 0
        if message.error:
            return self.pending.fail(attempt, message.error, message.seconds)
        self.limit.add(message.seconds)
        return Outcome(attempt.task, message.result, None, attempt.number, message.seconds)

    def replace(self, worker: _Worker) -> Iterator[Outcome]:
        """Starts a worker in the place of one that died; what it had in work is to be tried alone."""
        worker.process.join(JOIN_S)
        how = explain_exit(worker.process.exitcode)
        worker.pipe.close()
        self.deaths += 1
        self.false_starts += not worker.ready
        if self.false_starts >= MOST_FALSE_STARTS or self.deaths >= MOST_DEATHS:
            raise RunError(
                f"{self.false_starts if not worker.ready else self.deaths} workers ended one after another and nothing was "
                f"done between: the last one {how}. Use fewer --workers or a smaller --max-memory if memory is short; a "
                "script needs `if __name__ == '__main__':` around what it does. The same command goes on from here."
            )
        self.start(worker.place)
        if len(worker.under_way) == 1:
            ((attempt, began),) = worker.under_way.values()
            yield from self.fail_alone(attempt, f"its process {how}", time.monotonic() - began)
        else:
            for attempt, _ in worker.under_way.values():
                self.pending.doubt(attempt)

    def end_hanging(self) -> Iterator[Outcome]:
        """Ends workers of which a task takes too long; what else it had in work counts no attempt."""
        now, limit_s = time.monotonic(), self.limit.seconds
        for worker in list(self.workers.values()):
            oldest = min((began for _, began in worker.under_way.values()), default=now)
            if now - oldest <= limit_s and (worker.ready or now - worker.since < BUILD_LIMIT_S):
                continue
            worker.process.kill()
            yield from self.read(worker)[1]  # what ended meanwhile
            began_first = sorted(worker.under_way.values(), key=lambda entry: entry[1])
            worker.under_way.clear()
            if len(began_first) == 1:
                yield from self.fail_alone(began_first[0][0], describe_hanging(limit_s), now - oldest)
            else:
                for index, (attempt, _) in enumerate(began_first):
                    self.pending.doubt(attempt, counts=index == 0)
            yield from self.replace(worker)

    def fail_alone(self, attempt: Attempt, error: str, seconds: float) -> Iterator[Outcome]:
        outcome = self.pending.fail(attempt, error, seconds, suspect=True)
        if outcome is not None:
            yield outcome

    def dismiss(self) -> None:
        """Lets workers end by themselves; called when all is done."""
        for worker in self.workers.values():
            with contextlib.suppress(OSError):
                worker.pipe.send(None)
        until = time.monotonic() + JOIN_S
        for worker in self.workers.values():
            worker.process.join(max(0.0, until - time.monotonic()))

    def kill(self) -> None:
        for worker in self.workers.values():
            worker.process.kill()
        for worker in self.workers.values():
            worker.process.join(JOIN_S)
            worker.pipe.close()


def _enter(pipe: Connection, build: bytes, threads: int, cores: list[int]) -> None:
    """Is what a worker does: builds the function, then does tasks in threads until it is told to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to hear, which then ends this process
    threading.Thread(target=end_with_parent, daemon=True).start()
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)  # whatever library computes starts as many threads as it may use cores
    lock = threading.Lock()

    def tell(message: Ending) -> None:
        with lock:
            pipe.send(message)

    try:
        work = pickle.loads(build)()  # from the process that started this one, never from a file
    except Exception as error:
        tell(Ending("broken", error=describe(error)))
        return
    given: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def labour() -> None:
        while (task := given.get()) is not None:
            message = attempt_task(work, task)
            try:
                tell(message)
            except Exception as error:  # a result that cannot be sent
                tell(Ending("ended", task, error=describe(error), seconds=message.seconds))

    labourers = [threading.Thread(target=labour, daemon=True, name=f"block-{i}") for i in range(threads)]
    for labourer in labourers:
        labourer.start()
    tell(Ending("ready"))
    task: int | None = 0
    while task is not None:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            os._exit(1)  # the parent has gone
        if task is not None:
            given.put(task)
    for _ in labourers:
        given.put(None)
    for labourer in labourers:
        labourer.join()


def end_with_parent() -> None:
    """Ends this process when its parent has ended, however that ended; for a thread."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def explain_exit(status: int | None) -> str:
    """Returns how a process has ended, for a message: was killed by a signal, ended with a status."""
    if status is not None and status < 0:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else ""
        cause = ", probably because memory ran out" if -status == signal.SIGKILL else ""
        return f"was killed by signal {-status} ({name}){cause}"
    return f"ended with status {status} and no message"


def share_cores(place: int, workers: int) -> list[int]:
    """Returns the cores of one of several workers: those this process may use, cut into equal runs; none if too few."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))
    bounds = [len(cores) * i // workers for i in (place, place + 1)]
    return cores[slice(*bounds)] if workers <= len(cores) else []


@contextlib.contextmanager
def _environment(own: dict[str, str]) -> Iterator[None]:
    """Sets variables that a process inherits from its start, when libraries read them."""
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
