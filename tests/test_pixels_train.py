from __future__ import annotations

import dataclasses
import importlib.util
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from neurotome.classes import ClassSet
from neurotome.datasets.base import Cutout, Dataset
from neurotome.datasets.statistics import count_slices
from neurotome.errors import DatasetError, ImageError, ModelError, NeurotomeError, SettingsError
from neurotome.features import FeatureSettings, FilterSettings, build_extractor
from neurotome.normalize import Normalization
from neurotome.pixels.importance import measure_importance, shuffle_features
from neurotome.pixels.learners import BoostingSettings, ForestSettings, LogisticSettings, from_forest, from_lightgbm
from neurotome.pixels.predictor import PixelPredictor, iterate_windows, list_windows
from neurotome.pixels.sample import draw_pixels, limit_rows, spread_rows
from neurotome.pixels.train import BaselineSettings, fit_baseline, fit_majority
from neurotome.predictor import predict_slice
from neurotome.quantities import read_bytes
from neurotome.volume import Volume
from tests.conftest import compute_features

CLASSES = ClassSet(("background", "vessel", "cell"))
FILTERS = FilterSettings((1, 2))
SMALL = BaselineSettings(
    pixels_per_class=300, filters=FILTERS, forest=ForestSettings(8), boosting=BoostingSettings(5, engine="sklearn")
)
BANK = build_extractor(FeatureSettings("filters", FilterSettings((1,))))
AS_IT_IS = Normalization("dataset", 0, 1, "float32")


def change(**settings):
    return dataclasses.replace(SMALL, **settings)


def draw(dataset, per_class, normalization=AS_IT_IS, seed=0):
    return draw_pixels(dataset, "train", limit_rows(count_slices(dataset).sum(0), per_class), BANK, normalization, seed)


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
    return fit_baseline(dataset, SMALL)


def predict(predictor, pair, tile=None):
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
    assert (predictor.normalization.mean, predictor.in_channels, predictor.halo_zyx) == (3.5, 1, (0, 0, 0))


@pytest.mark.parametrize("learner", ["rf", "lr", "gbdt"])
def test_learns(dataset, learner):
    predictor = fit_baseline(dataset, change(learner=learner))
    pair = make_pair(7)
    probs = predict(predictor, pair)
    assert probs.dtype == np.float32
    np.testing.assert_allclose(probs.sum(0), 1, atol=1e-6)
    labelled = pair[1][0] != 255
    assert (probs.argmax(0) == pair[1][0])[labelled].mean() > 0.96


def test_lightgbm_learns(dataset):
    pytest.importorskip("lightgbm", reason="the extra gbm is not installed")
    chosen = change(learner="gbdt", boosting=BoostingSettings(20))
    predictor = fit_baseline(dataset, chosen)
    assert predictor.facts["training"]["learner"] == "gradient boosted trees (LightGBM)"
    pair = make_pair(7)
    assert (predict(predictor, pair).argmax(0) == pair[1][0])[1:].mean() > 0.97
    np.testing.assert_array_equal(predict(fit_baseline(dataset, chosen), pair), predict(predictor, pair))


def test_tiles_equal_the_whole(forest):
    pair = make_pair(3, shape=(70, 90))
    image = forest.normalization.scale_for(Volume(pair[0], "new")).apply(pair[0][:1])
    tiles = []
    tiled = predict_slice(forest, image, 32, on_tile=tiles.append)  # a tile that is asked for is obeyed
    assert tiles == [1024, 1024, 832, 1024, 1024, 832, 192, 192, 156]
    np.testing.assert_allclose(tiled, predict(forest, pair), atol=1e-6)
    assert np.abs(predict_slice(forest, image, 32, halo=0) - tiled).max() > 1e-3


def test_windows_and_threads_do_not_change_the_result(forest, monkeypatch):
    pair = make_pair(4)
    whole = predict(forest, pair)
    monkeypatch.setattr(forest.extractor, "window", 20)
    monkeypatch.setattr("neurotome.pixels.predictor.count_cores", lambda: 3)
    np.testing.assert_allclose(predict(forest, pair), whole, atol=1e-7)


def test_windows_are_not_computed_far_ahead_of_those_that_are_taken(monkeypatch):
    monkeypatch.setattr("neurotome.pixels.predictor.count_cores", lambda: 2)
    done = []
    found = iterate_windows(lambda window: done.append(window) or window, list_windows((100, 10), 10))
    assert next(found) == (slice(0, 10), slice(0, 10))
    time.sleep(0.05)
    assert len(done) <= 4
    assert len(list(found)) == 9


