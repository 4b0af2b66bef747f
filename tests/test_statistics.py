"""Intervals, differences and ranks: against scipy, by hand, and by how often they hold the truth."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from neurotome.block_bootstrap import list_metrics, score_counts
from neurotome.errors import RunError, SettingsError
from neurotome.metrics import scores
from neurotome.statistics import IntervalSettings, compare_pairs, correct_holm, estimate, estimate_all, rank_methods

NAMES = ("background", "vessel", "cell")


def make(
    confusions: Any, names: list[str] | None = None, tiles: Any = (), classes: tuple[str, ...] = NAMES
) -> dict[str, Any]:
    confusions = np.asarray(confusions)
    classes = classes[: confusions.shape[1]]
    names = names or [f"stack/{z:04d}" for z in range(len(confusions))]
    per_image = {"name": names, "confusion": confusions.tolist(), "tiles": list(tiles)}
    return {"classes": list(classes), **scores(confusions.sum(0), classes), "per_image": per_image}


def draw(seed: int, n: int = 40, wrong: float = 0.2, pixels: int = 400) -> np.ndarray:
    """Confusions of slices with the same labels for every seed, and errors that differ from slice to slice."""
    truth = np.random.default_rng(0).multinomial(pixels, (0.6, 0.1, 0.3), n)
    random = np.random.default_rng(seed)
    share = np.clip(wrong + 0.05 * random.standard_normal((n, 3)), 0.01, 0.9)
    called = (share / 3)[:, :, None] + (1 - share)[:, :, None] * np.eye(3)
    return random.multinomial(truth, called)


@pytest.mark.parametrize("drop", [(), (1,), (0, 2)])
def test_scores_of_counts_are_those_of_metrics(drop: tuple[int, ...]) -> None:
    confusion = draw(1).sum(0)
    for gone in drop:
        confusion[gone] = confusion[:, gone] = 0
    counts = np.stack([np.diagonal(confusion), confusion.sum(1), confusion.sum(0)]).astype(float)
    found = dict(zip(list_metrics(NAMES), score_counts(counts).tolist(), strict=True))
    known = scores(confusion, NAMES)
    for metric, value in found.items():
        expected = known
        for key in metric.split("."):
            expected = expected[key]
        assert value == pytest.approx(np.nan if expected is None else expected, nan_ok=True)


def test_blocks_of_one_slice_are_the_plain_bootstrap() -> None:
    confusions = draw(1)
    hit, both = (confusions[:, 1, 1], confusions[:, 1].sum(1) + confusions[:, :, 1].sum(1))
    result = stats.bootstrap(
        (hit, both), lambda h, b: 2 * h.sum(-1) / b.sum(-1), paired=True, n_resamples=20_000, rng=np.random.default_rng(0)
    )
    n, level = len(confusions), 0.9
    found = estimate([make(confusions)], "per_class.vessel.f1", IntervalSettings(level, 1, 20_000))
    value = 2 * hit.sum() / both.sum()
    assert found.value == pytest.approx(value)
    # Student's t, n / (n - 1), on the scale of log odds
    reach = stats.t.ppf(0.95, n - 1) * result.standard_error * np.sqrt(n / (n - 1)) / (value * (1 - value))
    odds = np.log(value / (1 - value))
    expected = 1 / (1 + np.exp(-(odds + np.array([-reach, reach]))))
    assert [found.low, found.high] == pytest.approx(expected, abs=0.03 * (expected[1] - expected[0]))


def test_accuracy_of_equal_slices_has_the_interval_of_a_mean() -> None:
    """Slices of 100 pixels: pooled accuracy is the mean, its difference to a constant is Student's t test."""
    right = np.array([52, 60, 71, 68, 55, 63, 58, 66, 49, 61, 70, 64])
    first = np.array([[[n, 100 - n], [0, 0]] for n in right])
    second = np.array([[[50, 50], [0, 0]]] * len(right))
    found = compare_pairs({"p": ([make(first)], [make(second)])}, "accuracy", IntervalSettings(block=1, resamples=50_000))[
        "p"
    ]
    known = stats.ttest_1samp(right / 100, 0.5)
    interval = known.confidence_interval(0.95)
    assert found.effect == pytest.approx(right.mean() / 100 - 0.5)
    assert (found.low, found.high) == pytest.approx((interval.low - 0.5, interval.high - 0.5), abs=1e-3)
    assert found.p == pytest.approx(known.pvalue, rel=0.1)
    assert found.p_corrected == found.p


