"""fine_tune: a trained model, and a few annotated images by which it becomes better on others like them."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray

from neurotome.classes import ClassSet, Palette
from neurotome.datasets import open_dataset
from neurotome.datasets.base import Cutout, Dataset, DatasetOrName
from neurotome.datasets.phantom.make import CLASSES
from neurotome.datasets.phantom.stream import make_checked
from neurotome.datasets.scales import scale_dataset
from neurotome.documents import CONFIGS, read_yaml
from neurotome.errors import SettingsError
from neurotome.experiments.evaluate import finish, score_splits
from neurotome.experiments.run_network import train_and_score
from neurotome.inference.slices import predict_slices
from neurotome.keywords import replace_settings
from neurotome.load import load_predictor
from neurotome.metrics import confusion, scores
from neurotome.models.model_folder import load_model, save_model
from neurotome.progress import Progress
from neurotome.runs import Run, find_method, record_run
from neurotome.shared_scale import DatasetScales
from neurotome.tables import Table
from neurotome.training.prepare import prepare, settle_recipe
from neurotome.training.recipe import Recipe

BUILT_IN = "fine_tune"
"""The name of the settings in `configs/` that hold unless others are given."""

BASE = "microct-base"
"""The model that fine-tuning begins with unless another is named."""

RECIPE = replace_settings(Recipe(), read_yaml(CONFIGS / f"{BUILT_IN}.yaml", SettingsError, "Install neurotome again."))

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the trained weights that are tried; the others are those of the model that training began with."""

USUAL_ALPHA = 0.5
"""Where nothing can be left out to choose by: Wortsman et al. found it to be near the best in all of their data."""

MOST_PARTS = 4
"""Parts of the annotated images of which each is left out once."""

MOST_FORGOTTEN = 0.02
"""By how much the macro F1 of synthetic tissue may fall.

Learning how somebody draws costs the tissue, whose labels are drawn otherwise: where regions left out gained 0.02, it lost
0.017 (benchmarks/few_labels.py)."""

Counts = NDArray[np.int64]
"""A confusion matrix (classes, classes), rows true."""

Part = tuple[tuple[Cutout, ...], tuple[Cutout, ...]]
"""What is trained on, and what is left out."""


def fine_tune(
    dataset: DatasetOrName,
    *,
    out: Path,
    recipe: Annotated[Recipe, Parameter(name="*")] = RECIPE,
    palette: Palette = "colour-blind-safe",
) -> Path:
    """Fits a trained model, microct-base unless --init names another, to a few annotated images; writes a report.

    No setting must be chosen. The model is trained on the images, among which it sees synthetic tissue again so that it does
    not forget it. Weights between the old ones and the new ones are often better than both: how far to go is decided by
    leaving out each image (of one image, each quarter) once, and never by the split test, nor further than the scores of
    synthetic tissue allow. Where splits are stated, those of train and val are learned, otherwise all images.

    The same command given again goes on where it was stopped; once all is done it changes nothing.

    Args:
        dataset: Folder with dataset.yaml, whose classes are the model's; a class need not occur.
        out: Run folder; new, or one of the same settings.
        recipe: Settings as of train, whose defaults here are the built-in settings fine_tune.
        palette: Colours of the report's pictures.

    Returns:
        The report, `out/report.html`.

    Raises:
        NeurotomeError: The data, a setting or the run folder cannot be used; nothing has been changed then.
    """
    data = choose_images(open_dataset(dataset, recipe.stream))
    name = dataset.name if isinstance(dataset, Dataset) else str(dataset)
    run = tune_and_score(data, name, Path(out), recipe)
    sys.stderr.write(f"\n{describe_choice((run.read_training() or {})['fine_tuning'])}")
    return finish(run, data, palette)


def describe_choice(choice: Mapping[str, Any]) -> str:
    """Returns in words what `fine_tuning` in a run's summary says of the weights that were chosen."""
    columns = {name: choice[key] for name, key in (("left out", "left_out"), ("synthetic tissue", "tissue")) if choice[key]}
    rows = [
        (f"{alpha:.0%}{' (kept)' * (alpha == choice['alpha'])}", *(f"{found[str(alpha)]:.3f}" for found in columns.values()))
        for alpha in ALPHAS
    ]
    return f"mean F1 by how much of the new weights is taken:\n{Table(('', *columns), rows).to_text()}\n"


def choose_images(dataset: Dataset) -> Dataset:
    """Returns a dataset without a split val: what training reads is all in train, and test what somebody has put there."""
    train = dataset.wholes or (*dataset.split("train"), *dataset.splits.get("val", ()))
    test = () if dataset.wholes else dataset.splits.get("test", ())
    splits = {"train": train, "test": test} if test else {"train": train}
    return dataclasses.replace(dataset, splits=splits, wholes=())