def test_many_slices_are_read_in_small_tiles(dataset):
    three = dataclasses.replace(SMALL, filters=FilterSettings((1.0,), dimensions=3))
    predictor = fit_baseline(dataset, three)
    image = np.random.default_rng(0).normal(100, 40, (predictor.in_channels, 80, 90)).astype(np.float32)
    whole = predictor.predict_probs(image[None])[0]
    predictor.extractor.window = 16
    assert predictor.preferred_tile == 32
    np.testing.assert_allclose(predict_slice(predictor, image), whole, atol=1e-6)


def test_repeats_with_its_seed(dataset, forest):
    pair = make_pair(5)
    np.testing.assert_allclose(predict(fit_baseline(dataset, SMALL), pair), predict(forest, pair), atol=1e-7)
    assert not np.allclose(predict(fit_baseline(dataset, change(seed=1)), pair), predict(forest, pair))


@pytest.mark.parametrize("learner", ["rf", "lr", "gbdt"])
@pytest.mark.parametrize("classes", [2, 3])
def test_agrees_with_sklearn(dataset, learner, classes):
    # with every labelled pixel drawn, class weights alone balance and Bayes' rule restores the frequencies
    if classes == 2:
        cutouts = tuple(Cutout(c.volume, np.where(c.labels == 2, 255, c.labels)) for c in dataset.split("train"))
        dataset = Dataset("two", ClassSet(("background", "vessel")), {"train": cutouts})
    chosen = BaselineSettings(
        learner,
        pixels_per_class=0,
        prior=1,
        filters=FilterSettings((1,)),
        forest=ForestSettings(5, min_leaf=20),
        boosting=BoostingSettings(4, 7, 0.3, "sklearn"),
        logistic=LogisticSettings(0.5),
    )
    predictor = fit_baseline(dataset, chosen)
    table, labels = draw(dataset, 0, predictor.normalization)
    reference = {
        "rf": RandomForestClassifier(5, min_samples_leaf=20, class_weight="balanced", random_state=0),
        "lr": make_pipeline(StandardScaler(), LogisticRegression(C=0.5, class_weight="balanced", max_iter=300)),
        "gbdt": HistGradientBoostingClassifier(
            max_iter=4, max_leaf_nodes=7, learning_rate=0.3, class_weight="balanced", random_state=0, early_stopping=False
        ),
    }[learner].fit(table, labels)
    image = np.random.default_rng(0).normal(size=(1, 1, 20, 30)).astype(np.float32)
    features = compute_features(image[0], BANK).reshape(-1, 600).T
    expected = reference.predict_proba(features) * np.bincount(labels)
    expected /= expected.sum(axis=1, keepdims=True)
    found = predictor.predict_probs(image)[0].reshape(classes, 600).T
    np.testing.assert_allclose(found, expected, atol=2e-3 if learner == "lr" else 1e-6)


def test_lightgbm_trees_agree_with_its_own_prediction():
    lightgbm = pytest.importorskip("lightgbm", reason="the extra gbm is not installed")
    rng = np.random.default_rng(0)
    table = rng.normal(size=(900, 6)).astype(np.float32)
    labels = (table[:, 0] > 0).astype(int) + (table[:, 1] * table[:, 2] > 0.3)
    chosen = {"objective": "multiclass", "num_class": 3, "num_leaves": 9, "verbosity": -1}
    booster = lightgbm.train(chosen, lightgbm.Dataset(table, labels), 7)
    found = from_lightgbm(booster.dump_model(), 6, 3).predict(np.ascontiguousarray(table.T))
    np.testing.assert_allclose(found.T, booster.predict(table), atol=1e-6)


