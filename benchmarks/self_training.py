"""Self-training on images that nobody has labelled, as benchmarks/adapt.py tries it.

A teacher labels the images, a student learns what it says where it is most certain, beside synthetic tissue whose labels are
true, and weights on the way from the old to the new ones are taken only as far as three signs that need no label allow it
(`explain_refusal`). Nothing here knows what the result is judged by.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from transfer_measures import EDGE, plan_crops

from neurotome.atomic import write_json
from neurotome.classes import ClassSet
from neurotome.datasets.base import Cutout, Dataset
from neurotome.errors import ImageError
from neurotome.experiments.fine_tune import ALPHAS, RECIPE
from neurotome.inference.slices import predict_slices
from neurotome.keywords import replace_settings
from neurotome.metrics import confusion, scores
from neurotome.models.model_folder import load_model
from neurotome.normalize import find_tissue
from neurotome.predictor import Predictor, predict_slice
from neurotome.runs import Run, find_method, record_run
from neurotome.shared_scale import DatasetScales
from neurotome.training.fit import fit
from neurotome.training.prepare import prepare, settle_recipe
from neurotome.training.recipe import Recipe
from neurotome.volume import Volume

if TYPE_CHECKING:
    from neurotome.training.module import SegmentationModule

GENTLE = replace_settings(
    RECIPE, {"sample": {"patch": 192}, "train": {"learning_rate": 1e-4, "encoder_rate": 0.1, "average": 0.99}}
)
"""Settings of a student: those of fine-tuning, but slower, since its labels are guesses."""

MOST_MOVED = 1.5
"""Factor by which the share of a class in the images may grow or shrink."""

LEAST_RISE = 0.002
"""By how much the agreement of views must rise at least."""

MOST_LOST = 0.01
"""By how much the macro F1 of synthetic tissue may fall; no label is there to say that something else was learned for it."""

LEAST_SHARE = 0.002
"""Shares below this count as this: of so few pixels a factor says little."""

LEAST_USABLE = 0.94
"""Share of a view that must be usable; what is missing then reaches less than 64 of 256 pixels into it, also at a corner."""

VIEWS = 16
"""Places at which overlapping views are compared, spread evenly over all images."""

Labels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Guess = tuple[Labels, NDArray[np.float32]]
"""What a teacher takes each pixel for, and the probability that it gives to that; of one shape."""


@dataclass(frozen=True)
class Teaching:
    """How a model teaches itself."""

    share: float = 0.5
    """Share of the pixels that are learned, those of which the teacher is most certain; the others are ignored."""

    class_wise: bool = True
    """Take this share of every class, with a threshold for each: Zou et al. (2018), arXiv 1810.07911. False: one threshold
    for all, which keeps what is easy and frequent."""

    follow: bool = False
    """The teacher is the moving average of the student's weights, and labels every batch before it is augmented: Tarvainen
    and Valpola (2017), arXiv 1703.01780. False: it is the first model, averaged over eight views, and does not change."""


@dataclass(frozen=True)
class Signals:
    """What can be known of a model without a label.

    Attributes:
        tissue: Macro F1 of synthetic tissue.
        shares: Of each class in the views.
        agreement: Macro F1 of small views, each on its own grey scale, against wide views of the same pixels.
    """

    tissue: float
    shares: tuple[float, ...]
    agreement: float


@dataclass(frozen=True)
class View:
    """The same pixels seen twice.

    Attributes:
        wide: Scaled grey values (channels, y, x) with what lies around.
        crop: Rows and columns of the pixels in it.
        alone: Those pixels, scaled by what they hold themselves, (channels, y', x').
    """

    wide: NDArray[np.float32]
    crop: tuple[slice, slice]
    alone: NDArray[np.float32]


def predict_turned(predictor: Predictor, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns probabilities (classes, y, x) of a scaled slice (channels, y, x), the mean of its eight flips and turns."""
    total = np.zeros((len(predictor.classes), *image.shape[1:]), np.float32)
    for turns in range(4):
        turned = np.rot90(image, turns, (1, 2))
        for step in (1, -1):
            probs = predict_slice(predictor, np.ascontiguousarray(turned[:, :, ::step]))
            total += np.rot90(probs[:, :, ::step], -turns, (1, 2))
    return total / 8


def guess(predictor: Predictor, volumes: Sequence[Volume]) -> list[Guess]:
    """Labels volumes by eight views, on the grey scale that they share."""
    scales, guesses = DatasetScales(predictor.normalization, volumes), []
    for volume in volumes:
        labels, confidence = np.empty(volume.shape, np.uint8), np.empty(volume.shape, np.float32)
        for z in range(volume.shape[0]):
            grey = volume.read_context(z, predictor.in_channels)
            probs = predict_turned(predictor, scales.scale_for(volume).apply(grey))
            labels[z], confidence[z] = probs.argmax(0), probs.max(0)
        guesses.append((labels, confidence))
    return guesses


