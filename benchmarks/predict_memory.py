"""Peak memory of predict for stacks of 20 and of 400 slices: it must not grow with the number of slices.

A pixel classifier (logistic regression on grey values) labels TIFF stacks of 1024 x 1024 pixels, 16 bits, into TIFF, with
overlay and confidence, each in a process of its own. Run: python benchmarks/predict_memory.py [--edge N]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile

from neurotome.io import create_image

ALLOWED = 1.10
SLICES = (20, 400)

MEASURED = """
import sys
from neurotome import predict
from neurotome.inference.predict_settings import PredictSettings
predict(*sys.argv[1:4], settings=PredictSettings(overlay=True, confidence=True, device="cpu", existing="replace"))
from neurotome.runs.environment import measure_peak_memory
print(measure_peak_memory())
"""


def make_slices(count: int, edge: int):
    y, x = np.mgrid[:edge, :edge]
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 2000, (edge, edge), np.uint16)
    for z in range(count):
        disc = (y - edge / 2) ** 2 + (x - edge / 2 - z) ** 2 < (edge / 4) ** 2
        yield np.where(disc, 9000, 20000).astype(np.uint16) + np.roll(noise, 7 * z, 1)


def train_model(folder: Path) -> Path:
    """A baseline on two small slices."""
    import yaml

    data = folder / "data"
    for kind in ("images", "labels"):
        (data / kind).mkdir(parents=True)
    for name, plane in zip("ab", make_slices(2, 128), strict=True):
        tifffile.imwrite(data / "images" / f"{name}.tif", plane)
        tifffile.imwrite(data / "labels" / f"{name}.tif", (plane < 15000).astype(np.uint8))
    content = {"name": "discs", "classes": {0: "tissue", 1: "disc"}, "splits": {"train": ["a"], "test": ["b"]}}
    (data / "dataset.yaml").write_text(yaml.safe_dump(content))
    command = ["baseline", data, "--out", folder / "run", "--learner", "lr", "--features", "identity"]
    subprocess.run([sys.executable, "-m", "neurotome", *map(str, command)], check=True)
    return folder / "run"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--edge", type=int, default=1024)
    parser.add_argument("--slices", type=int, nargs=2, default=SLICES)
    options = parser.parse_args()
    peaks = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = train_model(folder)
        for count in options.slices:
            with create_image(folder / "stack.tif", (count, options.edge, options.edge), np.uint16) as sink:
                for z, plane in enumerate(make_slices(count, options.edge)):
                    sink.write((slice(z, z + 1), slice(None), slice(None)), plane[None])
            started = time.perf_counter()
            command = [sys.executable, "-c", MEASURED, model, folder / "stack.tif", folder / "labels.tif"]
            output = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True).stdout
            peaks.append(int(output.split()[-1]))
            seconds = time.perf_counter() - started
            print(
                f"{count} slices of {options.edge} x {options.edge}: peak {peaks[-1] / 1e6:.0f} MB, {seconds:.0f} s",
                flush=True,
            )
    print(f"ratio {peaks[1] / peaks[0]:.3f}; allowed {ALLOWED}")
    sys.exit(peaks[1] > ALLOWED * peaks[0])


if __name__ == "__main__":
    main()
