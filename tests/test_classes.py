from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from skimage.color import rgb2lab

from neurotome.classes import BACKGROUND, REPORT_COLOURS, ClassSet
from neurotome.errors import DatasetError, SettingsError

CLASSES = ClassSet(("background", "blood vessel", "cell", "axon"))

# Machado, Oliveira, Fernandes (2009), doi:10.1109/TVCG.2009.113, severity 1, for linear RGB.
VISION = {
    "full": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}

SMALLEST_DISTANCE = 15.0
"""In CIELAB units, where about 2.3 is just noticeable and 15 is told apart at a glance."""


def test_ids_are_positions() -> None:
    assert len(CLASSES) == 4
    assert CLASSES.index("axon") == 3
    with pytest.raises(SettingsError, match="Did you mean 'axon'"):
        CLASSES.index("axn")


@pytest.mark.parametrize(
    "classes",
    [
        {0: "a", 1: "b", 2: "c"},
        {"0": "a", "1": "b", "2": "c"},
        {0: "a", "1": "b", "2": "c"},
        {"c": 2, "a": 0, "b": 1},
        ["a", "b", "c"],
        {1: "b", 0: "a", 2: "c"},
    ],
)
def test_every_form_of_classes_is_read(classes: dict[object, object] | list[object]) -> None:
    found = ClassSet.from_config(classes, 9)
    assert found == ClassSet(("a", "b", "c"), 9)


@pytest.mark.parametrize("classes", [{1: "x", 2: "y"}, {"2": "y", "1": "x"}, {"x": 1, "y": 2}])
def test_ids_from_1_where_0_is_not_labelled(classes: dict[object, object]) -> None:
    found = ClassSet.from_config(classes, 0)
    assert found == ClassSet(("x", "y"), first_id=1)
    assert ClassSet.from_json(found.to_json()) == found != ClassSet(("x", "y"))
    stored = np.array([[0, 1], [2, 1]], np.uint64)
    labels = found.from_stored(stored)
    assert labels.tolist() == [[found.ignore, 0], [1, 0]]
    assert (labels.dtype, found.to_stored(labels).dtype) == (np.uint8, np.uint8)
    np.testing.assert_array_equal(found.to_stored(labels), stored)
    # no class is the background, so all are painted
    assert found.paint(labels).tolist() == [[[128] * 3, [230, 159, 0]], [[86, 180, 233], [230, 159, 0]]]
    assert found.overlay(np.zeros((2, 2), np.uint8), labels, 1).tolist()[1] == [[86, 180, 233], [230, 159, 0]]
    assert found.with_palette("colour-blind-safe").first_id == 1


def test_ids_from_0_are_stored_as_they_are() -> None:
    labels = np.array([0, 3, 255, 1], np.uint8)
    np.testing.assert_array_equal(CLASSES.to_stored(labels), labels)
    np.testing.assert_array_equal(CLASSES.from_stored(labels), labels)
    assert ClassSet(tuple(map(str, range(255))), first_id=1).to_stored(np.array([0, 254, 255])).tolist() == [1, 255, 0]


