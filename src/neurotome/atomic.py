"""Files written whole or not at all: temporary name, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neurotome.errors import BusyError, is_disk_full

UMASK = os.umask(0o077)
"""Can only be read by setting it, which is safe while modules load and no thread writes files."""
os.umask(UMASK)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it over `path` if the block succeeds, deletes it otherwise.

    The temporary name keeps the suffix, because many writers choose their format by it. The file gets the mode that the
    umask gives, whoever writes it (safetensors would make it private). Errors name `path`, also that of a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # a name may have 255 bytes, and up to 4 of them make a letter
    temporary = path.with_name(f".{path.stem[:40]}.{os.getpid()}.{secrets.token_hex(4)}.partial{path.suffix}")
    try:
        yield temporary
        temporary.chmod(0o666 & ~UMASK)
        _sync(temporary, os.O_RDWR)
        temporary.replace(path)
        with contextlib.suppress(OSError):  # some file systems, and Windows, cannot sync folders
            _sync(path.parent, os.O_RDONLY)
    except Exception as error:
        if is_disk_full(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        if isinstance(error, OSError) and error.errno and error.filename in (str(temporary), temporary):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """As `atomic_path`, for a format that is a folder, such as Zarr; its writer syncs the files in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    token = f"{os.getpid()}.{secrets.token_hex(4)}.partial{path.suffix}"
    temporary, replaced = (path.with_name(f".{path.stem[:40]}.{which}.{token}") for which in ("new", "old"))
    try:
        yield temporary
        if path.exists():
            path.rename(replaced)
        temporary.rename(path)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Creates a folder if need be and keeps other processes from working in it; they get a BusyError.

    The hold ends with the process, however it ends. Windows has no such hold on a folder; there the block just runs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise BusyError(f"{folder}: another process is working in this folder; wait for it or choose another.") from error
    try:
        yield
    finally:
        os.close(descriptor)


def sweep_partials(folder: Path) -> None:
    """Deletes what killed writers left in a folder and below; the caller knows that nobody writes there now."""
    for left in sorted(folder.rglob(".*.partial*")):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to `path` in one step."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Writes `content` to `path` as UTF-8 in one step; names of files that are no Unicode get question marks."""
    write_bytes(path, content.encode(errors="replace"))


def write_json(path: Path, content: Any) -> None:
    """Writes `content` to `path` as indented JSON, lists of numbers in a line, in one step; NaN is refused, use None."""
    text = json.dumps(content, indent=2, allow_nan=False)
    # text has no line ends in JSON, so that only lists match
    text = re.sub(r"\[\n\s*([-+.,\d\seE]*?)\s*\]", lambda numbers: f"[{' '.join(numbers[1].split())}]", text)
    write_text(path, text + "\n")
