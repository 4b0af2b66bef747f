"""Blocks against whole images: tiles, axes, resampling, neighbours, air."""

from __future__ import annotations

import contextlib
import tracemalloc
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from neurotome.blocks import Grid
from neurotome.classes import ClassSet
from neurotome.inference.geometry import Geometry, estimate_memory, plan_geometry
from neurotome.inference.labelling import NOT_PREDICTED, label_block
from neurotome.inference.slices import predict_slices, resize
from neurotome.models.net_predictor import NetPredictor
from neurotome.models.networks import ModelSettings
from neurotome.normalize import Normalization, Scale
from neurotome.resampling import find_needed, resample
from neurotome.volume import Volume

FREE = contextlib.nullcontext()


class TinyNet(torch.nn.Module):
    """Sees 9 pixels far, on a grid of 4: a pooling, a blur, an enlargement."""

    def __init__(self, channels=1):
        super().__init__()
        torch.manual_seed(0)
        self.stride, self.minimum = 4, 1
        self.first = torch.nn.Conv2d(channels, 4, 3, padding=1)
        self.deep = torch.nn.Conv2d(4, 8, 3, padding=1)
        self.last = torch.nn.Conv2d(8, 3, 1)

    def forward(self, images):
        height, width = images.shape[-2:]
        images = torch.nn.functional.pad(images, (0, -width % 4, 0, -height % 4), mode="replicate")
        deep = self.deep(torch.nn.functional.max_pool2d(self.first(images), 4).relu()).relu()
        return 8 * self.last(torch.nn.functional.interpolate(deep, scale_factor=4, mode="nearest"))[..., :height, :width]


def make_predictor(channels=1, voxel_size_um=None):
    return NetPredictor(
        TinyNet(channels),
        ModelSettings(in_channels=channels),
        ClassSet(("background", "vessel", "cell"), first_id=0),
        Normalization("dataset", 100.0, 40.0, "uint8"),
        halo=12,
        voxel_size_um=voxel_size_um,
    )


