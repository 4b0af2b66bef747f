"""The model that comes with the package: scores that must not fall, grey scales it must not mind."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurotome import predict
from neurotome.datasets import open_dataset
from neurotome.datasets.base import Cutout
from neurotome.datasets.phantom.make import PhantomSettings, make_phantom
from neurotome.experiments.evaluate import score_split
from neurotome.inference.predict_settings import PredictSettings
from neurotome.inference.slices import predict_slices
from neurotome.models.model_folder import load_model
from neurotome.models.net_predictor import NetPredictor
from neurotome.scoring import score_images

PATCHES = Path(__file__).parents[2] / "shared" / "data" / "microct_patches"

# measured when the model was added; a little lower, because other processors add up in another order
LEAST_ON_REAL = 0.785
LEAST_ON_PHANTOM = 0.86

AT_HOME = PredictSettings(voxel_size_um=1.17)


@pytest.fixture(scope="module")
def model() -> NetPredictor:
    return load_model(Path("microct-base"))


def real_patches() -> list[Cutout]:
    if not PATCHES.is_dir():
        pytest.skip("needs the real patches of ../shared/data, which are not part of the project")
    return [c for cutouts in open_dataset(PATCHES).splits.values() for c in cutouts]


def score(model: NetPredictor, cutouts: list[Cutout]) -> dict[str, Any]:
    images = [(c.name, c.read_labels(0), next(predict_slices(model, c.volume)).argmax(0)) for c in cutouts]
    return score_images("microct_patches", "all", model.classes, images)


@pytest.mark.slow
def test_it_labels_real_patches_without_having_seen_a_real_label(model: NetPredictor) -> None:
    found = score(model, real_patches())
    assert found["macro"]["f1"] >= LEAST_ON_REAL
    assert min(c["f1"] for c in found["per_class"].values()) > 0.55


@pytest.mark.slow
def test_it_labels_tissue_of_another_seed(model: NetPredictor) -> None:
    dataset = make_phantom(PhantomSettings(seed=77, height=128, width=128, train_depth=1, val_depth=1, test_depth=3))
    assert score_split(model, dataset, "test")["macro"]["f1"] >= LEAST_ON_PHANTOM


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [lambda g: g.astype(np.uint16) * 200 + 3000, lambda g: g.astype(np.float32) / 1000 - 7, lambda g: g // 2 + 60],
    ids=["uint16", "float32", "half the range"],
)
def test_another_grey_scale_gives_the_same_labels(change: Any) -> None:
    dataset = make_phantom(PhantomSettings(seed=78, height=128, width=128, train_depth=1, val_depth=1, test_depth=1))
    for cutout in dataset.split("test"):
        grey = cutout.volume.data[0]
        first = predict("microct-base", grey, settings=AT_HOME)
        other = predict("microct-base", change(grey), settings=AT_HOME)
        assert isinstance(first, np.ndarray)
        assert np.mean(first == np.asarray(other)) > (0.999 if change(grey).dtype != np.uint8 else 0.98)


def test_it_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    rng = np.random.default_rng(0)
    labels = predict("microct-base", rng.integers(60, 160, (7, 9), dtype=np.uint8), settings=AT_HOME)
    assert isinstance(labels, np.ndarray)
    assert labels.shape == (7, 9)
