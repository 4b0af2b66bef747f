"""Folders of slices as one volume."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from neurotome.errors import ImageError
from neurotome.io import open_labels, open_volume
from neurotome.io.stack import list_slices

STACK = (np.arange(12 * 6 * 7, dtype=np.uint16).reshape(12, 6, 7) * 7 % 251).astype(np.uint8)


def save_slices(folder: Path, suffix: str, stack: np.ndarray = STACK) -> Path:
    folder.mkdir()
    for z, plane in enumerate(stack):
        if suffix == ".tif":
            unit = {"resolution": (2e4, 1e4), "resolutionunit": "CENTIMETER"}
            tifffile.imwrite(folder / f"scan_{z}.tif", plane, photometric="minisblack", compression="zlib", **unit)
        else:
            Image.fromarray(plane).save(folder / f"scan_{z}{suffix}")
    (folder / "log.txt").write_text("not a slice")
    return folder


@pytest.mark.parametrize("suffix", [".tif", ".png", ".bmp"])
def test_slices_are_read_in_the_order_of_their_numbers(tmp_path: Path, suffix: str) -> None:
    folder = save_slices(tmp_path / "brain", suffix)
    volume = open_volume(folder, stack=True)
    assert (volume.name, volume.shape, volume.data.dtype) == ("brain", (12, 6, 7), np.uint8)
    np.testing.assert_array_equal(volume.data[3:11, 1:4], STACK[3:11, 1:4])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume.data))[:], STACK)
    np.testing.assert_array_equal(open_labels(folder, stack=True)[2], STACK[2])
    assert volume.voxel_size_um == ((1.0, 1.0, 0.5) if suffix == ".tif" else None)
    assert volume.data[0:0].shape == (0, 6, 7)


def test_16_bits_are_kept(tmp_path: Path) -> None:
    stack = STACK.astype(np.uint16) * 200
    np.testing.assert_array_equal(open_volume(save_slices(tmp_path / "a", ".png", stack), stack=True).data[:], stack)


def test_numbers_count_whatever_their_width(tmp_path: Path) -> None:
    names = ["z10_a.png", "z2_a.png", "Z1.png", "z02_b.png", "z1.png"]
    for name in names:
        (tmp_path / name).touch()
    assert [path.name for path in list_slices(tmp_path)[0]] == ["Z1.png", "z1.png", "z2_a.png", "z02_b.png", "z10_a.png"]


def test_only_slices_that_are_asked_for_are_decoded(tmp_path: Path) -> None:
    folder = save_slices(tmp_path / "a", ".png")
    volume = open_volume(folder, stack=True)
    content = (folder / "scan_5.png").read_bytes()
    (folder / "scan_5.png").write_bytes(content[:-20])
    np.testing.assert_array_equal(volume.data[6:9], STACK[6:9])
    with pytest.raises(ImageError, match=r"scan_5.png cannot be read|scan_5.png ends"):
        volume.data[4:7]


@pytest.mark.parametrize(
    ("plane", "message"),
    [
        (np.zeros((6, 8), np.uint8), r"scan_7.png: 6 x 8 pixels \(y x x\), L, but scan_0.png has 6 x 7"),
        (np.zeros((6, 7), np.uint16), r"scan_7.png: 6 x 7 pixels \(y x x\), I;16B, but scan_0.png has .*, L; expected"),
    ],
)
def test_a_slice_unlike_the_others_is_named_before_any_is_read(tmp_path: Path, plane: np.ndarray, message: str) -> None:
    folder = save_slices(tmp_path / "a", ".png")
    Image.fromarray(plane).save(folder / "scan_7.png")
    with pytest.raises(ImageError, match=message):
        open_volume(folder, stack=True)


def test_what_is_no_folder_of_slices_is_refused(tmp_path: Path) -> None:
    folder = save_slices(tmp_path / "a", ".tif")
    with pytest.raises(ImageError, match="is a folder"):
        open_volume(folder)
    tifffile.imwrite(folder / "scan_7.tif", STACK, photometric="minisblack")
    with pytest.raises(ImageError, match=r"scan_7.tif: found 12 slices in a folder of slices"):
        open_volume(folder, stack=True)
    Image.fromarray(STACK[0]).save(folder / "b.png")
    with pytest.raises(ImageError, match=r"found .png, .tif; expected the slices of one stack"):
        open_volume(folder, stack=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="found no images; expected the slices"):
        open_volume(tmp_path / "empty", stack=True)


def test_what_predict_wrote_beside_labels_is_no_slice(tmp_path: Path) -> None:
    folder = save_slices(tmp_path / "a", ".png")
    plain = open_volume(folder, stack=True).data[:]
    names = [path.stem for path in folder.glob("*.png")]
    for name in names:
        for what in ("overlay", "confidence"):
            Image.fromarray(np.zeros((3, 3, 3), np.uint8)).save(folder / f"{name}_{what}.png")
    Image.fromarray(np.zeros((3, 3, 3), np.uint8)).save(folder / "legend.png")
    with pytest.warns(UserWarning, match=r"_confidence\.png, .* left out: no slices"):
        np.testing.assert_array_equal(open_volume(folder, stack=True).data[:], plain)
    (folder / f"{names[0]}.png").unlink()
    with pytest.raises(ImageError, match="expected slices of one stack to be alike"):
        open_volume(folder, stack=True)  # an overlay of nothing is somebody's


def test_several_threads_read_at_once(tmp_path: Path) -> None:
    data = open_volume(save_slices(tmp_path / "a", ".tif"), stack=True).data
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda i: data[i % 10 : i % 10 + 3], range(60)))
    assert all((planes == STACK[i % 10 : i % 10 + 3]).all() for i, planes in enumerate(found))


def test_slices_that_are_missing_are_told(tmp_path: Path) -> None:
    folder = save_slices(tmp_path / "run3", ".png")
    (folder / "scan_5.png").unlink()
    (folder / "scan_6.png").unlink()
    with pytest.warns(UserWarning, match=r"missing, in 1 places; the first is between scan_4.png and scan_7.png"):
        assert open_volume(folder, stack=True).shape == (10, 6, 7)
    for z in (1, 3, 4, 7, 9, 11):
        (folder / f"scan_{z}.png").unlink(missing_ok=True)
    (folder / "scan_6.png").write_bytes((folder / "scan_2.png").read_bytes())
    (folder / "scan_4.png").write_bytes((folder / "scan_2.png").read_bytes())
    assert open_volume(folder, stack=True).shape == (6, 6, 7)  # every second slice