def make_volume(shape=(6, 70, 90), voxel_size_um=None):
    rng = np.random.default_rng(0)
    grey = np.kron(rng.integers(0, 255, [-(-n // 6) for n in shape]), np.ones((6, 6, 6)))[tuple(slice(n) for n in shape)]
    return Volume((grey + rng.normal(0, 20, shape)).clip(1, 255).astype(np.uint8), "made", voxel_size_um)


def label_volume(predictor, volume, geometry, confidence=False, tiles=None):
    grid = geometry.grid
    labels = np.full(volume.shape, 77, np.uint8)
    sure = np.full(volume.shape, 77, np.uint8)
    scale = predictor.normalization.scale_for(volume)
    for block in range(len(grid)):
        wanted = [tile for tile in grid.tiles(block) if tiles is None or tile in tiles]
        found = label_block(predictor, volume, scale, geometry, block, wanted, confidence=confidence, lock=FREE)
        labels[grid.place(block)] = found.labels
        if confidence:
            sure[grid.place(block)] = found.confidence
    return (labels, sure) if confidence else labels


def make_geometry(predictor, volume, tile, block, axes="z", **others):
    facts = {"halo": 12, "stride": 4, "reach": predictor.in_channels // 2, "planes": 2, "factors": ((1.0, 1.0),) * len(axes)}
    return Geometry(axes, Grid(volume.shape, tile, block), **{**facts, **others})


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("tile", "block"),
    [((1, 32, 24), (4, 64, 48)), ((2, 28, 92), (2, 28, 92)), ((3, 72, 8), (6, 72, 96)), ((6, 20, 20), (6, 20, 40))],
)
def test_blocks_equal_whole_slices(channels, tile, block):
    predictor, volume = make_predictor(channels), make_volume()
    whole = np.stack(list(predict_slices(predictor, volume)))
    labels, sure = label_volume(predictor, volume, make_geometry(predictor, volume, tile, block), confidence=True)
    assert len(np.unique(whole.argmax(1))) == 3
    assert (labels == whole.argmax(1)).mean() >= 0.9999
    assert np.abs(sure - 255 * whole.max(1)).max() <= 1


def test_a_halo_that_is_too_small_shows():
    predictor, volume = make_predictor(), make_volume()
    whole = np.stack(list(predict_slices(predictor, volume))).argmax(1)
    assert (label_volume(predictor, volume, make_geometry(predictor, volume, (1, 8, 8), (6, 64, 64), halo=0)) != whole).any()


@pytest.mark.parametrize(("axes", "tile"), [("z", (2, 24, 24)), ("zyx", (4, 24, 24))])
def test_a_tile_is_the_same_whatever_block_and_selection_it_stands_in(axes, tile):
    predictor, volume = make_predictor(3), make_volume((8, 60, 60))
    small = make_geometry(predictor, volume, tile, tile, axes, halo=4)
    whole, sure = label_volume(predictor, volume, small, confidence=True)
    large = replace(small, grid=Grid(volume.shape, tile, (8, 48, 72)))
    again, sure_again = label_volume(predictor, volume, large, confidence=True)
    np.testing.assert_array_equal(again, whole)
    np.testing.assert_array_equal(sure_again, sure)
    picked = label_volume(predictor, volume, large, tiles={3, 10, 17})
    is_picked = np.zeros(volume.shape, bool)
    for number in (3, 10, 17):
        is_picked[large.grid.tile_place(number)] = True
    np.testing.assert_array_equal(picked[is_picked], whole[is_picked])
    assert (picked[~is_picked] == NOT_PREDICTED).all()


@pytest.mark.parametrize("axes", ["y", "x", "zyx"])
@pytest.mark.parametrize("channels", [1, 3])
def test_axes_against_a_plain_loop(axes, channels):
    predictor, volume = make_predictor(channels), make_volume((30, 34, 38))
    total = np.zeros((3, *volume.shape), np.float32)
    for axis in axes:
        turned = np.moveaxis(volume.data, "zyx".index(axis), 0)  # (planes, rows, columns)
        for n in range(len(turned)):
            reach = [min(max(i, 0), len(turned) - 1) for i in range(n - channels // 2, n + channels // 2 + 1)]
            probs = predictor.predict_probs((turned[reach][None].astype(np.float32) - 100) / 40)[0]
            np.moveaxis(total, 1 + "zyx".index(axis), 0)[n] += probs
    tile = [16, 16, 16]
    if len(axes) == 1:
        tile["zyx".index(axes)] = 2
    geometry = make_geometry(predictor, volume, tuple(tile), tuple(2 * n for n in tile), axes)
    labels, sure = label_volume(predictor, volume, geometry, confidence=True)
    assert (labels == total.argmax(0)).mean() >= 0.9999
    assert np.abs(sure - 255 * total.max(0) / len(axes)).max() <= 1


@pytest.mark.parametrize("size_um", [(1.0, 1.6, 0.7), (1.0, 0.6, 1.5)])
def test_resampled_blocks_equal_resampled_slices(size_um):
    predictor, volume = make_predictor(3, (1.0, 1.0, 1.0)), make_volume(voxel_size_um=size_um)
    whole = np.stack(list(predict_slices(predictor, volume)))
    planned = plan_geometry(
        predictor, volume, axes="z", halo=12, tile=32, memory_bytes=10**8, bytes_per_pixel=100, threads=1, chunk_zyx=None
    )
    assert planned.factors == (size_um[1:],)
    assert planned.grid.count_tiles() > 6
    labels, sure = label_volume(predictor, volume, planned, confidence=True)
    assert (labels == whole.argmax(1)).mean() >= 0.9999
    assert np.abs(sure - 255 * whole.max(1)).max() <= 1


def test_thick_slices_are_enlarged_along_the_other_axes():
    predictor, volume = make_predictor(1, (1.0, 1.0, 1.0)), make_volume((14, 30, 34), (2.5, 1.0, 1.0))
    total = np.zeros((3, *volume.shape), np.float32)
    for axis in range(3):
        for n, plane in enumerate(np.moveaxis(volume.data, axis, 0)):
            scaled = (plane[None].astype(np.float32) - 100) / 40
            enlarged = scaled if axis == 0 else resize(scaled, (35, plane.shape[1]))
            np.moveaxis(total, 1 + axis, 0)[n] += resize(predictor.predict_probs(enlarged[None])[0], plane.shape)
    factors = ((1.0, 1.0), (2.5, 1.0), (2.5, 1.0))
    geometry = make_geometry(predictor, volume, (8, 16, 16), (16, 16, 32), "zyx", factors=factors)
    labels, sure = label_volume(predictor, volume, geometry, confidence=True)
    assert (labels == total.argmax(0)).mean() >= 0.9999
    assert np.abs(sure - 255 * total.max(0) / 3).max() <= 1


@pytest.mark.parametrize(("source", "size"), [(50, 23), (23, 50), (40, 40), (50, 1), (1, 9), (1000, 51)])
def test_resampled_regions_equal_an_image_library(source, size):
    line = np.random.default_rng(0).normal(size=(3, source)).astype(np.float32)
    expected = np.asarray(Image.fromarray(line).resize((size, 3), Image.Resampling.BILINEAR))
    for start in range(0, size, 7):
        wanted = slice(start, min(start + 7, size))
        have = find_needed(wanted, size, source)
        found = resample(line[:, have], 1, have, source, wanted, size)
        np.testing.assert_allclose(found, expected[:, wanted], atol=1e-5)


def test_air_is_not_predicted():
    predictor, volume = make_predictor(), make_volume((4, 32, 48))
    volume.data[:, :16, :16] = 0
    volume.data[:, 16:, :16] = 7
    volume.data[:, :16, 16:32] = np.minimum(volume.data[:, :16, 16:32], 30)
    geometry = make_geometry(predictor, volume, (2, 16, 16), (4, 32, 48))
    scale = Scale(100.0, 40.0)

    def list_air(**settings):
        found = label_block(predictor, volume, scale, geometry, 0, range(12), confidence=True, lock=FREE, **settings)
        for tile in range(12):
            values = found.labels[geometry.grid.tile_place(tile)], found.confidence[geometry.grid.tile_place(tile)]
            assert [(values[0] == NOT_PREDICTED).all(), (values[1] == 0).all()] == [tile in found.air_tiles] * 2
        return found.air_tiles

    assert list_air() == [0, 6]
    assert list_air(fill=7) == [0, 3, 6, 9]
    assert list_air(air_below=31) == [0, 1, 3, 6, 7, 9]
    assert list_air(air_below=30) == [0, 3, 6, 9]


def test_a_predictor_is_locked_while_it_works_and_nowhere_else():
    predictor, volume = make_predictor(), make_volume((2, 16, 16))
    held = []

    class Lock:
        def __enter__(self):
            held.append("in")

        def __exit__(self, *_):
            held.append("out")

    class Watched(NetPredictor):
        def label_patches(self, *arguments):
            held.append("label")
            return super().label_patches(*arguments)

    watched = Watched(predictor.net, predictor.settings, predictor.classes, predictor.normalization, halo=12)
    geometry = make_geometry(predictor, volume, (1, 16, 16), (2, 16, 16))
    label_block(watched, volume, Scale(100.0, 40.0), geometry, 0, [0, 1], confidence=False, lock=Lock())
    assert held == ["in", "label", "out"] * 2


def test_stored_ids_begin_where_the_classes_do():
    predictor, volume = make_predictor(), make_volume((1, 16, 16))
    geometry = make_geometry(predictor, volume, (1, 16, 16), (1, 16, 16))
    from_zero = label_volume(predictor, volume, geometry)
    predictor.classes = ClassSet(("background", "vessel", "cell"), first_id=1)
    np.testing.assert_array_equal(label_volume(predictor, volume, geometry), from_zero + 1)


class Zeros(NetPredictor):
    """Takes no memory but for its results."""

    def predict_probs(self, patches):
        return np.zeros((len(patches), 3, *patches.shape[2:]), np.float32)

    def label_patches(self, grey, scale, crop, confidence):
        zeros = np.zeros((len(grey), *(span.stop - span.start for span in crop)), np.uint8)
        return zeros, zeros if confidence else None


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("axes", "size_um"),
    [("z", (1, 1, 1)), ("z", (1, 2, 2)), ("z", (1, 0.5, 0.5)), ("x", (1, 1, 1)), ("zyx", (1, 1, 1)), ("zyx", (2, 1, 1))],
)
def test_a_block_takes_no_more_memory_than_was_reckoned(axes, size_um, channels):
    tiny = make_predictor(channels)
    predictor = Zeros(tiny.net, tiny.settings, tiny.classes, tiny.normalization, halo=12, voxel_size_um=(1.0, 1.0, 1.0))
    volume = make_volume((96, 128, 160), tuple(map(float, size_um)))
    facts = {"halo": 12, "tile": "auto", "memory_bytes": 12_000_000, "bytes_per_pixel": 12, "threads": 1, "chunk_zyx": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the distance of neighbouring planes
        geometry = plan_geometry(predictor, volume, axes=axes, **facts)
    tiles = geometry.grid.tiles(0)
    tracemalloc.start()
    label_block(predictor, volume, Scale(100.0, 40.0), geometry, 0, tiles, confidence=True, lock=FREE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= estimate_memory(geometry, itemsize=1, classes=3, bytes_per_pixel=12, threads=1) + 200_000
