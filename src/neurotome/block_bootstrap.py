"""Draws of blocks of neighbouring slices or tiles, scored from summed counts, with a variance that is right."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import SettingsError
from neurotome.tables import count

Floats = NDArray[np.float64]
Shapes = Sequence[tuple[int, int]]
"""Rows and columns of each group of units: the slices of a stack in one column, or the tiles of an image."""

TILES = 256  # of an image: about 64 blocks of 2 x 2 neighbours
SMALLEST_TILE = 16  # pixels
FEWEST_UNITS = 5  # fewer say nothing about how much they differ
ENOUGH_BLOCKS = 20  # independent blocks from which on intervals hold what they promise
KEYS = ("precision", "recall", "f1", "iou")
F1 = KEYS.index("f1")
ROUNDING = 1e-8  # smallest influence; what units that are all alike have is noise of the arithmetic
STEP = 1e-6  # by which a unit counts more when its influence is measured


@dataclass(frozen=True)
class IntervalSettings:
    """How the uncertainty of scores is measured."""

    level: float = 0.95
    """How often an interval should hold the truth."""
    block: int | Literal["auto"] = "auto"
    """Neighbouring slices (or tiles along each axis) that are drawn together; auto: by their autocorrelation."""
    resamples: int = 2000
    """Draws of blocks."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise SettingsError(f"interval.level is {self.level:g}; expected a share between 0 and 1, such as 0.95.")
        if self.block != "auto" and self.block < 1:
            raise SettingsError(f"interval.block is {self.block}; expected auto or a number of slices from 1 on.")
        if self.resamples < 100:
            raise SettingsError(f"interval.resamples is {self.resamples}; expected at least 100 draws.")
        if self.seed < 0:
            raise SettingsError(f"interval.seed is {self.seed}; expected 0 or more.")


@dataclass(frozen=True)
class Units:
    """Counts of one kind of unit, shape (runs, units, 3, classes): pixels that are right, of the class, and called it."""

    kind: Literal["slices", "tiles"]
    counts: Floats
    shapes: Shapes


@dataclass(frozen=True)
class Spread:
    """What drawn blocks say of some statistics, by methods and metrics."""

    units: Units
    block: int
    blocks: float
    """As how many independent units those at hand count, for macro F1."""
    variance: float
    """Of macro F1."""
    deviations: Floats
    """Draws minus their mean, stretched to the right variance, shape (draws, methods, metrics)."""
    freedom: float


def list_metrics(classes: Sequence[str]) -> list[str]:
    """Returns the dotted paths of all scores: means first, then accuracy, then classes."""
    means = [f"{mean}.{key}" for mean in ("macro", "weighted") for key in KEYS]
    return [*means, "accuracy", *(f"per_class.{name}.{key}" for name in classes for key in KEYS)]


def score_counts(counts: Floats) -> Floats:
    """Returns all scores in the order of `list_metrics`, as `metrics.scores` has them, NaN for None.

    `counts` has shape (..., 3, classes), the result (..., metrics).
    """
    hit, true, given = (counts[..., i, :] for i in range(3))
    present = true + given > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = np.stack(
            [
                np.where(given > 0, hit / given, 0.0),
                np.where(true > 0, hit / true, 0.0),
                2 * hit / (true + given),
                hit / (true + given - hit),
            ],
            -1,
        )
        summed = np.where(present[..., None], rates, 0.0)
        rates = np.where(present[..., None], rates, np.nan)
        macro = summed.sum(-2) / present.sum(-1)[..., None]
        total = true.sum(-1)[..., None]
        weighted = (summed * true[..., None]).sum(-2) / total
        accuracy = hit.sum(-1)[..., None] / total
    return np.concatenate([macro, weighted, accuracy, rates.reshape(*rates.shape[:-2], -1)], -1)


def count_units(counts: Floats) -> NDArray[np.intp]:
    """Returns of how many units each score tells, in the order of `list_metrics`.

    Those are the units in which its class occurs, or for precision is found; of means and accuracy all. `counts` has the
    shape (runs, units, 3, classes).
    """
    occurs, found = ((counts[:, :, kind] > 0).any(0).sum(0) for kind in (1, 2))
    by_class = np.stack([found if key == "precision" else occurs for key in KEYS], -1)
    means = np.full(2 * len(KEYS) + 1, counts.shape[1])
    return np.concatenate([means, by_class.ravel()])


