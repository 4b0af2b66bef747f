"""Size and surface of single objects in voxels of any edges."""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any

import numpy as np

from neurotome.objects.masks import Mask, pad_mask
from neurotome.volume import Size

Step = tuple[int, int, int]


def measure_surface_um2(mask: Mask, size_um: Size) -> float:
    """Returns the surface of an object (z, y, x) by Cauchy and Crofton: how often lines of 13 directions cross it.

    Each direction has the share of the sphere that lies nearer to it than to the others (Ohser & Muecklich 2000,
    Statistical Analysis of Microstructures; Legland et al. 2007, doi:10.5566/ias.v26.p83-92). A ball of 8 or more voxels
    radius comes out within 3 %, flat faces along the axes up to 13 % too small. Small objects are too coarse to have a
    surface, and their sphericity may exceed 1 a little.
    """
    padded = pad_mask(mask, ((1, 1), (1, 1), (1, 1)))
    return 2.0 * sum(weight * _count_crossings(padded, step) for step, weight in _weigh_directions(size_um))


def measure_perimeter_um(mask: Mask, size_um: Size) -> float:
    """Returns the perimeter of a profile (1, y, x), in the same way as the surface by lines of 4 directions."""
    padded = pad_mask(mask, ((0, 0), (1, 1), (1, 1)))
    _, y, x = size_um
    angles = sorted((math.atan2(dy * y, dx * x) % math.pi, (0, dy, dx)) for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)))
    total = 0.0
    for number, (angle, step) in enumerate(angles):
        after, before = angles[(number + 1) % 4][0], angles[number - 1][0]
        share = ((after - angle) % math.pi + (angle - before) % math.pi) / (2 * math.pi)
        total += share * y * x / math.hypot(step[1] * y, step[2] * x) * _count_crossings(padded, step)
    return math.pi / 2 * total


def measure_sphericity(volume_um3: Any, surface_um2: Any) -> Any:
    """Returns the surface of a ball of this volume, as a share of the surface: 1 for balls; or of many."""
    return math.pi ** (1 / 3) * (6 * volume_um3) ** (2 / 3) / surface_um2


def measure_circularity(area_um2: Any, perimeter_um: Any) -> Any:
    """Returns the perimeter of a disc of this area, as a share of the perimeter, squared: 1 for discs; or of many."""
    return 4 * math.pi * area_um2 / perimeter_um**2


def _count_crossings(padded: Mask, step: Step) -> int:
    """Returns in how many pairs of voxels a step apart one is in the object and the other is not.

    The mask has nothing at its ends along every axis that is stepped along. So pairs that the end of a line parts are equal,
    and all lines can be taken as one.
    """
    (_, y, x), line = padded.shape, padded.ravel()
    apart = (step[0] * y + step[1]) * x + step[2]
    return int(np.count_nonzero(line[apart:] != line[:-apart]))


@cache
def _weigh_directions(size_um: Size) -> list[tuple[Step, float]]:
    """Returns the 13 directions with their share of the sphere times the area (um2) that a line in them stands for."""
    from scipy.spatial import SphericalVoronoi

    steps = [(z, y, x) for z, y, x in itertools.product((-1, 0, 1), repeat=3) if z or y or x]
    lengths = [math.hypot(*(d * edge for d, edge in zip(step, size_um, strict=True))) for step in steps]
    points = np.asarray(steps) * size_um / np.asarray(lengths)[:, None]
    shares = SphericalVoronoi(points).calculate_areas() / (4 * math.pi)
    volume = math.prod(size_um)
    # both senses of a direction cross the same pairs
    found = zip(steps, shares.tolist(), lengths, strict=True)
    return [(step, 2 * share * volume / length) for step, share, length in found if step > (0, 0, 0)]
