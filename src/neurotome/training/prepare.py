"""prepare: builds all that training needs and checks every setting, before anything is written."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from neurotome.datasets.base import Dataset
from neurotome.datasets.phantom.stream import open_replay
from neurotome.datasets.statistics import list_seen
from neurotome.lazy import mend_torchvision
from neurotome.losses import build_loss
from neurotome.models.networks import build_network
from neurotome.normalize import fit_normalization
from neurotome.training.sampler import PatchSampler, collect_slices
from neurotome.training.start import Settled
from neurotome.volume import note_other_size

if TYPE_CHECKING:
    from neurotome.training.module import SegmentationModule


def prepare(dataset: Dataset, settled: Settled) -> SegmentationModule:
    """Builds all that training needs; writes nothing.

    Args:
        dataset: The one that the recipe was settled for.
        settled: From `settle_recipe`; the network of `settled.init` is the one that is trained.

    Raises:
        NeurotomeError: A setting cannot work, or the data do not suit it.
    """
    recipe, init = settled.recipe, settled.init
    model, sample, train = recipe.model, recipe.sample, recipe.train
    in_channels, patch = int(model.in_channels), int(sample.patch)
    if init is None:
        assert train.normalization != "auto"
        normalization = fit_normalization((c.volume for c in dataset.split("train")), train.normalization)
    else:
        normalization = init.normalization
    held_out = dataset.splits.get("val", ())
    if not held_out:
        warnings.warn(
            f"{dataset.name}: no split val, so nothing is validated and the weights of the last epoch are kept, not the "
            "best ones.",
            stacklevel=2,
        )
    for cutout in held_out:
        normalization.scale_for(cutout.volume)
    replay = (open_replay(dataset, patch, in_channels, train.seed), train.replay) if train.replay else None
    sampler = PatchSampler(dataset, sample, normalization, in_channels, train.seed, replay)
    if init is None:
        list_seen(dataset, sampler.class_counts)
    criterion = build_loss(recipe.loss, dataset.classes, sampler.class_counts)

    mend_torchvision()  # torchmetrics imports it, and lightning torchmetrics
    import torch

    from neurotome.models.net import choose_device, measure_halo
    from neurotome.models.net_predictor import NetPredictor
    from neurotome.training.module import SegmentationModule

    choose_device(train.device)
    torch.manual_seed(train.seed)
    if init is None:
        net = build_network(model, len(dataset.classes))
        halo, bounded = measure_halo(net, in_channels)
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
        facts["init"] = {"name": recipe.init, "weights_sha256": settled.init_sha256, **origin}
        note_other_size(recipe.init, init.voxel_size_um, dataset.voxel_size_um)
    predictor = NetPredictor(net, model, dataset.classes, normalization, halo, bounded, patch, dataset.voxel_size_um, facts)
    net.train()
    validation = [(held_out[c], z) for c, z in collect_slices(held_out, train.val_slices)]
    return SegmentationModule(predictor, criterion, sampler, validation, recipe.augment, train)
