"""One grey scale for images of one scan, so that tissue is bright or dark whatever else an image holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from neurotome.normalize import MOST_DARK, Normalization, Scale, Tissue, describe_tissue
from neurotome.sampling import MOST_VALUES, sample_grey
from neurotome.volume import Volume

OWN = "own"
"""Instead of a reference: each image by itself."""

SMALL = 1 << 20
"""Voxels below which an image alone may hold one kind of tissue only: its median lies up to 1 unit off in 256 x 256 pixels
of real tissue, 2 in 128 x 128, and 0.3 in sixteen images of 256 x 256 together."""

WIDEST = 2.0
"""Most that the units of images of one scan differ by, as a factor."""

STEP = 1.05
"""Most that the distance of two neighbouring grey levels differs by, as a factor, where an image is fine enough to tell."""

FEWEST_LEVELS, FEWEST_PIXELS = 20, 30
"""Levels, and pixels of each, from which on their distance is told."""

FEWEST_KEPT = 4096
"""Values that are kept of a volume, however many there are."""

END, FEWEST_CLIPPED = 0.02, 8
"""An end of the grey scale is clipped where at least 8 values lie on it, and more than in the 2 % of the range beside it."""


@dataclass(frozen=True)
class Grey:
    """What tells whether a volume has another's grey scale, and its share of what both are measured from.

    Attributes:
        name: Of the volume.
        values: Some of its grey values, evenly taken, sorted.
        voxels: How many it has.
        tissue: Where its tissue lies.
        ends: Its lowest and its highest value.
        is_clipped: Whether values pile up at both.
        step: Distance of two neighbouring grey levels, 0 where it cannot be told.
        dtype: Of the volume.
    """

    name: str
    values: NDArray[np.float64] = field(repr=False)
    voxels: int
    tissue: Tissue
    ends: tuple[float, float]
    is_clipped: bool
    step: float
    dtype: str


@dataclass(frozen=True)
class SharedScales:
    """The scales of volumes that belong together, in their order, and sentences about what was done.

    A scale is None where a volume shares none: its own holds then, if it has one.
    """

    scales: tuple[Scale | None, ...]
    said: tuple[str, ...] = ()


class DatasetScales:
    """Scales a dataset's volumes as `share_scales` says, any other by a normalisation."""

    def __init__(self, normalization: Normalization, volumes: Sequence[Volume]) -> None:
        self.normalization, self.volumes = normalization, volumes  # kept, because they are known by their identity
        is_needed = normalization.mode == "tissue" and not normalization.alone and len(volumes) > 1
        shared = share_scales(normalization, [look_at(volume, len(volumes)) for volume in volumes] if is_needed else [])
        self.said = shared.said
        self.known = {id(volume): scale for volume, scale in zip(volumes, shared.scales, strict=False) if scale}

    def scale_for(self, volume: Volume) -> Scale:
        """Returns the scale that a volume shares with others, or its own; ImageError where it has none."""
        return self.known.get(id(volume)) or self.normalization.scale_for(volume)


def share_scales(normalization: Normalization, greys: Sequence[Grey]) -> SharedScales:
    """Measures the grey scale of volumes, as `look_at` returns them, once over all those that have the same.

    For mode `tissue` alone, since the scale of others does not depend on what an image shows. Volumes are taken for one
    scan's where

    - dtype and distance of grey levels are the same, which a stretch of 8 bit changes;
    - they were not stretched one by one: all then reach from exactly the same lowest to the same highest value, without
      being clipped there;
    - darkest pixels and tissue lie within what different tissues of one scan have (`normalize.Tissue.fits`).

    A factor on the grey values of less than about 1.6 is told by the first two signs alone: white matter is as bright.
    """
    scales: list[Scale | None] = [None] * len(greys)
    said = []
    if reference := normalization.reference:
        for i, grey in enumerate(greys):
            if grey.dtype == normalization.dtype and grey.tissue.fits(reference):
                scales[i] = reference
        if number := sum(scale is not None for scale in scales):
            said.append(f"{number} of {len(greys)} images fit the reference: {describe_scale(reference)}.")
    left = [i for i, scale in enumerate(scales) if scale is None]
    stretched = [i for i in left if _is_stretched(greys[i], [greys[j] for j in left])]
    if stretched:
        said.append(
            f"{len(stretched)} images reach from exactly the same lowest to the same highest grey value, as if each had "
            "been stretched by itself, so each has a grey scale of its own."
        )
    left = [i for i in left if i not in stretched]
    while len(group := _find_largest([greys[i] for i in left])) > 1:
        first = greys[left[group[0]]]
        scale = _pool([greys[left[i]] for i in group])
        fitting = [i for i in left if greys[i].tissue.fits(scale) and _is_like(greys[i], first)]
        if len(fitting) < 2:  # one has a scale of its own
            break
        for i in fitting:
            scales[i] = scale
        left = [i for i in left if i not in fitting]
        said.append(f"{len(fitting)} images share a grey scale: {describe_scale(scale)}.")
    if said and left:
        numbers = ", ".join(greys[i].name for i in left[:8]) + ", ..." * (len(left) > 8)
        said.append(f"{len(left)} images have other grey values, so each has a grey scale of its own: {numbers}.")
    return SharedScales(tuple(scales), tuple(said))


