"""What training starts from: settings made definite for the data at hand, and a trained model's weights."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurotome.datasets.base import Dataset
from neurotome.datasets.phantom.make import CLASSES
from neurotome.datasets.phantom.stream import StreamSettings, make_piece, wrap_piece
from neurotome.errors import ModelError, SettingsError
from neurotome.models.model_folder import load_model
from neurotome.models.networks import ModelSettings
from neurotome.progress import track
from neurotome.training.sampler import SampleSettings

if TYPE_CHECKING:
    from neurotome.models.net_predictor import NetPredictor
    from neurotome.training.recipe import Recipe

RATE = 3e-3
"""Automatic learning rate from random or ImageNet weights."""

REPLAYED = 120
"""Slices of synthetic tissue that are seen again in fine-tuning."""

REPLAY = 2
"""Their random stream; 0 and 1 are those of training and of held-out tissue."""

FINE_RATE = 3e-4
"""Automatic learning rate from a trained model, whose weights are to be kept nearly as they are."""


def settle_recipe(dataset: Dataset, recipe: Recipe, init: NetPredictor | None = None) -> Recipe:
    """Returns a recipe in which nothing is automatic; a settled one comes back as it is.

    Args:
        dataset: Has a split train.
        recipe: As asked for. With `init` its network and normalisation are the model's.
        init: The model of `recipe.init`; loaded if not given.

    Raises:
        ModelError: The model cannot be loaded, or its classes are not the dataset's.
        SettingsError: A setting contradicts the model.
    """
    model, train = recipe.model, recipe.train
    if recipe.init:
        init = init or load_init(dataset, recipe.init)
        model = _take_model(recipe, init)
        mode = init.normalization.mode
        usual = type(train)().normalization
        if train.normalization not in (usual, mode):
            raise SettingsError(
                f"train.normalization is {train.normalization!r}, but {recipe.init} was trained with {mode!r}, which its "
                "weights depend on. Leave the setting out, or leave out --init."
            )
        train = dataclasses.replace(train, normalization=mode)  # type: ignore[arg-type]  # checked when loaded
        if train.patience and not dataset.splits.get("val"):
            raise SettingsError(
                f"train.patience is {train.patience}, but {dataset.name} has no split val to watch; leave it out or name a "
                "split val in dataset.yaml."
            )
    if not train.learning_rate:
        train = dataclasses.replace(train, learning_rate=FINE_RATE if recipe.init else RATE)
    return dataclasses.replace(recipe, model=model, train=train, sample=_fit_patch(dataset, recipe.sample))


def load_init(dataset: Dataset, name: str) -> NetPredictor:
    """Loads the model that training starts from.

    Raises:
        ModelError: It cannot be loaded, or its classes are not the dataset's.
    """
    init = load_model(Path(name))
    if init.classes.names != dataset.classes.names:
        raise ModelError(
            f"--init {name}: the model's classes are {', '.join(init.classes.names)}, the dataset {dataset.name} has "
            f"{', '.join(dataset.classes.names)}; expected the same names in the same order. Rename or reorder the "
            "dataset's classes, or train without --init."
        )
    return init


def _take_model(recipe: Recipe, init: NetPredictor) -> ModelSettings:
    """Returns the model's settings, if those asked for are the defaults or the same."""
    usual, differing = ModelSettings(), []
    for field in dataclasses.fields(usual):
        asked, there = getattr(recipe.model, field.name), getattr(init.settings, field.name)
        if asked not in (getattr(usual, field.name), there):
            differing.append(f"model.{field.name} ({asked} asked, {there} there)")
    if differing:
        raise SettingsError(
            f"--init {recipe.init}: the model's network is another than the settings ask for: {'; '.join(differing)}. Leave "
            "these settings out, because the network comes with the weights, or train without --init."
        )
    return init.settings


def _fit_patch(dataset: Dataset, sample: SampleSettings) -> SampleSettings:
    """Returns settings whose patch fits into the largest image; another than the usual one is for the sampler to judge."""
    edge = max(min(cutout.volume.shape[1:]) for cutout in dataset.split("train"))
    if sample.patch != SampleSettings().patch or edge >= sample.patch or edge < 8:
        return sample
    patch = max(8, edge // 32 * 32)
    warnings.warn(
        f"{dataset.name}: the training images are smaller than the usual patch of {sample.patch} pixels; patches of {patch} "
        "are used. Say --sample.patch to choose.",
        stacklevel=2,
    )
    return dataclasses.replace(sample, patch=patch)


def add_tissue(dataset: Dataset, share: float, edge: int, depth: int, seed: int) -> Dataset:
    """Returns a dataset whose training pixels are synthetic tissue to a given share.

    A network that was trained on synthetic tissue forgets what a few patches do not show, such as white matter; seeing
    some of it again keeps it (rehearsal, Robins 1995, doi:10.1080/09540099550039318).

    Args:
        dataset: Of the phantom's classes. Its training cutouts are listed as often as the share needs.
        share: Above 0, below 1.
        edge: Edge of the synthetic slices in pixels.
        depth: Slices of each, one per input channel.
        seed: Same seed, same tissue.

    Raises:
        SettingsError: The classes are not those of the phantom, or the dataset is synthetic already.
    """
    if dataset.classes.names != CLASSES or dataset.stream is not None:
        made = " and is made of tissue already" if dataset.stream is not None else ""
        raise SettingsError(
            f"train.replay is {share}, but {dataset.name} has the classes {', '.join(dataset.classes.names)}{made}; "
            f"synthetic tissue can only be added to other data with the classes {', '.join(CLASSES)}. Use --train.replay 0."
        )
    settings = StreamSettings(seed=seed, edge=max(edge, 32), faithful=0.5)
    pieces = track(range(REPLAYED), "making tissue to replay", REPLAYED, "slices")
    tissue = tuple(wrap_piece(make_piece(settings, REPLAY, n, depth), f"tissue_{n:03d}") for n in pieces)
    own = dataset.split("train")
    pixels = sum(int(np.prod(c.volume.shape)) for c in tissue)
    copies = round(pixels * (1 - share) / share / sum(int(np.prod(c.volume.shape)) for c in own))
    return dataclasses.replace(dataset, splits={**dataset.splits, "train": own * max(1, copies) + tissue})
