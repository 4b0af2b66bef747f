from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import f1_score, jaccard_score

from neurotome.classes import ClassSet
from neurotome.errors import DatasetError
from neurotome.metrics import confusion, scores
from neurotome.scoring import Scores, score_images
from neurotome.statistics import IntervalSettings, estimate

CLASSES = ClassSet(("background", "vessel", "cell", "axon"))
NAMES = list(CLASSES.names)

Labels = tuple[str, np.ndarray, np.ndarray]


def draw_images(count: int, seed: int = 0, wrong: float = 0.2) -> list[Labels]:
    """Images of which a share of pixels is predicted at random."""
    rng = np.random.default_rng(seed)
    images = []
    for i in range(count):
        truth = rng.choice([0, 1, 2, 3, 255], (32, 32), p=[0.5, 0.2, 0.15, 0.1, 0.05]).astype(np.uint8)
        lost = (rng.random(truth.shape) < wrong) | (truth == 255)
        images.append((f"image{i}", truth, np.where(lost, rng.integers(0, 4, truth.shape), truth).astype(np.uint8)))
    return images


def test_pooled_scores_are_those_of_all_pixels_together() -> None:
    images = draw_images(3)
    result = score_images("toy", "test", CLASSES, images)
    together = confusion(np.stack([truth for _, truth, _ in images]), np.stack([labels for *_, labels in images]), CLASSES)
    assert result["confusion"] == together.tolist()
    assert {key: result[key] for key in ("per_class", "macro", "weighted", "accuracy")} == scores(together, NAMES)


def test_every_image_is_also_scored_by_itself() -> None:
    images = draw_images(3)
    result = score_images("toy", "val", CLASSES, iter(images))
    f1, iou = [], []
    for _, truth, predicted in images:
        valid = truth != 255
        f1.append(f1_score(truth[valid], predicted[valid], average="macro"))
        iou.append(jaccard_score(truth[valid], predicted[valid], average="macro"))
    assert result["per_image"] == {
        "name": ["image0", "image1", "image2"],
        "confusion": [confusion(truth, predicted, CLASSES).tolist() for _, truth, predicted in images],
        "tiles": result["per_image"]["tiles"],
        "macro_f1": f1,
        "mean_iou": iou,
        "mean": {"macro_f1": np.mean(f1), "mean_iou": np.mean(iou)},
        "per_class": result["per_image"]["per_class"],
    }
    for i, name in enumerate(NAMES):
        singles = []
        for _, truth, predicted in images:
            true, found = (labels[truth != 255] == i for labels in (truth, predicted))
            if true.any() or found.any():
                singles.append((f1_score(true, found), jaccard_score(true, found)))
        alone = result["per_image"]["per_class"][name]
        assert alone["images"] == len(singles)
        assert [alone["f1"], alone["iou"]] == pytest.approx(list(np.mean(singles, 0)))
    assert "pooled" in result["note"]
    assert "averaged over the images" in result["note"]
    assert (result["dataset"], result["split"], result["classes"]) == ("toy", "val", NAMES)


def test_an_image_without_a_labelled_pixel_has_no_score_and_spoils_none() -> None:
    blank = ("blank", np.full((4, 4), 255, np.uint8), np.zeros((4, 4), np.uint8))
    alone = score_images("toy", "test", CLASSES, [blank])
    assert alone["per_image"]["macro_f1"] == [None]
    assert alone["per_image"]["mean"] == {"macro_f1": None, "mean_iou": None}
    beside = score_images("toy", "test", CLASSES, [blank, *draw_images(2)])
    without = score_images("toy", "test", CLASSES, draw_images(2))
    assert beside["macro"] == without["macro"]
    assert beside["per_image"]["mean"] == without["per_image"]["mean"]
    json.dumps([alone, beside], allow_nan=False)
    assert "–" in str(Scores(alone))


def test_no_labelled_pixel_in_any_of_many_images() -> None:
    blank = ("blank", np.full((4, 4), 255, np.uint8), np.zeros((4, 4), np.uint8))
    result = score_images("toy", "test", CLASSES, [blank] * 6)
    found = result["intervals"]
    assert found["accuracy"] is None
    assert {bound for mean in ("macro", "weighted") for bound in found[mean].values()} == {None}
    assert {bound for name in NAMES for bound in found["per_class"][name].values()} == {None}
    assert "no interval: no labelled pixel" in str(Scores(result)).splitlines()


def test_no_image_is_an_error() -> None:
    with pytest.raises(DatasetError, match="toy: no image to score in split 'test'"):
        score_images("toy", "test", CLASSES, [])


def test_few_small_images_have_no_interval_and_say_so() -> None:
    tiny = [(name, truth[:16, :16], predicted[:16, :16]) for name, truth, predicted in draw_images(5)]
    few = score_images("toy", "test", CLASSES, tiny[:4])
    assert few["intervals"]["macro"]["f1"] is None
    said = "no interval: 4 slices, and fewer than 5 do not say how much they differ"
    assert few["intervals"]["warning"] == said
    assert said in str(Scores(few)).splitlines()
    five = score_images("toy", "test", CLASSES, tiny)
    assert "\nmacro F1, 95 % interval 0." in str(Scores(five))
    assert "below 20 the interval may be too narrow" in str(Scores(five))


