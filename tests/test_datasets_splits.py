"""Splits that nobody has stated: made, kept in a file, and the same whenever they are made again."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from neurotome.datasets import open_dataset
from neurotome.datasets.base import Dataset
from neurotome.errors import DatasetError
from neurotome.io import write_image, write_labels


def write_dataset(folder: Path, labels: dict[str, NDArray[Any]]) -> Path:
    for name, values in labels.items():
        grey = np.random.default_rng(len(name)).integers(0, 255, values.shape).astype(np.uint8)
        write_image(folder / "images" / f"{name}.tif", grey)
        write_labels(folder / "labels" / f"{name}.tif", values)
    (folder / "dataset.yaml").write_text("classes: [background, cell]")
    return folder


def open_noted(folder: Path, message: str = "has no splits, so they were made") -> Dataset:
    with pytest.warns(UserWarning, match=message):
        return open_dataset(folder)


def list_names(dataset: Dataset) -> dict[str, list[str]]:
    return {split: [cutout.name for cutout in cutouts] for split, cutouts in dataset.splits.items()}


def test_images_are_divided_in_the_order_of_their_names_and_kept(tmp_path: Path) -> None:
    plane = np.eye(6, dtype=np.uint8)
    write_dataset(tmp_path, {f"s{i}": plane for i in (10, 9, 1, 2, 3)} | {"s4": np.full((6, 6), 255, np.uint8)})
    write_image(tmp_path / "images" / "without_labels.tif", 9 * plane)
    dataset = open_noted(
        tmp_path,
        r"made: train s1, s2, s3; val s9; test s10; left out, without a label: s4, without_labels\. It is written down in",
    )
    expected = {"train": ["s1", "s2", "s3"], "val": ["s9"], "test": ["s10"]}
    assert list_names(dataset) == expected == yaml.safe_load((tmp_path / "splits.yaml").read_text())
    assert dataset.unlisted == ("s4", "without_labels")
    written = (tmp_path / "splits.yaml").read_bytes()
    assert list_names(open_dataset(tmp_path)) == expected, "and nothing is said again"
    write_dataset(tmp_path, {"s0": plane})
    later = r"1 annotated image in no split of .*splits\.yaml, so not used: s0\. List there what was labelled later"
    assert list_names(open_noted(tmp_path, later)) == expected, "what was made once stays"
    assert (tmp_path / "splits.yaml").read_bytes() == written


def test_what_somebody_wrote_is_used_and_never_written_over(tmp_path: Path) -> None:
    write_dataset(tmp_path, {name: np.eye(6, dtype=np.uint8) for name in "abc"})
    (tmp_path / "splits.yaml").write_text("train: [c]  # mine")
    assert list_names(open_noted(tmp_path, "2 annotated images in no split .*: a, b")) == {"train": ["c"]}
    assert (tmp_path / "splits.yaml").read_text() == "train: [c]  # mine"
    (tmp_path / "splits.yaml").write_text("train: [c, c]")
    with pytest.raises(DatasetError, match=r"splits\.yaml: pixels of c are in train .c. and in train .c."):
        open_dataset(tmp_path)
    (tmp_path / "splits.yaml").write_text("")
    with pytest.raises(DatasetError, match=r"splits\.yaml: found nothing.* remove it to have it made again"):
        open_dataset(tmp_path)
    (tmp_path / "dataset.yaml").write_text("classes: [background, cell]\nsplits: {train: [a]}")
    assert list_names(open_noted(tmp_path, "splits.yaml is not used")) == {"train": ["a"]}


def test_a_stack_is_divided_between_slices_with_gaps(tmp_path: Path) -> None:
    labels = np.zeros((40, 6, 7), np.uint8)
    labels[:, 2:4] = 1
    dataset = open_noted(write_dataset(tmp_path, {"stack": labels}))
    assert list_names(dataset) == {"train": ["stack_z0-24"], "val": ["stack_z26-32"], "test": ["stack_z34-40"]}
    assert list_names(open_dataset(tmp_path)) == list_names(dataset)


def test_one_image_is_divided_where_every_block_has_its_share_of_the_labels(tmp_path: Path) -> None:
    labels = np.full((100, 80), 255, np.uint8)
    labels[40:60, :40], labels[40:60, 40:] = 0, 1  # along y each block has both classes, along x hardly
    dataset = open_noted(write_dataset(tmp_path, {"image": labels}))
    assert list_names(dataset) == {"train": ["image_y0-52"], "val": ["image_y53-56"], "test": ["image_y57-100"]}
    counts = {split: cutouts[0].label_counts[0, :2].tolist() for split, cutouts in dataset.splits.items()}
    assert all(min(count) > 0 for count in counts.values()), counts


def test_two_images_are_both_divided(tmp_path: Path) -> None:
    labels = np.tile(np.array([0, 1], np.uint8), (60, 10))
    dataset = open_noted(write_dataset(tmp_path, {"a": labels, "b": labels}))
    assert list_names(dataset) == {
        "train": ["a_y0-36", "b_y0-36"],
        "val": ["a_y39-48", "b_y39-48"],
        "test": ["a_y51-60", "b_y51-60"],
    }


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({}, "expected an annotated image"),
        ({"a": np.full((9, 9), 255, np.uint8)}, "no image has a labelled pixel"),
        ({"a": np.where(np.arange(81).reshape(9, 9) == 40, 1, 255).astype(np.uint8)}, "a has too few labelled pixels"),
    ],
)
def test_what_cannot_be_divided_is_refused(tmp_path: Path, labels: dict[str, NDArray[Any]], message: str) -> None:
    write_dataset(tmp_path, labels)
    with pytest.raises(DatasetError, match=message):
        open_dataset(tmp_path)
    assert not (tmp_path / "splits.yaml").exists()


def test_a_folder_that_may_not_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path, {name: np.eye(6, dtype=np.uint8) for name in "abc"})

    def refuse(path: Path, content: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("neurotome.datasets.splits.write_text", refuse)
    first = open_noted(tmp_path, r"cannot be written down in .*splits\.yaml \(Permission denied\)")
    assert list_names(first) == list_names(open_noted(tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_no_text_can_be_used(tmp_path: Path) -> None:
    write_dataset(tmp_path, {name: np.eye(6, dtype=np.uint8) for name in "abc"})
    for kind in ("images", "labels"):
        (tmp_path / kind / "a.tif").rename(tmp_path / kind / os.fsdecode(b"a\xff.tif"))
    dataset = open_noted(tmp_path)
    assert list_names(dataset) == list_names(open_dataset(tmp_path)) == {"train": ["a?"], "val": ["b"], "test": ["c"]}
    str(dataset).encode()


def test_labels_that_no_image_has_are_named(tmp_path: Path) -> None:
    write_dataset(tmp_path, {name: np.eye(6, dtype=np.uint8) for name in "abcd"})
    (tmp_path / "labels" / "a.tif").rename(tmp_path / "labels" / "a_mask.tif")
    lonely = r"1 label file without an image of the same name, so not used: a_mask\. Rename image or labels"
    with pytest.warns(UserWarning, match="has no splits, so they were made"):
        open_noted(tmp_path, lonely)
    open_noted(tmp_path, lonely)