def test_blocks_of_two_slices_by_a_plain_loop() -> None:
    right = np.array([52, 55, 60, 71, 68, 66, 55, 63, 58, 66, 49, 61, 70, 64, 59, 52, 47, 50, 58, 63])
    n = len(right)
    first = np.array([[[count, 100 - count], [0, 0]] for count in right])
    second = np.array([[[50, 50], [0, 0]]] * n)
    chosen = IntervalSettings(block=2, resamples=50_000)
    found = compare_pairs({"p": ([make(first)], [make(second)])}, "accuracy", chosen)["p"]
    influence = (right - right.mean()) / 100 / n
    variances = []
    for window in ((1, 1, 1, 0.5), (1, 0.75, 0.5, 0.25)):  # flat top and triangle over four lags
        total = counted = squared = 0.0
        for i in range(n):
            for j in range(n):
                if abs(i - j) < 4:
                    weight = window[abs(i - j)]
                    total += weight * influence[i] * influence[j]
                    counted += weight / n
                    squared += weight**2 / n
        variances.append((total / (1 - counted / n), n / squared - 1))
    variance, freedom = max(value for value, _ in variances), variances[0][1]
    reach = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    assert (found.low, found.high) == pytest.approx((found.effect - reach, found.effect + reach), abs=0.01 * reach)


def test_copies_of_slices_count_once() -> None:
    """Every slice four times in a row tells no more than once."""
    confusions = draw(1, 60)
    once, copied = (estimate([make(each)], "macro.f1") for each in (confusions, np.repeat(confusions, 4, 0)))
    assert once.blocks > 40
    assert copied.block > 1
    assert copied.units == 240
    assert copied.blocks == pytest.approx(60, rel=0.35)
    assert copied.high - copied.low > 0.8 * (once.high - once.low)
    naive = estimate([make(np.repeat(confusions, 4, 0))], "macro.f1", IntervalSettings(block=1))
    assert naive.high - naive.low == pytest.approx(0.5 * (once.high - once.low), rel=0.1)


def test_stacks_are_no_neighbours_but_single_images_are() -> None:
    confusions = np.repeat(draw(1, 60), 4, 0)
    apart = [f"stack{z % 4}/{z // 4:04d}" for z in range(240)]
    order = sorted(range(240), key=lambda z: apart[z])
    spread = estimate([make(confusions[order], [apart[z] for z in order])], "macro.f1")
    assert spread.blocks > 200  # copies lie in other stacks
    listed = estimate([make(confusions, [f"image{z}" for z in range(240)])], "macro.f1")
    assert listed.blocks < 100


def test_few_blocks_are_warned_of() -> None:
    assert estimate([make(draw(1, 19))], "macro.f1").note.startswith("19 slices count as")
    assert estimate([make(draw(1, 200))], "macro.f1").note == ""
    none = estimate([make(draw(1, 4))], "macro.f1")
    assert (none.low, none.high) == (None, None)
    assert none.note == "no interval: 4 slices, and fewer than 5 do not say how much they differ"


def test_tiles_stand_in_for_few_slices() -> None:
    grid = draw(1, 64)
    tiles = [{"grid": [8, 8], "confusion": grid.tolist()}]
    found = estimate([make(grid.sum(0)[None], tiles=tiles)], "macro.f1")
    assert (found.unit, found.units) == ("tiles", 64)
    assert found.low < found.value < found.high
    copies = grid.reshape(8, 8, 3, 3).repeat(2, 0).repeat(2, 1).reshape(256, 3, 3)
    alike = estimate([make(copies.sum(0)[None], tiles=[{"grid": [16, 16], "confusion": copies.tolist()}])], "macro.f1")
    assert 40 < alike.blocks < 128  # of 256
    assert alike.high - alike.low > 0.8 * (found.high - found.low)


