"""evaluate: scores of a trained model on a split; and how a run is scored and reported."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from neurotome.atomic import write_json
from neurotome.classes import Palette
from neurotome.datasets import open_dataset
from neurotome.datasets.base import SPLITS, Cutout, Dataset, DatasetOrName
from neurotome.datasets.scales import scale_dataset
from neurotome.errors import ImageError, ModelError, RunError, SettingsError
from neurotome.inference.jobs import Output
from neurotome.inference.slices import label_slices, predict_slices
from neurotome.io import find_image, open_labels
from neurotome.load import load_predictor
from neurotome.models.model_folder import add_facts, find_model, read_digest
from neurotome.objects.scores import ObjectSettings
from neurotome.outputs import plan_outputs
from neurotome.predictor import Device, Predictor
from neurotome.progress import Progress
from neurotome.reference import identify_reference, refer
from neurotome.report import build_report, verdict
from neurotome.runs import Run
from neurotome.runs.contents import check_scores, read_checked
from neurotome.runs.run import redo_damaged
from neurotome.scoring import Scores, score_images
from neurotome.shared_scale import DatasetScales
from neurotome.statistics import IntervalSettings


def evaluate(
    model: str | Path,
    *,
    data: DatasetOrName,
    split: Literal["train", "val", "test"] = "test",
    out: Path | None = None,
    device: Device = "auto",
    reference: str = "",
    interval: IntervalSettings = IntervalSettings(),
    objects: ObjectSettings = ObjectSettings(),
) -> Scores:
    """Scores a trained model on a split of a dataset.

    Args:
        model: Run folder, model folder or the name of a packaged model.
        data: Dataset with the same classes as the model.
        split: Which images.
        out: File to write the scores to; new, or one of scores.
        device: Where it runs: auto (a GPU if there is one), cpu, cuda, cuda:1 (the second GPU) or mps.
        reference: Image, or folder of images, of the same scan over which the grey scale is measured; empty: over those
            images of the dataset that share one; own: each by itself.
        interval: How intervals are measured.
        objects: Which objects (cells, vessels) are scored, and how they are matched.

    Returns:
        The scores: a table as text, and the content of `scores/<split>.json` as a mapping.

    Raises:
        NeurotomeError: Model or data cannot be used, their classes differ, or `out` is a file of something else.
    """
    if out is not None:
        out = Path(out)  # text from Python
        # scores are made again at will; a file of anything else, such as a dataset.yaml, is not ours to replace
        existing: Literal["replace", "refuse"] = "refuse"
        with contextlib.suppress(OSError, RunError):
            read_checked(out, check_scores)
            existing = "replace"
        plan_outputs([out], inputs=[find_model(Path(model)), *Run(model).list_files()], existing=existing)
    dataset = open_dataset(data)
    dataset.split(split)
    objects.choose(dataset.classes)
    predictor = load_predictor(Path(model), device)
    if predictor.classes.names != dataset.classes.names:
        raise ModelError(
            f"{model}: the model's classes are {', '.join(predictor.classes.names)}, the dataset {dataset.name} has "
            f"{', '.join(dataset.classes.names)}. Choose a dataset with the model's classes, or train on this one."
        )
    if reference and predictor.normalization.mode != "tissue":
        raise SettingsError(
            f"--reference {reference}: the model scales grey values by {predictor.normalization.mode!r}, not by what images "
            "show. Leave it out."
        )
    normalization = refer(predictor.normalization, reference) if reference else predictor.normalization
    scales = scale_dataset(normalization, dataset, split)
    sys.stderr.writelines(f"note: {sentence}\n" for sentence in scales.said)
    made_from = trace_scores(dataset, split, read_digest(Path(model)))
    if reference:
        made_from["reference_sha256"] = str(identify_reference(reference))
    scored = score_split(predictor, dataset, split, interval=interval, scales=scales, objects=objects)
    scores = Scores({**scored, "made_from": made_from})
    if out is not None:
        write_json(out, scores)
    return scores


def finish(run: Run, dataset: Dataset, palette: Palette) -> Path:
    """Says the scores of the most telling split and what to do next, and writes and returns the report."""
    scores = run.read_scores(run.list_scored()[-1])
    assert scores is not None  # it is listed
    sys.stderr.write(f"\n{Scores(scores)}\n\n")
    sys.stderr.writelines(f"- {sentence}\n" for sentence in verdict(run))
    sys.stderr.write("\n")
    return build_report(run, dataclasses.replace(dataset, classes=dataset.classes.with_palette(palette)))


def score_splits(
    predictor: Predictor, dataset: Dataset, run: Run, splits: Sequence[str] = SPLITS, *, uncertainty: bool = False
) -> None:
    """Predicts and scores those of the splits that have images, and adds the scores to the model.

    What was made from the same images, labels, classes and weights is left alone. What is stale, damaged or missing is made
    again; of a split that the dataset has no more, it is deleted. With `uncertainty` the run gets maps of it too.
    """
    weights = read_digest(run.folder)
    macro_f1, mpixels, began = {}, 0.0, time.monotonic()
    for split in splits:
        cutouts = dataset.splits.get(split, ())
        made_from = trace_scores(dataset, split, weights) if cutouts else None
        scores = redo_damaged(partial(run.read_scores, split))
        if scores is None or scores.get("made_from") != made_from or not _are_whole(run, split, cutouts, uncertainty):
            run.delete_split(split)
            if not cutouts:
                continue
            maps = run.uncertainty(split) if uncertainty else None
            scores = {**score_split(predictor, dataset, split, run.predictions(split), maps), "made_from": made_from}
            run.write_scores(split, scores)
            mpixels += sum(cutout.volume.data.size for cutout in cutouts) / 1e6
        macro_f1[split] = scores["macro"]["f1"]
    summary = run.read_training()
    if mpixels and summary is not None:
        run.write_training({**summary, "scoring_mpixel_per_s": mpixels / (time.monotonic() - began)})
    add_facts(run.model, {"macro_f1": macro_f1})


def trace_scores(dataset: Dataset, split: str, weights_sha256: str) -> dict[str, str]:
    """Returns what scores were made from, by which stale ones are told."""
    return {"data_sha256": dataset.fingerprint(split), "weights_sha256": weights_sha256}


def score_split(
    predictor: Predictor,
    dataset: Dataset,
    split: str,
    predictions: Path | None = None,
    uncertainty: Path | None = None,
    interval: IntervalSettings = IntervalSettings(),
    scales: DatasetScales | None = None,
    objects: ObjectSettings = ObjectSettings(),
) -> dict[str, Any]:
    """Predicts the images of a split and scores them slice by slice.

    Label files go to the folder `predictions` and images of 1 - the probability of the chosen class, times 255, to
    `uncertainty`, if they are given. `scales` are those of the dataset's images if not given.

    Returns:
        The content of `scores/<split>.json`.
    """
    cutouts = dataset.split(split)
    scales = scales or scale_dataset(predictor.normalization, dataset, split)
    progress = Progress(f"scoring {split}", sum(c.volume.data.size for c in cutouts) / 1e6, "Mpixel")

    def advance(before: float, mpixels: float) -> None:
        progress.update(before + mpixels)

    def predict_all() -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]]:
        done = 0.0
        for cutout in cutouts:
            depth = cutout.volume.shape[0]
            name = f"{cutout.name}{'.png' if depth == 1 else '.tif'}"
            folders: dict[Output, Path | None] = {"labels": predictions, "uncertainty": uncertainty}
            files = {kind: folder / name for kind, folder in folders.items() if folder is not None}
            scale = scales.scale_for(cutout.volume)
            probs = predict_slices(predictor, cutout.volume, scale, on_progress=partial(advance, done))
            labelled = label_slices(probs, files, cutout.volume, dataset.classes)
            for z, (slice_name, labels) in enumerate(zip(cutout.slice_names, labelled, strict=True)):
                yield slice_name, cutout.read_labels(z), labels
            done += cutout.volume.data.size / 1e6

    sizes = [(cutout, cutout.volume.voxel_size_um) for cutout in cutouts]
    sizes_um = {name: size for cutout, size in sizes if size is not None for name in cutout.slice_names}
    scores = score_images(dataset.name, split, dataset.classes, predict_all(), interval, objects, sizes_um)
    if scales.said:
        scores["grey_scale"] = list(scales.said)
    progress.finish(f"macro F1 {scores['macro']['f1']:.3f}" if scores["macro"]["f1"] is not None else "")
    return scores


def _are_whole(run: Run, split: str, cutouts: tuple[Cutout, ...], uncertainty: bool) -> bool:
    """Says whether every image of a split has its prediction, which can be read; a damaged one is noted."""
    try:
        for cutout in cutouts:
            path = find_image(run.predictions(split), cutout.name)
            stored = open_labels(path)
            if stored.shape != cutout.volume.shape:
                raise ImageError(f"{path}: of another shape than the image {cutout.name}.")
            for _ in stored:  # what is damaged shows when it is read
                pass
            if uncertainty:
                find_image(run.uncertainty(split), cutout.name)
    except ImageError as error:
        warnings.warn(f"{error} The split {split} is predicted and scored again.", stacklevel=2)
        return False
    return bool(cutouts)
