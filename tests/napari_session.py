"""What the panels do in napari, without a screen: run by test_napari_panels.py in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.components import ViewerModel
from qtpy.QtWidgets import QApplication

from neurotome.classes import OKABE_ITO
from neurotome.napari.predict_panel import PredictPanel
from neurotome.napari.samples import make_phantom
from test_suggest import make_model

APP = QApplication.instance() or QApplication([])


def wait_for(is_so: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "waited too long"
        APP.processEvents()
        time.sleep(0.01)


@pytest.fixture(scope="session")
def phantom() -> list[tuple[Any, dict[str, Any], str]]:
    return make_phantom()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), 3)


@pytest.fixture
def viewer(phantom: list[tuple[Any, dict[str, Any], str]]) -> Iterator[ViewerModel]:
    viewer = ViewerModel()
    (grey, image, _), (stored, labels, _) = phantom
    viewer.add_image(grey[:4, :64, :96], **image)
    viewer.add_labels(np.array(stored[:4, :64, :96]), **labels)
    yield viewer
    APP.processEvents()


def test_predict_adds_a_layer_in_the_colours_of_the_classes(viewer: ViewerModel, model: Path) -> None:
    panel = PredictPanel(viewer)
    assert panel.size.text() == "1.17"
    panel.model.offer(model)
    panel.confidence.setChecked(True)
    panel.predict()
    wait_for(lambda: not panel.is_busy)
    assert panel.message.text().startswith("phantom labels: 0 background, 1 vessel, 2 cell")
    labels, confidence = viewer.layers[-2:]
    assert labels.data.shape == confidence.data.shape == (4, 64, 96)
    np.testing.assert_allclose(labels.scale, 1.17)
    np.testing.assert_allclose(labels.get_color(1)[:3], np.array(OKABE_ITO[0]) / 255, atol=1e-6)
    assert list(labels.features["class"]) == ["vessel", "cell"]
    assert panel.command.text().startswith(f"neurotome predict {model} phantom.tif phantom_labels.tif --confidence")
