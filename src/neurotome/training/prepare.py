"""settle_recipe and prepare: decide what is auto, check every setting and build what training needs; nothing is written."""

from __future__ import annotations

import dataclasses
import math
import sys
import warnings
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from neurotome.augment import check_augment
from neurotome.datasets.base import Dataset
from neurotome.datasets.phantom.stream import open_replay
from neurotome.datasets.scales import scale_dataset
from neurotome.datasets.statistics import list_seen
from neurotome.errors import DatasetError, ModelError, SettingsError
from neurotome.lazy import mend_torchvision
from neurotome.losses import build_loss, is_whole, weigh_rehearsal
from neurotome.models.model_folder import build_predictor, find_model
from neurotome.models.networks import USUAL, ModelSettings, build_network, settle_network
from neurotome.models.stored_model import read_model
from neurotome.normalize import fit_normalization
from neurotome.reference import identify_reference, refer
from neurotome.training.machine import choose_devices
from neurotome.training.rank import Rank
from neurotome.training.recipe import Recipe, check_training
from neurotome.training.sampler import PatchSampler, SampleSettings, list_labelled
from neurotome.training.sizes import (
    DEPTH,
    PATCH,
    PATCH_3D,
    check_batch,
    check_single,
    choose_patch,
    choose_steps,
    count_tiles,
)
from neurotome.volume import note_other_size

if TYPE_CHECKING:
    from neurotome.models.net_predictor import NetPredictor
    from neurotome.training.module import SegmentationModule

RATE = 3e-3
"""Automatic learning rate from random or ImageNet weights."""

FINE_RATE = 3e-4
"""Automatic learning rate from a trained model, whose weights are to be kept nearly as they are."""

ORIGIN = ("dataset", "licence", "citation", "init", "widened_from", "deepened_from")
"""What a model says of the one that its training began with; the last two, how many slices that read if they were fewer,
and that it saw slices if this one sees volumes."""


@dataclass(frozen=True)
class Settled:
    """What training does, with nothing left to decide.

    Attributes:
        recipe: No setting in it is auto.
        init: The model that training starts from, if any; its network is trained.
        init_sha256: Digest of that model's weights.
        reference_sha256: What `train.reference` names, told by its content.
    """

    recipe: Recipe
    init: NetPredictor | None = None
    init_sha256: str | None = None
    reference_sha256: str | None = None


def settle_recipe(dataset: Dataset, recipe: Recipe = Recipe()) -> Settled:
    """Decides what is auto, from the data and the model to start from, and checks what was asked for.

    Args:
        dataset: Has a split train.
        recipe: As asked for; where all is stated it stays as it is.

    Raises:
        DatasetError: A split that training needs is missing or empty.
        ModelError: The model to start from cannot be loaded, or its classes are not the dataset's.
        SettingsError: A setting cannot work, or contradicts the model.
    """
    check_training(recipe.train)
    check_augment(recipe.augment)
    list_splits(dataset, recipe)
    if recipe.train.patience and not dataset.splits.get("val"):
        raise SettingsError(
            f"train.patience is {recipe.train.patience}, but {dataset.name} has no split val to watch; leave it out or "
            "name a split val in dataset.yaml."
        )
    init, digest = load_init(dataset, recipe.init) if recipe.init else (None, None)
    usual = init.settings if init else USUAL
    model = settle_network(recipe.model, usual)
    if model.dimensions == 3 and usual.dimensions == 2 and recipe.model.reach_from == "auto":
        model = dataclasses.replace(model, reach_from=choose_reach(dataset, int(model.encoder_depth)))
    mode = init.normalization.mode if init else "dataset"
    rate = FINE_RATE if init else RATE
    sample = settle_sample(recipe.sample, dataset, int(model.dimensions))
    decided = {"normalization": mode, "learning_rate": rate, "steps_per_epoch": choose_steps(dataset, sample)}
    decided["devices"] = choose_devices(recipe.train, sample, int(model.dimensions))
    decided = {name: value for name, value in decided.items() if getattr(recipe.train, name) == "auto"}
    train = dataclasses.replace(recipe.train, **decided)  # type: ignore[arg-type]  # each of its own type
    check_batch(sample, int(model.in_channels), len(dataset.classes))
    if dataset.source is not None:
        check_neighbours(dataset, recipe.stream.maps, int(model.in_channels), int(sample.depth))
    if train.data_on_device == "on" and dataset.source is not None:
        raise SettingsError(
            f"train.data_on_device is on, but the images of {dataset.name} change as training goes on; expected images that "
            "stay. Use auto or off."
        )
    if train.replay and sample.batch < 2:
        raise SettingsError(
            f"sample.batch is {sample.batch}, but some of the patches are to show synthetic tissue; expected 2 or more. "
            "Raise it, or use --train.replay 0."
        )
    if init is None and train.anchor:
        raise SettingsError(
            f"train.anchor is {train.anchor}, but there are no weights to stay near; name a model with --init."
        )
    if init is not None:
        init = _adapt_network(recipe.init, model, init)
        if train.normalization != mode:
            raise SettingsError(
                f"train.normalization is {train.normalization!r}, but {recipe.init} was trained with {mode!r}, which its "
                "weights depend on. Leave the setting out, or leave out --init."
            )
    if train.reference and (train.normalization != "tissue" or dataset.source is not None):
        raise SettingsError(
            f"train.reference is {train.reference!r}, but grey values are scaled by {train.normalization!r} and the dataset "
            f"is {dataset.name}; expected train.normalization tissue and images of one scan. Leave train.reference out."
        )
    recipe = dataclasses.replace(recipe, model=model, train=train, sample=sample)
    return Settled(recipe, init, digest, identify_reference(train.reference))


