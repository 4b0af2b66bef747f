"""ResidentImages: training images that lie on a device in their own dtype, where a whole batch is cut in one operation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import SettingsError
from neurotome.io.picked import PickedSlices
from neurotome.lazy import lazy_import
from neurotome.training.sampler import PatchSampler, Place, Pool
from neurotome.volume import Volume

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy_import("torch")

STORED = {"uint8": np.uint8, "uint16": np.int16, "float32": np.float32}
"""Dtypes of images, and as what their bytes lie on a device, where few operations know 16 bits without a sign."""


def list_planes(volume: Volume, in_channels: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns which slices of a volume's stack patches show, and which of these is each channel of each slice.

    The first are int64 and increase; the second has the shape (slices, in_channels). Beyond the ends of the stack its last
    slices are repeated, as `Volume.read_context` does.
    """
    reach = in_channels // 2
    wanted = np.clip(volume.numbers[:, None] + np.arange(-reach, reach + 1), 0, volume.stack.shape[0] - 1)
    numbers, shown = np.unique(wanted, return_inverse=True)
    return numbers, shown.reshape(wanted.shape)


def find_dtype(sampler: PatchSampler) -> np.dtype[Any]:
    """Returns the dtype that holds the grey values of all training images exactly."""
    dtypes = (cutout.volume.data.dtype for pool in sampler.pools for cutout in pool.cutouts)
    return np.result_type(*dtypes).newbyteorder("=")


def measure_images(sampler: PatchSampler) -> int:
    """Returns the bytes of the training images and their labels as they lie on a device; reads nothing."""
    total, item = 0, find_dtype(sampler).itemsize
    for cutout in (cutout for pool in sampler.pools for cutout in pool.cutouts):
        slices, height, width = cutout.volume.shape
        numbers, _ = list_planes(cutout.volume, sampler.in_channels)
        total += (len(numbers) * item + slices) * height * width
    return total


class ResidentImages:
    """Images and labels of all cutouts of a sampler, a row of pixels each."""

    def __init__(self, sampler: PatchSampler, device: torch.device) -> None:
        """Copies them to the device slice by slice.

        Raises:
            SettingsError: The images are of a dtype that cannot be put there.
        """
        dtype = find_dtype(sampler)
        if dtype.name not in STORED:
            raise SettingsError(
                f"train.data_on_device is on, but the training images are {dtype}; expected {', '.join(STORED)}. Use "
                "--train.data-on-device off."
            )
        self.is_unsigned = dtype == np.uint16
        self.depth = sampler.depth
        self.ignore, edge = sampler.pools[0].classes.ignore, sampler.pools[0].edge
        self.first: dict[Pool, list[int]] = {}  # the number of each cutout's first slice, among the slices of all
        sizes: list[tuple[int, int]] = []
        stacks, starts, label_starts, scales = [], [], [], []
        pixels = label_pixels = 0
        for pool in sampler.pools:
            self.first[pool] = []
            for cutout, scale in zip(pool.cutouts, pool.scales, strict=True):
                volume = cutout.volume
                numbers, shown = list_planes(volume, sampler.in_channels)
                slices, height, width = volume.shape
                self.first[pool].append(len(sizes))
                stacks.append(PickedSlices(volume.stack, numbers, volume.path or Path(volume.name)))
                starts.append(pixels + shown * height * width)
                label_starts.append(label_pixels + np.arange(slices) * height * width)
                sizes += [(height, width)] * slices
                scales += [(scale.mean, 1 / scale.std)] * slices
                pixels += len(numbers) * height * width
                label_pixels += slices * height * width
        labels = (cutout.labels for pool in sampler.pools for cutout in pool.cutouts)
        self.images = _lay_out(chain.from_iterable(stacks), pixels, dtype, device)
        self.labels = _lay_out(chain.from_iterable(labels), label_pixels, np.dtype(np.uint8), device)
        self.starts = torch.from_numpy(np.concatenate(starts)).to(device)  # (slices, in_channels)
        self.label_starts = torch.from_numpy(np.concatenate(label_starts)).to(device)
        self.sizes = torch.tensor(sizes, device=device)
        self.scales = torch.tensor(scales, dtype=torch.float32, device=device)
        self.within = torch.arange(edge, device=device)

    def locate(self, places: Sequence[tuple[Pool, Place]]) -> Tensor:
        """Returns places as `cut` takes them, int64, shape (n * depth, 3): slice among those of all cutouts, y, x."""
        layers = range(self.depth or 1)
        return torch.tensor([(self.first[pool][c] + z + k, y, x) for pool, (c, z, y, x) in places for k in layers])

    def cut(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what `PatchSampler.draw` does: scaled images and labels.

        Args:
            places: From `locate`, on the device.
        """
        number, y, x = places.unbind(1)
        height, width = self.sizes[number, :, None].unbind(1)
        rows, columns = y[:, None] + self.within, x[:, None] + self.within
        beyond = (rows >= height)[:, :, None] | (columns >= width)[:, None, :]
        at = (_mirror(rows, height) * width)[:, :, None] + _mirror(columns, width)[:, None, :]
        grey = self.images[self.starts[number][:, :, None, None] + at[:, None]]
        if self.is_unsigned:
            grey = grey.to(torch.int32) & 0xFFFF
        mean, factor = self.scales[number, :, None, None, None].unbind(1)
        labels = self.labels[self.label_starts[number][:, None, None] + at].masked_fill_(beyond, self.ignore)
        images = grey.to(torch.float32).sub_(mean).mul_(factor)
        if self.depth is None:
            return images, labels
        shape = (-1, self.depth, *labels.shape[1:])
        return images.view(shape), labels.view(shape)


def _lay_out(planes: Iterable[NDArray[Any]], pixels: int, dtype: np.dtype[Any], device: torch.device) -> Tensor:
    """Returns the pixels of planes, one after the other, on a device; no more than one plane is copied on the way."""
    stored, at = STORED[dtype.name], 0
    row = torch.empty(pixels, dtype=torch.from_numpy(np.empty(0, stored)).dtype, device=device)
    for plane in planes:
        flat = torch.from_numpy(np.array(plane, dtype).view(stored)).flatten()
        row[at : at + len(flat)] = flat
        at += len(flat)
    return row


def _mirror(at: Tensor, size: Tensor) -> Tensor:
    """Returns positions along an axis of `size` pixels that is mirrored at its ends, where border pixels come twice."""
    at = at % (2 * size)
    return torch.minimum(at, 2 * size - 1 - at)
