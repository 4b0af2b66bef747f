"""How long a sparse volume of 1 teravoxel is listed and planned: 10,000 voxels along every axis, few of its chunks stored.

A Zarr is written of which only the chunks of a ball exist (3 % of 3.9 million), each the same real file;
then it is opened, listed, sampled for its grey scale, and its tiles are selected, as `predict` does before it computes.
Run: python benchmarks/sparse_plan.py [--edge N] [--chunk N] [--share S]
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from neurotome.blocks import Grid
from neurotome.inference.selection import select_tiles
from neurotome.io import open_volume
from neurotome.io.chunks import list_chunks
from neurotome.normalize import Normalization
from neurotome.runs.environment import measure_peak_memory

MOST_SECONDS = 60


def write_ball(path: Path, edge: int, chunk: int, share: float) -> int:
    """Writes a Zarr in which the chunks within a ball, `share` of the whole, are stored; returns how many."""
    array = zarr.create_array(path, shape=(edge,) * 3, chunks=(chunk,) * 3, dtype="uint8", fill_value=0)
    count = -(-edge // chunk)
    z, y, x = np.ogrid[:count, :count, :count]
    radius = count * (share * 3 / (4 * np.pi)) ** (1 / 3)
    inside = (z - count / 2 + 0.5) ** 2 + (y - count / 2 + 0.5) ** 2 + (x - count / 2 + 0.5) ** 2 <= radius**2
    places = np.argwhere(inside).tolist()
    middle = places[len(places) // 2]
    grey = np.random.default_rng(0).normal(150, 20, (chunk,) * 3).clip(1, 255).astype(np.uint8)
    array.blocks[tuple(middle)] = grey
    model = path / array.metadata.encode_chunk_key(tuple(middle))
    for number, place in enumerate(places):
        file = path / array.metadata.encode_chunk_key(tuple(place))
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            if number % 30_000 == 0:  # a file can have so many names, and not many more
                source = file
                shutil.copyfile(model, file)
            else:
                os.link(source, file)
    return len(places)


def main() -> None:
    """Prints a row for each step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edge", type=int, default=10_000)
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--share", type=float, default=0.03)
    asked = parser.parse_args()
    seconds: dict[str, float] = {}

    def take_time(step: str, function: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = function()
        seconds[step] = time.perf_counter() - start
        print(f"{step:32} {seconds[step]:8.2f} s", flush=True)
        return result

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ball.zarr"
        stored = write_ball(path, asked.edge, asked.chunk, asked.share)
        print(f"{asked.edge}^3 voxels, chunks of {asked.chunk}^3, {stored} of {(-(-asked.edge // asked.chunk)) ** 3} stored")
        volume = take_time("open (lists the chunks)", lambda: open_volume(path))
        chunks = take_time("list again (remembered)", lambda: list_chunks(volume.data))
        scale = take_time("measure the grey scale", lambda: Normalization("image", 1, 1, "uint8").scale_for(volume))
        for tile, block in (((8, 512, 512), (64, 512, 512)), ((8, 128, 128), (64, 512, 512))):
            grid = Grid((asked.edge,) * 3, tile, block)
            found = take_time(f"select of {grid.count_tiles()} tiles", lambda grid=grid: select_tiles(grid, chunks=chunks))
            print(*found.notes, f"{len(found.blocks)} of {len(grid)} blocks are left.", sep="\n  ")
    print(f"scale {scale.mean:.1f} +- {scale.std:.1f}, from {scale.source}")
    total = sum(seconds.values())
    print(f"in all {total:.1f} s, of at most {MOST_SECONDS}; peak memory {measure_peak_memory() / 1e6:.0f} MB")
    raise SystemExit(total > MOST_SECONDS)


if __name__ == "__main__":
    main()
