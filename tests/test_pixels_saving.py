from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from neurotome.classes import ClassSet
from neurotome.datasets.base import Cutout, Dataset
from neurotome.errors import ModelError
from neurotome.features import EncoderSettings, FilterSettings
from neurotome.load import load_predictor
from neurotome.models.model_folder import load_model
from neurotome.pixels.learners import BoostingSettings, ForestSettings
from neurotome.pixels.saving import save_pixels
from neurotome.pixels.train import BaselineSettings, fit_baseline
from neurotome.volume import Volume

SETTINGS = BaselineSettings(
    pixels_per_class=200,
    filters=FilterSettings((1,)),
    encoder=EncoderSettings(stages=("1",)),
    forest=ForestSettings(3),
    boosting=BoostingSettings(2, engine="sklearn"),
)
KINDS = {
    "rf": {},
    "gbdt": {"learner": "gbdt", "features": "identity"},
    "lr": {"learner": "lr"},
    "encoder": {"features": "encoder"},
    "3d": {"filters": FilterSettings((2.0,), "um", 3)},
}


ENCODER = dataclasses.asdict(EncoderSettings())


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(0)
    labels = np.zeros((2, 64, 64), np.uint8)
    labels[:, 5:25, 5:25] = 1
    labels[:, 30:42, 20:50] = 3
    grey = (np.array([100, 180, 0, 30])[labels] + rng.normal(0, 12, labels.shape)).clip(0, 255).astype(np.uint8)
    volume = Volume(grey, "image", voxel_size_um=(1.0, 1.0, 1.0))
    return Dataset("tiny", ClassSet(("background", "vessel", "never", "cell")), {"train": (Cutout(volume, labels),)})


def fit(dataset, kind):
    with pytest.warns(UserWarning, match="never"):
        return fit_baseline(dataset, dataclasses.replace(SETTINGS, **KINDS[kind]))


@pytest.fixture(scope="module")
def saved(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_pixels(fit(dataset, "rf"), folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(dataset, kind, tmp_path):
    predictor = dataclasses.replace(fit(dataset, kind), facts={"licence": "CC0"})
    save_pixels(predictor, tmp_path / "model")
    found = load_predictor(tmp_path, "cpu")
    patch = np.random.default_rng(1).normal(size=(1, predictor.in_channels, 70, 80)).astype(np.float32)
    expected = predictor.predict_probs(patch)
    np.testing.assert_array_equal(found.predict_probs(patch), expected)
    assert (expected[:, 2] == 0).all()
    for name in ("classes", "normalization", "halo_zyx", "stride_zyx", "in_channels", "voxel_size_um", "bounded"):
        assert getattr(found, name) == getattr(predictor, name), name
    assert found.facts == {"licence": "CC0"}


def test_no_pickle_in_the_folder(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]


def test_network_is_not_a_pixel_classifier(folder):
    with pytest.raises(ModelError, match=r"is a pixel classifier .* a network is needed"):
        load_model(folder)


def change_arrays(folder, change):
    """Changes the file as a stranger could: with a digest that fits."""
    arrays = load_file(folder / "model.safetensors")
    change(arrays)
    save_file(arrays, folder / "model.safetensors")
    describe(folder, weights_sha256=hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest())


def describe(folder, **changes):
    content = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**content, **changes}))


def put(name, place, value):
    def change(arrays):
        arrays[f"classifier.{name}"] = arrays[f"classifier.{name}"].copy()
        arrays[f"classifier.{name}"][place] = value

    return change


def widen(name, value):
    """Numbers that an array of the right dtype cannot hold, and that a cast would turn into right ones."""

    def change(arrays):
        arrays[f"classifier.{name}"] = arrays[f"classifier.{name}"].astype(type(value)) + value

    return change


def wrap_starts(arrays):
    """Starts whose differences wrap around in int64: they looked like sizes, and np.repeat wrote beyond its memory."""
    nodes = len(arrays["classifier.left"])
    arrays["classifier.starts"] = np.array([0, 2**63 - 1, -(2**63) + nodes + 5, nodes], np.int64)


def test_tampered_weights_are_found(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-9] ^= 1
    (folder / "model.safetensors").write_bytes(bytes(content))
    with pytest.raises(ModelError, match="SHA-256 differs"):
        load_predictor(folder)