def test_sample_is_balanced_and_without_repeats():
    # the grey value names the pixel, so the draw can be read back from the first feature
    labels = np.random.default_rng(0).choice([0, 0, 0, 0, 1, 2, 255], (3, 20, 30)).astype(np.uint8)
    image = np.arange(labels.size, dtype=np.float32).reshape(labels.shape)
    dataset = make_dataset((image[:1], labels[:1]), (image[1:], labels[1:]))
    table, found = draw(dataset, 100)
    pixels = table[:, 0].astype(int)
    assert np.bincount(found).tolist() == [100, 100, 100]
    assert np.unique(pixels).size == 300
    np.testing.assert_array_equal(labels.reshape(-1)[pixels], found)
    assert np.unique(pixels // 600).tolist() == [0, 1, 2]
    assert table.dtype == np.float32
    assert table.shape == (300, 8)


@given(st.lists(st.lists(st.integers(0, 50), min_size=2, max_size=2), min_size=1, max_size=6), st.floats(0, 1))
def test_spread_draws_what_is_asked_from_what_is_there(counts, share):
    counts = np.array(counts, np.int64)
    rows = (counts.sum(0) * share).astype(np.int64)
    found = np.array(list(spread_rows(counts, rows, np.random.default_rng(0))))
    np.testing.assert_array_equal(found.sum(0), rows)
    assert (found <= counts).all()
    assert (found >= 0).all()


@pytest.mark.parametrize("scale", [1, 10**9])
def test_spread_gives_every_pixel_the_same_chance(scale):
    counts = np.array([[30], [0], [10], [60]], np.int64) * scale
    rng = np.random.default_rng(0)
    found = np.mean([list(spread_rows(counts, np.array([20]), rng)) for _ in range(2000)], axis=0)
    np.testing.assert_allclose(found[:, 0], [6, 0, 2, 12], atol=0.2)


def test_sample_takes_all_of_a_rare_class():
    labels = np.zeros((2, 8, 8), np.uint8)
    labels[1, 3, 3:5] = 1
    labels[0, 0, 0] = 2
    dataset = make_dataset((np.arange(128, dtype=np.float32).reshape(2, 8, 8), labels))
    table, found = draw(dataset, 10)
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
    found, expected = (draw(d, 300, Normalization("dataset", 100, 50, "uint8")) for d in (dataset, plain))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_absent_class_is_warned_about_and_has_probability_zero():
    image, labels = make_pair(0)
    labels[labels == 1] = 0
    with pytest.warns(UserWarning, match="vessel") as caught:
        predictor = fit_baseline(make_dataset((image, labels)), SMALL)
    assert caught[0].filename == __file__
    probs = predict(predictor, (image, labels))
    assert probs.shape[0] == 3
    assert (probs[1] == 0).all()
    assert (probs[2] > 0.5).any()
    np.testing.assert_allclose(probs.sum(0), 1, atol=1e-6)


@pytest.mark.parametrize("fit", [fit_majority, lambda dataset: fit_baseline(dataset, SMALL)])
def test_refuses_training_data(fit):
    image, labels = make_pair(0)
    with pytest.raises(DatasetError, match="ignore value 255"):
        fit(make_dataset((image, np.full_like(labels, 255))))
    with pytest.raises(DatasetError, match="train"):
        fit(Dataset("tiny", CLASSES, {"test": ()}))


def test_refuses_channels(forest):
    with pytest.raises(ModelError, match=r"\(3, 8, 8\)"):
        forest.predict_probs(np.zeros((1, 3, 8, 8), np.float32))


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        (lambda: ForestSettings(trees=0), "forest.trees"),
        (lambda: ForestSettings(max_depth=0), "forest.max_depth"),
        (lambda: ForestSettings(min_leaf=0), "forest.min_leaf"),
        (lambda: BoostingSettings(rounds=0), "boosting.rounds"),
        (lambda: BoostingSettings(leaves=1), "boosting.leaves"),
        (lambda: BoostingSettings(engine="xgboost"), "lightgbm"),
        (lambda: LogisticSettings(strength=0), "logistic.strength"),
        (lambda: BaselineSettings("rff"), "Did you mean 'rf'"),
        (lambda: BaselineSettings("sklearn.svm.SVC"), "unknown learner .* Known: rf, lr, gbdt"),
        (lambda: BaselineSettings(pixels_per_class=-1), "pixels_per_class"),
        (lambda: BaselineSettings(prior=2), "prior"),
        (lambda: BaselineSettings(seed=-1), "seed"),
        (lambda: BaselineSettings(max_memory="much"), "such as 500MB or 2GB"),
        (lambda: BaselineSettings(features="filter"), "Did you mean 'filters'"),
    ],
)
def test_refuses_settings(wrong, name):
    with pytest.raises(SettingsError, match=name):
        wrong()


def test_reads_sizes():
    found = [read_bytes(text) for text in ("2GB", "1.5 gib", "500MB", "7", "3k")]
    assert found == [2 * 10**9, 3 * 2**29, 500 * 10**6, 7, 3000]


