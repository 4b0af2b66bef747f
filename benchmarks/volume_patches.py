"""What training waits for a volume: labels counted once, and patches read from chunks, densely labelled or in four slices.

Milliseconds of processor time of all threads, so that what else the machine does counts less; noise as in a scan, which
zstd hardly packs. Run: python benchmarks/volume_patches.py [--depth N] [--edge N]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
import zarr

from neurotome.datasets import open_dataset
from neurotome.io import write_labels
from neurotome.normalize import Normalization
from neurotome.training.sampler import PatchSampler, SampleSettings

CHUNKS = {"64 x 64 x 64": (64, 64, 64), "64 x 512 x 512": (64, 512, 512)}
STEPS = 10  # per row of a table, of 8 patches


def make_block() -> tuple[np.ndarray, np.ndarray]:
    """Returns grey values and labels of blobs, uint8, 64 x 512 x 512."""
    z, y, x = np.ogrid[:64, :512, :512]
    waves = np.sin(z / 9) + np.sin(y / 13 + z / 31) + np.sin(x / 17)
    labels = (waves > 0.8).astype(np.uint8) + (waves > 1.8).astype(np.uint8)
    noise = np.random.default_rng(0).normal(0, 9, labels.shape)
    return (110 - 35.0 * labels + noise).clip(0, 255).astype(np.uint8), labels


def write(path: Path, block: np.ndarray, shape: tuple[int, int, int], chunk: tuple[int, int, int]) -> None:
    array = zarr.create_array(path, shape=shape, chunks=chunk, dtype=np.uint8)
    for z in range(0, shape[0], 64):
        for y in range(0, shape[1], 512):
            for x in range(0, shape[2], 512):
                array[z : z + 64, y : y + 512, x : x + 512] = block


def measure(folder: Path) -> None:
    """Prints what a dataset in `folder` takes."""
    began = time.process_time()
    dataset = open_dataset(folder)
    voxels = dataset.split("train")[0].labels.size
    print(f"  opened, labels counted: {voxels / 1e6 / (time.process_time() - began):.0f} Mvoxel/s", flush=True)
    settings = SampleSettings(patch=256, batch=8)
    sampler = PatchSampler(dataset, settings, Normalization("dataset", 0.0, 1.0, "uint8"), 3, 0)
    shown = []
    for first in (0, STEPS, 5 * STEPS):
        began = time.process_time()
        for step in range(first, first + STEPS):
            sampler.draw(step)
        shown.append(f"{(time.process_time() - began) / STEPS / 8 * 1000:.1f}")
        for step in range(first + STEPS, 5 * STEPS if first == STEPS else 0):
            sampler.draw(step)
    steps = f"steps 0, {STEPS} and {5 * STEPS}"
    print(f"  ms per patch of 3 x 256 x 256 from {steps} on: {', '.join(shown)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=256)
    parser.add_argument("--edge", type=int, default=2048)
    parser.add_argument("--measure", type=Path)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        measure(arguments.measure)
        return
    shape = (arguments.depth // 64 * 64, *(arguments.edge // 512 * 512,) * 2)
    numbers = np.linspace(5, shape[0] - 5, 4).astype(int).tolist()
    grey, labels = make_block()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "labels.zarr", labels, shape, CHUNKS["64 x 64 x 64"])
        tile = np.tile(labels, (1, shape[1] // 512, shape[2] // 512))
        write_labels(folder / "slices.tif", tile[[z % 64 for z in numbers]])
        del tile
        for chunk_name, chunk in CHUNKS.items():
            write(folder / f"{chunk_name}.zarr", grey, shape, chunk)
            for listed in ({"labels": "labels.zarr"}, {"labels": "slices.tif", "z": numbers}):
                content = {"name": "v", "image": f"{chunk_name}.zarr", **listed}
                config = {"classes": ["a", "b", "c"], "volumes": [content], "splits": {"train": ["v"]}}
                (folder / "dataset.yaml").write_text(yaml.safe_dump(config))
                labelled = "labelled in 4 slices" if "z" in listed else "labelled everywhere"
                print(f"{' x '.join(map(str, shape))}, chunks {chunk_name}, {labelled}", flush=True)
                subprocess.run([sys.executable, __file__, "--measure", str(folder)], check=True)


if __name__ == "__main__":
    main()
