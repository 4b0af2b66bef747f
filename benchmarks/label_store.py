"""How fast labels are stored and read, beside zarr's own writer, and how fast levels are made and seams looked for.

Labels of four classes, blobs of about 20 voxels across, are written in shards of 64 x 1024 x 1024 voxels with chunks of
64^3; both writers compress alike and sync their files.
Run: python benchmarks/label_store.py [--slices N]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import scipy.ndimage
import zarr
from numpy.typing import NDArray

from neurotome.blocks import Grid
from neurotome.classes import ClassSet
from neurotome.inference.seams import measure_seams
from neurotome.io.label_store import LabelStore, create_label_store
from neurotome.io.pyramid import build_pyramid
from neurotome.io.zarr_store import synced_store

EDGE, DEPTH = 1024, 64
CLASSES = ClassSet(("background", "vessel", "cell", "axon"))


def make_labels() -> NDArray[np.uint8]:
    """Returns a block; its tissue repeats every 256 voxels, which no chunk notices."""
    noise = scipy.ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(DEPTH, 256, 256)).astype(np.float32), 3)
    return np.tile(np.digitize(noise, np.quantile(noise, (0.7, 0.85, 0.95))).astype(np.uint8), (1, 4, 4))


def measure(title: str, voxels: int, work: Callable[[], object]) -> None:
    """Prints the time that a thing takes on the clock, and that of all processors."""
    began, processor = time.perf_counter(), sum(os.times()[:2])
    work()
    seconds, busy = time.perf_counter() - began, sum(os.times()[:2]) - processor
    print(f"{title}: {seconds:.2f} s, {voxels / 1e6 / seconds:.0f} Mvoxel/s; {voxels / 1e6 / busy:.0f} per processor")


def run_here(build: Callable[[], Callable[[int], Any]], tasks: Iterable[int]) -> Iterator[Any]:
    """Does tasks one after the other, as an engine with one thread."""
    work = build()
    for task in tasks:
        work(task)
        yield SimpleNamespace(task=task, error=None)


def write_ours(store: LabelStore, block: NDArray[np.uint8]) -> None:
    """Writes every block."""
    grid = Grid(store.shape_zyx, store.block_zyx, store.block_zyx)
    for number in range(len(grid)):
        store.write_block(grid.place(number), block)


def write_with_zarr(store: LabelStore, root: Path, block: NDArray[np.uint8]) -> None:
    """Writes every block through an array with the same metadata."""
    like = zarr.open_array(store.path / "0", mode="r")
    array = zarr.create_array(
        synced_store(root),
        name="0",
        shape=like.shape,
        chunks=like.chunks,
        shards=like.shards,
        dtype=like.dtype,
        compressors=like.compressors,
        fill_value=255,
    )
    for start in range(0, like.shape[0], DEPTH):
        array[start : start + DEPTH] = block


def main() -> None:
    """Measures one after the other."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--slices", type=int, default=512)
    slices = parser.parse_args().slices // DEPTH * DEPTH
    shape, block = (slices, EDGE, EDGE), make_labels()
    voxels = slices * EDGE * EDGE
    with tempfile.TemporaryDirectory() as folder:
        store = create_label_store(Path(folder) / "labels.zarr", shape, classes=CLASSES, block_zyx=block.shape)
        measure("writing", voxels, lambda: write_ours(store, block))
        measure("writing with zarr", voxels, lambda: write_with_zarr(store, Path(folder) / "zarr.zarr", block))
        size = sum(path.stat().st_size for path in store.path.rglob("*") if path.is_file())
        print(f"size: {size / voxels:.1%} of the voxels")
        measure("reading", voxels, lambda: [store.read((slice(z, z + DEPTH), *WHOLE)) for z in range(0, slices, DEPTH)])
        measure("coarser levels", voxels, lambda: build_pyramid(store, run_here))
        measure("coarser levels that are there", voxels, lambda: build_pyramid(store, run_here))
        measure("seams", voxels, lambda: measure_seams(store.read, shape, (8, 512, 512)))


WHOLE = (slice(0, EDGE), slice(0, EDGE))

if __name__ == "__main__":
    main()
