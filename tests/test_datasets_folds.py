"""Cross-validation: every voxel is tested once, and what is near a tested slice, or of its group, is not trained on."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from neurotome.classes import ClassSet
from neurotome.datasets import open_dataset
from neurotome.datasets.base import Cutout, Dataset
from neurotome.datasets.folds import check_folds, make_fold, make_folds
from neurotome.datasets.leaks import check_leaks
from neurotome.datasets.statistics import measure_dataset, note_splits
from neurotome.errors import DatasetError, SettingsError
from neurotome.io import write_image, write_labels
from neurotome.volume import Volume

CLASSES = ClassSet(("background", "cell"))


def make_whole(name: str, slices: int = 1, seed: int = 0) -> Cutout:
    rng = np.random.default_rng([seed, *name.encode()])
    labels = np.tile(np.array([0, 1], np.uint8), (slices, 2, 1))
    return Cutout(Volume(rng.integers(0, 255, labels.shape).astype(np.uint8), name, path=Path(name)), labels)


def make_open(*wholes: Cutout, groups: dict[str, str] | None = None) -> Dataset:
    return Dataset("toy", CLASSES, {}, wholes=wholes, groups=groups or {})


def list_slices(dataset: Dataset, split: str) -> list[tuple[str, int]]:
    """Slices of a split as they are counted in their files."""
    return [
        (str(cutout.volume.path), cutout.volume.origin_zyx[0] + z)
        for cutout in dataset.splits[split]
        for z in range(cutout.volume.shape[0])
    ]


def list_names(dataset: Dataset) -> list[list[str]]:
    return [[cutout.name for cutout in dataset.splits[split]] for split in ("train", "val", "test")]


@settings(deadline=None, max_examples=30)
@given(
    depths=st.lists(st.integers(20, 90), min_size=1, max_size=3), folds=st.integers(4, 6), gap=st.none() | st.integers(0, 3)
)
def test_every_slice_is_tested_once_and_none_is_trained_on_near_a_scored_one(
    depths: list[int], folds: int, gap: int | None
) -> None:
    dataset = make_open(*(make_whole(f"s{i}", depth) for i, depth in enumerate(depths)))
    made = make_folds(dataset, folds, gap)
    every = sorted((f"s{i}", z) for i, depth in enumerate(depths) for z in range(depth))
    for split in ("val", "test"):
        assert sorted(place for fold in made for place in list_slices(fold, split)) == every
    for number, fold in enumerate(made):
        trained = list_slices(fold, "train")
        assert len(set(trained)) == len(trained)
        for name, z in list_slices(fold, "test") + list_slices(fold, "val"):
            width = min(8, max(1, depths[int(name[1:])] // 20)) if gap is None else gap
            assert not {(name, z + step) for step in range(-width, width + 1)} & set(trained)
        if gap is None:
            assert check_leaks(fold) == []
        assert fold.fingerprint("train") == make_fold(dataset, number, folds, gap).fingerprint("train")


@settings(deadline=None, max_examples=30)
@given(images=st.lists(st.integers(0, 6), min_size=8, max_size=20), folds=st.integers(3, 5))
def test_groups_stay_together(images: list[int], folds: int) -> None:
    groups = {f"i{number}": f"mouse{mouse}" for number, mouse in enumerate(images)}
    dataset = make_open(*map(make_whole, groups), groups=groups)
    if len(set(images)) < folds:
        with pytest.raises(DatasetError, match=rf"found {len(set(images))} groups .*; expected {folds} or more"):
            make_folds(dataset, folds)
        return
    made = make_folds(dataset, folds)
    assert sorted(cutout.name for fold in made for cutout in fold.splits["test"]) == sorted(groups)
    for fold in made:
        mice = [{groups[name] for name in names} for names in list_names(fold)]
        assert all(mice)
        assert sum(map(len, mice)) == len(set(images)), "a group is in two splits"


def test_images_go_to_folds_in_the_order_of_their_names() -> None:
    dataset = make_open(*(make_whole(f"s{i}") for i in (10, 9, 1, 2, 3, 4, 5)))
    assert list_names(make_fold(dataset, 0, 3)) == [["s5", "s9", "s10"], ["s3", "s4"], ["s1", "s2"]]
    assert list_names(make_fold(dataset, 2, 3)) == [["s3", "s4"], ["s1", "s2"], ["s5", "s9", "s10"]]


def test_blocks_have_equal_numbers_of_annotated_slices_and_a_gap_in_train_alone() -> None:
    whole = make_whole("stack", 40)
    whole.labels[20:] = 255  # the second half is not annotated
    dataset = make_open(whole)
    assert list_names(make_fold(dataset, 1, 5, gap=2)) == [["stack_z0-2", "stack_z14-40"], ["stack_z8-12"], ["stack_z4-8"]]
    assert list_names(make_fold(dataset, 4, 5)) == [["stack_z6-14"], ["stack_z0-4"], ["stack_z16-40"]]


@pytest.mark.parametrize(
    ("dataset", "arguments", "message"),
    [
        (make_open(make_whole("a", 9)), (0, 1), "found 1 folds; expected 3 or more"),
        (make_open(make_whole("a", 9)), (3, 3), "found fold 3; expected one from 0 to 2"),
        (make_open(make_whole("a", 9)), (0, 3, -1), "found a gap of -1 slices"),
        (make_open(make_whole("a", 9)), (0, 3, 9), "no annotated slice is left to train on in fold 0"),
        (make_open(make_whole("a", 9), make_whole("b", 4)), (0, 5), "b has 4 annotated slices; expected 5 or more"),
        (make_open(make_whole("a"), make_whole("b"), make_whole("c")), (0, 3, 1), "Leave out the gap"),
        (Dataset("toy", CLASSES, {"train": (make_whole("a", 9),)}), (0, 3), "its splits are fixed.* Remove splits"),
    ],
)
def test_folds_that_cannot_be_are_refused(dataset: Dataset, arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises((SettingsError, DatasetError), match=message):
        make_fold(dataset, *arguments)


def test_a_fold_without_a_class_is_named() -> None:
    dataset = make_open(*(make_whole(f"s{i}") for i in range(4)))
    check_folds(dataset, 4)
    for whole in dataset.wholes[1:]:
        whole.labels[:] = 0
    rare = make_open(*(Cutout(whole.volume, whole.labels) for whole in dataset.wholes))
    with pytest.warns(UserWarning, match="fold 0 has none of cell in train; fold 0 has none of cell in val; fold 1 has"):
        check_folds(rare, 4)


def test_folds_that_leak_are_said_once_with_test_before_val() -> None:
    dataset = make_open(make_whole("stack", 100))
    check_folds(dataset, 5)
    with pytest.warns(
        UserWarning, match="toy: 5 of 5 folds leak, such as: train and test are neighbours in stack_z"
    ) as said:
        check_folds(dataset, 5, gap=1)
    assert len(said) == 1


def place(name: str, z: int, slices: int, y: int = 0, path: str | None = None) -> Cutout:
    whole = make_whole(name, slices, seed=z)
    where = None if path is None else Path(path)
    return Cutout(Volume(whole.volume.data, name, origin_zyx=(z, y, 0), path=where), whole.labels)


@pytest.mark.parametrize(
    ("train", "test", "leaks"),
    [
        (place("cortex", 110, 269), place("cortex", 380, 29), ["cortex, z 378 and z 380"]),
        (place("cortex", 110, 269), place("cortex", 420, 50), []),
        (place("cortex", 110, 269), place("zi", 380, 29), []),
        (place("cortex", 110, 269), place("cortex", 380, 29, y=50), []),  # other pixels
        (place("cortex", 110, 269), place("cortex", 387, 29), []),  # eight between
        (place("cortex", 110, 269), place("cortex", 386, 29), ["cortex, z 378 and z 386"]),
        (place("a", 50, 30, path="x.tif"), place("b", 20, 29, path="x.tif"), ["b, z 50 and z 48"]),
        (place("a", 50, 30, path="x.tif"), place("b", 20, 29, path="y.tif"), []),
    ],
)
def test_leaks_are_slices_next_to_those_of_training(train: Cutout, test: Cutout, leaks: list[str]) -> None:
    found = check_leaks(Dataset("toy", CLASSES, {"train": (train,), "test": (test,)}))
    assert len(found) == len(leaks)
    assert all(leak in sentence for leak, sentence in zip(leaks, found, strict=True)), found


def test_slices_without_labels_are_a_gap_too() -> None:
    train, test = place("a", 0, 60, path="x"), place("b", 60, 60, path="x")
    test.labels[:3] = 255  # 120 slices want a gap of 6
    assert "a" in check_leaks(Dataset("toy", CLASSES, {"train": (train,), "test": (test,)}))[0]
    test = place("b", 60, 60, path="x")
    test.labels[:6] = 255
    assert check_leaks(Dataset("toy", CLASSES, {"train": (train,), "test": (test,)})) == []


def test_copies_groups_and_neighbouring_sections_leak() -> None:
    blurred = np.kron(np.random.default_rng(0).integers(0, 200, (8, 8)), np.ones((16, 16), int)).astype(np.uint8)[None]
    grey = [blurred, blurred + np.random.default_rng(1).integers(0, 9, blurred.shape).astype(np.uint8)]
    first, second = (
        Cutout(Volume(grey[i], name), np.zeros(blurred.shape, np.uint8)) for i, name in enumerate(("s9", "s10"))
    )
    near = check_leaks(Dataset("toy", CLASSES, {"train": (first,), "val": (second,)}))
    assert [sentence.split(" (")[0] for sentence in near] == ["train and val have neighbouring sections: s9 and s10"]
    turned = Cutout(Volume(np.rot90(blurred, axes=(1, 2)), "s10"), second.labels)
    assert check_leaks(Dataset("toy", CLASSES, {"train": (first,), "val": (turned,)})) == [], "numbered, but not alike"
    copy = Cutout(Volume(first.volume.data, "copy"), first.labels)
    groups = {"s9": "mouse", "copy": "mouse"}
    copied = check_leaks(Dataset("toy", CLASSES, {"train": (first,), "test": (copy,)}, groups=groups))
    assert len(copied) == 2
    assert "s9 in train and copy are the same" in copied[0]
    assert "share the group mouse" in copied[1]


def write_folder(folder: Path, **more: object) -> Path:
    for number, name in enumerate(("a1", "a2", "b1", "c1", "c2")):
        whole = make_whole(name, seed=number)
        write_image(folder / "images" / f"{name}.tif", whole.volume.data)
        write_labels(folder / "labels" / f"{name}.tif", whole.labels)
    (folder / "dataset.yaml").write_text(yaml.safe_dump({"classes": ["background", "cell"], **more}))
    return folder


ANIMALS = {"a1": "A", "a2": "A", "b1": "B", "c1": "C", "c2": "C"}


def test_groups_of_a_folder_keep_splits_and_folds_apart(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="splits, so they were made: train a1, a2; val b1; test c1, c2"):
        dataset = open_dataset(write_folder(tmp_path, groups=ANIMALS))
    again = open_dataset(tmp_path)  # from splits.yaml
    for fold in range(3):
        assert list_names(make_fold(dataset, fold, 3)) == list_names(make_fold(again, fold, 3))
    assert list_names(make_fold(dataset, 0, 3)) == [["b1"], ["c1", "c2"], ["a1", "a2"]]
    assert check_leaks(dataset) == []


def test_stated_splits_are_not_divided_but_checked_against_groups(tmp_path: Path) -> None:
    dataset = open_dataset(write_folder(tmp_path, groups=ANIMALS, splits={"train": ["a1", "b1"], "test": ["a2", "c1"]}))
    assert check_leaks(dataset) == [
        "train and test share the group A. Scores of test are better than those of new tissue will be; keep groups together."
    ]
    with pytest.raises(DatasetError, match="splits are fixed"):
        make_fold(dataset, 0, 3)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (ANIMALS | {"a3": "A"}, r"dataset\.yaml: groups: unknown image 'a3'\. Did you mean"),
        ({"a1": "A", "a2": "A"}, r"groups lacks b1, c1, c2; expected a group for every annotated image"),
        (dict.fromkeys(ANIMALS, "A"), "its annotated images are of 1 groups"),
        ({"a1": 3}, "groups is .*; expected image ids with names of groups"),
        (["A"], "groups is .*; expected image ids with names of groups"),
    ],
)
def test_groups_that_do_not_fit_are_refused(tmp_path: Path, groups: object, message: str) -> None:
    with pytest.raises(DatasetError, match=message), warnings.catch_warnings():
        open_dataset(write_folder(tmp_path, groups=groups))
    assert not (tmp_path / "splits.yaml").exists()


SECTIONS = Path(__file__).resolve().parents[2] / "shared/data/vnc_sstem"


@pytest.mark.skipif(not SECTIONS.is_dir(), reason="shared/data/vnc_sstem, real serial sections, is not beside the project")
def test_serial_sections_are_recognised() -> None:
    (sentence,) = check_leaks(open_dataset(SECTIONS))
    assert "train and val have neighbouring sections: vnc_s09 and vnc_s10 (correlation 0." in sentence


def test_a_training_says_what_leaks_and_which_class_a_split_lacks() -> None:
    train, test = place("cortex", 110, 60), place("cortex", 172, 20)
    test.labels[:] = 0
    dataset = Dataset("toy", CLASSES, {"train": (train,), "test": (test,)})
    with pytest.warns(UserWarning, match="^toy: ") as said:
        note_splits(dataset)
    assert [str(note.message).partition(";")[0] for note in said] == [
        "toy: train and test are neighbours in cortex, z 169 and z 172. Scores of test are better than those of new tissue "
        "will be",
        "toy: no pixel of class cell in split test",
    ]
    assert check_leaks(dataset)[0] in str(measure_dataset(dataset))
