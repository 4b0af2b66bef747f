"""Pixel baselines on real images: scores and cost of each, and speed beside scikit-image in the same run.

    python benchmarks/pixel_baselines.py table --data ../shared/data --out runs/pixels --time 4m
    python benchmarks/pixel_baselines.py speed --data ../shared/data --repeats 5
    python benchmarks/pixel_baselines.py memory --out runs/pixels --slice FOLDER/slice_z159_1420x5805.png
    python benchmarks/pixel_baselines.py limit --data ../shared/data --limit 200MB

`table` trains a network of each seed on the same training split first, for the features of a trained encoder. What is
finished is kept, so it goes on where it was stopped.
"""

import argparse
import dataclasses
import json
import multiprocessing
import resource
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import psutil
from skimage.feature import multiscale_basic_features
from sklearn.ensemble import RandomForestClassifier
from threadpoolctl import threadpool_limits

from neurotome import compare, open_dataset, train
from neurotome.datasets.statistics import count_slices
from neurotome.experiments.evaluate import score_split
from neurotome.experiments.run_pixels import name_method
from neurotome.features import EncoderSettings
from neurotome.features.base import check_patch
from neurotome.models.model_folder import read_digest
from neurotome.pixels.sample import draw_pixels, limit_rows
from neurotome.pixels.saving import save_pixels
from neurotome.pixels.train import BaselineSettings, fit_baseline
from neurotome.predictor import predict_slice
from neurotome.runs import Run, find_method, record_run
from neurotome.scoring import score_images
from neurotome.training.recipe import Recipe, TrainSettings

DATASETS = ("vnc_sstem", "axon_sem")


def list_methods(network: Path, seed: int) -> dict[str, BaselineSettings]:
    stages = EncoderSettings(str(network), stages=("1", "2", "3"))
    methods = {
        "lr-identity": BaselineSettings("lr", "identity"),
        "rf-identity": BaselineSettings("rf", "identity"),
        "gbdt-identity": BaselineSettings("gbdt", "identity"),
        "lr-filters": BaselineSettings("lr", "filters"),
        "rf-filters": BaselineSettings("rf", "filters"),
        "gbdt-filters": BaselineSettings("gbdt", "filters"),
        "gbdt-encoder": BaselineSettings("gbdt", "encoder", encoder=EncoderSettings(str(network))),
        "gbdt-encoder-stages": BaselineSettings("gbdt", "encoder", encoder=stages),
        "gbdt-random-encoder": BaselineSettings("gbdt", "encoder"),
    }
    return {name: dataclasses.replace(settings, seed=seed) for name, settings in methods.items()}


def make_table(arguments: argparse.Namespace) -> None:
    for name in arguments.datasets:
        data, folder = arguments.data / name, arguments.out / name
        networks, others = [], []
        for seed in range(arguments.seeds):
            network = folder / f"network-{seed}"
            train(data, out=network, recipe=Recipe(train=TrainSettings(max_time=arguments.time, seed=seed)))
            networks.append(network)
            for method, settings in list_methods(network, seed).items():
                if arguments.methods and method not in arguments.methods:
                    continue
                run = folder / f"{method}-{seed}"
                if not (run / "training.json").is_file():
                    run_method(data, run, settings)
                others.append(run)
        compare(*networks, *others, out=folder / "compared")
        print(format_costs(json.loads((folder / "compared" / "comparison.json").read_text())))


def format_costs(comparison: dict) -> str:
    """Returns scores and costs; of the costs CPU time, which other work on the machine hardly changes."""
    head = ["method", "macro F1", "mean IoU", "weighted F1", "training, CPU s", "prediction, CPU s/Mpixel"]
    lines = [f"\n{comparison['dataset']}, test split\n", "| " + " | ".join(head) + " |", "|-" * len(head) + "|"]
    for row in comparison["methods"]:
        costs = [json.loads((Path(run) / "training.json").read_text()) for run in row["runs"]]
        cells = [show_range(row[mean][key]) for mean, key in (("macro", "f1"), ("macro", "iou"), ("weighted", "f1"))]
        if "cpu_seconds" in costs[0]:
            cells += [f"{statistics.mean(c[key] for c in costs):.1f}" for key in ("cpu_seconds", "scoring_cpu_s_per_mpixel")]
        else:
            cells += [f"{statistics.mean(c['seconds'] for c in costs):.0f} s wall, {costs[0]['steps']} steps", ""]
        lines.append("| " + " | ".join([row["method"], *cells]) + " |")
    return "\n".join(lines)


