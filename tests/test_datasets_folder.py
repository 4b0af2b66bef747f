"""The folder dataset: what dataset.yaml says is opened, and every contradiction is an error that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from neurotome.datasets import open_dataset
from neurotome.datasets.base import Dataset
from neurotome.datasets.folder import open_folder
from neurotome.errors import DatasetError, ImageError, NeurotomeError
from neurotome.io.images import write_image, write_labels

GREY = np.arange(8 * 5 * 6, dtype=np.uint8).reshape(8, 5, 6)
LABELS = (GREY % 3).astype(np.uint8)

CONFIG: dict[str, Any] = {
    "name": "toy",
    "classes": {0: "background", 1: "cell", 2: "axon"},
    "ignore": 255,
    "voxel_size_um": [3, 2, 1],
    "splits": {"test": ["flat"], "train": ["stack"]},
    "licence": "MIT",
    "citation": "Toy (2024)",
    "source": "made by hand",
}


def write_config(folder: Path, **changes: Any) -> None:
    content = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_image(tmp_path / "images" / "stack.tif", GREY)
    write_labels(tmp_path / "labels" / "stack.npy", LABELS)
    write_image(tmp_path / "images" / "flat.png", GREY[0])
    write_labels(tmp_path / "labels" / "flat.png", LABELS[0])
    write_image(tmp_path / "images" / "not_listed.png", GREY[0])
    write_labels(tmp_path / "labels" / "without_image.png", LABELS[0])
    write_config(tmp_path)
    return tmp_path


def test_opens_what_is_listed(folder: Path) -> None:
    dataset = open_dataset(folder)
    assert (dataset.name, dataset.licence, dataset.citation) == ("toy", "MIT", "Toy (2024)")
    assert dataset.classes.names == ("background", "cell", "axon")
    assert list(dataset.splits) == ["train", "test"]
    assert dataset.voxel_size_um == (3.0, 2.0, 1.0)
    (stack,) = dataset.split("train")
    assert (stack.name, stack.volume.origin_zyx) == ("stack", (0, 0, 0))
    np.testing.assert_array_equal(stack.volume.data, GREY)
    np.testing.assert_array_equal(stack.labels, LABELS)
    (flat,) = dataset.split("test")
    assert flat.volume.shape == flat.labels.shape == (1, 5, 6)


def test_optional_keys_may_be_absent(folder: Path) -> None:
    absent = dict.fromkeys(("name", "ignore", "voxel_size_um", "licence", "citation", "source"))
    write_config(folder, **absent)
    dataset = open_folder(str(folder))
    assert (dataset.name, dataset.voxel_size_um, dataset.classes.ignore) == (folder.name, None, 255)


def test_ranges_are_views_of_one_reading(folder: Path) -> None:
    splits = {"train": [{"id": "stack", "z": [0, 5]}], "val": [{"id": "stack", "z": [6, 8]}]}
    write_config(folder, splits=splits)
    dataset = open_dataset(folder)
    train, val = dataset.split("train")[0], dataset.split("val")[0]
    assert (train.name, val.name) == ("stack_z0-5", "stack_z6-8")
    assert (train.volume.origin_zyx, val.volume.origin_zyx) == ((0, 0, 0), (6, 0, 0))
    np.testing.assert_array_equal(val.volume.data, GREY[6:8])
    np.testing.assert_array_equal(val.labels, LABELS[6:8])
    assert np.shares_memory(train.labels.base, val.labels.base)


def test_ignored_pixels_are_allowed(folder: Path) -> None:
    labels = LABELS.copy()
    labels[0] = 255
    write_labels(folder / "labels" / "stack.npy", labels)
    assert open_dataset(folder).split("train")[0].labels[0, 0, 0] == 255


def test_an_open_dataset_is_returned(folder: Path) -> None:
    dataset = open_dataset(folder)
    assert open_dataset(dataset) is dataset


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splitz": {}}, "unknown key 'splitz'. Did you mean 'splits'?"),
        ({"classes": None}, "classes is missing or empty"),
        ({"classes": ["a", "b"]}, "classes is ['a', 'b']"),
        ({"classes": {0: "a", 2: "b"}}, "without a gap"),
        ({"classes": {0: "a", 1: True}}, "class name True is not text"),
        ({"classes": {0: "a", 1: "a"}}, "must differ"),
        ({"ignore": 1}, "ignore value 1"),
        ({"ignore": "none"}, "ignore is 'none'"),
        ({"name": 2022}, "name is 2022; expected text"),
        ({"voxel_size_um": 1.17}, "voxel_size_um is 1.17"),
        ({"voxel_size_um": [1, 1]}, "three positive numbers"),
        ({"voxel_size_um": [1, 1, 0]}, "three positive numbers"),
        ({"voxel_size_um": [1, 1, float("nan")]}, "three positive numbers"),
        ({"splits": None}, "splits is missing or empty"),
        ({"splits": {}}, "splits is missing or empty"),
        ({"splits": {"training": ["stack"]}}, "unknown split 'training'. Did you mean 'train'?"),
        ({"splits": {"train": []}}, "split train is missing or empty"),
        ({"splits": {"train": "stack"}}, "split train is 'stack'"),
        ({"splits": {"train": [1]}}, "id 1 is not text. Put it in quotes."),
        ({"splits": {"train": ["../stack"]}}, "'../stack' is no plain file name"),
        ({"splits": {"train": [".."]}}, "'..' is no plain file name"),
        ({"splits": {"train": ["a\\b"]}}, "is no plain file name"),
        ({"splits": {"train": [{"id": "stack"}]}}, "expected {id: name, z: [start, stop]}"),
        ({"splits": {"train": [{"id": "stack", "z": [3, 3]}]}}, "0 <= start < stop"),
        ({"splits": {"train": [{"id": "stack", "z": [0, True]}]}}, "0 <= start < stop"),
        ({"splits": {"train": [{"id": "stack", "z": [0, 9]}]}}, "slices 0..9 of stack are asked for"),
        ({"splits": {"train": ["stack"], "val": ["stack"]}}, "what is trained on must not be scored"),
        ({"splits": {"train": ["stack"], "val": [{"id": "stack", "z": [7, 8]}]}}, "stack_z7-8"),
        (
            {"splits": {"train": [{"id": "stack", "z": [0, 5]}], "test": [{"id": "stack", "z": [4, 8]}]}},
            "slices of stack are in train (stack_z0-5) and in test (stack_z4-8)",
        ),
        ({"splits": {"train": ["flat", "flat"]}}, "split train lists slices of flat twice"),
    ],
)
def test_wrong_configurations_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    write_config(folder, **changes)
    with pytest.raises(DatasetError) as caught:
        open_dataset(folder)
    assert message in str(caught.value)
    assert str(folder / "dataset.yaml") in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found nothing"),
        ("- a\n- b\n", "found a list"),
        ("splits: [", "no valid YAML"),
        ("splits: {train: [a], train: [b]}", "key 'train' twice"),
        ("splits: !!python/object/apply:os.getcwd []", "no valid YAML"),
    ],
)
def test_wrong_yaml_is_refused(folder: Path, text: str, message: str) -> None:
    (folder / "dataset.yaml").write_text(text)
    with pytest.raises(DatasetError) as caught:
        open_dataset(folder)
    assert message in str(caught.value)


def test_yaml_that_is_not_text_is_refused(folder: Path) -> None:
    (folder / "dataset.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(DatasetError, match="no valid YAML"):
        open_dataset(folder)


def test_wrong_files_are_refused_by_name(folder: Path) -> None:
    labels = folder / "labels" / "stack.npy"

    write_labels(labels, LABELS[:, :4])
    with pytest.raises(DatasetError, match=r"stack\.npy: labels have shape \(8, 4, 6\), the image .*stack\.tif"):
        open_dataset(folder)

    write_labels(labels, np.where(LABELS == 2, 7, LABELS))
    with pytest.raises(DatasetError, match=r"stack\.npy: label values outside the classes: 7 \(80 pixels\)"):
        open_dataset(folder)

    write_image(labels, GREY.astype(np.float32))
    with pytest.raises(ImageError, match=r"stack\.npy: labels have dtype float32"):
        open_dataset(folder)

    labels.unlink()
    with pytest.raises(ImageError, match=r"expected one file .*labels.stack with suffix"):
        open_dataset(folder)

    write_labels(labels, LABELS)
    write_labels(folder / "labels" / "stack.tif", LABELS)
    with pytest.raises(ImageError, match=r"stack\.npy, stack\.tif all exist"):
        open_dataset(folder)
    (folder / "labels" / "stack.tif").unlink()

    (folder / "images" / "stack.tif").unlink()
    with pytest.raises(ImageError, match=r"expected one file .*images.stack with suffix"):
        open_dataset(folder)


def test_wrong_places_are_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(DatasetError, match=r"has no dataset\.yaml \(found nothing\)"):
        open_dataset(empty)
    with pytest.raises(DatasetError, match="does not exist"):
        open_dataset(empty / "absent")
    with pytest.raises(DatasetError, match="is a file; give the folder"):
        open_dataset(folder / "dataset.yaml")
    with pytest.raises(DatasetError, match="unknown kind of dataset 'mtneurro'"):
        open_dataset("mtneurro:data")
    with pytest.raises(NeurotomeError, match="phantom"):
        open_dataset("phantom:7")


def test_a_folder_named_phantom_is_not_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.rename(folder.parent / "phantom")
    monkeypatch.chdir(folder.parent)
    with pytest.raises(DatasetError, match=r"Write \./phantom for the folder"):
        open_dataset("phantom")
    assert open_dataset("./phantom").split("train")


def test_phantom_is_opened_by_name() -> None:
    pytest.importorskip("neurotome.datasets.phantom")
    dataset = open_dataset("phantom")
    assert isinstance(dataset, Dataset)
    assert dataset.split("train")


@pytest.mark.parametrize(
    ("name", "images"),
    [("vnc_sstem", (10, 2, 2)), ("axon_sem", (5, 1, 2)), ("microct_patches", (3, 0, 1))],
)
def test_real_sets_open(name: str, images: tuple[int, ...]) -> None:
    path = Path(__file__).resolve().parents[2] / "shared" / "data" / name
    if not path.is_dir():
        pytest.skip("real images are not beside this checkout")
    dataset = open_dataset(path)
    assert tuple(len(dataset.splits.get(split, ())) for split in ("train", "val", "test")) == images
