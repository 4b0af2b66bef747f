"""Crops: what is cut out, what a correction may replace, and how crops become a dataset that training reads."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

import neurotome
from conftest import run
from neurotome.annotating.crop import CropSettings, cut_out, place_window
from neurotome.annotating.crop_folder import read_crop, save_labels
from neurotome.classes import ClassSet
from neurotome.datasets import open_dataset
from neurotome.errors import DatasetError, ImageError, RunError, SettingsError
from neurotome.io import read_image, read_labels, write_image, write_labels
from neurotome.volume import Volume

CLASSES = ClassSet(("background", "vessel", "cell"))


def make_volume() -> tuple[np.ndarray, np.ndarray]:
    """Grey values and labels (4, 10, 12) of which every voxel is another."""
    grey = np.arange(480, dtype=np.uint16).reshape(4, 10, 12)
    return grey, (grey % 3).astype(np.uint8)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    grey, labels = make_volume()
    like = Volume(grey, "brain", (3.0, 2.0, 1.5))
    write_image(tmp_path / "brain.tif", grey, like)
    write_labels(tmp_path / "found.tif", labels, CLASSES, like)
    return tmp_path / "brain.tif", tmp_path / "found.tif"


def cut(folder: Path, name: str = "one", **settings: object) -> Path:
    grey, labels = make_volume()
    asked = CropSettings(**{"at": (1, 5, 6), "size": (1, 4, 6), "name": name, **settings})
    return cut_out(Volume(grey, "brain", (3.0, 2.0, 1.5)), labels, CLASSES, folder, asked)


@pytest.mark.parametrize(
    ("at", "size", "starts", "stops"),
    [
        ((), (1, 4, 6), (2, 3, 3), (3, 7, 9)),
        ((0, 0, 0), (1, 4, 6), (0, 0, 0), (1, 4, 6)),
        ((3, 9, 11), (2, 4, 6), (2, 6, 6), (4, 10, 12)),
        ((1, 5, 6), (9, 99, 3), (0, 0, 5), (4, 10, 8)),
    ],
)
def test_a_window_stays_in_the_image(at: tuple, size: tuple, starts: tuple, stops: tuple) -> None:
    window = place_window((4, 10, 12), at, size)
    assert tuple(part.start for part in window) == starts
    assert tuple(part.stop for part in window) == stops


def test_a_crop_from_files(files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, labels = files
    assert run("crop", image, labels, "--at", 2, 5, 6, "--size", 1, 4, 6, "--context", 1, "--out", tmp_path / "crops") == 0
    folder = tmp_path / "crops/brain_z0002_y3_x3"
    assert capsys.readouterr().out == f"{folder}\n"
    crop = read_crop(folder)
    grey, stored = make_volume()
    np.testing.assert_array_equal(crop.image.data, grey[1:4, 3:7, 3:9])
    np.testing.assert_array_equal(crop.labels[1], stored[2, 3:7, 3:9])
    assert (crop.labels[[0, 2]] == 255).all()
    assert crop.image.voxel_size_um == (3, 2, 1.5)
    assert crop.image.origin_zyx == (1, 3, 3)
    assert (crop.classes, crop.source) == (CLASSES, "brain")
    assert run("crop", image, labels, "--at", 2, 5, 6, "--size", 1, 4, 6, "--out", tmp_path / "crops") == 1
    assert "is there already, and may hold corrections" in capsys.readouterr().err


def test_a_crop_without_labels_needs_the_classes(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nothing says what ids mean"):
        neurotome.crop(files[0], out=tmp_path / "crops")
    folder = neurotome.crop(files[0], out=tmp_path / "crops", classes=("background", "cell"), invert=True)
    crop = read_crop(folder)
    assert (crop.labels == 255).all()
    np.testing.assert_array_equal(crop.image.data, 479 - make_volume()[0][2:3])


def test_what_cannot_be_cut_out(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"at is 9 0 0; expected a voxel of the image"):
        neurotome.crop(*files, out=tmp_path / "crops", at=(9, 0, 0))
    with pytest.raises(SettingsError, match=r"name is '\.\./x'"):
        CropSettings(name="../x")
    with pytest.raises(SettingsError, match="size is 0 4 4"):
        CropSettings(size=(0, 4, 4))
    with pytest.raises(RunError, match="would overwrite the input"):
        neurotome.crop(*files, out=files[0])
    write_labels(tmp_path / "small.tif", np.zeros((4, 9, 12), np.uint8), CLASSES)
    with pytest.raises(ImageError, match=r"the image has \(4, 10, 12\) voxels"):
        neurotome.crop(files[0], tmp_path / "small.tif", out=tmp_path / "crops")
    assert not (tmp_path / "crops").exists()


def test_a_correction_is_saved_and_never_replaces_that_of_another(tmp_path: Path) -> None:
    folder = cut(tmp_path)
    mine, theirs = read_crop(folder), read_crop(folder)
    corrected = mine.labels.copy()
    corrected[0, 0] = (2, 2, 255, 2, 2, 2)
    mine = save_labels(mine, corrected.astype(np.int64))
    np.testing.assert_array_equal(read_crop(folder).labels, corrected)
    with pytest.raises(RunError, match="was changed by somebody else"):
        save_labels(theirs, np.zeros_like(corrected))
    np.testing.assert_array_equal(read_crop(folder).labels, corrected)
    save_labels(mine, np.ones_like(corrected))
    assert (read_labels(folder / "labels.zarr") == 1).all()


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (np.full((1, 4, 6), 7, np.uint8), DatasetError, r"7 \(24 pixels\)"),
        (np.zeros((1, 4, 5), np.uint8), ImageError, r"shape \(1, 4, 5\); expected that of the crop"),
    ],
)
def test_labels_that_are_none_of_the_crop(tmp_path: Path, labels: np.ndarray, error: type, message: str) -> None:
    crop = read_crop(cut(tmp_path))
    with pytest.raises(error, match=message):
        save_labels(crop, labels)
    np.testing.assert_array_equal(read_crop(crop.folder).labels, crop.labels)


def test_a_folder_that_is_no_crop(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no crop\.json"):
        read_crop(tmp_path)
    folder = cut(tmp_path)
    (folder / "crop.json").write_text('{"format": "neurotome crop 1", "origin_zyx": [0, 0]}')
    with pytest.raises(RunError, match=r"no description of a crop"):
        read_crop(folder)


@pytest.mark.filterwarnings("ignore:.*are as they were cut out")
def test_crops_become_a_dataset(tmp_path: Path) -> None:
    data = tmp_path / "data"
    first = cut(tmp_path / "crops", "one")
    assert neurotome.collect(first, out=data) == data
    second = cut(tmp_path / "crops", "two", at=(3, 5, 6))
    assert run("collect", tmp_path / "crops", "--out", data) == 0  # the first is there already
    dataset = open_dataset(data)
    found = {cutout.name: cutout for cutout in dataset.split("train")}
    assert sorted(found) == ["one", "two"]
    assert dataset.classes == CLASSES
    assert dataset.voxel_size_um == (3, 2, 1.5)
    assert dataset.groups == {"one": "brain", "two": "brain"}
    for folder in (first, second):
        crop, cutout = read_crop(folder), found[folder.name]
        np.testing.assert_array_equal(cutout.volume.data, crop.image.data)
        np.testing.assert_array_equal(cutout.labels, crop.labels)


@pytest.mark.filterwarnings("ignore:.*are as they were cut out")
def test_nothing_in_a_dataset_is_replaced(tmp_path: Path) -> None:
    data, folder = tmp_path / "data", cut(tmp_path / "crops")
    neurotome.collect(folder, out=data)
    (data / "labels/one.tif").unlink()  # as if killed between the two
    neurotome.collect(folder, out=data)
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    crop = read_crop(folder)
    save_labels(crop, np.ones_like(crop.labels))
    with pytest.raises(RunError, match=r"one\.tif: is there already and holds something else"):
        neurotome.collect(folder, out=data)
    assert before == {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}


def test_a_crop_without_any_label_is_refused_and_an_uncorrected_one_noted(tmp_path: Path) -> None:
    folder = cut(tmp_path / "crops")
    with pytest.warns(UserWarning, match="its labels are as they were cut out"):
        neurotome.collect(folder, out=tmp_path / "data")
    crop = read_crop(folder)
    save_labels(crop, np.full_like(crop.labels, 255))
    with pytest.raises(RunError, match="nothing in it is labelled"):
        neurotome.collect(folder, out=tmp_path / "other")
    with pytest.raises(RunError, match="no crop, nor a folder of crops"):
        neurotome.collect(tmp_path, out=tmp_path / "other")


WRITTEN = {
    "block": "# mine\nclasses: {0: background, 1: vessel, 2: cell}\nsplits:\n  train:\n  - a  # first\n  val: [b]\n",
    "flow": "classes: [background, vessel, cell]\nsplits: {train: [a, {id: b, y: [0, 5]}]} # all\ngroups: {a: A, b: B}\n",
    "groups": "splits:\n    train:\n        - a\ngroups:\n    a: A  # left\nclasses: [background, vessel, cell]\n",
}


@pytest.mark.filterwarnings("ignore:.*are as they were cut out")
@pytest.mark.parametrize("text", WRITTEN.values(), ids=WRITTEN)
def test_what_somebody_wrote_in_dataset_yaml_stays(tmp_path: Path, text: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "dataset.yaml").write_text(text)
    neurotome.collect(cut(tmp_path / "crops"), out=data)
    found = (data / "dataset.yaml").read_text()
    before, after = yaml.safe_load(text), yaml.safe_load(found)
    before["splits"]["train"].insert(0, "one")
    if "groups" in before:
        before["groups"]["one"] = "brain"
    assert after == before
    assert [comment for comment in re.findall("#.*", text) if comment not in found] == []
    neurotome.collect(tmp_path / "crops", out=data)
    assert (data / "dataset.yaml").read_text() == found


@pytest.mark.filterwarnings("ignore:.*are as they were cut out")
def test_a_dataset_whose_splits_were_made(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "dataset.yaml").write_text("classes: [background, vessel, cell]\n")
    neurotome.collect(cut(tmp_path / "crops"), out=data)
    assert (data / "dataset.yaml").read_text() == "classes: [background, vessel, cell]\n"
    (data / "splits.yaml").write_text("train: [a]\n")
    neurotome.collect(tmp_path / "crops", out=data)
    assert yaml.safe_load((data / "splits.yaml").read_text()) == {"train": ["one", "a"]}


@pytest.mark.filterwarnings("ignore:.*are as they were cut out")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: [background, cell]\n", "its classes are background, vessel, cell, and those of"),
        ("classes: [background, vessel, cell]\nvoxel_size_um: [3, 2, 2]\n", "its voxels have"),
        ("classes: [background, vessel, cell]\nsplits: {val: [a]}\n", "no list splits / train"),
    ],
)
def test_a_dataset_that_a_crop_does_not_fit(tmp_path: Path, text: str, message: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "dataset.yaml").write_text(text)
    with pytest.raises(DatasetError, match=message):
        neurotome.collect(cut(tmp_path / "crops"), out=data)
    assert [path.name for path in data.iterdir()] == ["dataset.yaml"]
    assert (data / "dataset.yaml").read_text() == text


@pytest.mark.filterwarnings("ignore:.*are as they were cut out")
def test_labels_that_count_from_one_become_those_of_the_dataset(tmp_path: Path) -> None:
    grey, labels = make_volume()
    classes = ClassSet(("background", "vessel"), first_id=1)
    folder = cut_out(Volume(grey, "brain"), labels, classes, tmp_path, CropSettings(name="one"))
    data = tmp_path / "data"
    data.mkdir()
    (data / "dataset.yaml").write_text("classes: [background, vessel]\nignore: 9\nsplits: {train: [a]}\n")
    neurotome.collect(folder, out=data)
    expected = np.array([9, 0, 1])[labels[2:3]]
    np.testing.assert_array_equal(read_labels(data / "labels/one.tif"), expected)
    np.testing.assert_array_equal(read_image(data / "images/one.tif").data, grey[2:3])
