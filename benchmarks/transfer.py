"""How a model does on real microCT: honest validation, one row for each model.

    python benchmarks/transfer.py --data ../shared/data --models microct-base runs/mine --out runs/transfer

Four labelled patches say little and soon have been looked at too often, so five kinds of evidence stand beside each other:

patches     the four real patches as they are, each scaled by its own grey. A model that was trained on them, which stands
            beside its name, scores too high here; for what few labels bring to a region that was left out see --numbers.
near planes two label planes of VP and striatum against the whole slices z = 159 and z = 309. They are a few slices off, so
            nothing reaches 1 here: axons are compared pixel by pixel, vessels and cells with 2 pixels tolerance. All axon
            would have F1 0.89 and 0.76 in VP; the correlation (phi) of such a guess is 0.
densities   cells and vessels (number and area) at the four annotated places of both slices, 256 x 256 pixels each, against
            the eight label planes of each region.
objects     precision and recall of whole cells and vessels on the patches: two objects match if they share at least half of
            the smaller one. Objects of fewer than 4 pixels count nowhere.
views       the same pixels seen in crops of 256 x 256, each scaled by its own grey, against the whole slice: where the whole
            slice says that most of a crop is axon, and elsewhere.

`selection` is the mean of seven numbers between 0 and 1: pooled macro F1 of the patches; that of the worst patch; in VP axon
F1, axon phi and 1 - how far the share of axon is off, each the mean of both slices; density (mean of 16 ratios, the smaller
by the larger, of the mean of both slices and the median of the planes); views (macro F1, mean of both kinds and slices).
Whoever chooses by a number should know how often it was looked at: each row that is printed is counted in OUT/looks.json.

What a model says is kept under OUT by the digest of its weights; delete that file after a change of prediction itself.
--scale slice scales the crops as their whole slice, --scale patches the four patches as one image.

--numbers 1 2 3: leave one region out. The model is fine-tuned, as `neurotome fine-tune` does it, on 1, 2 or 3 of the other
patches and predicts the one it has not seen; pooled as above; --repeats times with other seeds and, but for all three, other
choices of patches, and a 95 % interval over them (Student's t). --forest: a random forest besides. What is finished is kept;
benchmarks/few_labels.py compares recipes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from printed_tables import join, show
from scipy import stats
from transfer_measures import NEAR_PLANES, OFFSETS, UNSEEN, Labels, Said, judge, plan_crops, read_patches, read_slices

from neurotome import open_dataset
from neurotome.atomic import atomic_path, write_json
from neurotome.classes import ClassSet
from neurotome.datasets.base import Cutout, Dataset
from neurotome.datasets.phantom.make import CLASSES
from neurotome.errors import ImageError
from neurotome.experiments.fine_tune import RECIPE, choose_images, tune_and_score
from neurotome.keywords import replace_settings
from neurotome.load import load_predictor
from neurotome.models.model_folder import find_model, read_digest
from neurotome.models.stored_model import read_description
from neurotome.normalize import Scale
from neurotome.pixels.train import BaselineSettings, fit_baseline
from neurotome.predictor import Predictor, predict_slice
from neurotome.scoring import score_images
from neurotome.volume import Volume


def predict_labels(predictor: Predictor, image: NDArray[Any], scale: Scale | None = None) -> Labels:
    """Labels one image (y, x), by its own grey scale where none is given; what reads several slices gets it repeatedly."""
    volume = Volume(image[None], "slice")
    scale = scale or predictor.normalization.scale_for(volume)
    grey = scale.apply(volume.read_context(0, predictor.in_channels))
    return predict_slice(predictor, grey).argmax(0).astype(np.uint8)


def predict_patches(predictor: Predictor, data: Path, scale_by: str) -> Said:
    patches = {patch.name: patch.volume.data[0] for patch in read_patches(data)}
    side_by_side = Volume(np.concatenate(list(patches.values()), axis=1)[None], "the patches")
    scale = predictor.normalization.scale_for(side_by_side) if scale_by == "patches" else None
    return {name: predict_labels(predictor, grey, scale) for name, grey in patches.items()}


def predict_wholes(predictor: Predictor, data: Path) -> Said:
    return {f"slice{z}": predict_labels(predictor, grey) for z, grey in read_slices(data).items()}


def predict_crops(predictor: Predictor, data: Path, scale_by: str) -> Said:
    said = {}
    for z, grey in read_slices(data).items():
        scale = predictor.normalization.scale_for(Volume(grey[None], "slice")) if scale_by == "slice" else None
        for number, offset in enumerate(OFFSETS):
            seen = said[f"crops{z}-{number}"] = np.full(grey.shape, UNSEEN, np.uint8)
            for crop in plan_crops(grey, offset):
                with contextlib.suppress(ImageError):  # refused, as it would be for a user
                    seen[crop] = predict_labels(predictor, grey[crop], scale)
    return said


def recall_or_predict(model: str, data: Path, scale_by: str, out: Path) -> Said:
    predictor = load_predictor(model)
    if predictor.classes.names != CLASSES:
        raise SystemExit(f"{model} predicts {', '.join(predictor.classes.names)}; expected {', '.join(CLASSES)}.")
    pieces: dict[str, Callable[[], Said]] = {
        "patches-together" if scale_by == "patches" else "patches": lambda: predict_patches(predictor, data, scale_by),
        "wholes": lambda: predict_wholes(predictor, data),
        "crops-as-slice" if scale_by == "slice" else "crops": lambda: predict_crops(predictor, data, scale_by),
    }
    said, seconds = {}, 0.0
    for name, predict in pieces.items():
        path = out / f"{read_digest(model)[:16]}-{name}.npz"
        if not path.is_file():
            begun = time.process_time()
            piece = predict()
            piece["seconds"] = np.array(time.process_time() - begun)
            with atomic_path(path) as temporary:
                np.savez_compressed(temporary, **piece)
        with np.load(path, allow_pickle=False) as stored:
            said.update(stored)
        seconds += float(said["seconds"])
    return {**said, "seconds": np.array(seconds)}


def list_real_data(model: str) -> list[str]:
    """Names of the datasets that a model and those it began with were trained on, but for synthetic tissue."""
    facts, names = read_description(find_model(model))[0].get("facts", {}), []
    while facts:
        names.append(str(facts.get("dataset")))
        facts = facts.get("init")
    return [name for name in names if not name.startswith("phantom")]


def count_look(out: Path, model: str) -> tuple[int, int]:
    """Writes down that a model was looked at; returns how often, and how often any model was."""
    path, digest = out / "looks.json", read_digest(model)
    looks = json.loads(path.read_text()) if path.is_file() else {}
    looks.setdefault(digest, {"model": model, "times": []})["times"].append(time.strftime("%Y-%m-%d %H:%M:%S"))
    write_json(path, looks)
    return len(looks[digest]["times"]), sum(len(look["times"]) for look in looks.values())


def show_models(found: dict[str, dict[str, Any]]) -> None:
    patches = {model: f["patches"] for model, f in found.items()}
    show(
        "Patches: pooled macro F1 (95 % interval over tiles), each patch; background / vessel / cell / axon",
        ["model", "macro F1", "cortex / striatum / TRN / zona incerta", "precision", "recall", "F1"],
        (
            [m, f"{p['macro']:.3f} ({p['interval'][0]:.3f} to {p['interval'][1]:.3f})", join(p["single"])]
            + [join((c[key] for c in p["per_class"]), 2) for key in ("precision", "recall", "f1")]
            for m, p in patches.items()
        ),
    )
    show(
        "Objects on the patches",
        ["model", "vessel precision / recall", "cell precision / recall"],
        ([m, *(join(p["objects"][kind], 2) for kind in ("vessel", "cell"))] for m, p in patches.items()),
    )
    for region in ("vp", "striatum"):
        show(
            f"Near planes, {region}, z = 159 / z = 309; the planes are a few slices off",
            ["model", "axon F1", "axon phi", "axon share", "share of the plane", "vessel F1 within 2", "cell F1 within 2"],
            (
                [m, *(join((f["near"][region, z][key] for z in NEAR_PLANES), 2) for key in f["near"][region, 159])]
                for m, f in found.items()
            ),
        )
    first = next(iter(found.values()))["densities"]
    regions = list(dict.fromkeys(region for _, region in first))
    for measure in dict.fromkeys(measure for measure, _ in first):
        digits, unit = (1, "of the area") if "%" in measure else (0, "per 256 x 256")
        planes = [first[measure, region]["planes"] for region in regions]
        show(
            f"Density, {measure} {unit}, z = 159 / z = 309",
            ["model", *regions],
            [
                ["label planes: median (range)"]
                + [f"{np.median(p):.{digits}f} ({min(p):.{digits}f} to {max(p):.{digits}f})" for p in planes],
                *([m, *(join(f["densities"][measure, r]["found"], digits) for r in regions)] for m, f in found.items()),
            ],
        )
    kinds = [(z, kind) for z in NEAR_PLANES for kind in ("axon", "neuropil")]
    show(
        "Views: crops against the whole slice, equal pixels / macro F1",
        ["model", *(f"z = {z}, mostly {kind}" for z, kind in kinds), "crops refused"],
        (
            [m]
            + [join(f["views"][z][kind], 2) if kind in f["views"][z] else "none" for z, kind in kinds]
            + [str(sum(view["refused"] for view in f["views"].values()))]
            for m, f in found.items()
        ),
    )


def show_selection(found: dict[str, dict[str, Any]], looks: dict[str, tuple[int, int]], *, seeds: bool) -> None:
    rows = [
        [m, *(f"{v:.3f}" for v in f["selection"].values()), str(looks[m][0]), f"{f['seconds']:.0f}"]
        for m, f in found.items()
    ]
    parts = list(next(iter(found.values()))["selection"])
    if seeds:
        rows.append(
            ["mean (95 % interval)", *(interval([f["selection"][part] for f in found.values()]) for part in parts), "", ""]
        )
    total = max(total for _, total in looks.values())
    show(f"Selection; looks at any model so far: {total}", ["model", *parts, "looks", "CPU s"], rows)


def fine_tune(patches: Dataset, model: str, seed: int, run: Path) -> Predictor:
    """Does what `neurotome fine-tune` does; stopped, it goes on."""
    recipe = replace_settings(RECIPE, {"train": {"seed": seed}, "init": model})
    tune_and_score(choose_images(patches), "patches", run, recipe)
    predictor = load_predictor(run)
    shutil.rmtree(run)
    return predictor


def choose(others: list[Cutout], number: int, repeat: int) -> tuple[Cutout, ...]:
    turned = others[repeat:] + others[:repeat]
    return tuple(turned[:number])


def leave_one_out(data: Path, model: str | None, number: int, repeat: int, out: Path) -> dict[str, Any]:
    """Scores of the four patches, each predicted by a model fine-tuned on others; by a random forest where none is given."""
    folder = out / f"{read_digest(model)[:16] if model else 'forest'}-{number}-{repeat}"
    cutouts, images = read_patches(data), []
    for held_out in cutouts:
        path = folder / f"{held_out.name}.npy"
        if not path.is_file():
            others = choose([cutout for cutout in cutouts if cutout is not held_out], number, repeat)
            patches = replace(open_dataset(data / "microct_patches"), splits={"train": others})
            predictor: Predictor
            if model:
                predictor = fine_tune(patches, model, repeat, folder / held_out.name)
            else:
                predictor = fit_baseline(patches, BaselineSettings(seed=repeat))
            with atomic_path(path) as temporary:
                np.save(temporary, predict_labels(predictor, held_out.volume.data[0]))
        images.append((held_out.name, held_out.read_labels(0), np.load(path, allow_pickle=False)))
    return score_images("microct_patches", f"{number} others seen, repeat {repeat}", ClassSet(CLASSES), images)


def interval(values: Sequence[float]) -> str:
    """Returns the mean, and its 95 % interval by Student's t where there are several values."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.3f}"
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{mean:.3f} ({mean - half:.3f} to {mean + half:.3f})"


