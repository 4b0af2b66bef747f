"""How sure scores are: intervals, differences and ranks of methods, by drawing blocks of neighbouring slices.

Neighbouring slices are nearly copies of each other, so that slices drawn one by one promise too much. Here

1. a score is a function of summed counts of pixels. What a slice adds to it, its influence, is the slope of the score when
   the slice counts a little more (Efron 1982, doi:10.1137/1.9781611970319, infinitesimal jackknife);
2. the autocorrelation of the influences on the classes' F1 is followed to the first lag at which it is not positive, as by
   Geyer (1992, doi:10.1214/ss/1177011137), which is the block's length;
3. blocks are drawn with replacement from all stacks, each stack closed to a circle (Politis & Romano 1992), and every draw
   is scored from its summed counts;
4. the variance of the draws lacks the correlation that blocks cut, and a few blocks vary too little. It is multiplied by the
   ratio of the long-run variance of the influences under the flat-top window of Politis & Romano (1995,
   doi:10.1111/j.1467-9892.1995.tb00223.x), corrected for the mean that is taken from the same slices, to that of the blocks;
5. an interval is the score plus and minus Student's t times the standard error, on the scale of log odds for a score, so
   that it stays between 0 and 1. Degrees of freedom are those of the window (Priestley 1981, section 6.2);
6. trainings with several seeds are a second level: their variance over the number of seeds is added, and degrees of freedom
   are joined (Satterthwaite 1946, doi:10.2307/3002019).

Where there are few slices, tiles of pixels take their place, in blocks of neighbours along y and x.
`benchmarks/coverage.py` measures how often the intervals hold the truth.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from neurotome.block_bootstrap import (
    FEWEST_UNITS,
    ROUNDING,
    Floats,
    Spread,
    Units,
    count_units,
    list_metrics,
    measure_spread,
    score_counts,
    warn_of,
)
from neurotome.block_bootstrap import IntervalSettings as IntervalSettings
from neurotome.errors import RunError, SettingsError, unknown

Scores = Mapping[str, Any]
"""The content of `scores/<split>.json`."""

FEWEST_SLICES = 20  # fewer, and tiles are counted too


@dataclass(frozen=True)
class Estimate:
    """A score of a method and its interval."""

    value: float | None
    """Mean over seeds; None where nothing is labelled."""
    low: float | None
    high: float | None
    seeds: int
    blocks: float
    """As how many independent slices or tiles those at hand count."""
    note: str
    """A plain warning, or nothing."""
    unit: Literal["slices", "tiles"] = "slices"
    block: int = 1
    """Units that were drawn together, along each axis."""
    units: int = 0


@dataclass(frozen=True)
class Difference:
    """The score of one method minus that of another on the same slices."""

    effect: float
    low: float | None
    high: float | None
    p: float | None
    """Two-sided, of no difference; below 1 - level just where the interval excludes 0."""
    p_corrected: float | None
    """For the number of comparisons, Holm (1979)."""
    blocks: float
    note: str


@dataclass(frozen=True)
class Rank:
    """The place of a method among others, 1 the best."""

    name: str
    value: float
    rank: int
    low: int
    high: int
    share_first: float
    """Share of draws, of blocks and of seeds, in which it is first; NaN where there is too little to draw."""


def estimate(runs: Sequence[Scores], metric: str, settings: IntervalSettings = IntervalSettings()) -> Estimate:
    """Returns a score of one method with its interval.

    Args:
        runs: Scores of its runs on one split: one for each seed, and each fold.
        metric: Dotted path of a score, such as `macro.f1`, `per_class.cell.recall` or `accuracy`.
        settings: How.

    Raises:
        RunError: There are no runs, or none of some folds.
        SettingsError: There is no such metric.
    """
    return estimate_all(runs, [metric], settings)[metric]


def estimate_all(
    runs: Sequence[Scores], metrics: Sequence[str], settings: IntervalSettings = IntervalSettings()
) -> dict[str, Estimate]:
    """Returns several scores of one method, each with its interval from the same draws; otherwise as `estimate`."""
    (candidates,) = _match({"": runs})
    return estimate_units(candidates, dict(zip(metrics, _find_metrics(metrics, runs), strict=True)), settings)


def estimate_units(
    candidates: Sequence[Units], metrics: Mapping[str, int], settings: IntervalSettings = IntervalSettings()
) -> dict[str, Estimate]:
    """Returns several scores of counted units, each with its interval.

    `candidates` are the same counts by slices, and by tiles if there are; `metrics` has their places in `score_counts`.
    """
    from scipy import special

    places = list(metrics.values())
    values = score_counts(candidates[0].counts.sum(1))[:, places]
    means = values.mean(0)
    spread = measure_spread(candidates, np.full((1, len(values)), 1 / len(values)), places, settings)
    note = warn_of(spread, candidates)
    errors, freedom = _join(spread, [values])
    reaches = errors * special.stdtrit(freedom, (1 + settings.level) / 2)
    told = count_units(spread.units.counts)[places] if spread else np.zeros(len(places))
    results = {}
    for metric, mean, reach, few in zip(metrics, means.tolist(), reaches.tolist(), told < FEWEST_UNITS, strict=True):
        low = high = None
        if not few and reach < ROUNDING:
            low = high = mean
        elif not few and reach > 0 and 0 < mean < 1:
            half = reach / (mean * (1 - mean))
            low, high = (float(special.expit(special.logit(mean) + side * half)) for side in (-1, 1))
        value = None if math.isnan(mean) else mean
        units = spread.units if spread else candidates[-1]
        block, blocks = (spread.block, spread.blocks) if spread else (1, 0.0)
        results[metric] = Estimate(value, low, high, len(values), blocks, note, units.kind, block, units.counts.shape[1])
    return results


def say_method(estimate: Estimate, resamples: int) -> str:
    """Returns how an interval was measured, or none."""
    if not estimate.blocks:
        return "none"
    size = f"{estimate.block} x {estimate.block}" if estimate.unit == "tiles" else str(estimate.block)
    drawn = f"blocks of {size} neighbouring {estimate.unit}" if estimate.block > 1 else estimate.unit
    many = f"{estimate.units} in all, which count as {estimate.blocks:.0f} independent ones"
    return f"bootstrap over {drawn} ({many}), {resamples} draws, Student's t"


def compare_pairs(
    pairs: Mapping[str, tuple[Sequence[Scores], Sequence[Scores]]],
    metric: str = "macro.f1",
    settings: IntervalSettings = IntervalSettings(),
) -> dict[str, Difference]:
    """Returns for each pair of methods the first's score minus the second's, measured on the same slices.

    Args:
        pairs: By a name, the scores of the runs of two methods on one split, as for `estimate`.
        metric: As for `estimate`.
        settings: How.

    Raises:
        RunError: Two methods were scored on different slices, or one has no such score.
        SettingsError: There is no such metric.
    """
    results: dict[str, Difference] = {}
    for name, (first, second) in pairs.items():
        places = _find_metrics([metric], first)
        sides = _match({f"{name}, first": first, f"{name}, second": second})
        values = [score_counts(side[0].counts.sum(1))[:, places] for side in sides]
        if np.isnan(np.concatenate(values)).any():
            raise RunError(f"{name}: found nothing to score {metric} on; expected a score that both have. Choose another.")
        effect = float(values[0].mean() - values[1].mean())
        signs = np.repeat([1 / len(values[0]), -1 / len(values[1])], [len(values[0]), len(values[1])])
        spread = measure_spread(_stack(sides), signs[None], places, settings)
        note = warn_of(spread, sides[0])
        if spread is not None and count_units(spread.units.counts)[places[0]] < FEWEST_UNITS:
            spread = None
        results[name] = _test(effect, spread, values, note, settings)
    tested = {name: result.p for name, result in results.items() if result.p is not None}
    corrected = dict(zip(tested, correct_holm(list(tested.values())), strict=True))
    return {name: replace(result, p_corrected=corrected.get(name)) for name, result in results.items()}


def compare_metrics(
    runs: Sequence[Scores], first: str, second: str, settings: IntervalSettings = IntervalSettings()
) -> Difference:
    """Returns one score minus another of the same runs, such as `weighted.f1` minus `macro.f1`.

    Args:
        runs: As for `estimate`.
        first: As `metric` for `estimate`.
        second: The same.
        settings: How.

    Raises:
        RunError: There are no runs, or nothing to score.
        SettingsError: There is no such metric.
    """
    (candidates,) = _match({"": runs})
    values = score_counts(candidates[0].counts.sum(1))[:, places := _find_metrics([first, second], runs)]
    if np.isnan(values).any():
        raise RunError(f"found nothing to score {first} and {second} on; expected a run that has both. Choose others.")
    spread = measure_spread(candidates, np.full((1, len(values)), 1 / len(values)), places, settings)
    if spread is not None:
        spread = replace(spread, deviations=spread.deviations[:, :, :1] - spread.deviations[:, :, 1:])
    gaps = values[:, :1] - values[:, 1:]
    return _test(float(gaps.mean()), spread, [gaps], warn_of(spread, candidates), settings)


def rank_methods(
    methods: Mapping[str, Sequence[Scores]], metric: str = "macro.f1", settings: IntervalSettings = IntervalSettings()
) -> list[Rank]:
    """Returns the methods from best to worst, and how stable their order is when blocks and seeds are drawn again.

    Methods with the same score in a draw share the better place. With too few slices to draw, any place is possible.

    Raises:
        RunError: Methods were scored on different slices, or one has no such score.
        SettingsError: There is no such metric.
    """
    names = list(methods)
    places = _find_metrics([metric], next(iter(methods.values()), ()))
    sides = _match(methods)
    values = [score_counts(side[0].counts.sum(1))[:, places[0]] for side in sides]
    means = np.array([value.mean() for value in values])
    if np.isnan(means).any():
        raise RunError(f"ranks: found nothing to score {metric} on; expected a score that all methods have. Choose another.")
    owner = np.repeat(np.arange(len(names)), [len(value) for value in values])
    average = np.stack([(owner == i) / (owner == i).sum() for i in range(len(names))])
    # minus the mean of all: what they share moves no rank, and is not to choose the block
    spread = measure_spread(_stack(sides), average - average.mean(0), places, settings)
    order = np.argsort(-means, kind="stable").tolist()
    if spread is None:
        return [Rank(names[i], float(means[i]), place, 1, len(names), math.nan) for place, i in enumerate(order, 1)]
    drawn = means + spread.deviations[:, :, 0]
    random = np.random.default_rng((settings.seed, 1))
    for i, value in enumerate(values):
        if (seeds := len(value)) > 1:  # means of drawn seeds vary too little, by (seeds - 1) / seeds
            again = random.choice(value, (len(drawn), seeds)).mean(1) - means[i]
            drawn[:, i] += math.sqrt(seeds / (seeds - 1)) * again
    ranks = (drawn[:, None, :] > drawn[:, :, None]).sum(2) + 1
    tail = (1 - settings.level) / 2
    low, high = np.quantile(ranks, (tail, 1 - tail), axis=0, method="nearest").astype(int)
    shares = ((ranks == 1) / (ranks == 1).sum(1, keepdims=True)).mean(0)
    return [
        Rank(names[i], float(means[i]), place, int(low[i]), int(high[i]), float(shares[i]))
        for place, i in enumerate(order, 1)
    ]


def correct_holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for their number, Holm (1979), https://www.jstor.org/stable/4615733, in the same order."""
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values, np.float64)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return [float(p) for p in corrected]


