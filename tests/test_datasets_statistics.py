"""Statistics of a dataset equal those of plain numpy over all pixels."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.datasets.base import Cutout, Dataset
from neurotome.datasets.statistics import count_slices, list_seen, measure_dataset
from neurotome.errors import DatasetError
from neurotome.volume import Volume

CLASSES = ClassSet(("background", "cell", "axon"))


def make_cutout(grey: NDArray[Any], labels: NDArray[Any], name: str = "a") -> Cutout:
    return Cutout(Volume(grey, name, (2.0, 1.0, 1.0)), labels)


def test_a_dataset_checked_by_hand() -> None:
    grey = np.array([[[0, 10], [20, 30]]], np.uint8)
    labels = np.array([[[0, 0], [1, 255]]], np.uint8)
    empty = make_cutout(grey + 4, np.full((1, 2, 2), 255, np.uint8))
    dataset = Dataset("toy", CLASSES, {"train": (make_cutout(grey, labels),), "test": (empty,)}, "MIT", "me")
    found = measure_dataset(dataset)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert {key: found[key] for key in ("dataset", "classes", "voxel_size_um", "licence", "citation")} == {
        "dataset": "toy",
        "classes": ["background", "cell", "axon"],
        "voxel_size_um": [2.0, 1.0, 1.0],
        "licence": "MIT",
        "citation": "me",
    }
    assert found["histogram_edges"] == [value - 0.5 for value in range(36)]
    train = found["splits"]["train"]
    histogram = train.pop("histogram")
    assert [grey for grey, count in enumerate(histogram["background"]) if count] == [0, 10]
    assert [grey for grey, count in enumerate(histogram["cell"]) if count] == [20]
    assert sum(histogram["axon"]) == 0
    assert train == {
        "images": 1,
        "slices": 1,
        "pixels": 4,
        "ignored": 1,
        "counts": {"background": 2, "cell": 1, "axon": 0},
        "share": {"background": 2 / 3, "cell": 1 / 3, "axon": 0.0},
        "mean": 15.0,
        "std": pytest.approx(np.sqrt(125)),
        "min": 0.0,
        "max": 30.0,
        "imbalance": 2.0,
    }
    test = found["splits"]["test"]
    assert (test["ignored"], test["imbalance"], test["share"]["cell"]) == (4, None, None)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), dtype=st.sampled_from(["uint8", "uint16", "float32"]), slices=st.integers(1, 4))
def test_agrees_with_plain_numpy(seed: int, dtype: str, slices: int) -> None:
    generator = np.random.default_rng(seed)
    shapes = [(slices, 7, 9), (1, 5, 4)]
    greys = [(generator.random(shape) * generator.choice([30, 255, 60_000])).astype(dtype) for shape in shapes]
    labels = [generator.choice([0, 1, 2, 255], shape).astype(np.uint64) for shape in shapes]
    cutouts = tuple(make_cutout(g, x) for g, x in zip(greys, labels, strict=True))
    dataset = Dataset("toy", CLASSES, {"train": cutouts})
    found = measure_dataset(dataset)
    split, edges = found["splits"]["train"], np.array(found["histogram_edges"])
    grey = np.concatenate([g.ravel() for g in greys]).astype(np.float64)
    label = np.concatenate([x.ravel() for x in labels])
    assert split["mean"] == pytest.approx(grey.mean(), rel=1e-12)
    assert split["std"] == pytest.approx(grey.std(), rel=1e-10)
    assert (split["min"], split["max"], split["pixels"]) == (grey.min(), grey.max(), grey.size)
    assert split["ignored"] == (label == 255).sum()
    assert len(edges) <= 257
    for i, name in enumerate(CLASSES.names):
        assert split["counts"][name] == (label == i).sum()
        np.testing.assert_array_equal(split["histogram"][name], np.histogram(grey[label == i], edges)[0])
    np.testing.assert_array_equal(count_slices(dataset).sum(0), list(split["counts"].values()))


def test_wide_integers_get_bins_of_equal_count() -> None:
    grey = np.arange(1000, dtype=np.uint16).reshape(1, 10, 100)
    dataset = Dataset("toy", CLASSES, {"val": (make_cutout(grey, np.zeros((1, 10, 100), np.uint8)),)})
    histogram = measure_dataset(dataset)["splits"]["val"]["histogram"]["background"]
    assert histogram == [4] * 250


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(DatasetError, match="toy has no image"):
        measure_dataset(Dataset("toy", CLASSES, {"train": ()}))


def test_classes_without_a_training_pixel_are_named() -> None:
    labels = np.array([[[0, 1, 255]]], np.uint8)
    dataset = Dataset("toy", CLASSES, {"train": (make_cutout(np.array([[[0, 10, 20]]], np.uint8), labels),)})
    with pytest.warns(UserWarning, match="no training pixel of class axon.* 1 pixels have the value 255"):
        assert list_seen(dataset, count_slices(dataset).sum(axis=0)).tolist() == [0, 1]


def test_a_mask_of_0_and_255_is_refused_with_what_to_do() -> None:
    labels = np.array([[[0, 0, 255]]], np.uint8)
    dataset = Dataset("toy", CLASSES, {"train": (make_cutout(np.array([[[0, 10, 20]]], np.uint8), labels),)})
    with pytest.raises(DatasetError, match=r"of class background; expected two.* in masks of 0 and 255 write 1"):
        list_seen(dataset, count_slices(dataset).sum(axis=0))
