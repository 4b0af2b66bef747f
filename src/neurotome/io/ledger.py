"""A ledger of verified blocks: which files of a store are done, and what they hold.

One line of JSON per block is appended after the block's file has been written and synced. Appending is what keeps a ledger
of many blocks cheap. The lines themselves are not synced: what a power failure takes of them, or cuts off, is found again by
reading the blocks back, which have checksums of their own.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neurotome.atomic import write_text
from neurotome.errors import RunError


class Ledger:
    """The blocks of a folder that are done; may be written from several threads.

    Attributes:
        path: The file.
        entries: Name of a block's file within the folder -> what was written down about it, `sha256` among it.
    """

    def __init__(self, path: Path, folder: Path, source: Mapping[str, Any]) -> None:
        """Reads a ledger, or begins one.

        Args:
            path: The file; its folder is made if need be.
            folder: Where the files of the blocks lie.
            source: Where the blocks come from; JSON. Blocks of two sources may not mix.

        Raises:
            RunError: The ledger is of another source, or no ledger.
        """
        self.path, self.folder = path, folder
        self.entries: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        head = {"ledger": 1, "source": dict(source)}
        if path.exists():
            self._read(head)
        # Written anew, so that what a crash cut off is gone before the next line follows it.
        lines = [head, *({"block": name, **entry} for name, entry in self.entries.items())]
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))

    def _read(self, expected: Mapping[str, Any]) -> None:
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        head = _parse(lines[0]) if lines else None
        if head is None or "source" not in head:
            raise RunError(f"{self.path} is no ledger of a fetch; remove it, or choose another folder with --out.")
        if head != expected and (len(lines) > 1 or self._holds_files()):
            begun, wanted = (json.dumps(header["source"], sort_keys=True) for header in (head, expected))
            raise RunError(
                f"{self.path.parent} was begun from another source: {begun}; this command means {wanted}. Give the command "
                "it was begun with, or choose another --out."
            )
        for line in lines[1:]:
            entry = _parse(line)
            if entry is not None and isinstance(entry.get("block"), str) and "sha256" in entry:
                self.entries[entry.pop("block")] = entry

    def _holds_files(self) -> bool:
        """Returns whether anything but descriptions is stored: a mistyped host must not claim a folder for good."""
        return any(path.is_file() and path.name != "zarr.json" for path in self.folder.rglob("*"))

    def add(self, name: str, **facts: Any) -> None:
        """Says that a block is done; a killed process leaves the line whole or not at all.

        Args:
            name: Its file within the folder, written and synced.
            facts: What to write down besides the time and the SHA-256 of the file.
        """
        entry = {"sha256": hash_file(self.folder / name), "time": _now(), **facts}
        line = json.dumps({"block": name, **entry}) + "\n"
        with self._lock:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
            self.entries[name] = entry

    def holds(self, name: str) -> bool:
        """Returns whether a block is done and its file still what it was."""
        path = self.folder / name
        return name in self.entries and path.is_file() and hash_file(path) == self.entries[name]["sha256"]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parse(line: str) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