def mark_tissue(volume: Volume) -> Mask:
    """Returns where tissue is, shape (z, y, x): air is background beyond doubt and would be all that is kept of it."""
    grey = find_tissue(volume)
    least = grey.dark + 0.4 * (grey.centre - grey.dark)
    return np.stack([ndimage.uniform_filter(np.asarray(plane, np.float32), 15) > least for plane in volume.data])


def keep_confident(
    guesses: Sequence[Guess], usable: Sequence[Mask], classes: ClassSet, share: float, class_wise: bool
) -> list[Labels]:
    """Returns the labels of the pixels of which the teacher is most certain, the ignore value elsewhere.

    Args:
        guesses: Of each volume.
        usable: Pixels of each that may be learned.
        classes: The classes.
        share: Of the usable pixels that are kept, at least; of all volumes together. Equally certain ones are kept together.
        class_wise: Keep this share of what is taken for each class.
    """
    labels = np.concatenate([found[mask] for (found, _), mask in zip(guesses, usable, strict=True)])
    confidence = np.concatenate([sure[mask] for (_, sure), mask in zip(guesses, usable, strict=True)])
    thresholds = np.full(len(classes), np.inf, np.float32)
    for class_id in range(len(classes)):
        chosen = confidence[labels == class_id] if class_wise else confidence
        if chosen.size:
            first = chosen.size - max(1, round(share * chosen.size))
            thresholds[class_id] = np.partition(chosen, first)[first]
    return [
        np.where(mask & (sure >= thresholds[found]), found, classes.ignore).astype(np.uint8)
        for (found, sure), mask in zip(guesses, usable, strict=True)
    ]


def train_student(cutouts: Sequence[Cutout], classes: ClassSet, folder: Path, recipe: Recipe, teaching: Teaching) -> Run:
    """Trains on what the teacher says, from `recipe.init`; stopped, it goes on.

    Args:
        cutouts: The images with the teacher's labels; where the teacher follows, only whether they are ignored is looked at.
        classes: The classes of the model to start from.
        folder: The student's run.
        recipe: Settings, `GENTLE` or near it.
        teaching: Who the teacher is.
    """
    dataset = Dataset("unlabelled images", classes, {"train": tuple(cutouts)})
    settled = settle_recipe(dataset, recipe)
    config = {"dataset": dataset.name, **dataclasses.asdict(settled.recipe), "teaching": dataclasses.asdict(teaching)}
    method = f"{settled.recipe.model.decoder}, {settled.recipe.model.encoder}, self-trained"
    origin = find_method(recipe.init), settled.init_sha256
    record = record_run("network", method, config, dataset, recipe.train.seed, *origin)
    run = Run(folder)
    run.check(config, record)
    if not run.is_finished:
        module = prepare(dataset, settled)
        with run.claim(config, record):
            fit(follow_average(module, teaching) if teaching.follow else module, run)
    return run


def follow_average(module: SegmentationModule, teaching: Teaching) -> SegmentationModule:
    """Returns a training like `module`, not begun, in which the average of the weights labels each batch of images."""
    import torch
    from torch import Tensor

    from neurotome.training.module import SegmentationModule

    class Follower(SegmentationModule):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            (images, labels), own, classes = batch, self.sampler.own, self.predictor.classes
            assert self.average is not None
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                seen = images[:own].contiguous(memory_format=torch.channels_last)
                sure, found = self.average.module.eval()(seen).softmax(1).max(1)
            usable = (labels[:own] != classes.ignore).cpu().numpy()
            if usable.any():
                said = found.to(torch.uint8).cpu().numpy(), sure.cpu().numpy()
                (kept,) = keep_confident([said], [usable], classes, teaching.share, teaching.class_wise)
                labels = torch.cat([torch.from_numpy(kept).to(labels), labels[own:]])
            return super().training_step((images, labels), batch_idx)

    module.predictor.net = module.net  # in the place of which the first training has put its own average
    known = module.predictor, module.loss, module.sampler, module.validation, module.augment_settings, module.settings
    return Follower(*known, module.rank)


