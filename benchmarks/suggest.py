"""Does `neurotome suggest` choose better patches than chance? Equal numbers of patches, equal steps, macro F1 of the test.

    python benchmarks/suggest.py --data ../shared/data --out runs/suggest --seeds 3

A network is trained on a few patches of the training slices of vnc_sstem, drawn at random. Then more patches are chosen, by
suggest in each of its ways and at random, and a network is trained anew on the first and the added ones, for as many steps
from the same seed. The first patches and the network's seed are the same for all ways of a seed, so that
differences are taken within seeds; their interval is that of Student's t over the seeds. Every finished step is kept as a
file in --out, so the script goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import t

from neurotome import SuggestSettings, open_dataset, suggest
from neurotome.annotating.places import list_windows
from neurotome.atomic import write_json
from neurotome.datasets.base import Cutout, Dataset
from neurotome.experiments.run_network import train_and_score
from neurotome.keywords import replace_settings
from neurotome.training.recipe import Recipe

WAYS = ("random", "both", "uncertainty", "difference")

Window = tuple[str, int, int]
"""Name of an image, first row and column."""


class Bench:
    """Trains on sets of patches, each once."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.asked, self.out = arguments, arguments.out
        self.dataset = open_dataset(arguments.data / "vnc_sstem")
        self.images = {cutout.name: cutout for cutout in self.dataset.split("train")}
        self.pool = self.out / "pool"
        self.pool.mkdir(parents=True, exist_ok=True)
        for cutout in self.images.values():
            link, path = self.pool / cutout.volume.path.name, cutout.volume.path.resolve()
            if not link.exists():
                link.symlink_to(path)

    def draw(self, rng: np.random.Generator, count: int, taken: list[Window]) -> list[Window]:
        """Draws patches of the grid from which suggest chooses, none of which overlaps another."""
        edge = self.asked.edge
        windows = [
            (name, rows.start, columns.start)
            for name, cutout in self.images.items()
            for rows, columns in list_windows(cutout.volume.shape[1:], edge, edge // 2)
        ]
        drawn: list[Window] = []
        for index in rng.permutation(len(windows)):
            name, y, x = windows[index]
            others = (other for other in (*taken, *drawn) if other[0] == name)
            if all(abs(y - other[1]) >= edge or abs(x - other[2]) >= edge for other in others):
                drawn.append((name, y, x))
            if len(drawn) == count:
                break
        return drawn

    def cut(self, windows: list[Window]) -> Dataset:
        """Returns a dataset whose training images are these patches, with their true labels."""

        def cut(window: Window) -> Cutout:
            name, y, x = window
            edge = self.asked.edge
            return self.images[name].cut(f"{name}_y{y}_x{x}", (slice(0, 1), slice(y, y + edge), slice(x, x + edge)))

        splits = {"train": tuple(cut(window) for window in windows), "test": self.dataset.split("test")}
        return replace(self.dataset, splits=splits, wholes=(), groups={}, unlisted=())

    def train(self, windows: list[Window], seed: int, folder: Path) -> float:
        """Returns the macro F1 of the test split."""
        settings = {
            "model": {"decoder": self.asked.decoder, "encoder": self.asked.encoder},
            "sample": {"patch": self.asked.edge, "batch": 8},
            "train": {"epochs": 1, "steps_per_epoch": self.asked.steps, "keep": "last", "seed": seed},
        }
        recipe = replace_settings(Recipe(), settings)
        scores = train_and_score(self.cut(windows), "vnc_sstem", folder, recipe, splits=("test",)).read_scores("test")
        assert scores is not None
        return float(scores["macro"]["f1"])

    def choose(self, way: str, seed: int, first: list[Window], folder: Path) -> list[Window]:
        """Returns the patches that are added."""
        if way == "random":
            return self.draw(np.random.default_rng((seed, 1)), self.asked.added, first)
        settings = SuggestSettings(patches=self.asked.added, edge=self.asked.edge, by=way)  # type: ignore[arg-type]
        suggested = folder / f"suggested_{way}"
        if not suggested.exists():
            suggest(folder / "first", self.pool, out=suggested, against=self.cut(first), settings=settings)
        rows = csv.DictReader((suggested / "suggested.csv").read_text(encoding="utf-8").splitlines())
        return [(Path(row["file"]).stem, int(row["y"]), int(row["x"])) for row in rows]

    def measure(self, seed: int) -> dict[str, float]:
        """Returns the macro F1 after the first patches and after each way of adding to them."""
        folder = self.out / f"seed{seed}"
        first = self.draw(np.random.default_rng((seed, 0)), self.asked.first, [])
        found = {}
        for way in ("first", *self.asked.ways):
            path = folder / f"{way}.json"
            if not path.is_file():
                began = time.process_time()
                windows = [] if way == "first" else self.choose(way, seed, first, folder)
                score = self.train([*first, *windows], seed, folder / way)
                minutes = (time.process_time() - began) / 60
                write_json(path, {"macro_f1": score, "cpu_minutes": minutes, "added": [list(w) for w in windows]})
            found[way] = json.loads(path.read_text())["macro_f1"]
            print(f"seed {seed}, {way}: macro F1 {found[way]:.4f}", flush=True)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/suggest"))
    parser.add_argument("--ways", nargs="+", default=["random", "both"], choices=WAYS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=4, help="patches the first network is trained on")
    parser.add_argument("--added", type=int, default=8, help="patches that are chosen")
    parser.add_argument("--edge", type=int, default=128, help="edge of a patch in pixels")
    parser.add_argument("--steps", type=int, default=300, help="training steps of every network")
    parser.add_argument("--decoder", default="linknet")
    parser.add_argument("--encoder", default="mobilenetv3_small_050")
    asked = parser.parse_args()
    bench = Bench(asked)
    found = [bench.measure(seed) for seed in range(asked.seeds)]
    print(
        f"\n{asked.first} patches, then {asked.added} more; {asked.edge} pixels, {asked.steps} steps, {asked.seeds} seeds\n"
    )
    print("| patches | macro F1, mean (least to most) | less random | 95 % interval |\n|-|-|-|-|")
    for way in ("first", *asked.ways):
        scores = np.array([row[way] for row in found])
        cells = [way, f"{scores.mean():.3f} ({scores.min():.3f} to {scores.max():.3f})", "", ""]
        if way not in ("first", "random") and "random" in asked.ways:
            gain = scores - [row["random"] for row in found]
            cells[2] = f"{gain.mean():+.3f}"
            if len(gain) > 1:
                half = t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / len(gain) ** 0.5
                cells[3] = f"{gain.mean() - half:+.3f} to {gain.mean() + half:+.3f}"
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
