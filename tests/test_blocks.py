from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurotome.blocks import Block, Grid, plan_blocks
from neurotome.errors import SettingsError

axis = st.tuples(
    st.integers(1, 24),  # size
    st.integers(1, 9),  # block
    st.integers(0, 6),  # halo
    st.integers(1, 5),  # align
)


def test_two_blocks_by_hand() -> None:
    assert plan_blocks((10,), (6,), (2,)) == [
        Block(core=(slice(0, 6),), read=(slice(0, 8),), crop=(slice(0, 6),)),
        Block(core=(slice(6, 10),), read=(slice(4, 10),), crop=(slice(2, 6),)),
    ]


def test_last_axis_runs_fastest() -> None:
    starts = [tuple(axis.start for axis in block.core) for block in plan_blocks((4, 6), (2, 3), (0, 0))]
    assert starts == [(0, 0), (0, 3), (2, 0), (2, 3)]


def test_indices_by_hand() -> None:
    block = plan_blocks((40, 40), (16, 16), (5, 0), (4, 4))[4]
    assert block.core == (slice(16, 32), slice(16, 32))
    assert block.read == (slice(8, 37), slice(16, 32))  # 16 - 5 = 11, down to the next multiple of 4
    assert block.crop == (slice(8, 24), slice(0, 16))


@settings(deadline=None)
@given(st.lists(axis, min_size=1, max_size=3))
def test_tiles_partition_the_array_and_reads_cover_the_halo(axes: list[tuple[int, int, int, int]]) -> None:
    shape, block, halo, align = zip(*axes, strict=True)
    array = np.arange(np.prod(shape)).reshape(shape)
    written = np.zeros(shape, int)
    for tile in plan_blocks(shape, block, halo, align):
        written[tile.core] += 1
        np.testing.assert_array_equal(array[tile.read][tile.crop], array[tile.core])
        for a, (core, read) in enumerate(zip(tile.core, tile.read, strict=True)):
            wanted = max(0, core.start - halo[a])
            assert read.start % align[a] == 0
            assert wanted - align[a] < read.start <= wanted
            assert read.stop == min(shape[a], core.stop + halo[a])
    assert (written == 1).all()


@pytest.mark.parametrize(
    ("block", "halo", "align"),
    [((0, 4), (0, 0), None), ((4, 4), (-1, 0), None), ((4, 4), (0, 0), (0, 1)), ((4,), (0, 0), None), ((4, 4), (0,), None)],
)
def test_impossible_plans_are_refused(block: tuple[int, ...], halo: tuple[int, ...], align: tuple[int, ...] | None) -> None:
    with pytest.raises(SettingsError):
        plan_blocks((8, 8), block, halo, align)


grid_axis = st.tuples(st.integers(1, 20), st.integers(1, 6), st.integers(1, 3)).map(lambda a: (a[0], a[1], a[1] * a[2]))
grids = st.tuples(grid_axis, grid_axis, grid_axis).map(lambda axes: Grid(*zip(*axes, strict=True)))


def test_grid_by_hand() -> None:
    grid = Grid((3, 10, 7), (2, 4, 4), (2, 8, 4))
    assert (grid.tiles_zyx, grid.blocks_zyx, grid.count_tiles(), len(grid)) == ((2, 3, 2), (2, 2, 2), 12, 8)
    assert grid.place(2) == (slice(0, 2), slice(8, 10), slice(0, 4))
    assert grid.tiles(1).tolist() == [1, 3]  # tiles are numbered by rows of two; the block is the right half of two rows
    assert grid.tiles(7).tolist() == [11]
    assert grid.tile_place(11) == (slice(2, 3), slice(8, 10), slice(4, 7))


@settings(deadline=None, max_examples=40)
@given(grids)
def test_tiles_partition_the_volume_and_blocks_partition_the_tiles(grid: Grid) -> None:
    tile_of = np.full(grid.shape_zyx, -1)
    for tile in range(grid.count_tiles()):
        assert (tile_of[grid.tile_place(tile)] == -1).all()
        tile_of[grid.tile_place(tile)] = tile
    assert (tile_of >= 0).all()
    met = []
    for block in range(len(grid)):
        tiles = grid.tiles(block).tolist()
        assert tiles == np.unique(tile_of[grid.place(block)]).tolist()
        met += tiles
    assert sorted(met) == list(range(grid.count_tiles()))


@pytest.mark.parametrize(
    "sizes", [((4, 4, 4), (2, 2, 0), (2, 2, 2)), ((4, 4, 4), (2, 2, 2), (2, 3, 2)), ((0, 4, 4), (1,) * 3, (1,) * 3)]
)
def test_impossible_grids_are_refused(sizes: tuple[tuple[int, int, int], ...]) -> None:
    with pytest.raises(SettingsError, match="whole multiples"):
        Grid(*sizes)


@pytest.mark.parametrize("number", [-1, 8])
def test_a_block_that_is_not_there_is_no_place(number: int) -> None:
    with pytest.raises(IndexError):
        Grid((2, 2, 2), (1, 1, 1), (1, 1, 1)).place(number)
