"""Objects: found slice by slice as scipy finds them at once, matched by hand and as by brute force, scored."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from neurotome.classes import ClassSet
from neurotome.errors import SettingsError
from neurotome.objects.find import ObjectFinder, Objects, Parting, Shared
from neurotome.objects.match import match_by_distance, match_by_overlap
from neurotome.objects.scores import ObjectSettings, read_units
from neurotome.runs.contents import check_scores
from neurotome.scoring import Scores, score_images
from tests import measured_labels
from tests.measured_labels import measure_array

CLASSES = ClassSet(("background", "blood vessel", "cell"))
VESSEL, CELL = 1, 2
ALL = ObjectSettings(smallest=0)

masks = arrays.arrays(bool, st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 7)))


def paint(shape: tuple[int, ...], *cells: tuple[int | slice, ...]) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    for box in cells:
        labels[box] = CELL
    return labels


def score(truth: np.ndarray, predicted: np.ndarray, asked: ObjectSettings = ALL, **more: object) -> dict:
    """Scores stacks (z, y, x); a stack of one slice is an image by itself."""
    names = [f"a/{z:04d}" for z in range(len(truth))] if len(truth) > 1 else ["a"]
    scores = score_images("toy", "test", CLASSES, zip(names, truth, predicted, strict=True), objects=asked, **more)
    return check_scores(json.loads(json.dumps(scores, allow_nan=False)))["objects"]


@given(masks, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_objects_found_slice_by_slice_are_those_of_the_whole_volume(mask: np.ndarray, random: object) -> None:
    other = np.roll(mask, 1, axis=2)
    finder = ObjectFinder()
    for true, found in zip(mask, other, strict=True):
        finder.add(true, found, np.ones(true.shape, bool))
    true, found, shared = finder.finish()
    for objects, whole in ((true, mask), (found, other)):
        labelled, count = ndimage.label(whole)
        centres = ndimage.center_of_mass(whole, labelled, range(1, count + 1))
        expected = sorted(zip(np.bincount(labelled.ravel())[1:].tolist(), centres, strict=True))
        given_objects = sorted(zip(objects.voxels.tolist(), map(tuple, objects.centres), strict=True))
        assert [size for size, _ in given_objects] == [size for size, _ in expected]
        np.testing.assert_allclose([c for _, c in given_objects], [c for _, c in expected], atol=1e-9)
    assert shared.voxels.sum() == np.count_nonzero(mask & other)
    assert len(np.unique(shared.pairs, axis=0)) == len(shared.pairs)


@given(masks, st.sampled_from([0.5, 0.7, 1.0]), st.sampled_from([(1.0, 1.0, 1.0), (2.0, 1.0, 0.5)]))
@settings(max_examples=60, deadline=None)
def test_touching_objects_are_parted_as_each_by_itself_is(mask: np.ndarray, neck: float, size: tuple) -> None:
    finder = ObjectFinder(Parting(neck, size))
    for plane in mask:
        finder.add(plane, plane, np.ones(plane.shape, bool))
    true, found, shared = finder.finish()
    cells = measure_array(
        mask * np.uint8(measured_labels.CELL), size_um=size, neck=neck, smallest_um=0, vessels="none", axons="none"
    ).tables["cells"]
    expected = sorted(zip(*(cells[f"centroid_{axis}_um"] for axis in "zyx"), strict=True))
    np.testing.assert_allclose(sorted(map(tuple, true.centres * size)), expected, atol=1e-9)
    np.testing.assert_array_equal(true.centres, found.centres)
    assert sorted(map(tuple, shared.pairs)) == [(i, i) for i in range(len(true.voxels))]
    np.testing.assert_array_equal(shared.voxels, true.voxels)


def test_two_cells_that_the_model_joins_are_both_found() -> None:
    y, x = np.mgrid[:21, :40]
    first, second = (np.hypot(y - 10, x - centre) < 6.2 for centre in (12, 24))
    truth, predicted = np.zeros((2, 1, 21, 40), np.uint8)
    truth[0, first | second] = CELL
    truth[0, :, 18] = 0
    predicted[0, first | second] = CELL  # a bridge of a pixel's width
    joined, parted = (score(truth, predicted, ObjectSettings(smallest=0, neck=neck)) for neck in (0, 0.7))
    counts = [[one["per_class"]["cell"][key] for key in ("true", "found", "neck")] for one in (joined, parted)]
    assert counts == [[2, 1, 0.0], [2, 2, 0.7]]
    assert [one["overlap"]["per_class"]["cell"]["matched"] for one in (joined, parted)] == [0, 2]
    assert parted["per_class"]["blood vessel"]["neck"] == 0
    with pytest.raises(SettingsError, match=r"neck is 1\.5; expected a share"):
        ObjectSettings(neck=1.5)


places = st.lists(st.tuples(*[st.integers(0, 6).map(float)] * 3), max_size=5)


@given(places, places, st.sampled_from([0.5, 1.0, 2.5, 4.0]))
@settings(max_examples=150, deadline=None)
def test_pairs_by_distance_are_the_most_and_the_nearest(first: list, second: list, within: float) -> None:
    """Against every way to pair, tried one by one."""
    true, found = (np.array(listed, float).reshape(-1, 3) for listed in (first, second))
    pairs = match_by_distance(true, found, within)
    assert len(np.unique(pairs[:, 0])) == len(np.unique(pairs[:, 1])) == len(pairs)
    apart = np.linalg.norm(true[pairs[:, 0]] - found[pairs[:, 1]], axis=1)
    assert (apart <= within).all()
    few, many = sorted((true, found), key=len)
    best = (0, 0.0)
    for order in itertools.permutations(range(len(many)), len(few)):
        lengths = np.linalg.norm(few - many[list(order)], axis=1)
        near = lengths[lengths <= within]
        best = min(best, (-len(near), float(near.sum())))
    assert (-len(pairs), pytest.approx(float(apart.sum()), abs=1e-9)) == best


def test_overlap_of_more_than_a_half_is_a_match_and_of_a_half_is_none() -> None:
    objects = Objects(np.array([4]), np.zeros(1, np.int64), np.zeros((1, 3)))
    for size, inside, expected in ((4, 3, 1), (2, 2, 0), (3, 3, 1), (8, 4, 0), (7, 4, 1)):
        found = Objects(np.array([size]), np.zeros(1, np.int64), np.zeros((1, 3)))
        matched = match_by_overlap(objects, found, Shared(np.array([[0, 0]]), np.array([inside])))
        assert len(matched) == expected  # 3/5, 2/4, 3/4, 4/8, 4/7


def test_scores_of_objects_by_hand() -> None:
    """Three true cells: one found as it is, one found 3 pixels off, one missed; one found where there is none."""
    truth = paint((1, 20, 40), np.s_[0, 2:6, 2:6], np.s_[0, 2:6, 12:16], np.s_[0, 12:16, 2:6])
    predicted = paint((1, 20, 40), np.s_[0, 2:6, 2:6], np.s_[0, 5:9, 12:16], np.s_[0, 12:16, 30:34])
    found = score(truth, predicted)
    cell = found["per_class"]["cell"]
    diameter = np.sqrt(4 / np.pi * 16)
    assert (cell["true"], cell["found"], cell["left_out"]) == (3, 3, 0)
    assert [cell["mean_diameter"], cell["within"]] == pytest.approx([diameter, diameter / 2])  # 2.26 pixels
    for matching, matched in (("overlap", 1), ("distance", 1)):
        one = found[matching]["per_class"]["cell"]
        assert (one["matched"], one["precision"], one["recall"], one["f1"]) == (matched, *[pytest.approx(matched / 3)] * 3)
    wider = score(truth, predicted, ObjectSettings(smallest=0, within=3.0))
    assert wider["distance"]["per_class"]["cell"]["matched"] == 2
    assert (found["unit"], found["dimensions"]) == ("pixels", 2)
    vessel = found["overlap"]["per_class"]["blood vessel"]
    assert [vessel[rate] for rate in ("matched", "precision", "recall", "f1")] == [0, None, None, None]


def test_an_object_of_a_stack_is_one_unless_slices_are_asked_for() -> None:
    truth = paint((3, 12, 12), np.s_[:, 2:6, 2:6])
    predicted = paint((3, 12, 12), np.s_[0:2, 2:6, 2:6])
    solid, flat = score(truth, predicted), score(truth, predicted, ObjectSettings(smallest=0, as_slices=True))
    assert (solid["dimensions"], solid["per_class"]["cell"]["true"], solid["per_class"]["cell"]["found"]) == (3, 1, 1)
    assert solid["overlap"]["per_class"]["cell"]["matched"] == 1  # 32 of 48
    assert [counts[1][:3] for counts in solid["per_image"]["counts"]] == [[0, 1, 0], [1, 0, 1], [0, 0, 0]]
    assert (flat["dimensions"], flat["per_class"]["cell"]["true"], flat["per_class"]["cell"]["found"]) == (2, 3, 2)
    assert [counts[1] for counts in flat["per_image"]["counts"]] == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0]]
    two = [("a/0000", truth[0], truth[0]), ("b/0000", truth[0], truth[0])]
    assert score_images("toy", "test", CLASSES, two, objects=ALL)["objects"]["per_class"]["cell"]["true"] == 2


def test_what_lies_mostly_where_nothing_is_labelled_is_left_out() -> None:
    truth = paint((1, 20, 20), np.s_[0, 2:6, 2:6])
    truth[0, :, 10:] = 255
    outside, edge = np.s_[0, 10:14, 9:14], np.s_[0, 16:18, 6:14]  # 4 of 20 pixels are labelled, 8 of 16
    predicted = paint((1, 20, 20), np.s_[0, 2:6, 2:6], outside, edge)
    found = score(truth, predicted)
    assert [found["per_class"]["cell"][key] for key in ("true", "found", "left_out")] == [1, 2, 1]
    assert found["overlap"]["per_class"]["cell"]["precision"] == 0.5


def test_sizes_and_distances_are_in_micrometres_where_they_are_known() -> None:
    truth = paint((1, 20, 40), np.s_[0, 2:6, 2:6], np.s_[0, 10:12, 10:12])
    truth[0, 15, 15] = VESSEL
    asked = ObjectSettings(smallest=4)
    in_pixels = score(truth, truth, asked)
    in_um = score(truth, truth, asked, sizes_um={"a": (1.0, 2.0, 2.0)})
    assert (in_pixels["per_class"]["cell"]["true"], in_um["per_class"]["cell"]["true"]) == (1, 2)
    assert in_um["unit"] == "um"
    diameters = [np.sqrt(4 / np.pi * area) for area in (64, 16)]
    assert in_um["per_class"]["cell"]["mean_diameter"] == pytest.approx(np.mean(diameters))
    assert in_pixels["per_class"]["blood vessel"]["true"] == 1  # vessels are kept, however small


def test_counts_by_slices_and_tiles_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = ((ndimage.gaussian_filter(rng.normal(size=(6, 64, 48)), 1.5) > 0.09) * CELL for _ in range(2))
    found = score(truth.astype(np.uint8), predicted.astype(np.uint8))
    cell = found["per_class"]["cell"]
    expected = [cell["true"], cell["found"], *(found[by]["per_class"]["cell"]["matched"] for by in ("overlap", "distance"))]
    assert expected[0] > 10
    assert np.sum(found["per_image"]["counts"], 0)[1].tolist() == expected
    assert sum(np.sum(group["counts"], 0)[1] for group in found["tiles"]).tolist() == expected
    assert [units.kind for units in read_units(found, "overlap")] == ["slices", "tiles"]


def test_intervals_of_objects_hold_the_score_and_the_table_shows_them() -> None:
    rng = np.random.default_rng(1)
    images = []
    for number in range(30):
        cells = [np.s_[y : y + 4, x : x + 4] for y in (2, 12, 22) for x in (2, 12, 22)]
        kept = [cell for cell in cells if rng.random() < 0.7]
        images.append((f"i{number}", paint((40, 40), *cells), paint((40, 40), *kept)))
    scores = score_images("toy", "test", CLASSES, images)
    one = scores["objects"]["overlap"]["per_class"]["cell"]
    low, high = one["intervals"]["recall"]
    assert low < one["recall"] < high
    # 270 cells of which each is found with 0.7: a binomial share
    assert high - low == pytest.approx(2 * 2.045 * np.sqrt(0.7 * 0.3 / 270), rel=0.3)
    assert one["precision"] == 1
    assert (
        scores["macro"] == score_images("toy", "test", CLASSES, images, objects=ObjectSettings(classes=("none",)))["macro"]
    )
    shown = str(Scores(scores))
    assert f"{one['recall']:.3f} ({low:.3f} to {high:.3f})" in shown
    assert "cell: centres at most 2.26 pixels apart, none below 4 pixels in diameter, parted at" in shown


def test_which_classes_are_objects() -> None:
    assert ObjectSettings().choose(CLASSES) == [VESSEL, CELL]
    assert ObjectSettings().choose(ClassSet(("background", "tissue"))) == []
    assert ObjectSettings(classes=("none",)).choose(CLASSES) == []
    assert ObjectSettings(classes=("cell", "background")).choose(CLASSES) == [0, CELL]
    with pytest.raises(SettingsError, match="unknown class 'neuron'"):
        ObjectSettings(classes=("neuron",)).choose(CLASSES)
    with pytest.raises(SettingsError, match="smallest is -1"):
        ObjectSettings(smallest=-1)
    with pytest.raises(SettingsError, match="within is 0"):
        ObjectSettings(within=0.0)
    labels = np.zeros((1, 4, 4), np.uint8)
    scores = score_images("toy", "test", ClassSet(("a", "b")), [("x", labels[0], labels[0])])
    assert "objects" not in scores  # and such scores are read as before
    check_scores(scores)
