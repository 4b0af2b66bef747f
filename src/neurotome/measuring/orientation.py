"""Direction of axons, from the structure tensor of their labels.

Where fibres run, their labels change across them and not along. The products of the gradient's components, summed over a
cube of tissue, are a tensor whose smallest eigenvalue belongs to the direction of the fibres (Bigun & Granlund 1987; in
brain tissue Budde & Frank 2012, doi:10.1016/j.neuroimage.2012.06.042). Borders of axons against cells, vessels and what
is not labelled say nothing of that direction and are left out.

Angles are as one sees a slice, y down: `angle_deg` in the slice, above the x axis, -90 to 90; `dip_deg` out of it, positive
towards higher z where x grows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neurotome.blocks import Box, Grid, Triple
from neurotome.measuring.fractions import UM3_PER_MM3, WHOLE, locate_clusters
from neurotome.measuring.intervals import estimate_share
from neurotome.measuring.source import NOT_LABELLED, Source
from neurotome.measuring.tables import gather
from neurotome.measuring.tally import Tally
from neurotome.objects.masks import Mask
from neurotome.volume import Size

SMOOTH, MOST_SMOOTH = 1.5, 4.0
"""Standard deviation of the smoothing, in the longest edge of a voxel; and at most, in voxels along any axis."""
TRUNCATE = 2.5
STEP = 2
"""Every second voxel along each axis is looked at: smoothed, those between are alike."""
BINS_DEG = 10

PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
"""The six different components of a tensor, axes z, y, x."""

DIRECTIONS = {
    **{"region": str, "class": str, "direction_z": float, "direction_y": float, "direction_x": float},
    **{"angle_deg": float, "dip_deg": float, "coherence": float, "mean_cos2": float},
    **{"mean_cos2_low": float, "mean_cos2_high": float, "volume_mm3": float},
}


class Tensors(NamedTuple):
    """Sums over places, a row for each cube and region (n, 2), of the six components of the structure tensor (n, 6)."""

    keys: NDArray[np.int64]
    sums: NDArray[np.float64]


def sum_tensors(source: Source, seen: NDArray[np.uint8], place: Box, around: Box, clusters: Grid) -> Tensors | None:
    """Returns the tensors of a tile, None where there are no axons in sight.

    Args:
        source: Where the labels are from.
        seen: Labels of `around`.
        place: The tile.
        around: The tile and its halo.
        clusters: The cubes.
    """
    z, y, x = (slice(p.start - a.start, p.stop - a.start) for p, a in zip(place, around, strict=True))
    core = (z, y, x)
    axons = seen == source.axon
    if not axons.any():
        return None
    sigmas = [min(SMOOTH * max(source.size_um) / edge, MOST_SMOOTH) for edge in source.size_um]
    if source.flat:
        sigmas[0] = 0.0
    steps = (1 if source.flat else STEP, STEP, STEP)
    gradients = _find_gradients(axons, core, sigmas, steps, source.size_um)
    if source.flat:
        gradients[0] = 0
    hidden = seen == NOT_LABELLED
    for number in (source.cell, source.vessel):
        if number is not None:
            hidden |= seen == number
    gradients *= ~_spread(hidden, core, [math.ceil(sigma) for sigma in sigmas], steps)
    some = np.nonzero((gradients != 0).any(0))
    found = [gradient[some].astype(np.float64) for gradient in gradients]
    places = [at * step + part.start for at, step, part in zip(some, steps, place, strict=True)]
    cubes = np.ravel_multi_index(tuple(p // e for p, e in zip(places, clusters.tile_zyx, strict=True)), clusters.tiles_zyx)
    regions = np.zeros(1, np.int64)
    if source.regions is not None:
        z, y, x = (slice(p.start + b.start, p.stop + b.start) for p, b in zip(place, source.box, strict=True))
        here = source.regions.read((z, y, x))[tuple(slice(None, None, step) for step in steps)][some]
        regions, which = np.unique(here, return_inverse=True)
        cubes = cubes * len(regions) + which
    codes, which = np.unique(cubes, return_inverse=True)
    keys = np.stack([codes // len(regions), regions[codes % len(regions)]], 1).astype(np.int64)
    sums = [np.bincount(which, found[a] * found[b], len(keys)) for a, b in PAIRS]
    return Tensors(keys, np.stack(sums, 1))


def gather_tensors(parts: Sequence[Tensors]) -> Tensors:
    """Returns tensors of tiles, in a stated order, with one row for each cube and region, by region and cube."""
    keys = np.concatenate([np.zeros((0, 2), np.int64), *(part.keys for part in parts)])[:, ::-1]
    sums = np.concatenate([np.zeros((0, 6)), *(part.sums for part in parts)])
    unique, which = np.unique(keys, axis=0, return_inverse=True)
    summed = [np.bincount(which.ravel(), column, len(unique)) for column in sums.T]
    return Tensors(unique[:, ::-1], np.stack(summed, 1))


def find_directions(sums: NDArray[np.float64], flat: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the direction (n, 3), zyx, x not negative, and the coherence (n,) of tensors; NaN where nothing changes.

    Coherence is 1 where all is parallel and 0 where no direction stands out: of the two smallest eigenvalues, in slices the
    only two, the difference per sum.
    """
    tensors = np.zeros((len(sums), 3, 3))
    for number, (a, b) in enumerate(PAIRS):
        tensors[:, a, b] = tensors[:, b, a] = sums[:, number]
    axes = slice(1 if flat else 0, 3)
    values, vectors = np.linalg.eigh(tensors[:, axes, axes])
    direction = np.zeros((len(sums), 3))
    direction[:, axes] = vectors[:, :, 0]
    backwards = (direction[:, 2] < 0) | ((direction[:, 2] == 0) & (direction[:, 1] > 0))
    direction[backwards] *= -1
    total = values[:, 1] + values[:, 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        coherence = np.where(total > 0, (values[:, 1] - values[:, 0]) / total, math.nan)
    direction[~(total > 0)] = math.nan
    return direction, coherence


def list_directions(source: Source, tensors: Tensors, tally: Tally, level: float) -> dict[str, Any]:
    """Returns a table: a row per region, the whole box first.

    Direction and coherence are those of the tensors' sum; `mean_cos2` is the mean over cubes, by their volume of axons, of
    the squared cosine between a cube's direction and that one: 1 if all run along it, 1/3 (in slices 1/2) if anyhow.
    """
    assert source.axon is not None
    rows = []
    for region in (None, *(tally.regions if source.regions else ())):
        volumes = tally.count((source.axon,), region)
        cubes, sums = _of_region(tensors, region)
        found, coherence = find_directions(sums.sum(0, keepdims=True), source.flat)
        each, _ = find_directions(sums, source.flat)
        known = np.isfinite(each[:, 2])
        weights, hits = np.zeros(volumes.size), np.zeros(volumes.size)
        weights[cubes[known]] = volumes.ravel()[cubes[known]]
        hits[cubes[known]] = weights[cubes[known]] * np.clip((each[known] @ found[0]) ** 2, 0, 1)
        share = estimate_share(hits.reshape(volumes.shape), weights.reshape(volumes.shape), level)
        row: dict[str, Any] = {
            "region": WHOLE if region is None else str(region),
            "class": source.classes.names[source.axon],
        }
        row |= {name: float(values[0]) for name, values in _name_directions(found).items()}
        row |= {
            "coherence": coherence[0],
            "mean_cos2": share.value,
            "mean_cos2_low": share.low,
            "mean_cos2_high": share.high,
        }
        rows.append(row | {"volume_mm3": volumes.sum() * source.voxel_um3 / UM3_PER_MM3})
    return gather(rows, DIRECTIONS)


def list_direction_map(source: Source, tensors: Tensors, tally: Tally) -> dict[str, Any]:
    """Returns a table: a row per cube of the grid in which a direction is seen."""
    assert source.axon is not None
    cubes, sums = _of_region(tensors, None)
    direction, coherence = find_directions(sums, source.flat)
    there = np.isfinite(direction[:, 2])
    volumes = tally.count((source.axon,)).ravel()[cubes] * source.voxel_um3 / UM3_PER_MM3
    table = {name: values[cubes[there]] for name, values in locate_clusters(source, tally).items()}
    table |= _name_directions(direction[there])
    return table | {"coherence": coherence[there], "volume_mm3": volumes[there]}


def list_distribution(table: dict[str, Any]) -> dict[str, Any]:
    """Returns how the axons of `list_direction_map` are distributed: a row per 10 degrees of the angle in the slice."""
    edges = np.arange(-90, 91, BINS_DEG)
    volumes, _ = np.histogram(table["angle_deg"], edges, weights=table["volume_mm3"])
    return {
        "angle_from_deg": edges[:-1].astype(float),
        "angle_to_deg": edges[1:].astype(float),
        "volume_mm3": volumes.astype(float),
        "share": volumes / volumes.sum() if volumes.sum() else np.full(len(volumes), math.nan),
    }


def map_directions(table: dict[str, Any], tensors: Tensors, tally: Tally, flat: bool) -> dict[str, NDArray[np.float32]]:
    """Returns coarse maps of `angle_deg` and `coherence`, float32 (z, y, x), NaN where no direction is seen."""
    cubes, sums = _of_region(tensors, None)
    there = cubes[np.isfinite(find_directions(sums, flat)[0][:, 2])]
    maps = {}
    for name in ("angle_deg", "coherence"):
        values = np.full(tally.clusters.count_tiles(), math.nan, np.float32)
        values[there] = table[name]
        maps[name] = values.reshape(tally.clusters.tiles_zyx)
    return maps


def _of_region(tensors: Tensors, region: int | None) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns the cubes (n,) with their tensors (n, 6), of one region or of all together."""
    if region is not None:
        inside = tensors.keys[:, 1] == region
        return tensors.keys[inside, 0], tensors.sums[inside]
    cubes, which = np.unique(tensors.keys[:, 0], return_inverse=True)
    return cubes, np.stack([np.bincount(which.ravel(), column, len(cubes)) for column in tensors.sums.T], 1)


def _name_directions(direction: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    z, y, x = direction.T
    angle = np.degrees(np.arctan2(-y, x))
    dip = np.degrees(np.arcsin(np.clip(z, -1, 1)))
    return {"direction_z": z, "direction_y": y, "direction_x": x, "angle_deg": angle, "dip_deg": dip}


def _find_gradients(mask: Mask, core: Box, sigmas: Sequence[float], steps: Triple, size_um: Size) -> NDArray[np.float32]:
    """Returns the change per micrometre of a smoothed mask along z, y and x (3, z, y, x), at every so many voxels of a core.

    Args:
        mask: Voxels of the core and around it.
        core: Where the core lies in the mask.
        sigmas: Standard deviation of the smoothing, in voxels (z, y, x).
        steps: How many voxels apart (z, y, x) the change is asked for, from the core's first voxel on.
        size_um: Edges of a voxel.
    """
    from scipy import ndimage

    # one axis after the other, so that each is filtered only where it is asked for, but for a voxel before and after
    field: NDArray[np.float32] = mask.astype(np.float32)
    inner = []
    for axis, (part, sigma) in enumerate(zip(core, sigmas, strict=True)):
        reach = int(TRUNCATE * sigma + 0.5)
        near, wide = (slice(max(0, part.start - more), min(mask.shape[axis], part.stop + more)) for more in (1, 1 + reach))
        field = field[_along(axis, wide)]
        if sigma:
            field = ndimage.gaussian_filter1d(field, sigma, axis, mode="nearest", truncate=TRUNCATE)
        field = field[_along(axis, slice(near.start - wide.start, near.stop - wide.start))]
        inner.append(slice(part.start - near.start, part.stop - near.start))
    centres = [np.arange(part.start, part.stop, step) for part, step in zip(inner, steps, strict=True)]
    return np.stack([_differ(field, centres, axis, edge) for axis, edge in enumerate(size_um)])


def _differ(field: NDArray[np.float32], centres: list[NDArray[np.int64]], axis: int, edge: float) -> NDArray[np.float32]:
    """Returns the field's change along an axis per micrometre, by the voxels before and after each centre."""
    before, after = list(centres), list(centres)
    before[axis] = np.maximum(centres[axis] - 1, 0)
    after[axis] = np.minimum(centres[axis] + 1, field.shape[axis] - 1)
    apart = np.maximum(after[axis] - before[axis], 1) * edge
    shape = [-1 if a == axis else 1 for a in range(3)]
    return np.asarray((field[np.ix_(*after)] - field[np.ix_(*before)]) / apart.reshape(shape).astype(np.float32))


def _spread(mask: Mask, core: Box, reach: Sequence[int], steps: Triple) -> Mask:
    """Returns at every so many voxels of a core whether a voxel of a mask is near: within the reach along each axis."""
    for axis, (part, more, step) in enumerate(zip(core, reach, steps, strict=True)):
        centres = np.arange(part.start, part.stop, step)
        shifts = range(-more, more + 1)
        near = (mask.take(np.clip(centres + shift, 0, mask.shape[axis] - 1), axis) for shift in shifts)
        mask = functools.reduce(np.logical_or, near)
    return mask


def _along(axis: int, part: slice) -> tuple[slice, ...]:
    return tuple(part if a == axis else slice(None) for a in range(3))
