from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import (
    accuracy_score,
    classification_report,
    confusion_matrix,
    jaccard_score,
    precision_recall_fscore_support,
)

from neurotome.classes import ClassSet
from neurotome.errors import DatasetError
from neurotome.metrics import confusion, scores

CLASSES = ClassSet(("background", "vessel", "cell", "axon"))
NAMES = CLASSES.names

label_maps = hnp.array_shapes(min_dims=2, max_dims=2, max_side=12).flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 3, 255])),
        hnp.arrays(np.uint8, shape, elements=st.integers(0, 3)),
    )
)
# More than 8 classes, because numpy sums longer arrays in another order.
confusions = st.integers(2, 12).flatmap(
    lambda k: hnp.arrays(np.int64, (k, k), elements=st.one_of(st.just(0), st.integers(0, 10**12)))
)


def test_confusion_counts_by_hand() -> None:
    truth = np.array([[0, 0, 1], [3, 255, 255]], np.uint8)
    predicted = np.array([[0, 2, 1], [0, 1, 255]], np.uint8)
    expected = [[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert confusion(truth, predicted, CLASSES).tolist() == expected


@settings(deadline=None)
@given(label_maps)
def test_confusion_equals_sklearn(maps: tuple[np.ndarray, np.ndarray]) -> None:
    truth, predicted = maps
    valid = truth != 255
    expected = np.zeros((4, 4), np.int64)
    if valid.any():
        expected = confusion_matrix(truth[valid], predicted[valid], labels=range(4))
    found = confusion(truth, predicted, CLASSES)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)


def test_confusion_reads_memmaps_of_any_dtype_and_order(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 4, (3, 250, 301))
    truth[draw.random(truth.shape) < 0.1] = 255
    predicted = draw.integers(0, 4, truth.shape).astype(np.int16)
    on_disk = np.memmap(tmp_path / "truth", np.uint64, "w+", shape=truth.shape)
    on_disk[:] = truth
    expected = confusion_matrix(truth[truth != 255], predicted[truth != 255], labels=range(4))
    np.testing.assert_array_equal(confusion(on_disk, predicted, CLASSES), expected)
    np.testing.assert_array_equal(confusion(on_disk, np.asfortranarray(predicted), CLASSES), expected)
    np.testing.assert_array_equal(confusion(on_disk.T, predicted.T, CLASSES), expected)
    by_plane = sum(confusion(on_disk[z], predicted[z], CLASSES) for z in range(3))
    np.testing.assert_array_equal(by_plane, expected)


def test_confusion_of_nothing_is_zero() -> None:
    assert not confusion(np.zeros((0, 5), np.uint8), np.zeros((0, 5), np.uint8), CLASSES).any()


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        (
            np.zeros((2, 3), np.uint8),
            np.zeros((3, 2), np.uint8),
            r"shape \(2, 3\), predicted labels \(3, 2\)",
        ),
        (np.zeros((2, 3)), np.zeros((2, 3), np.uint8), "true labels have dtype float64; expected integers"),
        (np.array([0, 4]), np.array([0, 0]), "true labels contain 4; expected 0..3"),
        (np.array([0, -1]), np.array([0, 0]), "true labels contain -1"),
        (np.array([0, 1]), np.array([0, 255]), "predicted labels contain 255"),
    ],
)
def test_confusion_refuses(truth: np.ndarray, predicted: np.ndarray, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        confusion(truth, predicted, CLASSES)


def test_scores_by_hand() -> None:
    # background: 6 right, 2 called vessel; vessel: 1 right, 3 called background; cell, axon: absent
    counts = np.zeros((4, 4), np.int64)
    counts[:2, :2] = [[6, 2], [3, 1]]
    found = scores(counts, NAMES)
    assert found["per_class"]["background"] == {
        "precision": 6 / 9,
        "recall": 6 / 8,
        "f1": 12 / 17,
        "iou": 6 / 11,
        "support": 8,
    }
    absent = {"precision": None, "recall": None, "f1": None, "iou": None, "support": 0}
    assert found["per_class"]["cell"] == found["per_class"]["axon"] == absent
    assert found["macro"]["recall"] == (6 / 8 + 1 / 4) / 2
    assert found["weighted"]["precision"] == (6 / 9 * 8 + 1 / 3 * 4) / 12
    assert found["accuracy"] == 7 / 12


def test_class_missed_or_invented_scores_zero() -> None:
    missed = scores(np.array([[5, 0], [2, 0]]), NAMES[:2])["per_class"]["vessel"]
    assert missed == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "iou": 0.0, "support": 2}
    invented = scores(np.array([[5, 2], [0, 0]]), NAMES[:2])["per_class"]["vessel"]
    assert invented == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "iou": 0.0, "support": 0}


def test_all_ignored_has_no_score() -> None:
    found = scores(np.zeros((4, 4), np.int64), NAMES)
    assert set(found["macro"].values()) == set(found["weighted"].values()) == {None}
    assert found["accuracy"] is None
    assert all(entry["support"] == 0 and entry["f1"] is None for entry in found["per_class"].values())


@settings(deadline=None)
@given(label_maps)
def test_scores_equal_sklearn_to_the_last_digit(maps: tuple[np.ndarray, np.ndarray]) -> None:
    truth, predicted = maps
    found = scores(confusion(truth, predicted, CLASSES), NAMES)
    true, pred = truth[truth != 255], predicted[truth != 255]
    present = np.union1d(true, pred).tolist()
    assert [c for c in range(4) if found["per_class"][NAMES[c]]["f1"] is not None] == present
    if not present:
        return
    report = classification_report(
        true,
        pred,
        labels=present,
        target_names=[NAMES[c] for c in present],
        output_dict=True,
        zero_division=0,
    )
    shared = {"precision": "precision", "recall": "recall", "f1": "f1-score"}
    for ours, theirs in shared.items():
        assert found["macro"][ours] == report["macro avg"][theirs]
        assert found["weighted"][ours] == report["weighted avg"][theirs]
        for c in present:
            assert found["per_class"][NAMES[c]][ours] == report[NAMES[c]][theirs]
    assert found["accuracy"] == accuracy_score(true, pred)
    for average in ("macro", "weighted"):
        expected = jaccard_score(true, pred, labels=present, average=average, zero_division=0)
        assert found[average]["iou"] == expected


@settings(deadline=None)
@given(confusions)
def test_scores_of_large_counts_equal_sklearn(counts: np.ndarray) -> None:
    present = np.flatnonzero(counts.sum(0) + counts.sum(1))
    if not present.size:
        return
    # A sample per cell, weighted by its count: counts stay below 2^53, so that float64 weights are exact.
    true, pred = np.divmod(np.arange(counts.size), len(counts))
    found = scores(counts, [str(c) for c in range(len(counts))])
    for average in ("macro", "weighted"):
        expected = precision_recall_fscore_support(
            true,
            pred,
            labels=present,
            average=average,
            sample_weight=counts.ravel().astype(float),
            zero_division=0,
        )
        assert tuple(found[average][s] for s in ("precision", "recall", "f1")) == expected[:3]


@settings(deadline=None)
@given(confusions)
def test_scores_lie_between_0_and_1_and_iou_follows_f1(counts: np.ndarray) -> None:
    for entry in scores(counts, [str(c) for c in range(len(counts))])["per_class"].values():
        if entry["f1"] is not None:
            assert all(0 <= entry[s] <= 1 for s in ("precision", "recall", "f1", "iou"))
            assert entry["iou"] == pytest.approx(entry["f1"] / (2 - entry["f1"]))