def tune_and_score(dataset: Dataset, name: str, out: Path, recipe: Recipe) -> Run:
    """Does what `fine_tune` does, but for the report.

    Args:
        dataset: From `choose_images`.
        name: What `config.yaml` calls it.
        out: Run folder.
        recipe: Settings of the training; begins with `BASE` where it names no model.
    """
    recipe = dataclasses.replace(recipe, init=recipe.init or BASE)
    settled = settle_recipe(dataset, recipe)
    if settled.recipe.train.replay and dataset.classes.names != CLASSES:
        warnings.warn(
            f"{dataset.name}: there is no synthetic tissue of its classes, so that what the images do not show may be "
            f"forgotten; it has {', '.join(CLASSES)}.",
            stacklevel=2,
        )
        without = dataclasses.replace(settled.recipe.train, replay=0.0)
        settled = dataclasses.replace(settled, recipe=dataclasses.replace(settled.recipe, train=without))
    recipe, config = settled.recipe, {"dataset": name, **dataclasses.asdict(settled.recipe)}
    method = f"{recipe.model.decoder}, {recipe.model.encoder}, fine-tuned"
    origin = find_method(recipe.init), settled.init_sha256
    record = record_run(
        "network", method, {**config, "alphas": ALPHAS}, dataset, recipe.train.seed, *origin, settled.reference_sha256
    )
    run = Run(out)
    run.check(config, record)
    if not run.is_finished:
        prepare(dataset, settled)  # refuses what cannot be learned from before anything is written
    with run.claim(config, record):
        parts = run.folder / "parts"
        if not run.is_finished:
            _tune(dataset, name, run, parts, recipe)
        shutil.rmtree(parts, ignore_errors=True)
        score_splits(load_predictor(run.folder, recipe.train.device), dataset, run, tuple(dataset.splits))
    return run


def _tune(dataset: Dataset, name: str, run: Run, folder: Path, recipe: Recipe) -> None:
    """Trains on all parts but one and at last on all, decides by the parts, and writes model and summary into the run."""
    parts = leave_out(dataset.split("train"), dataset.groups, dataset.classes)
    runs = [Run(folder / str(number)) for number in range(len(parts) + 1)]
    progress = Progress("fine-tuning", len(runs))
    progress.start_at(sum(part.is_finished for part in runs))

    def train(number: int, cutouts: tuple[Cutout, ...]) -> Run:
        part = dataclasses.replace(dataset, splits={"train": cutouts})
        largest = max(min(cutout.volume.shape[1:]) for cutout in cutouts)
        patch = min(int(recipe.sample.patch), max(8, largest))  # the largest image may be left out
        asked = dataclasses.replace(recipe, sample=dataclasses.replace(recipe.sample, patch=patch))

        def advance(_: Mapping[str, float | None], share: float) -> None:
            progress.update(number + share, f"training {number + 1} of {len(runs)}")

        return train_and_score(part, name, runs[number].folder, asked, splits=(), on_epoch=advance)

    left_out = []
    for number, (seen, unseen) in enumerate(parts):
        trained = train(number, seen)
        left_out.append(count_by_alpha(recipe.init, trained, unseen, recipe.train.device, dataset))
    final = train(len(parts), dataset.split("train"))
    tissue: dict[float, Counts] = {}
    if dataset.classes.names == CLASSES:
        depth = max(int(recipe.model.in_channels), int(recipe.sample.depth))
        checked = make_checked(depth, recipe.train.seed)
        tissue = count_by_alpha(recipe.init, final, checked, recipe.train.device)
    alpha = choose_alpha(left_out, tissue, dataset.classes)

    def name_scores(counts: Mapping[float, Counts]) -> dict[str, float]:
        return {str(share): score for share, score in _score(counts, dataset.classes).items()}

    images = [[cutout.name for cutout in unseen] for _, unseen in parts]
    facts = {
        "alpha": alpha,
        "left_out": name_scores(_pool(left_out)),
        "parts": [{"images": i, "mean_f1": name_scores(counts)} for i, counts in zip(images, left_out, strict=True)],
        "tissue": name_scores(tissue),
    }
    from neurotome.models.net_predictor import mix

    predictor = mix(load_model(recipe.init), load_model(final.folder), alpha)
    save_model(predictor, run.model, {**predictor.facts, "fine_tuning": facts}, recipe.train.storage)
    run.write_metrics(final.read_metrics())
    summaries = [part.read_training() or {} for part in runs]
    seconds = sum(summary.get("seconds", 0.0) for summary in summaries)
    run.write_training({**summaries[-1], "seconds": seconds, "fine_tuning": facts})
    progress.finish(f"{alpha:.0%} of the new weights")