def describe_scale(scale: Scale) -> str:
    """Returns in words what a scale is and where it was measured."""
    return f"tissue at grey {scale.mean:.4g}, the darkest pixels at {scale.mean - 4 * scale.std:.4g}, from {scale.source}"


def note_alone(volume: Volume) -> str:
    """Returns a sentence for a volume so small that it may hold one kind of tissue only, "" for others."""
    pixels = math.prod(volume.stack.shape)
    if pixels >= SMALL:
        return ""
    return (
        f"{volume.path or volume.name}: the grey scale was measured on its {pixels} pixels alone. Where they show one kind "
        "of tissue only, such as white matter, labels may be wrong: name images of the same scan with --reference."
    )


def look_at(volume: Volume, count: int) -> Grey:
    """Reads what a volume is compared and measured by, of so many that no more than a sample of all need be in memory."""
    sample = sample_grey(volume.stack, MOST_VALUES)
    ordered = np.sort(sample.values)
    return Grey(
        str(volume.path or volume.name),
        _thin(ordered, max(FEWEST_KEPT, MOST_VALUES // count)),
        math.prod(volume.stack.shape),
        describe_tissue(ordered, sample.source),
        (float(ordered[0]), float(ordered[-1])),
        all(_is_piled_up(values) for values in (ordered, -ordered[::-1])),
        _measure_step(ordered),
        volume.data.dtype.name,
    )


def _thin(ordered: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    kept = min(len(ordered), max(1, most))
    return ordered[((np.arange(kept) + 0.5) * len(ordered) / kept).astype(np.intp)]


def _pool(greys: Sequence[Grey]) -> Scale:
    """Measures the scale over volumes, of each as many values as it has a share of their voxels."""
    density = min(len(grey.values) / grey.voxels for grey in greys)
    values = np.concatenate([_thin(grey.values, round(density * grey.voxels)) for grey in greys])
    return describe_tissue(values, f"{values.size} pixels of {len(greys)} images together").scale


def _is_piled_up(ordered: NDArray[np.float64]) -> bool:
    """Returns whether sorted values pile up at the first of them."""
    at_end, near = np.searchsorted(ordered, (ordered[0], ordered[0] + END * (ordered[-1] - ordered[0])), "right")
    return bool(at_end >= max(FEWEST_CLIPPED, near - at_end))


def _measure_step(ordered: NDArray[np.float64]) -> float:
    """Returns the mean distance of neighbouring levels in the middle four fifths of sorted values, 0 if it is not clear."""
    middle = ordered[len(ordered) // 10 : -(len(ordered) // 10) or None]
    levels = np.count_nonzero(np.diff(middle)) + 1
    if levels < FEWEST_LEVELS or len(middle) < FEWEST_PIXELS * levels:
        return 0.0
    return float((middle[-1] - middle[0]) / (levels - 1))


def _is_stretched(grey: Grey, others: Sequence[Grey]) -> bool:
    """Returns whether a volume, as all others of its dtype, reaches from one value to another that is no clipped end."""
    alike = [other for other in others if other.dtype == grey.dtype and other.ends[0] < other.ends[1]]
    is_same = len(alike) > 1 and {other.ends for other in alike} == {grey.ends}
    return is_same and not all(other.is_clipped for other in alike)


def _find_largest(greys: Sequence[Grey]) -> list[int]:
    """Returns the numbers of those that may share a scale, the most voxels of all that do; first one of clear step."""
    tissues = [grey.tissue for grey in greys]
    is_usable = np.array([not tissue.is_inverted and tissue.dark < tissue.bright for tissue in tissues], bool)
    units = np.array([tissue.scale.std for tissue in tissues])
    darks, sizes = np.array([tissue.dark for tissue in tissues]), np.array([grey.voxels for grey in greys])
    best, most = list[int](), (False, 0)
    for i in np.flatnonzero(is_usable).tolist():
        alike = (
            is_usable & (units >= units[i]) & (units <= WIDEST * units[i]) & (abs(darks - darks[i]) <= MOST_DARK * units[i])
        )
        group = [i, *(j for j in np.flatnonzero(alike).tolist() if j != i and _is_like(greys[j], greys[i]))]
        size = greys[i].step > 0, int(sizes[group].sum())
        if len(group) > 1 and size > most:
            best, most = group, size
    return best


def _is_like(first: Grey, second: Grey) -> bool:
    """Returns whether dtype and, where it can be told, the distance of levels are the same."""
    steps = first.step, second.step
    return first.dtype == second.dtype and (not all(steps) or max(steps) <= STEP * min(steps))
