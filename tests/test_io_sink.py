"""Sinks: written slice by slice, calibrated, in colour, whole or not at all."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from neurotome.classes import ClassSet
from neurotome.errors import ImageError
from neurotome.io import (
    create_image,
    create_labels,
    open_labels,
    open_volume,
    read_image,
    read_labels,
    sink,
    write_image,
    write_labels,
)
from neurotome.volume import Volume

CLASSES = ClassSet(("background", "axon", "größe = 背景"))
LABELS = (np.arange(4 * 5 * 6).reshape(4, 5, 6) % 3).astype(np.uint8)
LIKE = Volume(np.ones((4, 5, 6), np.uint8), "scan", (2.0, 0.65, 1.17), origin_zyx=(10, 20, 30))
WHOLE = slice(None)
SUFFIXES = [".tif", ".npy", ".zarr"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_slices_come_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"deep/a{suffix}"
    with create_labels(path, LABELS.shape, CLASSES, LIKE) as labels:
        labels.write((slice(0, 1), WHOLE, WHOLE), LABELS[:1].astype(np.int64))
        assert not path.exists()
        labels.write((slice(1, 4), WHOLE, WHOLE), LABELS[1:])
    np.testing.assert_array_equal(read_labels(path), LABELS)
    assert [found.name for found in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".png", *SUFFIXES])
@pytest.mark.parametrize("existed", [False, True])
def test_a_file_is_whole_or_not_there(tmp_path: Path, suffix: str, existed: bool) -> None:
    path, shape = tmp_path / f"a{suffix}", (1 if suffix == ".png" else 4, 5, 6)
    if existed:
        write_labels(path, LABELS[: shape[0]])
    with pytest.raises(RuntimeError, match="stopped"), create_labels(path, shape) as labels:  # noqa: PT012
        labels.write((slice(0, 1), WHOLE, WHOLE), 7 * np.ones((1, 5, 6), np.uint8))
        raise RuntimeError("stopped")
    with pytest.raises(ValueError, match="0 of"), create_labels(path, shape):
        pass
    assert [found.name for found in tmp_path.iterdir()] == ([path.name] if existed else [])
    if existed:
        np.testing.assert_array_equal(read_labels(path), LABELS[: shape[0]])
        write_labels(path, LABELS[: shape[0]] * 0)
        assert read_labels(path).max() == 0


@pytest.mark.parametrize("suffix", [".tif", ".npy"])
def test_slices_out_of_turn_are_a_bug(tmp_path: Path, suffix: str) -> None:
    with (
        pytest.raises(ValueError, match="cannot be written next"),
        create_labels(tmp_path / f"a{suffix}", (4, 5, 6)) as labels,
    ):
        labels.write((slice(1, 2), WHOLE, WHOLE), LABELS[1:2])
    with (
        pytest.raises(ValueError, match="cannot be written next"),
        create_labels(tmp_path / f"a{suffix}", (4, 5, 6)) as labels,
    ):
        labels.write((slice(0, 1), slice(0, 3), WHOLE), LABELS[:1, :3])
    with (
        pytest.raises(ValueError, match="expected uint16"),
        create_image(tmp_path / f"a{suffix}", (4, 5, 6), "uint16") as grey,
    ):
        grey.write((slice(0, 1), WHOLE, WHOLE), LABELS[:1])


def test_blocks_of_zarr_come_in_any_order(tmp_path: Path) -> None:
    with create_labels(tmp_path / "a.zarr", LABELS.shape, block=(2, 3, 6)) as labels:
        for z, y in [(2, 3), (0, 0), (2, 0), (0, 3)]:
            place = (slice(z, z + 2), slice(y, min(y + 3, 5)), WHOLE)
            labels.write(place, LABELS[place])
    np.testing.assert_array_equal(read_labels(tmp_path / "a.zarr"), LABELS)
    with (
        pytest.raises(ValueError, match="begin and end"),
        create_labels(tmp_path / "b.zarr", (4, 5, 6), block=(2, 5, 6)) as labels,
    ):
        labels.write((slice(1, 3), WHOLE, WHOLE), LABELS[1:3])


@pytest.mark.parametrize("slices", [1, 4])
def test_tiff_labels_are_calibrated_named_and_coloured(tmp_path: Path, slices: int) -> None:
    write_labels(tmp_path / "a.tif", LABELS[:slices], CLASSES, LIKE)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        page, described = file.pages.first, file.imagej_metadata
        assert file.series[0].axes == ("ZYX" if slices > 1 else "YX")
        np.testing.assert_array_equal(file.asarray().reshape(slices, 5, 6), LABELS[:slices])
        assert page.photometric == tifffile.PHOTOMETRIC.PALETTE
        np.testing.assert_array_equal(page.colormap[:, :3].T // 257, CLASSES.colours)
        assert (described["unit"], described["spacing"], described["slices"]) == ("micron", 2.0, slices)
        pixels = [page.tags[name].value for name in ("XResolution", "YResolution")]
        assert [below / above for above, below in pixels] == pytest.approx([1.17, 0.65], rel=1e-6)
        assert json.loads(described["classes"]) == {"0": "background", "1": "axon", "2": "größe = 背景"}


def test_png_labels_are_coloured_and_keep_their_ids(tmp_path: Path) -> None:
    write_labels(tmp_path / "a.png", LABELS[0], CLASSES)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), LABELS[0])
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), CLASSES.paint(LABELS[0]))
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), LABELS[:1])


def test_zarr_labels_are_calibrated_named_and_coloured(tmp_path: Path) -> None:
    write_labels(tmp_path / "a.zarr", LABELS, CLASSES, LIKE)
    described: Any = zarr.open_group(tmp_path / "a.zarr", mode="r").attrs["ome"]
    assert described["version"] == "0.5"
    assert described["image-label"]["colors"][1] == {"label-value": 1, "rgba": [*CLASSES.colours[1], 255]}
    assert described["image-label"]["properties"][2] == {"label-value": 2, "name": "größe = 背景"}
    steps = described["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    assert steps[0]["scale"] == [2.0, 0.65, 1.17]
    assert steps[1]["translation"] == pytest.approx([20.0, 13.0, 35.1])


@pytest.mark.parametrize("suffix", [".png", *SUFFIXES])
def test_classes_that_begin_with_1_are_written_as_they_were_read(tmp_path: Path, suffix: str) -> None:
    classes = ClassSet(("cell", "vessel"), first_id=1)
    labels = np.array([[[0, 1, 255], [1, 0, 0]]], np.uint8)
    write_labels(tmp_path / f"a{suffix}", labels, classes)
    assert read_labels(tmp_path / f"a{suffix}").tolist() == [[[1, 2, 0], [2, 1, 1]]]
    if suffix == ".png":
        with Image.open(tmp_path / "a.png") as image:
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), classes.paint(labels[0]))
    if suffix == ".tif":
        with tifffile.TiffFile(tmp_path / "a.tif") as file:
            assert json.loads(file.imagej_metadata["classes"]) == {"1": "cell", "2": "vessel"}
            np.testing.assert_array_equal(file.pages.first.colormap[:, 1:3].T // 257, classes.colours)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_without_a_voxel_size_none_is_claimed(tmp_path: Path, suffix: str) -> None:
    write_image(tmp_path / f"a{suffix}", LABELS)
    assert open_volume(tmp_path / f"a{suffix}").voxel_size_um is None


@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_grey_images_are_calibrated(tmp_path: Path, suffix: str, dtype: str) -> None:
    write_image(tmp_path / f"a{suffix}", LABELS.astype(dtype), LIKE)
    volume = read_image(tmp_path / f"a{suffix}")
    assert volume.voxel_size_um == pytest.approx(LIKE.voxel_size_um, rel=1e-6)
    assert volume.data.dtype == dtype
    np.testing.assert_array_equal(volume.data, LABELS)


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_colours_come_back(tmp_path: Path, suffix: str) -> None:
    colours = CLASSES.paint(LABELS)[: 1 if suffix == ".png" else 4]
    with create_image(tmp_path / f"a{suffix}", colours.shape[:3], "uint8", colours=True, like=LIKE) as picture:
        picture.write((WHOLE, WHOLE, WHOLE), colours)
    found = tifffile.imread(tmp_path / "a.tif") if suffix == ".tif" else np.asarray(Image.open(tmp_path / "a.png"))[None]
    np.testing.assert_array_equal(found, colours)


def test_colours_have_no_other_formats(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"unknown suffix '\.npy'; expected \.png, \.tif, \.tiff"):
        create_image(tmp_path / "a.npy", (1, 2, 3), "uint8", colours=True).__enter__()


@pytest.mark.parametrize(("limit", "big"), [(479, True), (480, False)])
def test_large_files_have_64_bit_offsets_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, big: bool
) -> None:
    monkeypatch.setattr(sink, "BIG_TIFF_BYTES", limit)
    write_image(tmp_path / "a.tif", LABELS.astype(np.float32), LIKE)  # 480 bytes
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_bigtiff == big
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").data, LABELS)
    assert open_volume(tmp_path / "a.tif").voxel_size_um == pytest.approx(LIKE.voxel_size_um, rel=1e-6)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_memory_does_not_grow_with_the_slices(tmp_path: Path, suffix: str) -> None:
    plane = np.random.default_rng(0).integers(0, 3, (1, 256, 256)).astype(np.uint8)
    peaks = []
    for slices in (4, 4, 64):  # the first time imports what is needed
        tracemalloc.start()
        with create_labels(tmp_path / f"{slices}{suffix}", (slices, 256, 256), CLASSES, LIKE) as labels:
            for z in range(slices):
                labels.write((slice(z, z + 1), WHOLE, WHOLE), plane)
        data = open_labels(tmp_path / f"{slices}{suffix}")
        assert sum(int(data[z].max()) for z in range(slices)) == 2 * slices
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < peaks[1] + 64 * 256 * 256 / 4, peaks