def choose_reach(dataset: Dataset, depth: int) -> int:
    """Returns `reach_from` that suits the data's voxels, for a network of `depth` stages.

    Slices are joined where the network's own pixels are about as wide as slices are apart, the rule by which nnU-Net chooses
    its kernels (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z): from the power of 2 on that is nearest to a voxel's
    depth over its width; from 1 where its size is not known.
    """
    z, *plane = dataset.voxel_size_um or (1.0, 1.0)
    return int(2 ** min(depth, max(0, round(math.log2(z / max(plane))))))


def settle_sample(sample: SampleSettings, dataset: Dataset, dimensions: int) -> SampleSettings:
    """Returns settings in which the patch and its depth are decided; 1 for a network that sees slices.

    Raises:
        SettingsError: A depth is asked for, but the network sees slices.
    """
    if dimensions == 2 and sample.depth not in ("auto", 1):
        raise SettingsError(
            f"sample.depth is {sample.depth}, but model.dimensions is 2; expected 1. Leave sample.depth out, or use "
            "--model.dimensions 3."
        )
    depth, patch = sample.depth, sample.patch
    if depth == "auto":
        shallowest = min(cutout.volume.shape[0] for cutout in dataset.split("train"))
        depth = 1 if dimensions == 2 else min(DEPTH, shallowest)
    if patch == "auto":
        patch = choose_patch(dataset, PATCH if dimensions == 2 else PATCH_3D)
    if dimensions == 3 and depth == 1:
        raise SettingsError(
            f"model.dimensions is 3, but sample.depth is 1 or {dataset.name} has images of one slice; expected images of "
            "several slices, all of them labelled. Use --model.dimensions 2."
        )
    return dataclasses.replace(sample, depth=depth, patch=patch)


def check_neighbours(dataset: Dataset, maps: str, in_channels: int, depth: int) -> None:
    """Checks that slices of synthetic tissue have as many neighbours as the network reads.

    Raises:
        SettingsError: They have not.
    """
    sees = f"the network sees {in_channels} slices at once (model.in_channels)"
    if depth > 1:
        in_channels = depth + 1 - depth % 2
        sees = f"the network sees volumes (model.dimensions 3) of {depth} slices (sample.depth)"
    if maps and in_channels > 1:
        raise SettingsError(
            f"stream.maps is {maps}, whose slices have no neighbours, but {sees}; expected a network that sees one. Leave "
            "stream.maps out, or use --model.dimensions 2 and --model.in-channels 1."
        )
    least = min(len(cutout.volume.stack) for split in ("val", "test") for cutout in dataset.split(split))
    if least < in_channels:
        raise SettingsError(
            f"stream.held_out_depth is {least}, but {sees}, and would be judged without the neighbours that it is trained "
            f"with. Use --stream.held-out-depth {in_channels}."
        )


def load_init(dataset: Dataset, name: str) -> tuple[NetPredictor, str]:
    """Loads the model that training starts from, and the digest of its weights.

    Raises:
        ModelError: It cannot be loaded, or its classes are not the dataset's.
    """
    stored = read_model(find_model(name))
    if stored.classes.names != dataset.classes.names:
        wanted, found = stored.classes.names, dataset.classes.names
        missing, verb = [name for name in wanted if name not in found], "are" if len(set(wanted) - set(found)) > 1 else "is"
        how = f"{', '.join(missing)} {verb} called otherwise there, or {verb} missing" if missing else ""
        how = how or ("those are the same names in another order" if set(wanted) == set(found) else "some are more")
        raise ModelError(
            f"--init {name}: the model's classes are {', '.join(wanted)}, the dataset {dataset.name} has {', '.join(found)}"
            f": {how}. List the model's classes in its order in dataset.yaml and give the labels their numbers; a class may "
            f"be absent, and pixels that are not labelled have the value {stored.classes.ignore}. Or train without --init."
        )
    return build_predictor(stored), str(stored.content["weights_sha256"])


