"""Which tiles are computed, compared with plain loops over voxels."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from neurotome.blocks import Grid, parse_bbox
from neurotome.errors import ImageError, SettingsError
from neurotome.inference import selection
from neurotome.inference.selection import select_tiles
from neurotome.io import open_labels
from neurotome.io.chunks import ChunkMap
from neurotome.volume import Volume

GRID = Grid((10, 30, 25), (2, 8, 8), (4, 16, 32))


def loop_tiles(grid: Grid, voxels: np.ndarray) -> list[bool]:
    return [bool(voxels[grid.tile_place(tile)].any()) for tile in range(grid.count_tiles())]


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("", (slice(0, 10), slice(0, 30), slice(0, 25))),
        ("1:3,:,5:", (slice(1, 3), slice(0, 30), slice(5, 25))),
        (" 0:10, 0:30 ,24:25", (slice(0, 10), slice(0, 30), slice(24, 25))),
    ],
)
def test_a_box_is_read(text: str, box: tuple[slice, slice, slice]) -> None:
    assert parse_bbox(text, GRID.shape_zyx) == box


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1:3,2:4", "expected z0:z1,y0:y1,x0:x1"),
        ("1:3,2:4,-1:5", "expected z0:z1,y0:y1,x0:x1"),
        ("0:11,:,:", "z from 0 to 11; expected .* at most 10, because the volume has 10 x 30 x 25"),
        (":,4:4,:", "y from 4 to 4"),
        (":,:,25:", "x from 25 to 25"),
    ],
)
def test_a_box_that_cannot_be_meant_is_refused(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_bbox(text, GRID.shape_zyx)


def test_a_box_is_snapped_outwards_to_tiles() -> None:
    chosen = select_tiles(GRID, bbox="3:4,8:17,:")
    voxels = np.zeros(GRID.shape_zyx, bool)
    voxels[3:4, 8:17] = True
    assert chosen.wanted.tolist() == loop_tiles(GRID, voxels)
    assert chosen.notes == ["The box 3:4,8:17,: is computed in whole tiles: 2:4,8:24,0:25, 8 of 80 tiles (10.0%)."]
    assert chosen.blocks.tolist() == [0, 1]
    assert select_tiles(GRID).wanted.all()
    assert select_tiles(GRID).blocks.tolist() == list(range(len(GRID)))


def test_empty_tiles_are_those_whose_core_meets_no_stored_chunk() -> None:
    stored = np.zeros((2, 3, 3), bool)
    stored[1, 0, 2] = True
    chunks = ChunkMap(GRID.shape_zyx, (5, 10, 10), stored, 0)
    chosen = select_tiles(GRID, chunks=chunks)
    voxels = np.zeros(GRID.shape_zyx, bool)
    voxels[5:, :10, 20:] = True
    assert chosen.wanted.tolist() == loop_tiles(GRID, voxels)
    assert chosen.empty == 80 - chosen.wanted.sum()
    assert chosen.notes == [
        "The image: 17 of 18 chunks are missing; read as fill value 0.",
        "Skipped as empty, no chunk is stored there: 68 of 80 tiles (85.0%).",
    ]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_mask_selects_what_a_loop_over_its_voxels_selects(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(*[st.integers(1, 12)] * 3))
    tile = data.draw(st.tuples(*[st.integers(1, 5)] * 3))
    factors = data.draw(st.tuples(*[st.integers(1, 3)] * 3))
    small = tuple(-(-size // factor) for size, factor in zip(shape, factors, strict=True))
    mask = np.random.default_rng(data.draw(st.integers(0, 9))).random(small) < 0.1
    mask[0, 0, 0] = True
    grid = Grid(shape, tile, tile)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(selection, "MASK_VOXELS", data.draw(st.integers(1, 200)))
        chosen = select_tiles(grid, mask=Volume(mask.astype(np.uint8), "mask"))
    # of a factor that shape and mask leave open the nearest is taken, so compare with what the sizes say
    found = selection._find_factors(Volume(mask, "mask"), shape)
    voxels = mask
    for axis, factor in enumerate(found):
        voxels = voxels.repeat(factor, axis)
    padded = np.pad(voxels, [(0, max(size - have, 0)) for size, have in zip(shape, voxels.shape, strict=True)], "edge")
    assert chosen.wanted.tolist() == loop_tiles(grid, padded[tuple(slice(size) for size in shape)])


def test_the_last_voxel_of_a_mask_that_was_rounded_down_stands_for_the_rest() -> None:
    mask = np.zeros((5, 15, 12), np.uint8)  # of a grid of 11 x 30 x 25 voxels
    mask[4, 0, 11] = 1
    grid = Grid((11, 30, 25), (1, 6, 1), (1, 6, 1))
    wanted = select_tiles(grid, mask=Volume(mask, "mask")).wanted.reshape(grid.tiles_zyx)
    assert [sorted(set(places.tolist())) for places in wanted.nonzero()] == [[8, 9, 10], [0], [22, 23, 24]]


def test_a_sparse_mask_on_disk_is_read_only_where_it_can_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = zarr.create_array(tmp_path / "mask.zarr", shape=(10, 30, 25), chunks=(5, 10, 10), dtype="uint8")
    array[7, 12, 3] = 1
    array[1, 1, 24] = 1
    mask = Volume(open_labels(tmp_path / "mask.zarr"), "mask", path=tmp_path / "mask.zarr")
    monkeypatch.setattr(selection, "MASK_VOXELS", 1)
    read: list[object] = []
    plain = type(mask.data)._read_place

    def read_noted(self: object, place: object) -> object:
        read.append(place)
        return plain(self, place)  # type: ignore[arg-type]

    monkeypatch.setattr(type(mask.data), "_read_place", read_noted)
    chosen = select_tiles(GRID, mask=mask, bbox="6:10,:,:")
    assert read == [(slice(5, 10), slice(10, 20), slice(0, 10))]
    assert np.flatnonzero(chosen.wanted).tolist() == [3 * 16 + 1 * 4]
    assert "leaves 1 of 32 tiles" in chosen.notes[-1]


def test_a_mask_that_does_not_fit_or_selects_nothing_is_refused() -> None:
    with pytest.raises(ImageError, match=r"mask has shape \(10, 30, 24\), the volume \(10, 30, 25\)"):
        select_tiles(GRID, mask=Volume(np.ones((10, 30, 24), np.uint8), "m"))
    with pytest.raises(ImageError, match="the mask is 0 wherever"):
        select_tiles(GRID, mask=Volume(np.zeros((5, 15, 13), np.uint8), "m"))


def test_a_sparse_teravoxel_is_planned_in_seconds() -> None:
    """The listing is made up here; `benchmarks/sparse_plan.py` lists files."""
    stored = np.zeros((79, 79, 79), bool)
    stored[30:40, 30:40, 30:40] = True
    chunks = ChunkMap((10_000, 10_000, 10_000), (128, 128, 128), stored, 0)
    grid = Grid(chunks.shape_zyx, (8, 256, 256), (128, 512, 512))
    start = time.perf_counter()
    chosen = select_tiles(grid, bbox="3840:5120,:,:", chunks=chunks)
    assert time.perf_counter() - start < 20
    assert chosen.wanted.sum() == 160 * 5 * 5
    assert len(chosen.blocks) == 10 * 3 * 3
