"""What benchmarks/transfer.py measures, on arrays that can be counted by hand."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # as for a script that is run

import transfer_measures as measures


def draw(*boxes, shape=(20, 20)):
    mask = np.zeros(shape, bool)
    for y, x, height, width in boxes:
        mask[y : y + height, x : x + width] = True
    return mask


def test_quadrants_come_back_as_planes():
    planes = np.arange(8 * 16).reshape(8, 4, 4)
    quadrants = [planes[:, :2, :2], planes[:, 2:, :2], planes[:, :2, 2:], planes[:, 2:, 2:]]
    assert np.array_equal(measures.join_quadrants(np.concatenate(quadrants)), planes)


@pytest.mark.parametrize("offset", [(0, 0), (1, -1), (-2, 3)])
def test_the_offset_of_a_plane_is_found(offset):
    rng = np.random.default_rng(0)
    plane = np.zeros((96, 96), np.uint8)
    for number, (y, x) in enumerate(rng.integers(0, 90, (40, 2))):
        plane[y : y + 5, x : x + 5] = measures.VESSEL if number % 2 else measures.CELL
    grey = rng.normal(120, 10, (200, 200))
    y, x = 50 + offset[0], 60 + offset[1]
    grey[y : y + 96, x : x + 96] -= 60 * (plane > 0)
    assert measures.find_offset(grey, plane, 50, 60) == offset


def test_phi_is_that_of_a_table_of_four_counts():
    first, second = np.array([1, 1, 1, 0, 0, 0, 0, 0], bool), np.array([1, 1, 0, 1, 0, 0, 0, 0], bool)
    assert measures.correlate(first, second) == pytest.approx((2 * 4 - 1 * 1) / 15)  # (ad - bc) / sqrt(3 * 5 * 3 * 5)
    assert measures.correlate(first, np.ones(8, bool)) == 0


def test_objects_match_by_half_of_the_smaller_one():
    truth = draw((0, 0, 4, 4), (10, 10, 4, 4), (0, 10, 2, 8))
    found = draw(
        (0, 2, 4, 4),  # half of it lies on the first
        (10, 13, 4, 4),  # a quarter on the second
        (0, 10, 2, 2),  # two parts of the third
        (0, 15, 2, 3),
        (17, 17, 1, 3),  # too small to count
    )
    assert measures.match_objects(truth, found) == (3, 4, 2, 3)
    assert measures.match_objects(found, truth) == (2, 3, 3, 4)


def test_objects_of_nothing_are_none():
    assert measures.match_objects(draw(), draw((0, 0, 3, 3))) == (0, 1, 0, 0)


def test_corners_join_and_small_objects_do_not_count():
    assert measures.count_objects(draw((0, 0, 2, 2), (2, 2, 2, 2), (10, 10, 1, 3), (15, 15, 2, 2))) == 2


def test_tolerance_forgives_two_pixels_and_not_three():
    truth = draw((5, 5, 1, 4))
    assert measures.f1_within(truth, draw((7, 5, 1, 4))) == 1
    assert measures.f1_within(truth, draw((8, 5, 1, 4))) == 0
    # found: 4 of 8 pixels are near; true: all four have one near
    assert measures.f1_within(truth, draw((5, 5, 1, 4), (15, 5, 1, 4))) == pytest.approx(2 * 0.5 / 1.5)
    assert measures.f1_within(truth, draw()) == 0


def test_a_near_plane_is_judged_by_axons_and_their_share():
    plane = np.zeros((10, 10), np.uint8)
    plane[:5] = measures.AXON
    labels = np.zeros((10, 10), np.uint8)
    labels[:5, :5] = labels[5:, :3] = measures.AXON
    judged = measures.judge_near_plane(labels, plane)
    assert judged["axon"] == pytest.approx(2 * 25 / (50 + 40))
    assert (judged["share"], judged["true share"]) == (0.4, 0.5)
    assert judged["phi"] > 0
    everything = measures.judge_near_plane(np.full((10, 10), measures.AXON), plane)
    assert everything["axon"] == pytest.approx(2 / 3)
    assert everything["phi"] == 0


def test_density_is_for_the_area_of_a_plane():
    labels = np.zeros((128, 256), np.uint8)
    labels[10:20, 10:20] = labels[50:60, 50:60] = measures.CELL
    density = measures.measure_density(labels)
    assert density["cells"] == 4
    assert density["cell %"] == pytest.approx(200 / (128 * 256) * 100)
    assert density["vessels"] == 0


def test_crops_lie_in_tissue():
    grey = np.full((64, 96), 120)
    grey[:, 64:] = 0  # air
    assert [(c[0].start, c[1].start) for c in measures.plan_crops(grey, (0, 0), 32)] == [(0, 0), (0, 32), (32, 0), (32, 32)]
    assert [(c[0].start, c[1].start) for c in measures.plan_crops(grey, (16, 16), 32)] == [(16, 16)]


def test_views_agree_by_kind_and_refused_crops_are_counted():
    whole = np.zeros((10, 30), np.uint8)
    whole[:, :6] = measures.AXON
    whole[0, 10:20] = measures.VESSEL
    seen = whole.copy()
    seen[:5, :10] = 0
    seen[:, 20:] = measures.UNSEEN
    crops = [(slice(None), slice(x, x + 10)) for x in (0, 10, 20)]
    judged = measures.judge_views(whole, [(seen, crops)])
    assert judged["refused"] == 1
    assert judged["axon"] == [0.7, pytest.approx((2 * 40 / 110 + 2 * 30 / 90) / 2)]
    assert judged["neuropil"] == [1, 1]


def test_the_selection_is_the_mean_of_its_parts():
    vp = {"axon": 0.5, "phi": -0.2, "share": 0.3, "true share": 0.7}
    found = {
        "patches": {"macro": 0.8, "single": [0.9, 0.7, 0.8, 0.8]},
        "near": {("vp", z): vp for z in measures.NEAR_PLANES},
        "densities": {("cells", "vp"): {"found": [30, 50], "planes": [10, 20, 90]}},
        "views": {z: {"refused": 0, "axon": [0.9, 0.6]} for z in measures.NEAR_PLANES},
    }
    combined = measures.combine(found)
    assert list(combined.values()) == pytest.approx([0.8, 0.7, 0.5, 0, 0.6, 0.5, 0.6, 3.7 / 7])
