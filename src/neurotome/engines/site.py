"""What of a cluster's engine runs on its workers: the function is built once in each, and tasks are watched."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from distributed.diagnostics.plugin import WorkerPlugin

from neurotome.engines.base import Work, describe, list_gpus
from neurotome.engines.ending import Ending, attempt_task, describe_hanging

LEAVE_S = 1.0
"""How long a worker with a hanging task stays, so that it can be told."""


@dataclass
class _Site:
    """A job in this process: how its function is built, and who does a task now."""

    build: bytes
    threads: int
    problem: str
    lock: threading.Lock = field(default_factory=threading.Lock)
    change: threading.Condition = field(default_factory=threading.Condition)
    busy: int = 0
    work: Work | None = None

    def open(self) -> Work:
        with self.lock:
            if self.work is None:
                # it comes from the client as dask's own messages do, which whoever reaches a scheduler can send anyway
                self.work = pickle.loads(self.build)()
            return self.work

    @contextlib.contextmanager
    def take(self, slots: int) -> Iterator[None]:
        """Waits until that many of the process's threads are free; all of them for a task that must be alone."""
        with self.change:
            self.change.wait_for(lambda: self.busy + slots <= self.threads)
            self.busy += slots
        try:
            yield
        finally:
            with self.change:
                self.busy -= slots
                self.change.notify_all()


_SITES: dict[str, _Site] = {}
_HELD: list[int] = []  # descriptors of lock files, open as long as the process lives


class Plugin(WorkerPlugin):
    """Tells every worker of a job, also one that joins later."""

    def __init__(self, token: str, build: bytes, threads: int, cores: int | None) -> None:
        self.name = f"neurotome-{token}"
        self.token, self.build, self.threads, self.cores = token, build, threads, cores
        self.version = tell_version()

    def setup(self, worker: Any) -> None:
        """Prepares a worker's process before torch reads its environment."""
        # dask's nanny says 1 thread to every library, and a process of ours computes one forward pass at a time
        os.environ["OMP_NUM_THREADS"] = str(self.cores or worker.state.nthreads)
        claim_gpu()
        own = tell_version()
        differs = (
            f"the one at {worker.address} has neurotome {own}; expected {self.version}, as where the job was begun. Install "
            "the same version there, because results must not depend on who computed them, and start it again."
        )
        _SITES[self.token] = _Site(self.build, self.threads, "" if own == self.version else differs)

    def teardown(self, worker: Any) -> None:
        """Forgets the job."""
        _SITES.pop(self.token, None)


def tell_version() -> str:
    """Returns the version of neurotome in this process."""
    return metadata.version("neurotome")


def do_task(token: str, task: int, limit_s: float, alone: bool) -> Ending:
    """Does a task of a job in this process; one that takes longer than the limit is told, and the process ends then."""
    site = _SITES[token]
    if site.problem:
        return Ending("broken", error=site.problem)
    try:
        work = site.open()
    except Exception as error:
        return Ending("broken", error=describe(error))
    with site.take(site.threads if alone else 1):
        endings: queue.SimpleQueue[Ending] = queue.SimpleQueue()
        threading.Thread(target=lambda: endings.put(attempt_task(work, task)), daemon=True).start()
        try:
            return endings.get(timeout=limit_s)
        except queue.Empty:
            threading.Timer(LEAVE_S, os._exit, (1,)).start()  # a thread cannot be ended otherwise
            return Ending("hung", task, error=describe_hanging(limit_s), seconds=limit_s)


def claim_gpu() -> None:
    """Takes one of several visible GPUs for this process alone; a process that ends, however, gives its own back."""
    gpus = list_gpus("auto")
    if len(gpus) < 2 or _HELD:
        return
    import fcntl

    for gpu in gpus:
        lock = Path(tempfile.gettempdir()) / f"neurotome-gpu-{os.getuid()}-{gpu}.lock"
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        _HELD.append(descriptor)
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        return
