"""Which chunks are stored, from listings of small sparse stores of every kind."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from neurotome.errors import ImageError
from neurotome.io import open_labels, open_volume
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
        assert met[z, y, x] == voxels[box].any() == found.meets(box)  # type: ignore[arg-type]


CUTS = [
    pytest.param({"zarr_format": 2}, id="zarr2"),
    pytest.param({"zarr_format": 2, "compressors": None}, id="zarr2 plain"),
    pytest.param({"zarr_format": 3}, id="zarr3"),
    pytest.param({"zarr_format": 3, "compressors": None}, id="zarr3 plain"),
    pytest.param({"zarr_format": 3, "shards": (8, 8, 4)}, id="zarr3 sharded"),
    pytest.param({"zarr_format": 3, "shards": {"shape": (8, 8, 4), "index_location": "start"}}, id="zarr3 index first"),
]


@pytest.mark.parametrize("options", CUTS)
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.98])
def test_a_chunk_that_was_cut_is_named_and_never_read_as_zeros(tmp_path: Path, options: dict[str, Any], keep: float) -> None:
    grey = np.random.default_rng(0).integers(1, 255, (8, 8, 8), np.uint8)
    array = zarr.create_array(tmp_path / "a.zarr", shape=grey.shape, chunks=(4, 4, 4), dtype="uint8", **options)
    array[:] = grey
    key = array.metadata.encode_chunk_key((0, 0, 1) if "shards" in options else (1, 1, 1))
    file = tmp_path / "a.zarr" / key
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])
    data = open_labels(tmp_path / "a.zarr")  # which reads nothing yet
    np.testing.assert_array_equal(data[:, :, :4], grey[:, :, :4])
    for place in ((slice(None),) * 3, (slice(5, 6), slice(5, 7), slice(3, 8))):
        with pytest.raises(ImageError, match=rf"{key}: this chunk is damaged or was cut \(\d+ bytes"):
            data[place]


@pytest.mark.parametrize(("version", "axes"), [("0.4", "zyx"), ("0.5", "czyx")])
def test_axes_that_do_not_match_the_array_are_refused(tmp_path: Path, version: str, axes: str) -> None:
    zarr_format: Any = 2 if version == "0.4" else 3
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=zarr_format)
    named = [{"name": axis, "type": "space"} for axis in axes]
    scale = [{"type": "scale", "scale": [1.0, 1.0]}]
    levels = [{"path": "0", "coordinateTransformations": scale}]
    described: dict[str, Any] = {"multiscales": [{"version": version, "axes": named, "datasets": levels}]}
    group.attrs.update(described if version == "0.4" else {"ome": {"version": version, **described}})
    group.create_array("0", shape=(2, 3, 4, 5)[-len(axes) :], dtype="uint8")
    with pytest.raises(ImageError, match=r"the scale \[1.0, 1.0\] for the axes .*z, y, x; expected a number for each"):
        open_volume(tmp_path / "a.zarr", channel=0 if "c" in axes else None)
    del group["0"]
    group.create_array("0", shape=(2, 3, 4, 5)[: 7 - len(axes)], dtype="uint8")
    with pytest.raises(
        ImageError, match=r"metadata name the axes .*z, y, x, but its array 0 has [34] axes, of shape \(2, 3"
    ):
        open_volume(tmp_path / "a.zarr")


def test_a_plain_array_may_name_its_axes_and_else_has_the_usual_ones(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", shape=(3, 4, 5), dtype="uint8", zarr_format=2)
    array.attrs["_ARRAY_DIMENSIONS"] = ["x", "y", "z"]
    array[1, 2, 3] = 9
    assert open_volume(tmp_path / "a.zarr").data[3, 2, 1] == 9
    zarr.create_array(tmp_path / "b.zarr", shape=(2, 3, 4, 5), dtype="uint8")
    with pytest.raises(
        ImageError, match=r"found axes CZYX of shape \(2, 3, 4, 5\), 2 channels; .* Choose with channel=0..1"
    ):
        open_volume(tmp_path / "b.zarr")