# from files to units


def _match(methods: Mapping[str, Sequence[Scores]]) -> list[list[Units]]:
    """Returns the units of each method, slices first and tiles if there are; all of the same pixels."""
    read = [_read_units(name, runs) for name, runs in methods.items()]
    for name, units in zip(methods, read, strict=True):
        for own, other in zip(units, read[0], strict=False):
            truth, theirs = own.counts[0, :, 1], other.counts[0, :, 1]
            if truth.shape != theirs.shape or (truth != theirs).any():
                raise RunError(
                    f"{name}: scored on other slices than {next(iter(methods))}. Score both on the same images and labels."
                )
    return read


def _stack(sides: Sequence[Sequence[Units]]) -> list[Units]:
    """Returns the units of several methods with the runs of all, one method after the other."""
    return [
        Units(same[0].kind, np.concatenate([units.counts for units in same]), same[0].shapes)
        for same in zip(*sides, strict=True)
    ]


def _read_units(name: str, runs: Sequence[Scores]) -> list[Units]:
    """Returns the units of a method's runs; runs of different folds become one run of all their slices."""
    if not runs:
        raise RunError(f"{name or 'estimate'}: found no scores; expected those of one run or more.")
    folds: dict[Any, list[Scores]] = {}
    for run in runs:
        truth = tuple(class_scores["support"] for class_scores in run["per_class"].values())
        folds.setdefault((tuple(run["classes"]), tuple(run["per_image"]["name"]), truth), []).append(run)
    if len({classes for classes, *_ in folds}) > 1:
        raise RunError(f"{name or 'estimate'}: found scores of different classes; expected the same for every run.")
    counts: dict[str, list[Floats]] = {}
    shapes: dict[str, list[tuple[int, int]]] = {}
    seeds = min(map(len, folds.values()))  # a seed that some fold lacks would weigh on the others only
    for key in sorted(folds, key=str):
        members = folds[key][:seeds]
        lengths = [len(list(group)) for _, group in itertools.groupby(members[0]["per_image"]["name"], find_stack)]
        counts.setdefault("slices", []).append(np.stack([_tally(run["per_image"]["confusion"]) for run in members]))
        shapes.setdefault("slices", []).extend((length, 1) for length in lengths)
        tiles = [run["per_image"].get("tiles") or [] for run in members]
        if tiles[0]:
            grids = [[tile for group in run for tile in group["confusion"]] for run in tiles]
            counts.setdefault("tiles", []).append(np.stack([_tally(grid) for grid in grids]))
            shapes.setdefault("tiles", []).extend((group["grid"][0], group["grid"][1]) for group in tiles[0])
    kinds: tuple[Literal["slices", "tiles"], ...] = ("slices", "tiles")
    return [
        Units(kind, np.concatenate(counts[kind], 1), shapes[kind])
        for kind in kinds
        if len(counts.get(kind, ())) == len(folds)
    ]


