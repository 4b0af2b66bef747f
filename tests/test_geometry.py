"""Tiles and blocks that are chosen by memory."""

from __future__ import annotations

import json
import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurotome.errors import ImageError, SettingsError
from neurotome.inference.geometry import Geometry, count_read_share, estimate_memory, plan_geometry, plan_span
from neurotome.volume import Volume


def make_predictor(halo=288, stride=32, channels=1, bounded=True, voxel_size_um=None):
    return SimpleNamespace(
        classes="abcd",
        halo_zyx=(0, halo, halo),
        stride_zyx=(1, stride, stride),
        in_channels=channels,
        bounded=bounded,
        voxel_size_um=voxel_size_um,
    )


def plan(shape, predictor=None, voxel_size_um=None, **others):
    predictor = make_predictor() if predictor is None else predictor
    volume = Volume(SimpleNamespace(shape=shape, ndim=3, dtype=np.dtype(np.uint8)), "made", voxel_size_um)
    facts = {"axes": "z", "halo": predictor.halo_zyx[1], "tile": "auto", "memory_bytes": 1_600_000_000}
    facts |= {"bytes_per_pixel": 400, "threads": 2, "chunk_zyx": None}
    return plan_geometry(predictor, volume, **{**facts, **others})


def test_a_large_slice_gets_tiles_of_its_whole_height():
    geometry = plan((720, 1420, 5805), chunk_zyx=(64, 64, 64))
    assert geometry.grid.tile_zyx[1] >= 1420
    assert count_read_share(geometry) < 1.35  # cores of 1024: 2.0
    assert 64 % geometry.grid.block_zyx[0] == 0 or geometry.grid.block_zyx[0] % 64 == 0
    assert 16_000_000 <= math.prod(geometry.grid.block_zyx) <= 140_000_000
    with_more = plan((720, 1420, 5805), memory_bytes=8_000_000_000)
    assert count_read_share(with_more) == 1
    assert with_more.covers_planes()


def test_where_decoding_costs_blocks_are_deep():
    geometry = plan((720, 1420, 5805), chunk_zyx=(64, 64, 64), decode_cost=0.3)
    assert geometry.grid.block_zyx[0] == 64


def test_small_slices_go_in_together():
    geometry = plan((50, 64, 60))
    assert geometry.grid.tile_zyx == (8, 64, 64)
    assert plan((3, 64, 60)).grid.tile_zyx == (3, 64, 64)
    assert plan((1, 3000, 3000)).planes == 1


def test_an_asked_tile_is_rounded_to_the_stride():
    assert plan((4, 500, 70), tile=100).grid.tile_zyx[1:] == (128, 96)


@pytest.mark.parametrize(("axes", "tile"), [("y", (64, 8, 256)), ("x", (64, 128, 8)), ("zyx", (64, 128, 256))])
def test_tiles_lie_in_the_planes_of_their_axes(axes, tile):
    geometry = plan((50, 100, 200), make_predictor(halo=32), axes=axes)
    assert geometry.grid.tile_zyx == tile
    assert geometry.planes == 8


def test_too_little_memory_is_refused_with_what_it_takes():
    with pytest.raises(SettingsError, match=r"smallest tile of 1 x 64 x 64 .*164 MB to predict.*found 100 MB.*--max-memory"):
        plan((720, 1420, 5805), memory_bytes=100_000_000)
    with pytest.raises(SettingsError, match=r"tile asked for .*1 x 1024 x 1024"):
        plan((720, 1420, 5805), tile=1024, memory_bytes=800_000_000)
    with pytest.raises(SettingsError, match=r"on the device"):
        plan((720, 1420, 5805), device_bytes=1_000_000)
    with pytest.raises(SettingsError, match=r"unknown axes 'xy'"):
        plan((8, 64, 64), axes="xy")


def test_a_device_has_its_own_memory():
    geometry = plan((720, 1420, 5805), memory_bytes=600_000_000, device_bytes=8_000_000_000)
    assert geometry.covers_planes()


def test_a_forward_pass_has_a_limit_whatever_the_memory():
    geometry = plan((10_000, 10_000, 10_000), memory_bytes=10**12)
    reads = [geometry.read_box(geometry.grid.tile_place(tile)) for tile in range(math.prod(geometry.grid.tiles_zyx[1:]))]
    assert math.prod(plan((10_000, 10_000, 10_000), memory_bytes=10**12, axes="zyx").grid.tile_zyx) <= 1 << 27
    assert 8_000_000 < max(math.prod(span.stop - span.start for span in read) for read in reads) <= 1 << 24


