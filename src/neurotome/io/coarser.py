"""find_factors: how many voxels of the finest level one of a stored coarser level covers, if it covers whole ones.

Metadata after the NGFF specification 0.5, https://ngff.openmicroscopy.org/0.5/.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from neurotome.io.axes import Layout

NEAR = 1e-6
"""Of a voxel: places that differ by less agree; metadata are rounded."""


class Placed(NamedTuple):
    """A level and where its voxels lie.

    Attributes:
        layout: Its axes and shape.
        scale: The edge of a voxel along each axis.
        start: Where the centre of its first voxel lies along each axis, in the scale's unit.
    """

    layout: Layout
    scale: tuple[float, ...]
    start: tuple[float, ...]


def read_placement(level: Mapping[str, Any], axes: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns scale and start of an entry of `datasets`, a number for each axis; 1 and 0 where it does not say them."""
    scale, start = [1.0] * axes, [0.0] * axes
    for step in level.get("coordinateTransformations", ()):
        if step["type"] == "scale":
            scale = [a * float(b) for a, b in zip(scale, step["scale"], strict=True)]
            start = [a * float(b) for a, b in zip(start, step["scale"], strict=True)]
        elif step["type"] == "translation":
            start = [a + float(b) for a, b in zip(start, step["translation"], strict=True)]
    return tuple(scale), tuple(start)


def find_factors(finest: Placed, coarser: Placed) -> tuple[int, int, int] | None:
    """Returns how many of the finest level's voxels (z, y, x) a coarser one covers; None if these are no whole boxes.

    They are if along each axis the edge is a whole number of the finest one's, so nearly that at the far end less than a
    coarse voxel is missing; the stored voxels are as many as whole ones fit, or one more for the rest; and the first one's
    centre lies among the finest voxels that it covers. Some writers put it in their middle, others, who take every second
    voxel or do not say it, on the first of them.
    """
    factors = dict.fromkeys("zyx", 1)
    for axis, fine, coarse, fine_edge, coarse_edge, fine_start, coarse_start in zip(
        finest.layout.axes,
        finest.layout.shape,
        coarser.layout.shape,
        finest.scale,
        coarser.scale,
        finest.start,
        coarser.start,
        strict=True,
    ):
        if axis not in factors:  # channels and times are the same
            if fine != coarse:
                return None
            continue
        ratio = coarse_edge / fine_edge
        factor = round(ratio)
        start = (coarse_start - fine_start) / fine_edge
        if (
            factor < 1
            or abs(ratio - factor) * coarse >= factor
            or coarse not in (fine // factor, -(-fine // factor))
            or not -NEAR <= start <= factor - 1 + NEAR
        ):
            return None
        factors[axis] = factor
    return factors["z"], factors["y"], factors["x"]
