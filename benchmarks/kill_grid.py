"""A grid that is killed at random moments ends with the table of an undisturbed one.

Three runs (two networks by steps, a pixel classifier) on tiny images, on the CPU. The whole grid is run once; then again
with its process killed (SIGKILL) after random times, and gone on with by the same command each time. All columns of the
tables but times and memory are compared. Run: python benchmarks/kill_grid.py [--kills 5] [--seed 0] [--epochs 30]
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

CLOCK = ("seconds", "peak_memory_bytes", "scoring_mpixel_per_s")


def write_data(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for name in "abcd":
        labels = np.zeros((64, 64), np.uint8)
        labels[10:40, 8:30] = 1
        grey = np.array([90, 160])[labels] + rng.normal(0, 25, labels.shape)
        Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{name}.png")
        Image.fromarray(labels).save(folder / "labels" / f"{name}.png")
    splits = {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
    (folder / "dataset.yaml").write_text(yaml.safe_dump({"name": "toy", "classes": ["ground", "vessel"], "splits": splits}))
    return folder


def write_grid(path: Path, epochs: int) -> Path:
    network = {
        "label": "{decoder}",
        "model.decoder": ["linknet", "unet"],
        "model.encoder": "mobilenetv3_small_050",
        "model.encoder_depth": 3,
        "sample": {"patch": 32, "batch": 4},
        "train": {"epochs": epochs, "steps_per_epoch": 4, "device": "cpu"},
    }
    forest = {"kind": "pixels", "learner": "rf", "features": "identity"}
    path.write_text(yaml.safe_dump({"runs": [network, forest]}))
    return path


def start(grid: Path, data: Path, out: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "neurotome", "grid", str(grid), "--data", str(data), "--out", str(out)]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file)


def read_table(out: Path) -> list[dict[str, str]]:
    with (out / "summary.csv").open() as file:
        return [{key: value for key, value in row.items() if key not in CLOCK} for row in csv.DictReader(file)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data, grid, log = write_data(folder / "data"), write_grid(folder / "grid.yaml", options.epochs), folder / "log"
        began = time.monotonic()
        assert start(grid, data, folder / "whole", log).wait() == 0, log.read_text()
        whole = time.monotonic() - began
        print(f"undisturbed: {whole:.0f} s", flush=True)
        killed = 0
        while killed < options.kills:
            process = start(grid, data, folder / "killed", log)
            # a process needs some time to import before it works; kills before that would prove little
            wait = rng.uniform(0.2, 0.7) * whole
            try:
                assert process.wait(wait) == 0, log.read_text()
                print("it was done before it could be killed: give more --epochs", flush=True)
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                killed += 1
                steps = [json.loads(p.read_text())["steps"] for p in folder.glob("killed/runs/default/*/*/training.json")]
                print(f"killed after {wait:.1f} s; steps of the networks so far: {steps}", flush=True)
        assert start(grid, data, folder / "killed", log).wait() == 0, log.read_text()
        expected, found = read_table(folder / "whole"), read_table(folder / "killed")
        differing = sum(a != b for a, b in zip(expected, found, strict=True))
        print(f"killed {killed} times: {len(found)} rows, {differing} of them differ")
    sys.exit(differing > 0)


if __name__ == "__main__":
    main()
