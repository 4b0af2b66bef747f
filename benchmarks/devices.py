"""Whether processes that share every batch train faster than one with as many threads, on a CPU.

    OMP_NUM_THREADS=2 python benchmarks/devices.py --data ../shared/data/vnc_sstem

The same steps of the same training (UNet on ResNet18, 8 patches of 128 x 128) in one process with all threads of torch and
in as many processes with one thread each, in turn. A time is the median of the steps of a training; it takes in drawing,
augmentation and what the processes tell each other, and leaves out their start.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch

from neurotome.datasets import open_dataset
from neurotome.experiments.run_network import train_and_score
from neurotome.models.networks import ModelSettings
from neurotome.training.recipe import Recipe, TrainSettings
from neurotome.training.sampler import SampleSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    asked = parser.parse_args()
    dataset, threads = open_dataset(asked.data), torch.get_num_threads()
    seconds: dict[int, list[float]] = {1: [], threads: []}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(asked.repeats):
            for devices, found in seconds.items():
                train = TrainSettings(
                    epochs=1, steps_per_epoch=asked.steps, device="cpu", devices=devices, keep="last", val_slices=1
                )
                recipe = Recipe(ModelSettings("unet", "resnet18"), SampleSettings(patch=128, batch=8), train=train)
                done = train_and_score(dataset, asked.data, Path(folder, f"{devices}_{repeat}"), recipe, ())
                found.append(float((done.read_training() or {})["median_step_seconds"]))
                print(f"{devices} x {threads // devices} threads: {found[-1]:.3f} s a step", flush=True)
    print("| processes x threads | s a step, median (range) |\n|-|-|")
    for devices, found in seconds.items():
        spread = f"{min(found):.3f} to {max(found):.3f}"
        print(f"| {devices} x {threads // devices} | {statistics.median(found):.3f} ({spread}) |")
    ratios = [one / several for one, several in zip(*seconds.values(), strict=True)]
    print(f"\nspeed-up, pair by pair: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
