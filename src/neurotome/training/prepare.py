"""prepare: builds all that training needs and checks every setting, before anything is written."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurotome.augment import check_augment
from neurotome.datasets.base import Dataset
from neurotome.datasets.statistics import list_seen
from neurotome.errors import DatasetError
from neurotome.lazy import mend_torchvision
from neurotome.losses import build_loss
from neurotome.models.model_folder import read_digest
from neurotome.models.networks import build_network
from neurotome.normalize import fit_normalization
from neurotome.training.recipe import Recipe, check_training
from neurotome.training.sampler import PatchSampler, collect_slices
from neurotome.training.start import add_tissue, load_init, settle_recipe
from neurotome.volume import note_other_size

if TYPE_CHECKING:
    from neurotome.training.module import SegmentationModule


def prepare(dataset: Dataset, recipe: Recipe = Recipe()) -> SegmentationModule:
    """Builds all that training needs and checks every setting; writes nothing.

    Args:
        dataset: Has the splits train and val; with `recipe.init` val may be missing.
        recipe: Settings.

    Raises:
        NeurotomeError: A setting cannot work, or the data do not suit it.
    """
    check_training(recipe.train)
    check_augment(recipe.augment)
    init = load_init(dataset, recipe.init) if recipe.init else None
    recipe = settle_recipe(dataset, recipe, init)
    model, sample, train = recipe.model, recipe.sample, recipe.train
    if init is None:
        normalization = fit_normalization((c.volume for c in dataset.split("train")), train.normalization)
    else:
        normalization = init.normalization
    held_out = dataset.split("val") if "val" in list_splits(dataset, recipe) else ()
    if not held_out:
        warnings.warn(
            f"{dataset.name}: no split val, so nothing is validated and the weights of the last epoch are kept, not the "
            "best ones.",
            stacklevel=2,
        )
    for cutout in held_out:
        normalization.scale_for(cutout.volume)
    seen = add_tissue(dataset, train.replay, sample.patch, model.in_channels, train.seed) if train.replay else dataset
    sampler = PatchSampler(seen, sample, normalization, model.in_channels, train.seed)
    if init is None:
        list_seen(dataset, sampler.counts.sum(0))
    criterion = build_loss(recipe.loss, dataset.classes, sampler.counts.sum(0))

    mend_torchvision()  # torchmetrics imports it, and lightning torchmetrics
    import torch

    from neurotome.models.net import choose_device, measure_halo
    from neurotome.models.net_predictor import NetPredictor
    from neurotome.training.module import SegmentationModule

    choose_device(train.device)
    torch.manual_seed(train.seed)
    if init is None:
        net = build_network(model, len(dataset.classes))
        halo, bounded = measure_halo(net, model.in_channels)
    else:
        net, halo, bounded = init.net, init.halo, init.bounded
    facts: dict[str, Any] = {
        "dataset": dataset.name,
        "licence": dataset.licence,
        "citation": dataset.citation,
        "training_data_sha256": dataset.fingerprint("train"),
    }
    if init is not None:
        origin = {key: init.facts[key] for key in ("dataset", "licence", "citation", "init") if key in init.facts}
        facts["init"] = {"name": recipe.init, "weights_sha256": read_digest(Path(recipe.init)), **origin}
        note_other_size(recipe.init, init.voxel_size_um, dataset.voxel_size_um)
    predictor = NetPredictor(
        net, model, dataset.classes, normalization, halo, bounded, sample.patch, dataset.voxel_size_um, facts
    )
    net.train()
    validation = [(held_out[c], z) for c, z in collect_slices(held_out, train.val_slices)]
    steps = train.steps_per_epoch or choose_steps(sampler)
    return SegmentationModule(predictor, criterion, sampler, validation, recipe.augment, train, steps)


def list_splits(dataset: Dataset, recipe: Recipe) -> tuple[str, ...]:
    """Returns the splits that training reads: train and val, or train alone where fine-tuning finds no val.

    Raises:
        DatasetError: One that training needs is missing or empty.
    """
    names = ("train",) if recipe.init and not dataset.splits.get("val") else ("train", "val")
    dataset.split("train")
    if "val" in names and "val" not in dataset.splits:
        raise DatasetError(
            f"{dataset.name}: found no split val, by which training chooses its best weights. Name some images under "
            "splits: val in dataset.yaml, other ones than in train and test; or start from a trained model with --init, "
            "which needs none."
        )
    dataset.split(names[-1])
    return names


def choose_steps(sampler: PatchSampler) -> int:
    """Returns the steps of an epoch: one pass, or 50 if that is more, so that scoring does not take most of the time."""
    passes = sampler.steps_per_pass
    return passes if sampler.settings.order == "sequential" else max(50, passes)
