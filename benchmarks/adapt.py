"""Does a model become better by unlabelled slices alone? Variants of self-training, judged as benchmarks/transfer.py does.

    python benchmarks/adapt.py --data ../shared/data --model microct-base --out runs/adapt

The model teaches itself on the slices z = 159 and z = 309, without the four annotated places and 64 pixels around them: no
label there is learned, though their grey may be seen beside pixels that are. How is in benchmarks/self_training.py.

none                  the model as it is
pseudo                its own labels, averaged over eight flips and turns, of the half of each class that is most certain
pseudo+tissue         the same beside synthetic tissue, each with a loss of its own
mean_teacher+tissue   labels by the moving average of the student, made anew for every batch
class_wise off        as pseudo+tissue, but the most certain half of all pixels, whatever their class

Of the way to the new weights the part is taken where small and wide views agree best, if synthetic tissue, the classes'
shares and that agreement allow any; 0: refused, the model stays as it is. tissue, shares and agreement are what all of
the new weights would bring: change of macro F1, largest factor on a class's share, change of macro F1. --always 1 judges
so much of the new weights whatever these signs say, to see whether they are right. The other columns are those of
transfer.py, means over seeds with 95 % intervals (Student's t), and every look at a model is counted there.

The teacher's labels, each training, its signs and what each model says are kept: given again, the script goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from self_training import (
    GENTLE,
    Guess,
    Mask,
    Signals,
    Teaching,
    adapt,
    choose_alpha,
    explain_refusal,
    guess,
    mark_tissue,
    measure_move,
)
from transfer import count_look, interval, recall_or_predict
from transfer_measures import ANNOTATED, EDGE, judge, read_slices

from neurotome.atomic import atomic_path
from neurotome.datasets.base import Cutout
from neurotome.datasets.phantom.stream import make_checked
from neurotome.keywords import replace_settings
from neurotome.load import load_predictor
from neurotome.models.model_folder import load_model, read_digest, save_model
from neurotome.models.net_predictor import mix
from neurotome.volume import Volume

MARGIN = 64
"""Pixels around the annotated places that are left out too."""

VARIANTS: dict[str, tuple[Teaching, dict[str, Any]]] = {
    "pseudo": (Teaching(), {"replay": 0.0}),
    "pseudo+tissue": (Teaching(), {}),
    "mean_teacher+tissue": (Teaching(follow=True), {}),
    "class_wise off": (Teaching(class_wise=False), {}),
}
"""Who teaches, and settings of `train` that differ from `GENTLE`."""

NONE = "none"
COLUMNS = ("variant", "new weights", "tissue", "shares", "agreement")


def leave_out_places(shape: tuple[int, ...], margin: int = MARGIN) -> Mask:
    """Returns a mask of a slice (y, x), False in the annotated places and around them."""
    usable = np.ones(shape, bool)
    for y, x in ANNOTATED.values():
        usable[max(0, y - margin) : y + EDGE + margin, max(0, x - margin) : x + EDGE + margin] = False
    return usable


class Bench:
    """Adapts a model to the two slices in several ways, each once."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.model, self.data, self.judged = arguments.model, arguments.data, arguments.judged
        self.out = arguments.out / read_digest(self.model)[:16]
        self.changes = {"epochs": arguments.epochs, "steps_per_epoch": arguments.steps}
        self.share = arguments.share
        self.volumes = [Volume(grey[None], f"slice{z}") for z, grey in read_slices(self.data).items()]
        self.usable = [mark_tissue(v) & leave_out_places(v.shape[1:]) for v in self.volumes]
        self.tissue: tuple[Cutout, ...] = ()

    def recall_or_guess(self) -> list[Guess]:
        path = self.out / "guesses.npz"
        if not path.is_file():
            guesses, named = guess(load_predictor(self.model), self.volumes), {}
            for volume, (labels, confidence) in zip(self.volumes, guesses, strict=True):
                named |= {f"{volume.name}_labels": labels, f"{volume.name}_confidence": confidence}
            with atomic_path(path) as temporary:
                np.savez(temporary, **named)
        with np.load(path, allow_pickle=False) as stored:
            return [(stored[f"{v.name}_labels"], stored[f"{v.name}_confidence"]) for v in self.volumes]

    def teach(self, variant: str, seed: int) -> tuple[Path, dict[float, Signals]]:
        """Returns a folder with the student, and the signs by share of the new weights."""
        teaching, changes = VARIANTS[variant]
        teaching = replace(teaching, share=self.share)
        recipe = replace_settings(GENTLE, {"train": {**self.changes, **changes, "seed": seed}, "init": self.model})
        digest = hashlib.sha256(repr((teaching, recipe)).encode()).hexdigest()[:12]  # other settings, another folder
        folder = self.out / f"{variant.replace(' ', '_')}-{digest}"
        if not self.tissue and not (folder / "signals.json").is_file():
            self.tissue = make_checked(load_model(self.model).in_channels, 0)
        return folder, adapt(self.volumes, self.usable, self.recall_or_guess(), self.tissue, folder, recipe, teaching)

    def mix(self, folder: Path, alpha: float) -> str:
        """Returns the model, or one with so much of a student's weights, in a folder beside the student."""
        if alpha == 0:
            return str(self.model)
        mixed = folder / f"mixed_{alpha:g}"
        if not (mixed / "model.json").is_file():
            save_model(mix(load_model(self.model), load_model(folder / "student"), alpha), mixed)
        return str(mixed)

    def judge(self, model: str) -> dict[str, float]:
        """Returns the parts of the selection."""
        found: dict[str, float] = judge(recall_or_predict(model, self.data, "own", self.judged), self.data)["selection"]
        count_look(self.judged, model)
        return found


