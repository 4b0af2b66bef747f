"""fit_baseline: a pixel classifier trained on a dataset, within a limit of memory."""

from __future__ import annotations

import dataclasses
import re
import time
import warnings
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from neurotome.datasets.base import Dataset
from neurotome.datasets.statistics import count_slices, is_labelled, list_seen
from neurotome.errors import SettingsError
from neurotome.features import EncoderSettings, Extractor, FeatureSettings, FilterSettings, build_extractor
from neurotome.features.choose import Kind
from neurotome.metrics import image_scores
from neurotome.normalize import fit_normalization
from neurotome.pixels.classifiers import Classifier
from neurotome.pixels.learners import (
    BoostingSettings,
    ForestSettings,
    Learner,
    LogisticSettings,
    choose_learner,
)
from neurotome.pixels.predictor import PixelPredictor
from neurotome.pixels.sample import LabelledPixels, limit_rows

PRIORS = (1.0, 0.75, 0.5, 0.25, 0.0)
"""What is tried where `prior` is not given."""

USUAL_PRIOR = 0.75
"""Where there is no split val to choose by."""

VAL_PIXELS = 10_000
"""Pixels of each class of the split val by which the prior is chosen."""


@dataclass(frozen=True)
class BaselineSettings:
    """How a pixel classifier is trained."""

    learner: str = "rf"
    """rf (random forest), lr (logistic regression), gbdt (gradient boosted trees), or the import path of a classifier that
    can be saved without pickle, such as sklearn.neural_network.MLPClassifier; a wrong one is answered with the list."""

    features: Kind = "filters"
    """identity: the grey value; filters: a bank at several scales; encoder: inner layers of a network."""

    pixels_per_class: int = 20_000
    """Training pixels drawn from each class, over all slices; all of them where a class has fewer. 0: every labelled
    pixel."""

    prior: float | None = None
    """How far probabilities follow the class frequencies of the training data: 1 wholly, which gives the best accuracy; 0
    not at all, which finds the most of rare classes. Not given: the best macro F1 on the split val, 0.75 without one."""

    max_memory: str = "2GB"
    """Memory for the features of training pixels and what the learner makes of them, such as 500MB or 2GB. Where more would
    be needed, fewer pixels are drawn, or the learner learns from one part after another if it can. Images and the features
    of the windows in work, up to 200 MB, come on top."""

    normalization: Literal["dataset", "image", "tissue"] = "dataset"
    """How grey values are scaled: by mean and deviation of all training images, by each image's own, or by its tissue. The
    layers of a trained model are always computed with its own."""

    seed: int = 0
    """Seed of the draw of pixels and of the learner."""

    options: dict[str, int | float | str] = field(default_factory=dict)
    """Arguments of a learner named by import path, as --options.alpha 0.1."""

    filters: FilterSettings = FilterSettings()
    """Which filters."""

    encoder: EncoderSettings = EncoderSettings()
    """Which network and layers."""

    forest: ForestSettings = ForestSettings()
    """How rf is grown."""

    boosting: BoostingSettings = BoostingSettings()
    """How gbdt is grown."""

    logistic: LogisticSettings = LogisticSettings()
    """How lr is fitted."""

    def __post_init__(self) -> None:
        if self.pixels_per_class < 0:
            raise SettingsError(f"pixels_per_class is {self.pixels_per_class}; expected at least 1, or 0 for all.")
        if self.prior is not None and not 0 <= self.prior <= 1:
            raise SettingsError(f"prior is {self.prior}; expected 0 to 1.")
        if not 0 <= self.seed < 1 << 32:
            raise SettingsError(f"seed is {self.seed}; expected 0 to {(1 << 32) - 1}.")
        read_bytes(self.max_memory)
        self.feature_settings  # noqa: B018  # checks the kind

    @property
    def feature_settings(self) -> FeatureSettings:
        """The settings of the features alone."""
        return FeatureSettings(self.features, self.filters, self.encoder)


