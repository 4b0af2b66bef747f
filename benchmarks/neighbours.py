"""What a model gains by seeing neighbouring slices.

    OMP_NUM_THREADS=1 python benchmarks/neighbours.py --data ../shared/data --models microct-base runs/microct-base-25d

scores      phantom volumes of seeds that no training has, in both modes, 4 of each region: F1 with a 95 % interval
            (bootstrap over volumes), the difference to the first model on the same volumes, and how much of a vessel is
            called cell and of a cell vessel.
along z     how well a label goes on from slice to slice: equal pixels; of each class twice what neighbouring slices share
            by what they hold together; and of the vessels in 3D (voxels that touch at a corner belong together) those that
            are seen in one slice only. A vessel goes on, so fewer is better as long as the scores do not fall. The
            phantom's own labels say what can be reached. The cube is real and has no labels.
alike       whether the cube is what the models know: the grey and the unit of its tissue, and how much voxels resemble the
            next one along z, y and x, which tells voxels of another size or shape.

Two slices at both ends are predicted and not measured, because their neighbours are repeated. What a model says is kept
under OUT by the digest of its weights and of the image; delete that folder after a change of prediction itself. The time is
of the process (CPU seconds); it means something only on a machine that does nothing else, with models timed in one call.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from printed_tables import join, show
from scipy import ndimage

from neurotome.atomic import atomic_path
from neurotome.classes import ClassSet
from neurotome.datasets.phantom.make import CLASSES, make_cutout
from neurotome.datasets.phantom.regions import INSTRUMENT, REGIONS, draw_instrument, draw_region
from neurotome.inference.slices import predict_slices
from neurotome.load import load_predictor
from neurotome.metrics import confusion
from neurotome.models.model_folder import read_digest
from neurotome.models.net_predictor import NetPredictor
from neurotome.normalize import measure_tissue
from neurotome.volume import Volume

VESSEL, CELL = 1, 2
SEED = 251  # no recipe has it
SHAPE = (12, 192, 192)
ENDS = 2
DRAWS = 2000
MODES = ("faithful", "randomised")
TOUCHING = np.ones((3, 3, 3), bool)

Labels = NDArray[np.uint8]
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


class Stack(NamedTuple):
    kind: str  # faithful, randomised or cube
    image: NDArray[np.uint8]
    truth: Labels | None = None


def make_stacks(number: int) -> Iterable[Stack]:
    """Phantom volumes: so many of each region and mode."""
    for mode in MODES:
        for name, base in enumerate(REGIONS.values()):
            for repeat in range(number):
                rng = np.random.default_rng([SEED, MODES.index(mode), name, repeat])
                region, instrument = (base, INSTRUMENT)
                if mode == "randomised":
                    region, instrument = draw_region(base, rng), draw_instrument(rng)
                yield Stack(mode, *make_cutout(region, instrument, SHAPE, rng))


def read_cube(data: Path) -> Stack:
    with np.load(data / "microct_patches" / "unlabelled" / "xbrain_cube3_96x200x200.npz", allow_pickle=False) as content:
        return Stack("cube", content["volume"])


def predict_or_recall(predictor: Any, digest: str, image: NDArray[np.uint8], out: Path) -> tuple[Labels, float]:
    """The labels of a stack (z, y, x), and the CPU seconds that they took."""
    path = out / f"{digest[:16]}-{hashlib.sha256(image.tobytes()).hexdigest()[:16]}.npz"
    if not path.is_file():
        begun = time.process_time()
        labels = [probs.argmax(0).astype(np.uint8) for probs in predict_slices(predictor, Volume(image, "stack"))]
        seconds = time.process_time() - begun
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, labels=np.stack(labels), seconds=np.array(seconds))
    with np.load(path, allow_pickle=False) as stored:
        return stored["labels"], float(stored["seconds"])


def inner(stack: NDArray[Any]) -> NDArray[Any]:
    return stack[ENDS:-ENDS]


def score(counts: Counts) -> Floats:
    """F1 of each class and their mean, shape (..., classes + 1), of confusion matrices; nan of a class that is nowhere."""
    hit, marked = np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1) + counts.sum(-2)
    f1 = np.where(marked > 0, 2 * hit / np.maximum(marked, 1), np.nan)
    return np.concatenate([f1, np.nanmean(f1, -1, keepdims=True)], -1)


def resample(counts: Counts) -> Counts:
    """Sums of the confusion matrices (volumes, classes, classes) of volumes drawn again; the same for every model."""
    times = np.random.default_rng(0).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=DRAWS)
    return np.asarray(np.einsum("dv,vij->dij", times, counts))


def count_overlap(labels: Labels) -> Counts:
    """Of each class what neighbouring slices share, and what both hold, in pixels over all pairs: shape (classes, 2)."""
    above, below = labels[:-1], labels[1:]
    shared = np.bincount(above[above == below], minlength=len(CLASSES))
    held = np.bincount(above.ravel(), minlength=len(CLASSES)) + np.bincount(below.ravel(), minlength=len(CLASSES))
    return np.stack([shared, held], -1)


def count_lone(mask: NDArray[np.bool_]) -> Counts:
    """Objects in 3D that are seen in one slice only, and all; those in the first or last slice alone may go on outside."""
    spans = [place[0] for place in ndimage.find_objects(ndimage.label(mask, TOUCHING)[0])]
    lone = [span.start for span in spans if span.stop - span.start == 1]
    at_ends = sum(z in (0, len(mask) - 1) for z in lone)
    return np.array([len(lone) - at_ends, len(spans) - at_ends])


def correlate_next(image: NDArray[Any]) -> list[float]:
    """Pearson's correlation of voxels with the next one along z, y and x."""
    pairs = [(np.delete(image, -1, axis), np.delete(image, 0, axis)) for axis in range(3)]
    return [float(np.corrcoef(first.ravel(), second.ravel())[0, 1]) for first, second in pairs]


