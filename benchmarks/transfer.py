"""From synthetic tissue to real microCT: a model on four real patches, without and with a few of them as training data.

    python benchmarks/transfer.py --data ../shared/data --model microct-base --out runs/transfer

Each patch is from another brain region. Leave one region out: a method sees 0, 1, 2 or 3 of the other three patches, and
predicts the one it has not seen; the four predictions are scored together, macro F1 over the classes present, pooled over
all pixels. Every number of patches is run `--repeats` times: with other choices of patches, or for all three with other
seeds. What is finished is kept, so the script goes on where it was stopped. The result is a table in Markdown.
"""

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

from neurotome import open_dataset
from neurotome.atomic import write_json
from neurotome.augment import AugmentSettings
from neurotome.datasets.base import Cutout, Dataset
from neurotome.documents import CONFIGS
from neurotome.inference.slices import predict_slices
from neurotome.models.model_folder import load_model
from neurotome.pixels.train import BaselineSettings, fit_baseline
from neurotome.predictor import Predictor
from neurotome.runs import Run
from neurotome.scoring import score_images
from neurotome.training.fit import fit
from neurotome.training.prepare import prepare, settle_recipe
from neurotome.training.recipe import Recipe, TrainSettings
from neurotome.training.sampler import SampleSettings

FINE_TUNE = CONFIGS / "fine_tune.yaml"


def read_recipe(model: str, seed: int) -> Recipe:
    asked = yaml.safe_load(FINE_TUNE.read_text())
    augment = {key: tuple(value) if isinstance(value, list) else value for key, value in asked["augment"].items()}
    return Recipe(
        sample=SampleSettings(**asked["sample"]),
        augment=AugmentSettings(**augment),
        train=TrainSettings(**{**asked["train"], "seed": seed}),
        init=model,
    )


def fit_network(dataset: Dataset, model: str, seed: int, run: Path) -> Predictor:
    if not dataset.splits["train"]:
        return load_model(Path(model))
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    fit(prepare(dataset, settle_recipe(dataset, read_recipe(model, seed))), Run(run))
    return load_model(run)


def choose(others: list[Cutout], number: int, repeat: int) -> tuple[Cutout, ...]:
    turned = others[repeat:] + others[:repeat]
    return tuple(turned[:number])


def leave_one_out(data: Path, method: str, model: str, number: int, repeat: int, out: Path) -> dict:
    path = out / f"{method}-{number}-{repeat}.json"
    if path.is_file():
        return json.loads(path.read_text())
    patches = open_dataset(data)
    cutouts = [c for cutouts in patches.splits.values() for c in cutouts]
    images = []
    for held_out in cutouts:
        others = [c for c in cutouts if c is not held_out]
        dataset = replace(patches, splits={"train": choose(others, number, repeat)})
        if method == "forest":
            predictor: Predictor = fit_baseline(dataset, BaselineSettings(seed=repeat))
        else:
            predictor = fit_network(dataset, model, repeat, out / "run")
        predicted = next(predict_slices(predictor, held_out.volume)).argmax(0)
        images.append((held_out.name, held_out.read_labels(0), predicted))
    found = score_images(patches.name, f"{method}, {number} patches, repeat {repeat}", patches.classes, images)
    write_json(path, found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="microct-base")
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--methods", nargs="+", default=["network", "forest"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--numbers", nargs="+", type=int, default=[0, 1, 2, 3])
    arguments = parser.parse_args()
    data = arguments.data / "microct_patches"
    print(
        "| method | patches seen | macro F1: median (range) | background / vessel / cell / axon | F1 of ctx, str, trn, zi |"
    )
    print("|-|-|-|-|-|")
    for method in arguments.methods:
        for number in arguments.numbers:
            if method == "forest" and number == 0:
                continue
            repeats = range(arguments.repeats if number else 1)
            found = [leave_one_out(data, method, arguments.model, number, r, arguments.out) for r in repeats]
            macro = sorted(f["macro"]["f1"] for f in found)
            classes = np.median([[c["f1"] for c in f["per_class"].values()] for f in found], axis=0)
            single = np.median([f["per_image"]["macro_f1"] for f in found], axis=0)
            spread = f" ({macro[0]:.3f} to {macro[-1]:.3f})" if len(macro) > 1 else ""
            print(
                f"| {method} | {number} | {np.median(macro):.3f}{spread} | "
                + " / ".join(f"{v:.2f}" for v in classes)
                + " | "
                + ", ".join(f"{v:.2f}" for v in single)
                + " |",
                flush=True,
            )


if __name__ == "__main__":
    main()