def show_range(value: dict) -> str:
    return f"{value['mean']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def run_method(data: Path, folder: Path, settings: BaselineSettings) -> None:
    """What `neurotome baseline` does, but for the report and for predicting the training images; and what it costs."""
    dataset, run = open_dataset(data), Run(folder)
    config = {"dataset": str(data), **dataclasses.asdict(settings)}
    model = settings.encoder.model if settings.features == "encoder" else ""
    origin = find_method(model), read_digest(Path(model)) if model else None
    with run.claim(config, record_run("pixels", name_method(settings), config, dataset, settings.seed, *origin)):
        began = time.process_time()
        predictor = fit_baseline(dataset, settings)
        fitted = time.process_time() - began
        save_pixels(predictor, run.model)
        began, spent = time.perf_counter(), time.process_time()
        run.write_scores("test", score_split(predictor, dataset, "test", run.predictions("test")))
        pixels = sum(cutout.volume.data.size for cutout in dataset.split("test"))
        speed = pixels / 1e6 / (time.perf_counter() - began)
        cpu = (time.process_time() - spent) / (pixels / 1e6)
        cost = {"scoring_mpixel_per_s": speed, "cpu_seconds": fitted, "scoring_cpu_s_per_mpixel": cpu}
        where = {"finished": True, "device": "cpu", "precision": "32-true"}
        run.write_training({**where, **predictor.facts["training"], **cost})


class Basic:
    """scikit-image's features as an extractor, for whole slices."""

    in_channels, halo, stride, window = 1, 0, 1, 1 << 20
    bounded, normalization = True, None
    names = tuple(map(str, range(24)))

    def prepare(self, patch):
        check_patch(patch, 1)
        features = np.moveaxis(compute_basic(patch[0]), -1, 0)
        return lambda rows, columns: features[:, rows, columns]


def compute_basic(image):
    return multiscale_basic_features(image, workers=2)


def fit_basic(dataset, normalization, balanced, **forest):
    """scikit-image's trainable segmentation on as many pixels as ours: drawn evenly from the classes, or as they come."""
    totals = count_slices(dataset).sum(0)
    rows = limit_rows(totals, 20_000)
    if not balanced:
        rows = (totals / totals.sum() * rows.sum()).astype(np.int64)
    table, labels = draw_pixels(dataset, "train", rows, Basic(), normalization, 0)
    return RandomForestClassifier(n_jobs=2, random_state=0, **forest).fit(table, labels)


def measure_speed(arguments: argparse.Namespace) -> None:
    dataset = open_dataset(arguments.data / arguments.datasets[0])
    images = [(c.name, c.volume, c.read_labels(0)) for c in dataset.split("test")]
    pixels = sum(volume.data.size for _, volume, _ in images)
    ours = {
        "neurotome rf on filters": fit_baseline(dataset),
        "neurotome gbdt on filters": fit_baseline(dataset, BaselineSettings("gbdt")),
    }
    scale = ours["neurotome rf on filters"].normalization.scale_for(images[0][1])
    gallery = {"n_estimators": 50, "max_depth": 10, "max_samples": 0.05}
    theirs = {
        "scikit-image, 100 trees (TrainableSegmenter)": fit_basic(
            dataset, ours["neurotome rf on filters"].normalization, False
        ),
        "the same, balanced sample": fit_basic(dataset, ours["neurotome rf on filters"].normalization, True),
        "scikit-image, 50 trees of depth 10 (its gallery)": fit_basic(
            dataset, ours["neurotome rf on filters"].normalization, False, **gallery
        ),
    }
    seconds = {name: {"features": [], "all": [], "cpu": []} for name in (*ours, *theirs)}
    labels = {}
    for _ in range(arguments.repeats):
        for name, predictor in ours.items():
            began, spent = time.perf_counter(), time.process_time()
            labels[name] = [
                predict_slice(predictor, scale.apply(volume.read_context(0, 1))).argmax(0).astype(np.uint8)
                for _, volume, _ in images
            ]
            seconds[name]["all"].append(time.perf_counter() - began)
            seconds[name]["cpu"].append(time.process_time() - spent)
            began = time.perf_counter()
            for _, volume, _ in images:
                only_features(predictor, scale.apply(volume.read_context(0, 1)))
            seconds[name]["features"].append(time.perf_counter() - began)
        for name, forest in theirs.items():
            start, spent, features, found = time.perf_counter(), time.process_time(), 0.0, []
            for _, volume, _ in images:
                began = time.perf_counter()
                table = compute_basic(scale.apply(volume.data[0]))
                features += time.perf_counter() - began
                found.append(forest.predict(table.reshape(-1, 24)).reshape(table.shape[:2]))
            seconds[name]["all"].append(time.perf_counter() - start)
            seconds[name]["cpu"].append(time.process_time() - spent)
            seconds[name]["features"].append(features)
            labels[name] = found
    print("| method | macro F1 | mean IoU | Mpixel/s, median (range) | features, s/Mpixel | classifier | CPU s/Mpixel |")
    print("|-|-|-|-|-|-|-|")
    rates = {}
    for name, found in seconds.items():
        scored = score_images(
            dataset.name,
            "test",
            dataset.classes,
            ((image, truth, here) for (image, _, truth), here in zip(images, labels[name], strict=True)),
        )
        rates[name] = statistics.median(pixels / 1e6 / s for s in found["all"])
        span = [pixels / 1e6 / s for s in (max(found["all"]), min(found["all"]))]
        each = statistics.median(found["features"]) / pixels * 1e6
        rest = statistics.median(found["all"]) / pixels * 1e6 - each
        cpu = statistics.median(found["cpu"]) / pixels * 1e6
        print(
            f"| {name} | {scored['macro']['f1']:.3f} | {scored['macro']['iou']:.3f} | {rates[name]:.2f} "
            f"({span[0]:.2f} to {span[1]:.2f}) | {each:.2f} | {rest:.2f} | {cpu:.2f} |"
        )
    base = seconds["neurotome rf on filters"]
    for other in theirs:
        ratios = [a / b for a, b in zip(seconds[other]["all"], base["all"], strict=True)]
        cpu = statistics.median(seconds[other]["cpu"]) / statistics.median(base["cpu"])
        span = f"{min(ratios):.1f} to {max(ratios):.1f}"
        print(f"rf on filters against {other}: {statistics.median(ratios):.1f} times ({span}), by CPU time {cpu:.1f}")


