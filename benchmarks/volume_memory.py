"""Peak memory of `predict` into an OME-Zarr at 1, 4 and 16 times the volume: it must not grow with the volume.

    python benchmarks/volume_memory.py
    python benchmarks/volume_memory.py --model microct-base --edge 1024 --depth 120 --times 1 4 16 --max-memory 2GB
    python benchmarks/volume_memory.py --voxels 2e9 --air 0.98 --model microct-base --max-memory 2GB

Volumes are Zarr arrays of smooth noise in chunks of 64 x 64 x 64, wider in y and x from one to the next, or with
`--voxels` one cube. Where `--air` says so, that share of the chunks is not stored. Each volume is predicted in a
process of its own, whose peak (ru_maxrss) is printed beside what was promised before the run. Blocks grow with a
volume up to the memory that is given, or to about 64 Mvoxel where that is much: compare volumes for which the same
binds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import zarr

ALLOWED = 1.10

EDGE = 64


def make_volume(path: Path, shape: tuple[int, int, int], air: float) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 12, (EDGE, EDGE, EDGE))
    z, y, x = np.mgrid[:EDGE, :EDGE, :EDGE]
    ball = (z - 32) ** 2 + (y - 32) ** 2 + (x - 32) ** 2 < 15**2
    chunks = [
        (110 + np.roll(noise, 7 * i, i % 3) - 60 * np.roll(ball, 5 * i, 2)).clip(1, 255).astype(np.uint8) for i in range(8)
    ]
    array = zarr.create_array(path, shape=shape, chunks=(EDGE,) * 3, dtype="uint8", fill_value=0)
    for index in np.ndindex(*(-(-size // EDGE) for size in shape)):
        if rng.random() < air:
            continue
        place = tuple(slice(i * EDGE, min((i + 1) * EDGE, size)) for i, size in zip(index, shape, strict=True))
        cut = tuple(slice(0, part.stop - part.start) for part in place)
        array[place] = chunks[sum(index) % len(chunks)][cut]


def make_model(folder: Path) -> Path:
    """A small network with random weights: memory does not depend on them."""
    import torch

    from neurotome.classes import ClassSet
    from neurotome.models.model_folder import save_model
    from neurotome.models.net import measure_halo
    from neurotome.models.net_predictor import NetPredictor
    from neurotome.models.networks import ModelSettings, build_network
    from neurotome.normalize import Normalization

    torch.manual_seed(0)
    settings = ModelSettings(decoder="linknet", encoder="resnet18", encoder_depth=3, in_channels=1)
    net = build_network(settings, 3)
    halo, bounded = measure_halo(net, 1)
    classes = ClassSet(("background", "vessel", "cell"))
    save_model(NetPredictor(net, settings, classes, Normalization("dataset", 110, 20, "uint8"), halo, bounded), folder)
    return folder


def predict(model: str, image: Path, out: Path, options: list[str]) -> tuple[int, float, dict[str, float], str]:
    """Returns peak bytes, seconds, what the report says of the job, and the sentence about memory."""
    command = [sys.executable, "-m", "neurotome", "predict", model, str(image), str(out), *options]
    began = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        sys.exit(said)
    promised = re.search(r"A worker takes at most (.*) of memory", said)
    report = json.loads((out / "zarr.json").read_text())["attributes"]["neurotome"]["report"]
    return used.ru_maxrss * 1024, seconds, report, promised[1] if promised else "?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a small random network if not given")
    parser.add_argument("--edge", type=int, default=128, help="y and x of the smallest volume")
    parser.add_argument("--depth", type=int, default=32, help="z of every volume")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--voxels", type=float, default=0, help="one cube of about so many voxels instead")
    parser.add_argument("--air", type=float, default=0.0, help="share of the chunks that are not stored")
    parser.add_argument("--tile", default="64", help="edge of a tile, or auto")
    parser.add_argument("--max-memory", default="650MB", help="so little that it binds the smallest volume too")
    parser.add_argument("--back-end", default="torch")
    parser.add_argument("--options", nargs="*", default=[], help="more options of predict")
    given = parser.parse_args()
    options = ["--device", "cpu", "--tile", given.tile, "--max-memory", given.max_memory, "--back-end", given.back_end]
    edge = round(given.voxels ** (1 / 3))
    shapes = [(edge, edge, edge)] if edge else []
    for times in [] if edge else given.times:
        side = round(given.edge * math.sqrt(times))
        shapes.append((given.depth, side, side))
    peaks = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = given.model or str(make_model(folder / "model"))
        for shape in shapes:
            image, out = folder / "image.zarr", folder / "labels.zarr"
            make_volume(image, shape, given.air)
            peak, seconds, report, promised = predict(model, image, out, [*options, *given.options])
            peaks.append(peak)
            size, skipped = " x ".join(map(str, shape)), report["not_predicted_share"]
            print(
                f"{size} ({math.prod(shape) / 1e6:.1f} Mvoxel, {skipped:.1%} skipped): peak {peak / 1e6:.0f} MB, "
                f"promised at most {promised}; {seconds:.0f} s, {report['job']['mvoxel_per_s']} Mvoxel/s",
                flush=True,
            )
            for path in (image, out):
                shutil.rmtree(path)
    ratio = max(peaks) / min(peaks)
    print(f"largest peak over smallest: {ratio:.3f} (allowed {ALLOWED})")
    sys.exit(ratio > ALLOWED)


if __name__ == "__main__":
    main()