def _adapt_network(name: str, asked: ModelSettings, init: NetPredictor) -> NetPredictor:
    """Returns the model to start from; where it is to read more slices, or see volumes, as `widen` or `deepen` makes it.

    Raises:
        ModelError: The network cannot be made to read more slices.
        SettingsError: The network asked for is another than the model's.
    """
    has = init.settings
    if int(asked.in_channels) > init.in_channels and dataclasses.replace(asked, in_channels=has.in_channels) == has:
        from neurotome.models.net_predictor import widen

        return widen(init, int(asked.in_channels))
    if (asked.dimensions, has.dimensions) == (3, 2) and dataclasses.replace(asked, dimensions=2, reach_from=1) == has:
        from neurotome.models.net_predictor import deepen

        return deepen(init, int(asked.reach_from))
    differing = [
        f"model.{field.name} ({getattr(asked, field.name)} asked, {getattr(has, field.name)} there)"
        for field in dataclasses.fields(asked)
        if getattr(asked, field.name) != getattr(has, field.name)
    ]
    if differing:
        raise SettingsError(
            f"--init {name}: the model's network is another than the settings ask for: {'; '.join(differing)}. Leave "
            "these settings out, because the network comes with the weights, or train without --init."
        )
    return init


def list_splits(dataset: Dataset, recipe: Recipe) -> tuple[str, ...]:
    """Returns the splits that training reads: train and val, or train alone where nothing needs a val that is not there.

    Raises:
        DatasetError: One that training needs is missing or empty.
    """
    can_do_without = bool(recipe.init) or recipe.train.keep == "last"
    names = ("train",) if can_do_without and not dataset.splits.get("val") else ("train", "val")
    dataset.split("train")
    if "val" in names and "val" not in dataset.splits:
        raise DatasetError(
            f"{dataset.name}: found no split val, by which training chooses its best weights. Name some images under "
            "splits: val in dataset.yaml, other ones than in train and test; or start from a trained model with --init, "
            "or keep the last weights with --train.keep last, which need none."
        )
    dataset.split(names[-1])
    return names


def prepare(dataset: Dataset, settled: Settled, rank: Rank | None = None) -> SegmentationModule:
    """Builds all that training needs; writes nothing.

    Args:
        dataset: The one that the recipe was settled for.
        settled: From `settle_recipe`; the network of `settled.init` is the one that is trained.
        rank: Which of the processes this is that train together, one for each of `train.devices`; None: the first.

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
    if train.reference:
        normalization = refer(normalization, train.reference)
    scales = scale_dataset(normalization, dataset)
    sys.stderr.writelines(f"note: {sentence}\n" for sentence in scales.said)
    held_out = dataset.splits.get("val", ())
    validation = [(held_out[c], z) for c, z in list_labelled(held_out, len(dataset.classes), train.val_slices)]
    what = "split val has no labelled pixel" if held_out else "no split val"
    if train.patience and not validation:
        raise SettingsError(
            f"train.patience is {train.patience}, but {dataset.name}: {what}, so that there is nothing to watch. Leave it "
            "out, or label an image of val."
        )
    if not validation and train.keep == "best":
        warnings.warn(
            f"{dataset.name}: {what}, so nothing is validated and the weights of the last epoch are kept, not the best "
            "ones.",
            stacklevel=2,
        )
    for cutout in held_out:
        scales.scale_for(cutout.volume)
    depth = int(sample.depth) if model.dimensions == 3 else None
    replay = (open_replay(dataset, patch, depth or in_channels, train.seed), train.replay) if train.replay else None
    rank = rank or Rank(0, int(train.devices))
    sampler = PatchSampler(dataset, sample, scales, in_channels, train.seed, replay, depth, (rank.number, rank.count))
    if init is None:
        list_seen(dataset, sampler.class_counts)
    mend_torchvision()  # torchmetrics imports it, and lightning torchmetrics
    import torch

    from neurotome.models.net import choose_device, measure_halo
    from neurotome.models.net_predictor import NetPredictor
    from neurotome.training.across import add_up
    from neurotome.training.module import SegmentationModule

    sums = partial(add_up, rank) if rank.count > 1 else is_whole
    criterion = build_loss(recipe.loss, dataset.classes, sampler.class_counts, sums)
    if replay:
        criterion = weigh_rehearsal(criterion, sampler.own_here, train.replay_weight, sampler.absent)
    device = choose_device(train.device)
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
        origin = {key: init.facts[key] for key in ORIGIN if key in init.facts}
        facts["init"] = {"name": recipe.init, "weights_sha256": settled.init_sha256, **origin}
        note_other_size(recipe.init, init.voxel_size_um, dataset.voxel_size_um)
    predictor = NetPredictor(net, model, dataset.classes, normalization, halo, bounded, patch, dataset.voxel_size_um, facts)
    if rank.count > 1 and device == "cuda":
        import timm

        layers: Any = timm.layers
        layers.convert_sync_batchnorm(net)  # torch's own loses the activation of timm's layers
    net.train()
    left_over = sample.order == "sequential" and count_tiles(dataset, sample) % sample.batch == 1
    if rank.count == 1 and (sample.batch == 1 or left_over):
        check_single(net, (in_channels, *((depth,) if depth else ()), patch, patch), sample)
    return SegmentationModule(predictor, criterion, sampler, validation, recipe.augment, train, rank, (dataset, recipe))
