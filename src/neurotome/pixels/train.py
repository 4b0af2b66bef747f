"""fit_baseline: a pixel classifier trained on a dataset, within a limit of memory."""

from __future__ import annotations

import dataclasses
import time
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from neurotome.datasets.base import Dataset
from neurotome.datasets.statistics import count_slices, is_labelled, list_seen
from neurotome.errors import SettingsError, unknown
from neurotome.features import EncoderSettings, Extractor, FeatureSettings, FilterSettings, build_extractor
from neurotome.features.choose import Kind
from neurotome.metrics import confusion, scores
from neurotome.normalize import fit_normalization
from neurotome.pixels.classifiers import Linear
from neurotome.pixels.learners import (
    LEARNERS,
    BoostingSettings,
    ForestSettings,
    Learner,
    LearnerName,
    LogisticSettings,
    make_boosting,
    make_forest,
    make_logistic,
)
from neurotome.pixels.predictor import PixelPredictor
from neurotome.pixels.sample import draw_pixels, limit_rows
from neurotome.quantities import read_bytes

PRIORS = (1.0, 0.75, 0.5, 0.25, 0.0)  # tried where the prior is auto
USUAL_PRIOR = 0.75  # where there is no split val to choose by
VAL_PIXELS = 10_000  # of each class of the split val, by which the prior is chosen


@dataclass(frozen=True)
class BaselineSettings:
    """How a pixel classifier is trained."""

    learner: LearnerName = "rf"
    """rf: random forest; lr: logistic regression; gbdt: gradient boosted trees."""

    features: Kind = "filters"
    """identity: the grey value; filters: a bank at several scales; encoder: inner layers of a network."""

    pixels_per_class: int = 20_000
    """Training pixels drawn from each class, over all slices; all of them where a class has fewer. 0: every labelled
    pixel."""

    prior: float | Literal["auto"] = "auto"
    """How far probabilities follow the class frequencies of the training data: 1 wholly, which gives the best accuracy; 0
    not at all, which finds the most of rare classes; auto: the best macro F1 on the split val, 0.75 without one."""

    max_memory: str = "2GB"
    """Memory for the features of training pixels and what the learner makes of them, such as 500MB or 2GB. Where more would
    be needed, fewer pixels are drawn. Images and the features of the windows in work, up to 200 MB, come on top."""

    normalization: Literal["dataset", "image", "tissue"] = "dataset"
    """How grey values are scaled: by mean and deviation of all training images, by each image's own, or by its tissue. The
    layers of a trained model are always computed with its own."""

    seed: int = 0
    """Seed of the draw of pixels and of the learner."""

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
        if self.learner not in LEARNERS:
            raise SettingsError(unknown("learner", self.learner, LEARNERS))
        if self.pixels_per_class < 0:
            raise SettingsError(f"pixels_per_class is {self.pixels_per_class}; expected at least 1, or 0 for all.")
        if self.prior != "auto" and not 0 <= self.prior <= 1:
            raise SettingsError(f"prior is {self.prior}; expected 0 to 1, or auto.")
        if not 0 <= self.seed < 1 << 32:
            raise SettingsError(f"seed is {self.seed}; expected 0 to {(1 << 32) - 1}.")
        read_bytes(self.max_memory)
        self.feature_settings  # noqa: B018  # checks the kind

    @property
    def feature_settings(self) -> FeatureSettings:
        """The settings of the features alone."""
        return FeatureSettings(self.features, self.filters, self.encoder)


