"""The folder dataset: what dataset.yaml says is opened, and every contradiction is an error that names it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml

from neurotome.datasets import open_dataset
from neurotome.datasets.base import Dataset
from neurotome.datasets.folder import open_folder
from neurotome.errors import DatasetError, ImageError, NeurotomeError
from neurotome.io import create_labels, open_labels, write_image, write_labels
from neurotome.io.lazy_array import LazyArray

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
        ({"classes": []}, "classes is missing or empty"),
        ({"classes": "a, b"}, "classes is 'a, b'"),
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
        ({"splits": {}}, "splits is missing or empty"),
        ({"splits": {"training": ["stack"]}}, "unknown split 'training'. Did you mean 'train'?"),
        ({"splits": {"train": []}}, "split train is missing or empty"),
        ({"splits": {"train": "stack"}}, "split train is 'stack'"),
        ({"splits": {"train": [1]}}, "id 1 is no plain file name"),
        ({"splits": {"train": ["../stack"]}}, "'../stack' is no plain file name"),
        ({"splits": {"train": [".."]}}, "'..' is no plain file name"),
        ({"splits": {"train": ["a\\b"]}}, "is no plain file name"),
        ({"splits": {"train": [{"id": "stack"}]}}, "expected {id: name, z: [start, stop]}"),
        ({"splits": {"train": [{"z": [0, 1]}]}}, "expected {id: name, z: [start, stop]}"),
        ({"splits": {"train": [{"id": "stack", "c": [0, 1]}]}}, "expected {id: name, z: [start, stop]}"),
        ({"splits": {"train": [{"id": ["stack"], "z": [0, 1]}]}}, "id ['stack'] is no plain file name"),
        ({"splits": {"train": [{"id": "stack", "y": [0, 6]}]}}, "y 0..6 of stack is asked for"),
        ({"splits": {"train": [{"id": "stack", "x": [0, 7]}]}}, "x 0..7 of stack is asked for"),
        ({"splits": {"train": [{"id": "stack", "z": [3, 3]}]}}, "0 <= start < stop"),
        ({"splits": {"train": [{"id": "stack", "z": [0, True]}]}}, "0 <= start < stop"),
        ({"splits": {"train": [{"id": "stack", "z": [0, 9]}]}}, "z 0..9 of stack is asked for"),
        ({"splits": {"train": ["stack"], "val": ["stack"]}}, "what is trained on must not be scored"),
        ({"splits": {"train": ["stack"], "val": [{"id": "stack", "z": [7, 8]}]}}, "stack_z7-8"),
        (
            {"splits": {"train": [{"id": "stack", "z": [0, 5]}], "test": [{"id": "stack", "z": [4, 8]}]}},
            "pixels of stack are in train (stack_z0-5) and in test (stack_z4-8)",
        ),
        ({"splits": {"train": ["flat", "flat"]}}, "pixels of flat are in train (flat) and in train (flat)"),
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
        ("name: 2022-13-45", "no valid YAML"),
        ("name: 2022-12-05\nclasses: [a, b]", "name is datetime.date(2022, 12, 5); expected text"),
        ("name: !local x", "no valid YAML"),
        ("ignore: " + "9" * 5000, "no valid YAML"),
        ("ignore: 0x" + "f" * 5000, "no valid YAML"),
        ('name: "\\ud800"', "no valid YAML (text that is no Unicode"),
        ("? [a, b]\n: c", "no valid YAML"),
        ("? {a: b}\n: c", "no valid YAML"),
        ("1: c", "unknown key '1'"),
        ("null: c", "unknown key 'None'"),
        ("[" * 3000, "no valid YAML"),
        ("name: &a [*a]\nclasses: [a, b]", "no valid YAML (an alias of a list"),
        ("a: &a [x, x, x, x, x, x, x, x]\nname: [*a, *a]", "no valid YAML (an alias of a list"),
        ("classes: &c {0: a, 1: *c}", "no valid YAML (an alias"),
        ("classes: [a, b]\nsplits: {1: [stack]}", "unknown split '1'"),
        ("classes: [a, b]\nsplits: {train: {stack: 1}}", "split train is {'stack': 1}"),
        ("classes: [a, b]\nignore: .inf", "ignore is inf"),
        ("classes: [a, b]\nvoxel_size_um: [1, .inf, 1]", "three positive numbers"),
        ("classes: [a, b]\nsplits: {train: [2022-12-05]}", "in quotes where it is not text"),
    ],
)
def test_wrong_yaml_is_refused(folder: Path, text: str, message: str) -> None:
    (folder / "dataset.yaml").write_text(text)
    with pytest.raises(DatasetError) as caught:
        open_dataset(folder)
    assert message in str(caught.value)


def test_a_value_that_would_fill_the_message_is_shortened(folder: Path) -> None:
    (folder / "dataset.yaml").write_text(f"classes: [a, b]\nname: {[['x' * 1000] * 100] * 100}")
    with pytest.raises(DatasetError, match=r"name is \[\[.*\]; expected text") as caught:
        open_dataset(folder)
    assert len(str(caught.value)) < 10_000


def test_yaml_that_is_not_text_is_refused(folder: Path) -> None:
    (folder / "dataset.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(DatasetError, match="no valid YAML"):
        open_dataset(folder)


def test_parts_along_every_axis_are_cut(folder: Path) -> None:
    splits = {"train": [{"id": "stack", "y": [0, 3]}], "test": [{"id": "stack", "z": [2, 4], "y": [3, 5], "x": [1, 3]}]}
    write_config(folder, splits=splits)
    dataset = open_dataset(folder)
    train, test = dataset.split("train")[0], dataset.split("test")[0]
    assert (train.name, test.name) == ("stack_y0-3", "stack_z2-4_y3-5_x1-3")
    assert (train.volume.origin_zyx, test.volume.origin_zyx) == ((0, 0, 0), (2, 3, 1))
    np.testing.assert_array_equal(train.volume.data, GREY[:, :3])
    np.testing.assert_array_equal(test.volume.data, GREY[2:4, 3:5, 1:3])
    np.testing.assert_array_equal(test.labels, LABELS[2:4, 3:5, 1:3])
    write_config(folder, splits={**splits, "val": [{"id": "stack", "x": [2, 3]}]})
    with pytest.raises(DatasetError, match=r"are in train .stack_y0-3. and in val .stack_x2-3."):
        open_dataset(folder)


def test_files_are_found_whatever_their_suffix_and_unicode_form(folder: Path) -> None:
    (folder / "images" / "stack.tif").rename(folder / "images" / "\u00e9chelle.TIF")
    (folder / "labels" / "stack.npy").rename(folder / "labels" / "e\u0301chelle.NPY")
    (folder / "images" / "._\u00e9chelle.tif").write_bytes(b"Mac OS X")
    for name in ("\u00e9chelle", "e\u0301chelle"):
        write_config(folder, splits={"train": [name]})
        dataset = open_dataset(folder)
        assert [cutout.name for cutout in dataset.split("train")] == ["\u00e9chelle"]
        assert dataset.unlisted == ("flat", "not_listed")
        assert "in no split: flat, not_listed" in str(dataset)
        np.testing.assert_array_equal(dataset.split("train")[0].volume.data, GREY)


def test_labels_from_1_are_read_as_classes_from_0_and_0_as_not_labelled(folder: Path) -> None:
    write_config(folder, classes={1: "cell", 2: "axon"}, ignore=0)
    dataset = open_dataset(folder)
    (stack,) = dataset.split("train")
    expected = np.array([dataset.classes.ignore, 0, 1])[LABELS]
    np.testing.assert_array_equal(np.asarray(stack.labels), expected)
    np.testing.assert_array_equal(stack.read_labels(3, slice(2), slice(1, 4)), expected[3, :2, 1:4])
    assert stack.label_counts[:, :2].sum(axis=0).tolist() == [(LABELS == 1).sum(), (LABELS == 2).sum()]
    np.testing.assert_array_equal(dataset.classes.to_stored(np.asarray(stack.labels)), LABELS)
    assert isinstance(stack.labels, LazyArray)
    write_labels(folder / "labels" / "stack.npy", LABELS + 1)
    with pytest.raises(
        DatasetError, match=r"outside the classes: 3 .*expected 1\.\.2 .cell, axon. or 0 for pixels not labelled"
    ):
        open_dataset(folder)
    write_config(folder, classes={1: "cell", 2: "axon"}, ignore=None)
    with pytest.raises(DatasetError, match="Write ignore: 0 if 0 means not labelled"):
        open_dataset(folder)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy", ".zarr"])
def test_labels_of_such_classes_are_written_as_they_were_read(folder: Path, suffix: str) -> None:
    write_config(folder, classes={1: "cell", 2: "axon"}, ignore=0)
    classes = open_dataset(folder).classes
    labels = classes.from_stored(LABELS[:1])
    with create_labels(folder / f"out{suffix}", labels.shape, classes) as sink:
        sink.write((slice(0, 1), slice(None), slice(None)), labels)
    np.testing.assert_array_equal(np.asarray(open_labels(folder / f"out{suffix}")), LABELS[:1])


@pytest.mark.parametrize("kept", [0, 1 << 30])
def test_parts_of_any_format_are_read_as_they_are(folder: Path, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neurotome.datasets.folder.KEPT_BYTES", kept)
    place = (slice(1, 7), slice(1, 4), slice(2, 6))
    parts = {"z": [1, 7], "y": [1, 4], "x": [2, 6]}
    write_config(folder, classes={1: "cell", 2: "axon"}, ignore=0, splits={"train": [{"id": "stack", **parts}]})
    (folder / "labels" / "stack.npy").unlink()
    for suffix in (".zarr", ".tif", ".npy"):
        for old in (*(folder / "images").glob("stack.*"), *(folder / "labels").glob("stack.*")):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        write_image(folder / "images" / f"stack{suffix}", GREY)
        write_labels(folder / "labels" / f"stack{suffix}", LABELS)
        dataset = open_dataset(folder)
        (cutout,) = dataset.split("train")
        data, expected = cutout.volume.data, np.array([255, 0, 1])[LABELS]
        if suffix != ".npy":
            assert isinstance(data, LazyArray if kept == 0 else np.ndarray)
        np.testing.assert_array_equal(np.asarray(data), GREY[place])
        np.testing.assert_array_equal(np.stack(list(data)), GREY[place])
        np.testing.assert_array_equal(np.asarray(data[::2, -1:, 3:0:-1]), GREY[place][::2, -1:, 3:0:-1])
        np.testing.assert_array_equal(cutout.volume.read_context(0, 3), GREY[place][[0, 0, 1]])
        np.testing.assert_array_equal(cutout.read_labels(2, slice(1, 3)), expected[place][2, 1:3])
        assert cutout.label_counts[:, :2].sum() == (LABELS[place] > 0).sum()


def test_images_of_different_voxel_sizes_are_noted(folder: Path) -> None:
    for name, size_um in (("a", 1.17), ("b", 0.585), ("c", 1.170001)):
        resolution = (1e4 / size_um, 1e4 / size_um)
        tifffile.imwrite(folder / "images" / f"{name}.tif", GREY[0], resolution=resolution, resolutionunit="CENTIMETER")
        write_labels(folder / "labels" / f"{name}.png", LABELS[0])
    write_config(folder, voxel_size_um=None, splits={"train": ["a"], "test": ["c"]})
    assert open_dataset(folder).voxel_size_um == pytest.approx((1.17, 1.17, 1.17))
    write_config(folder, voxel_size_um=None, splits={"train": ["a", "b"], "test": ["c"]})
    with pytest.warns(UserWarning, match=r"sizes: 1\.17 x 1\.17 .*\(a\), 0\.585 x 0\.585 .*\(b\)\. None is used"):
        dataset = open_dataset(folder)
    assert dataset.voxel_size_um is None
    assert "1.17 x 1.17 x 1.17 um (z, y, x) and 0.585 x" in str(dataset)
    write_config(folder, voxel_size_um=None, splits={"train": ["a", "flat"]})
    with pytest.warns(UserWarning, match=r"1\.17 x .* not known \(flat\)"):
        open_dataset(folder)
    write_config(folder, splits={"train": ["a", "b"], "test": ["c"]})
    assert open_dataset(folder).voxel_size_um == (3.0, 2.0, 1.0)


def test_a_fingerprint_is_of_all_that_counts_and_of_nothing_else(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    first = open_dataset(folder).fingerprint("train")
    moved = folder.rename(tmp_path_factory.mktemp("elsewhere") / "other")
    write_config(moved, name="renamed", citation="Other (2025)", splits={"train": ["stack"], "val": ["flat"]})
    assert open_dataset(moved).fingerprint("train") == first
    prints = {first}
    changes: list[dict[str, Any]] = [
        {"classes": {0: "background", 1: "axon", 2: "cell"}},
        {"ignore": 254},
        {"voxel_size_um": [3, 2, 2]},
        {"splits": {"train": [{"id": "stack", "z": [0, 7]}]}},
        {"splits": {"train": ["flat"]}},
    ]
    for change in changes:
        write_config(moved, **change)
        prints.add(open_dataset(moved).fingerprint("train"))
    write_config(moved)
    write_labels(moved / "labels" / "stack.npy", np.roll(LABELS, 1))
    prints.add(open_dataset(moved).fingerprint("train"))
    write_image(moved / "images" / "stack.tif", np.roll(GREY, 1))
    dataset = open_dataset(moved)
    prints.add(dataset.fingerprint("train"))
    assert len(prints) == len(changes) + 3
    dataset.split("train")[0].volume.data[:] = 0
    assert dataset.fingerprint("train") in prints, "a split is read once"


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
