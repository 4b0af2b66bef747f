"""Scores on real images: neurotome's defaults, the founding report's recipe, and the random forest, on the same split.

    python benchmarks/real_images.py --data ../shared/data --out runs/benchmarks --time 12m

Each method gets the same data and, for the networks, the same network (UNet on ResNet18 without ImageNet weights) and the
same time. What is finished is kept, so the script goes on where it was stopped. The result is a table in Markdown.
"""

import argparse
import json
import time
from pathlib import Path

import yaml

from neurotome import open_dataset, train
from neurotome.atomic import write_json
from neurotome.documents import CONFIGS
from neurotome.experiments.evaluate import score_split
from neurotome.pixels.train import fit_baseline
from neurotome.training.recipe import Recipe, TrainSettings

DATASETS = ("vnc_sstem", "axon_sem")
REPORT = CONFIGS / "founding_report" / "as_reported.yaml"


def train_default(data: Path, run: Path, limit: str) -> None:
    train(data, out=run, recipe=Recipe(train=TrainSettings(max_time=limit)))


def train_report(data: Path, run: Path, limit: str) -> None:
    """The report's YAML, but without ImageNet weights, as ours."""
    asked = yaml.safe_load(REPORT.read_text())
    asked["model"]["encoder_weights"] = "none"
    asked["train"]["max_time"] = limit
    train(data, out=run, **asked)


def train_forest(data: Path, run: Path, limit: str) -> None:
    dataset = open_dataset(data)
    began = time.monotonic()
    forest = fit_baseline(dataset)
    fitted = time.monotonic()
    write_json(run / "scores" / "test.json", score_split(forest, dataset, "test"))
    write_json(run / "training.json", {"seconds": fitted - began, "scoring_seconds": time.monotonic() - fitted})


METHODS = {
    "neurotome, defaults": train_default,
    "founding report's recipe": train_report,
    "random forest on filters": train_forest,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--datasets", nargs="+", default=DATASETS)
    parser.add_argument("--time", default="12m")
    parser.add_argument("--only", default="", help="part of the name of the methods to run")
    arguments = parser.parse_args()
    for name in arguments.datasets:
        rows = []
        for method, fit in METHODS.items():
            run = arguments.out / name / method.split(",")[0].replace(" ", "-").replace("'", "")
            scores = run / "scores" / "test.json"
            if not scores.is_file() and arguments.only in method:
                fit(arguments.data / name, run, arguments.time)
            if scores.is_file():
                rows.append((method, json.loads(scores.read_text()), json.loads((run / "training.json").read_text())))
        if rows:
            print(format_table(name, rows))


def format_table(name: str, rows: list[tuple[str, dict, dict]]) -> str:
    classes = rows[0][1]["classes"]
    head = ["method", *(f"F1 {c}" for c in classes), "macro F1", "mean IoU", "steps", "training s"]
    lines = [f"\n{name}, test split\n", "| " + " | ".join(head) + " |", "|-" * len(head) + "|"]
    for method, scores, training in rows:
        cells = [f"{scores['per_class'][c]['f1']:.3f}" for c in classes]
        cells += [f"{scores['macro']['f1']:.3f}", f"{scores['macro']['iou']:.3f}"]
        cells += [str(training.get("steps", "")), f"{training['seconds']:.0f}"]
        lines.append("| " + " | ".join([method, *cells]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
