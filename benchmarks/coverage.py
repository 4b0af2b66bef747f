"""How often 95 % intervals hold the truth: simulated stacks whose slices resemble each other.

Difficulty and contents of a slice follow first-order autoregressions along z, so that the independent blocks, slices over
autocorrelation time, are known: n (1 - rho) / (1 + rho). Pixels are drawn from the confusion of the slice. The truth is the
score of endlessly many slices. Tiles are the same in y and x.

    python benchmarks/coverage.py                  1000 stacks of each kind, about ten minutes on a core
    python benchmarks/coverage.py --stacks 200
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.signal import lfilter

from neurotome.metrics import scores
from neurotome.statistics import IntervalSettings, compare_pairs, estimate

NAMES = ("background", "vessel", "cell", "axon")
PIXELS = 256 * 256
TILE_PIXELS = 64 * 64
SHARES = np.log([0.55, 0.04, 0.08, 0.33])
ERROR = -2.2  # log odds of a wrong pixel, plus the slice's difficulty
METHODS = (0.0, 0.12)  # the second is a little worse
SETTINGS = IntervalSettings(resamples=500)  # a quarter of the usual draws: the standard error is known to 3 %


def draw_fields(random: np.random.Generator, shape: tuple[int, ...], rho: float, fields: int) -> np.ndarray:
    """Standard normal fields, shape (fields, *shape), autoregressive along each axis."""
    spare = 0 if rho == 0 else math.ceil(6 / -math.log(rho))
    noise = random.standard_normal((fields, *(size + spare if size > 1 else 1 for size in shape)))
    for axis, size in enumerate(shape, 1):
        if size > 1:
            noise = lfilter([math.sqrt(1 - rho**2)], [1, -rho], noise, axis)
            noise = np.take(noise, np.arange(spare, spare + size), axis)
    return noise.reshape(fields, -1)


def draw_confusions(
    random: np.random.Generator, shape: tuple[int, ...], rho: float, pixels: int | None = PIXELS
) -> list[np.ndarray]:
    """Confusions of every unit by each method, shape (units, classes, classes); expected shares where pixels is None."""
    k = len(NAMES)
    fields = draw_fields(random, shape, rho, k + 1 + len(METHODS))
    contents = np.exp(SHARES[:, None] + 0.5 * fields[:k])
    contents /= contents.sum(0)
    counts = contents.T if pixels is None else random.multinomial(pixels, contents.T)  # the same for both methods
    drawn = []
    for method, worse in enumerate(METHODS):
        odds = ERROR + worse + 0.4 * fields[k] + 0.2 * fields[k + 1 + method] + np.array([-1, 0.8, 0.3, 0])[:, None]
        wrong = 1 / (1 + np.exp(-odds))
        called = wrong.T[:, :, None] * SPILL + (1 - wrong.T)[:, :, None] * np.eye(k)
        drawn.append(counts[:, :, None] * called if pixels is None else random.multinomial(counts, called))
    return drawn


SPILL = np.exp(SHARES) * (1 - np.eye(len(NAMES)))
SPILL /= SPILL.sum(1, keepdims=True)


def to_scores(confusions: np.ndarray, grid: tuple[int, int] | None) -> dict[str, Any]:
    """The content of a file of scores, of a stack or of the tiles of an image."""
    total = confusions.sum(0)
    images = total[None] if grid else confusions
    tiles = [{"grid": list(grid), "confusion": confusions}] if grid else []
    names = [f"stack/{z:04d}" for z in range(len(images))]
    per_image = {"name": names, "confusion": images, "tiles": tiles}
    return {"classes": list(NAMES), **scores(total, NAMES), "per_image": per_image}


def find_truth() -> list[float]:
    """Macro F1 of each method on endlessly many slices."""
    shares = draw_confusions(np.random.default_rng(99), (400_000,), 0.0, None)
    return [float(scores((1e9 * one.mean(0)).astype(np.int64), NAMES)["macro"]["f1"]) for one in shares]


def simulate(shape: tuple[int, ...], rho: float, stacks: int, truth: list[float], seed: int) -> Iterator[tuple[float, ...]]:
    """Yields of each stack whether the interval of macro F1, and of the difference, hold the truth; blocks found; width."""
    random = np.random.default_rng(seed)
    grid = (shape[0], shape[1]) if len(shape) == 2 else None
    for _ in range(stacks):
        drawn = draw_confusions(random, shape, rho, TILE_PIXELS if grid else PIXELS)
        first, second = (to_scores(one, grid) for one in drawn)
        one = estimate([first], "macro.f1", SETTINGS)
        pair = compare_pairs({"pair": ([first], [second])}, settings=SETTINGS)["pair"]
        held = one.low <= truth[0] <= one.high, pair.low <= truth[0] - truth[1] <= pair.high
        yield *map(float, held), one.blocks, one.high - one.low


def list_cases() -> Iterator[tuple[float, tuple[int, ...], float]]:
    """Independent blocks, shape and autocorrelation of neighbours."""
    for blocks in (40, 20, 10):
        for rho in (0.0, 0.5, 0.8):
            yield blocks, (round(blocks * (1 + rho) / (1 - rho)),), rho
    for rho in (0.0, 0.3, 0.5, 0.6):
        yield 256 * ((1 - rho) / (1 + rho)) ** 2, (16, 16), rho


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stacks", type=int, default=1000)
    stacks = parser.parse_args().stacks
    truth = find_truth()
    print(f"{stacks} stacks of each kind; truth {truth[0]:.4f} and {truth[1]:.4f}")
    print("| independent blocks | units | autocorrelation | macro F1 held | difference held | blocks found | mean width |")
    print("|-|-|-|-|-|-|-|")
    for case, (blocks, shape, rho) in enumerate(list_cases()):
        found = np.array(list(simulate(shape, rho, stacks, truth, case)))
        held, paired, counted, width = found.mean(0)
        units = f"{shape[0]} slices" if len(shape) == 1 else f"{shape[0]} x {shape[1]} tiles"
        print(
            f"| {blocks:.0f} | {units} | {rho} | {100 * held:.1f} % | {100 * paired:.1f} % | {counted:.0f} | {width:.4f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
