"""Shapes between two labelled slices: objects are paired, moved onto each other, and their borders blended.

A shape is turned into the signed distance of every pixel from its border, positive inside. Distances of two slices are
averaged by weight, and the shape in between is where the average is positive (Raya and Udupa 1990, doi:10.1109/42.52980;
Herman, Zheng and Bucholtz 1992, doi:10.1109/38.135915). Taken for a whole class at once, thin vessels that run aslant and
cells that end are lost, and the nearest slice was the better guess. So each object is taken by itself:

1. Connected pixels of one class are an object. Those of both slices that share pixels belong together.
2. Of what is left, objects that are each other's nearest, and no further apart than discs that touch, belong together.
3. What belongs together is moved along the line between the centres, if the two overlap more then, and blended.
4. An object without a partner ends half way.
5. A pixel belongs to the object it lies deepest in, and to the most frequent class where it lies in none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, find_objects, label, shift
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

MARGIN = 8
"""Pixels around an object within which its border is taken to be uncertain."""


class Shape(NamedTuple):
    """What one object is in two slices, within a box of the plane.

    Attributes:
        value: Its label.
        box: Rows and columns.
        before, after: Signed distances in pixels, positive inside, borders halfway between pixels, float32, shape of the
            box; None in a slice that lacks it.
        step: Rows and columns by which it moves from one slice to the other.
    """

    value: int
    box: tuple[slice, slice]
    before: NDArray[np.float32] | None
    after: NDArray[np.float32] | None
    step: NDArray[np.float64]


class Gap(NamedTuple):
    """Two labelled slices; make it with `measure_gap`.

    Attributes:
        background: The most frequent label.
        shape: Pixels (y, x).
        shapes: All objects of the other labels.
    """

    background: int
    shape: tuple[int, int]
    shapes: list[Shape]


def measure_gap(before: NDArray[Any], after: NDArray[Any]) -> Gap:
    """Returns what lies between two labelled slices, integers of shape (y, x)."""
    values, counts = np.unique(np.concatenate([before, after]), return_counts=True)
    background = int(values[counts.argmax()])
    shapes = [
        _measure_shape(int(value), first, second, before.shape)
        for value in values
        if value != background
        for first, second in _pair_objects(before == value, after == value)
    ]
    return Gap(background, (before.shape[0], before.shape[1]), shapes)


def _pair_objects(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yields the pixels (n, 2) that belong together in two slices of one class; none where there is no partner."""
    (first, m), (second, n) = label(before), label(after)
    shared = before & after
    graph = coo_matrix((np.ones(int(shared.sum())), (first[shared] - 1, second[shared] - 1 + m)), (m + n, m + n))
    count, groups = connected_components(graph, directed=False)
    planes = [np.concatenate([[0], groups[:m] + 1])[first], np.concatenate([[0], groups[m:] + 1])[second]]
    pixels = [[_list_pixels(plane, box, number) for number, box in enumerate(_find(plane, count), 1)] for plane in planes]
    alone = [[i for i in range(count) if len(pixels[k][i]) and not len(pixels[1 - k][i])] for k in (0, 1)]
    partners = _find_partners([pixels[0][i] for i in alone[0]], [pixels[1][i] for i in alone[1]])
    paired = {alone[0][i]: alone[1][j] for i, j in partners}
    taken = set(paired.values())
    for i in range(count):
        if i not in taken:
            yield pixels[0][i], pixels[1][paired.get(i, i)]


def _find(plane: NDArray[Any], count: int) -> list[Any]:
    boxes = find_objects(plane)
    return [*boxes, *[None] * (count - len(boxes))]


def _list_pixels(plane: NDArray[Any], box: tuple[slice, slice] | None, number: int) -> NDArray[Any]:
    if box is None:
        return np.empty((0, 2), np.int64)
    pixels: NDArray[Any] = np.argwhere(plane[box] == number) + [part.start for part in box]
    return pixels


