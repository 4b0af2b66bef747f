"""Exceptions; each message says what was found, what was expected and what to do.

Everything neurotome raises on purpose is a `NeurotomeError`: the command line prints its message and exits with status
1. What the system raises, itself or through torch and safetensors, `explain_system_error` puts into words; any other
exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import errno
import os
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class NeurotomeError(Exception):
    """Base of all errors a user can cause and mend."""


class SettingsError(NeurotomeError):
    """A setting has a value that cannot work."""


class ImageError(NeurotomeError):
    """An image or label file cannot be read, or does not hold what it should."""


class DatasetError(NeurotomeError):
    """A dataset is missing something or contradicts itself."""


class ModelError(NeurotomeError):
    """A model cannot be built, loaded, or applied to this data."""


class RunError(NeurotomeError):
    """A run folder cannot be used as asked."""


class BusyError(RunError):
    """Another process is working in a folder."""


class FetchError(NeurotomeError):
    """Data cannot be fetched, or what arrived is not what it should be."""


class TrainingError(NeurotomeError):
    """Training cannot go on."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Returns the message for a name that is not among the known ones, the most usual first, with the nearest suggested.

    `kind` says what is named, in the singular ("encoder").
    """
    options = list(known)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    listed = ", ".join(options[:40]) + (f", ... ({len(options)} in all)" if len(options) > 40 else "")
    return f"unknown {kind} {name!r}.{hint} Known: {listed}."


def is_out_of_memory(error: BaseException) -> bool:
    """Says whether an error means too little memory; torch raises a `RuntimeError` then, on CPUs and GPUs alike."""
    signs = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs))


def is_disk_full(error: BaseException) -> bool:
    """Says whether an error means a full disk or a used-up quota, also as safetensors, torch and numpy say it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    signs = ("No space left on device", "os error 28)", "PytorchStreamWriter failed", "unexpected pos ", " requested and ")
    return any(sign in str(error) for sign in signs)


def explain_system_error(error: BaseException) -> str | None:
    """Returns the message for an error of the system: memory, disks, paths; None for any other."""
    if is_out_of_memory(error):
        return (
            "out of memory. Use a smaller --sample.batch or --sample.patch to train a network; a smaller --max-memory, and "
            "fewer or smaller --filters.sigmas, for a pixel classifier; a smaller --tile to predict."
        )
    name: object = getattr(error, "filename", None)
    path = os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else ""
    where = f"{path}: " if path else ""
    if is_disk_full(error):
        place = Path(path).absolute()  # need not exist
        mount = next((folder for folder in (place, *place.parents) if folder.is_mount()), place)
        return (
            f"{where}no space left on the disk{f' at {mount}' if path else ''}. Nothing half-written was left; free some "
            "space and give the same command again."
        )
    if not isinstance(error, OSError):
        return None
    return f"{where}{error.strerror or error}. Check the path and its permissions."


def show(value: Any) -> str:
    """Returns a value of a file for a message; what is long or deep is shortened."""
    shortened = reprlib.Repr()
    shortened.maxlevel = 3
    shortened.maxstring = shortened.maxother = 80
    return shortened.repr(value)