def only_features(predictor, patch):
    from neurotome.pixels.predictor import iterate_windows, list_windows

    read = predictor.extractor.prepare(patch)
    for _ in iterate_windows(lambda window: read(*window), list_windows(patch.shape[1:], predictor.extractor.window)):
        pass


def measure_memory(arguments: argparse.Namespace) -> None:
    for method in arguments.methods or ["rf-filters"]:
        run = arguments.out / arguments.datasets[0] / f"{method}-0"
        command = [
            sys.executable,
            "-m",
            "neurotome",
            "predict",
            str(run),
            str(arguments.slice),
            str(arguments.out / "slice.png"),
        ]
        began = time.perf_counter()
        subprocess.run([*command, "--existing", "replace"], check=True)
        spent = time.perf_counter() - began
        # the highest of all children so far, so the methods are given in the order of their need
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        print(json.dumps({"method": method, "peak_gb": round(peak / 1e9, 2), "seconds": round(spent, 1)}))


def measure_limit(arguments: argparse.Namespace) -> None:
    """Training on every labelled pixel within a limit, each in a process of its own, because a peak never falls."""
    print("| learner | features | pixels | method | peak above start, MB | s |\n|-|-|-|-|-|-|")
    for learner in ("rf", "lr", "gbdt"):
        for features in ("identity", "filters"):
            job = (arguments.data / arguments.datasets[0], learner, features, arguments.limit)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.apply(fit_within, job))


def fit_within(data: Path, learner: str, features: str, limit: str) -> str:
    dataset = open_dataset(data)
    settings = BaselineSettings(learner, features, pixels_per_class=500, prior=0.5)
    fit_baseline(dataset, settings)  # so that what is imported once does not count
    start = psutil.Process().memory_info().rss
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fit_baseline(dataset, dataclasses.replace(settings, pixels_per_class=0, max_memory=limit)).facts["training"]
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - start
    pixels, seconds = sum(found["pixels"].values()), time.perf_counter() - began
    return f"| {learner} | {features} | {pixels:,} | {found['method']} | {more / 1e6:.0f} | {seconds:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("table", "speed", "memory", "limit"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/pixels"))
    parser.add_argument("--time", default="4m")
    parser.add_argument("--seeds", type=int, default=3, help="table: seeds 0, 1, ...")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slice", type=Path)
    parser.add_argument("--limit", default="200MB", help="limit: of the memory for training")
    parser.add_argument("--datasets", nargs="+", default=DATASETS)
    parser.add_argument("--methods", nargs="+", default=[], help="table, memory: only these")
    arguments = parser.parse_args()
    with threadpool_limits(2):
        parts = {"table": make_table, "speed": measure_speed, "memory": measure_memory, "limit": measure_limit}
        parts[arguments.part](arguments)


if __name__ == "__main__":
    main()