def check_baseline(dataset: Dataset, settings: BaselineSettings) -> None:
    """Raises what `fit_baseline` would, as far as it can be known before a run folder is made."""
    extractor = build_extractor(settings.feature_settings, dataset.voxel_size_um)
    seen = list_seen(dataset, count_slices(dataset).sum(axis=0), warn=False)
    _limit_rows(settings, _choose_learner(settings), extractor, len(seen))


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
        The predictor; its facts say how it was trained.

    Raises:
        DatasetError: There is no training split, or it has pixels of fewer than two classes.
        ImageError: The training images are constant or hold NaN.
        ModelError: The encoder cannot be had.
        SettingsError: Not even one pixel of each class fits into the memory that was given.
        NeurotomeError: An extra is missing.
    """
    learner = _choose_learner(settings)
    totals = count_slices(dataset).sum(axis=0)
    seen = list_seen(dataset, totals)
    extractor = build_extractor(settings.feature_settings, dataset.voxel_size_um, device)
    # a trained network wants its input as it was trained
    volumes = (cutout.volume for cutout in dataset.split("train"))
    normalization = extractor.normalization or fit_normalization(volumes, settings.normalization)
    most_rows = _limit_rows(settings, learner, extractor, len(seen))
    began = time.monotonic()
    asked, rows = (limit_rows(totals, settings.pixels_per_class, most) for most in (None, most_rows))
    limited = None
    if rows.sum() < asked.sum():
        size = asked.sum() * learner.count_bytes(len(extractor.names)) / 1e9
        limited = (
            f"{asked.sum():,} pixels would take {size:.2g} GB, more than max_memory {settings.max_memory}, so "
            f"{rows.sum():,} of them were drawn, as many of each class as there are and as fit. Raise --max-memory to learn "
            "from more."
        )
        warnings.warn(f"{dataset.name}: {limited}", stacklevel=2)
    table, labels = draw_pixels(dataset, "train", rows, extractor, normalization, settings.seed)
    classifier = learner.train(table, np.searchsorted(seen, labels), _balance(rows)[labels])
    del table
    features, weights = settings.feature_settings, _weigh(totals[seen], 1.0)
    predictor = PixelPredictor(
        dataset.classes, normalization, features, extractor, classifier, seen, weights, dataset.voxel_size_um
    )
    prior, tried = settings.prior, dict[str, float | None]()
    if prior == "auto":
        prior, tried = _choose_prior(predictor, dataset, totals, settings.seed)
    training = {
        "learner": learner.name,
        "features": len(extractor.names),
        "pixels": dict(zip(dataset.classes.names, rows.tolist(), strict=True)),
        "labelled_pixels": dict(zip(dataset.classes.names, totals.tolist(), strict=True)),
        "method": "all" if rows.sum() == totals.sum() else "sampled",
        "limited": limited,
        "prior": prior,
        "prior_val_macro_f1": tried,
        "seconds": time.monotonic() - began,
    }
    return dataclasses.replace(predictor, weights=_weigh(totals[seen], prior), facts={"training": training})


def fit_majority(dataset: Dataset) -> PixelPredictor:
    """Returns the weakest baseline: every pixel has the class frequencies of the training data."""
    totals = count_slices(dataset).sum(axis=0)
    seen = np.flatnonzero(totals)
    normalization = fit_normalization(cutout.volume for cutout in dataset.split("train"))
    settings = FeatureSettings("identity")
    undecided = Linear(np.zeros((len(seen), 1), np.float32), np.zeros(len(seen), np.float32))
    return PixelPredictor(
        dataset.classes, normalization, settings, build_extractor(settings), undecided, seen, _weigh(totals[seen], 1.0)
    )


def _choose_learner(settings: BaselineSettings) -> Learner:
    if settings.learner == "rf":
        return make_forest(settings.seed, settings.forest)
    if settings.learner == "lr":
        return make_logistic(settings.seed, settings.logistic)
    return make_boosting(settings.seed, settings.boosting)


def _limit_rows(settings: BaselineSettings, learner: Learner, extractor: Extractor, classes: int) -> int:
    """Returns how many pixels fit into the memory that was given, at least one of each class."""
    row_bytes = learner.count_bytes(len(extractor.names))
    most_rows = int(read_bytes(settings.max_memory) / row_bytes)
    if most_rows < classes:
        raise SettingsError(
            f"max_memory is {settings.max_memory}, but {classes} pixels, one of each class, already take "
            f"{int(row_bytes * classes)} bytes with {len(extractor.names)} features. Give more."
        )
    return most_rows


def _balance(rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the weight of a pixel of each class, with which all classes weigh the same and pixels 1 in the mean."""
    drawn = rows > 0
    return np.asarray(np.divide(rows.sum(), rows * drawn.sum(), out=np.zeros(len(rows)), where=drawn))


def _weigh(totals: NDArray[np.int64], prior: float) -> NDArray[np.float32]:
    """Returns what the probabilities of the seen classes, learned as if equally frequent, are multiplied by."""
    shares = (totals / totals.sum()) ** prior
    return np.asarray(shares / shares.max(), np.float32)


def _choose_prior(
    predictor: PixelPredictor, dataset: Dataset, totals: NDArray[np.int64], seed: int
) -> tuple[float, dict[str, float | None]]:
    """Returns the prior with the best macro F1 on a sample of the split val, and the macro F1 of each."""
    if not is_labelled(dataset, "val"):
        return USUAL_PRIOR, {}
    val_totals = count_slices(dataset, "val").sum(axis=0)
    rows = limit_rows(val_totals, VAL_PIXELS)
    table, labels = draw_pixels(dataset, "val", rows, predictor.extractor, predictor.normalization, seed)
    probs = predictor.classifier.predict(np.ascontiguousarray(table.T))
    # each drawn pixel stands for as many as its class has of them
    stands_for = np.divide(val_totals, rows, out=np.zeros(len(rows)), where=rows > 0)
    by_prior: dict[str, float | None] = {}
    for prior in PRIORS:
        chosen = predictor.seen[(probs * _weigh(totals[predictor.seen], prior)[:, None]).argmax(0)]
        matrix = confusion(labels, chosen, dataset.classes) * stands_for[:, None]
        by_prior[f"{prior:g}"] = scores(matrix.round().astype(np.int64), dataset.classes.names)["macro"]["f1"]
    return max(PRIORS, key=lambda prior: by_prior[f"{prior:g}"] or 0.0), by_prior
