"""Labelled pixels of a split with their features, drawn by class over all slices."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neurotome.blocks import plan_blocks
from neurotome.datasets.base import Cutout, Dataset
from neurotome.features import Extractor, Prepared
from neurotome.normalize import Normalization
from neurotome.pixels.predictor import Window, iterate_windows, list_windows

TILE = 1024
"""Edge of the tiles in which a network runs over a slice."""


def limit_rows(totals: NDArray[np.int64], per_class: int, most_rows: int | None = None) -> NDArray[np.int64]:
    """Returns how many pixels to draw of each class, as equally many as there are and as fit.

    Args:
        totals: Labelled pixels of each class.
        per_class: At most so many of each; 0: all.
        most_rows: At most so many in all.
    """
    asked = np.minimum(totals, per_class) if per_class else totals.copy()
    if most_rows is None or asked.sum() <= most_rows:
        return asked
    # the highest cap on every class that fits: the rare ones are kept whole as long as possible
    low, high = 0, int(asked.max())
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(asked, middle).sum() <= most_rows:
            low = middle
        else:
            high = middle - 1
    return np.minimum(asked, low)


def spread_rows(counts: NDArray[np.int64], rows: NDArray[np.int64], rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Yields how many of the drawn pixels of each class come from one slice after another, int64, shape (classes,).

    As if drawn from all pixels of the class at once, without their being in memory: what falls to a slice has a
    hypergeometric distribution, given what is left to draw and what is left to draw from.

    Args:
        counts: Pixels per slice and class.
        rows: How many to draw of each class, at most as many as there are.
        rng: Draws.
    """
    left, pool = rows.copy(), counts.sum(axis=0)
    for here in counts:
        pool = pool - here
        # numpy draws from up to 1e9; of so many, one more or less taken out does not matter, which makes it binomial
        large = np.maximum(here, pool) >= 10**9
        few = (np.where(large, 0, count) for count in (here, pool, left))
        share = here / np.maximum(here + pool, 1)
        taken = np.where(large, rng.binomial(left, share), rng.hypergeometric(*few))
        taken = np.clip(taken, left - pool, np.minimum(here, left))
        left = left - taken
        yield taken


@dataclass(frozen=True)
class LabelledPixels:
    """The labelled pixels of a split, to draw some of them with their features.

    Every labelled pixel of a class is equally likely to be drawn, from whatever slice; none is drawn twice.

    Attributes:
        dataset: Has the split.
        split: Which images.
        counts: Pixels per slice and class, from `count_slices`.
        extractor: Computes the features.
        normalization: Scaling of the grey values.
    """

    dataset: Dataset
    split: str
    counts: NDArray[np.int64]
    extractor: Extractor
    normalization: Normalization

    @property
    def totals(self) -> NDArray[np.int64]:
        """Labelled pixels of each class, int64, shape (classes,)."""
        return np.asarray(self.counts.sum(axis=0))

    def draw(self, rows: NDArray[np.int64], seed: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Draws pixels and computes their features.

        Args:
            rows: How many to draw of each class, at most as many as there are.
            seed: Seed of the draw.

        Returns:
            Features, float32, shape (pixels, features), and class ids, uint8, shape (pixels,).
        """
        table = np.empty((int(rows.sum()), len(self.extractor.names)), np.float32)
        labels = np.empty(len(table), np.uint8)
        done = 0
        for features, truth in self._iterate(rows, seed):
            table[done : done + len(truth)], labels[done : done + len(truth)] = features, truth
            done += len(truth)
        assert done == len(table)
        return table, labels

    def _iterate(self, rows: NDArray[np.int64], seed: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
        """Yields what `draw` returns, window by window; one slice of images is in memory at a time."""
        rng = np.random.default_rng(seed)
        planned = spread_rows(self.counts, rows, rng)
        for cutout in self.dataset.split(self.split):
            for z in range(cutout.volume.shape[0]):
                asked = next(planned)
                if not asked.any():
                    continue
                truth = cutout.read_labels(z)
                picked = np.zeros(truth.shape, bool)
                for i in np.flatnonzero(asked):
                    places = np.flatnonzero(truth == i)
                    picked.reshape(-1)[rng.choice(places, asked[i], replace=False, shuffle=False)] = True
                yield from self._compute_slice(cutout, z, truth, picked)

    def _compute_slice(
        self, cutout: Cutout, z: int, truth: NDArray[np.uint8], picked: NDArray[np.bool_]
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
        """Yields the features of the picked pixels of a slice."""
        extractor, scale = self.extractor, self.normalization.scale_for(cutout.volume)
        tile, margin = -(-TILE // extractor.stride) * extractor.stride, extractor.halo
        for block in plan_blocks(picked.shape, (tile, tile), (margin, margin), (extractor.stride,) * 2):
            if not picked[block.core].any():
                continue
            patch = scale.apply(cutout.volume.read_context(z, extractor.in_channels, *block.read))
            # in the block's own pixels
            chosen, classes = np.zeros(patch.shape[1:], bool), np.zeros(patch.shape[1:], np.uint8)
            chosen[block.crop], classes[block.crop] = picked[block.core], truth[block.core]
            windows = [w for w in list_windows(patch.shape[1], patch.shape[2], extractor.window) if chosen[w].any()]
            pick = functools.partial(_pick, extractor.prepare(patch), chosen, classes)
            yield from iterate_windows(pick, windows)


def _pick(
    prepared: Prepared, chosen: NDArray[np.bool_], classes: NDArray[np.uint8], window: Window
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Returns the features, shape (pixels, features), and the classes of the chosen pixels of a window."""
    return prepared.read(*window)[:, chosen[window]].T, classes[window][chosen[window]]
