"""Whether an image is still what it was: while it is read, and when an interrupted job goes on.

A teravoxel is up to 10^6 files, so that neither listing nor reading them all is an answer: a sample of stated size is looked
at, always the same one. What changed outside of it is not noticed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neurotome.errors import ImageError
from neurotome.io.files import list_images, split_inner
from neurotome.io.lazy_array import name_failures
from neurotome.io.ome_zarr import is_zarr

FILES = 4096
"""So many files of an image are looked at for their size and time."""

READ_FILES = 64
"""Of so many of these, the beginning and the end are read."""

PIECE = 1 << 16  # bytes that are read at once
PIECES = 64  # of an image that is one file

GOLDEN = (math.sqrt(5) - 1) / 2  # whose multiples fall evenly into 0..1, however many are taken


def identify_input(path: str | Path) -> Mapping[str, Any]:
    """Returns what an image is: JSON that changes when it does.

    Args:
        path: A file, also `file.h5:/inner`, a folder of slices, or a Zarr array or OME-Zarr. Of an OME-Zarr only the full
            resolution counts, so that labels and levels may be added to it.

    Returns:
        `name`; `kind` ("file", "folder", "zarr"); `files` that were found among those looked at, and their `bytes`;
        `sha256` of shape and names, of the sizes of these files and of a sample of their content; `sampled`, a sentence
        that says which; `modified`, when the newest was written, in nanoseconds.

    Raises:
        ImageError: It cannot be read.
    """
    outer, inner = split_inner(Path(path))
    with name_failures(Path(path)):
        kind, described, files, total = _find_files(outer)
        digest = hashlib.sha256(json.dumps([inner, described]).encode())
        found, modified = [], 0
        for number, file in files:
            try:
                status = file.stat()
            except FileNotFoundError:  # a chunk of nothing but the fill value
                continue
            found.append((file, status.st_size))
            modified = max(modified, status.st_mtime_ns)
            digest.update(f"{number} {status.st_size}\n".encode())
        pieces = PIECES if kind == "file" else 2
        read = found[:: math.ceil(len(found) / READ_FILES) or 1]
        for file, size in read:
            _read_sample(file, size, pieces, digest)
    return {
        "name": Path(path).name,
        "kind": kind,
        "files": len(found),
        "bytes": sum(size for _, size in found),
        "sha256": digest.hexdigest(),
        "sampled": f"{len(files)} of {total} files were looked for, and up to {pieces} x 64 KiB read of {len(read)}",
        "modified": modified,
    }


def compare_by(identity: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns what an image is compared by when a job goes on: the part of its identity that outlives moves and touches."""
    return {key: identity[key] for key in ("kind", "files", "bytes", "sha256")}


def check_unchanged(path: str | Path, identity: Mapping[str, Any]) -> None:
    """Checks that an image is what it was when the running job began, also by the times of its files.

    Raises:
        ImageError: It has changed; what did is named.
    """
    try:
        now = identify_input(path)
    except ImageError as error:
        raise ImageError(f"{error} It could be read when the job began. {_say_kept()}") from error
    changed = [
        f"{what} ({identity[key]} before, {now[key]} now)"
        for key, what in (("kind", "its kind"), ("files", "the number of files"), ("bytes", "their bytes"))
        if now[key] != identity[key]
    ]
    if now["modified"] > identity["modified"]:
        changed.append(f"a file was written ({_name_newest(Path(path))})")
    elif now["sha256"] != identity["sha256"] and not changed:
        changed.append("its content")
    if changed:
        raise ImageError(f"{path}: changed while it was read: {', '.join(changed)}. {_say_kept()}")


def _say_kept() -> str:
    return (
        "The blocks done until now are kept, but may mix what it was and what it is. Once nothing writes there any more, "
        "give the same command to go on if the voxels are the same, or begin anew with --overwrite."
    )


def _find_files(path: Path) -> tuple[str, list[Any], list[tuple[int, Path]], int]:
    """Returns the kind, what describes the image without its files, those to look at with their numbers, and of how many."""
    if path.is_file():
        return "file", [], [(0, path)], 1
    if not is_zarr(path):
        slices = [image for image in list_images(path) if image.suffix.lower() != ".zarr"]
        names = hashlib.sha256("\n".join(image.name for image in slices).encode(errors="replace")).hexdigest()
        return "folder", [names], [(number, slices[number]) for number in _spread(len(slices))], len(slices)
    import zarr

    node: Any = zarr.open(str(path), mode="r")
    place = path
    if not isinstance(node, zarr.Array):
        attributes: Any = dict(node.attrs)
        level = attributes.get("ome", attributes)["multiscales"][0]["datasets"][0]["path"]
        node, place = node[level], path / level
    edges = node.shards or node.chunks
    counts = [-(-size // edge) for size, edge in zip(node.shape, edges, strict=True)]
    files = [
        (number, place / node.metadata.encode_chunk_key(tuple(int(i) for i in np.unravel_index(number, counts))))
        for number in _spread(math.prod(counts))
    ]
    described = [list(node.shape), str(node.dtype), list(edges), str(node.fill_value)]
    return "zarr", described, files, math.prod(counts)


def _spread(count: int) -> Sequence[int]:
    """Returns the numbers below `count` that are looked at, sorted: all, or `FILES` spread evenly."""
    if count <= FILES:
        return range(count)
    return sorted({int(count * (number * GOLDEN % 1.0)) for number in range(FILES)})


def _read_sample(path: Path, size: int, pieces: int, digest: Any) -> None:
    with path.open("rb") as file:
        if size <= pieces * PIECE:
            digest.update(file.read())
            return
        for number in range(pieces):
            file.seek((size - PIECE) * number // (pieces - 1))
            digest.update(file.read(PIECE))


def _name_newest(path: Path) -> str:
    outer, _ = split_inner(path)
    files = [file for _, file in _find_files(outer)[2] if file.is_file()]
    newest = max(files, key=lambda file: file.stat().st_mtime_ns)
    return str(newest.relative_to(outer)) if outer.is_dir() else outer.name