def say(value: float, draws: Floats, sign: str = "") -> str:
    low, high = np.nanpercentile(draws, (2.5, 97.5))
    return f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def say_confusion(counts: Counts, true: int, called: int) -> str:
    return f"{counts[true, called]} ({counts[true, called] / max(1, counts[true].sum()):.3f})"


def show_scores(mode: str, found: dict[str, Counts]) -> None:
    """Of confusion matrices (volumes, classes, classes) by model."""
    rows, first = [], next(iter(found.values()))
    for model, counts in found.items():
        summed, draws = score(counts.sum(0)), score(resample(counts))
        gain, gains = summed[-1] - score(first.sum(0))[-1], draws[:, -1] - score(resample(first))[:, -1]
        rows.append(
            [model, say(summed[-1], draws[:, -1]), "" if counts is first else say(gain, gains, "+")]
            + [say(summed[c], draws[:, c]) for c in range(len(CLASSES))]
            + [say_confusion(counts.sum(0), true, called) for true, called in ((VESSEL, CELL), (CELL, VESSEL))]
        )
    headings = [
        "model",
        "macro F1",
        "more than the first",
        *CLASSES,
        "vessel pixels called cell",
        "cell pixels called vessel",
    ]
    show(f"{len(first)} phantom volumes, {mode}: F1 (95 % interval over volumes)", headings, rows)


def show_along_z(kind: str, found: dict[str, list[Labels]]) -> None:
    """Of labelled stacks by model."""
    rows = []
    for model, stacks in found.items():
        shared, held = np.sum([count_overlap(labels) for labels in stacks], axis=0).T
        lone, objects = np.sum([count_lone(labels == VESSEL) for labels in stacks], axis=0)
        overlap = np.where(held > 0, 2 * shared / np.maximum(held, 1), np.nan)
        share = join(held[[VESSEL, CELL]] / held.sum())
        same = f"{2 * shared.sum() / held.sum():.4f}"
        rows.append([model, same, join(overlap), share, str(objects), f"{lone / max(1, objects):.3f}"])
    headings = [
        "model",
        "equal pixels",
        f"overlap of {' / '.join(CLASSES)}",
        "share of vessel / cell",
        "vessels",
        "in one slice",
    ]
    show(f"Along z, {kind}", headings, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["microct-base"], help="names of packaged models, run folders")
    parser.add_argument("--volumes", type=int, default=4, help="of each region and mode")
    parser.add_argument("--out", type=Path, default=Path("runs/neighbours"))
    arguments = parser.parse_args()
    models = dict.fromkeys(arguments.models)
    predictors = {model: load_predictor(model, "cpu") for model in models}
    for model, predictor in predictors.items():
        if predictor.classes.names != CLASSES:
            raise SystemExit(f"{model} predicts {', '.join(predictor.classes.names)}; expected {', '.join(CLASSES)}.")
    digests = {model: read_digest(model) for model in models}
    stacks = [read_cube(arguments.data), *make_stacks(arguments.volumes)]
    said: dict[str, list[Labels]] = {}
    costs = []
    for model, predictor in predictors.items():
        found = [predict_or_recall(predictor, digests[model], stack.image, arguments.out) for stack in stacks]
        said[model] = [inner(labels) for labels, _ in found]
        speed = sum(seconds for _, seconds in found) / sum(labels.size for labels, _ in found) * 1e6
        size = ""
        if isinstance(predictor, NetPredictor):
            size = f"{sum(p.numel() for p in predictor.net.parameters()) / 1e6:.3f} M"
        costs.append([model, str(predictor.in_channels), size, f"{speed:.2f}"])

    rows = []
    for kind in (*MODES, "cube"):
        images = [inner(stack.image) for stack in stacks if stack.kind == kind]
        scales = [measure_tissue(Volume(image, kind)) for image in images]
        grey, unit = np.median([[scale.mean, scale.std] for scale in scales], axis=0)
        rows.append([kind, f"{grey:.0f}", f"{unit:.1f}", join(np.median([correlate_next(i) for i in images], axis=0), 2)])
    show("Alike?", ["stack", "grey of tissue", "unit", "correlation with the next voxel along z / y / x"], rows)

    for kind in (*MODES, "cube"):
        of_kind = [number for number, stack in enumerate(stacks) if stack.kind == kind]
        labelled = {model: [labels[number] for number in of_kind] for model, labels in said.items()}
        truths = [inner(truth) for number in of_kind if (truth := stacks[number].truth) is not None]
        if truths:
            counted = {
                model: np.stack([confusion(t, f, ClassSet(CLASSES)) for t, f in zip(truths, labels, strict=True)])
                for model, labels in labelled.items()
            }
            show_scores(kind, counted)
        show_along_z(kind, {**({"the phantom's labels": truths} if truths else {}), **labelled})
    show("Cost", ["model", "slices seen", "parameters", "CPU s per Mpixel"], costs)


if __name__ == "__main__":
    main()
