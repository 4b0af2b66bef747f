"""What the panels do in napari, without a screen: run by test_napari_panels.py in a process of its own."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

pytest.importorskip("qtpy.QtWidgets", reason="Qt cannot be loaded here", exc_type=ImportError)
from napari.components import ViewerModel
from npe2 import PluginManifest
from qtpy.QtCore import QEvent
from qtpy.QtWidgets import QApplication

import neurotome.napari
from neurotome.classes import OKABE_ITO, ClassSet
from neurotome.cli import make_app
from neurotome.datasets import open_dataset
from neurotome.inference.predict_settings import PredictSettings
from neurotome.io import read_labels, write_image, write_labels
from neurotome.io.lazy_array import LazyArray
from neurotome.io.ome_zarr import describe_multiscale
from neurotome.napari import predict_panel, samples, tune_panel
from neurotome.napari.correct_panel import CorrectPanel
from neurotome.napari.layers import find_classes, open_layer
from neurotome.napari.predict_panel import PredictPanel
from neurotome.napari.predicting import Predicted, Report
from neurotome.napari.tune_panel import TunePanel
from neurotome.viewing.scene import open_scene
from neurotome.viewing.window import add_layers
from neurotome.volume import Volume

APP = QApplication.instance() or QApplication([])


def wait_for(is_so: Callable[[], bool], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "waited too long"
        APP.processEvents()
        time.sleep(0.05)


@pytest.fixture(scope="session")
def phantom() -> list[tuple[Any, dict[str, Any], str]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "SETTINGS", replace(samples.SETTINGS, height=64, width=96, train_depth=4))
        return samples.make_phantom()


CLASSES = ClassSet(("background", "blood vessel", "cell", "axon"))


def threshold(model: str, volume: Volume, settings: PredictSettings, report: Report) -> Predicted:
    """Stands for `label_volume`, whose model and torch would take most of the time here; it has tests of its own."""
    for z in range(volume.shape[0]):
        report(z / volume.shape[0], f"slice {z + 1}")
    labels = (np.asarray(volume.data) < 80).astype(np.uint8)
    return Predicted(labels, labels * 255 if settings.confidence else None, CLASSES)


@pytest.fixture
def viewer(phantom: list[tuple[Any, dict[str, Any], str]]) -> Iterator[ViewerModel]:
    viewer = ViewerModel()
    (grey, image, _), (stored, labels, _) = phantom
    viewer.add_image(grey, **image)
    viewer.add_labels(np.array(stored), **labels)
    yield viewer
    APP.processEvents()


def test_predict_adds_a_layer_in_the_colours_of_the_classes(viewer: ViewerModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_panel, "label_volume", threshold)
    panel = PredictPanel(viewer)
    assert panel.size.text() == "1.17"
    panel.model.offer("runs/first")
    panel.confidence.setChecked(True)
    panel.predict()
    wait_for(lambda: not panel.is_busy)
    assert panel.message.text().startswith("phantom labels: 0 background, 1 blood vessel, 2 cell, 3 axon")
    labels, confidence = viewer.layers[-2:]
    np.testing.assert_array_equal(labels.data, viewer.layers["phantom"].data < 80)
    assert panel.image.layer is viewer.layers["phantom"]
    assert labels.data.shape == confidence.data.shape == (4, 64, 96)
    np.testing.assert_allclose(labels.scale, 1.17)
    np.testing.assert_allclose(labels.get_color(1)[:3], np.array(OKABE_ITO[0]) / 255, atol=1e-6)
    assert list(labels.features["class"]) == ["blood vessel", "cell", "axon"]
    assert panel.command.text().startswith("neurotome predict runs/first phantom.tif phantom_labels.tif --confidence")


def test_what_cannot_be_predicted_is_one_message(viewer: ViewerModel) -> None:
    panel = PredictPanel(viewer)
    panel.model.offer("no-such-model")
    panel.predict()
    wait_for(lambda: not panel.is_busy)
    assert "no-such-model" in panel.message.text()
    panel.size.setText("wide")
    panel.predict()
    assert panel.message.text().startswith("voxel size is 'wide'")
    viewer.layers.clear()
    panel.predict()
    assert panel.message.text().startswith("no image layer is chosen")


def test_predicting_can_be_stopped(viewer: ViewerModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_panel, "label_volume", threshold)
    panel = PredictPanel(viewer)
    panel.predict()
    assert panel.stop.isEnabled()
    panel.ask_to_stop()
    wait_for(lambda: not panel.is_busy)
    assert panel.message.text() == "Stopped; nothing was added."
    assert len(viewer.layers) == 2


def test_a_crop_is_corrected_saved_and_added(viewer: ViewerModel, tmp_path: Path) -> None:
    panel = CorrectPanel(viewer)
    assert panel.labels.layer is viewer.layers["phantom truth"]
    panel.size.setText("1 32 32")
    panel.folder.setText(str(tmp_path / "crops"))
    viewer.dims.set_point(0, 2 * 1.17)
    viewer.camera.center = (0, 32 * 1.17, 48 * 1.17)
    panel.cut()
    folder = tmp_path / "crops/phantom_z0002_y16_x32"
    assert str(folder) in panel.message.text()
    layer = viewer.layers[-1]
    assert (layer.mode, layer.selected_label) == ("paint", 1)
    np.testing.assert_allclose(layer.translate, np.array([2, 16, 32]) * 1.17)
    np.testing.assert_array_equal(layer.data, viewer.layers["phantom truth"].data[2:3, 16:48, 32:64])
    command = shlex.split(panel.command.text())
    make_app().parse_args(command[1:], exit_on_error=False, print_error=False)
    layer.paint((0, 16, 16), 2)
    assert (layer.data[0, 14:18, 14:18] == 2).any()
    panel.save()
    np.testing.assert_array_equal(read_labels(folder / "labels.zarr"), layer.data)
    layer.selected_label = 2
    layer.fill((0, 0, 0), 2)
    panel.dataset.setText(str(tmp_path / "data"))
    panel.add()
    assert panel.message.text() == f"phantom_z0002_y16_x32: in {tmp_path / 'data'}."
    (cutout,) = open_dataset(tmp_path / "data").split("train")
    np.testing.assert_array_equal(cutout.labels, layer.data)
    write_labels(folder / "labels.zarr", np.zeros((1, 32, 32), np.uint8))  # somebody else's
    panel.save()
    assert "was changed by somebody else" in panel.message.text()
    assert not read_labels(folder / "labels.zarr").any()


def test_a_crop_can_be_opened_later(viewer: ViewerModel, tmp_path: Path) -> None:
    panel = CorrectPanel(viewer)
    panel.size.setText("2 16 16")
    panel.folder.setText(str(tmp_path))
    panel.cut()
    (folder,) = tmp_path.iterdir()
    cut = viewer.layers[-1]
    other = ViewerModel()
    again = CorrectPanel(other)
    again.open(folder)
    opened = other.layers[-1]
    np.testing.assert_array_equal(opened.data, cut.data)
    np.testing.assert_allclose(opened.translate, cut.translate)
    np.testing.assert_allclose(opened.scale, cut.scale)
    opened.data[:] = 1
    assert again.save() is not None
    assert panel.save() is None  # changed meanwhile


def test_a_closed_panel_hears_nothing(viewer: ViewerModel) -> None:
    panel = PredictPanel(viewer)
    panel.deleteLater()
    APP.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    APP.processEvents()
    viewer.add_image(np.zeros((4, 4)))
    viewer.layers.pop()


def test_a_shape_says_where_a_crop_is(viewer: ViewerModel, tmp_path: Path) -> None:
    box = np.array([[1, 8, 20], [1, 8, 60], [1, 28, 60], [1, 28, 20]], float)
    shapes = viewer.add_shapes([box], scale=(1.17,) * 3)
    panel = CorrectPanel(viewer)
    panel.where.choose(shapes)
    panel.folder.setText(str(tmp_path))
    panel.classes.setText("background, cell")
    panel.labels.setCurrentIndex(0)
    panel.cut()
    assert viewer.layers[-1].data.shape == (1, 20, 40)
    assert (viewer.layers[-1].data == 255).all()  # no labels were chosen
    np.testing.assert_allclose(viewer.layers[-1].translate, np.array([1, 8, 20]) * 1.17)
    panel.cut()
    assert "is there already" in panel.message.text()
    assert panel.save() is not None
    panel.dataset.setText("")
    panel.add()
    assert panel.message.text().startswith("no folder of dataset is named")


def test_fine_tune_runs_as_a_command(viewer: ViewerModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    panel, other = TunePanel(viewer), PredictPanel(viewer)
    panel.tune()
    assert panel.message.text().startswith("dataset or run is not named")
    panel.dataset.setText(str(tmp_path / "nothing here"))
    panel.out.setText(str(tmp_path / "run"))
    panel.tune()
    assert panel.is_busy
    wait_for(lambda: not panel.is_busy)
    assert "nothing here does not exist" in panel.lines.toPlainText()
    assert panel.message.text().startswith("It ended with an error")
    assert (
        panel.command.text()
        == f"neurotome fine-tune '{tmp_path}/nothing here' --init {panel.model.model} --out {tmp_path}/run"
    )
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(tune_panel.sys, "executable", str(program))
    panel.options.setText("--train.epochs 1")
    panel.tune()
    wait_for(lambda: not panel.is_busy)
    assert panel.lines.toPlainText().endswith(f"--out {tmp_path}/run --train.epochs 1\n")
    assert other.model.model == str(tmp_path / "run")
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    panel.tune()
    panel.ask_to_stop()
    wait_for(lambda: not panel.is_busy)
    assert panel.message.text() == "Stopped. Fine-tune goes on from there."


def test_the_manifest_names_what_is_there() -> None:
    manifest = PluginManifest.from_file(Path(neurotome.napari.__file__).with_name("napari.yaml"))
    manifest.validate_imports()
    assert [widget.display_name for widget in manifest.contributions.widgets] == ["Predict", "Correct", "Fine-tune"]


def test_view_shows_the_same_layers(tmp_path: Path) -> None:
    grey = np.arange(105, dtype=np.uint8).reshape(3, 5, 7)
    like = Volume(grey, "image", (3.0, 2.0, 1.5))
    write_image(tmp_path / "image.tif", grey, like)
    write_labels(tmp_path / "labels.tif", grey % 3, ClassSet(("background", "vessel", "cell")), like)
    scene = open_scene(tmp_path / "image.tif", tmp_path / "labels.tif")
    viewer = ViewerModel()
    add_layers(viewer, scene)
    image, labels = viewer.layers
    np.testing.assert_array_equal(image.data, scene.image.data)
    np.testing.assert_array_equal(labels.data, scene.layers[0].data)
    assert tuple(image.contrast_limits) == scene.contrast
    for layer in (image, labels):
        np.testing.assert_allclose(layer.scale, (3, 2, 1.5))
        assert {f"{unit:~}" for unit in layer.units} == {"µm"}
    for i, colour in scene.layers[0].colours.items():
        np.testing.assert_allclose(labels.get_color(i)[:3], np.array(colour) / 255, atol=1e-6)
    assert labels.get_color(0) is None or labels.get_color(0)[3] == 0
    assert list(labels.features["class"]) == ["vessel", "cell"]
    assert find_classes(labels) == scene.layers[0].classes
    assert open_layer(image).voxel_size_um == (3, 2, 1.5)


def test_view_shows_a_large_volume_by_its_levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finest = np.arange(4 * 32 * 48).reshape(4, 32, 48).astype(np.uint8)
    levels = [finest, finest[::2, ::2, ::2]]
    group = zarr.open_group(tmp_path / "image.zarr", mode="w", zarr_format=3)
    for number, voxels in enumerate(levels):
        group.create_array(str(number), data=voxels, chunks=(1, 8, 8))
    multiscale = describe_multiscale("image", (3.0, 2.0, 1.5), (0, 0, 0), {"0": (1, 1, 1), "1": (2, 2, 2)})
    group.update_attributes({"ome": {"version": "0.5", "multiscales": [multiscale]}})
    scene = open_scene(tmp_path / "image.zarr")
    assert isinstance(scene.image.data, np.ndarray)  # as small as it is
    monkeypatch.setattr("neurotome.viewing.scene.HELD_BYTES", 1000)
    scene = open_scene(tmp_path / "image.zarr")
    places = []
    read = LazyArray._read_place
    monkeypatch.setattr(LazyArray, "_read_place", lambda array, place: [places.append(place), read(array, place)][1])
    viewer = ViewerModel()
    add_layers(viewer, scene)
    assert {part.stop - part.start for place in places for part in place} == {0, 1, 8}  # nothing, or a chunk
    (image,) = viewer.layers
    for found, expected in zip(image.data, levels, strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(image.scale, (3, 2, 1.5))
    np.testing.assert_array_equal(open_layer(image).data[1:3, 5:9], finest[1:3, 5:9])  # what the panels work on