def test_missing_extras_name_their_command(dataset, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(NeurotomeError, match=r"pip install 'neurotome\[gbm\]'"):
        fit_baseline(dataset, change(learner="gbdt", boosting=BoostingSettings(engine="lightgbm")))


def test_boosts_without_lightgbm(dataset, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    predictor = fit_baseline(dataset, change(learner="gbdt", boosting=BoostingSettings(2)))
    assert predictor.facts["training"]["learner"] == "gradient boosted trees (scikit-learn)"


def test_refuses_one_class():
    image, labels = make_pair(0)
    with pytest.raises(DatasetError, match="of class cell; expected two"):
        fit_baseline(make_dataset((image, np.where(labels == 2, 2, 255))), SMALL)


def test_limit_rows_by_hand():
    totals = np.array([1000, 10, 0, 300])
    assert limit_rows(totals, 0).tolist() == [1000, 10, 0, 300]
    assert limit_rows(totals, 100).tolist() == [100, 10, 0, 100]
    assert limit_rows(totals, 0, 410).tolist() == [200, 10, 0, 200]
    assert limit_rows(totals, 100, 1310).tolist() == [100, 10, 0, 100]
    assert limit_rows(totals, 0, 12).tolist() == [4, 4, 0, 4]


def test_memory_limit_samples_and_says_so(dataset):
    everything = change(pixels_per_class=0)
    assert fit_baseline(dataset, everything).facts["training"]["method"] == "all"
    with pytest.warns(UserWarning, match=r"more than max_memory 200kB, so [\d,]+ of them were drawn"):
        predictor = fit_baseline(dataset, dataclasses.replace(everything, max_memory="200kB"))
    training = predictor.facts["training"]
    assert training["method"] == "sampled"
    assert sum(training["pixels"].values()) * training["features"] * 4 <= 200_000
    with pytest.raises(SettingsError, match="max_memory is 100B"):
        fit_baseline(dataset, change(max_memory="100B"))


def test_val_without_a_label_is_as_none(dataset):
    image, labels = make_pair(9)
    split = {**dataset.splits, "val": make_dataset((image, np.full_like(labels, 255))).split("train")}
    predictor = fit_baseline(Dataset("tiny", CLASSES, split), SMALL)
    assert predictor.facts["training"]["prior"] == 0.75
    assert measure_importance(predictor, Dataset("tiny", CLASSES, split), pixels_per_class=50)["split"] == "train"


def test_images_of_other_dtypes_need_a_scale_of_their_own(dataset):
    image, labels = make_pair(3)
    wide = make_dataset((image, labels), (image.astype(np.uint16) * 100 + 5000, labels))
    with pytest.raises(ImageError, match="baseline: --normalization image"):
        fit_baseline(wide, SMALL)
    predictor = fit_baseline(wide, change(normalization="image"))
    found = [predictor.normalization.scale_for(c.volume).apply(c.volume.data) for c in wide.split("train")]
    np.testing.assert_allclose(*found, atol=1e-3)


def test_prior_is_chosen_by_val(dataset):
    split = {"train": dataset.split("train"), "val": make_dataset(make_pair(9)).split("train")}
    predictor = fit_baseline(Dataset("tiny", CLASSES, split), SMALL)
    training = predictor.facts["training"]
    assert set(training["prior_val_macro_f1"]) == {"1", "0.75", "0.5", "0.25", "0"}
    assert training["prior_val_macro_f1"][f"{training['prior']:g}"] == max(training["prior_val_macro_f1"].values())
    assert fit_baseline(dataset, SMALL).facts["training"]["prior"] == 0.75


def test_prior_by_hand(dataset):
    probs = {}
    for prior in (0, 1):
        probs[prior] = predict(fit_baseline(dataset, change(prior=prior)), make_pair(5)).astype(float)
    totals = count_slices(dataset).sum(0)
    expected = probs[0] * totals[:, None, None]
    np.testing.assert_allclose(probs[1], expected / expected.sum(0), atol=1e-5)


def test_importance_agrees_with_sklearn():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(1500, 4)).astype(np.float32)
    labels = ((table[:, 1] > 0).astype(int) + (table[:, 2] > 1)).astype(np.uint8)
    reference = RandomForestClassifier(20, random_state=0, min_samples_leaf=5).fit(table, labels)
    found = shuffle_features(make_predictor(reference), np.ascontiguousarray(table.T), labels, list("abcd"), 0)
    expected = permutation_importance(reference, table, labels, scoring="f1_macro", n_repeats=5, random_state=0)
    drops = {one["name"]: one["drop"] for one in found["features"]}
    assert found["features"][0]["name"] == "b"
    np.testing.assert_allclose([drops[name] for name in "abcd"], expected.importances_mean, atol=0.03)


def test_importance_groups_layers():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(300, 130)).astype(np.float32)
    labels = (table[:, 70] > 0).astype(np.uint8)
    reference = RandomForestClassifier(5, random_state=0, max_features=None).fit(table, labels)
    names = ["grey", *(f"stage1_{i}" for i in range(64)), *(f"stage2_{i}" for i in range(65))]
    classes = ClassSet(("a", "b"))
    found = shuffle_features(make_predictor(reference, classes), np.ascontiguousarray(table.T), labels, names, 0)
    assert found["features"][0]["name"] == "stage2"
    assert {one["name"] for one in found["features"]} == {"grey", "stage1", "stage2"}


def make_predictor(forest, classes=CLASSES):
    seen = np.arange(len(classes))
    settings = FeatureSettings("identity")
    return PixelPredictor(
        classes, AS_IT_IS, settings, build_extractor(settings), from_forest(forest), seen, np.ones(len(seen), np.float32)
    )
