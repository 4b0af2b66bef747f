"""The ledger of a segmentation: which blocks are safely stored, by what settings, and what they hold.

It is a folder. `head.json` says once what was begun: a fingerprint of all that changes a voxel, and what `auto` chose. Every
writing process appends to a file of its own, `<writer>.jsonl`, because appends of several machines to one file of a network
file system overwrite each other; everybody reads all of them. A line follows the block's data, which are synced before; the
lines themselves are not synced: what a power failure takes of them is computed again.

A block is found by the line with the highest turn. Turns are counted, not timed, because clocks of machines differ.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from neurotome.atomic import write_json_once
from neurotome.documents import flatten, read_json
from neurotome.errors import RunError, show

FORMAT = 1
"""Changes when an older neurotome would misread what a newer one has written, or the other way round."""

HEAD = "head.json"
FAILED = ".failed.jsonl"
SHOWN = 12  # differences in one message

LINE = re.compile(rb'\{"block": (\d+), "turn": (\d+), .*\}')


class BlockLedger:
    """The blocks of a store that are done; may be written from several threads, and read by many processes."""

    def __init__(
        self, folder: Path, fingerprint: Mapping[str, Any], *, writer: str, chosen: Mapping[str, Any] | None = None
    ) -> None:
        """Begins the ledger of a folder or goes on with it; of several that begin at once one does, the others go on.

        Args:
            folder: Where it lies; made if need be.
            fingerprint: All that changes a voxel, as JSON: model, settings, input (`identity.compare_by`), grid.
            writer: A name that no other process uses, such as `name_writer()`, for the file of this one.
            chosen: What `auto` chose, recorded if the ledger is begun now; `head["chosen"]` is what counts.

        Raises:
            RunError: The folder was begun with another fingerprint, by another format, or is damaged.
        """
        self.folder = folder
        self._lines: dict[int, tuple[int, bytes]] = {}  # kept as text: 10^5 blocks take 50 MB, as objects several times that
        self._failures: dict[int, tuple[int, bytes]] = {}
        self._read_to: dict[Path, int] = {}
        self._lock = threading.Lock()
        self._name = re.sub(r"[^\w-]", "_", writer)
        wanted = json.loads(json.dumps(dict(fingerprint), allow_nan=False))
        if not (folder / HEAD).exists():
            if any(folder.glob("*.jsonl")):
                raise RunError(
                    f"{folder}: found blocks written down, but no {HEAD}, which says by what settings. Restore it, or begin "
                    "anew with --overwrite."
                )
            begun = {"format": FORMAT, "neurotome": metadata.version("neurotome"), "begun": _now()}
            write_json_once(folder / HEAD, {**begun, "fingerprint": wanted, "chosen": dict(chosen or {})})
        self.head: Mapping[str, Any] = read_head(folder) or {}
        if differing := _compare(self.head["fingerprint"], wanted):
            raise RunError(
                f"{folder}: was begun with something else: {differing}. Give the command that it was begun with to go on, "
                "choose another output, or begin anew with --overwrite."
            )
        self.refresh()

    def find(self, block: int) -> Mapping[str, Any] | None:
        """Returns what is written down about a block that is done, None for any other.

        Returns:
            `sha256` of its files, `counts` (stored id -> voxels), `tiles` ("all", or the numbers of those that are done),
            `time`, `host` and what else was told to `add`.
        """
        with self._lock:
            line = self._lines.get(block)
        return _parse(line[1]) if line else None

    def find_all(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yields the blocks that are done, by number, and what is written down about each."""
        for block in sorted(self._lines):
            if entry := self.find(block):
                yield block, entry

    def add(
        self,
        block: int,
        *,
        sha256: str,
        counts: Mapping[int, int],
        tiles: Literal["all"] | Sequence[int],
        **facts: Any,
    ) -> None:
        """Writes down that a block is done; its data are synced. `facts` are JSON: `seconds`, `confidence_sha256`, ..."""
        counted = {str(stored_id): int(count) for stored_id, count in counts.items()}
        done = tiles if isinstance(tiles, str) else [int(tile) for tile in tiles]
        self._write(block, ".jsonl", {"sha256": sha256, "counts": counted, "tiles": done, **facts})

    def undo(self, block: int, reason: str) -> None:
        """Writes down that a block is not done after all, so that it is done again."""
        self._write(block, ".jsonl", {"undone": reason})

    def fail(self, block: int, message: str, attempts: int) -> None:
        """Writes down that a block has failed for now; doing it clears that."""
        self._write(block, FAILED, {"message": message, "attempts": attempts})

    @property
    def failures(self) -> dict[int, Mapping[str, Any]]:
        """The blocks that have failed and were not done since, with `message`, `attempts`, `time` and `host`."""
        with self._lock:
            done = {block: turn for block, (turn, _) in self._lines.items()}
            open_ones = {block: line for block, (turn, line) in self._failures.items() if turn > done.get(block, 0)}
        return {block: entry for block in sorted(open_ones) if (entry := _parse(open_ones[block]))}

    def refresh(self) -> None:
        """Reads what was written since by any process."""
        with self._lock:
            for path in sorted(self.folder.glob("*.jsonl")):
                self._read(path, self._failures if path.name.endswith(FAILED) else self._lines)

    def _read(self, path: Path, known: dict[int, tuple[int, bytes]]) -> None:
        with path.open("rb") as file:
            file.seek(self._read_to.get(path, 0))
            for line in file:
                if not line.endswith(b"\n"):  # it is being written, or was cut off by a kill
                    return
                self._read_to[path] = self._read_to.get(path, 0) + len(line)
                if match := LINE.fullmatch(line.rstrip()):
                    _keep(known, int(match[1]), int(match[2]), match[0])

    def _write(self, block: int, suffix: str, facts: Mapping[str, Any]) -> None:
        path = self.folder / f"{self._name}{suffix}"
        with self._lock:
            turn = self._lines[block][0] + 1 if block in self._lines else 1
            entry = {"block": int(block), "turn": turn, "time": _now(), "host": platform.node(), **facts}
            line = json.dumps(entry, allow_nan=False).encode()
            try:
                with path.open("a+b", buffering=0) as file:
                    if file.tell():  # a line that was cut off must not swallow this one
                        file.seek(-1, os.SEEK_END)
                        line = line if file.read() == b"\n" else b"\n" + line
                    content = line + b"\n"
                    while content:
                        content = content[file.write(content) :]
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error
            _keep(self._failures if suffix == FAILED else self._lines, int(block), turn, line.lstrip())