def warn_of(spread: Spread | None, candidates: Sequence[Units]) -> str:
    """Returns a warning where an interval is missing or may promise too much, nothing otherwise."""
    if spread is None:
        n, kind = max((units.counts.shape[1], units.kind) for units in candidates)
        return f"no interval: {count(n, kind[:-1])}, and fewer than {FEWEST_UNITS} do not say how much they differ"
    n, kind = spread.units.counts.shape[1], spread.units.kind
    said = []
    if spread.blocks < ENOUGH_BLOCKS:
        few = f"{n} {kind} count as {spread.blocks:.0f} independent ones"
        said.append(f"{few}; below {ENOUGH_BLOCKS} the interval may be too narrow")
    occurs = (spread.units.counts[:, :, 1] > 0).any(0).sum(0)
    if (rare := occurs[occurs > 0]).size and rare.min() < FEWEST_UNITS:
        said.append(f"a class occurs in {rare.min()} of {n} {kind} alone, too few to say how much its scores vary")
    return "; ".join(said)


def plan_tiles(shape: tuple[int, int]) -> list[NDArray[np.intp]]:
    """Returns where the tiles of an image begin, and where the last ones end, along y and along x, in pixels."""
    edge = max(SMALLEST_TILE, math.isqrt(shape[0] * shape[1] // TILES))
    return [np.linspace(0, size, max(1, size // edge) + 1).astype(np.intp) for size in shape]


def measure_variance(slopes: Floats, units: Units) -> tuple[Floats, float]:
    """Returns the variance of summed influences on some numbers that are no scores, and its degrees of freedom.

    It is the variance to which `measure_spread` stretches its draws; the window over lags is chosen in the same way.

    Args:
        slopes: What each unit adds to each number, shape (numbers, units); each row sums to 0.
        units: The same units.
    """
    slopes = np.where(np.abs(slopes) < ROUNDING, 0, slopes)
    reach = _choose_reach(slopes, units.shapes, _limit_reach(units))
    return _long_run_variance(slopes, units.shapes, reach)


def measure_spread(
    candidates: Sequence[Units],
    contrast: Floats,
    places: Sequence[int],
    settings: IntervalSettings,
) -> Spread | None:
    """Draws blocks of units; of slices or tiles, the kind that says more uncertainty.

    Few slices hardly vary if they are neighbours, tiles do; few images that are strangers differ by more than their tiles.

    Args:
        candidates: Units of the same pixels.
        contrast: Weights of runs in each statistic, shape (methods, runs).
        places: The metrics.
        settings: How.

    Returns:
        None where there are too few units of any kind.
    """
    spreads = [_draw(units, contrast, places, settings) for units in candidates if units.counts.shape[1] >= FEWEST_UNITS]
    return max(spreads, key=lambda spread: spread.variance, default=None)


def _draw(units: Units, contrast: Floats, places: Sequence[int], settings: IntervalSettings) -> Spread:
    """Draws blocks of one kind of unit."""
    total = units.counts.sum(1)
    n = units.counts.shape[1]
    # the slope of every score when a unit counts a little more, shape (runs, units, metrics)
    slopes = (score_counts(total[:, None] + STEP * units.counts) - score_counts(total)[:, None]) / STEP
    slopes = np.nan_to_num(np.einsum("mr,rnq->mqn", contrast, slopes))
    slopes[np.abs(slopes) < ROUNDING] = 0
    f1s, macro_f1 = slopes[:, len(list_metrics(())) + F1 :: len(KEYS)], slopes[:, [F1]]
    most = _limit_reach(units)
    if settings.block == "auto":
        reach = _choose_reach(f1s.reshape(-1, n), units.shapes, most)
        block = math.ceil(reach / 2)
    else:
        block = min(settings.block, n)
        reach = 1 if block == 1 else min(2 * block, most)
    sides = (block, block if units.kind == "tiles" else 1)
    volume = sides[0] * sides[1]
    wanted, freedom = _long_run_variance(slopes[:, places], units.shapes, reach)
    drawn_blocks = max(2, round(n / volume))
    starts = _sum_blocks(slopes[:, places], units.shapes, sides)
    plain = (n / (drawn_blocks * volume)) ** 2 * drawn_blocks * np.square(starts).mean(-1)
    stretch = np.sqrt(np.divide(wanted, plain, out=np.ones_like(wanted), where=plain > 0))
    counts = np.moveaxis(units.counts, 1, -1)
    summed = np.moveaxis(_sum_blocks(counts, units.shapes, sides), -1, 0).reshape(n, -1)
    random = np.random.default_rng(settings.seed)
    statistics = []
    for times in _draw_blocks(random, n, drawn_blocks, settings.resamples):
        scores = score_counts((times @ summed).reshape(len(times), *counts.shape[:-1]))[:, :, places]
        statistics.append(np.einsum("mr,drq->dmq", contrast, scores))
    drawn = np.concatenate(statistics)
    known = ~np.isnan(drawn)  # a draw may lack a class
    means = np.where(known, drawn, 0).sum(0) / np.maximum(known.sum(0), 1)
    variance = float(_long_run_variance(macro_f1, units.shapes, reach)[0].sum())
    alone = float(np.square(macro_f1).sum()) * n / (n - 1)
    blocks = n / max(1.0, variance / alone) if alone > 0 else float(n)
    return Spread(units, block, blocks, variance, (drawn - means) * stretch, freedom)


def _draw_blocks(random: np.random.Generator, n: int, blocks: int, resamples: int) -> Iterator[Floats]:
    """Yields how often each block is drawn, shape (draws, n), a few draws at a time, so that memory is bounded."""
    for first in range(0, resamples, 250):
        size = min(250, resamples - first)
        yield random.multinomial(blocks, np.full(n, 1 / n), size).astype(np.float64)


def _limit_reach(units: Units) -> int:
    """Returns how far a window over lags may reach and leave some degrees of freedom."""
    n = units.counts.shape[1]
    longest = max(max(shape) for shape in units.shapes)
    return max(1, min(2 * longest, n // 4 if units.kind == "slices" else math.isqrt(n // 5)))


def _choose_reach(slopes: Floats, shapes: Shapes, most: int) -> int:
    """Returns how far the window over lags reaches: twice as far as to where the autocorrelation is no more positive.

    `slopes` are the influences of units on some scores, shape (series, units). 1 means that units are independent.
    """
    in_line = all(columns == 1 for _, columns in shapes)
    covariance = _autocovariance(slopes, shapes, most + 1).sum(0)
    along = covariance[:, 0] if in_line else (covariance[:, 0] + covariance[0]) / 2
    if along[0] <= 0:
        return 1
    lost = np.flatnonzero(along[1:] <= 0)
    lag = 1 + int(lost[0]) if lost.size else len(along)
    return 1 if lag == 1 else min(most, 2 * lag)


def _long_run_variance(slopes: Floats, shapes: Shapes, reach: int) -> tuple[Floats, float]:
    """Returns the variance of summed influences, shape (..., units), and its degrees of freedom."""
    n = slopes.shape[-1]
    covariance = _autocovariance(slopes, shapes, reach)
    pairs = _autocovariance(np.ones(n), shapes, reach) / n  # how many partners a unit has at each lag
    rows, columns = (np.arange(size) for size in pairs.shape)

    def add(window: Floats) -> Floats:
        counted = float((pairs * window).sum())
        summed: Floats = (covariance * window).sum((-2, -1))
        return np.asarray(summed / max(1 - counted / n, 1 / n))  # their mean is taken from the same units

    triangle = np.multiply.outer(1 - rows / reach, 1 - columns / reach)
    flat_top = np.multiply.outer(np.minimum(2 * (1 - rows / reach), 1), np.minimum(2 * (1 - columns / reach), 1))
    freedom = max(1.0, n / float((pairs * flat_top**2).sum()) - 1)
    return np.maximum(add(flat_top), add(triangle)), freedom  # the flat top may find less than nothing, the triangle never


def _autocovariance(series: Floats, shapes: Shapes, lags: int) -> Floats:
    """Returns sums of products of units at each lag along y and x, of both signs, shape (..., lags, lags or 1)."""
    from scipy import fft

    kept = min(lags, max(rows for rows, _ in shapes)), min(lags, max(columns for _, columns in shapes))
    total = np.zeros((*series.shape[:-1], *kept))
    for first, (rows, columns) in _walk(shapes):
        grid = series[..., first : first + rows * columns].reshape(*series.shape[:-1], rows, columns)
        size = 2 * rows, 2 * columns
        products = fft.irfft2(np.square(np.abs(fft.rfft2(grid, size))), size)
        y, x = np.arange(min(kept[0], rows)), np.arange(min(kept[1], columns))
        for signs in itertools.product((1, -1), repeat=2):
            weight = 1 / (np.where(y > 0, 1, 2)[:, None] * np.where(x > 0, 1, 2))  # lag 0 comes with both signs
            total[..., : len(y), : len(x)] += weight * products[..., (signs[0] * y)[:, None], signs[1] * x]
    return total


def _sum_blocks(series: Floats, shapes: Shapes, block: tuple[int, int]) -> Floats:
    """Returns the sums of the block that begins at each unit, shape (..., units); stacks are closed to circles."""
    summed = np.empty_like(series)
    for first, (rows, columns) in _walk(shapes):
        grid = series[..., first : first + rows * columns].reshape(*series.shape[:-1], rows, columns)
        for axis, length in ((-2, block[0]), (-1, block[1])):
            grid = np.sum([np.roll(grid, -step, axis) for step in range(length)], 0)
        summed[..., first : first + rows * columns] = grid.reshape(*series.shape[:-1], -1)
    return summed


def _walk(shapes: Shapes) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yields the first unit of each group, and the group's shape."""
    first = 0
    for rows, columns in shapes:
        yield first, (rows, columns)
        first += rows * columns
