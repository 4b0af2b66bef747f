"""Whether two processes that share every batch train faster than one with as many threads, on a CPU.

    python benchmarks/devices.py [--repeats 3] [--threads 2]

The same steps of the same training (UNet on ResNet18, 8 patches of 128 x 128, synthetic tissue) in one process with all
threads and in as many processes with one thread each, in turn, each from a new process. A time is the median of the steps
of a training, drawing and augmentation of the batches included; the time to start the processes is not.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

STEPS = 16


def run(devices: int, folder: str) -> None:
    """Trains in this process and its helpers; prints the seconds of a step."""
    from neurotome.datasets.phantom.make import PhantomSettings, make_phantom
    from neurotome.experiments.run_network import train_and_score
    from neurotome.models.networks import ModelSettings
    from neurotome.training.recipe import Recipe, TrainSettings
    from neurotome.training.sampler import SampleSettings

    train = TrainSettings(epochs=1, steps_per_epoch=STEPS, device="cpu", devices=devices, val_slices=1)
    recipe = Recipe(ModelSettings("unet", "resnet18"), SampleSettings(patch=128, batch=8), train=train)
    done = train_and_score(make_phantom(PhantomSettings()), "phantom", Path(folder), recipe, ())
    print(json.dumps((done.read_training() or {})["median_step_seconds"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--run", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.run:
        run(asked.run, asked.folder)
        return
    seconds: dict[int, list[float]] = {1: [], asked.threads: []}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(asked.repeats):
            for devices, found in seconds.items():
                command = [sys.executable, __file__, "--run", str(devices), "--folder", f"{folder}/{devices}_{repeat}"]
                threads = {**os.environ, "OMP_NUM_THREADS": str(asked.threads)}
                done = subprocess.run(command, env=threads, check=True, stdout=subprocess.PIPE, text=True)
                found.append(float(json.loads(done.stdout.splitlines()[-1])))
                print(f"{devices} of {asked.threads // devices} threads: {found[-1]:.3f} s a step", file=sys.stderr)
    print("| processes x threads | s a step, median (range) |\n|-|-|")
    for devices, found in seconds.items():
        spread = f"{min(found):.3f} to {max(found):.3f}"
        print(f"| {devices} x {asked.threads // devices} | {statistics.median(found):.3f} ({spread}) |")
    ratios = [one / several for one, several in zip(*seconds.values(), strict=True)]
    print(f"\nspeed-up, pair by pair: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
