"""Every format of volumes, read lazily: by several threads at once, in another process, and no more than is asked for."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from neurotome.errors import ImageError
from neurotome.io import open_volume, opening
from neurotome.io.chunks import list_chunks

STACK = np.random.default_rng(0).integers(0, 2**16, (16, 24, 20), np.uint16)


def save_tiff(path: Path, **options: Any) -> None:
    tifffile.imwrite(path, STACK, photometric="minisblack", metadata={"axes": "ZYX"}, **options)


def save_hdf5(path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file.create_dataset("grey", data=STACK, chunks=(4, 8, 8), compression="gzip")


def save_plain_zarr(path: Path, **options: Any) -> None:
    zarr.create_array(path, shape=STACK.shape, chunks=(4, 8, 8), dtype=STACK.dtype, **options)[:] = STACK


def save_ome_zarr(path: Path, version: str) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    level = {"path": "s0", "coordinateTransformations": [{"type": "scale", "scale": [2.0, 0.5, 0.5]}]}
    described: dict[str, Any] = {"multiscales": [{"version": version, "axes": axes, "datasets": [level]}]}
    group.attrs.update(described if version == "0.4" else {"ome": {"version": version, **described}})
    group.create_array("s0", shape=STACK.shape, chunks=(4, 8, 8), dtype=STACK.dtype)[:] = STACK


def save_page_by_page(path: Path) -> None:
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for plane in STACK:
            writer.write(plane, photometric="minisblack", compression="zlib")


WRITERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "multi-page TIFF": ("a.tif", lambda path: save_tiff(path, compression="zlib")),
    "Big-TIFF": ("a.tif", lambda path: save_tiff(path, bigtiff=True, compression="lzw", tile=(16, 16))),
    "Big-TIFF page by page": ("a.tif", save_page_by_page),
    "plain TIFF": ("a.tif", save_tiff),
    "HDF5": ("a.h5", save_hdf5),
    "npy": ("a.npy", lambda path: np.save(path, STACK)),
    "Zarr 2": ("a.zarr", lambda path: save_plain_zarr(path, zarr_format=2)),
    "Zarr 3": ("a.zarr", save_plain_zarr),
    "Zarr 3 sharded": ("a.zarr", lambda path: save_plain_zarr(path, shards=(8, 24, 24))),
    "OME-Zarr 0.4": ("a.zarr", lambda path: save_ome_zarr(path, "0.4")),
    "OME-Zarr 0.5": ("a.zarr", lambda path: save_ome_zarr(path, "0.5")),
}


@pytest.mark.parametrize("name", WRITERS)
def test_threads_read_at_once_what_one_reads(tmp_path: Path, name: str) -> None:
    file, save = WRITERS[name]
    save(tmp_path / file)
    volume = open_volume(tmp_path / file)
    copy = pickle.loads(pickle.dumps(volume.data))
    starts = np.random.default_rng(1).integers(0, 12, (40, 3)).tolist()

    def read(start: list[int]) -> bool:
        place = tuple(slice(i, i + 7) for i in start)
        return bool((copy[place] == STACK[place]).all())

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(read, starts))
    assert volume.voxel_size_um == ((2.0, 0.5, 0.5) if name.startswith("OME") else None)
    has_chunks = name not in ("plain TIFF", "npy")
    assert (getattr(volume.data, "chunk_zyx", None) is not None) == has_chunks
    assert (list_chunks(copy) is not None) == ("Zarr" in name or name == "HDF5")


@pytest.mark.parametrize("bigtiff", [False, True])
def test_of_a_tiff_only_the_slices_that_are_asked_for_are_decoded(
    tmp_path: Path, bigtiff: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiff(tmp_path / "a.tif", bigtiff=bigtiff, compression="zlib")
    data = open_volume(tmp_path / "a.tif").data
    decoded: list[int] = []
    plain = tifffile.TiffPage.asarray
    for kind in (tifffile.TiffPage, tifffile.TiffFrame):

        def asarray(self: Any, *args: Any, **options: Any) -> Any:
            decoded.append(self.index)
            return plain(self, *args, **options)

        monkeypatch.setattr(kind, "asarray", asarray)
    np.testing.assert_array_equal(data[5:9, 3:7, 4:8], STACK[5:9, 3:7, 4:8])
    assert decoded == [5, 6, 7, 8]


def test_a_large_npy_is_checked_where_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neurotome.sampling.LARGE", 1000)
    monkeypatch.setattr("neurotome.sampling.EDGE", 4)
    monkeypatch.setattr(opening, "SAMPLED", 1000)
    grey = STACK.astype(np.float32)
    grey[15, 23, 19] = np.nan
    np.save(tmp_path / "a.npy", grey)
    data = open_volume(tmp_path / "a.npy").data
    np.testing.assert_array_equal(data[:15], grey[:15])
    with pytest.raises(ImageError, match=r"1 pixels are NaN or infinite, the first at \(z=15, y=23, x=19\)"):
        data[14:, 20:]


def test_a_volume_that_begins_with_air_is_opened_without_reading_it_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "SAMPLED", 1000)
    monkeypatch.setattr("neurotome.sampling.EDGE", 4)
    grey = STACK.copy()
    grey[:10] = 0
    zarr.create_array(
        tmp_path / "a.zarr", shape=grey.shape, chunks=(4, 4, 4), dtype=grey.dtype, config={"write_empty_chunks": True}
    )[:] = grey
    read: list[int] = []
    plain = opening.LazyArray._read_place

    def read_noted(self: Any, place: Any) -> Any:
        read.append(int(np.prod([part.stop - part.start for part in place])))
        return plain(self, place)

    monkeypatch.setattr(opening.LazyArray, "_read_place", read_noted)
    open_volume(tmp_path / "a.zarr")
    assert sum(read) < grey.size / 3


def test_a_large_volume_of_one_value_is_told_but_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "SAMPLED", 1000)
    monkeypatch.setattr("neurotome.sampling.LARGE", 1000)
    monkeypatch.setattr("neurotome.sampling.EDGE", 4)
    zarr.create_array(tmp_path / "a.zarr", shape=STACK.shape, chunks=(4, 4, 4), dtype="uint8")
    with pytest.warns(UserWarning, match="all places that were looked at have one grey value each"):
        open_volume(tmp_path / "a.zarr")
