"""Which chunks are stored, from listings of small sparse stores of every kind."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from neurotome.io import open_volume
from neurotome.io.chunks import ChunkMap, list_chunks

SHAPE, CHUNK = (10, 9, 8), (4, 4, 3)


def sparse_zarr(path: Path, **options: Any) -> Any:
    """Writes a store in which only the chunks around two voxels exist."""
    array = zarr.create_array(path, shape=SHAPE, chunks=CHUNK, dtype="uint8", fill_value=7, **options)
    array[1, 5, 0] = 200
    array[9, 8, 7] = 100
    return array


SEPARATORS = [
    {"zarr_format": version, "chunk_key_encoding": {"name": name, "separator": separator}}
    for version, name, separator in [
        (2, "v2", "."),
        (2, "v2", "/"),
        (3, "default", "/"),
        (3, "default", "."),
        (3, "v2", "."),
    ]
]


@pytest.mark.parametrize("options", SEPARATORS, ids=str)
def test_stored_chunks_are_listed_and_missing_ones_read_as_fill(tmp_path: Path, options: dict[str, Any]) -> None:
    sparse_zarr(tmp_path / "a.zarr", **options)
    volume = open_volume(tmp_path / "a.zarr")
    found = list_chunks(volume.data)
    assert found is not None
    assert (found.shape_zyx, found.chunk_zyx, found.fill) == (SHAPE, CHUNK, 7)
    assert np.argwhere(found.stored).tolist() == [[0, 1, 0], [2, 2, 2]]
    assert found.note == "25 of 27 chunks are missing; read as fill value 7."
    assert volume.data[0, 0, 0] == 7
    assert volume.data[1, 5, 0] == 200


def test_a_shard_counts_as_one_chunk(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", shape=(16, 16, 16), chunks=(4, 4, 4), shards=(8, 8, 16), dtype="uint8")
    array[9, 1, 1] = 5
    found = list_chunks(open_volume(tmp_path / "a.zarr").data)
    assert found is not None
    assert found.chunk_zyx == (8, 8, 16)
    assert np.argwhere(found.stored).tolist() == [[1, 0, 0]]


def test_only_the_chosen_channel_is_listed(tmp_path: Path) -> None:
    names = ["c", "z", "y", "x"]
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(2, *SHAPE), chunks=(1, *CHUNK), dtype="uint8", dimension_names=names
    )
    array[0, 1, 1, 1] = 1
    array[1, 9, 1, 1] = 1
    found = list_chunks(open_volume(tmp_path / "a.zarr", channel=1).data)
    assert found is not None
    assert np.argwhere(found.stored).tolist() == [[2, 0, 0]]


def test_hdf5_tells_its_chunks_unless_it_has_none(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("grey", SHAPE, "uint8", chunks=CHUNK, fillvalue=7)
        dataset[1, 5, 0] = 200
        file["plain"] = np.arange(720, dtype=np.uint8).reshape(SHAPE)
    found = list_chunks(open_volume(f"{tmp_path / 'a.h5'}:/grey").data)
    assert found is not None
    assert (found.chunk_zyx, found.fill, np.argwhere(found.stored).tolist()) == (CHUNK, 7, [[0, 1, 0]])
    assert list_chunks(open_volume(f"{tmp_path / 'a.h5'}:/plain").data) is None


def test_an_array_in_memory_tells_nothing() -> None:
    assert list_chunks(np.zeros(SHAPE)) is None


def test_boxes_meet_chunks_as_a_plain_loop_finds() -> None:
    rng = np.random.default_rng(0)
    stored = rng.random((3, 3, 3)) < 0.3
    found = ChunkMap(SHAPE, CHUNK, stored, 0)
    voxels = stored.repeat(4, 0).repeat(4, 1).repeat(3, 2)[:10, :9, :8]
    starts = [np.arange(0, size, 2) for size in SHAPE]
    stops = [np.minimum(start + 3, size) for start, size in zip(starts, SHAPE, strict=True)]
    met = found.touch(list(zip(starts, stops, strict=True)))
    for z, y, x in product(*(range(len(start)) for start in starts)):
        box = tuple(slice(a[i], b[i]) for i, a, b in zip((z, y, x), starts, stops, strict=True))
        assert met[z, y, x] == voxels[box].any()
