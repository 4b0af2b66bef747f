"""Volumes in dataset.yaml: the same data as in a folder, read from disk as they are needed, and every slip named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
import zarr
from numpy.typing import NDArray

from conftest import QUICK, run
from neurotome.datasets import open_dataset, volumes
from neurotome.datasets.base import Dataset
from neurotome.datasets.folds import make_folds
from neurotome.datasets.leaks import check_leaks
from neurotome.datasets.statistics import measure_dataset
from neurotome.errors import DatasetError, ImageError, NeurotomeError
from neurotome.io import open_labels, write_image, write_labels
from neurotome.normalize import Normalization
from neurotome.runs import Run
from neurotome.training.sampler import PatchSampler, SampleSettings

SHAPE = (24, 40, 48)
RNG = np.random.default_rng(0)
LABELS = np.zeros(SHAPE, np.uint8)
LABELS[:, 8:24, 10:30] = 1
LABELS[::4, 30:36, 5:40] = 2
GREY = (np.array([100, 180, 30])[LABELS] + RNG.normal(0, 8, SHAPE)).clip(0, 255).astype(np.uint8)
LABELLED = [3, 12, 20]
SPARSE = np.full(SHAPE, 255, np.uint8)
SPARSE[LABELLED] = LABELS[LABELLED]
CLASSES = {0: "background", 1: "vessel", 2: "cell"}
AS_IS = Normalization("dataset", 0.0, 1.0, "uint8")


def write_zarr(path: Path, values: NDArray[Any], chunk: Sequence[int] = (8, 16, 16)) -> None:
    array = zarr.create_array(path, shape=values.shape, chunks=tuple(chunk), dtype=values.dtype, dimension_names=list("zyx"))
    array[:] = values


def write_config(folder: Path, listed: list[Any], splits: Any = None, **more: Any) -> Path:
    folder.mkdir(exist_ok=True)
    content = {"name": "toy", "classes": CLASSES, "volumes": listed, **more}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(content | ({"splits": splits} if splits else {})))
    return folder


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """A volume and labels everywhere."""
    write_zarr(tmp_path / "block.zarr", GREY)
    write_zarr(tmp_path / "labels.zarr", LABELS)
    listed = {"name": "block", "image": "block.zarr", "labels": "labels.zarr"}
    return write_config(
        tmp_path, [listed], {"train": [{"id": "block", "z": [0, 8]}], "val": [{"id": "block", "z": [16, 24]}]}
    )


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """A volume of which three slices are labelled."""
    write_zarr(tmp_path / "block.zarr", GREY)
    write_labels(tmp_path / "slices.tif", LABELS[LABELLED])
    listed = {"name": "block", "image": "block.zarr", "labels": "slices.tif", "z": LABELLED}
    return write_config(
        tmp_path, [listed], {"train": [{"id": "block", "z": [0, 15]}], "val": [{"id": "block", "z": [15, 24]}]}
    )


def draw(dataset: Dataset, in_channels: int = 1, step: int = 3) -> tuple[NDArray[Any], NDArray[Any]]:
    settings = SampleSettings(patch=16, batch=64, rare=0.5)
    return PatchSampler(dataset, settings, AS_IS, in_channels, 0).draw(step)


def write_folder(folder: Path) -> Path:
    """The same data as `dense`, as files in a folder dataset."""
    write_image(folder / "images" / "block.tif", GREY)
    write_labels(folder / "labels" / "block.tif", LABELS)
    return write_config(folder, [], {"train": [{"id": "block", "z": [0, 8]}], "val": [{"id": "block", "z": [16, 24]}]})


def test_patches_of_a_volume_are_those_of_the_same_files_in_a_folder(dense: Path, tmp_path: Path) -> None:
    mine, theirs = open_dataset(dense), open_dataset(write_folder(tmp_path / "folder"))
    assert mine.name == theirs.name == "toy"
    for got, expected in zip(draw(mine), draw(theirs), strict=True):
        np.testing.assert_array_equal(got, expected)
    for split in ("train", "val"):
        (got_cutout,), (expected_cutout,) = mine.split(split), theirs.split(split)
        np.testing.assert_array_equal(got_cutout.label_counts, expected_cutout.label_counts)
        assert got_cutout.digests == expected_cutout.digests
    measured, expected_measured = measure_dataset(mine), measure_dataset(theirs)
    assert measured["splits"] == expected_measured["splits"]


def test_neighbours_of_labelled_slices_come_from_the_volume(sparse: Path) -> None:
    (train,), (val,) = (open_dataset(sparse).split(split) for split in ("train", "val"))
    assert (train.volume.shape, val.volume.shape) == ((2, 40, 48), (1, 40, 48))
    np.testing.assert_array_equal(train.volume.read_context(1, 3), GREY[11:14])
    np.testing.assert_array_equal(
        val.volume.read_context(0, 9, slice(3, 9), slice(40, 48)), GREY[[16, 17, 18, 19, 20, 21, 22, 23, 23], 3:9, 40:]
    )
    np.testing.assert_array_equal(train.labels[:], LABELS[[3, 12]])
    assert train.slice_names == ["block_z0-15/0003", "block_z0-15/0012"]


def test_splits_of_labelled_slices_leave_out_the_others(sparse: Path) -> None:
    dataset = open_dataset(sparse)
    measured = measure_dataset(dataset)["splits"]
    assert (measured["train"]["slices"], measured["val"]["slices"]) == (2, 1)
    assert measured["train"]["counts"] == {name: int((LABELS[[3, 12]] == i).sum()) for i, name in CLASSES.items()}
    # 7 slices lie between 12 and 20, of 18 spanned by all: one is enough
    assert check_leaks(dataset) == []
    images, labels = draw(dataset, 3)
    assert set(np.unique(labels)) == {0, 1, 2}
    # every patch is found at a labelled slice with its true neighbours
    windows = np.lib.stride_tricks.sliding_window_view(GREY, (16, 16), (1, 2))
    for image in images[:8]:
        assert any((windows[z] == image[1].astype(np.uint8)).all((2, 3)).any() for z in (3, 12))
    places = [(windows[z] == images[0][1].astype(np.uint8)).all((2, 3)) for z in (3, 12)]
    z = (3, 12)[int(places[1].any())]
    y, x = np.argwhere(places[z == 12])[0]
    np.testing.assert_array_equal(images[0].astype(np.uint8), GREY[z - 1 : z + 2, y : y + 16, x : x + 16])


def test_a_label_volume_with_few_labelled_slices_is_the_same_as_a_list_of_them(sparse: Path, tmp_path: Path) -> None:
    listed = tmp_path / "other"
    write_config(listed, [{"name": "block", "image": "../block.zarr", "labels": "labels.h5:/a/labels"}])
    with h5py.File(listed / "labels.h5", "w") as file:
        file.create_dataset("a/labels", data=SPARSE, chunks=(24, 9, 48), compression="gzip")
        file["a/other"] = SPARSE
    write_config(
        listed, [{"name": "block", "image": "../block.zarr", "labels": "labels.h5:/a/labels"}], {"train": ["block"]}
    )
    write_config(
        sparse, [{"name": "block", "image": "block.zarr", "labels": "slices.tif", "z": LABELLED}], {"train": ["block"]}
    )
    (first,), (second,) = open_dataset(sparse).split("train"), open_dataset(listed).split("train")
    np.testing.assert_array_equal(first.volume.numbers, LABELLED)
    np.testing.assert_array_equal(second.volume.numbers, LABELLED)
    assert first.digests == second.digests
    for got, expected in zip(draw(open_dataset(sparse), 3), draw(open_dataset(listed), 3), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_slices_may_be_the_files_of_a_folder(sparse: Path) -> None:
    for number, plane in enumerate(LABELS[LABELLED], start=8):  # s8, s9, s10
        write_labels(sparse / "slices" / f"s{number}.png", plane)
    for z, plane in enumerate(GREY):
        write_image(sparse / "grey" / f"{z}.tif", plane)
    write_config(sparse, [{"name": "block", "image": "grey", "labels": "slices/", "z": LABELLED}], {"train": ["block"]})
    (cutout,) = open_dataset(sparse).split("train")
    np.testing.assert_array_equal(cutout.labels[:], LABELS[LABELLED])
    np.testing.assert_array_equal(cutout.volume.read_context(2, 3), GREY[19:22])


def test_label_slices_may_stand_in_any_order(sparse: Path) -> None:
    turned = [LABELLED[i] for i in (2, 0, 1)]
    write_labels(sparse / "turned.tif", LABELS[turned])
    write_config(
        sparse, [{"name": "block", "image": "block.zarr", "labels": "turned.tif", "z": turned}], {"train": ["block"]}
    )
    (cutout,) = open_dataset(sparse).split("train")
    np.testing.assert_array_equal(cutout.labels[:], LABELS[LABELLED])


def test_windows_in_y_and_x_keep_the_neighbours(sparse: Path) -> None:
    splits = {"train": [{"id": "block", "z": [10, 24], "y": [8, 40], "x": [4, 44]}]}
    write_config(sparse, [{"name": "block", "image": "block.zarr", "labels": "slices.tif", "z": LABELLED}], splits)
    (cutout,) = open_dataset(sparse).split("train")
    assert cutout.volume.origin_zyx == (0, 8, 4)
    np.testing.assert_array_equal(cutout.labels[:], LABELS[[12, 20], 8:40, 4:44])
    np.testing.assert_array_equal(cutout.volume.read_context(0, 3), GREY[11:14, 8:40, 4:44])
    for class_id in CLASSES:
        assert cutout.label_counts[1, class_id] == (LABELS[20, 8:40, 4:44] == class_id).sum()


def test_every_pixel_of_a_class_is_found_once(monkeypatch: pytest.MonkeyPatch, dense: Path) -> None:
    monkeypatch.setattr(volumes, "COUNTED_EDGE", 16)
    (cutout,) = open_dataset(dense).split("train")
    assert isinstance(cutout, volumes.VolumeCutout)
    assert cutout.tiles.shape == (8, 3, 3, 3)
    for class_id in (1, 2):
        found = [cutout.find_pixel(6, class_id, k) for k in range(int(cutout.label_counts[6, class_id]))]
        assert sorted(found) == [tuple(place) for place in np.argwhere(LABELS[6] == class_id).tolist()]


def test_volumes_are_divided_between_labelled_slices_where_no_split_is_stated(sparse: Path) -> None:
    numbers = [2, 6, 10, 15, 21]
    write_labels(sparse / "slices.tif", LABELS[numbers])
    write_config(sparse, [{"name": "block", "image": "block.zarr", "labels": "slices.tif", "z": numbers}])
    with pytest.warns(UserWarning, match="so they were made"):
        dataset = open_dataset(sparse)
    found = [dataset.split(split)[0].volume.numbers.tolist() for split in ("train", "val", "test")]
    assert found == [[2, 6, 10], [15], [21]]
    folds = make_folds(dataset, 5, gap=0)
    assert [fold.split("test")[0].volume.numbers.tolist() for fold in folds] == [[number] for number in numbers]
    assert [c.volume.numbers.tolist() for c in folds[1].split("train")] == [[2], [15, 21]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"z": [3, 12, 24]}, r"z lists 24, but .*block\.zarr has the slices 0 to 23"),
        ({"z": [3, 12, 12]}, r"volume block: z lists 12 twice"),
        ({"z": [3, 12]}, r"labels have shape \(3, 40, 48\); expected \(2, 40, 48\)"),
        ({"z": "3"}, r"z is '3'; expected the numbers"),
        ({"z": [3, -1, 2]}, r"z is \[3, -1, 2\]"),
        ({"z": None}, r"z is missing or empty"),
        ({"labels": "nowhere.zarr"}, r"nowhere\.zarr does not exist"),
        ({"image": "gone.h5:/a"}, r"gone\.h5:/a does not exist"),
        ({"lables": "x"}, r"unknown key 'lables'.*labels"),
        ({"name": "a/b"}, r"name is 'a/b'; expected a plain name"),
        ({"name": 3}, r"name is 3"),
        ({"channel": -1}, r"channel is -1; expected a whole number"),
        ({"channel": 2}, r"channel 2 asked for; there are 1"),
    ],
)
def test_slips_are_named(sparse: Path, changes: dict[str, Any], message: str) -> None:
    listed = {"name": "block", "image": "block.zarr", "labels": "slices.tif", "z": LABELLED, **changes}
    write_config(sparse, [listed], {"train": [listed["name"] if isinstance(listed["name"], str) else "block"]})
    if "/" in str(listed["name"]):
        write_config(sparse, [listed])
    with pytest.raises(NeurotomeError, match=message):
        open_dataset(sparse)


def test_shapes_and_contents_that_do_not_fit_are_named(dense: Path) -> None:
    splits = {"train": ["block"]}
    entry = {"name": "block", "image": "block.zarr", "labels": "labels.zarr"}
    write_zarr(dense / "few.zarr", LABELS[:5])
    write_config(dense, [{**entry, "labels": "few.zarr"}], splits)
    with pytest.raises(DatasetError, match=r"few\.zarr: labels have shape \(5, 40, 48\).*say which under z"):
        open_dataset(dense)
    write_config(dense, [{**entry, "z": [1, 2]}], splits)
    with pytest.raises(DatasetError, match=r"as many as the image has; leave out z"):
        open_dataset(dense)
    write_zarr(dense / "stray.zarr", np.where(np.arange(48) == 7, 9, LABELS).astype(np.uint16))
    write_config(dense, [{**entry, "labels": "stray.zarr"}], splits)
    with pytest.raises(DatasetError, match=r"stray\.zarr: label values outside the classes: 9 .* at \(z=0, y=0, x=7\)"):
        open_dataset(dense)
    write_zarr(dense / "none.zarr", np.full(SHAPE, 255, np.uint8))
    write_config(dense, [{**entry, "labels": "none.zarr"}], splits)
    with pytest.raises(DatasetError, match=r"none\.zarr: all pixels have the ignore value 255"):
        open_dataset(dense)
    write_config(dense, [entry, dict(entry)], splits)
    with pytest.raises(DatasetError, match="volume block is listed twice"):
        open_dataset(dense)
    write_config(dense, ["block.zarr"], splits)
    with pytest.raises(DatasetError, match=r"volumes, entry 1 is 'block\.zarr'; expected \{name"):
        open_dataset(dense)
    write_image(dense / "images" / "block.tif", GREY)
    write_config(dense, [entry], splits)
    with pytest.raises(DatasetError, match=r"block is under volumes and in images/"):
        open_dataset(dense)


def test_a_split_without_a_labelled_slice_is_named(sparse: Path) -> None:
    listed = {"name": "block", "image": "block.zarr", "labels": "slices.tif", "z": LABELLED}
    write_config(sparse, [listed], {"train": [{"id": "block", "z": [4, 12]}]})
    with pytest.raises(DatasetError, match=r"z 4\.\.12 of block is asked for, but its labelled slices are 3, 12, 20"):
        open_dataset(sparse)


def test_labels_that_change_and_chunks_that_are_damaged_are_named_when_they_are_drawn(dense: Path) -> None:
    dataset = open_dataset(dense)
    stored = zarr.open_array(dense / "labels.zarr", mode="r+")
    stored[:] = 7
    with pytest.raises(DatasetError, match=r"labels\.zarr: label values outside the classes: 7 .* at \(z="):
        draw(dataset)
    stored[:] = LABELS
    for file in (dense / "block.zarr" / "c").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:9])
    with pytest.raises(ImageError, match=r"block\.zarr.*damaged"):
        draw(dataset)


def test_training_with_neighbours_scores_the_labelled_slices(sparse: Path, tmp_path: Path) -> None:
    splits = {
        "train": [{"id": "block", "z": [0, 10]}, {"id": "block", "z": [10, 15]}],
        "val": [{"id": "block", "z": [15, 24]}],
    }
    listed = {"name": "block", "image": "block.zarr", "labels": "slices.tif", "z": LABELLED}
    write_config(sparse, [listed], splits)
    out = tmp_path / "run"
    assert run("train", sparse, "--out", out, *QUICK, "--model.in-channels", "3") == 0
    scores = Run(out).read_scores("train")
    assert scores["per_image"]["name"] == ["block_z0-10", "block_z10-15"]
    assert np.sum(scores["confusion"]) == 2 * 40 * 48
    predicted = open_labels(out / "predictions" / "val" / "block_z15-24.png")
    assert predicted.shape == (1, 40, 48)
    assert (out / "report.html").is_file()


def test_a_baseline_learns_from_volumes(sparse: Path, tmp_path: Path) -> None:
    assert run("baseline", sparse, "--out", tmp_path / "run", "--learner", "lr") == 0
    assert Run(tmp_path / "run").read_scores("train")["per_image"]["name"] == ["block_z0-15/0003", "block_z0-15/0012"]