def test_a_network_that_sees_all_says_that_tiles_approximate():
    with pytest.warns(UserWarning, match="only approximate"):
        plan((2, 1420, 5805), make_predictor(bounded=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan((2, 600, 600), make_predictor(bounded=False))


def test_neighbours_at_another_distance_are_told():
    predictor = make_predictor(channels=3, voxel_size_um=(1.0, 1.0, 1.0))
    with pytest.warns(UserWarning, match=r"4 um along z, but .*reads 3 of them at once, learned from 1 um"):
        plan((8, 64, 64), predictor, (4.0, 1.0, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan((8, 64, 64), predictor, (4.0, 1.0, 1.0), axes="y")
        plan((8, 64, 64), make_predictor(voxel_size_um=(1.0, 1.0, 1.0)), (4.0, 1.0, 1.0))


def test_other_voxel_sizes_become_factors():
    predictor = make_predictor(voxel_size_um=(1.0, 1.0, 1.0))
    assert plan((8, 64, 64), predictor, (5.0, 2.0, 1.0)).factors == ((2.0, 1.0),)  # thickness is no size
    assert plan((8, 64, 64), predictor, (5.0, 2.0, 1.0), axes="zyx").factors == ((2.0, 1.0), (5.0, 1.0), (5.0, 2.0))
    assert plan((8, 64, 64), predictor, (1.0, 1.03, 0.98), axes="zyx").factors == ((1.0, 1.0),) * 3
    with pytest.raises(ImageError, match=r"50 x 1 um.*1 x 1 um \(z x x\)"):
        plan((8, 64, 64), predictor, (50.0, 1.0, 1.0), axes="y")


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(1, 60), st.integers(1, 900), st.integers(1, 900)),
    st.sampled_from(["z", "y", "x", "zyx"]),
    st.sampled_from([0, 5, 64, 288]),
    st.sampled_from([1, 16, 32]),
    st.sampled_from([1, 3]),
    st.sampled_from([None, (64, 64, 64), (1, 900, 900)]),
    st.sampled_from([(1.0, 1.0, 1.0), (3.0, 0.6, 2.0)]),
    st.floats(2e7, 1e9),
)
def test_memory_is_kept_and_blocks_read_no_more_than_was_reckoned(shape, axes, halo, stride, channels, chunk, size, memory):
    predictor = make_predictor(halo, stride, channels, voxel_size_um=(1.0, 1.0, 1.0))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the distance of neighbouring planes
            geometry = plan(shape, predictor, size, axes=axes, memory_bytes=int(memory), chunk_zyx=chunk)
    except SettingsError:
        return
    assert Geometry.from_json(json.loads(json.dumps(geometry.to_json()))) == geometry
    without_raw = {"itemsize": 0, "classes": 4, "bytes_per_pixel": 400, "threads": 2}
    need = estimate_memory(geometry, **{**without_raw, "itemsize": 1})
    assert need <= memory
    grid = geometry.grid
    blocks = range(len(grid)) if len(grid) < 20 else (0, len(grid) // 2, len(grid) - 1)
    for block in blocks:
        read = geometry.read_box(grid.place(block))
        assert 2 * math.prod(span.stop - span.start for span in read) <= need - estimate_memory(geometry, **without_raw)
        for tile in grid.tiles(block)[[0, -1]]:
            for outer, inner in zip(read, geometry.read_box(grid.tile_place(tile)), strict=True):
                assert outer.start <= inner.start < inner.stop <= outer.stop


@settings(deadline=None)
@given(st.integers(1, 300), st.data(), st.integers(0, 40), st.integers(1, 32), st.sampled_from([1.0, 0.3, 2.7]))
def test_what_is_read_covers_the_halo_on_the_grid_of_the_stride(size, data, halo, stride, factor):
    start = data.draw(st.integers(0, size - 1))
    core = slice(start, data.draw(st.integers(start + 1, size)))
    span = plan_span(core, size, factor, halo, stride)
    assert span.model_read.start % stride == 0
    assert span.model_read.stop % stride == 0 or span.model_read.stop == span.model_size
    assert span.model_read.start <= max(0, span.model_core.start - halo)
    assert span.model_read.stop >= min(span.model_size, span.model_core.stop + halo)
    assert 0 <= span.read.start < span.read.stop <= size
    if factor == 1:
        assert span.read == span.model_read
