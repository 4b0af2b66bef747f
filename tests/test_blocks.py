from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurotome.blocks import Block, plan_blocks
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
