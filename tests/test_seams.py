"""The seam score is 1 where labels do not know of tiles, and says how much more often they change at borders otherwise."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
from numpy.typing import NDArray

from neurotome.inference.seams import describe_seams, measure_seams

SHAPE, TILE = (48, 120, 100), (8, 30, 20)


def make_labels() -> NDArray[np.uint8]:
    noise = np.random.default_rng(0).normal(size=SHAPE)
    return (scipy.ndimage.gaussian_filter(noise, 2) > 0).astype(np.uint8)


def measure(labels: NDArray[np.uint8], tile: Any = TILE, **options: Any) -> Any:
    return measure_seams(lambda place: labels[place], labels.shape, tile, **options)


def test_tissue_that_ignores_tiles_has_none() -> None:
    scores = measure(make_labels())
    assert set(scores) == {"z", "y", "x", "all"}
    for score in scores.values():
        assert score.low < 1 < score.high
        assert score.score == pytest.approx(1, abs=0.1)
    assert scores["all"].borders == 5 + 3 + 4  # one window has room in a plane
    assert scores["all"].border_pairs == sum(scores[axis].border_pairs for axis in "zyx")


def test_seam_of_known_strength_is_found_along_its_axis() -> None:
    labels = make_labels()
    natural = np.mean(labels[:, 1:] != labels[:, :-1])
    flipped = labels.copy()
    for start in range(30, 120, 60):  # every second tile along y has its labels exchanged, so what agreed differs
        flipped[:, start : start + 30] = 1 - flipped[:, start : start + 30]
    scores = measure(flipped)
    assert scores["y"].score == pytest.approx((1 - natural) / natural, rel=0.1)
    assert scores["y"].low > 2
    for axis in "zx":
        assert scores[axis].score == pytest.approx(1, abs=0.1)
    assert 1 < scores["all"].score < scores["y"].score


def test_by_hand() -> None:
    labels = np.array([[[0, 0, 1, 1, 0, 255]]], np.uint8).repeat(2, 1)
    labels[0, 1, 3] = 0
    # borders before 2 (both rows differ) and 4 (one does), middles before 1 (none differs) and 3 (one does)
    scores = measure(labels, (1, 2, 2))
    assert set(scores) == {"x", "all"}
    found = scores["x"]
    assert (found.borders, found.border_pairs, found.border_changes) == (2, 4, 3)
    assert (found.middle_pairs, found.middle_changes, found.score) == (4, 1, 3.0)


def test_what_is_not_predicted_is_left_out() -> None:
    labels = make_labels()
    labels[:, :60] = 255
    labels[:, :, :50] = 255
    scores = measure(labels)
    assert scores["all"].score == pytest.approx(1, abs=0.15)
    assert measure(np.full(SHAPE, 255, np.uint8))["all"].score is None
    assert measure(np.zeros(SHAPE, np.uint8))["all"].score == 1


def test_windows_are_drawn_where_something_was_predicted() -> None:
    shape, box = (8, 4000, 4000), (slice(0, 8), slice(2048, 2176), slice(1024, 1152))
    labels = np.full(shape, 255, np.uint8)
    labels[box] = np.random.default_rng(0).integers(0, 2, (8, 128, 128))
    found = measure_seams(lambda place: labels[place], shape, (8, 64, 64), within=[box])["all"]
    assert found.borders == 2  # one border within along each axis
    assert found.score == pytest.approx(1, abs=0.2)
    assert measure_seams(lambda place: labels[place], shape, (8, 64, 64), within=[])["all"].borders == 0


def test_one_tile_has_no_border() -> None:
    scores = measure(make_labels(), SHAPE)
    assert list(scores) == ["all"]
    assert (scores["all"].score, scores["all"].borders) == (None, 0)
    assert describe_seams(scores)["sentence"] == "Seam score: tiles have no borders"
    assert list(measure(make_labels(), along="yx")) == ["y", "x", "all"]
    assert "cannot be told from 0 windows" in describe_seams(measure(np.full(SHAPE, 255, np.uint8)))["sentence"]


def test_reads_are_bounded_and_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neurotome.inference.seams.WINDOW", 10)
    labels, sizes = make_labels(), []

    def read(place: tuple[slice, slice, slice]) -> NDArray[np.uint8]:
        sizes.append(labels[place].size)
        return labels[place]

    first = measure_seams(read, SHAPE, TILE, borders=30)
    assert max(sizes) == 200
    assert len(sizes) == 2 * 30
    assert measure_seams(read, SHAPE, TILE, borders=30) == first
    assert measure_seams(read, SHAPE, TILE, borders=30, seed=1) != first
    json.dumps(describe_seams(first), allow_nan=False)
