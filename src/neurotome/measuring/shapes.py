"""Size and surface of single objects in voxels of any edges."""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.volume import Size

Mask = NDArray[np.bool_]


def measure_surface_um2(mask: Mask, size_um: Size) -> float:
    """Returns the surface of an object (z, y, x) by Cauchy and Crofton: how often lines of 13 directions cross it.

    Each direction has the share of the sphere that lies nearer to it than to the others (Ohser & Muecklich 2000,
    Statistical Analysis of Microstructures; Legland et al. 2007, doi:10.5566/ias.v26.p83-92). A ball of 8 or more voxels
    radius comes out within 3 %, flat faces along the axes up to 13 % too small. Small objects are too coarse to have a
    surface, and their sphericity may exceed 1 a little.
    """
    padded = np.pad(mask, 1)
    total = 0.0
    for step, weight in _weigh_directions(size_um):
        total += weight * _count_crossings(padded, step)
    return 2 * total


def measure_perimeter_um(mask: Mask, size_um: Size) -> float:
    """Returns the perimeter of a profile (1, y, x), in the same way as the surface by lines of 4 directions."""
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    _, y, x = size_um
    angles = sorted((math.atan2(dy * y, dx * x) % math.pi, (0, dy, dx)) for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)))
    total = 0.0
    for number, (angle, step) in enumerate(angles):
        after, before = angles[(number + 1) % 4][0], angles[number - 1][0]
        share = ((after - angle) % math.pi + (angle - before) % math.pi) / (2 * math.pi)
        total += share * y * x / math.hypot(step[1] * y, step[2] * x) * _count_crossings(padded, step)
    return math.pi / 2 * total


def measure_sphericity(volume_um3: float, surface_um2: float) -> float:
    """Returns the surface of a ball of this volume, as a share of the surface: 1 for balls, less for all else."""
    return math.pi ** (1 / 3) * (6 * volume_um3) ** (2 / 3) / surface_um2


def measure_circularity(area_um2: float, perimeter_um: float) -> float:
    """Returns the perimeter of a disc of this area, as a share of the perimeter, squared: 1 for discs, less for all else."""
    return 4 * math.pi * area_um2 / perimeter_um**2


def _count_crossings(padded: Mask, step: tuple[int, int, int]) -> int:
    """Returns in how many pairs of voxels a step apart one is in the object and the other is not."""
    here: Any = tuple(slice(max(0, -d), min(0, -d) or None) for d in step)
    there: Any = tuple(slice(max(0, d), min(0, d) or None) for d in step)
    return int(np.count_nonzero(padded[here] != padded[there]))


@cache
def _weigh_directions(size_um: Size) -> list[tuple[tuple[int, int, int], float]]:
    """Returns the 13 directions with their share of the sphere times the area (um2) that a line in them stands for."""
    from scipy.spatial import SphericalVoronoi

    steps = [step for step in itertools.product((-1, 0, 1), repeat=3) if any(step)]
    lengths = [math.hypot(*(d * edge for d, edge in zip(step, size_um, strict=True))) for step in steps]
    points = np.asarray(steps) * size_um / np.asarray(lengths)[:, None]
    shares = SphericalVoronoi(points).calculate_areas() / (4 * math.pi)
    volume = math.prod(size_um)
    # both senses of a direction cross the same pairs
    found = zip(steps, shares.tolist(), lengths, strict=True)
    return [(step, 2 * share * volume / length) for step, share, length in found if step > (0, 0, 0)]