def read_bytes(text: str) -> int:
    """Returns a size such as 500MB, 2GB or 1.5 GiB in bytes.

    Raises:
        SettingsError: It is no size above 0.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", str(text), re.IGNORECASE)
    size = float(found[1]) * (1024 if found[3] else 1000) ** " kmgt".index(found[2].lower() or " ") if found else 0
    if size < 1:
        raise SettingsError(f"max_memory is {text!r}; expected a size such as 500MB or 2GB.")
    return int(size)


def check_baseline(dataset: Dataset, settings: BaselineSettings) -> None:
    """Checks what can be checked before a run folder is made: the learner, its extra, and the features.

    Raises:
        NeurotomeError: One of them cannot be had; see `fit_baseline`.
    """
    learner = _choose_learner(settings)
    extractor = build_extractor(settings.feature_settings, dataset.voxel_size_um)
    seen = list_seen(dataset, count_slices(dataset).sum(axis=0), warn=False)
    _count_rows(settings, learner, extractor, seen)


def _choose_learner(settings: BaselineSettings) -> Learner:
    return choose_learner(
        settings.learner, settings.seed, settings.forest, settings.boosting, settings.logistic, settings.options
    )


def fit_baseline(dataset: Dataset, settings: BaselineSettings = BaselineSettings(), device: str = "cpu") -> PixelPredictor:
    """Trains a pixel classifier on the training split.

    Each class has the same say in training, however rare it is: as many pixels are drawn from each, and classes that have
    fewer are weighted up. Bayes' rule then brings the probabilities back towards the class frequencies of the training data
    (Saerens, Latinne and Decaestecker, 2002, doi:10.1162/089976602753284446), as far as `prior` says.

    Args:
        dataset: Must have a split `train`. A class without a training pixel is warned about and never predicted.
        settings: Features, learner, sample.
        device: Where an encoder runs.

    Returns:
        The predictor; its facts say how it was trained: pixels, whether sampled or streamed, seconds.

    Raises:
        DatasetError: There is no training split, or it has pixels of fewer than two classes.
        ImageError: The training images are constant or hold NaN.
        ModelError: The encoder cannot be had.
        NeurotomeError: An extra is missing.
    """
    learner = _choose_learner(settings)
    counts = count_slices(dataset)
    totals = counts.sum(axis=0)
    seen = list_seen(dataset, totals)
    extractor = build_extractor(settings.feature_settings, dataset.voxel_size_um, device)
    # a trained network wants its input as it was trained
    normalization = getattr(extractor, "normalization", None) or fit_normalization(
        (cutout.volume for cutout in dataset.split("train")), settings.normalization
    )
    row_bytes, most_rows = _count_rows(settings, learner, extractor, seen)
    began = time.monotonic()
    asked = limit_rows(totals, settings.pixels_per_class)
    streamed = asked.sum() > most_rows and learner.stream is not None
    rows = asked if streamed else limit_rows(totals, settings.pixels_per_class, most_rows)
    pixels = LabelledPixels(dataset, "train", counts, extractor, normalization)
    if streamed:
        classifier = _learn_stream(pixels, rows, most_rows, learner, seen, settings.seed)
        method = "streamed"
    else:
        table, labels = pixels.draw(rows, settings.seed)
        weights = _balance(rows)[labels]
        classifier = learner.train(table, np.searchsorted(seen, labels), weights)
        method = "all" if rows.sum() == totals.sum() else "sampled"
        del table
    limited = _explain_limit(asked, rows, most_rows, row_bytes, learner, settings.max_memory, streamed)
    if limited:
        warnings.warn(f"{dataset.name}: {limited}", stacklevel=2)
    learned = np.ones(len(seen)) if learner.weighs else rows[seen] / rows.sum()
    predictor = PixelPredictor(
        dataset.classes,
        normalization,
        settings.feature_settings,
        extractor,
        classifier,
        seen,
        _weigh(totals[seen], learned, 1.0),
        dataset.voxel_size_um,
    )
    prior = settings.prior
    tried: dict[str, float | None] = {}
    if prior is None:
        prior, tried = _choose_prior(predictor, dataset, totals, learned, settings.seed)
    facts = {
        "training": {
            "learner": learner.name,
            "features": len(extractor.names),
            "pixels": dict(zip(dataset.classes.names, rows.tolist(), strict=True)),
            "labelled_pixels": dict(zip(dataset.classes.names, totals.tolist(), strict=True)),
            "method": method,
            "limited": limited,
            "prior": prior,
            "prior_val_macro_f1": tried,
            "seconds": time.monotonic() - began,
        }
    }
    return dataclasses.replace(predictor, weights=_weigh(totals[seen], learned, prior), facts=facts)


def _count_rows(
    settings: BaselineSettings, learner: Learner, extractor: Extractor, seen: NDArray[np.int64]
) -> tuple[float, int]:
    """Returns the bytes that training takes per pixel, and how many pixels fit into the memory that was given.

    Raises:
        SettingsError: Not even one of each class does.
    """
    row_bytes = learner.count_bytes(len(extractor.names))
    most_rows = int(read_bytes(settings.max_memory) / row_bytes)
    if most_rows < len(seen):
        raise SettingsError(
            f"max_memory is {settings.max_memory}, but {len(seen)} pixels, one of each class, already take "
            f"{int(row_bytes * len(seen))} bytes with {len(extractor.names)} features. Give more."
        )
    return row_bytes, most_rows


def _balance(rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the weight of a pixel of each class, with which all classes weigh the same and pixels 1 in the mean."""
    drawn = rows > 0
    weights: NDArray[np.float64] = np.divide(rows.sum(), rows * drawn.sum(), out=np.zeros(len(rows)), where=drawn)
    return weights