@pytest.mark.parametrize(
    ("classes", "ignore", "message"),
    [
        ({0: "a", 2: "b"}, 255, "without a gap"),
        ({"0": "a", "2": "b"}, 255, "without a gap"),
        ({2: "a", 3: "b"}, 0, "without a gap"),
        ({1: "a", 2: "b"}, 255, "Write ignore: 0 if 0 means not labelled, or add 0: background"),
        ({0: "a", 1: "b"}, 0, "must lie in 2..255"),
        ({0: "a", "0": "b"}, 255, "each once and without a gap (or 1, 2, ... with ignore: 0), found 0, 0"),
        ({"a": 0, "b": 0}, 255, "found 0, 0"),
        ({-1: "a", 0: "b"}, 255, "class id -1 of 'a' is no whole number"),
        ({0.0: "a", 1.0: "b"}, 255, "no whole number"),
        ({"a": "b", "c": "d"}, 255, "class id 'a' of 'b' is no whole number"),
        ({"9" * 5000: "a", 0: "b"}, 255, "no whole number"),
        ({True: "a", False: "b"}, 255, "no whole number"),
        ({"a": 0, "ignore": 1}, 255, "write ignore: 1 beside classes"),
        (["a", 1], 255, "class name 1 is not text"),
        (["a", " "], 255, "is not text"),
        (["a", ["b"]], 255, "is not text"),
        ({0: None, 1: "b"}, 255, "is not text"),
    ],
)
def test_classes_that_contradict_themselves_are_refused(classes: object, ignore: int, message: str) -> None:
    with pytest.raises(DatasetError) as caught:
        ClassSet.from_config(classes, ignore)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_other_first_ids_are_refused() -> None:
    with pytest.raises(DatasetError, match="first class id is 2"):
        ClassSet(("a", "b"), first_id=2)


@pytest.mark.parametrize(
    ("names", "ignore", "message"),
    [
        (("a",), 255, "expected 2 to 255"),
        (tuple(map(str, range(256))), 255, "expected 2 to 255"),
        (("a", "b", "a"), 255, "must differ"),
        (("a", "b"), 1, "must lie in 2..255"),
        (("a", "b"), 256, "must lie in 2..255"),
    ],
)
def test_impossible_classes_are_refused(names: tuple[str, ...], ignore: int, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        ClassSet(names, ignore)


def test_json_round_trip() -> None:
    classes = ClassSet(("a", "ö"), ignore=7)
    assert ClassSet.from_json(classes.to_json()) == classes


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64])
def test_paint_by_hand(dtype: type) -> None:
    painted = CLASSES.paint(np.array([[0, 2], [255, 1]], dtype))
    assert painted.dtype == np.uint8
    assert painted.tolist() == [[list(BACKGROUND), [86, 180, 233]], [[128, 128, 128], [230, 159, 0]]]
    assert CLASSES.paint(np.array([256, 4], np.uint16)).tolist() == [[128, 128, 128]] * 2


def test_overlay_by_hand() -> None:
    grey = np.array([[100, 100], [100, 100]], np.uint8)
    labels = np.array([[0, 2], [255, 1]], np.uint8)
    found = CLASSES.overlay(grey, labels, opacity=0.5)
    assert found.dtype == np.uint8
    # (100 + 86) / 2 = 93, (100 + 180) / 2 = 140, (100 + 233) / 2 = 166.5, and numpy rounds halves to even
    assert found.tolist() == [[[100] * 3, [93, 140, 166]], [[100] * 3, [165, 130, 50]]]
    assert CLASSES.overlay(grey, labels, 0).tolist() == [[[100] * 3] * 2] * 2
    assert CLASSES.overlay(grey, labels, 1)[0, 1].tolist() == [86, 180, 233]


def test_the_report_palette_knows_its_classes_only() -> None:
    painted = CLASSES.with_palette("founding-report")
    assert painted.colours == (BACKGROUND, *REPORT_COLOURS.values())
    assert painted.names == CLASSES.names
    with pytest.raises(SettingsError, match="no colour for nucleus"):
        ClassSet(("background", "nucleus"), palette="founding-report")
    with pytest.raises(SettingsError, match="Did you mean 'colour-blind-safe'"):
        CLASSES.with_palette("color-blind-safe")


@pytest.mark.parametrize("vision", VISION)
def test_eight_colours_are_told_apart_by_everyone(vision: str) -> None:
    encoded = np.array(ClassSet(tuple("abcdefgh")).colours) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)  # IEC 61966-2-1
    seen = np.clip(linear @ VISION[vision].T, 0, 1)
    lab = rgb2lab(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055))
    distances = {(a, b): float(np.linalg.norm(lab[a] - lab[b])) for a, b in combinations(range(8), 2)}
    assert min(distances.values()) >= SMALLEST_DISTANCE, min(distances, key=lambda pair: distances[pair])
