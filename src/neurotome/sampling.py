"""A stated sample of a volume's grey values: what its scale is measured from where reading all of it would take hours."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

LARGE = 1 << 28
"""Voxels of a volume above which boxes stand for it."""

BOXES = 64
EDGE = 64
"""A volume is divided into 64 parts, and of each a box of about 64 x 64 x 64 voxels is read."""

TRIES = 4
"""Boxes of a part that are tried where the first has one value everywhere, as air and what was not scanned have."""

MOST_VALUES = 4_000_000
"""Values that are kept of a sample; it is thinned evenly."""


ALL = "all of its voxels"


class GreySample(NamedTuple):
    """Grey values of a volume.

    Attributes:
        values: Flat, float64.
        low: The lowest value of the boxes; `values` may be thinned.
        high: The highest.
        source: What was read, to be put after "measured from".
    """

    values: NDArray[Any]
    low: float
    high: float
    source: str


def is_large(data: Any) -> bool:
    """Returns whether an array (z, y, x) is measured from boxes."""
    return bool(data.size > LARGE)


def sample_grey(data: Any, most: int = 1 << 20) -> GreySample:
    """Reads at most `most` voxels of (z, y, x), float64, on a grid that is even along every axis; boxes of a large array."""
    if is_large(data):
        return sample_boxes(data)
    steps = [1, 1, 1]
    counts = list(data.shape)
    while math.prod(counts) > most:
        longest = counts.index(max(counts))
        steps[longest] += 1
        counts[longest] = -(-data.shape[longest] // steps[longest])
    planes = [np.asarray(data[z, :: steps[1], :: steps[2]], np.float64) for z in range(0, data.shape[0], steps[0])]
    values = np.stack(planes).reshape(-1)
    source = f"{values.size} of its {data.size} voxels, on an even grid" if values.size < data.size else ALL
    return GreySample(values, float(values.min()), float(values.max()), source)


def sample_boxes(data: Any) -> GreySample:
    """Reads boxes spread over an array (z, y, x), the same ones every time; those of one value are left out if others vary.

    Boxes are whole chunks, where `data` says how it is cut (`chunk_zyx`), and only such as are stored, where it can list
    them (`find_chunks`), so that no more is decompressed than is used.
    """
    varying, constant, edges = [], [], choose_edges(data)
    for part in plan_boxes(data):
        for voxels in part:
            if voxels.min() != voxels.max():
                varying.append(_thin(voxels))
                break
            constant.append(_thin(voxels))
    kept = varying or constant
    left_out = f"; {len(constant)} of one value each left out" if varying and constant else ""
    sizes = " x ".join(map(str, edges)), " x ".join(map(str, data.shape))
    return GreySample(
        np.concatenate([values for values, _, _ in kept]),
        min(low for _, low, _ in kept),
        max(high for _, _, high in kept),
        f"{len(kept)} boxes of {sizes[0]} voxels spread over {sizes[1]}{left_out}",
    )


def plan_boxes(data: Any) -> list[Iterator[NDArray[Any]]]:
    """Returns for every part of an array the voxels of a few of its boxes, each read when it is asked for."""
    edges = choose_edges(data)
    counts = [-(-size // edge) for size, edge in zip(data.shape, edges, strict=True)]
    find_chunks = getattr(data, "find_chunks", None)
    chunks = None if find_chunks is None else find_chunks()
    numbers = np.arange(math.prod(counts))
    if chunks is not None:
        starts = [np.arange(n) * edge for n, edge in zip(counts, edges, strict=True)]
        stored = chunks.touch([(first, first + edge) for first, edge in zip(starts, edges, strict=True)])
        numbers = np.flatnonzero(stored) if stored.any() else numbers
    rng = np.random.default_rng(0)  # at random within a part, so that the boxes do not lie in rows

    def read(part: NDArray[np.intp]) -> Iterator[NDArray[Any]]:
        tried = rng.choice(part, min(TRIES, len(part)), replace=False)
        return (_read_box(data, edges, np.unravel_index(number, counts)) for number in tried)

    return [read(part) for part in np.array_split(numbers, min(BOXES, len(numbers)))]


def choose_edges(data: Any) -> tuple[int, int, int]:
    """Returns the edges (z, y, x) of a box: whole chunks, together 64 x 64 x 64 voxels or more, nearly a cube."""
    edges = list(getattr(data, "chunk_zyx", None) or (1, 1, 1))
    edges = [min(edge, size) for edge, size in zip(edges, data.shape, strict=True)]
    while math.prod(edges) < EDGE**3 and (short := [i for i in range(3) if edges[i] < data.shape[i]]):
        axis = min(short, key=lambda i: edges[i])
        edges[axis] = min(2 * edges[axis], data.shape[axis])
    z, y, x = edges
    return z, y, x


def _read_box(data: Any, edges: tuple[int, int, int], index: Any) -> NDArray[Any]:
    starts = [int(i) * edge for i, edge in zip(index, edges, strict=True)]
    place = tuple(slice(a, min(a + edge, size)) for a, edge, size in zip(starts, edges, data.shape, strict=True))
    return np.asarray(data[place])


def _thin(voxels: NDArray[Any]) -> tuple[NDArray[Any], float, float]:
    step = -(-voxels.size * BOXES // MOST_VALUES) | 1  # odd, or the same columns would be taken of every row
    return voxels.reshape(-1)[::step].astype(np.float64), float(voxels.min()), float(voxels.max())
