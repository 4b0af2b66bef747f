"""What panels make of layers, without napari: layers are anything with napari's attributes."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from neurotome.classes import ClassSet
from neurotome.cli import make_app
from neurotome.errors import ImageError, SettingsError
from neurotome.inference.predict import predict_probs
from neurotome.inference.predict_settings import PredictSettings
from neurotome.io import write_labels
from neurotome.io.lazy_array import LazyArray
from neurotome.napari.commands import write_command
from neurotome.napari.layers import (
    find_box,
    find_classes,
    find_middle,
    find_size,
    name_file,
    open_layer,
    read_data,
    read_size,
    read_triple,
)
from neurotome.napari.predicting import StoppedError, label_volume
from neurotome.volume import Volume

GREY = np.arange(4 * 20 * 30, dtype=np.uint16).reshape(4, 20, 30)


def make_layer(data: Any = GREY, **given: Any) -> SimpleNamespace:
    axes = data[0].ndim if isinstance(data, list) else data.ndim
    scale = np.array((2.0, 0.5, 0.5)[-axes:] if axes <= 3 else (1,) * (axes - 3) + (2.0, 0.5, 0.5))
    usual = {
        "name": "brain",
        "data": data,
        "multiscale": False,
        "rgb": False,
        "scale": scale,
        "units": ["micrometer"] * axes,
        "metadata": {},
        "source": SimpleNamespace(path=None),
        "world_to_data": lambda world: np.asarray(world) / scale,
    }
    return SimpleNamespace(**{**usual, **given})


class OnDisk:
    """An array that is no numpy array and remembers what was read."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.shape, self.ndim, self.dtype, self.read = data, data.shape, data.ndim, data.dtype, []

    def __getitem__(self, index: Any) -> np.ndarray:
        self.read.append(index)
        return self.data[index]


def test_an_image_layer_is_a_volume() -> None:
    volume = open_layer(make_layer())
    assert (volume.name, volume.voxel_size_um) == ("brain", (2, 0.5, 0.5))
    assert volume.data is GREY or np.shares_memory(volume.data, GREY)
    flat = open_layer(make_layer(GREY[0]))
    assert flat.shape == (1, 20, 30)
    assert flat.voxel_size_um == (0.5, 0.5, 0.5)
    assert open_layer(make_layer([GREY, GREY[:, ::2, ::2]], multiscale=True)).shape == GREY.shape
    assert open_layer(make_layer(GREY.astype(np.int16))).data.dtype == np.float32
    assert open_layer(make_layer(), (1, 2, 3)).voxel_size_um == (1, 2, 3)


def test_an_array_on_a_disk_is_read_where_it_is_asked_for() -> None:
    data = OnDisk(GREY[None, None])
    lazy = read_data(make_layer(data))
    assert isinstance(lazy, LazyArray)
    assert data.read == []
    np.testing.assert_array_equal(lazy[1:3, 5, 2:9], GREY[1:3, 5, 2:9])
    assert data.read == [(0, 0, slice(1, 3), slice(5, 6), slice(2, 9))]
    np.testing.assert_array_equal(read_data(make_layer(OnDisk(GREY[2])))[0], GREY[2])