def cut_views(
    predictor: Predictor, volumes: Sequence[Volume], usable: Sequence[Mask], number: int = VIEWS, edge: int = EDGE
) -> list[View]:
    """Returns up to so many views of crops that are tissue and mostly usable, spread evenly over the volumes.

    Crops whose own grey scale is refused are left out, as they would be refused for a user.

    Raises:
        ImageError: There is no such crop.
    """
    places = [
        (volume, z, crop)
        for volume, mask in zip(volumes, usable, strict=True)
        for z in range(volume.shape[0])
        for crop in plan_crops(np.asarray(volume.data[z]), (0, 0), edge)
        if mask[z][crop].mean() >= LEAST_USABLE
    ]
    scales, views = DatasetScales(predictor.normalization, volumes), []
    chosen = np.unique(np.linspace(0, len(places) - 1, number).round().astype(int)) if places else []
    for volume, z, crop in (places[at] for at in chosen):
        around = [slice(max(0, part.start - edge // 2), part.stop + edge // 2) for part in crop]
        rows, columns = (slice(p.start - a.start, p.stop - a.start) for p, a in zip(crop, around, strict=True))
        grey = volume.read_context(z, predictor.in_channels, *around)
        alone = grey[:, rows, columns]
        with contextlib.suppress(ImageError):
            own_scale = predictor.normalization.scale_for(Volume(alone, "a view"))
            views.append(View(scales.scale_for(volume).apply(grey), (rows, columns), own_scale.apply(alone)))
    if not views:
        raise ImageError(f"no {edge} x {edge} pixels of tissue in {len(volumes)} images; expected at least one such place.")
    return views


def measure(predictor: Predictor, views: Sequence[View], tissue: Sequence[Cutout]) -> Signals:
    """Returns the signs by which a model is taken or refused."""
    classes = predictor.classes
    pixels = np.zeros(len(classes), np.int64)
    same, known = (np.zeros((len(classes),) * 2, np.int64) for _ in range(2))
    for view in views:
        wide = predict_slice(predictor, view.wide).argmax(0)[view.crop]
        pixels += np.bincount(wide.ravel(), minlength=len(classes))
        same += confusion(wide, predict_slice(predictor, view.alone).argmax(0), classes)
    for cutout in tissue:
        for z, probs in enumerate(predict_slices(predictor, cutout.volume)):
            known += confusion(cutout.read_labels(z), probs.argmax(0), classes)
    agreement, remembered = (float(scores(counts, classes.names)["macro"]["f1"]) for counts in (same, known))
    return Signals(remembered, tuple((pixels / pixels.sum()).tolist()), agreement)


def measure_move(before: Signals, after: Signals) -> float:
    """Returns the largest factor, at least 1, by which the share of a class has grown or shrunk."""
    shares = np.maximum([before.shares, after.shares], LEAST_SHARE)
    return float((shares.max(0) / shares.min(0)).max())


def explain_refusal(before: Signals, after: Signals) -> list[str]:
    """Returns why a model must not take the place of the one before, nothing if it may.

    Agreement alone would be best for a model that finds nothing, which the shares forbid. Of synthetic tissue alone the
    labels are known.
    """
    reasons = []
    if after.tissue < before.tissue - MOST_LOST:
        fall = before.tissue - after.tissue
        reasons.append(f"the score of synthetic tissue falls by {fall:.3f}; expected {MOST_LOST} at most")
    if (moved := measure_move(before, after)) > MOST_MOVED:
        reasons.append(f"the share of a class changes by a factor of {moved:.2f}; expected {MOST_MOVED} at most")
    if not after.agreement >= before.agreement + LEAST_RISE:
        rise = after.agreement - before.agreement
        reasons.append(f"agreement of views rises by {rise:.4f}; expected {LEAST_RISE} at least")
    return reasons


def choose_alpha(signals: Mapping[float, Signals]) -> float:
    """Returns the share of the new weights with the best agreement of those that are not refused, 0 if all are."""
    allowed = [alpha for alpha, found in signals.items() if alpha and not explain_refusal(signals[0.0], found)]
    return max(allowed, key=lambda alpha: (signals[alpha].agreement, -alpha), default=0.0)


def adapt(
    volumes: Sequence[Volume],
    usable: Sequence[Mask],
    guesses: Sequence[Guess],
    tissue: Sequence[Cutout],
    folder: Path,
    recipe: Recipe,
    teaching: Teaching,
) -> dict[float, Signals]:
    """Lets the model `recipe.init` teach itself on volumes; returns the signs by share of the new weights.

    Args:
        volumes: What is learned from.
        usable: Which of their pixels, such as those of tissue.
        guesses: From `guess`, by the model.
        tissue: Synthetic, from `make_checked`.
        folder: Gets `student/`, a run, and `signals.json`; what is there is not made again.
        recipe: Settings of the student.
        teaching: How it is taught.
    """
    path = folder / "signals.json"
    if not path.is_file():
        from neurotome.models.net import choose_device
        from neurotome.models.net_predictor import mix

        old = load_model(recipe.init)
        share = 1.0 if teaching.follow else teaching.share
        labels = keep_confident(guesses, usable, old.classes, share, teaching.class_wise)
        cutouts = [Cutout(volume, known) for volume, known in zip(volumes, labels, strict=True)]
        student = load_model(train_student(cutouts, old.classes, folder / "student", recipe, teaching).folder)
        student.net.to(choose_device(recipe.train.device))
        views = cut_views(old, volumes, usable)
        found = {str(alpha): dataclasses.asdict(measure(mix(old, student, alpha), views, tissue)) for alpha in ALPHAS}
        write_json(path, found)
    return {
        float(alpha): Signals(kept["tissue"], tuple(kept["shares"]), kept["agreement"])
        for alpha, kept in json.loads(path.read_text()).items()
    }
