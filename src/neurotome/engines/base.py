"""What every engine does: a function over whole numbers, failures tried again, each task's end told once.

An engine knows nothing of images. A task is a number, its function is built once in every process, and a function may be
called by several threads at once. Which tasks are wanted is decided before, what a result means after.
"""

from __future__ import annotations

import os
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from neurotome.errors import NeurotomeError, SettingsError, explain_system_error

Work = Callable[[int], Any]
Build = Callable[[], Work]

FIRST_LIMIT_S = 7200.0
LEAST_LIMIT_S = 600.0
TIMES_MEDIAN = 20.0


@dataclass(frozen=True)
class EngineSettings:
    """Where blocks are computed, and what happens to those that fail."""

    workers: int | Literal["auto"] = "auto"
    """Processes that compute; auto: one per GPU, or this process alone where there is none."""

    threads: int | Literal["auto"] = "auto"
    """Blocks that a worker has in work at once, so that reading and writing overlap computing; auto: 2, or 4 with a GPU."""

    retries: int = 2
    """How often a block that failed is tried again before it is set aside and named."""

    block_timeout_s: float | Literal["auto"] = "auto"
    """Seconds after which a block counts as hanging and its worker is ended; auto: 20 times the median block, at least
    600. Only processes can be ended: one worker becomes a process of its own where a number is given."""

    scheduler: str = ""
    """Address of a dask scheduler (tcp://host:port) whose workers compute, or local to start one here (extra: cluster)."""

    slurm: str = ""
    """YAML file with the options of dask_jobqueue.SLURMCluster (queue, cores, memory, walltime, ...); --workers says how
    many workers to ask for (extra: cluster)."""


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        task: Its number.
        result: What the function returned; None if it failed.
        error: The last attempt's message if it was set aside, otherwise None.
        attempts: How often it was begun, but for attempts that ended through another's fault where that is known.
        seconds: Duration of the last attempt.
    """

    task: int
    result: Any | None
    error: str | None
    attempts: int
    seconds: float


class Engine(Protocol):
    """Maps a function over tasks."""

    def run(self, build: Build, tasks: Iterable[int]) -> Iterator[Outcome]:
        """Yields one outcome per task, in the order in which they end.

        Args:
            build: Returns the function; called once in every process, so it must be picklable. Its function is called from
                several threads at once.
            tasks: Distinct whole numbers; read as they are needed, never all at once.

        Raises:
            OSError: The disk is full; nothing else is begun then.
            RunError: Workers cannot start, or end again and again.
        """
        ...


@dataclass(frozen=True)
class Attempt:
    """One more try of a task, counted from 1."""

    task: int
    number: int


class Pending:
    """What is left to do: tasks that are to be tried again before new ones, suspects for a worker of their own.

    A suspect was in work when its process ended. Beside others it would take them along again, and which of them is at
    fault would never be known: what is set aside because its process ended had that process to itself.
    """

    def __init__(self, tasks: Iterable[int], retries: int) -> None:
        self._tasks = iter(tasks)
        self._retries = retries
        self._again: deque[Attempt] = deque()
        self._suspects: deque[Attempt] = deque()

    def is_empty(self) -> bool:
        """Says whether nothing is left, suspects included."""
        if not self._again and not self._suspects:
            attempt = self.take()
            if attempt is None:
                return True
            self._again.append(attempt)
        return False

    def take(self) -> Attempt | None:
        """Returns the next attempt; None if there is none but suspects."""
        if self._again:
            return self._again.popleft()
        task = next(self._tasks, None)
        return None if task is None else Attempt(task, 1)

    def take_suspect(self) -> Attempt | None:
        """Returns the next attempt that must have its process to itself, if there is one."""
        return self._suspects.popleft() if self._suspects else None

    def give_back(self, attempt: Attempt) -> None:
        """Takes back what ended through no fault of its own."""
        self._again.append(attempt)

    def doubt(self, attempt: Attempt, *, counts: bool = True) -> None:
        """Makes a suspect of what was in work beside others when its process ended; it is not set aside for that."""
        number = min(attempt.number + 1, self._retries + 1) if counts else attempt.number
        self._suspects.append(Attempt(attempt.task, number))

    def fail(self, attempt: Attempt, error: str, seconds: float, *, suspect: bool = False) -> Outcome | None:
        """Notes that an attempt failed; returns the outcome if it was the last one."""
        if attempt.number > self._retries:
            return Outcome(attempt.task, None, error, attempt.number, seconds)
        (self._suspects if suspect else self._again).append(Attempt(attempt.task, attempt.number + 1))
        return None


class TimeLimit:
    """How long an attempt may take: as set, or by those that have ended."""

    def __init__(self, setting: float | Literal["auto"]) -> None:
        self._setting = setting
        self._seconds: deque[float] = deque(maxlen=200)

    def add(self, seconds: float) -> None:
        """Takes note of the duration of an attempt that went well."""
        self._seconds.append(seconds)

    @property
    def seconds(self) -> float:
        """The limit now."""
        if self._setting != "auto":
            return self._setting
        return max(LEAST_LIMIT_S, TIMES_MEDIAN * statistics.median(self._seconds)) if self._seconds else FIRST_LIMIT_S


def describe(error: BaseException) -> str:
    """Returns an error's message, with its type where it is none of neurotome's or the system's."""
    known = str(error) if isinstance(error, NeurotomeError) else explain_system_error(error)
    return known or f"{type(error).__name__}: {error}"


def list_gpus(device: str) -> list[str]:
    """Returns the GPUs to share out among workers, as CUDA_VISIBLE_DEVICES names them; none where one device is named."""
    if device not in ("auto", "cuda"):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    if not Path("/dev/nvidiactl").exists():
        return []
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def settle_engine(settings: EngineSettings, device: str = "auto") -> EngineSettings:
    """Returns checked settings whose workers and threads are numbers.

    Args:
        settings: As given.
        device: Where the function computes: auto, cpu, cuda, cuda:1 or mps.

    Raises:
        SettingsError: A value is impossible, or two contradict each other.
    """
    least = {"workers": 1, "threads": 1, "retries": 0}
    for name, smallest in least.items():
        value = getattr(settings, name)
        if value != "auto" and value < smallest:
            raise SettingsError(f"{name} is {value}; expected {smallest} or more.")
    if settings.block_timeout_s != "auto" and not settings.block_timeout_s > 0:
        raise SettingsError(f"block_timeout_s is {settings.block_timeout_s}; expected more than 0 seconds, or auto.")
    if settings.scheduler and settings.slurm:
        raise SettingsError(
            f"scheduler is {settings.scheduler!r} and slurm is {settings.slurm!r}; expected one of them: slurm starts a "
            "scheduler of its own."
        )
    gpus = list_gpus(device)
    if settings.workers == "auto":
        settings = replace(settings, workers=max(1, len(gpus)))
    if settings.threads == "auto":
        settings = replace(settings, threads=4 if gpus or device.startswith("cuda") else 2)
    return settings
