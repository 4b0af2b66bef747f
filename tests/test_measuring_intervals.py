"""How often intervals hold the truth, in simulated tissue whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.special import ndtr

from neurotome.measuring.intervals import estimate_density, estimate_share, measure_variance


def test_densities_of_clustered_points_are_held_as_often_as_said() -> None:
    rng, shape, held, draws = np.random.default_rng(0), (10, 10, 10), 0, 400
    for _ in range(draws):
        parents = rng.uniform(-2, 12, (rng.poisson(0.06 * 14**3), 3))
        points = np.repeat(parents, rng.poisson(6, len(parents)), 0)
        points += rng.normal(0, 0.5, points.shape)
        counts, _ = np.histogramdd(points, [np.arange(edge + 1) for edge in shape])
        found = estimate_density(counts, np.ones(shape), 0.95)
        held += found.low <= 0.36 <= found.high
    assert 0.92 <= held / draws <= 0.98


def test_shares_of_structures_larger_than_a_cube_are_held_as_often_as_said() -> None:
    rng, held, draws, truth = np.random.default_rng(1), 0, 150, 1 - ndtr(0.8)
    for _ in range(draws):
        noise = rng.standard_normal((56, 56, 56), np.float32)
        field = ndimage.gaussian_filter(noise, 2.5, truncate=3)[8:48, 8:48, 8:48] * (2 * np.sqrt(np.pi) * 2.5) ** 1.5
        hits = (field > 0.8).reshape(10, 4, 10, 4, 10, 4).sum((1, 3, 5)).astype(float)
        found = estimate_share(hits, np.full(hits.shape, 64.0), 0.95)
        held += found.low <= truth <= found.high
    assert 0.9 <= held / draws <= 0.99  # 150 draws tell 0.94 from 0.90, no more


def test_independent_clusters_have_the_textbook_variance() -> None:
    values = np.random.default_rng(2).normal(size=(12, 12, 12))
    influence = (values - values.mean()) / values.size
    variance, freedom = measure_variance(influence, np.ones(values.shape, bool))
    assert variance == pytest.approx(values.var(ddof=1) / values.size, rel=0.15)
    assert freedom > 100


def test_too_few_clusters_give_no_interval() -> None:
    found = estimate_share(np.ones((1, 2, 2)), np.full((1, 2, 2), 4.0), 0.95)
    assert found == (0.25, None, None)