def _weigh(totals: NDArray[np.int64], learned: NDArray[np.float64], prior: float) -> NDArray[np.float32]:
    """Returns what the probabilities of the seen classes are multiplied by."""
    found = (totals / totals.sum()) ** prior / learned
    return np.asarray(found / found.max(), np.float32)


def _learn_stream(
    pixels: LabelledPixels,
    rows: NDArray[np.int64],
    most_rows: int,
    learner: Learner,
    seen: NDArray[np.int64],
    seed: int,
) -> Classifier:
    """Trains on one window after another, each in random order and at most so many rows at once."""
    assert learner.stream is not None
    stream = learner.stream(len(seen))
    weights = _balance(rows)
    rng = np.random.default_rng(seed)
    for table, labels in pixels.iterate(rows, seed):
        order = rng.permutation(len(labels))
        for first in range(0, len(order), most_rows):
            part = order[first : first + most_rows]
            stream.learn(table[part], np.searchsorted(seen, labels[part]), weights[labels[part]])
    return stream.finish()


def _explain_limit(
    asked: NDArray[np.int64],
    rows: NDArray[np.int64],
    most_rows: int,
    row_bytes: float,
    learner: Learner,
    limit: str,
    streamed: bool,
) -> str | None:
    if asked.sum() <= most_rows:
        return None
    need = f"{asked.sum():,} pixels would take {asked.sum() * row_bytes / 1e9:.2g} GB, more than max_memory {limit}"
    if streamed:
        return f"{need}, so {learner.name} learned from one part after another (streaming), from all of them."
    return (
        f"{need}, so {rows.sum():,} of them were drawn (sampling), as many of each class as there are and as fit. Raise "
        "--max-memory to learn from more."
    )


def _choose_prior(
    predictor: PixelPredictor,
    dataset: Dataset,
    totals: NDArray[np.int64],
    learned: NDArray[np.float64],
    seed: int,
) -> tuple[float, dict[str, float | None]]:
    """Returns the prior with the best macro F1 on a sample of the split val, and the macro F1 of each."""
    if not is_labelled(dataset, "val"):
        return USUAL_PRIOR, {}
    pixels = LabelledPixels(dataset, "val", count_slices(dataset, "val"), predictor.extractor, predictor.normalization)
    there = pixels.totals
    rows = limit_rows(there, VAL_PIXELS)
    table, labels = pixels.draw(rows, seed)
    found = predictor.classifier.predict(np.ascontiguousarray(table.T))
    scored: dict[str, float | None] = {}
    for prior in PRIORS:
        chosen = predictor.seen[(found * _weigh(totals[predictor.seen], learned, prior)[:, None]).argmax(0)]
        matrix = np.zeros((len(there), len(there)))
        np.add.at(matrix, (labels, chosen), 1)
        # each drawn pixel stands for as many as its class has of them
        matrix *= np.divide(there, rows, out=np.zeros(len(rows)), where=rows > 0)[:, None]
        scored[f"{prior:g}"] = image_scores(matrix.round().astype(np.int64))["macro_f1"]
    best = max(PRIORS, key=lambda prior: scored[f"{prior:g}"] or 0.0)
    return best, scored
