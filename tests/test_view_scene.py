"""What is shown of which files: layers, colours, contrast, voxel sizes, and one message for what cannot be."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from conftest import QUICK, make_images, run, write_dataset
from neurotome.classes import OKABE_ITO, ClassSet
from neurotome.errors import ImageError, RunError
from neurotome.io import write_image, write_labels
from neurotome.viewing import scene as scenes
from neurotome.viewing.scene import open_scene
from neurotome.volume import Volume

CLASSES = ClassSet(("background", "vessel", "cell"))


def write_volume(folder, suffix="tif", classes=CLASSES, dtype=np.uint8):
    """An image and labels (3, 5, 7) of which every voxel is another, with a voxel size."""
    grey = np.arange(105).reshape(3, 5, 7).astype(dtype)
    labels = (grey % 3).astype(np.uint8)
    like = Volume(grey, "v", (3.0, 2.0, 1.5))
    write_image(folder / f"image.{suffix}", grey, like)
    write_labels(folder / f"found.{suffix}", labels, classes, like)
    return folder / f"image.{suffix}", folder / f"found.{suffix}", grey, labels


def test_a_dataset_says_classes_and_voxel_size(tmp_path):
    data = write_dataset(tmp_path / "data")
    with (data / "dataset.yaml").open("a") as file:
        file.write("voxel_size_um: [2, 1.5, 1]\n")
    scene = open_scene(data / "images" / "a.png", data / "labels" / "a.png")
    (layer,) = scene.layers
    assert layer.names == {1: "vessel", 2: "cell"}
    assert layer.colours == {1: OKABE_ITO[0], 2: OKABE_ITO[1]}
    assert scene.size_um == (2, 1.5, 1)
    np.testing.assert_array_equal(layer.data[0], make_images(0)[1])
    np.testing.assert_array_equal(scene.image.data[0], make_images(0)[0])
    low, high = np.percentile(make_images(0)[0], (0.5, 99.5))
    assert low - 1 < scene.contrast[0] <= low < high <= scene.contrast[1] < high + 1


def test_stored_ids_that_begin_with_1(tmp_path):
    image, labels, _, _ = write_volume(tmp_path, classes=ClassSet(("vessel", "cell"), first_id=1))
    (layer,) = open_scene(image, labels).layers
    assert layer.names == {1: "vessel", 2: "cell"}
    assert layer.colours == {1: OKABE_ITO[0], 2: OKABE_ITO[1]}


def test_the_image_says_the_voxel_size_and_a_statement_wins(tmp_path):
    image, labels, _, _ = write_volume(tmp_path)
    assert open_scene(image, labels).size_um == pytest.approx((3, 2, 1.5))
    with pytest.warns(UserWarning, match=r"found\.tif: voxels of 3 x 2 x 1\.5 um.*the image's are 9 x 9 x 9 um"):
        assert open_scene(image, labels, size_um=(9, 9, 9)).size_um == (9, 9, 9)
    Image.fromarray(make_images(0)[0]).save(tmp_path / "bare.png")
    with pytest.warns(UserWarning, match=r"bare\.png: the voxel size is not known.*--voxel-size-um"):
        assert open_scene(tmp_path / "bare.png").size_um is None


def test_labels_that_say_nothing(tmp_path):
    image, _, _, labels = write_volume(tmp_path)
    np.save(tmp_path / "bytes.npy", labels)
    np.save(tmp_path / "objects.npy", labels.astype(np.int32) * 1000)
    with pytest.warns(UserWarning, match=r"do not say what their ids mean.*--classes"):
        layers = open_scene(image, None, [tmp_path / "bytes.npy", tmp_path / "objects.npy"]).layers
    assert [layer.name for layer in layers] == ["bytes", "objects"]
    assert layers[0].colours[1] == layers[0].colours[8] == OKABE_ITO[0]
    assert {0, 255}.isdisjoint(layers[0].colours)
    assert layers[1].colours == layers[1].names == {}
    (layer,) = open_scene(image, tmp_path / "bytes.npy", classes=("none", "tube", "ball")).layers
    assert layer.names == {1: "tube", 2: "ball"}


def test_layers_of_one_name_are_told_apart(tmp_path):
    image, labels, _, _ = write_volume(tmp_path)
    layers = open_scene(image, labels, [labels, labels]).layers
    assert [layer.name for layer in layers] == ["labels", "found", "found (2)"]


def test_ids_that_are_no_classes_are_said(tmp_path):
    image, _, _, labels = write_volume(tmp_path)
    labels[0, 0, :2], labels[1, 1, 1] = 7, 255
    tifffile.imwrite(tmp_path / "odd.tif", labels, photometric="minisblack")
    with pytest.warns(UserWarning, match=r"odd\.tif: found 7; expected 0\.\.2.*not shown"):
        open_scene(image, tmp_path / "odd.tif", classes=("background", "vessel", "cell"))


def test_labels_of_another_shape_are_refused(tmp_path):
    image, _, _, labels = write_volume(tmp_path)
    write_labels(tmp_path / "cut.tif", labels[:2], CLASSES)
    with pytest.raises(ImageError, match=r"cut\.tif.*\(2, 5, 7\).*image\.tif has \(3, 5, 7\)"):
        open_scene(image, tmp_path / "cut.tif")


def test_contrast_of_float_images_is_not_rounded(tmp_path):
    grey = np.linspace(0, 1, 200, dtype=np.float32).reshape(1, 10, 20)
    np.save(tmp_path / "f.npy", grey)
    scene = open_scene(tmp_path / "f.npy", size_um=(1, 1, 1))
    assert scene.contrast == pytest.approx(np.percentile(grey, (0.5, 99.5)))


def test_large_volumes_stay_in_their_files(tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "HELD_BYTES", 0)
    image, labels, grey, _ = write_volume(tmp_path, suffix="zarr")
    scene = open_scene(image, labels)
    assert not isinstance(scene.image.data, np.ndarray)
    assert not isinstance(scene.layers[0].data, np.ndarray)
    np.testing.assert_array_equal(scene.image.data[1:], grey[1:])


@pytest.mark.slow
def test_a_run_shows_what_it_has_predicted(tmp_path):
    data = write_dataset(tmp_path / "data")
    assert run("train", data, "--out", tmp_path / "first", *QUICK) == 0
    scene = open_scene(data / "images" / "d.png", data / "labels" / "d.png", [tmp_path / "first"], size_um=(1, 1, 1))
    assert [layer.name for layer in scene.layers] == ["labels", "first"]
    assert scene.layers[1].names == {1: "vessel", 2: "cell"}
    with Image.open(tmp_path / "first" / "predictions" / "test" / "d.png") as stored:
        np.testing.assert_array_equal(scene.layers[1].data[0], np.asarray(stored))
    Image.fromarray(make_images(9)[0]).save(tmp_path / "other.png")
    with pytest.raises(RunError, match=r"first: found no image other in its predictions.*neurotome predict"):
        open_scene(tmp_path / "other.png", None, [tmp_path / "first"], size_um=(1, 1, 1))
