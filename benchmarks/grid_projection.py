"""How long the whole grid would take on this device, and which encoder is best at equal time.

    python benchmarks/grid_projection.py project --out runs/projection.json
    python benchmarks/grid_projection.py race --data ../shared/data/vnc_sstem --seconds 12 --out runs/race.json

`project` trains every network of the grid's recipe `as-reported` for a few whole epochs, with batches, validation and
checkpoints as they are, on slices of a phantom repeated to MTNeuro's number, and says how long all its runs would take with
100 epochs. Slices are repeated because their content does not change the time. Measured are every network, then every other
loss until `--limit` is over; a run that was not measured takes as long as another one of its network.

`race` trains networks for an equal time in our recipe and scores the split test, with intervals and paired differences to
the first one. Results are written to `--out` as they come; what fails is noted there, and the others go on.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import torch

from neurotome.atomic import write_json
from neurotome.datasets import open_dataset
from neurotome.datasets.base import Cutout
from neurotome.datasets.phantom.make import PhantomSettings, make_phantom
from neurotome.experiments.evaluate import score_split
from neurotome.experiments.grids.plan import read_grid
from neurotome.load import load_predictor
from neurotome.models.networks import ModelSettings
from neurotome.runs import Run
from neurotome.training.fit import fit
from neurotome.training.prepare import prepare, settle_recipe
from neurotome.training.recipe import Recipe, TrainSettings

DEPTHS = (269, 29, 50)  # slices of each of MTNeuro's four regions in train, val and test
ENCODERS = ("resnet26d", "regnety_004", "efficientnet_b0", "mobilenetv3_large_100", "convnext_nano", "resnet34")
DECODERS = ("linknet", "fpn", "unetplusplus", "manet", "pspnet", "pan", "deeplabv3plus", "segformer")
NETWORKS = ["unet/resnet18", *(f"unet/{name}" for name in ENCODERS), *(f"{name}/resnet18" for name in DECODERS)]


def make_data(edge, depth, depths):
    """A phantom with slices per region as stated for each split, of which `depth` are made and repeated."""
    made = make_phantom(PhantomSettings(height=edge, width=edge, train_depth=depth, val_depth=depth, test_depth=depth))
    splits = {}
    for (split, cutouts), slices in zip(made.splits.items(), depths, strict=True):
        order = np.arange(slices) % depth
        splits[split] = tuple(
            Cutout(dataclasses.replace(c.volume, data=c.volume.data[order]), c.labels[order]) for c in cutouts
        )
    return dataclasses.replace(made, splits=splits)


def describe_device():
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return {"device": name, "torch": torch.__version__, "python": sys.version.split()[0]}


def time_start():
    """Seconds that a new process takes to import what a training needs."""
    code = "from neurotome.models.networks import import_smp; import_smp(); import neurotome.training.keeper"
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.monotonic() - began


def train(dataset, recipe, folder):
    """Trains into a folder; the seconds before, the rows of its epochs, and its summary."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    began = time.monotonic()
    module = prepare(dataset, settle_recipe(dataset, recipe))
    prepared = time.monotonic() - began
    run = Run(folder)
    fit(module, run)
    summary = run.read_training()
    whole = time.monotonic() - began
    return {"prepare_s": prepared, "end_s": whole - prepared - summary["seconds"], "rows": run.read_metrics(), **summary}


def measure_run(planned, dataset, arguments):
    recipe = planned.build()
    recipe = dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, encoder_weights="none"),
        sample=dataclasses.replace(recipe.sample, batch=arguments.batch, patch=arguments.edge),
        train=dataclasses.replace(recipe.train, epochs=arguments.epochs, device=arguments.device),
    )
    with tempfile.TemporaryDirectory() as folder:
        found = train(dataset, recipe, Path(folder))
        began = time.monotonic()
        score_split(load_predictor(Path(folder), arguments.device), dataset, "val", Path(folder) / "labels")
        speed = sum(c.volume.data.size for c in dataset.split("val")) / 1e6 / (time.monotonic() - began)
    ends = [row["seconds"] for row in found["rows"]]
    epochs = np.diff(ends).tolist()  # the first one warms up
    return {
        "prepare_s": found["prepare_s"],
        "first_epoch_s": ends[0],
        "epochs_s": epochs,
        "end_s": found["end_s"],
        "steps": found["steps"],
        "steps_per_epoch": found["steps"] // len(ends),
        "median_step_s": found["median_step_seconds"],
        "score_mpixel_per_s": speed,
        "peak_memory_bytes": found["peak_memory_bytes"],
        "precision": found["precision"],
    }


def project(arguments):
    planned = [run for run in read_grid("founding_report/grid").runs if run.recipe == "as-reported" and run.seed == 0]
    dataset = make_data(arguments.edge, arguments.depth, arguments.depths)
    mpixels = {split: sum(c.volume.data.size for c in cutouts) / 1e6 for split, cutouts in dataset.splits.items()}
    result = {**describe_device(), "start_s": time_start(), "mpixels": mpixels, "measured": {}, "failed": {}}
    networks = {}
    for run in planned:
        networks.setdefault(name_network(run), run)
    first = list(networks.values())
    began = time.monotonic()
    for run in [*first, *(run for run in planned if run not in first)]:
        if time.monotonic() - began > arguments.limit or (arguments.only and arguments.only not in run.name):
            continue
        try:
            result["measured"][run.method] = measure_run(run, dataset, arguments)
        except Exception as error:
            traceback.print_exc()
            result["failed"][run.method] = f"{type(error).__name__}: {error}"
        result["projection"] = add_up(planned, result, networks)
        write_json(arguments.out, result)
    print(json.dumps(result["projection"], indent=1))
    print_measured(result)


