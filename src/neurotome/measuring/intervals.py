"""Intervals of ratios, such as fractions and densities, from cubes of tissue as clusters.

The whole measured volume is counted, so its own numbers are exact; an interval says how much they would differ in other
tissue of the same kind. Cubes that lie side by side are alike: the variance of the ratio (linearised, Cochran 1977, chapter
6) is summed over pairs of cubes out to where they no longer are, with the windows that `block_bootstrap` has for slices.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FEWEST_CLUSTERS = 5
"""Fewer say nothing about how much they differ."""


class Ratio(NamedTuple):
    """A ratio with its interval, None where there is too little to say."""

    value: float | None
    low: float | None = None
    high: float | None = None


class Added(NamedTuple):
    """Uncertainty that a ratio has from elsewhere, of its standard error or (`estimate_density`) its relative one."""

    variance: float = 0.0
    freedom: float = math.inf


NOTHING = Added()


def estimate_share(hits: Floats, sizes: Floats, level: float, added: Added = NOTHING) -> Ratio:
    """Returns the sum of `hits` per sum of `sizes`, a share of 0..1, by clusters on a grid (z, y, x), with its interval.

    The interval is symmetric on the scale of log odds, so that it stays within 0..1. What is `added` is independent of the
    tissue that is measured: variances are summed and degrees of freedom joined (Satterthwaite 1946, doi:10.2307/3002019).
    """
    ratio, half = _estimate(hits, sizes, level, added)
    if ratio is None or half is None or not 0 < ratio < 1:
        return Ratio(ratio)
    odds, width = ratio / (1 - ratio), math.exp(min(half / (ratio * (1 - ratio)), 700))
    return Ratio(ratio, odds / (odds + width), odds * width / (1 + odds * width))


def estimate_density(counts: Floats, sizes: Floats, level: float, added: Added = NOTHING) -> Ratio:
    """Returns the sum of `counts` per sum of `sizes`, by clusters on a grid (z, y, x), with its interval.

    The interval is symmetric on the scale of logarithms. Where nothing was counted it reaches up to what would show nothing
    in half of 1 - `level` of all cases (Poisson). `added` is relative to the density, otherwise as for `estimate_share`.
    """
    scale = (float(counts.sum()) / float(sizes.sum())) ** 2 if sizes.any() else 0.0
    ratio, half = _estimate(counts, sizes, level, Added(added.variance * scale, added.freedom))
    if ratio == 0:
        return Ratio(0.0, 0.0, -math.log((1 - level) / 2) / float(sizes.sum()))
    if ratio is None or half is None:
        return Ratio(ratio)
    width = math.exp(min(half / ratio, 700))
    return Ratio(ratio, ratio / width, ratio * width)


def _estimate(hits: Floats, sizes: Floats, level: float, added: Added) -> tuple[float | None, float | None]:
    """Returns the ratio, and how far its interval reaches to each side."""
    from scipy.special import stdtrit

    total, present = float(sizes.sum()), sizes > 0
    if total <= 0:
        return None, None
    ratio = float(hits.sum()) / total
    if np.count_nonzero(present) < FEWEST_CLUSTERS:
        return ratio, None
    influence = np.where(present, hits - ratio * sizes, 0.0) / total
    variance, freedom = measure_variance(influence, present)
    parts = [(variance, freedom)]
    if added.variance > 0:
        total = variance + added.variance
        joined = total**2 / (variance**2 / freedom + added.variance**2 / added.freedom)
        parts += [added, (total, joined)]
    # joined freedom can make both together narrower than one alone that has a freedom of one or two, which cannot be
    return ratio, max(math.sqrt(part) * float(stdtrit(free, (1 + level) / 2)) for part, free in parts)


def measure_variance(influence: Floats, present: NDArray[np.bool_]) -> tuple[float, float]:
    """Returns the variance of a sum of influences on a grid (z, y, x), of which neighbours are alike, and its freedom.

    Args:
        influence: Of each cluster; their sum is 0.
        present: Which clusters there are; the others have no influence.
    """
    clusters = int(np.count_nonzero(present))
    products = _correlate(influence)
    pairs = _correlate(present.astype(np.float64)) / clusters
    lags = [np.abs(np.fft.fftfreq(size, 1 / size)) for size in products.shape]
    reach = _choose_reach(products, max(2, max(present.shape) // 3))

    def add(edges: list[Floats]) -> tuple[float, float]:
        window = edges[0][:, None, None] * edges[1][:, None] * edges[2]
        # what the influences share with their mean, which is taken from the same clusters, is missing
        lost = min(float((pairs * window).sum()) / clusters, 1 - 1 / clusters)
        return float((products * window).sum()) / (1 - lost), float((pairs * window**2).sum())

    flat, weight = add([np.clip(2 * (1 - lag / reach), 0, 1) for lag in lags])
    triangle, _ = add([np.clip(1 - lag / reach, 0, 1) for lag in lags])
    return max(flat, triangle, 0.0), max(1.0, clusters / weight - 1)


def _correlate(values: Floats) -> Floats:
    """Returns the sums of products of all pairs at each lag, negative lags at the end."""
    from scipy import fft

    size = [2 * edge for edge in values.shape]
    return np.asarray(fft.irfftn(np.square(np.abs(fft.rfftn(values, size))), size))


def _choose_reach(products: Floats, most: int) -> int:
    """Returns how far windows reach: twice as far as to where neighbours are no more alike; 1 if they never are."""
    if products[0, 0, 0] <= 0:
        return 1
    axes = [products[:, 0, 0], products[0, :, 0], products[0, 0, :]]
    axes = [line[: len(line) // 2] for line in axes if len(line) > 2]  # an axis of one cluster has no neighbours
    if not axes:
        return 1
    along = [float(np.mean([line[lag] for line in axes if lag < len(line)])) for lag in range(max(map(len, axes)))]
    lost = next((lag for lag, value in enumerate(along) if value <= 0), len(along))
    return 1 if lost == 1 else min(most, 2 * lost)