def show_left_out(arguments: argparse.Namespace) -> None:
    rows = []
    for model in [*arguments.models, *([None] if arguments.forest else [])]:
        for number in arguments.numbers:
            found = [leave_one_out(arguments.data, model, number, r, arguments.out) for r in range(arguments.repeats)]
            classes = np.mean([[c["f1"] for c in f["per_class"].values()] for f in found], axis=0)
            single = np.mean([f["per_image"]["macro_f1"] for f in found], axis=0)
            macro = interval([f["macro"]["f1"] for f in found])
            rows.append([model or "random forest", str(number), macro, join(classes, 2), join(single)])
    show(
        f"Leave one region out: mean of {arguments.repeats} repeats (95 % interval over them)",
        ["model", "patches", "macro F1", "background / vessel / cell / axon", "cortex / striatum / TRN / zona incerta"],
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["microct-base"], help="names of packaged models, run folders")
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--scale", choices=("own", "slice", "patches"), default="own")
    parser.add_argument("--seeds", action="store_true", help="the models differ by their seed: show mean and interval")
    parser.add_argument("--numbers", nargs="+", type=int, choices=(1, 2, 3), default=[])
    parser.add_argument("--forest", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    found, names = {}, {}
    for model in dict.fromkeys(arguments.models):
        real = list_real_data(model)
        names[model] = f"{model} (trained on {', '.join(real)})" if real else model
        said = recall_or_predict(model, arguments.data, arguments.scale, arguments.out)
        found[names[model]] = {**judge(said, arguments.data), "seconds": float(said["seconds"])}
    show_models(found)
    show_selection(found, {name: count_look(arguments.out, model) for model, name in names.items()}, seeds=arguments.seeds)
    if arguments.numbers:
        show_left_out(arguments)


if __name__ == "__main__":
    main()