def name_network(run):
    return f"{run.settings['model']['decoder']}/{run.settings['model']['encoder']}"


def add_up(planned, result, networks):
    """The seconds of every run at the epochs that are asked for, from its own measurement or its network's."""
    seconds, basis = {}, {}
    for run in planned:
        method = run.method if run.method in result["measured"] else networks[name_network(run)].method
        found = result["measured"].get(method)
        if found is None:
            continue
        epochs = run.settings["train"]["epochs"]
        scored = sum(result["mpixels"][split] for split in run.splits)
        around = result["start_s"] + found["prepare_s"] + found["end_s"] + scored / found["score_mpixel_per_s"]
        seconds[run.method] = around + found["first_epoch_s"] + (epochs - 1) * statistics.median(found["epochs_s"])
        basis[run.method] = method
    tables = [run.method for run in planned if run.optional == 0]
    return {
        "runs": len(planned),
        "projected_runs": len(seconds),
        "hours": sum(seconds.values()) / 3600,
        "hours_of_the_tables": sum(seconds.get(method, 0.0) for method in tables) / 3600,
        "seconds": seconds,
        "basis": basis,
    }


def print_measured(result):
    print("\n| run | step s | epoch s (lowest to highest) | steps | scoring Mpixel/s | peak memory MiB |\n" + "|-" * 6 + "|")
    for method, found in result["measured"].items():
        epochs = found["epochs_s"]
        cells = [
            method,
            f"{found['median_step_s']:.4f}",
            f"{statistics.median(epochs):.2f} ({min(epochs):.2f} to {max(epochs):.2f})",
        ]
        cells += [str(found["steps"]), f"{found['score_mpixel_per_s']:.1f}", f"{found['peak_memory_bytes'] / 2**20:.0f}"]
        print("| " + " | ".join(cells) + " |")


def race(arguments):
    from neurotome.statistics import compare_pairs, estimate

    dataset = open_dataset(arguments.data)
    result = {**describe_device(), "data": str(arguments.data), "seconds": arguments.seconds, "networks": {}, "failed": {}}
    scores = {}
    began = time.monotonic()
    for network in arguments.networks:
        if time.monotonic() - began > arguments.limit:
            result["failed"][network] = "not begun within the limit"
            continue
        decoder, encoder = network.split("/")
        limit = TrainSettings(max_time=f"{arguments.seconds}s", device=arguments.device, val_slices=arguments.val_slices)
        try:
            for seed in range(arguments.seeds):
                recipe = Recipe(model=ModelSettings(decoder, encoder), train=dataclasses.replace(limit, seed=seed))
                with tempfile.TemporaryDirectory() as folder:
                    found = train(dataset, recipe, Path(folder))
                    predictor = load_predictor(Path(folder), arguments.device)
                    scores.setdefault(network, []).append(score_split(predictor, dataset, "test"))
        except Exception as error:
            traceback.print_exc()
            result["failed"][network] = f"{type(error).__name__}: {error}"
            scores.pop(network, None)
            write_json(arguments.out, result)
            continue
        score = dataclasses.asdict(estimate(scores[network], "macro.f1"))
        kept = {key: found[key] for key in ("steps", "seconds", "median_step_seconds", "peak_memory_bytes", "precision")}
        result["networks"][network] = {"macro_f1": score, **kept}
        reference = arguments.networks[0]
        pairs = {name: (runs, scores[reference]) for name, runs in scores.items() if name != reference}
        if reference in scores and pairs:
            differences = compare_pairs(pairs)
            result["minus_first"] = {name: dataclasses.asdict(difference) for name, difference in differences.items()}
        write_json(arguments.out, result)
    print("| network | macro F1 | steps | minus the first |\n|-|-|-|-|")
    for network, found in sorted(result["networks"].items(), key=lambda item: -(item[1]["macro_f1"]["value"] or 0)):
        score, other = found["macro_f1"], result.get("minus_first", {}).get(network)
        difference = f"{other['effect']:+.3f} {show_interval(other)}" if other else ""
        print(f"| {network} | {score['value']:.3f} {show_interval(score)} | {found['steps']} | {difference} |")


def show_interval(found):
    return "" if found["low"] is None else f"({found['low']:.3f} to {found['high']:.3f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(required=True)
    projecting, racing = modes.add_parser("project"), modes.add_parser("race")
    for mode, function in ((projecting, project), (racing, race)):
        mode.set_defaults(function=function)
        mode.add_argument("--out", type=Path, required=True)
        mode.add_argument("--device", default="auto")
    projecting.add_argument("--depth", type=int, default=4, help="slices per region and split that are made, then repeated")
    projecting.add_argument("--depths", type=int, nargs=3, default=DEPTHS, help="slices per region in train, val and test")
    projecting.add_argument("--edge", type=int, default=256, help="edge of slices and patches")
    projecting.add_argument("--batch", type=int, default=64)
    projecting.add_argument("--epochs", type=int, default=3, help="that are trained; 2 at least")
    projecting.add_argument("--limit", type=float, default=200, help="seconds after which nothing more is begun")
    projecting.add_argument("--only", default="", help="part of the name of the runs to measure")
    racing.add_argument("--data", default="phantom")
    racing.add_argument("--seconds", type=float, default=12)
    racing.add_argument("--limit", type=float, default=270, help="seconds after which no further network is begun")
    racing.add_argument("--seeds", type=int, default=1)
    racing.add_argument("--val-slices", type=int, default=4)
    racing.add_argument("--networks", nargs="+", default=NETWORKS, help="DECODER/ENCODER; the first is the reference")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.function(arguments)


if __name__ == "__main__":
    main()