@pytest.mark.parametrize(
    ("data", "given", "message"),
    [
        (GREY, {"rgb": True}, "has colours"),
        (np.zeros((20, 30, 3), np.uint8), {}, "has colours"),
        (np.zeros((2, 4, 20, 30), np.uint8), {}, r"has the shape \(2, 4, 20, 30\)"),
        (np.zeros((20, 30)), {}, "dtype float64"),
        (np.zeros((20, 30), np.uint8), {}, "every pixel is 0"),
    ],
)
def test_a_layer_that_is_no_grey_image(data: np.ndarray, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        open_layer(make_layer(data, **given))


def test_voxel_sizes_are_known_where_a_layer_has_units_of_length() -> None:
    assert find_size(make_layer(units=["nanometer"] * 3)) == pytest.approx((0.002, 0.0005, 0.0005))
    assert find_size(make_layer(units=["millimeter"] * 3)) == (2000, 500, 500)
    assert find_size(make_layer(units=["pixel"] * 3)) is None
    assert read_size("") is None
    assert read_size(" 1.17 ") == (1.17, 1.17, 1.17)
    assert read_size("3, 2 x 1.5") == (3, 2, 1.5)
    for text in ("wide", "1 2", "-1"):
        with pytest.raises(SettingsError, match="voxel"):
            read_size(text)
    assert read_triple("1 x 128 x 64", "size") == (1, 128, 64)
    with pytest.raises(SettingsError, match="size is '128 128'; expected three whole numbers"):
        read_triple("128 128", "size")


def test_classes_come_from_the_layer_or_its_file_or_are_named(tmp_path: Path) -> None:
    classes = ClassSet(("background", "cell"), ignore=9)
    assert find_classes(make_layer(metadata={"neurotome": {"classes": classes.to_json()}})) == classes
    path = tmp_path / "labels.tif"
    write_labels(path, np.zeros((4, 4), np.uint8), ClassSet(("background", "vessel")))
    assert find_classes(make_layer(source=SimpleNamespace(path=str(path)))).names == ("background", "vessel")
    assert find_classes(make_layer(), ["air", "cell"]).names == ("air", "cell")
    assert find_classes(None, ["air", "cell"]).names == ("air", "cell")
    for layer in (make_layer(), None):
        with pytest.raises(SettingsError, match="Name"):
            find_classes(layer)


def test_where_one_looks_is_a_voxel() -> None:
    dims = SimpleNamespace(point=(4.0, 1.0, 1.0), ndisplay=2, displayed=(1, 2))
    viewer = SimpleNamespace(dims=dims, camera=SimpleNamespace(center=(0.0, 5.0, 10.0)))
    assert find_middle(viewer, make_layer()) == (2, 10, 20)
    viewer.camera.center = (0.0, 500.0, -3.0)
    assert find_middle(viewer, make_layer()) == (2, 19, 0)
    flat = SimpleNamespace(point=(5.0, 10.0), ndisplay=2, displayed=(0, 1))
    viewer = SimpleNamespace(dims=flat, camera=SimpleNamespace(center=(0.0, 5.0, 10.0)))
    assert find_middle(viewer, make_layer(GREY[0])) == (0, 10, 20)


def test_the_box_around_a_shape() -> None:
    corners = [np.array([[1, 2, 4], [1, 2, 10], [1, 12, 10], [1, 12, 4]]), np.array([[3, 0, 0], [3, 2, 2]])]
    shapes = SimpleNamespace(name="shapes", data=corners, selected_data={0}, data_to_world=lambda place: place * 0.5)
    assert find_box(shapes, make_layer(scale=np.full(3, 0.5), world_to_data=lambda world: world / 0.5)) == (
        (1, 7, 7),
        (10, 6),
    )
    shapes.selected_data = set()
    assert find_box(shapes, make_layer(scale=np.full(3, 0.5), world_to_data=lambda world: world / 0.5)) == (
        (3, 1, 1),
        (2, 2),
    )
    shapes.data = []
    with pytest.raises(SettingsError, match="holds no shape"):
        find_box(shapes, make_layer())


def test_a_layers_name_as_that_of_a_file() -> None:
    assert name_file("a/b: c [1]") == "a_b_ c _1_"
    assert name_file("..") == "layer"


def test_commands_are_as_one_types_them() -> None:
    text = write_command("predict", "microct-base", Path("my scan.tif"), None, invert=True, confidence=False, tile=64.0)
    assert text == "neurotome predict microct-base 'my scan.tif' --invert --tile 64"
    text = write_command("crop", "a.tif", None, at=(1, 2, 3), classes=("air", "blood vessel"), name="", out=Path("crops"))
    assert text == "neurotome crop a.tif --at 1 2 3 --classes air 'blood vessel' --out crops"
    make_app().parse_args(shlex.split(text)[1:], exit_on_error=False, print_error=False)


def test_a_volume_is_labelled_as_predict_does_and_can_be_stopped() -> None:
    rng = np.random.default_rng(0)
    volume = Volume(rng.integers(60, 140, (2, 64, 64), np.uint8), "v", (1.17,) * 3)
    settings = PredictSettings(confidence=True, device="cpu")
    said: list[tuple[float, str]] = []
    found = label_volume("microct-base-3", volume, settings, lambda share, text: said.append((share, text)))
    probs = predict_probs("microct-base-3", volume.data, settings=PredictSettings(device="cpu", voxel_size_um=1.17))
    np.testing.assert_array_equal(found.labels, probs.argmax(0))
    np.testing.assert_array_equal(found.confidence, (probs.max(0) * 255).round())
    assert found.classes.names == ("background", "blood vessel", "cell", "axon")
    assert said[0] == (0.0, "loading the model")
    assert said[-1] == (1.0, "slice 2 of 2")
    assert [share for share, _ in said] == sorted(share for share, _ in said)

    def refuse(share: float, text: str) -> None:
        if text == "slice 2 of 2":
            raise StoppedError

    with pytest.raises(StoppedError):
        label_volume("microct-base-3", volume, settings, refuse)
