"""What seeing volumes brings at equal time: networks of slices, of three neighbouring slices, and of volumes.

    OMP_NUM_THREADS=1 python benchmarks/three_dimensions.py --seconds 150 --seeds 0 1

Every network trains for the same processor seconds (those of the process, so that other work on the machine changes
little) on the same phantom volumes, in steps of as many voxels, and labels the same test volumes of other seeds. How many
steps that is is found beforehand, by the difference between a few steps and some more. The weights of the last step are
kept; nothing is validated.
What is done is kept in OUT, a file for each network and seed; delete it after a change of training.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path

from printed_tables import show
from training_jobs import measure_step

from neurotome.atomic import write_json
from neurotome.datasets.base import Dataset
from neurotome.datasets.phantom.make import PhantomSettings, make_phantom
from neurotome.experiments.evaluate import score_split
from neurotome.experiments.run_network import train_and_score
from neurotome.load import load_predictor
from neurotome.models.networks import ModelSettings
from neurotome.training.recipe import Recipe, TrainSettings
from neurotome.training.sampler import SampleSettings

EDGE, DEPTH, VOLUMES = 64, 8, 2
SLICES = SampleSettings(patch=EDGE, batch=VOLUMES * DEPTH)
ARMS = {
    "2D": (ModelSettings(encoder_depth=3), SLICES),
    "2D, 3 slices": (ModelSettings(encoder_depth=3, in_channels=3), SLICES),
    "3D": (ModelSettings(encoder_depth=3, dimensions=3), SampleSettings(patch=EDGE, depth=DEPTH, batch=VOLUMES)),
    "3D, smaller patches": (
        ModelSettings(encoder_depth=3, dimensions=3),
        SampleSettings(patch=EDGE // 2, depth=4, batch=16),
    ),
    "2D, then 3D": (ModelSettings(dimensions=3), SampleSettings(patch=EDGE, depth=DEPTH, batch=VOLUMES)),
}
FIRST = 2 / 3
"""Of the time of "2D, then 3D" is for the network of slices, which that of volumes then begins as; its statistics stay."""
EPOCH = 10  # steps
TEST_SEEDS = (101, 102)


def make_data() -> Dataset:
    made = make_phantom(PhantomSettings(seed=100, train_depth=24, val_depth=1, test_depth=1))
    tests = [make_phantom(PhantomSettings(seed=seed, train_depth=1, val_depth=1, test_depth=8)) for seed in TEST_SEEDS]
    named = [
        dataclasses.replace(cutout, volume=dataclasses.replace(cutout.volume, name=f"{cutout.name}_{number}"))
        for number, test in enumerate(tests)
        for cutout in test.split("test")
    ]
    return dataclasses.replace(made, splits={"train": made.split("train"), "test": tuple(named)})


def make_recipe(arm: str, seed: int, epochs: int, init: str = "") -> Recipe:
    model, sample = ARMS[arm]
    train = TrainSettings(
        epochs=epochs, steps_per_epoch=EPOCH, keep="last", checkpoint_every="", seed=seed, device="cpu",
        freeze_statistics=bool(init),
    )  # fmt: skip
    return Recipe(model=model, sample=sample, train=train, init=init)


def train_for(data: Dataset, arm: str, seed: int, seconds: float, folder: Path, init: str = "") -> tuple[Path, int, float]:
    """Trains for so many processor seconds; returns the run's folder, the steps, and the seconds that it took."""
    step = measure_step(data, make_recipe(arm, 0, 1, init))
    epochs = max(1, round(seconds / step / EPOCH))
    begun = time.process_time()
    run = train_and_score(data, "phantom", folder, make_recipe(arm, seed, epochs, init), splits=())
    return run.folder, epochs * EPOCH, time.process_time() - begun


def run_arm(data: Dataset, arm: str, seed: int, seconds: float) -> dict[str, float | int | str]:
    with tempfile.TemporaryDirectory() as folder:
        init, first, before = "", 0, 0.0
        if arm == "2D, then 3D":
            slices, first, before = train_for(data, "2D", seed, FIRST * seconds, Path(folder) / "slices")
            init = str(slices)
        run, steps, spent = train_for(data, arm, seed, seconds - FIRST * seconds * bool(init), Path(folder) / "run", init)
        begun = time.process_time()
        scores = score_split(load_predictor(run, "cpu"), data, "test")
    f1 = {name: scores["per_class"][name]["f1"] for name in scores["classes"]}
    predicting = time.process_time() - begun
    cost = {"arm": arm, "seed": seed, "steps": first + steps, "training": before + spent, "predicting": predicting}
    return cost | f1 | {"macro": scores["macro"]["f1"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=150, help="processor seconds of a training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path("runs/three_dimensions"))
    asked = parser.parse_args()
    data, rows = make_data(), []
    for seed in asked.seeds:
        for arm in asked.arms:
            path = asked.out / f"{arm.replace(', ', '_').replace(' ', '_')}-{seed}-{asked.seconds:g}.json"
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, run_arm(data, arm, seed, asked.seconds))
            found = json.loads(path.read_text())
            rows.append([f"{v:.3f}" if isinstance(v, float) else str(v) for v in found.values()])
    show("Equal processor seconds", list(found), rows)


if __name__ == "__main__":
    main()
