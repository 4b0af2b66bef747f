"""plan_outputs: the one place that decides which files a command may write, before it reads or computes anything."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from neurotome.errors import RunError

Existing = Literal["refuse", "skip", "replace"]


def plan_outputs(outputs: Sequence[Path], *, inputs: Sequence[Path] = (), existing: Existing = "refuse") -> list[Path]:
    """Checks every path that a command will write.

    Args:
        outputs: Files that will be written, side outputs too; `.zarr` folders count as files.
        inputs: What will be read: files, or folders in which nothing may be written.
        existing: What to do about an output that is there already. An input is never replaced, whatever this says.

    Returns:
        The outputs to write, in their order: all, or with `skip` those that are not there yet.

    Raises:
        RunError: An output cannot or may not be written. Nothing has been changed then.
    """
    read = {path.resolve(): path for path in inputs}
    holding = {folder: path for place, path in read.items() for folder in place.parents}
    # by their numbers on the disk too: hard links, and names that differ by case on some disks
    numbered = {number: path for path in inputs if (number := _find_number(path))}
    planned: dict[Path, Path] = {}
    written = []
    for output in outputs:
        if output.name in ("", ".."):
            raise RunError(f"found the output {str(output)!r}; expected the name of a file. Name one.")
        number = _find_number(output)
        place = output.resolve()
        overwritten = [read.get(folder) for folder in (place, *place.parents)]
        overwritten += [holding.get(place), numbered.get(number) if number else None]
        if any(overwritten):
            raise RunError(f"{output}: would overwrite the input {next(filter(None, overwritten))}. Choose another output.")
        if place in planned:
            raise RunError(f"{output}: would be written twice, as {planned[place]} too. Rename one of them.")
        planned[place] = output
        if output.is_dir() and output.suffix.lower() != ".zarr":
            raise RunError(f"{output}: is a folder; expected a file. Choose another output.")
        if number or output.is_symlink():
            if existing == "refuse":
                raise RunError(
                    f"{output}: is there already. Choose another output, or say --existing replace, or --existing skip to "
                    "finish a folder, where the command has that option."
                )
            if existing == "skip":
                continue
        parent = next(folder for folder in output.absolute().parents if folder.exists())
        if not parent.is_dir():
            raise RunError(f"{output}: {parent} is a file; expected a folder. Choose another output.")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise RunError(f"{output}: the folder {parent} may not be written to. Check its permissions.")
        written.append(output)
    return written


def check_own(outputs: Sequence[Path], mark: Path, keys: Sequence[str]) -> None:
    """Checks that outputs that are there already were left by an earlier call, and are nobody's own.

    Args:
        outputs: Files that will be replaced.
        mark: One of them, JSON, that every call writes.
        keys: What it holds.

    Raises:
        RunError: Some are there, and the mark is missing or another file.
    """
    there = [output for output in outputs if output.exists()]
    try:
        content = json.loads(mark.read_text(encoding="utf-8"))
        is_own = isinstance(content, dict) and set(keys) <= content.keys()
    except (OSError, ValueError):
        is_own = False
    if there and not is_own:
        raise RunError(
            f"{there[0]}: is there already, and nothing says that this command wrote it. Choose another folder with --out."
        )


def _find_number(path: Path) -> tuple[int, int] | None:
    """Returns the numbers of a file's disk and of the file on it, None if there is none."""
    try:
        return (stat := path.stat()).st_dev, stat.st_ino
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # a name that is too long, or holds a zero byte
        raise RunError(f"{path}: cannot be used as a path ({error}). Choose another.") from error