def test_images_that_differ_say_more_than_their_tiles() -> None:
    images = np.concatenate([draw(seed, 1, wrong, 16_000) for seed, wrong in enumerate((0.1, 0.5, 0.2, 0.6, 0.3, 0.4))])
    even = np.repeat(images.sum(0)[None] // 64, 64, 0)
    found = estimate([make(images, tiles=[{"grid": [8, 8], "confusion": even.tolist()}])], "macro.f1")
    assert found.unit == "slices"
    assert found.high - found.low > 0.1


def test_seeds_are_a_second_level() -> None:
    wrongs = (0.1, 0.2, 0.3)
    runs = [make(draw(seed, 200, wrong)) for seed, wrong in enumerate(wrongs)]
    found = estimate(runs, "accuracy")
    single = [run["accuracy"] for run in runs]
    assert found.value == pytest.approx(np.mean(single))
    assert found.seeds == 3
    # slices say nearly nothing beside such seeds: the interval of a mean of three numbers
    reach = stats.t.ppf(0.975, 2) * np.std(single, ddof=1) / np.sqrt(3)
    value = found.value
    odds = np.log(value / (1 - value)) + np.array([-1, 1]) * reach / (value * (1 - value))
    assert [found.low, found.high] == pytest.approx(1 / (1 + np.exp(-odds)), abs=0.01)
    alone = estimate(runs[:1], "accuracy")
    assert alone.high - alone.low < 0.1 * (found.high - found.low)


def test_folds_are_one_run_of_all_slices() -> None:
    confusions = draw(1, 60)
    whole = estimate(
        [make(confusions, [f"{z // 20}/{z % 20:04d}" for z in range(60)])], "macro.f1", IntervalSettings(block=1)
    )
    folds = [make(confusions[i : i + 20], [f"{i // 20}/{z:04d}" for z in range(20)]) for i in (0, 20, 40)]
    found = estimate(folds, "macro.f1", IntervalSettings(block=1))
    assert found == whole
    assert found.seeds == 1


def test_order_of_runs_does_not_matter() -> None:
    runs = [make(draw(seed)) for seed in range(3)]
    forward, backward = estimate(runs, "macro.f1"), estimate(runs[::-1], "macro.f1")
    assert forward.low == pytest.approx(backward.low)
    assert forward.high == pytest.approx(backward.high)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(5, 40), st.integers(2, 50))
def test_intervals_hold_the_estimate_and_do_not_know_the_pixel_size(seed: int, n: int, times: int) -> None:
    confusions = draw(seed, n)
    found = estimate_all([make(confusions)], list_metrics(NAMES), IntervalSettings(resamples=100))
    scaled = estimate_all([make(times * confusions)], list_metrics(NAMES), IntervalSettings(resamples=100))
    for metric, one in found.items():
        if one.low is not None:
            assert 0 <= one.low <= one.value <= one.high <= 1
            assert [scaled[metric].low, scaled[metric].high] == pytest.approx([one.low, one.high], abs=1e-4)


def test_a_class_that_is_nowhere_has_no_interval() -> None:
    confusions = draw(1)
    confusions[:, 1] = confusions[:, :, 1] = 0
    found = estimate([make(confusions)], "per_class.vessel.f1")
    assert (found.value, found.low, found.high) == (None, None, None)
    assert estimate([make(confusions)], "macro.f1").low is not None


def test_a_class_in_few_slices_has_no_interval_and_no_p() -> None:
    confusions = np.array([[[90, 3, 0], [4, 20, 0], [0, 0, 0]]] * 30) + np.arange(30)[:, None, None] % 3 * np.eye(
        3, dtype=int
    )
    confusions[:, 2, 2] = 0
    rare, better = confusions.copy(), confusions.copy()
    rare[7, 2], better[7, 2] = (50, 0, 50), (40, 0, 60)
    found = estimate_all([make(rare)], ["per_class.cell.f1", "per_class.vessel.f1", "macro.f1"])
    assert (found["per_class.cell.f1"].low, found["per_class.cell.f1"].high) == (None, None)
    assert found["per_class.cell.f1"].value == pytest.approx(2 / 3)
    assert found["per_class.vessel.f1"].low is not None
    assert "a class occurs in 1 of 30 slices alone" in found["macro.f1"].note
    pair = compare_pairs({"both": ([make(better)], [make(rare)])}, "per_class.cell.f1")["both"]
    assert (pair.low, pair.high, pair.p) == (None, None, None)
    assert pair.effect == pytest.approx(0.75 - 2 / 3)
    assert "a class occurs in 1 of 30 slices alone" in pair.note


