"""Files written whole or not at all: temporary name, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import secrets
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neurotome.errors import BusyError, is_disk_full

UMASK = os.umask(0o077)
"""Can only be read by setting it, which is safe while modules load and no thread writes files."""
os.umask(UMASK)


OWN_PARTIAL = re.compile(r"\..*\.\d+\.[0-9a-f]+\.partial(\..*)?")
"""Temporary names: nobody else's hidden file has the number of a process and a token in its name."""


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
        sync_folder(path.parent)
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


def sync_folder(folder: Path) -> None:
    """Makes last which files a folder holds, where the system can."""
    with contextlib.suppress(OSError):  # some file systems, and Windows, cannot sync folders
        _sync(folder, os.O_RDONLY)


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
    except OSError as error:
        _warn_without_locks(folder, error)
    try:
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def hold_output(folder: Path, shard: tuple[int, int] = (1, 1)) -> Iterator[None]:
    """Creates a folder if need be and keeps other jobs from doing part i of n of the work in it, `shard` = (i, n).

    Parts of the same division go together. The whole, (1, 1), excludes every other job, and a part those of another
    division, because they would do the same work. The hold ends with the process, however it ends; the files `*.hold`
    that stay mean nothing. Windows has no such hold, nor have some network file systems, which a warning says.

    Raises:
        BusyError: Another job does that work; it is named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield
        return
    part, parts = shard
    with contextlib.ExitStack() as held:
        _hold_file(held, folder / f"{part}_of_{parts}.hold", exclusive=True)
        with contextlib.ExitStack() as probed:
            for other in folder.glob("*.hold"):
                if not other.name.endswith(f"_of_{parts}.hold"):
                    _hold_file(probed, other, exclusive=False)
        yield


def _hold_file(held: contextlib.ExitStack, path: Path, *, exclusive: bool) -> None:
    """Locks a file until `held` ends; says in it who does, if nobody else may."""
    import fcntl

    file = held.enter_context(path.open("a+", encoding="utf-8"))
    try:
        fcntl.flock(file, fcntl.LOCK_NB | (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH))
    except BlockingIOError as error:
        file.seek(0)
        raise BusyError(
            f"{path.parent}: {file.read().strip() or 'another process'} is working on this output, part "
            f"{path.stem.replace('_', ' ')}. Wait for it or stop it; jobs go side by side as --shard 1/n to n/n, with the "
            "same n and each part once."
        ) from error
    except OSError as error:
        _warn_without_locks(path.parent, error)
    if exclusive:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()


@contextlib.contextmanager
def take_turns(path: Path) -> Iterator[None]:
    """Lets one process after another do what is in the block; the others wait. The file, which it makes, means nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                _warn_without_locks(path.parent, error)
        yield


def _warn_without_locks(folder: Path, error: OSError) -> None:
    """Says that a folder's file system has no locks, on folders (NFS) or at all; raises any other error."""
    if error.errno not in (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
        raise error
    warnings.warn(f"{folder}: this file system has no such locks; let no second command work here.", stacklevel=4)


def sweep_partials(folder: Path) -> None:
    """Deletes what killed writers left in a folder and below; the caller knows that nobody writes there now."""
    for left in sorted(path for path in folder.rglob(".*.partial*") if OWN_PARTIAL.fullmatch(path.name)):
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
    write_text(path, _to_json(content))


def write_json_once(path: Path, content: Any) -> bool:
    """Writes as `write_json` a file that is not there yet; of several writers at once exactly one does, which it is told."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem[:40]}.{os.getpid()}.{secrets.token_hex(4)}.partial{path.suffix}")
    try:
        write_text(temporary, _to_json(content))
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if is_disk_full(error):
            raise
        try:  # a file system without links
            with path.open("x", encoding="utf-8") as file:
                file.write(_to_json(content))
        except FileExistsError:
            return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _to_json(content: Any) -> str:
    text = json.dumps(content, indent=2, allow_nan=False)
    # text has no line ends in JSON, so that only lists match
    return re.sub(r"\[\n\s*([-+.,\d\seE]*?)\s*\]", lambda numbers: f"[{' '.join(numbers[1].split())}]", text) + "\n"
