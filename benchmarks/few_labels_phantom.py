"""Labelled patches that tune the phantom instead of the network: a random search over its numbers.

    python benchmarks/few_labels_phantom.py --data ../shared/data --model microct-base --trials 40 --steps 150

Each trial moves the phantom's ranges by numbers drawn at random, trains the model a little further on tissue drawn from
them, and scores it on the labelled patches: the network never sees them, as in Learn2Synth (arXiv 2411.16719), which follows
a gradient instead. Trial 0 moves nothing. For each region the trial is chosen that scores best on the other three, and its
score on the region itself is what counts. What is finished is kept as JSON files; with more --trials the script goes on.
After a change of the phantom use another --out.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from few_labels import Bench

from neurotome.atomic import write_json
from neurotome.datasets.base import Cutout, Dataset
from neurotome.datasets.phantom.make import make_cutout, wrap_cutout
from neurotome.datasets.phantom.regions import REGIONS, Instrument, Region, draw_instrument, draw_region
from neurotome.experiments.fine_tune import RECIPE, count_by_alpha
from neurotome.experiments.run_network import train_and_score
from neurotome.keywords import replace_settings
from neurotome.models.model_folder import load_model
from neurotome.progress import track

FACTORS = {
    "cells_per_mvox": (0.6, 1.6),
    "cell_diameter": (0.85, 1.2),
    "cell_pole": (0.7, 1.4),
    "faint_cells": (0.5, 2.0),
    "capillary_length": (0.6, 1.8),
    "capillary_radius": (0.8, 1.3),
    "soma": (0.8, 1.25),
    "noise_sd": (0.7, 1.4),
    "strand_sd": (0.6, 1.6),
    "blur_sigma": (0.8, 1.25),
    "edge_gain": (0.7, 1.4),
}
"""By how much a number of a region or an instrument is multiplied."""

SHIFTS = {
    "cell_edge": (-0.7, 0.7),
    "vessel_edge": (-0.7, 0.7),
    "faint_cells_drawn": (-0.4, 0.4),
    "faint_vessels_drawn": (-0.4, 0.4),
    "capillary": (-20.0, 20.0),
    "axon": (-12.0, 12.0),
}
"""By how much one is raised."""

SHARES = ("faint_cells_drawn", "faint_vessels_drawn")


def draw_numbers(trial: int) -> dict[str, float]:
    rng = np.random.default_rng(trial)
    factors = {name: float(np.exp(rng.uniform(*np.log(ends)))) for name, ends in FACTORS.items()}
    shifts = {name: float(rng.uniform(*ends)) for name, ends in SHIFTS.items()}
    return {**dict.fromkeys(FACTORS, 1.0), **dict.fromkeys(SHIFTS, 0.0)} if trial == 0 else {**factors, **shifts}


def move(drawn: Region | Instrument, numbers: dict[str, float]) -> Any:
    changed: dict[str, Any] = {}
    for name in {field.name for field in fields(drawn)} & numbers.keys():
        value, number = getattr(drawn, name), numbers[name]
        if name in SHIFTS:
            changed[name] = float(np.clip(value + number, 0, 1)) if name in SHARES else value + number
        else:
            changed[name] = (value[0] * number, *value[1:]) if isinstance(value, tuple) else value * number
    return replace(drawn, **changed)


def make_tissue(numbers: dict[str, float], slices: int, depth: int, edge: int) -> tuple[Cutout, ...]:
    made = []
    for number in track(range(slices), "making tissue", slices, "slices"):
        rng = np.random.default_rng([7, number])  # the same tissue in every trial, but for the numbers
        drawn = draw_region(REGIONS[list(REGIONS)[number % len(REGIONS)]], rng)
        pair = make_cutout(move(drawn, numbers), move(draw_instrument(rng), numbers), (depth, edge, edge), rng)
        made.append(wrap_cutout(pair, f"tissue_{number:03d}"))
    return tuple(made)


def try_numbers(bench: Bench, trial: int, steps: int, slices: int, out: Path) -> dict[str, np.ndarray]:
    path = out / f"trial-{steps}-{slices}-{trial:03d}.json"
    if not path.is_file():
        numbers, folder = draw_numbers(trial), path.with_suffix("")
        tissue = make_tissue(numbers, slices, load_model(bench.model).in_channels, 160)
        train = {"replay": 0.0, "epochs": 1, "steps_per_epoch": steps, "encoder_rate": 1.0}
        recipe = replace_settings(RECIPE, {"train": train, "sample": {"patch": 128}, "init": bench.model})
        dataset = Dataset("tissue", bench.dataset.classes, {"train": tissue})
        run = train_and_score(dataset, "tissue", folder, recipe, splits=())
        counts = {
            name: count_by_alpha(bench.model, run, (patch,), "auto")[1.0].tolist() for name, patch in bench.patches.items()
        }
        shutil.rmtree(folder)
        write_json(path, {"numbers": numbers, "counts": counts})
    return {name: np.array(counts) for name, counts in json.loads(path.read_text())["counts"].items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="microct-base")
    parser.add_argument("--out", type=Path, default=Path("runs/few_labels"))
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--slices", type=int, default=48)
    arguments = parser.parse_args()
    bench = Bench(arguments.data, arguments.model, arguments.out)
    found = []
    for trial in range(arguments.trials):
        found.append(try_numbers(bench, trial, arguments.steps, arguments.slices, bench.out))
        print(f"trial {trial}: macro F1 {bench.score(sum(found[-1].values())):.3f}", flush=True)  # type: ignore[arg-type]
    print(
        "| region left out | trial chosen by the others | F1 of the others | F1 of the region | with the phantom as it is |"
    )
    print("|-|-|-|-|-|")
    pooled = []
    for name in bench.patches:
        others = [bench.score(sum(counts for other, counts in one.items() if other != name)) for one in found]  # type: ignore
        best = int(np.argmax(others))
        pooled.append(found[best][name])
        before, after = bench.score(found[0][name]), bench.score(found[best][name])
        print(f"| {name} | {best} | {others[0]:.3f} to {others[best]:.3f} | {after:.3f} | {before:.3f} |")
    before, after = bench.score(sum(found[0].values())), bench.score(sum(pooled))  # type: ignore[arg-type]
    best = int(np.argmax([bench.score(sum(one.values())) for one in found]))  # type: ignore[arg-type]
    print(f"pooled: {before:.3f} with the phantom as it is, {after:.3f} with the numbers chosen without the region")
    print(f"best by all patches: trial {best}, {json.dumps(draw_numbers(best))}")


if __name__ == "__main__":
    main()
