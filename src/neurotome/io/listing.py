"""Listing what is stored of a Zarr or HDF5 array, without reading it.

A chunk here is what one file of a Zarr array holds (a shard, where there are some) or one chunk of an HDF5 array. An absent
one means the fill value, by the specification of Zarr (https://zarr-specs.readthedocs.io) and of HDF5.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.io.axes import Layout
from neurotome.io.chunks import ChunkMap
from neurotome.io.lazy_array import Place

MOST_CHUNKS = 1 << 28
"""A listing of more chunks would itself fill the memory (one byte each): 70 teravoxel in chunks of 64 x 64 x 64."""


def list_zarr_chunks(array: Any, layout: Layout) -> ChunkMap | None:
    """Lists the files of a Zarr array, version 2 or 3, on a disk; shards that exist count as stored as a whole.

    Folders that do not exist are not entered, so that a sparse volume is listed as fast as what it holds.
    """
    from zarr.storage import LocalStore

    steps = array.shards or array.chunks
    plan = _plan_grid(layout, steps)
    if plan is None or not isinstance(array.store, LocalStore):
        return None
    folder, prefix = Path(array.store.root) / array.path, ""
    if array.metadata.zarr_format == 2:
        separator = array.metadata.dimension_separator
    else:
        encoding = array.metadata.chunk_key_encoding
        separator, prefix = encoding.separator, "c" if encoding.name == "default" else ""
    stored = np.zeros([len(span) for span in plan], bool)
    if separator == "/":
        _mark_nested(str(folder / prefix), stored, plan)
    else:
        _mark_flat(folder, f"{prefix}{separator}" if prefix else "", separator, stored, plan)
    return _to_map(layout, steps, stored, array.fill_value)


def find_damaged_chunk(array: Any, layout: Layout, place: Place) -> Path | None:
    """Returns the file of the first chunk within a place of a Zarr array that exists and cannot be read."""
    from zarr.storage import LocalStore

    if not isinstance(array.store, LocalStore):
        return None
    asked, steps = dict(zip("zyx", place, strict=True)), array.shards or array.chunks
    spans = []
    for axis, step in zip(layout.axes, steps, strict=True):
        part = asked.get(axis, slice(layout.fixed.get(axis, 0), layout.fixed.get(axis, 0) + 1))
        spans.append(range(part.start // step, -(-part.stop // step)))
    for index in product(*spans):
        file: Path = Path(array.store.root) / array.path / array.metadata.encode_chunk_key(index)
        if file.exists():
            try:
                array[tuple(slice(i * step, (i + 1) * step) for i, step in zip(index, steps, strict=True))]
            except Exception:  # whatever a decoder raises
                return file
    return None


def list_hdf5_chunks(dataset: Any, layout: Layout) -> ChunkMap | None:
    """Lists the chunks of an h5py dataset; None if it is not cut into chunks."""
    if dataset.chunks is None or not hasattr(dataset.id, "chunk_iter"):
        return None
    plan = _plan_grid(layout, dataset.chunks)
    if plan is None:
        return None
    stored = np.zeros([len(span) for span in plan], bool)

    def mark(chunk: Any) -> None:
        place = [start // step for start, step in zip(chunk.chunk_offset, dataset.chunks, strict=True)]
        if all(i in span for i, span in zip(place, plan, strict=True)):
            stored[tuple(i - span.start for i, span in zip(place, plan, strict=True))] = True

    dataset.id.chunk_iter(mark)
    return _to_map(layout, dataset.chunks, stored, dataset.fillvalue)


def find_chunk_zyx(layout: Layout, steps: Sequence[int]) -> tuple[int, int, int]:
    """Returns the edges (z, y, x) of the chunks of an array whose axes are in another order, or more or less than three."""
    z, y, x = (int(steps[layout.axes.index(axis)]) if axis in layout.axes else 1 for axis in "zyx")
    return z, y, x


def _plan_grid(layout: Layout, steps: Sequence[int]) -> list[range] | None:
    """Returns the numbers of the chunks that are asked for along every axis; None if there are too many to list."""
    plan = []
    for axis, size, step in zip(layout.axes, layout.shape, steps, strict=True):
        first = layout.fixed[axis] // step if axis in layout.fixed else 0
        plan.append(range(first, first + 1 if axis in layout.fixed else -(-size // step)))
    return plan if math.prod(len(span) for span in plan) <= MOST_CHUNKS else None


def _mark_nested(folder: str, stored: NDArray[np.bool_], plan: Sequence[range]) -> None:
    """Marks the chunks whose files lie in folders within folders, one for each axis."""
    try:
        with os.scandir(folder) as entries:
            numbers = [int(entry.name) for entry in entries if entry.name.isdecimal()]
    except (FileNotFoundError, NotADirectoryError):
        return
    numbers = [number for number in numbers if number in plan[0]]
    if stored.ndim == 1:
        stored[np.array(numbers, int) - plan[0].start] = True
        return
    for number in numbers:
        _mark_nested(f"{folder}/{number}", stored[number - plan[0].start], plan[1:])


def _mark_flat(folder: Path, prefix: str, separator: str, stored: NDArray[np.bool_], plan: Sequence[range]) -> None:
    """Marks the chunks whose files lie all in one folder, the numbers in their names."""
    with os.scandir(folder) as entries:
        for entry in entries:
            parts = entry.name.removeprefix(prefix).split(separator)
            if len(parts) == len(plan) and all(part.isdecimal() for part in parts):
                place = [int(part) - span.start for part, span in zip(parts, plan, strict=True)]
                if all(0 <= i < len(span) for i, span in zip(place, plan, strict=True)):
                    stored[tuple(place)] = True


def _to_map(layout: Layout, steps: Sequence[int], stored: NDArray[np.bool_], fill: Any) -> ChunkMap:
    chosen = stored[tuple(0 if axis in layout.fixed else slice(None) for axis in layout.axes)]
    kept = [axis for axis in layout.axes if axis not in layout.fixed]
    chosen = chosen.transpose([kept.index(axis) for axis in "zyx" if axis in kept])
    chosen = chosen if "z" in kept else chosen[None]
    return ChunkMap(layout.shape_zyx, find_chunk_zyx(layout, steps), chosen, float(fill or 0))
