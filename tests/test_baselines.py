from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier

from neurotome.baselines.forest import ForestSettings, fit_forest, sample_pixels
from neurotome.baselines.majority import fit_majority
from neurotome.classes import ClassSet
from neurotome.datasets.base import Cutout, Dataset
from neurotome.datasets.statistics import count_slices
from neurotome.errors import DatasetError, ModelError, SettingsError
from neurotome.features import FeatureSettings, compute_features
from neurotome.normalize import Normalization, fit_normalization
from neurotome.predictor import predict_slice
from neurotome.volume import Volume

CLASSES = ClassSet(("background", "vessel", "cell"))
SMALL = ForestSettings(trees=8, pixels_per_class=300, features=FeatureSettings((1, 2)))


def make_dataset(*pairs, classes=CLASSES):
    cutouts = tuple(
        Cutout(Volume(np.asarray(image), f"image{i}"), np.asarray(labels)) for i, (image, labels) in enumerate(pairs)
    )
    return Dataset("tiny", classes, {"train": cutouts})


def make_pair(seed, slices=2, shape=(48, 40)):
    """Bright vessel, dark cell, grey background; the top row is not labelled."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((slices, *shape), np.uint8)
    labels[:, 5:25, 5:15] = 1
    labels[:, 30:42, 20:36] = 2
    grey = np.array([100, 180, 30])[labels] + rng.normal(0, 12, labels.shape)
    labels[:, 0] = 255
    return grey.clip(0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def dataset():
    return make_dataset(make_pair(0), make_pair(1, slices=1, shape=(44, 60)))


@pytest.fixture(scope="module")
def forest(dataset):
    return fit_forest(dataset, SMALL)


def predict(predictor, pair, tile=1024):
    volume = Volume(pair[0], "new")
    return predict_slice(predictor, predictor.normalization.scale_for(volume).apply(volume.read_context(0, 1)), tile)


def test_majority_by_hand():
    image = np.arange(8, dtype=np.uint8).reshape(1, 2, 4)
    labels = np.array([[[2, 2, 2, 0], [1, 255, 255, 255]]], np.uint8)
    predictor = fit_majority(make_dataset((image, labels)))
    probs = predictor.predict_probs(np.zeros((2, 1, 3, 5), np.float32))
    assert probs.shape == (2, 3, 3, 5)
    assert probs.dtype == np.float32
    np.testing.assert_allclose(probs[1, :, 2, 4], [0.2, 0.2, 0.6])
    assert (probs.argmax(1) == 2).all()
    assert (predictor.normalization.mean, predictor.in_channels, predictor.halo) == (3.5, 1, 0)


def test_majority_agrees_with_sklearn(dataset):
    predictor = fit_majority(dataset)
    labels = np.concatenate([cutout.labels.reshape(-1) for cutout in dataset.split("train")])
    labels = labels[labels != 255]
    dummy = DummyClassifier(strategy="prior").fit(np.zeros((labels.size, 1)), labels)
    np.testing.assert_allclose(predictor.frequencies, dummy.class_prior_, rtol=1e-6)


def test_count_slices(dataset):
    counts = count_slices(dataset)
    assert counts.tolist() == [[1488, 200, 192], [1488, 200, 192], [2188, 200, 192]]


def test_forest_learns(dataset, forest):
    pair = make_pair(7)
    probs = predict(forest, pair)
    assert probs.dtype == np.float32
    np.testing.assert_allclose(probs.sum(0), 1, atol=1e-6)
    labelled = pair[1][0] != 255
    assert (probs.argmax(0) == pair[1][0])[labelled].mean() > 0.97


def test_forest_tiles_equal_the_whole(forest):
    pair = make_pair(3, shape=(70, 90))
    np.testing.assert_allclose(predict(forest, pair, tile=32), predict(forest, pair), atol=1e-6)


def test_forest_repeats_with_its_seed(dataset, forest):
    pair = make_pair(5)
    np.testing.assert_allclose(predict(fit_forest(dataset, SMALL), pair), predict(forest, pair), atol=1e-7)
    other = fit_forest(dataset, ForestSettings(8, 300, seed=1, features=SMALL.features))
    assert not np.allclose(predict(other, pair), predict(forest, pair))


def test_forest_agrees_with_sklearn(dataset):
    # with every labelled pixel drawn, class weights alone balance and Bayes' rule restores the frequencies
    chosen = ForestSettings(trees=5, pixels_per_class=10**9, min_leaf=20, features=FeatureSettings((1,)))
    predictor = fit_forest(dataset, chosen)
    scale = fit_normalization(cutout.volume for cutout in dataset.split("train"))
    table, labels = sample_pixels(dataset, count_slices(dataset), scale, chosen)
    reference = RandomForestClassifier(5, min_samples_leaf=20, class_weight="balanced", random_state=0)
    reference.fit(table, labels)
    image = np.random.default_rng(0).normal(size=(1, 1, 20, 30)).astype(np.float32)
    features = compute_features(image[0, 0], chosen.features).reshape(-1, 600).T
    expected = reference.predict_proba(features) * np.bincount(labels)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(predictor.predict_probs(image)[0].reshape(3, 600).T, expected, atol=1e-6)


def test_chunks_do_not_change_the_result(forest, monkeypatch):
    pair = make_pair(4)
    whole = predict(forest, pair)
    monkeypatch.setattr("neurotome.baselines.forest.CHUNK_PIXELS", 77)
    np.testing.assert_allclose(predict(forest, pair), whole, atol=1e-7)


def test_sample_is_balanced_and_without_repeats():
    # the grey value names the pixel, so the draw can be read back from the first feature
    labels = np.random.default_rng(0).choice([0, 0, 0, 0, 1, 2, 255], (3, 20, 30)).astype(np.uint8)
    image = np.arange(labels.size, dtype=np.float32).reshape(labels.shape)
    dataset = make_dataset((image[:1], labels[:1]), (image[1:], labels[1:]))
    chosen = ForestSettings(pixels_per_class=100, features=FeatureSettings((1,)))
    table, found = sample_pixels(dataset, count_slices(dataset), Normalization("dataset", 0, 1, "float32"), chosen)
    pixels = table[:, 0].astype(int)
    assert np.bincount(found).tolist() == [100, 100, 100]
    assert np.unique(pixels).size == 300
    np.testing.assert_array_equal(labels.reshape(-1)[pixels], found)
    assert np.unique(pixels // 600).tolist() == [0, 1, 2]
    assert table.dtype == np.float32
    assert table.shape == (300, 8)


def test_sample_takes_all_of_a_rare_class():
    labels = np.zeros((2, 8, 8), np.uint8)
    labels[1, 3, 3:5] = 1
    labels[0, 0, 0] = 2
    dataset = make_dataset((np.arange(128, dtype=np.float32).reshape(2, 8, 8), labels))
    chosen = ForestSettings(pixels_per_class=10, features=FeatureSettings((1,)))
    table, found = sample_pixels(dataset, count_slices(dataset), Normalization("dataset", 0, 1, "float32"), chosen)
    assert np.bincount(found).tolist() == [10, 2, 1]
    assert table[found == 1, 0].tolist() == [64 + 27, 64 + 28]
    assert table[found == 2, 0].tolist() == [0]


def test_sample_reads_one_slice_at_a_time(tmp_path):
    image, labels = make_pair(0, slices=3)
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "labels.npy", labels.astype(np.uint64))
    mapped = Cutout(
        Volume(np.load(tmp_path / "image.npy", mmap_mode="r"), "mapped"),
        np.load(tmp_path / "labels.npy", mmap_mode="r"),
    )
    dataset = Dataset("mapped", CLASSES, {"train": (mapped,)})
    plain = make_dataset((image, labels))
    scale = Normalization("dataset", 100, 50, "uint8")
    found, expected = (sample_pixels(d, count_slices(d), scale, SMALL) for d in (dataset, plain))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_absent_class_is_warned_about_and_has_probability_zero():
    image, labels = make_pair(0)
    labels[labels == 1] = 0
    with pytest.warns(UserWarning, match="vessel") as caught:
        predictor = fit_forest(make_dataset((image, labels)), SMALL)
    assert caught[0].filename == __file__
    probs = predict(predictor, (image, labels))
    assert probs.shape[0] == 3
    assert (probs[1] == 0).all()
    assert (probs[2] > 0.5).any()
    np.testing.assert_allclose(probs.sum(0), 1, atol=1e-6)


@pytest.mark.parametrize("fit", [fit_majority, lambda dataset: fit_forest(dataset, SMALL)])
def test_refuses_training_data(fit):
    image, labels = make_pair(0)
    with pytest.raises(DatasetError, match="ignore value 255"):
        fit(make_dataset((image, np.full_like(labels, 255))))
    with pytest.raises(DatasetError, match="train"):
        fit(Dataset("tiny", CLASSES, {"test": ()}))


def test_refuses_channels(forest):
    with pytest.raises(ModelError, match=r"\(1, 3, 8, 8\)"):
        forest.predict_probs(np.zeros((1, 3, 8, 8), np.float32))


@pytest.mark.parametrize(
    "wrong",
    [{"trees": 0}, {"pixels_per_class": 0}, {"max_depth": 0}, {"min_leaf": 0}, {"seed": -1}, {"seed": 2**32}],
)
def test_refuses_settings(wrong):
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        ForestSettings(**wrong)


def test_import_is_light():
    code = (
        "import sys, neurotome.baselines.forest, neurotome.baselines.majority, neurotome.features;"
        "sys.exit(' '.join({'sklearn', 'scipy', 'torch'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
