"""Which voxels belong together, against scipy's labelling and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from neurotome.measuring.connected import connect, join_pairs


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    share=st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9, 1.0]),
    touching=st.sampled_from(["faces", "corners", "within slices"]),
)
def test_objects_are_those_of_scipy(seed: int, shape: tuple[int, int, int], share: float, touching: str) -> None:
    mask = np.random.default_rng(seed).random(shape) < share
    structure = ndimage.generate_binary_structure(3, 3 if touching == "corners" else 1)
    if touching == "within slices":
        structure[[0, 2]] = False
    labelled, count = ndimage.label(mask, structure)
    found = connect(mask, corners=touching == "corners", flat=touching == "within slices")
    assert found.count == count
    np.testing.assert_array_equal(found.spread(np.arange(1, count + 1)), labelled[mask])
    np.testing.assert_array_equal(found.find_owners(np.argwhere(mask)) + 1, labelled[mask])
    assert found.find_boxes() == ndimage.find_objects(labelled)
    if count:
        np.testing.assert_array_equal(found.list_voxels(count - 1), np.argwhere(labelled == count))
    at_faces = {*labelled[[0, -1]].flat, *labelled[:, [0, -1]].flat, *labelled[..., [0, -1]].flat} - {0}
    assert set((np.flatnonzero(found.find_at_faces()) + 1).tolist()) == at_faces


@pytest.mark.parametrize(("corners", "count"), [(False, 4), (True, 3)])
def test_the_end_of_a_line_is_not_beside_the_next_one(corners: bool, count: int) -> None:
    mask = np.zeros((3, 3, 4), bool)
    mask[0, 0, 3] = mask[0, 1, 0] = True  # one after the other in memory
    mask[1, 2, 2] = mask[2, 1, 1] = True  # a corner in common
    assert connect(mask, corners=corners).count == count


def test_groups_are_numbered_by_their_first_members() -> None:
    groups, count = join_pairs(np.array([[1, 4], [0, 3], [4, 5]]), 6)
    assert groups.tolist() == [0, 1, 2, 0, 1, 1]
    assert count == 3
