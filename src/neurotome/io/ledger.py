"""A ledger of verified blocks: which files of a store are done, and what they hold.

One line of JSON per block is appended after the block's file has been written and synced. Appending is what keeps a ledger
of many blocks cheap. The lines themselves are not synced: what a power failure takes of them, or cuts off, is found again by
reading the blocks back, which have checksums of their own.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from neurotome.atomic import hold_folder, sweep_partials, write_text
from neurotome.errors import RunError


class Ledger:
    """The blocks of a folder that are done; may be written from several threads."""

    def __init__(self, path: Path, folder: Path, source: Mapping[str, Any]) -> None:
        """Reads the ledger of the blocks in a folder, or begins one; that of another source, or no ledger, is a RunError."""
        self.path, self.folder = path, folder
        self.entries: dict[str, dict[str, Any]] = {}  # a block's file within the folder -> what was written down about it
        self._lock = threading.Lock()
        head = {"ledger": 1, "source": dict(source)}
        if path.exists():
            self._read(head)
        # Written anew, so that what a crash cut off is gone before the next line follows it.
        lines = [head, *({"block": name, **entry} for name, entry in self.entries.items())]
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))

    def _read(self, expected: Mapping[str, Any]) -> None:
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        head, *entries = [_parse(line) for line in lines or [""]]
        if "source" not in head:
            raise RunError(f"{self.path} is no ledger of a fetch; remove it, or choose another folder with --out.")
        if head != expected:
            # a mistyped host, of which nothing but descriptions came, must not claim a folder for good
            blocks = [path for path in self.folder.rglob("*") if path.is_file() and path.name != "zarr.json"]
            if entries or blocks:
                begun, wanted = (json.dumps(header["source"], sort_keys=True) for header in (head, expected))
                raise RunError(
                    f"{self.path.parent} was begun from another source: {begun}; this command means {wanted}. Give the "
                    "command it was begun with, or choose another --out."
                )
        for entry in entries:
            if isinstance(entry.get("block"), str) and "sha256" in entry:
                self.entries[entry.pop("block")] = entry

    def add(self, name: str, **facts: Any) -> None:
        """Says that a block is done, its file written and synced; a killed process leaves the line whole or not at all."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        entry = {"sha256": _hash_file(self.folder / name), "time": now, **facts}
        line = json.dumps({"block": name, **entry}) + "\n"
        with self._lock:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
            self.entries[name] = entry

    def holds(self, name: str) -> bool:
        """Returns whether a block is done and its file still what it was."""
        path = self.folder / name
        return name in self.entries and path.is_file() and _hash_file(path) == self.entries[name]["sha256"]


@contextlib.contextmanager
def hold_ledger(out: Path, path: Path, folder: Path, source: Mapping[str, Any]) -> Iterator[Ledger]:
    """Holds `out` against other processes, opens the ledger of the blocks in `folder`, and sweeps what a killed one left.

    Raises:
        RunError: It is no folder, is in use, was begun by something else or from another source.
    """
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: a file is in the way; choose another name with --out.")
    with hold_folder(out):
        if folder.exists() and any(folder.iterdir()) and not path.exists():
            raise RunError(
                f"{folder} is there, but no ledger of a fetch, {path.name}, so nobody knows where it comes from. Choose "
                "another --out, or delete it."
            )
        ledger = Ledger(path, folder, source)
        sweep_partials(folder)
        yield ledger


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parse(line: str) -> dict[str, Any]:
    """Returns what a line holds; one that is cut off or foreign holds nothing."""
    try:
        content = json.loads(line)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
