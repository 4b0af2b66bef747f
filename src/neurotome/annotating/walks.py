"""Labels between two labelled slices that follow the image: random walks from every pixel to the labelled slices.

A walker steps to one of six neighbours, the more readily the more alike their grey values are, until it meets a labelled
slice. A pixel gets the class that most of its walkers meet (Grady 2006, doi:10.1109/TPAMI.2006.233).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array, diags_array
from scipy.sparse.linalg import cg

from neurotome.blocks import plan_blocks

LEAST = 1e-3
"""Weight that every step has at least: a pixel that noise sets apart from all its neighbours still gets their class.

The random walker of scikit-image has none worth the name (1e-10), and leaves such pixels to rounding.
"""

TILE = 256
"""Edge in pixels of what is solved at once, without its halo: a gap of ten slices takes 0.5 GB."""

REACH = 3
"""Halo of a tile in distances of the labelled slices.

Between two planes that end every walk, what happens r to the side counts exp(-pi r / distance) in an even image.
"""


def walk_gap(
    before: NDArray[Any], after: NDArray[Any], image: NDArray[Any], report: Callable[[float], None] = lambda slices: None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Returns the labels of the slices between two labelled ones, and how uncertain they are.

    A step between two neighbours has the weight `LEAST` + exp(-d^2 / (2 s^2)), where d is the difference of their grey
    values and s the root of the mean square of d over all neighbours in these slices, so that neither brightness nor
    contrast matters.

    Args:
        before: Labels of the first slice, integers, shape (y, x).
        after: Labels of the last slice, the same shape.
        image: Grey values of the slices from the first to the last, shape (z, y, x) with z >= 3.
        report: Told now and then how many slices' worth of work is done.

    Returns:
        Label values, int64, shape (z - 2, y, x), and their uncertainty, float32, of the same shape: 1 less the difference
        of the two largest shares of walkers; 1 where two classes are equally likely, 0 where all walkers meet one.
    """
    spread = _measure_spread(image) or 1.0
    labels = np.empty((len(image) - 2, *before.shape), np.int64)
    uncertainty = np.empty(labels.shape, np.float32)
    tiles = plan_blocks(before.shape, (TILE, TILE), (REACH * (len(image) - 1),) * 2)
    for done, tile in enumerate(tiles):
        report(done / len(tiles) * len(labels))
        window = image[:, *tile.read].astype(np.float64) / spread
        found = _walk(before[tile.read], after[tile.read], window)
        for whole, part in zip((labels, uncertainty), found, strict=True):
            whole[:, *tile.core] = part[:, *tile.crop]
    return labels, uncertainty


def _measure_spread(image: NDArray[Any]) -> float:
    """Returns the root of the mean square of the steps between neighbours, slice by slice: planes may be large."""
    squares, count, above = 0.0, 0, None
    for plane in image:
        here = plane.astype(np.float64)
        for step in (np.diff(here, axis=0), np.diff(here, axis=1), *([] if above is None else [here - above])):
            squares, count = squares + float((step**2).sum()), count + step.size
        above = here
    return float(np.sqrt(squares / max(1, count)))


def _walk(before: NDArray[Any], after: NDArray[Any], grey: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns labels and uncertainty between two slices; grey values are in units of the mean step."""
    values, classes = np.unique(np.stack([before, after]), return_inverse=True)
    inner = len(grey) - 2, *before.shape
    if len(values) == 1:
        return np.full(inner, values[0]), np.zeros(inner)
    links, ends = _weigh_steps(grey)
    leaving = links.sum(0) + ends.sum(0)
    equations, scale = diags_array(leaving) - links, diags_array(1 / leaving)
    labelled = classes.reshape(2, -1)
    shares = np.empty((len(values), links.shape[0]))
    for k, share in enumerate(shares[:-1]):
        met = np.zeros_like(ends)
        met[0, : labelled.shape[1]] = labelled[0] == k
        met[1, -labelled.shape[1] :] = labelled[1] == k
        share[:], failed = cg(equations, (ends * met).sum(0), rtol=1e-5, M=scale)
        assert not failed, "these equations are positive definite and well conditioned"
    shares[-1] = 1 - shares[:-1].sum(0)
    order = np.sort(shares, axis=0)
    unsure = np.clip(1 - (order[-1] - order[-2]), 0, 1)
    return values[shares.argmax(0)].reshape(inner), unsure.reshape(inner)


def _weigh_steps(grey: NDArray[np.float64]) -> tuple[csr_array, NDArray[np.float64]]:
    """Returns the weights of steps between the n pixels that lie between the first and the last slice.

    Returns:
        The weights from every pixel to every other, (n, n), and those to both labelled slices, (2, n).
    """
    number = np.arange(grey[1:-1].size).reshape(grey[1:-1].shape)
    weights = [LEAST + np.exp(-(np.diff(part, axis=axis) ** 2) / 2) for axis, part in enumerate((grey, *[grey[1:-1]] * 2))]
    ends = np.zeros((2, number.size))
    ends[0, number[0].ravel()], ends[1, number[-1].ravel()] = weights[0][0].ravel(), weights[0][-1].ravel()
    weights[0] = weights[0][1:-1]
    pairs = ((number[:-1], number[1:]), (number[:, :-1], number[:, 1:]), (number[..., :-1], number[..., 1:]))
    rows, columns = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
    one_way = coo_array((np.concatenate([part.ravel() for part in weights]), (rows, columns)), (number.size,) * 2).tocsr()
    return one_way + one_way.T, ends