def leave_out(cutouts: Sequence[Cutout], groups: Mapping[str, str], classes: ClassSet) -> list[Part]:
    """Divides annotated images into up to `MOST_PARTS` parts, of which each is left out once.

    Images of one group stay together. A single image, or group, is divided into quarters, which border on each other: what
    they say is a little too good. None is left out of which, or without which, nothing is labelled.
    """
    labelled = [cutout for cutout in cutouts if _is_labelled(cutout, classes)]
    names = list(dict.fromkeys(groups.get(cutout.name, cutout.name) for cutout in labelled))
    parts: list[Part] = []
    if len(names) > 1:
        dealt = [names.index(groups.get(cutout.name, cutout.name)) % MOST_PARTS for cutout in labelled]
        for number in range(min(MOST_PARTS, len(names))):
            seen = tuple(cutout for cutout, part in zip(labelled, dealt, strict=True) if part != number)
            unseen = tuple(cutout for cutout, part in zip(labelled, dealt, strict=True) if part == number)
            parts.append((seen, unseen))
        return parts
    for quarter in range(4):
        kept, hidden = zip(*(_part_labels(cutout, quarter, classes.ignore) for cutout in labelled), strict=True)
        if any(_is_labelled(c, classes) for c in kept) and any(_is_labelled(c, classes) for c in hidden):
            parts.append((kept, hidden))
    return parts


def _is_labelled(cutout: Cutout, classes: ClassSet) -> bool:
    return bool(cutout.label_counts[:, : len(classes)].any())


def _part_labels(cutout: Cutout, quarter: int, ignore: int) -> tuple[Cutout, Cutout]:
    """Returns an image without the labels of a quarter, and with them alone."""
    _, height, width = cutout.volume.shape
    inside = np.zeros((height, width), bool)
    rows, columns = (
        slice(n // 2, None) if late else slice(n // 2) for n, late in ((height, quarter // 2), (width, quarter % 2))
    )
    inside[rows, columns] = True
    labels = np.asarray(cutout.labels)
    seen, unseen = (np.where(hidden, ignore, labels).astype(np.uint8) for hidden in (inside, ~inside))
    return Cutout(cutout.volume, seen), Cutout(cutout.volume, unseen)


def count_by_alpha(
    base: str, trained: Run, cutouts: Sequence[Cutout], device: str, dataset: Dataset | None = None
) -> dict[float, Counts]:
    """Returns the confusion matrix of images for each alpha, of weights between a model and what was trained from it.

    Images of a dataset are predicted on the grey scale that they share with its others.
    """
    from neurotome.models.net import choose_device
    from neurotome.models.net_predictor import mix

    old, new = load_model(base), load_model(trained.folder)
    new.net.to(choose_device(device))
    scales = scale_dataset(new.normalization, dataset) if dataset else DatasetScales(new.normalization, [])
    counts = {}
    for alpha in ALPHAS:
        predictor = mix(old, new, alpha)
        counts[alpha] = np.zeros((len(predictor.classes),) * 2, np.int64)
        for cutout in cutouts:
            for z, probs in enumerate(predict_slices(predictor, cutout.volume, scales.scale_for(cutout.volume))):
                counts[alpha] += confusion(cutout.read_labels(z), probs.argmax(0), predictor.classes)
    return counts


def choose_alpha(left_out: Sequence[Mapping[float, Counts]], tissue: Mapping[float, Counts], classes: ClassSet) -> float:
    """Returns the alpha by which the images that were left out, pooled, score best; of equal ones the smallest.

    Where tissue is given, its score must not be lower than that of alpha 0 by more than `MOST_FORGOTTEN`.
    """
    kept = _score(tissue, classes)
    allowed = [alpha for alpha in ALPHAS if not kept or kept[alpha] >= kept[0.0] - MOST_FORGOTTEN]
    if not left_out:
        return max(alpha for alpha in allowed if alpha <= USUAL_ALPHA)
    found = _score(_pool(left_out), classes)
    return max(allowed, key=lambda alpha: (found[alpha], -alpha))


def _pool(parts: Iterable[Mapping[float, Counts]]) -> dict[float, Counts]:
    """Returns the counts of all parts together, by alpha."""
    pooled: dict[float, Counts] = {}
    for counts in parts:
        for alpha, matrix in counts.items():
            pooled[alpha] = pooled.get(alpha, 0) + matrix
    return pooled


def _score(counts: Mapping[float, Counts], classes: ClassSet) -> dict[float, float]:
    """Returns by alpha the mean F1 of the classes that are labelled; one pixel found of another would be an F1 of 0."""
    found = {}
    for alpha, matrix in counts.items():
        per_class = scores(matrix, classes.names)["per_class"]
        found[alpha] = float(np.mean([entry["f1"] for entry in per_class.values() if entry["support"]]))
    return found