def find_stack(name: str) -> str:
    """Returns the stack that a slice is of; single images are one stack, for serial sections often are single files."""
    stack, slash, place = name.rpartition("/")
    return stack if slash and place.isdecimal() else ""


def _tally(confusions: Any) -> Floats:
    """Returns pixels that are right, of a class, and called it, shape (units, 3, classes), of confusion matrices."""
    stacked = np.asarray(confusions, np.float64)
    return np.stack([np.diagonal(stacked, axis1=-2, axis2=-1), stacked.sum(-1), stacked.sum(-2)], -2)


# scores of counts


def _find_metrics(metrics: Sequence[str], runs: Sequence[Scores]) -> list[int]:
    """Returns where metrics stand in what `score_counts` returns."""
    known = list_metrics(runs[0]["classes"] if runs else ())
    for metric in metrics:
        if metric not in known:
            raise SettingsError(unknown("metric", metric, known))
    return [known.index(metric) for metric in metrics]


# from draws to intervals


def _test(
    effect: float, spread: Spread | None, values: Sequence[Floats], note: str, settings: IntervalSettings
) -> Difference:
    """Returns a difference with its interval and p-value; otherwise as `_join`."""
    from scipy import special

    error, freedom = (float(found[0]) for found in _join(spread, values))
    low = high = p = None
    if spread is not None and (error or not effect):  # a difference that does not vary is in too few units
        reach = error * float(special.stdtrit(freedom, (1 + settings.level) / 2))
        low, high = effect - reach, effect + reach
        p = float(2 * special.stdtr(freedom, -abs(effect) / error)) if error else 1.0
    return Difference(effect, low, high, p, None, spread.blocks if spread else 0.0, note)


def _join(spread: Spread | None, values: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Returns standard errors and degrees of freedom of each metric, blocks and seeds together; NaN without draws.

    `values` are the scores of each method's runs, shape (runs, metrics).
    """
    metrics = values[0].shape[1]
    if spread is None:
        return np.full(metrics, np.nan), np.ones(metrics)
    (deviations,) = np.moveaxis(spread.deviations, 1, 0)
    known = ~np.isnan(deviations)
    drawn = known.sum(0)
    squares = np.square(np.where(known, deviations, 0)).sum(0)
    parts = [(np.where(drawn > 0, squares / np.maximum(drawn, 1), np.nan), spread.freedom)]
    parts += [(runs.var(0, ddof=1) / len(runs), len(runs) - 1.0) for runs in values if len(runs) > 1]
    variance = sum((part for part, _ in parts), np.zeros(metrics))
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = variance**2 / sum((part**2 / free for part, free in parts), np.zeros(metrics))
    return np.sqrt(variance), np.where(variance > 0, freedom, 1.0)