def test_perfect_scores_are_sure() -> None:
    perfect = make(draw(1) * np.eye(3, dtype=int))
    found = estimate([perfect], "macro.f1")
    assert (found.value, found.low, found.high, found.note) == (1, 1, 1, "")
    assert compare_pairs({"same": ([perfect], [perfect])})["same"].p == 1


def test_a_shared_difficulty_does_not_blur_a_difference() -> None:
    first = draw(1)
    second = first.copy()
    moved = second[:, 0, 0] // 20  # a little worse on every slice, which are of very different difficulty
    second[:, 0, 0] -= moved
    second[:, 0, 2] += moved
    methods = {"first": [make(first)], "second": [make(second)]}
    own = estimate(methods["first"], "macro.f1")
    found = compare_pairs({"pair": (methods["first"], methods["second"])})["pair"]
    assert 0 < found.low < found.effect < found.high
    assert found.high - found.low < 0.5 * (own.high - own.low)
    assert found.p < 1e-6
    back = compare_pairs({"pair": (methods["second"], methods["first"])})["pair"]
    assert (back.effect, back.low, back.high) == pytest.approx((-found.effect, -found.high, -found.low))
    ranks = rank_methods(methods)
    assert [(rank.name, rank.rank, rank.low, rank.high, rank.share_first) for rank in ranks] == [
        ("first", 1, 1, 1, 1.0),
        ("second", 2, 2, 2, 0.0),
    ]


def test_equal_methods_share_the_first_place() -> None:
    ranks = rank_methods({str(seed): [make(draw(seed, 200))] for seed in range(3)})
    assert sum(rank.share_first for rank in ranks) == pytest.approx(1)
    assert all(rank.low < rank.high for rank in ranks)
    same = rank_methods({"a": [make(draw(1))], "b": [make(draw(1))]})
    assert [rank.share_first for rank in same] == [0.5, 0.5]


def test_holm_by_hand() -> None:
    # sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, never falling
    assert correct_holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert correct_holm([0.6, 0.7]) == [1, 1]
    assert correct_holm([]) == []
    pairs = {str(seed): ([make(draw(seed))], [make(draw(9))]) for seed in range(3)}
    found = compare_pairs(pairs)
    assert [one.p_corrected for one in found.values()] == correct_holm([one.p for one in found.values()])


def test_what_does_not_fit_is_refused() -> None:
    run = make(draw(1))
    with pytest.raises(SettingsError, match=r"unknown metric 'macro\.F1'\. Did you mean 'macro\.f1'"):
        estimate([run], "macro.F1")
    with pytest.raises(RunError, match="found no scores"):
        compare_pairs({"a and b": ([run], [])})
    other = make(draw(1)[::-1])
    with pytest.raises(RunError, match="pair, second: scored on other slices than pair, first"):
        compare_pairs({"pair": ([run], [other])})
    with pytest.raises(RunError, match="different classes"):
        estimate([run, make(draw(1), classes=("a", "b", "c"))], "macro.f1")
    for wrong, message in (
        ({"level": 1.0}, "level"),
        ({"block": 0}, "block"),
        ({"resamples": 9}, "100"),
        ({"seed": -1}, "seed"),
    ):
        with pytest.raises(SettingsError, match=message):
            IntervalSettings(**wrong)


@pytest.mark.slow
@pytest.mark.parametrize(("slices", "rho"), [(20, 0.0), (60, 0.5)])
def test_intervals_hold_the_truth_as_often_as_they_say(slices: int, rho: float) -> None:
    """Twenty independent blocks; benchmarks/coverage.py has more of them, and narrower bounds."""
    path = Path(__file__).resolve().parents[1] / "benchmarks/coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_benchmark", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    found = np.array(list(benchmark.simulate((slices,), rho, 150, benchmark.find_truth(), 0)))
    held, paired, *_ = found.mean(0)
    assert 0.9 <= held <= 1
    assert 0.9 <= paired <= 1
