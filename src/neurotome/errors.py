"""Exceptions; each message says what was found, what was expected and what to do.

Everything neurotome raises on purpose is a `NeurotomeError`: the command line prints its message and exits with status
1; any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
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


class FetchError(NeurotomeError):
    """Data cannot be fetched, or what arrived is not what it should be."""


class TrainingError(NeurotomeError):
    """Training cannot go on."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Returns the message for a name that is not among the known ones, with the nearest suggested.

    Args:
        kind: What is named, in the singular ("encoder").
        name: What was found.
        known: What would be accepted, the most usual first.
    """
    options = list(known)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    listed = ", ".join(options[:40]) + (f", ... ({len(options)} in all)" if len(options) > 40 else "")
    return f"unknown {kind} {name!r}.{hint} Known: {listed}."


def show(value: Any) -> str:
    """Returns a value of a file for a message; what is long or deep is shortened."""
    shortened = reprlib.Repr()
    shortened.maxlevel = 3
    shortened.maxstring = shortened.maxother = 80
    return shortened.repr(value)
