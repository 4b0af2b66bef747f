"""Draws training patches from one or two sources of cutouts; batch number `step` depends on the seed and `step` alone.

That makes resuming exact: whoever asks for batch 1234 gets the same patches, however often training was stopped before.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.datasets.base import Cutout, CutoutSource, Dataset
from neurotome.datasets.statistics import count_slices
from neurotome.errors import SettingsError
from neurotome.normalize import Normalization, Scale
from neurotome.shared_scale import DatasetScales

Place = tuple[int, int, int, int]
"""Cutout, and where in it a patch begins: z, y, x."""


@dataclass(frozen=True)
class SampleSettings:
    """How patches are drawn."""

    patch: int | Literal["auto"] = "auto"
    """Edge of a patch in pixels; images smaller than that are padded with pixels that are not learned; auto: 256, of a
    network of 3 dimensions 128, or what fits into the largest image."""

    depth: int | Literal["auto"] = "auto"
    """Slices of a patch, for a network of 3 dimensions (model.dimensions); auto: 8, or what the shallowest image has."""

    batch: int = 8
    """Patches per step."""

    order: Literal["random", "sequential"] = "random"
    """random, or sequential: fixed tiles, slice after slice, without shuffling (the founding report's)."""

    rare: float = 0.2
    """Share of random patches placed on a pixel of a class drawn evenly, so that rare classes are seen."""

    def __post_init__(self) -> None:
        small = (self.patch != "auto" and self.patch < 8) or (self.depth != "auto" and self.depth < 1) or self.batch < 1
        if small or not 0 <= self.rare <= 1:
            raise SettingsError(
                f"sample.patch is {self.patch} (at least 8), sample.depth {self.depth} (at least 1), sample.batch "
                f"{self.batch} (at least 1), sample.rare {self.rare} (0 to 1)."
            )


class Pool:
    """The cutouts of a source at a step, from which places are drawn."""

    def __init__(self, source: CutoutSource, classes: ClassSet, known: Normalization | DatasetScales, edge: int) -> None:
        self.source, self.classes, self.known, self.edge = source, classes, known, edge
        self.numbers: list[int] = []  # those that the source gives the cutouts
        self.cutouts: tuple[Cutout, ...] = ()
        self.scales: list[Scale] = []
        self.follow(0)

    def follow(self, step: int) -> None:
        """Takes the cutouts of a step; what is known of those that stay is kept."""
        window = self.source.window(step)
        numbers = [number for number, _ in window]
        if numbers == self.numbers:
            return
        known = dict(zip(self.numbers, self.scales, strict=True))
        self.scales = [known.get(number) or self.known.scale_for(cutout.volume) for number, cutout in window]
        self.numbers, self.cutouts = numbers, tuple(cutout for _, cutout in window)
        self.counts = np.concatenate([cutout.label_counts[:, : len(self.classes)] for cutout in self.cutouts])
        self.slices = [(c, z) for c, cutout in enumerate(self.cutouts) for z in range(cutout.volume.shape[0])]
        sizes = np.array([np.prod(self.cutouts[c].volume.shape[1:]) for c, _ in self.slices], float)
        self.pixels = sizes.sum()
        self.slice_probs = sizes / self.pixels

    def draw(self, generator: np.random.Generator, rare: float) -> Place:
        """Draws a place on any pixel, or with the probability `rare` on one of a class drawn evenly."""
        if generator.random() < rare:
            return self._draw_on_class(generator)
        c, z = self.slices[generator.choice(len(self.slices), p=self.slice_probs)]
        y, x = (int(generator.integers(0, max(1, size - self.edge + 1))) for size in self.cutouts[c].volume.shape[1:])
        return c, z, y, x

    def _draw_on_class(self, generator: np.random.Generator) -> Place:
        """Draws a class, then one of its pixels, then a patch that holds the pixel anywhere."""
        wanted = int(generator.choice(np.flatnonzero(self.counts.sum(0))))
        counts = self.counts[:, wanted]
        chosen = int(generator.choice(len(self.slices), p=counts / counts.sum()))
        c, z = self.slices[chosen]
        pixel = self.cutouts[c].find_pixel(z, wanted, int(generator.integers(0, counts[chosen])))
        starts = [at - int(generator.integers(0, self.edge)) for at in pixel]
        shape = self.cutouts[c].volume.shape[1:]
        y, x = (max(0, min(start, size - self.edge)) for start, size in zip(starts, shape, strict=True))
        return c, z, y, x

    def deepen(self, place: Place, depth: int, generator: np.random.Generator) -> Place:
        """Returns where a 3D patch begins that holds the slice of a place anywhere in it."""
        c, z, y, x = place
        start = z - int(generator.integers(0, depth))
        return c, min(max(start, 0), self.cutouts[c].volume.shape[0] - depth), y, x

    def plan_tiles(self, depth: int = 1) -> list[Place]:
        """Returns the places of tiles that cover all cutouts in order."""
        return [
            (c, z, y, x)
            for c, cutout in enumerate(self.cutouts)
            for z in _tile_starts(cutout.volume.shape[0], depth)
            for y in _tile_starts(cutout.volume.shape[1], self.edge)
            for x in _tile_starts(cutout.volume.shape[2], self.edge)
        ]

    def cut(self, place: Place, image: NDArray[np.float32], labels: NDArray[np.uint8]) -> None:
        """Writes a place's scaled grey values to `image` (in_channels, edge, edge), its labels to `labels` (edge, edge)."""
        c, z, y, x = place
        rows, columns = slice(y, y + self.edge), slice(x, x + self.edge)
        known = self.cutouts[c].read_labels(z, rows, columns)
        height, width = known.shape
        inside = image[:, :height, :width]
        self.scales[c].apply(self.cutouts[c].volume.read_context(z, len(image), rows, columns), inside)
        labels[:height, :width] = known
        below, right = self.edge - height, self.edge - width
        if below or right:
            image[...] = np.pad(inside, ((0, 0), (0, below), (0, right)), mode="symmetric")
            labels[height:], labels[:, width:] = self.classes.ignore, self.classes.ignore


class PatchSampler:
    """Draws batches of patches."""

    def __init__(
        self,
        dataset: Dataset,
        settings: SampleSettings,
        normalization: Normalization | DatasetScales,
        in_channels: int,
        seed: int,
        replay: tuple[CutoutSource, float] | None = None,
        depth: int | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        """Counts the classes of every slice of the split train; labels are read slice by slice and never held.

        Settings leave nothing to decide; the seed decides a batch together with the step. `replay` is a second source of the
        same classes, and the share of the patches that come from it, whatever its size. With a `depth`, patches are 3D.
        `part` says which of how many equal parts of every batch is drawn, if not all of it.

        Raises:
            SettingsError: The patch is larger than every image, a 3D one does not fit into each, or data without end are to
                be drawn in order.
        """
        cutouts = dataset.split("train")
        edge = int(settings.patch)
        if (dataset.source or replay) and settings.order == "sequential":
            raise SettingsError(
                f"sample.order is sequential, but {'synthetic tissue' if replay else dataset.name} has no end; use "
                "--sample.order random, or train on a folder without --train.replay."
            )
        largest = max(cutouts, key=lambda cutout: min(cutout.volume.shape[1:]))
        if edge > min(largest.volume.shape[1:]):
            raise SettingsError(
                f"sample.patch is {edge}, larger than every training image; the largest is "
                f"{largest.volume.path or largest.name} with {largest.volume.shape[1]} x {largest.volume.shape[2]} pixels. "
                f"Use --sample.patch {max(8, min(largest.volume.shape[1:]) // 32 * 32)}."
            )
        count_slices(dataset)  # refuses data without a label
        self.settings, self.in_channels, self.seed = settings, in_channels, seed
        self.rows = slice(*(settings.batch * number // part[1] for number in (part[0], part[0] + 1)))
        self.scales = normalization
        self.is_changing = dataset.source is not None  # the cutouts are others as training goes on
        self.pools = [Pool(dataset.source or CutoutSource(cutouts), dataset.classes, normalization, edge)]
        if replay:  # each of its cutouts has a grey scale of its own
            plain = normalization.normalization if isinstance(normalization, DatasetScales) else normalization
            self.pools.append(Pool(replay[0], dataset.classes, replace(plain, reference=None), edge))
        self.share = replay[1] if replay else 0.0
        self.own = min(max(1, round(settings.batch * (1 - self.share))), settings.batch - 1) if replay else settings.batch
        self.depth = depth
        if depth is not None:
            _check_depth([cutout for pool in self.pools for cutout in pool.cutouts], depth)
        self.tiles = self.pools[0].plan_tiles(depth or 1) if settings.order == "sequential" else []

    @property
    def own_here(self) -> int:
        """How many of the `own` patches of a batch are in this part of it."""
        return len(range(self.own)[self.rows])

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """Labelled pixels per class, those of a second source as many as its share of the patches makes of them."""
        total = np.asarray(self.pools[0].counts.sum(0))
        for pool in self.pools[1:]:
            factor, counts = self.share / (1 - self.share) * self.pools[0].pixels / pool.pixels, pool.counts.sum(0)
            total += np.maximum(np.rint(counts * factor), counts > 0).astype(np.int64)
        return total

    @property
    def absent(self) -> list[int]:
        """Classes after the first without a labelled pixel in the dataset, which a second source may show."""
        return [class_id for class_id in range(1, len(self.pools[0].classes)) if not self.pools[0].counts[:, class_id].any()]

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the sources have to say about the drawing so far; JSON values."""
        return {name: value for pool in self.pools for name, value in pool.source.facts.items()}

    def draw(self, step: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Returns batch number `step`: scaled images (n, in_channels, patch, patch) and labels (n, patch, patch).

        Of 3D patches, each of which lies within one cutout, both have the shape (n, depth, patch, patch). The first `own`
        are from the dataset, the others from the second source. Only the last batch of a sequential pass has fewer than
        `batch` patches.
        """
        places, edge = self.list_places(step), self.pools[0].edge
        images = np.empty((len(places), self.depth or self.in_channels, edge, edge), np.float32)
        labels = np.empty((len(places), self.depth or 1, edge, edge), np.uint8)
        for (pool, (c, z, y, x)), image, known in zip(places, images, labels, strict=True):
            for layer, plane in enumerate(known):
                pool.cut((c, z + layer, y, x), image[layer : layer + 1] if self.depth else image, plane)
        return images, labels if self.depth else labels[:, 0]

    def list_places(self, step: int) -> list[tuple[Pool, Place]]:
        """Returns where the patches of batch number `step`, or of the part, begin.

        Sequential ones of 3D stand `depth` slices apart.
        """
        if self.settings.order == "sequential":
            first = step % -(-len(self.tiles) // self.settings.batch) * self.settings.batch
            return [(self.pools[0], place) for place in self.tiles[first : first + self.settings.batch]][self.rows]
        for pool in self.pools:
            pool.follow(step)
        generator = np.random.default_rng([self.seed, step])
        places = []
        for number in range(self.settings.batch):
            pool = self.pools[int(number >= self.own)]
            place = pool.draw(generator, self.settings.rare)
            places.append((pool, pool.deepen(place, self.depth, generator) if self.depth else place))
        return places[self.rows]


def _check_depth(cutouts: Sequence[Cutout], depth: int) -> None:
    least = min(cutouts, key=lambda cutout: cutout.volume.shape[0])
    if not 1 <= depth <= least.volume.shape[0]:
        raise SettingsError(
            f"sample.depth is {depth}, but {least.name} has {least.volume.shape[0]} slices; expected a depth from 1 to "
            "that. Lower it, or give cutouts with more slices."
        )
    for cutout in cutouts:
        if (np.diff(cutout.volume.numbers) != 1).any():
            raise SettingsError(
                f"model.dimensions is 3, but the labelled slices of {cutout.name} do not follow each other; expected labels "
                "in every slice. Use --model.dimensions 2, whose neighbours may be channels (model.in_channels)."
            )


def _tile_starts(size: int, edge: int) -> list[int]:
    """Returns where tiles begin so that they cover an axis; the last one is moved inside."""
    return [max(0, min(start, size - edge)) for start in range(0, size, edge)]


def list_labelled(cutouts: Sequence[Cutout], classes: int, limit: int) -> list[tuple[int, int]]:
    """Returns (cutout, z) of all slices with a label, or of `limit` of them evenly spread if it is not 0."""
    labelled = (np.flatnonzero(cutout.label_counts[:, :classes].any(axis=1)).tolist() for cutout in cutouts)
    slices = [(c, z) for c, listed in enumerate(labelled) for z in listed]
    if limit and len(slices) > limit:
        slices = [slices[round(i)] for i in np.linspace(0, len(slices) - 1, limit)]
    return slices


def group_slices(slices: Iterable[tuple[Cutout, int]], pixels: int) -> Iterator[list[tuple[Cutout, int]]]:
    """Yields slices in their order, those of one shape that follow each other together, up to a number of pixels."""
    for (height, width), same in itertools.groupby(slices, lambda entry: entry[0].volume.shape[1:]):
        listed, count = list(same), max(1, pixels // (height * width))
        yield from (listed[first : first + count] for first in range(0, len(listed), count))


def group_runs(slices: Iterable[tuple[Cutout, int]]) -> Iterator[list[tuple[Cutout, int]]]:
    """Yields slices in their order, those that follow each other in one volume together."""
    run: list[tuple[Cutout, int]] = []
    for cutout, z in slices:
        if run and (cutout is not run[-1][0] or cutout.volume.numbers[z] != cutout.volume.numbers[run[-1][1]] + 1):
            yield run
            run = []
        run.append((cutout, z))
    if run:
        yield run
