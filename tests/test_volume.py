from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neurotome.errors import ImageError
from neurotome.io.picked import PickedSlices
from neurotome.volume import Volume, to_display


def test_context_repeats_the_ends() -> None:
    volume = Volume(np.arange(4, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8), "stack")
    assert volume.shape == (4, 2, 2)
    assert volume.read_context(0, 5)[:, 0, 0].tolist() == [0, 0, 0, 1, 2]
    assert volume.read_context(2, 3)[:, 1, 1].tolist() == [1, 2, 3]
    assert volume.read_context(3, 3)[:, 0, 0].tolist() == [2, 3, 3]
    assert volume.read_context(1, 1)[:, 0, 0].tolist() == [1]


def test_context_reads_a_window_in_the_own_dtype() -> None:
    data = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    found = Volume(data, "stack").read_context(1, 1, slice(1, 3), slice(2, 4))
    assert found.dtype == np.uint16
    assert found.tolist() == [[[18, 19], [22, 23]]]


@pytest.mark.parametrize("shape", [(3, 3), (1, 2, 3, 4), (0, 4, 4), (2, 0, 4)])
def test_shapes_that_are_no_volume_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=r"a\.tif.*expected \(z, y, x\)"):
        Volume(np.zeros(shape, np.uint8), "a", path=Path("a.tif"))


def test_display_keeps_bytes_and_stretches_the_rest() -> None:
    grey = np.array([[0, 100, 255]], np.uint8)
    assert to_display(grey) is grey
    found = to_display(np.array([900, 1000, 1500, 2000, 2100], np.uint16), low=1000, high=2000)
    assert found.dtype == np.uint8
    assert found.tolist() == [0, 0, 128, 255, 255]
    assert to_display(np.array([10.0, 60.0, 110.0], np.float32), 10, 110).tolist() == [0, 128, 255]


def test_display_leaves_out_the_brightest_and_darkest_half_percent() -> None:
    values = np.arange(1001, dtype=np.float32)
    assert to_display(values).tolist() == ((values - 5) / 990 * 255).clip(0, 255).round().tolist()


def test_display_of_a_constant_image_is_black() -> None:
    assert to_display(np.full((3, 3), 40000, np.uint16)).tolist() == [[0] * 3] * 3


def test_slabs_hold_slices_that_follow_each_other_and_those_beside_them() -> None:
    stack = np.arange(9, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    assert Volume(stack, "whole").plan_slabs(4) == [(0, 4), (4, 8), (8, 9)]
    volume = Volume(PickedSlices(stack, np.array([0, 1, 4, 5, 6]), Path("stack")), "picked")
    assert volume.plan_slabs(2) == [(0, 2), (2, 4), (4, 5)]
    for (first, stop), read, kept in (((0, 2), [0, 1, 2], [0, 1]), ((2, 4), [3, 4, 5, 6], [4, 5]), ((4, 5), [5, 6, 7], [6])):
        slab, inside = volume.read_slab(first, stop, 1)
        assert slab[:, 0, 0].tolist() == read
        assert slab[inside, 0, 0].tolist() == kept