def _find_partners(first: list[NDArray[Any]], second: list[NDArray[Any]]) -> list[tuple[int, int]]:
    """Returns pairs of objects that are each other's nearest and no further apart than discs that touch."""
    if not first or not second:
        return []
    centres = [np.array([pixels.mean(0) for pixels in objects]) for objects in (first, second)]
    widths = [np.array([2 * (len(pixels) / np.pi) ** 0.5 for pixels in objects]) for objects in (first, second)]
    apart = np.linalg.norm(centres[0][:, None] - centres[1][None], axis=2)
    nearest, back = apart.argmin(1), apart.argmin(0)
    return [(i, int(j)) for i, j in enumerate(nearest) if back[j] == i and apart[i, j] <= (widths[0][i] + widths[1][j]) / 2]


def _measure_shape(value: int, before: NDArray[Any], after: NDArray[Any], size: tuple[int, ...]) -> Shape:
    """Returns an object by its pixels (n, 2) in two slices of a size (y, x), of which one may lack it."""
    both = np.concatenate([before, after])
    start, stop = np.maximum(both.min(0) - MARGIN, 0), np.minimum(both.max(0) + 1 + MARGIN, size)
    planes = np.zeros((2, *(stop - start)), bool)
    for plane, pixels in zip(planes, (before, after), strict=True):
        plane[tuple((pixels - start).T)] = True
    step = np.zeros(2)
    if len(before) and len(after):
        move = after.mean(0) - before.mean(0)
        moved = shift(planes[0].astype(np.uint8), np.round(move), order=0) > 0
        if (moved & planes[1]).sum() > (planes[0] & planes[1]).sum():
            step = move
    distances = [_measure_distance(plane) if plane.any() else None for plane in planes]
    box = slice(int(start[0]), int(stop[0])), slice(int(start[1]), int(stop[1]))
    return Shape(value, box, distances[0], distances[1], step)


def _measure_distance(inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Returns signed distances from the border of a shape (y, x); 1 everywhere if it fills the plane."""
    if inside.all():
        return np.ones(inside.shape, np.float32)
    signed = np.where(inside, distance_transform_edt(inside) - 0.5, 0.5 - distance_transform_edt(~inside))
    return np.asarray(signed, np.float32)


def blend(gap: Gap, share: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Returns the labels at a share (0 to 1) of the way between two slices, and how uncertain they are.

    A pixel is as uncertain as the two slices disagree about the object that decides about it, beside how far it lies from
    that object's border: s / (s + m), where m is the blended distance in pixels and s = sqrt(share (1 - share)) (1 + the
    difference of the distances in both slices + the way that the object moves). The root is the spread of a Brownian bridge,
    which is 0 in both slices and widest half way; the 1 is a pixel, since no border is drawn better.

    Returns:
        Label values, int64, shape (y, x), and their uncertainty 0..1, float32, of the same shape: 1 on a border that may
        move, 0 in both slices and further than `MARGIN` from every object.
    """
    labels = np.full(gap.shape, gap.background, np.int64)
    deepest = np.full(gap.shape, -np.inf, np.float32)
    spread = np.zeros(gap.shape, np.float32)
    for shape in gap.shapes:
        depth, differing = _blend_shape(shape, share)
        better = depth > deepest[shape.box]
        deepest[shape.box][better] = depth[better]
        spread[shape.box][better] = differing[better]
        labels[shape.box][better & (depth > 0)] = shape.value
    spread = (share * (1 - share)) ** 0.5 * (1 + spread)
    total = spread + np.abs(deepest)
    known = (spread > 0) & np.isfinite(total)
    uncertainty: NDArray[np.float32] = np.divide(spread, total, out=np.zeros_like(total), where=known)
    return labels, uncertainty


def _blend_shape(shape: Shape, share: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns the signed distances from an object's border between two slices, and by how much the slices differ."""
    if shape.before is None or shape.after is None:
        here = shape.after if shape.before is None else shape.before
        way = 1 - share if shape.before is None else share
        assert here is not None
        radius = here.max()
        return here if way < 0.5 else here - 2 * radius, np.full_like(here, radius)
    before, after = shape.before, shape.after
    if shape.step.any():
        before = shift(before, share * shape.step, order=1, mode="nearest")
        after = shift(after, (share - 1) * shape.step, order=1, mode="nearest")
    differing = np.abs(before - after) + np.float32(np.linalg.norm(shape.step))
    return (1 - share) * before + share * after, differing