def test_intervals_contain_the_estimate_and_repeat_themselves() -> None:
    result = score_images("toy", "test", CLASSES, draw_images(40))
    found = result["intervals"]
    assert found == score_images("toy", "test", CLASSES, draw_images(40))["intervals"]
    assert (found["unit"], found["warning"], result["per_image"]["tiles"]) == ("slices", None, [])
    for mean in ("macro", "weighted"):
        for key, (low, high) in found[mean].items():
            assert low < result[mean][key] < high < low + 0.05
    low, high = found["accuracy"]
    assert low < result["accuracy"] < high
    for name in NAMES:
        for key, (low, high) in found["per_class"][name].items():
            assert low < result["per_class"][name][key] < high


def test_intervals_are_those_of_the_file_read_again() -> None:
    settings = IntervalSettings(block=2, resamples=300, seed=4, level=0.8)
    result = json.loads(json.dumps(score_images("toy", "test", CLASSES, draw_images(30), settings)))
    again = estimate([result], "per_class.cell.recall", settings)
    assert result["intervals"]["per_class"]["cell"]["recall"] == [again.low, again.high]
    assert (result["intervals"]["block"], result["intervals"]["level"]) == (2, 0.8)


def test_a_single_image_has_an_interval_from_its_tiles() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, (200, 120))
    predicted = np.where(rng.random(truth.shape) < 0.2, rng.integers(0, 4, truth.shape), truth)
    result = score_images("toy", "test", CLASSES, [("one", truth, predicted)])
    (tiles,) = result["per_image"]["tiles"]
    assert tiles["grid"] == [12, 7]  # of at least 16 pixels
    assert np.sum(tiles["confusion"], 0).tolist() == result["confusion"]
    first = confusion(truth[:16, :17], predicted[:16, :17], CLASSES)
    assert tiles["confusion"][0] == first.tolist()
    found = result["intervals"]
    assert found["unit"] == "tiles"
    low, high = found["macro"]["f1"]
    assert low < result["macro"]["f1"] < high < low + 0.06


def test_tiles_of_a_stack_are_summed_along_it() -> None:
    flat = draw_images(4)
    stack = [(f"a/{z:04d}", truth, predicted) for z, (_, truth, predicted) in enumerate(flat[:3])]
    first, second = score_images("toy", "test", CLASSES, [*stack, flat[3]])["per_image"]["tiles"]
    assert first["grid"] == second["grid"] == [2, 2]
    corner = sum(confusion(truth[:16, :16], predicted[:16, :16], CLASSES) for _, truth, predicted in stack)
    assert first["confusion"][0] == corner.tolist()


def test_the_table_by_hand() -> None:
    truth = np.array([[0, 0, 0, 1, 255]], np.uint8)
    predicted = np.array([[0, 0, 1, 1, 2]], np.uint8)
    lines = str(Scores(score_images("toy", "test", CLASSES, [("a", truth, predicted)]))).splitlines()
    assert lines[0] == "toy, split test, 1 image; pooled over pixels, and /image: mean over images"
    assert [line.split() for line in lines[1:10]] == [
        ["precision", "recall", "F1", "IoU", "F1/image", "IoU/image", "pixels"],
        ["background", "1.000", "0.667", "0.800", "0.667", "0.800", "0.667", "3"],
        ["vessel", "0.500", "1.000", "0.667", "0.500", "0.667", "0.500", "1"],
        ["cell", "–", "–", "–", "–", "–", "–", "0"],
        ["axon", "–", "–", "–", "–", "–", "–", "0"],
        ["macro", "mean", "0.750", "0.833", "0.733", "0.583", "0.733", "0.583"],
        ["weighted", "mean", "0.875", "0.750", "0.767", "0.625"],
        ["accuracy", "0.750"],
        ["no", "interval:", "1", "tile,", "and", "fewer", "than", "5", "do", "not", "say", "how", "much", "they", "differ"],
    ]
    assert len({len(line) for line in lines[1:6]}) == 1


def test_an_absent_class_counts_in_no_mean_over_images() -> None:
    """Two images by hand: the cell is in the first only, and missed by half."""
    classes = ClassSet(("background", "cell"))
    first = ("a", np.array([[0, 0, 1, 1]]), np.array([[0, 0, 0, 1]]))
    second = ("b", np.array([[0, 0, 0, 0]]), np.array([[0, 0, 0, 0]]))
    result = score_images("toy", "test", classes, [first, second])
    assert result["per_class"]["cell"]["iou"] == 0.5
    assert result["per_class"]["background"]["iou"] == 6 / 7
    alone = result["per_image"]["per_class"]
    assert alone["cell"] == {"f1": 2 / 3, "iou": 0.5, "images": 1}
    assert alone["background"] == {"f1": (0.8 + 1) / 2, "iou": (2 / 3 + 1) / 2, "images": 2}
    table = str(Scores(result)).splitlines()
    assert table[1].split() == ["precision", "recall", "F1", "IoU", "F1/image", "IoU/image", "pixels"]
    assert table[3].split() == ["cell", "1.000", "0.500", "0.667", "0.500", "0.667", "0.500", "2"]
