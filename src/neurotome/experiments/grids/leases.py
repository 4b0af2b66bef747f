"""Leases: who works on which run of a grid, in several processes and on several machines; locks that survive a dead owner.

A claim is a numbered file, of which the highest number counts. It is held while its owner lives and has not released it.
Whoever finds it free or its owner dead makes the next number, which the file system lets only one do (O_EXCL), on network
file systems too. Claims are never deleted, so that no number is made twice: a process that judged an old one cannot take a
new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from neurotome.atomic import write_json

HEARTBEAT_S = 10.0
DEAD_AFTER_S = 120.0
"""Without a heartbeat for so long, an owner on another machine is dead; one on this machine is when its process is."""


class Leases:
    """The claims on a grid's runs, as a context manager: within it, a thread shows that those held are alive."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        process = psutil.Process()
        self.folder = folder
        self.owner = {
            "host": platform.node(),
            "machine": _identify_machine(),
            "pid": process.pid,
            "started": process.create_time(),
            "token": secrets.token_hex(8),
        }
        self._held: dict[str, Path] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        for name in list(self._held):
            self.release(name)
        self._beacon.unlink(missing_ok=True)

    def take(self, name: str) -> bool:
        """Claims a run; says whether that has succeeded."""
        number, path = self._find(name)
        if path is not None and self._read_holder(path) is not None:
            return False
        path = self._path(name, number + 1)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(self.owner, file)
        self._held[name] = path
        return True

    def release(self, name: str) -> None:
        """Gives a run back; where another owner has taken it meanwhile, theirs is left alone."""
        path = self._held.pop(name)
        with contextlib.suppress(FileNotFoundError):
            write_json(path, {**self.owner, "released": True})

    def is_lost(self, name: str) -> bool:
        """Says whether another owner has taken a run that is held here, which it does where this one was taken for dead."""
        number, _ = self._find(name)
        return self._path(name, number) != self._held[name]

    def find_holder(self, name: str) -> str | None:
        """Returns the host of the living owner of a run, None if it is free."""
        _, path = self._find(name)
        holder = self._read_holder(path) if path is not None else None
        return str(holder.get("host", "?")) if holder is not None else None

    @property
    def _beacon(self) -> Path:
        """A file of this owner, whose time of change is now by the file system's clock."""
        return self.folder / f".{self.owner['token']}"

    def _path(self, name: str, number: int) -> Path:
        return self.folder / f"{name.replace('/', '__')}.{number}.json"

    def _find(self, name: str) -> tuple[int, Path | None]:
        """Returns the highest number of a run's claims and its file; 0 and None if there is none."""
        number = 0
        while self._path(name, number + 1).exists():
            number += 1
        return number, self._path(name, number) if number else None

    def _read_holder(self, path: Path) -> Mapping[str, Any] | None:
        """Returns the owner of a claim if it lives and has not released it."""
        try:
            owner = json.loads(path.read_text(encoding="utf-8"))
            released, machine = owner.get("released"), owner["machine"]
            process = owner["pid"], owner["started"]
        except (OSError, ValueError, LookupError, AttributeError):
            owner, released, machine, process = {}, False, None, (0, 0.0)  # just made, or its maker was killed then
        if released:
            return None
        alive = _is_running(*process) if machine == self.owner["machine"] else self._measure_age(path) < DEAD_AFTER_S
        return owner if alive else None

    def _measure_age(self, path: Path) -> float:
        """Returns the seconds since a claim's last heartbeat, both read from the file system's clock."""
        self._beacon.touch()
        try:
            return self._beacon.stat().st_mtime - path.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            for path in list(self._held.values()):
                with contextlib.suppress(OSError):
                    path.touch()


def _identify_machine() -> str:
    """Returns what tells this start of this machine, and its own numbers of processes, from others."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))  # containers count their own
    return " ".join(parts)


def _is_running(pid: int, started: float) -> bool:
    """Says whether the very process still runs; another may have got its number."""
    try:
        process = psutil.Process(pid)
        # the start is reckoned from the clock, which may have been set by a little
        return abs(process.create_time() - started) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError, TypeError):
        return False
    except psutil.AccessDenied:
        return True
