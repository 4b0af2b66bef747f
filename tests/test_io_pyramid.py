"""Coarser levels: the mode or the mean of boxes, made once, and again where what is beneath has changed."""

from __future__ import annotations

import functools
import itertools
import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.errors import RunError
from neurotome.io.label_store import LabelStore, create_label_store, open_label_store
from neurotome.io.pyramid import Level, LevelWorker, build_pyramid, plan_levels, shrink_grey, shrink_labels

steps = st.tuples(*[st.sampled_from([1, 2])] * 3)
volumes = arrays(np.uint8, st.tuples(*[st.integers(1, 5)] * 3), elements=st.sampled_from([0, 1, 2, 7, 254, 255]))
WHOLE = (slice(None), slice(None), slice(None))


def split_boxes(voxels: NDArray[Any], step: tuple[int, int, int]) -> Iterator[tuple[tuple[int, ...], NDArray[Any]]]:
    for index in np.ndindex(*(-(-size // by) for size, by in zip(voxels.shape, step, strict=True))):
        yield index, voxels[tuple(slice(i * by, (i + 1) * by) for i, by in zip(index, step, strict=True))]


@settings(deadline=None)
@given(volumes, steps)
def test_labels_take_the_mode_of_what_is_predicted(labels: NDArray[np.uint8], step: tuple[int, int, int]) -> None:
    shrunk = shrink_labels(labels, step)
    for index, box in split_boxes(labels, step):
        predicted = box[box != 255]
        assert shrunk[index] == (scipy.stats.mode(predicted, axis=None).mode if predicted.size else 255)
    assert shrunk.shape == tuple(-(-size // by) for size, by in zip(labels.shape, step, strict=True))


@settings(deadline=None)
@given(volumes, steps)
def test_grey_maps_take_the_mean(grey: NDArray[np.uint8], step: tuple[int, int, int]) -> None:
    shrunk = shrink_grey(grey, step)
    for index, box in split_boxes(grey, step):
        assert shrunk[index] == np.floor(box.mean() + 0.5)


def test_mode_by_hand() -> None:
    labels = np.array([[[0, 1, 2, 2, 255], [1, 0, 2, 3, 255]]], np.uint8)
    np.testing.assert_array_equal(shrink_labels(labels, (1, 2, 2)), [[[0, 2, 255]]])


def test_isotropic_levels_are_halved_along_all_axes() -> None:
    levels = plan_levels((720, 1420, 5805), (64, 512, 512), (1.0, 1.0, 1.0))
    assert [level.shape_zyx for level in levels] == [
        (720, 1420, 5805),
        (360, 710, 2903),
        (180, 355, 1452),
        (90, 178, 726),
        (45, 89, 363),
        (23, 45, 182),
    ]
    assert levels[-1].factors == (32, 32, 32)
    assert plan_levels((9, 256, 9), (8, 8, 8), None) == [Level("0", (9, 256, 9), (8, 8, 8))]


def test_far_slices_wait_until_planes_are_as_coarse() -> None:
    factors = [level.factors for level in plan_levels((600, 4000, 4000), (8, 512, 512), (5.0, 1.0, 1.0))]
    assert factors == [(1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 8, 8), (4, 16, 16)]
    assert [level.factors for level in plan_levels((1, 1000, 1), (1, 8, 1), (0.1, 1.0, 1.0))][-1] == (1, 4, 1)


@settings(deadline=None)
@given(st.tuples(*[st.integers(1, 100_000)] * 3), st.tuples(*[st.floats(0.1, 10)] * 3))
def test_levels_end_and_blocks_are_of_bounded_size(shape: Any, size: Any) -> None:
    levels = plan_levels(shape, (8, 8, 8), size)
    assert max(levels[-1].shape_zyx) <= 256
    for before, level in itertools.pairwise(levels):
        assert level.step != (1, 1, 1)
        assert np.prod(level.block_zyx) <= 1 << 24
        assert level.shape_zyx == tuple(-(-n // by) for n, by in zip(before.shape_zyx, level.step, strict=True))


def run_here(build: Callable[[], Callable[[int], Any]], tasks: Iterable[int]) -> Iterator[Any]:
    work = build()
    for task in tasks:
        try:
            work(task)
            yield SimpleNamespace(task=task, error=None)
        except Exception as error:
            yield SimpleNamespace(task=task, error=str(error))


def make_store(path: Path, shape: Any, block: Any, *, is_labels: bool = True, version: Any = "0.5") -> LabelStore:
    classes = ClassSet(("background", "vessel", "cell")) if is_labels else None
    size, origin = (2.0, 1.0, 1.0), (1, 0, 0)
    return create_label_store(
        path, shape, classes=classes, block_zyx=block, voxel_size_um=size, origin_zyx=origin, version=version
    )


def fill(store: LabelStore, voxels: NDArray[np.uint8]) -> None:
    grid = Level("0", store.shape_zyx, store.block_zyx).grid
    for block in range(len(grid)):
        store.write_block(grid.place(block), voxels[grid.place(block)])


@pytest.mark.parametrize("version", ["0.5", "0.4"])
@pytest.mark.parametrize("is_labels", [True, False])
def test_pyramid_is_the_whole_volume_shrunk_and_valid(tmp_path: Path, version: Any, is_labels: bool) -> None:
    import ome_zarr_models

    voxels = np.random.default_rng(0).integers(0, 3, (5, 70, 521)).astype(np.uint8)
    voxels[:, :, 300:] = 255 if is_labels else 7
    store = make_store(tmp_path / "a.zarr", voxels.shape, (4, 32, 128), is_labels=is_labels, version=version)
    fill(store, voxels)
    build_pyramid(store, run_here)
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert sorted(group.array_keys()) == store.levels == ["0", "1", "2"]
    shrink = shrink_labels if is_labels else shrink_grey
    expected = shrink(voxels, (1, 2, 2))
    np.testing.assert_array_equal(group["1"][:], expected)  # type: ignore[index]
    np.testing.assert_array_equal(group["2"][:], shrink(expected, (2, 2, 2)))  # type: ignore[index]
    model: Any = ome_zarr_models.open_ome_zarr(group)
    assert model.ome_zarr_version == version
    attributes: Any = group.attrs.asdict()
    attributes = attributes["ome"] if version == "0.5" else attributes
    (multiscale,) = attributes["multiscales"]
    placed = [[step[step["type"]] for step in d["coordinateTransformations"]] for d in multiscale["datasets"]]
    assert placed == [
        [[2.0, 1.0, 1.0], [2.0, 0.0, 0.0]],
        [[2.0, 2.0, 2.0], [2.0, 0.5, 0.5]],
        [[4.0, 4.0, 4.0], [3.0, 1.5, 1.5]],
    ]
    assert multiscale["type"] == ("mode" if is_labels else "mean")
    assert ("image-label" in attributes) == is_labels


def test_only_what_changed_is_made_again(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a.zarr", (4, 300, 64), (4, 64, 64))
    fill(store, np.zeros((4, 300, 64), np.uint8))
    finer = Level("0", (4, 300, 64), (4, 64, 64))
    level = Level("1", (4, 150, 32), (4, 32, 32), (1, 2, 2), (1, 2, 2))
    store.open_level("1", level.shape_zyx, level.block_zyx)
    begin = pickle.loads(pickle.dumps(functools.partial(LevelWorker, str(store.path), finer, level)))  # engines send it
    worker = begin()
    assert [worker(block) for block in range(5)] == [True] * 5
    worker = begin()
    assert [worker(block) for block in range(5)] == [False] * 5
    (store.path / "1/c/0/1/0").write_bytes(b"torn")
    (store.path / "1/c/0/2/0").unlink()
    store.write_block(finer.grid.place(4), np.full((4, 44, 64), 2, np.uint8))
    worker = begin()
    assert [worker(block) for block in range(5)] == [False, True, True, False, True]
    made = np.asarray(zarr.open_array(store.path / "1", mode="r")[WHOLE])
    assert (made[:, 128:] == 2).all()
    assert not made[:, :128].any()


def test_nothing_is_read_where_nothing_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "a.zarr", (4, 64, 64), (4, 64, 64))
    place = (slice(0, 4), slice(0, 64), slice(0, 64))
    finer, level = Level("0", (4, 64, 64), (4, 64, 64)), Level("1", (4, 32, 32), (4, 32, 32), (1, 2, 2), (1, 2, 2))
    store.open_level("1", level.shape_zyx, level.block_zyx)
    store.write_block(place, np.ones((4, 64, 64), np.uint8))
    assert LevelWorker(str(store.path), finer, level)(0)
    store.write_block(place, np.full((4, 64, 64), 255, np.uint8))
    monkeypatch.setattr(LevelWorker, "_shrink", None)
    assert LevelWorker(str(store.path), finer, level)(0)
    assert not LevelWorker(str(store.path), finer, level)(0)
    assert (np.asarray(zarr.open_array(store.path / "1", mode="r")[WHOLE]) == 255).all()


def test_slabs_of_a_block_join_without_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neurotome.io.pyramid.SLAB_VOXELS", 1)
    voxels = np.random.default_rng(1).integers(0, 3, (17, 9, 8)).astype(np.uint8)
    store = make_store(tmp_path / "a.zarr", voxels.shape, (3, 8, 8))
    fill(store, voxels)
    finer, level = Level("0", (17, 9, 8), (3, 8, 8)), Level("1", (9, 5, 4), (9, 5, 4), (2, 2, 2), (2, 2, 2))
    store.open_level("1", level.shape_zyx, level.block_zyx)
    LevelWorker(str(store.path), finer, level)(0)
    made = zarr.open_array(store.path / "1", mode="r")[WHOLE]
    np.testing.assert_array_equal(made, shrink_labels(voxels, (2, 2, 2)))


def test_levels_that_failed_are_not_listed(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a.zarr", (1, 600, 600), (1, 600, 600))
    store.write_block((slice(0, 1), slice(0, 600), slice(0, 600)), np.eye(600, dtype=np.uint8)[None])
    shard = store.path / "0/c/0/0/0"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:50])
    with pytest.raises(RunError, match=r"blocks of level 1 failed, the first with: .*damaged"):
        build_pyramid(store, run_here)
    assert open_label_store(store.path).levels == ["0"]
    shard.write_bytes(whole)
    build_pyramid(store, run_here)
    assert open_label_store(store.path).levels == ["0", "1", "2"]
