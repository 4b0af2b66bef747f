"""Labelled pixels of a split with their features, drawn by class over all slices."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from neurotome.blocks import Slices, plan_blocks
from neurotome.datasets.base import Cutout, Dataset
from neurotome.datasets.scales import scale_dataset
from neurotome.datasets.statistics import count_slices
from neurotome.features import Extractor, Read
from neurotome.normalize import Normalization, Scale
from neurotome.pixels.predictor import iterate_windows, list_windows
from neurotome.predictor import TILE


def limit_rows(totals: NDArray[np.int64], per_class: int, most_rows: int | None = None) -> NDArray[np.int64]:
    """Returns how many pixels to draw of each class, as equally many as there are and as fit.

    Of the labelled pixels of each class, `totals`, at most `per_class` (0: all), and at most `most_rows` of all classes.
    """
    asked = np.minimum(totals, per_class) if per_class else totals.copy()
    if most_rows is None or asked.sum() <= most_rows:
        return asked
    # the highest cap on every class that fits: the rare ones are kept whole as long as possible
    caps = range(int(asked.max()) + 1)
    return np.minimum(asked, bisect.bisect(caps, most_rows, key=lambda cap: np.minimum(asked, cap).sum()) - 1)


def spread_rows(counts: NDArray[np.int64], rows: NDArray[np.int64], rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Yields how many of the drawn pixels of each class come from one slice after another, int64, shape (classes,).

    As if drawn from all pixels of the class at once, without their being in memory: what falls to a slice has a
    hypergeometric distribution, given what is left to draw and what is left to draw from.
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


def draw_pixels(
    dataset: Dataset, split: str, rows: NDArray[np.int64], extractor: Extractor, normalization: Normalization, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Draws labelled pixels of a split and computes their features; one slice of images is in memory at a time.

    Every labelled pixel of a class is equally likely to be drawn, from whatever slice; none is drawn twice. `rows` says how
    many of each class, at most as many as there are. Returns features (pixels, features) and class ids (pixels,).
    """
    rng = np.random.default_rng(seed)
    table = np.empty((int(rows.sum()), len(extractor.names)), np.float32)
    labels = np.empty(len(table), np.uint8)
    done = 0
    scales = scale_dataset(normalization, dataset, split)
    slices = [(cutout, z) for cutout in dataset.split(split) for z in range(cutout.volume.shape[0])]
    for (cutout, z), asked in zip(slices, spread_rows(count_slices(dataset, split), rows, rng), strict=True):
        if not asked.any():
            continue
        truth = cutout.read_labels(z)
        picked = np.zeros(truth.shape, bool)
        for i in np.flatnonzero(asked):
            places = np.flatnonzero(truth == i)
            picked.reshape(-1)[rng.choice(places, asked[i], replace=False, shuffle=False)] = True
        scale = scales.scale_for(cutout.volume)
        for features, classes in _compute_slice(cutout, z, truth, picked, extractor, scale):
            rows_done = slice(done, done + len(classes))
            table[rows_done], labels[rows_done] = features, classes
            done += len(classes)
    assert done == len(table)
    return table, labels


def _compute_slice(
    cutout: Cutout, z: int, truth: NDArray[np.uint8], picked: NDArray[np.bool_], extractor: Extractor, scale: Scale
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
    """Yields the features, shape (pixels, features), and the classes of the picked pixels of a slice."""
    stride = extractor.stride
    tile = -(-TILE // stride) * stride
    for block in plan_blocks(picked.shape, (tile, tile), (extractor.halo,) * 2, (stride, stride)):
        if not picked[block.core].any():
            continue
        patch = scale.apply(cutout.volume.read_context(z, extractor.in_channels, *block.read))
        read = extractor.prepare(patch)
        # in the block's own pixels
        chosen, classes = np.zeros(patch.shape[1:], bool), np.zeros(patch.shape[1:], np.uint8)
        chosen[block.crop], classes[block.crop] = picked[block.core], truth[block.core]
        windows = [window for window in list_windows(patch.shape[1:], extractor.window) if chosen[window].any()]
        yield from iterate_windows(functools.partial(_pick, read, chosen, classes), windows)


def _pick(
    read: Read, chosen: NDArray[np.bool_], classes: NDArray[np.uint8], window: Slices
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    return read(*window)[:, chosen[window]].T, classes[window][chosen[window]]
