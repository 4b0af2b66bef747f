"""Volumes in dataset.yaml: the same data as in a folder, read from disk as they are needed, and every slip named."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import yaml
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.datasets import open_dataset, volumes
from neurotome.datasets.base import Cutout, Dataset
from neurotome.datasets.folds import make_folds
from neurotome.datasets.leaks import check_leaks
from neurotome.datasets.statistics import measure_dataset
from neurotome.errors import DatasetError, ImageError, NeurotomeError
from neurotome.experiments.run_network import train_and_score
from neurotome.experiments.run_pixels import fit_and_score
from neurotome.io import open_labels, write_image, write_labels
from neurotome.io.chunks import list_chunks
from neurotome.io.lazy_array import LazyArray
from neurotome.io.ome_zarr import create_ome_zarr
from neurotome.io.picked import PickedSlices, TileCache
from neurotome.models.model_folder import load_model
from neurotome.models.networks import ModelSettings
from neurotome.normalize import Normalization
from neurotome.pixels.train import BaselineSettings
from neurotome.predictor import predict_slice
from neurotome.report.slides import load_slides
from neurotome.training.recipe import Recipe, TrainSettings
from neurotome.training.sampler import PatchSampler, SampleSettings
from neurotome.training.sizes import choose_steps
from neurotome.volume import Volume

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
    return PatchSampler(dataset, SampleSettings(patch=16, batch=64, rare=0.5), AS_IS, in_channels, 0).draw(step)


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


def write_image_as(kind: str, folder: Path) -> str:
    """Writes `GREY` in a format and returns what dataset.yaml calls it."""
    if kind == "ome-zarr":
        array = create_ome_zarr(
            folder / "i.zarr", SHAPE, np.dtype(np.uint8), (1, 1, 1), name="i", shard=(16, 32, 32), chunk=(8, 16, 16)
        )
        array[:] = GREY
        return "i.zarr"
    if kind == "hdf5":
        with h5py.File(folder / "i.h5", "w") as file:
            file.create_dataset("raw", data=GREY, chunks=(8, 16, 16), compression="gzip")
        return "i.h5:/raw"
    if kind == "npy":
        np.save(folder / "i.npy", GREY)
        return "i.npy"
    compression = "zlib" if kind == "packed bigtiff" else None
    tifffile.imwrite(folder / "i.tif", GREY, bigtiff=True, photometric="minisblack", compression=compression)
    return "i.tif"


@pytest.mark.parametrize("kind", ["ome-zarr", "hdf5", "npy", "bigtiff", "packed bigtiff"])
def test_patches_are_the_same_from_every_format(kind: str, sparse: Path) -> None:
    expected = draw(open_dataset(sparse), 3)
    listed = {"name": "block", "image": write_image_as(kind, sparse), "labels": "slices.tif", "z": LABELLED}
    splits = {"train": [{"id": "block", "z": [0, 15]}], "val": [{"id": "block", "z": [15, 24]}]}
    write_config(sparse, [listed], splits)
    for got, wanted in zip(draw(open_dataset(sparse), 3), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


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


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_another_process_reads_the_same(kind: str, request: pytest.FixtureRequest) -> None:
    """A training on several devices sends its dataset to the others; here it is sent and comes back."""
    dataset = open_dataset(request.getfixturevalue(kind))
    sent = pickle.loads(pickle.dumps(dataset))
    for got, wanted in zip(draw(sent, 3), draw(dataset, 3), strict=True):
        np.testing.assert_array_equal(got, wanted)


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
    model = ModelSettings(decoder="linknet", encoder="mobilenetv3_small_050", encoder_depth=3, in_channels=3)
    train = TrainSettings(epochs=1, steps_per_epoch=2, device="cpu")
    recipe = Recipe(model=model, sample=SampleSettings(patch=32, batch=2), train=train)
    dataset = open_dataset(sparse)
    finished = train_and_score(dataset, "toy", tmp_path / "run", recipe)
    names = ["block_z0-15/0003", "block_z0-15/0012"]
    scores = finished.read_scores("train")
    assert scores["per_image"]["name"] == names
    assert np.sum(scores["confusion"]) == 2 * 40 * 48
    stored = open_labels(finished.predictions("train") / "block_z0-15.tif")
    assert stored.shape == (2, 40, 48)
    assert open_labels(finished.predictions("val") / "block_z15-24.png").shape == (1, 40, 48)
    (slide,) = load_slides(finished, dataset, "train", [(names[1], 0.5)])
    np.testing.assert_array_equal(slide.grey, GREY[12])
    np.testing.assert_array_equal(slide.truth, LABELS[12])
    np.testing.assert_array_equal(slide.predicted, stored[1])
    # what was predicted saw the true neighbours
    predictor = load_model(finished.model)
    image = predictor.normalization.scale_for(dataset.split("train")[0].volume).apply(GREY[11:14])
    np.testing.assert_array_equal(predict_slice(predictor, image).argmax(0), stored[1])
    # the very same run goes on; other labels are told
    train_and_score(open_dataset(sparse), "toy", tmp_path / "run", recipe)
    write_labels(sparse / "slices.tif", LABELS[[0, 12, 20]])
    with pytest.raises(NeurotomeError, match="labels of block_z0-15 in train"):
        train_and_score(open_dataset(sparse), "toy", tmp_path / "run", recipe)


def test_a_baseline_learns_from_volumes(sparse: Path, tmp_path: Path) -> None:
    finished = fit_and_score(open_dataset(sparse), "toy", tmp_path / "run", BaselineSettings(learner="lr"), "cpu")
    assert finished.read_scores("train")["per_image"]["name"] == ["block_z0-15/0003", "block_z0-15/0012"]


def test_memory_does_not_grow_with_the_volume(tmp_path: Path) -> None:
    """A volume of 52 GB, of which few chunks are stored: opened, described, drawn from and told from others."""
    shape = (200_000, 512, 512)
    stored = zarr.create_array(tmp_path / "huge.zarr", shape=shape, chunks=(64, 64, 64), dtype=np.uint8, fill_value=40)
    for z in (0, 100_032, 199_936):
        stored[z : z + 64, 192:256, 256:290] = 90
    planes = np.zeros((3, *shape[1:]), np.uint8)
    planes[:, 100:300, 200:400] = 1
    write_labels(tmp_path / "slices.tif", planes)
    listed = {"name": "huge", "image": "huge.zarr", "labels": "slices.tif", "z": [3, 100_050, 199_940]}
    splits = {"train": [{"id": "huge", "z": [0, 150_000]}], "val": [{"id": "huge", "z": [150_000, 200_000]}]}
    write_config(tmp_path, [listed], splits)
    del planes
    tracemalloc.start()
    dataset = open_dataset(tmp_path)
    images, _ = draw(dataset, 3)
    statistics = measure_dataset(dataset)
    assert check_leaks(dataset) == []
    dataset.fingerprint("train")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.unique(images).tolist() == [40, 90]
    assert statistics["splits"]["train"]["counts"]["vessel"] == 2 * 200 * 200
    assert peak < 100 << 20


def test_large_volumes_are_measured_and_told_apart_by_a_sample(monkeypatch: pytest.MonkeyPatch, dense: Path) -> None:
    write_config(dense, [{"name": "block", "image": "block.zarr", "labels": "labels.zarr"}], {"train": ["block"]})
    whole = measure_dataset(open_dataset(dense))
    monkeypatch.setattr("neurotome.sampling.LARGE", 5 * 40 * 48)
    monkeypatch.setattr("neurotome.datasets.statistics.LARGE", 5 * 40 * 48)
    monkeypatch.setattr(volumes, "SAMPLED_EDGE", 8)
    dataset = open_dataset(dense)
    some = measure_dataset(dataset)
    assert (whole["sampled"], some["sampled"]) == ([], ["grey values of block are those of 5 of its 24 slices"])
    assert some["splits"]["train"]["counts"] == whole["splits"]["train"]["counts"]
    before = dict(dataset.split("train")[0].digests)
    assert before["sampled"].startswith("of 64 boxes of 8 voxels")
    assert before == open_dataset(dense).split("train")[0].digests
    labels = zarr.open_array(dense / "labels.zarr", mode="r+")
    labels[17, 20, 20] = 2
    after = open_dataset(dense).split("train")[0].digests
    assert after["labels"] != before["labels"]
    assert after["pixels"] == before["pixels"]
    zarr.open_array(dense / "block.zarr", mode="r+")[:8, :8, :8] = 0
    assert open_dataset(dense).split("train")[0].digests["pixels"] != before["pixels"]


def test_label_chunks_that_are_not_stored_are_not_read_where_they_mean_not_labelled(
    monkeypatch: pytest.MonkeyPatch, dense: Path
) -> None:
    few = zarr.create_array(dense / "few.zarr", shape=SHAPE, chunks=(8, 16, 16), dtype=np.uint8, fill_value=255)
    few[8:16, 16:32, 32:48] = LABELS[8:16, 16:32, 32:48]
    monkeypatch.setattr(volumes, "COUNTED_EDGE", 16)
    monkeypatch.setattr(volumes, "COUNTED_BYTES", 8 * 16 * 16)
    read = []
    classes = ClassSet(tuple(CLASSES.values()))
    source = volumes.read_classes(open_labels(dense / "few.zarr"), classes, dense)
    spy = LazyArray(dense, SHAPE, np.uint8, lambda place: read.append(place) or source[place])
    spy.chunk_zyx = (8, 16, 16)
    chunks = list_chunks(open_labels(dense / "few.zarr"))
    tiles = volumes.count_labels(spy, classes, (16, 16), "counting", chunks)
    assert read == [(slice(8, 16), slice(16, 32), slice(32, 48))]
    np.testing.assert_array_equal(tiles, volumes.count_labels(source, classes, (16, 16), "counting"))


def test_a_batch_depends_on_seed_and_step_alone_whatever_is_cached(monkeypatch: pytest.MonkeyPatch, sparse: Path) -> None:
    monkeypatch.setattr("neurotome.datasets.folder.CACHE_BYTES", 40_000)
    drawn = SampleSettings(patch=16, batch=8, rare=0.5)
    first, again = (PatchSampler(open_dataset(sparse), drawn, AS_IS, 3, 0) for _ in range(2))
    for step in range(5):
        again.draw(step)
    for got, expected in zip(again.draw(7), first.draw(7), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_patches_in_3d_need_slices_that_follow_each_other(sparse: Path) -> None:
    with pytest.raises(NeurotomeError, match="labelled slices of block_z0-15 do not follow each other"):
        PatchSampler(open_dataset(sparse), SampleSettings(patch=16), AS_IS, 1, 0, depth=2)


@settings(max_examples=25, deadline=None)
@given(
    data=st.data(),
    chunk=st.sampled_from([(1, 70, 90), (8, 64, 64), (5, 7, 100)]),
    most=st.sampled_from([0, 20_000, 1 << 20]),
)
def test_what_is_read_through_a_cache_is_what_is_stored(data: st.DataObject, chunk: tuple[int, int, int], most: int) -> None:
    values = np.arange(9 * 150 * 200, dtype=np.uint32).reshape(9, 150, 200)
    source = LazyArray(Path("here"), values.shape, np.uint32, lambda place: values[place])
    source.chunk_zyx = chunk
    cache = TileCache(most)
    array = cache.wrap(source)
    for _ in range(6):
        ends = [
            sorted(data.draw(st.lists(st.integers(0, size), min_size=2, max_size=2, unique=True))) for size in values.shape
        ]
        place = tuple(slice(start, min(stop, start + 40)) for start, stop in ends)
        np.testing.assert_array_equal(array[place], values[place])
    kept = sum(tile.nbytes for tile in cache._tiles.values())
    assert kept == cache.bytes
    numbers = np.array([0, 1, 2, 5, 7, 8])
    np.testing.assert_array_equal(PickedSlices(array, numbers, Path("here"))[1:5, 3:40], values[[1, 2, 5, 7], 3:40])


def test_an_epoch_ends_however_large_a_volume_is() -> None:
    def make(depth: int) -> Dataset:
        huge: Any = LazyArray(Path("huge"), (depth, 1000, 1000), np.uint8, lambda place: pytest.fail(f"{place} was read"))
        return Dataset("huge", ClassSet(tuple(CLASSES.values())), {"train": (Cutout(Volume(huge, "huge"), huge),)})

    batch = SampleSettings(patch=256, depth=1, batch=8)
    assert [choose_steps(make(depth), batch) for depth in (1, 400, 4000)] == [50, 763, 2000]
