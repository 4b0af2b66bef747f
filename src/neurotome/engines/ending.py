"""Ending: what a worker tells of a task, small enough for any wire."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from neurotome.engines.base import describe
from neurotome.errors import is_disk_full


@dataclass(frozen=True)
class Ending:
    """How a task ended, or that a worker is ready to begin or cannot.

    Attributes:
        kind: What is told; hung: the task has not ended, and its process will.
        task: Its number.
        result: What the function returned.
        error: The message if it failed.
        disk_full: Whether that was for want of space.
        path: Where, if known.
        seconds: How long it took.
    """

    kind: Literal["ready", "broken", "ended", "hung"]
    task: int = -1
    result: Any = None
    error: str = ""
    disk_full: bool = False
    path: str | None = None
    seconds: float = 0.0

    def disk_error(self) -> OSError:
        """Returns the error of a full disk, as it was raised elsewhere."""
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)


def attempt_task(work: Callable[[int], Any], task: int) -> Ending:
    """Does a task and returns how it ended."""
    began = time.monotonic()
    try:
        return Ending("ended", task, work(task), seconds=time.monotonic() - began)
    except Exception as error:
        name: object = getattr(error, "filename", None)
        path = os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else None
        return Ending("ended", task, None, describe(error), is_disk_full(error), path, time.monotonic() - began)


def describe_hanging(limit_s: float) -> str:
    """Returns the message for a task that takes too long."""
    return f"it hung: no end after {limit_s:.3g} s (--block-timeout-s); its process was ended"
