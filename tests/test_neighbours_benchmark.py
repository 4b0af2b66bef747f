"""What benchmarks/neighbours.py measures, on arrays that can be counted by hand."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # as for a script that is run

import neighbours


def test_overlap_is_counted_over_pairs_of_slices():
    labels = np.zeros((3, 2, 4), np.uint8)
    labels[0, 0, :2] = labels[1, 0, 1:3] = neighbours.VESSEL  # one of two goes on
    labels[1, 1, 0] = labels[2, 1, 0] = neighbours.CELL
    shared, held = neighbours.count_overlap(labels).T
    assert held.tolist() == [6 + 5 + 5 + 7, 2 + 2 + 2 + 0, 0 + 1 + 1 + 1, 0]
    assert shared.tolist() == [4 + 5, 1, 1, 0]
    assert 2 * shared.sum() / held.sum() == (5 + 6) / 16 == np.mean(labels[1:] == labels[:-1])


def test_lone_vessels_are_those_of_one_slice_within_the_stack():
    mask = np.zeros((5, 12, 12), bool)
    mask[2, 1:4, 1:4] = True  # lone
    mask[1, 8, 8] = mask[2, 9, 9] = True  # touch at a corner
    mask[:, 1, 9] = True  # goes through
    mask[0, 6, 1] = mask[4, 10, 1] = True  # may go on outside
    mask[0, 10, 4] = mask[1, 10, 4] = True
    assert neighbours.count_lone(mask).tolist() == [1, 4]
    assert neighbours.count_lone(np.zeros((3, 4, 4), bool)).tolist() == [0, 0]


def test_scores_are_f1_and_their_mean_over_the_classes_present():
    counts = np.zeros((4, 4), np.int64)
    counts[:3, :3] = [[8, 0, 0], [0, 1, 2], [1, 0, 4]]
    f1 = neighbours.score(counts)
    assert f1[:3] == pytest.approx([16 / 17, 2 / 4, 8 / 11])
    assert np.isnan(f1[3])
    assert f1[4] == pytest.approx((16 / 17 + 2 / 4 + 8 / 11) / 3)
    assert neighbours.say_confusion(counts, neighbours.VESSEL, neighbours.CELL) == "2 (0.667)"


def test_the_same_volumes_are_drawn_for_every_model():
    counts = np.arange(3 * 16).reshape(3, 4, 4)
    first, second = neighbours.resample(counts), neighbours.resample(counts + 1)
    assert np.array_equal(first + 3, second)  # three volumes in every draw
    assert np.array_equal(neighbours.resample(counts[:1])[0], counts[0])
    assert first.mean(0) == pytest.approx(counts.sum(0), rel=0.05)


def test_correlation_tells_axes_apart():
    image = np.broadcast_to(np.random.default_rng(0).normal(size=(1, 64, 1)), (4, 64, 64)).copy()
    image += 0.1 * np.random.default_rng(1).normal(size=image.shape)
    z, y, x = neighbours.correlate_next(image)
    assert z == pytest.approx(x, abs=0.01)
    assert z > 0.98 > 0.3 > y


def test_what_a_model_says_is_kept_by_model_and_image(tmp_path, monkeypatch):
    calls = []

    def predict(predictor, volume):
        calls.append(predictor)
        for plane in volume.data:
            yield np.eye(4, dtype=np.float32)[plane].transpose(2, 0, 1)

    monkeypatch.setattr(neighbours, "predict_slices", predict)
    image = np.random.default_rng(0).integers(0, 4, (3, 5, 5), np.uint8)
    for digest in ("a", "b", "a"):
        labels, seconds = neighbours.predict_or_recall(digest, digest * 20, image, tmp_path)
        assert np.array_equal(labels, image)
        assert seconds >= 0
    assert calls == ["a", "b"]
    neighbours.predict_or_recall("a", "a" * 20, image[::-1], tmp_path)
    assert calls == ["a", "b", "a"]