@pytest.mark.parametrize(
    "change",
    [
        put("left", 0, 10**6),
        put("left", 0, 0),
        put("right", 0, -1),
        put("right", 0, -7),
        put("feature", 0, 9),
        put("feature", 0, -1),
        put("threshold", 0, np.nan),
        put("values", (0, 0), np.inf),
        put("starts", 0, 1),
        put("starts", -1, 10**9),
        put("starts", 1, -5),
        wrap_starts,
        *(widen(name, np.int64(2**32)) for name in ("left", "right", "feature")),
        widen("starts", np.uint64(0)),
        widen("values", np.float64(0)),
        lambda arrays: arrays.update({"classifier.values": np.zeros_like(arrays["classifier.values"])}),
        lambda arrays: arrays.update({"classifier.values": arrays["classifier.values"] * [-1, 1, 1]}),
        lambda arrays: arrays.update({"classifier.values": arrays["classifier.values"] * 2}),
        lambda arrays: arrays.pop("classifier.left"),
        lambda arrays: arrays.update({"classifier.left": arrays["classifier.left"][:-1]}),
        lambda arrays: arrays.update({"classifier.values": arrays["classifier.values"][:, :2].copy()}),
        lambda arrays: arrays.update({"classifier.base": np.zeros(3, np.float32)}),
    ],
)
def test_impossible_trees_are_refused(folder, change):
    change_arrays(folder, change)
    with pytest.raises(ModelError, match="damaged model folder"):
        load_predictor(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"seen": [0, 1, 9]},
        {"seen": [1, 0, 3]},
        {"seen": [0.5, 1.5, 3.5]},
        {"weights": [1, -1, 1]},
        {"weights": [1, 1]},
        {"features": {"kind": "pickle"}},
        {"halo": 3},
        {"classes": {}},
        {"voxel_size_um": [0, 0, 0]},
        {"voxel_size_um": [1, -1, 1]},
        {"voxel_size_um": [1, 1, float("nan")]},
        {"voxel_size_um": [1, 1, float("inf")]},
        {"voxel_size_um": [1, 1]},
        {"voxel_size_um": [10**400, 1, 1]},
        {
            "features": {
                "kind": "filters",
                "filters": {"sigmas": [1e308], "dimensions": 2, "unit": "pixel"},
                "encoder": ENCODER,
            }
        },
        *(
            {"normalization": {"mode": "dataset", "mean": 100.0, "std": 40.0, "dtype": "uint8", **wrong}}
            for wrong in (
                {"mean": float("nan")},
                {"mean": float("inf")},
                {"mean": -1e39},
                {"std": 0},
                {"std": -1},
                {"std": 1e-320},
                {"std": float("inf")},
                {"std": float("nan")},
                {"mode": "none"},
            )
        ),
    ],
)
def test_impossible_descriptions_are_refused(folder, changes):
    describe(folder, **changes)
    with pytest.raises(ModelError, match="damaged model folder"):
        load_predictor(folder)


@pytest.fixture(scope="module")
def deep(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deep") / "model"
    save_pixels(fit(dataset, "encoder"), folder)
    return folder


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("model", {"in_channels": 2}),
        ("model", {"in_channels": 259}),
        ("model", {"in_channels": 257}),
        ("model", {"in_channels": 10**9 + 1}),
        ("model", {"in_channels": -1}),
        ("model", {"in_channels": "1"}),
        ("model", {"in_channels": True}),
        ("model", {"encoder_weights": "imagenet"}),
        ("encoder", {"classes": 256}),
        ("encoder", {"classes": 0}),
        ("halo", -1),
    ],
)
def test_impossible_encoders_are_refused(deep, tmp_path, monkeypatch, part, changes):
    folder = Path(shutil.copytree(deep, tmp_path / "model"))
    encoder = json.loads((folder / "model.json").read_text())["encoder"]
    if part == "halo":
        describe(folder, halo=changes)
    else:
        (encoder["model"] if part == "model" else encoder).update(changes)
        describe(folder, encoder=encoder)
    monkeypatch.setattr("neurotome.pixels.saving.build_network", lambda *_: pytest.fail("a network was built"))
    with pytest.raises(ModelError, match="damaged model folder"):
        load_predictor(folder)


@pytest.mark.parametrize(
    ("end", "value", "message"),
    [("conv1.weight", np.nan, "from nan to nan"), ("conv1.weight", 1e30, r"to 1\.0"), ("running_var", -1, "variance -1")],
)
def test_tampered_encoder_weights_are_refused(deep, tmp_path, end, value, message):
    folder = Path(shutil.copytree(deep, tmp_path / "model"))

    def spoil(arrays):
        name = next(name for name in arrays if name.startswith("encoder.") and name.endswith(end))
        arrays[name] = arrays[name].copy()
        arrays[name].flat[0] = value

    change_arrays(folder, spoil)
    with pytest.raises(ModelError, match=rf"damaged model folder \(.*encoder\..*{message}"):
        load_predictor(folder)


def test_unknown_kinds_are_refused(folder):
    describe(folder, classifier="pickle")
    with pytest.raises(ModelError, match="unknown classifier 'pickle'"):
        load_predictor(folder)
    describe(folder, format=99)
    with pytest.raises(ModelError, match="format 99"):
        load_predictor(folder)