def read_head(folder: Path) -> Mapping[str, Any] | None:
    """Returns what a ledger was begun with: `fingerprint`, `chosen`, `neurotome`, `begun`; None where none was begun.

    Raises:
        RunError: It is damaged, or has another format.
    """
    path = folder / HEAD
    if not path.exists():
        return None
    remedy = "Restore it, or begin anew with --overwrite."
    head = read_json(path, RunError, remedy)
    if head.get("format") != FORMAT:
        raise RunError(
            f"{path}: found format {show(head.get('format'))}, of neurotome {show(head.get('neurotome'))}; neurotome "
            f"{metadata.version('neurotome')} reads format {FORMAT}. Go on with that version, or begin "
            "anew with --overwrite."
        )
    if not all(isinstance(head.get(key), dict) for key in ("fingerprint", "chosen")):
        raise RunError(f"{path}: found no fingerprint and choices; expected both. {remedy}")
    return head


def name_writer() -> str:
    """Returns a name for this process's files in a ledger that no other process has, on any machine."""
    return f"{platform.node()}-{os.getpid()}-{secrets.token_hex(4)}"


def _compare(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Returns the keys that differ with both values, "" where none does."""
    before, now = flatten(found), flatten(wanted)
    keys = [key for key in sorted(before | now) if before.get(key) != now.get(key)]
    listed = [f"{key} (found {_say(before, key)}, wanted {_say(now, key)})" for key in keys[:SHOWN]]
    return "; ".join(listed) + (f"; ... ({len(keys)} differ)" if len(keys) > SHOWN else "")


def _say(values: Mapping[str, Any], key: str) -> str:
    return show(values[key]) if key in values else "nothing"


def _keep(known: dict[int, tuple[int, bytes]], block: int, turn: int, line: bytes) -> None:
    if block not in known or turn >= known[block][0]:
        known[block] = (turn, line)


def _parse(line: bytes) -> Mapping[str, Any] | None:
    """Returns what a line says of a block, None for one that is undone or damaged, of which nothing is known then."""
    try:
        entry: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    if "undone" in entry:
        return None
    if "counts" in entry:
        entry["counts"] = {int(stored_id): count for stored_id, count in entry["counts"].items()}
    return entry


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