def describe(variant: str, alphas: list[float], signals: list[dict[float, Signals]], judged: list[dict[str, float]]) -> str:
    """Returns a row of the table."""
    cells = [variant, " / ".join(f"{alpha:g}" for alpha in alphas)]
    if signals:
        ends = [(found[0.0], found[max(found)]) for found in signals]
        cells.append(f"{np.mean([new.tissue - old.tissue for old, new in ends]):+.3f}")
        cells.append(f"{np.mean([measure_move(old, new) for old, new in ends]):.2f}")
        cells.append(f"{np.mean([new.agreement - old.agreement for old, new in ends]):+.3f}")
    else:
        cells += [""] * 3
    cells += [interval([found[part] for found in judged]) for part in judged[0]]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="microct-base", help="name of a packaged model, or a run folder")
    parser.add_argument("--out", type=Path, default=Path("runs/adapt"))
    parser.add_argument("--judged", type=Path, default=Path("runs/transfer"), help="--out of transfer.py")
    parser.add_argument("--variants", nargs="+", default=[NONE, *VARIANTS], choices=[NONE, *VARIANTS])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--share", type=float, default=Teaching.share, help="of the pixels that are learned")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60, help="of an epoch")
    parser.add_argument("--always", type=float, choices=(0.25, 0.5, 0.75, 1.0), help="so much of the new weights")
    arguments = parser.parse_args()
    if not 0 < arguments.share <= 1 or min(arguments.seeds, arguments.epochs, arguments.steps) < 1:
        parser.error("--share must be above 0 and at most 1, --seeds, --epochs and --steps at least 1")
    bench, is_begun = Bench(arguments), False
    for variant in arguments.variants:
        alphas: list[float] = []
        signals: list[dict[float, Signals]] = []
        judged: list[dict[str, float]] = []
        if variant == NONE:
            alphas, judged = [0.0], [bench.judge(arguments.model)]
        for seed in range(0 if variant == NONE else arguments.seeds):
            folder, found = bench.teach(variant, seed)
            for alpha, signs in found.items():
                reasons = explain_refusal(found[0.0], signs) if alpha else []
                sys.stderr.write(f"{variant}, seed {seed}, {alpha:g}: {signs}; {'; '.join(reasons) or 'allowed'}\n")
            signals.append(found)
            alphas.append(choose_alpha(found) if arguments.always is None else arguments.always)
            judged.append(bench.judge(bench.mix(folder, alphas[-1])))
        if not is_begun:
            headings, is_begun = (*COLUMNS, *judged[0]), True
            print(f"| {' | '.join(headings)} |\n|{'-|' * len(headings)}")
        print(describe(variant, alphas, signals, judged), flush=True)


if __name__ == "__main__":
    main()
