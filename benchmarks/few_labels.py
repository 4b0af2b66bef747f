"""What a few labelled patches bring to a region that none of them shows: recipes compared, and pieces of them taken away.

    python benchmarks/few_labels.py --data ../shared/data --model microct-base --out runs/few_labels

Leave one region out: a recipe sees the patches of three regions and predicts the fourth; the four predictions are scored
together (macro F1 over the classes present, pooled over all pixels) and each by itself. How far to go from the model's
weights to the trained ones (alpha) is chosen as `neurotome fine-tune` does: by leaving out each of the three in turn, and by
synthetic tissue, never by the fourth. As each pair of patches is the rest of two choices, 10 trainings do for a recipe and a
seed. What every trained network says of all patches is kept for every alpha as a JSON file, so the script goes on where it
was stopped, and other rules of choice cost nothing.

--fixed trains on all three alone, 4 trainings instead of 10, and scores alpha 0.5 and 1: for a first look at many recipes.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from neurotome import open_dataset
from neurotome.atomic import write_json
from neurotome.datasets.base import Cutout, Dataset
from neurotome.datasets.phantom.stream import make_checked
from neurotome.experiments.fine_tune import ALPHAS, RECIPE, choose_alpha, count_by_alpha
from neurotome.experiments.run_network import train_and_score
from neurotome.keywords import replace_settings
from neurotome.metrics import scores
from neurotome.models.model_folder import load_model, read_digest
from neurotome.training.recipe import Recipe

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "fine_tune": {},
    "before": {"train": {"steps_per_epoch": 20, "learning_rate": 1e-4, "encoder_rate": 1.0, "replay_weight": 1.0}},
    "no tissue": {"train": {"replay": 0.0}},
    "tissue counts as much": {"train": {"replay_weight": 1.0}},
    "tissue counts three times": {"train": {"replay_weight": 3.0}},
    "as much, encoder as fast": {"train": {"replay_weight": 1.0, "encoder_rate": 1.0}},
    "encoder stays": {"train": {"encoder_rate": 0.0}},
    "anchored": {"train": {"anchor": 3.0}},
    "as much, twice the rate": {"train": {"replay_weight": 1.0, "learning_rate": 6e-4}},
    "as much, half the rate": {"train": {"replay_weight": 1.0, "learning_rate": 1.5e-4}},
    "three times the steps": {"train": {"steps_per_epoch": 120}},
    "no average": {"train": {"average": 0.0}},
    "statistics follow": {"train": {"freeze_statistics": False}},
}
"""Settings that differ from the built-in recipe."""

Measured = dict[float, dict[str, np.ndarray]]
"""Confusion matrices by alpha and patch; `tissue` is a patch too."""


class Bench:
    """Trains on sets of patches, each once."""

    def __init__(self, data: Path, model: str, out: Path) -> None:
        self.dataset = open_dataset(data / "microct_patches")
        self.patches = {c.name: c for cutouts in self.dataset.splits.values() for c in cutouts}
        self.model, self.out = model, out / read_digest(model)[:16]
        self.tissue: tuple[Cutout, ...] = ()

    def measure(self, variant: str, seed: int, names: tuple[str, ...]) -> Measured:
        recipe = replace_settings(replace_settings(RECIPE, VARIANTS[variant]), {"train": {"seed": seed}})
        digest = hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]  # another recipe may have the name one day
        path = self.out / f"{variant.replace(' ', '_')}-{digest}-{'+'.join(names)}.json"
        if not path.is_file():
            write_json(path, self._train(replace(recipe, init=self.model), names, path.with_suffix("")))
        stored = json.loads(path.read_text())
        return {float(a): {name: np.array(counts) for name, counts in found.items()} for a, found in stored.items()}

    def _train(self, recipe: Recipe, names: tuple[str, ...], folder: Path) -> dict[str, Any]:
        self.tissue = self.tissue or make_checked(load_model(self.model).in_channels, 0)
        train = Dataset("patches", self.dataset.classes, {"train": tuple(self.patches[name] for name in names)})
        run = train_and_score(train, "patches", folder, recipe, splits=())
        judged = {name: (patch,) for name, patch in self.patches.items()} | {"tissue": self.tissue}
        counts = {name: count_by_alpha(self.model, run, cutouts, "auto") for name, cutouts in judged.items()}
        shutil.rmtree(folder)
        return {str(alpha): {name: found[alpha].tolist() for name, found in counts.items()} for alpha in ALPHAS}

    def train_on_others(self, variant: str, seed: int) -> dict[str, Measured]:
        """Returns for each region what was measured after training on the three others."""
        names = tuple(self.patches)
        return {name: self.measure(variant, seed, tuple(other for other in names if other != name)) for name in names}

    def leave_out(self, variant: str, seed: int) -> dict[str, tuple[float, Measured]]:
        """Returns for each region the alpha chosen without it, and what was measured after training on the others."""
        whole = self.train_on_others(variant, seed)
        found = {}
        for name in self.patches:
            others, parts = [other for other in self.patches if other != name], []
            for pair in itertools.combinations(others, 2):
                (unseen,) = set(others) - set(pair)
                parts.append({a: counts[unseen] for a, counts in self.measure(variant, seed, pair).items()})
            tissue = {a: counts["tissue"] for a, counts in whole[name].items()}
            found[name] = choose_alpha(parts, tissue, self.dataset.classes), whole[name]
        return found

    def score(self, counts: np.ndarray) -> float:
        return float(scores(counts, self.dataset.classes.names)["macro"]["f1"])

    def describe(self, title: str, chosen: list[dict[str, tuple[float, Measured]]]) -> str:
        """Returns a row of the table: means over seeds, gains against alpha 0, which is the model itself."""

        def pool(one: dict[str, tuple[float, Measured]], start: bool) -> float:
            return self.score(sum(found[0.0 if start else alpha][name] for name, (alpha, found) in one.items()))  # type: ignore

        macro = np.array([pool(one, False) for one in chosen])
        gain = macro - [pool(one, True) for one in chosen]
        single = np.array([[self.score(f[alpha][name]) for name, (alpha, f) in one.items()] for one in chosen])
        base = np.array([[self.score(f[0.0][name]) for name, (_, f) in one.items()] for one in chosen])
        tissue = [
            self.score(f[alpha]["tissue"]) - self.score(f[0.0]["tissue"]) for one in chosen for alpha, f in one.values()
        ]
        alphas = sorted(alpha for one in chosen for alpha, _ in one.values())
        cells = [
            title,
            f"{macro.mean():.3f} ({macro.min():.3f} to {macro.max():.3f})",
            f"{gain.mean():+.3f}",
            " / ".join(f"{value:.3f}" for value in single.mean(0)),
            f"{(single - base).mean(0).min():+.3f}",
            f"{(single - base).min():+.3f}",
            f"{np.mean(tissue):+.3f}",
            f"{alphas[0]:g} to {alphas[-1]:g}",
        ]
        return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="microct-base")
    parser.add_argument("--out", type=Path, default=Path("runs/few_labels"))
    parser.add_argument("--variants", nargs="+", default=["fine_tune", "before"], choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fixed", action="store_true")
    arguments = parser.parse_args()
    bench = Bench(arguments.data, arguments.model, arguments.out)
    print(
        f"regions: {', '.join(bench.patches)}; least gain: of a region, mean of {arguments.seeds} seeds, and of any one run"
    )
    print("| recipe | macro F1 (seeds) | gain | by region | least gain | of any run | tissue | alpha |")
    print("|-|-|-|-|-|-|-|-|")
    for variant in arguments.variants:
        whole = [bench.train_on_others(variant, seed) for seed in range(arguments.seeds)]
        fixed = {"the model itself": 0.0} if variant == arguments.variants[0] else {}
        fixed |= {f"{variant}, always half": 0.5, f"{variant}, always all": 1.0}
        for title, alpha in fixed.items():
            print(
                bench.describe(title, [{name: (alpha, found) for name, found in one.items()} for one in whole]), flush=True
            )
        if not arguments.fixed:
            print(bench.describe(variant, [bench.leave_out(variant, seed) for seed in range(arguments.seeds)]), flush=True)


if __name__ == "__main__":
    main()
