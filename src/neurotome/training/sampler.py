"""Draws training patches from cutouts; batch number `step` depends on the seed and `step` alone.

That makes resuming exact: whoever asks for batch 1234 gets the same patches, however often training was stopped before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from neurotome.datasets.base import Cutout, Dataset
from neurotome.datasets.statistics import count_slices
from neurotome.errors import SettingsError
from neurotome.normalize import Normalization, Scale

Place = tuple[int, int, int, int]


@dataclass(frozen=True)
class SampleSettings:
    """How patches are drawn."""

    patch: int | Literal["auto"] = "auto"
    """Edge of a patch in pixels; images smaller than that are padded with pixels that are not learned; auto: 256, or what
    fits into the largest image."""

    batch: int = 8
    """Patches per step."""

    order: Literal["random", "sequential"] = "random"
    """random, or sequential: fixed tiles, slice after slice, without shuffling (the founding report's)."""

    rare: float = 0.2
    """Share of random patches placed on a pixel of a class drawn evenly, so that rare classes are seen."""


def check_sample(settings: SampleSettings) -> None:
    """Checks that settings are in range.

    Raises:
        SettingsError: One is not.
    """
    if (settings.patch != "auto" and settings.patch < 8) or settings.batch < 1 or not 0 <= settings.rare <= 1:
        raise SettingsError(
            f"sample.patch is {settings.patch} (at least 8), sample.batch {settings.batch} (at least 1), sample.rare "
            f"{settings.rare} (0 to 1)."
        )


class PatchSampler:
    """Draws batches of patches."""

    def __init__(
        self,
        dataset: Dataset,
        settings: SampleSettings,
        normalization: Normalization,
        in_channels: int,
        seed: int,
    ) -> None:
        """Counts the classes of every slice.

        Args:
            dataset: Has a split train; labels are read slice by slice and never held.
            settings: How patches are drawn.
            normalization: How grey values are scaled.
            in_channels: Neighbouring slices per patch.
            seed: Together with the step it decides a batch.

        Raises:
            SettingsError: A setting is out of range, or the patch is larger than every image.
        """
        cutouts = dataset.split("train")
        check_sample(settings)
        self.edge = edge = int(settings.patch)
        if dataset.stream is not None and settings.order == "sequential":
            raise SettingsError(
                f"sample.order is sequential, but {dataset.name} has no end; use --sample.order random, or write a phantom "
                "folder and train on that."
            )
        largest = max(cutouts, key=lambda cutout: min(cutout.volume.shape[1:]))
        if edge > min(largest.volume.shape[1:]):
            raise SettingsError(
                f"sample.patch is {edge}, larger than every training image; the largest is "
                f"{largest.volume.path or largest.name} with {largest.volume.shape[1]} x {largest.volume.shape[2]} pixels. "
                f"Use --sample.patch {max(8, min(largest.volume.shape[1:]) // 32 * 32)}."
            )
        self.cutouts, self.classes, self.settings = cutouts, dataset.classes, settings
        self.in_channels, self.seed = in_channels, seed
        self.normalization, self.stream = normalization, dataset.stream
        self.known: dict[int, tuple[Scale, NDArray[np.int64]]] = {}
        self.numbers = list(range(len(cutouts)))
        self.scales = [normalization.scale_for(cutout.volume) for cutout in cutouts]
        self.counts = count_slices(dataset)
        self._list_slices()
        self.tiles = self._plan_tiles() if settings.order == "sequential" else []

    @property
    def steps_per_pass(self) -> int:
        """Batches that together hold about as many pixels as the training slices."""
        if self.tiles:
            return -(-len(self.tiles) // self.settings.batch)
        pixels = sum(int(np.prod(c.volume.shape)) for c in self.cutouts)
        return max(1, round(pixels / (self.edge**2 * self.settings.batch)))

    def draw(self, step: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Returns batch number `step`.

        Returns:
            Scaled images, shape (n, in_channels, patch, patch), and labels, shape (n, patch, patch). Only the last batch of
            a sequential pass has fewer than `batch` patches.
        """
        if self.tiles:
            first = step % self.steps_per_pass * self.settings.batch
            places = self.tiles[first : first + self.settings.batch]
        else:
            self._follow_stream(step)
            generator = np.random.default_rng([self.seed, step])
            places = [self._draw_place(generator) for _ in range(self.settings.batch)]
        images, labels = zip(*(self._cut(place) for place in places), strict=True)
        return np.stack(images), np.stack(labels)

    def draw_volumes(self, step: int, depth: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Returns batch number `step` of 3D patches; each lies within one cutout.

        Args:
            step: Which batch.
            depth: Slices per patch.

        Returns:
            Scaled images, shape (n, 1, depth, patch, patch), and labels, shape (n, depth, patch, patch). In sequential order
            the patches stand `depth` slices apart, the last of a cutout moved inside.

        Raises:
            SettingsError: A cutout has fewer slices, or the sampler makes neighbouring slices channels.
        """
        shallow = [cutout for cutout in self.cutouts if cutout.volume.shape[0] < max(1, depth)]
        if depth < 1 or shallow:
            least = min(self.cutouts, key=lambda cutout: cutout.volume.shape[0])
            raise SettingsError(
                f"3D patches of {depth} slices are asked for; {least.name} has {least.volume.shape[0]}. Use a depth from 1 "
                f"to {least.volume.shape[0]}, or cutouts with more slices."
            )
        if self.in_channels != 1:
            raise SettingsError(f"in_channels is {self.in_channels}; 3D patches have their neighbours as depth: use 1.")
        if self.settings.order == "sequential":
            tiles = self._plan_tiles(depth)
            first = step % -(-len(tiles) // self.settings.batch) * self.settings.batch
            places = tiles[first : first + self.settings.batch]
        else:
            self._follow_stream(step)
            generator = np.random.default_rng([self.seed, step])
            places = [self._deepen(self._draw_place(generator), depth, generator) for _ in range(self.settings.batch)]
        layers = [[self._cut((c, z + i, y, x)) for i in range(depth)] for c, z, y, x in places]
        images = np.stack([np.stack([image for image, _ in patch], axis=1) for patch in layers])
        return images, np.stack([np.stack([labels for _, labels in patch]) for patch in layers])

    def _deepen(self, place: Place, depth: int, generator: np.random.Generator) -> Place:
        """Returns where a 3D patch begins that holds the slice of a place anywhere in it."""
        c, z, y, x = place
        start = z - int(generator.integers(0, depth))
        return c, min(max(start, 0), self.cutouts[c].volume.shape[0] - depth), y, x

    def _list_slices(self) -> None:
        """Lists the slices of the present cutouts and how likely each is drawn."""
        self.slices = [(c, z) for c, cutout in enumerate(self.cutouts) for z in range(cutout.volume.shape[0])]
        sizes = np.array([np.prod(self.cutouts[c].volume.shape[1:]) for c, _ in self.slices], float)
        self.slice_probs = sizes / sizes.sum()

    def _follow_stream(self, step: int) -> None:
        """Takes the cutouts of a step, where they change with the step."""
        if self.stream is None:
            return
        window = self.stream.window(step)
        numbers = [number for number, _ in window]
        if numbers == self.numbers:
            return
        self.numbers, self.cutouts = numbers, tuple(cutout for _, cutout in window)
        known = self.known
        self.known = {}
        for number, cutout in window:
            self.known[number] = known.get(number) or self._measure(cutout)
        self.scales = [scale for scale, _ in self.known.values()]
        self.counts = np.concatenate([counts for _, counts in self.known.values()])
        self._list_slices()

    def _measure(self, cutout: Cutout) -> tuple[Scale, NDArray[np.int64]]:
        counts = np.stack([self.classes.count(cutout.read_labels(z)) for z in range(cutout.volume.shape[0])])
        return self.normalization.scale_for(cutout.volume), counts

    def _plan_tiles(self, depth: int = 1) -> list[Place]:
        edge = self.edge
        return [
            (c, z, y, x)
            for c, cutout in enumerate(self.cutouts)
            for z in _tile_starts(cutout.volume.shape[0], depth)
            for y in _tile_starts(self.cutouts[c].volume.shape[1], edge)
            for x in _tile_starts(self.cutouts[c].volume.shape[2], edge)
        ]

    def _draw_place(self, generator: np.random.Generator) -> Place:
        if generator.random() < self.settings.rare:
            return self._draw_on_class(generator)
        c, z = self.slices[generator.choice(len(self.slices), p=self.slice_probs)]
        _, height, width = self.cutouts[c].volume.shape
        edge = self.edge
        return (
            c,
            z,
            int(generator.integers(0, max(1, height - edge + 1))),
            int(generator.integers(0, max(1, width - edge + 1))),
        )

    def _draw_on_class(self, generator: np.random.Generator) -> Place:
        """Draws a class, then one of its pixels, then a patch that holds the pixel anywhere."""
        wanted = int(generator.choice(np.flatnonzero(self.counts.sum(0))))
        share = self.counts[:, wanted] / self.counts[:, wanted].sum()
        c, z = self.slices[generator.choice(len(self.slices), p=share)]
        labels = self.cutouts[c].read_labels(z)
        pixel = int(generator.choice(np.flatnonzero(labels.reshape(-1) == wanted)))
        starts = []
        for at, size in zip(divmod(pixel, labels.shape[1]), labels.shape, strict=True):
            start = at - int(generator.integers(0, self.edge))
            starts.append(int(np.clip(start, 0, max(0, size - self.edge))))
        return c, z, starts[0], starts[1]

    def _cut(self, place: Place) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        c, z, y, x = place
        cutout, edge = self.cutouts[c], self.edge
        rows, columns = slice(y, y + edge), slice(x, x + edge)
        image = self.scales[c].apply(cutout.volume.read_context(z, self.in_channels, rows, columns))
        labels = cutout.read_labels(z, rows, columns)
        below, right = edge - labels.shape[0], edge - labels.shape[1]
        if below or right:
            image = np.pad(image, ((0, 0), (0, below), (0, right)), mode="symmetric")
            labels = np.pad(labels, ((0, below), (0, right)), constant_values=self.classes.ignore)
        return image, labels


def _tile_starts(size: int, edge: int) -> list[int]:
    """Returns where tiles begin so that they cover an axis; the last one is moved inside."""
    starts = list(range(0, max(1, size - edge + 1), edge))
    if starts[-1] + edge < size:
        starts.append(size - edge)
    return starts


def collect_slices(cutouts: Sequence[Cutout], limit: int) -> list[tuple[int, int]]:
    """Returns (cutout, z) of all slices, or of `limit` of them evenly spread.

    Args:
        cutouts: Where the slices are.
        limit: Most slices to return; 0 for all.
    """
    slices: list[Any] = [(c, z) for c, cutout in enumerate(cutouts) for z in range(cutout.volume.shape[0])]
    if limit and len(slices) > limit:
        slices = [slices[round(i)] for i in np.linspace(0, len(slices) - 1, limit)]
    return slices
