"""Sizes of patches, batches and epochs: what is usual, and whether a batch suits machine and network."""

from __future__ import annotations

import copy
import math
import warnings
from typing import TYPE_CHECKING

import psutil

from neurotome.datasets.base import Dataset
from neurotome.errors import SettingsError
from neurotome.training.sampler import SampleSettings

if TYPE_CHECKING:
    import torch

PATCH = 256
"""Edge in pixels of the usual patch."""

PATCH_3D, DEPTH = 128, 8
"""Edge in pixels and slices of the usual 3D patch: twice the voxels of a usual patch."""

FEWEST_STEPS, MOST_STEPS = 50, 2000
"""Steps of an epoch: validating takes no less time after few, and after many a killed training loses more."""


def choose_patch(dataset: Dataset, usual: int = PATCH) -> int:
    """Returns the usual patch, or one that fits where the largest image is smaller."""
    edge = max(min(cutout.volume.shape[1:]) for cutout in dataset.split("train"))
    if edge >= usual or edge < 8:  # what is too small for any patch is for the sampler to refuse
        return usual
    patch = max(8, edge // 32 * 32)
    warnings.warn(
        f"{dataset.name}: the training images are smaller than the usual patch of {usual} pixels; patches of {patch} "
        "are used. Say --sample.patch to choose.",
        stacklevel=3,
    )
    return patch


def choose_steps(dataset: Dataset, sample: SampleSettings) -> int:
    """Returns the steps of an epoch: one pass over the data, but from `FEWEST_STEPS` to `MOST_STEPS`."""
    edge, depth = int(sample.patch), int(sample.depth)
    if sample.order == "sequential":
        return -(-count_tiles(dataset, sample) // sample.batch)
    voxels = sum(math.prod(cutout.volume.shape) for cutout in dataset.split("train"))
    steps = round(voxels / (edge**2 * depth * sample.batch))
    return min(max(FEWEST_STEPS, steps), MOST_STEPS)


def count_tiles(dataset: Dataset, sample: SampleSettings) -> int:
    """Returns how many patches cover the training images."""
    edge, depth = int(sample.patch), int(sample.depth)
    shapes = (cutout.volume.shape for cutout in dataset.split("train"))
    return sum(-(-z // depth) * -(-y // edge) * -(-x // edge) for z, y, x in shapes)


def check_single(net: torch.nn.Module, shape: tuple[int, ...], sample: SampleSettings) -> None:
    """Checks that a network can be trained on a batch of one patch, whose shape is given with its channels.

    Raises:
        SettingsError: It cannot: it makes the patch a single pixel, of which no statistics over the batch can be taken.
    """
    import torch

    try:
        copy.deepcopy(net).cpu().train()(torch.zeros(1, *shape))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        last = "is 1" if sample.batch == 1 else f"is {sample.batch}, and in sequential order a patch is left over"
        raise SettingsError(
            f"sample.batch {last}; expected two patches or more, since this network makes a patch of {sample.patch} pixels "
            "one pixel, which has no mean and variance to normalise by. Use another --sample.batch, or larger patches."
        ) from error


def check_batch(sample: SampleSettings, in_channels: int, classes: int) -> None:
    """Checks that a batch fits into this machine's memory.

    Raises:
        SettingsError: It does not, whatever the network.
    """
    each = int(sample.patch) ** 2 * int(sample.depth) * 4 * (in_channels + classes)  # images in, logits out, both float32
    have = psutil.virtual_memory().total
    if sample.batch * each > have:
        raise SettingsError(
            f"sample.batch is {sample.batch}; images and logits of so many patches of {sample.patch} pixels "
            f"and {sample.depth} slices alone take {sample.batch * each / 1e9:.3g} GB, and this machine has "
            f"{have / 1e9:.3g} GB. Use a --sample.batch of 4 to 64."
        )
