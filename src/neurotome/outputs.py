"""plan_outputs: the one place that decides which files a command may write, before it reads or computes anything."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from neurotome.errors import RunError

Existing = Literal["refuse", "skip", "replace"]

FOLDER_FORMATS = (".zarr",)
"""Suffixes of outputs that are folders on the disk."""


def plan_outputs(outputs: Sequence[Path], *, inputs: Sequence[Path] = (), existing: Existing = "refuse") -> list[Path]:
    """Checks every path that a command will write.

    Args:
        outputs: Files that will be written, side outputs too; `.zarr` folders count as files.
        inputs: What will be read: files, or folders in which nothing may be written.
        existing: What to do about an output that is there already. An input is never replaced, whatever this says.

    Returns:
        The outputs to write, in their order: all, or with `skip` those that are not there yet.

    Raises:
        RunError: An output has no name, is or lies in an input, is named twice, is there already, is a folder, or lies where
            no folder can be made. Nothing has been changed then.
    """
    resolved_inputs = {path.resolve(): path for path in inputs}
    # by their numbers on the disk too: hard links, and names that differ by case on some disks
    numbers = {(stat.st_dev, stat.st_ino): path for path in inputs if (stat := _stat(path))}
    planned: dict[Path, Path] = {}
    written = []
    for output in outputs:
        if output.name in ("", ".."):
            raise RunError(f"found the output {str(output)!r}; expected the name of a file. Name one.")
        stat = _stat(output)
        place = output.resolve()
        replaced = next((resolved_inputs[p] for p in (place, *place.parents) if p in resolved_inputs), None) or (
            numbers.get((stat.st_dev, stat.st_ino)) if stat else None
        )
        replaced = replaced or next((path for p, path in resolved_inputs.items() if place in p.parents), None)
        if replaced is not None:
            raise RunError(f"{output}: would overwrite the input {replaced}. Choose another output.")
        if place in planned:
            raise RunError(f"{output}: would be written twice, as {planned[place]} too. Rename one of them.")
        planned[place] = output
        if output.is_dir() and output.suffix.lower() not in FOLDER_FORMATS:
            raise RunError(f"{output}: is a folder; expected a file. Choose another output.")
        if stat is not None or output.is_symlink():
            if existing == "refuse":
                raise RunError(
                    f"{output}: is there already. Choose another output, or say --existing replace, or --existing skip to "
                    "finish a folder, where the command has that option."
                )
            if existing == "skip":
                continue
        _check_parent(output)
        written.append(output)
    return written


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # a name that is too long, or holds a zero byte
        raise RunError(f"{path}: cannot be used as a path ({error}). Choose another.") from error


def _check_parent(output: Path) -> None:
    """Checks that the folder of an output is there, or can be made, and may be written to."""
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise RunError(f"{output}: {parent} is a file; expected a folder. Choose another output.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise RunError(f"{output}: the folder {parent} may not be written to. Check its permissions.")
