"""Checkpoints: files that a training goes on from, the last two of them, each with a checksum.

`step-1200.ckpt` is what `torch.save` writes, followed by its SHA-256. It is whole before it has its name, and only then the
oldest is deleted: whenever the process is killed, one that is whole is there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from neurotome.atomic import atomic_path
from neurotome.errors import RunError, is_out_of_memory
from neurotome.tables import count

KEPT = 2
"""Checkpoints of a training under way."""

AVERAGED = "average.module."
"""What the names of averaged weights begin with in a checkpoint, where those of the others begin with `net.`"""

DIGEST_BYTES = 32

CHUNK_BYTES = 1 << 20


class DamageError(RunError):
    """A checkpoint is not what was written."""


def list_checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints of a folder, the newest first."""
    paths = [path for path in folder.glob("step-*.ckpt") if re.fullmatch(r"step-\d+", path.stem)]
    return sorted(paths, key=_step, reverse=True)


def write_checkpoint(folder: Path, step: int, content: Mapping[str, Any], kept: int = KEPT) -> None:
    """Writes what a training has come to after so many steps, and deletes all but the newest `kept` checkpoints.

    Args:
        folder: Of one training; it is made.
        step: Names the file; a checkpoint of the same step is replaced.
        content: Tensors and JSON values.
        kept: How many stay.
    """
    with atomic_path(folder / f"step-{step}.ckpt") as temporary:
        torch.save(dict(content), temporary)
        with temporary.open("r+b") as file:
            file.write(_digest(file, temporary.stat().st_size))
    for old in list_checkpoints(folder)[kept:]:
        old.unlink()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Returns what `write_checkpoint` was given, tensors on the CPU.

    Raises:
        DamageError: The file is not what was written.
        RunError: It is, but cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = max(0, path.stat().st_size - DIGEST_BYTES)
            is_whole = _digest(file, size) == file.read()
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise DamageError(f"{path}: damaged checkpoint ({error.strerror}).") from error
    if not is_whole:
        raise DamageError(f"{path}: damaged checkpoint (its checksum is not that of its content).")
    with _name_misfit(path):
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return content


def take_newest(folder: Path, take: Callable[[Mapping[str, Any]], None]) -> Path | None:
    """Gives `take` the newest checkpoint of a folder that is whole, and returns it; None if there is none at all.

    Newer ones, which are damaged, are deleted with a note that says what is lost.

    Args:
        folder: Where the checkpoints are.
        take: What it raises means that a checkpoint does not fit the training.

    Raises:
        RunError: There are checkpoints and none is whole, or the newest that is cannot be taken up; all are left there.
    """
    damaged: dict[Path, str] = {}
    for path in list_checkpoints(folder):
        try:
            content = read_checkpoint(path)
        except DamageError as error:
            damaged[path] = str(error)
            continue
        with _name_misfit(path):
            take(content)
        for skipped, message in damaged.items():
            lost = count(_step(skipped) - _step(path), "step")
            warnings.warn(f"{message} Training goes on from {path.name} and repeats {lost}.", stacklevel=3)
            skipped.unlink()
        return path
    if damaged:
        raise RunError(f"{' '.join(damaged.values())} Delete {folder} to train this run from its beginning.")
    return None


def shrink_checkpoint(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Returns a checkpoint of about half the size, for a run that is finished and may be prolonged.

    It lacks the average of the weights, which after a finished schedule is close to them and begins there again, and holds
    the optimiser's memory in 16 bit.
    """
    weights = {key: value for key, value in checkpoint["state_dict"].items() if not key.startswith(AVERAGED)}
    optimizer = checkpoint["optimizer"]
    moments = {
        number: {key: value.bfloat16() if getattr(value, "ndim", 0) else value for key, value in state.items()}
        for number, state in optimizer["state"].items()
    }
    return {**checkpoint, "state_dict": weights, "optimizer": {**optimizer, "state": moments}}


@contextlib.contextmanager
def _name_misfit(path: Path) -> Iterator[None]:
    """Makes a RunError that names a whole checkpoint of why it cannot be taken up, but for what it is not to blame for."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error) or isinstance(error, OSError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(
            f"{path}: this checkpoint is whole, but the training cannot take it up ({reason}). Go on with the version of "
            "neurotome that wrote it (the run's environment.json says which), or move the file away to go on from an older "
            "one or from the beginning; it is left as it is."
        ) from error


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _digest(file: Any, size: int) -> bytes:
    """Returns the SHA-256 of the next `size` bytes of a file, 32 bytes; leaves the file after them."""
    digest = hashlib.sha256()
    while size and (chunk := file.read(min(size, CHUNK_BYTES))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.digest()
