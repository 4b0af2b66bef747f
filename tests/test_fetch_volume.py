"""fetch bossdb://...: a box of any channel becomes an OME-Zarr 0.5 that zarr reads, with the specification's metadata."""

from __future__ import annotations

import json

import numpy as np
import pytest
import zarr

from neurotome.datasets import fetch as module
from neurotome.datasets.fetch import fetch, fetch_volume, parse_range
from neurotome.errors import FetchError, RunError, SettingsError
from neurotome.io.bossdb import Box, Connection
from neurotome.io.ome_zarr import choose_shard
from tests import fake_bossdb
from tests.fake_bossdb import make_image, make_labels, serve

IMAGE = "bossdb://prasad/prasad2020/image"
LABELS = "bossdb://prasad/prasad_analysis/pixel_labels"
BOX = Box((380, 900, 4600), (400, 970, 4690))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "choose_shard", lambda _: (16, 64, 64))
    monkeypatch.setattr(module, "CHUNK", (8, 32, 32))


@pytest.fixture
def server():
    with serve(stall_s=5) as running:
        yield running


def connect(server, **settings):
    return Connection(server.host, "http", **{"timeout_s": 20, "backoff_s": 0.01, "attempts": 2, **settings})


def truth(make):
    z, y, x = np.ogrid[tuple(slice(a, b) for a, b in zip(*BOX, strict=True))]
    return make(z, y, x)


def cutouts(server):
    return [path for path, _ in server.record.requests if "/cutout/" in path]


def test_voxels_and_metadata(server, tmp_path):
    out = fetch_volume(IMAGE, BOX, tmp_path / "volume.zarr", connect(server))
    group = zarr.open_group(out, mode="r")
    assert group.metadata.zarr_format == 3
    ome = group.attrs["ome"]
    assert ome["version"] == "0.5"
    (multiscale,) = ome["multiscales"]
    assert multiscale["name"] == "image"
    assert multiscale["axes"] == [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    (level,) = multiscale["datasets"]
    scale, translation = level["coordinateTransformations"]
    assert scale == {"type": "scale", "scale": [1.17, 1.17, 1.17]}
    assert translation["type"] == "translation"
    assert translation["translation"] == pytest.approx([380 * 1.17, 900 * 1.17, 4600 * 1.17])
    array = group[level["path"]]
    assert (array.dtype, array.shards, array.chunks) == (np.uint8, (16, 64, 64), (8, 32, 32))
    assert array.metadata.dimension_names == ("z", "y", "x")
    np.testing.assert_array_equal(array[:], truth(make_image))
    notes = group.attrs["neurotome"]
    assert notes["complete"] is True
    assert notes["source"] == {"host": server.host, "uri": IMAGE, "range_zyx": "380:400,900:970,4600:4690"}
    assert notes["licence"] == "CC BY 4.0"
    assert {"first", "last"} == set(notes["times"])


def test_wide_labels_stay_wide(server, tmp_path):
    out = fetch_volume(LABELS, BOX, tmp_path / "labels.zarr", connect(server))
    array = zarr.open_array(out, path="0", mode="r")
    assert array.dtype == np.uint64
    np.testing.assert_array_equal(array[:], truth(make_labels))


def test_stopped_in_the_middle_it_goes_on(server, tmp_path):
    out = tmp_path / "volume.zarr"
    server.fail("500", times=-1, match="/4664:4690/964:970/396:400/")
    with pytest.raises(FetchError, match="the same command goes on"):
        fetch_volume(IMAGE, BOX, out, connect(server, workers=1))  # more would be stopped in the middle of other blocks
    assert zarr.open_group(out, mode="r").attrs["neurotome"]["complete"] is False
    server.faults.clear()
    fetch_volume(IMAGE, BOX, out, connect(server))
    np.testing.assert_array_equal(zarr.open_array(out, path="0", mode="r")[:], truth(make_image))
    assert len(cutouts(server)) == 8 + 2  # the failing block was asked for twice before
    asked = len(cutouts(server))
    fetch_volume(IMAGE, BOX, out, connect(server))
    assert len(cutouts(server)) == asked


def test_the_command(server, tmp_path):
    options = {"range_zyx": "380:400,900:970,4600:4690", "connection": connect(server)}
    out = fetch(IMAGE, out=tmp_path / "a.zarr", voxel_size_um=(2.0, 0.5, 0.25), **options)
    level = json.loads((out / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]["datasets"][0]
    assert level["coordinateTransformations"][0]["scale"] == [2.0, 0.5, 0.25]
    np.testing.assert_array_equal(zarr.open_array(out, path="0", mode="r")[:], truth(make_image))


def test_the_servers_voxel_size_is_used_where_none_is_published(server, tmp_path, monkeypatch):
    monkeypatch.setitem(fake_bossdb.CHANNELS, ("a", "b", "c"), ("uint8", "image"))
    out = fetch_volume("bossdb://a/b/c", BOX, tmp_path / "c.zarr", connect(server))
    attributes = json.loads((out / "zarr.json").read_text())["attributes"]
    scale = attributes["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"]
    assert scale == pytest.approx([2.0, 0.001, 0.001])
    assert "licence" not in attributes["neurotome"]


def test_wrong_inputs(server, tmp_path, monkeypatch):
    out = tmp_path / "volume.zarr"
    outside = Box((0, 0, 0), (1, 3000, 1))
    with pytest.raises(SettingsError, match=r"not within .* 0:720,0:2048,0:6144"):
        fetch_volume(IMAGE, outside, out, connect(server))
    with pytest.raises(FetchError, match="404"):
        fetch_volume("bossdb://no/such/channel", BOX, out, connect(server))
    with pytest.raises(SettingsError, match="three positive numbers"):
        fetch_volume(IMAGE, BOX, out, connect(server), voxel_size_um=(1.0, 0.0, 1.0))
    assert not out.exists()
    out.mkdir()
    (out / "other.txt").write_text("")
    with pytest.raises(RunError, match="nobody knows where it comes from"):
        fetch_volume(IMAGE, BOX, out, connect(server))
    fetch_volume(IMAGE, BOX, tmp_path / "a.zarr", connect(server))
    with pytest.raises(RunError, match="another source"):
        fetch_volume(IMAGE, BOX._replace(stop=(401, 970, 4690)), tmp_path / "a.zarr", connect(server))
    monkeypatch.setattr(module, "choose_shard", lambda _: (8, 64, 64))
    with pytest.raises(RunError, match="in blocks of"):
        fetch_volume(IMAGE, BOX, tmp_path / "a.zarr", connect(server))


def test_parse_range():
    assert parse_range("380:400,900:970,4600:4690") == BOX
    assert str(BOX) == "380:400,900:970,4600:4690"


def test_blocks_of_wide_dtypes_stay_small():
    assert choose_shard(np.dtype(np.uint8)) == (64, 512, 512)
    assert choose_shard(np.dtype(np.uint64)) == (64, 128, 256)
