"""Measures corrected for a model's errors: a published example, numbers by hand, simulated truth, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import neurotome
from neurotome.blocks import Grid
from neurotome.classes import ClassSet
from neurotome.errors import RunError
from neurotome.io.sink import write_labels
from neurotome.measuring.correction import correct_densities, correct_fractions
from neurotome.measuring.intervals import Added, estimate_density, estimate_share
from neurotome.measuring.model_errors import ModelErrors
from neurotome.measuring.tally import Tally
from neurotome.objects.scores import ObjectSettings
from neurotome.scoring import score_images
from neurotome.volume import Volume
from tests.conftest import run
from tests.measured_labels import AXON, CELL, CLASSES, TISSUE, VESSEL, make_source

# Olofsson et al. 2014, tables 8 and 9: rows map classes, columns the truth; shares of the map; 10 million hectares
COUNTS = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
WEIGHTS = np.array([0.020, 0.015, 0.320, 0.645])


def make_errors(confusions: np.ndarray) -> ModelErrors:
    """Errors with a matrix (true, predicted) for each image."""
    names = [f"i{number}" for number in range(len(confusions))]
    images = {"name": names, "confusion": confusions.tolist(), "tiles": []}
    return ModelErrors({"confusion": confusions.sum(0).tolist(), "per_image": images}, (), {})


def make_tally(counts: np.ndarray) -> tuple[Any, Tally]:
    """Voxels by cube (z, y, x) and class, without an image."""
    shape = counts.shape[:3]
    tally = Tally(Grid(shape, (1, 1, 1), (1, 1, 1)))
    flat = counts.reshape(-1, counts.shape[3])
    cubes, kinds = np.indices(flat.shape)
    tally.add(np.stack([cubes.ravel(), np.zeros(flat.size, np.int64), kinds.ravel(), flat.ravel()], 1).astype(np.int64))
    return make_source(np.zeros(shape, np.uint8)), tally


def test_a_published_example_of_corrected_areas_and_their_standard_errors() -> None:
    """Each point of the sample is an image of one pixel, in any order."""
    points = [(true, given) for given, row in enumerate(COUNTS) for true, n in enumerate(row) for _ in range(n)]
    single = np.zeros((len(points), 4, 4), np.int64)
    for number, (true, given) in enumerate(np.random.default_rng(3).permutation(points).tolist()):
        single[number, true, given] = 1
    errors = make_errors(single)
    source, tally = make_tally(np.broadcast_to((WEIGHTS * 1000).astype(int), (2, 4, 4, 4)))
    found = correct_fractions(source, tally, errors, 0.95)
    assert found["fraction_corrected"][0] * 1e7 == pytest.approx(235_086, abs=1)  # hectares
    assert found["fraction_corrected"].sum() == pytest.approx(1)
    added = errors.vary_shares(WEIGHTS)
    assert added is not None
    assert 1.96 * np.sqrt(added[0].variance) * 1e7 == pytest.approx(68_418, rel=0.1)


def test_without_errors_nothing_is_corrected() -> None:
    rng = np.random.default_rng(0)
    source, tally = make_tally(rng.integers(1, 50, (3, 4, 4, 4)))
    found = correct_fractions(source, tally, make_errors(np.array([np.diag([9, 8, 7, 6])] * 30)), 0.95)
    counts = np.stack([tally.count((i,)) for i in range(4)])
    for i in range(4):
        plain = estimate_share(counts[i], counts.sum(0), 0.95)
        assert [found[f"fraction_corrected{bound}"][i] for bound in ("", "_low", "_high")] == pytest.approx(list(plain))


def test_what_is_added_makes_intervals_wider() -> None:
    counts, sizes = np.random.default_rng(1).poisson(9, (12, 12, 12)).astype(float), np.ones((12, 12, 12))
    alone = estimate_density(counts, sizes, 0.95)
    both = estimate_density(counts, sizes, 0.95, Added(0.01))
    few = estimate_density(counts, sizes, 0.95, Added(1e-9, 1000))
    halves = [np.log(one.high / one.value) for one in (alone, both, few)]
    # many degrees of freedom: variances add up
    assert halves[1] ** 2 - halves[0] ** 2 == pytest.approx((1.959964 * 0.1) ** 2, rel=0.02)
    assert halves[0] <= halves[2] == pytest.approx(halves[0], rel=1e-3)


def test_corrected_fractions_hold_the_truth_as_often_as_said() -> None:
    """Cubes and test images are drawn alike: a share of vessels, of which the model sees some and invents others."""
    rng, held, raw_held, draws = np.random.default_rng(4), 0, 0, 200
    truth = 0.2

    def draw(number: int, voxels: int) -> np.ndarray:
        """Counts by true class and predicted class, (number, 4, 4)."""
        shares = rng.beta(4, 16, number)
        sees, invents = rng.beta(12, 12, number), rng.beta(2, 38, number)
        cells = np.stack([(1 - shares) * (1 - invents), (1 - shares) * invents, shares * (1 - sees), shares * sees], 1)
        counts = np.zeros((number, 4, 4), np.int64)
        counts[:, :2, :2] = rng.multinomial(voxels, cells).reshape(number, 2, 2)
        return counts

    for _ in range(draws):
        source, tally = make_tally(draw(64, 1000).sum(1).reshape(4, 4, 4, 4))
        found = correct_fractions(source, tally, make_errors(draw(40, 1000)), 0.95)
        held += found["fraction_corrected_low"][1] <= truth <= found["fraction_corrected_high"][1]
        counts = np.stack([tally.count((i,)) for i in range(4)])
        plain = estimate_share(counts[1], counts.sum(0), 0.95)
        raw_held += plain.low <= truth <= plain.high
    assert 0.92 <= held / draws <= 0.99  # 200 draws tell 0.95 from 0.92, no more
    assert raw_held / draws < 0.1  # the model sees half of them


def write_scores(path: Path, images: int = 6, classes: ClassSet = CLASSES, **changes: Any) -> Path:
    """Scores of slices with three cells each, of which the model finds two and invents one in every second."""
    listed = []
    for number in range(images):
        truth = np.zeros((32, 32), np.uint8)
        truth[4:10, 4:10] = truth[4:10, 20:26] = truth[20:26, 4:10] = CELL
        truth[:, 30:] = VESSEL
        predicted = truth.copy()
        predicted[20:26, 4:10] = 0
        if number % 2:
            predicted[20:26, 20:26] = CELL
        listed.append((f"i{number}", truth, predicted))
    asked = changes.pop("objects", ObjectSettings())
    sizes = {name: (1.0, 1.0, 1.0) for name, *_ in listed}
    scores = {**score_images("toy", "test", classes, listed, objects=asked, sizes_um=sizes), **changes}
    path.write_text(json.dumps({key: value for key, value in scores.items() if value is not None}))
    return path


@pytest.fixture
def slices(tmp_path: Path) -> Path:
    """A slice with eight cells, none at the border."""
    labels = np.zeros((1, 80, 80), np.uint8)
    for y in (10, 40):
        for x in (10, 25, 40, 55):
            labels[0, y : y + 6, x : x + 6] = CELL
    labels[0, :, 75:] = VESSEL
    path = tmp_path / "labels.tif"
    write_labels(path, labels, CLASSES, Volume(labels, "labels", (1.0, 1.0, 1.0)))
    return path


def test_numbers_of_cells_are_divided_by_recall_and_times_precision(slices: Path, tmp_path: Path) -> None:
    scores = write_scores(tmp_path / "scores.json", images=12)
    found = neurotome.measure(slices, out=tmp_path / "out", scores=scores, vessels="none")
    density = found.tables["density"]
    one = json.loads(scores.read_text())["objects"]["overlap"]["per_class"]["cell"]
    assert (one["precision"], one["recall"]) == (24 / 30, 24 / 36)
    assert density["profiles_counted_corrected"][0] == pytest.approx(8 * (24 / 30) / (24 / 36)) == pytest.approx(9.6)
    for unit in ("profiles_corrected{}_per_mm2", "density_corrected{}_per_mm3"):
        low, value, high = (density[unit.format(bound)][0] for bound in ("_low", "", "_high"))
        assert low < value < high
    assert density["profiles_corrected_per_mm2"][0] == pytest.approx(1.2 * density["profiles_per_mm2"][0])
    assert density["density_corrected_per_mm3"][0] == pytest.approx(1.2 * density["density_per_mm3"][0])
    page = (tmp_path / "out" / "measure.html").read_text()
    assert "Corrected<br>per mm3" in page
    assert "10.1016/j.rse.2014.02.015" in page
    said = json.loads((tmp_path / "out" / "measure.json").read_text())
    assert said["scores"]["path"] == str(scores)


def test_without_scores_there_is_no_corrected_column(slices: Path, tmp_path: Path) -> None:
    tables = neurotome.measure(slices, out=tmp_path / "out").tables
    assert not [name for table in tables.values() for name in table if "corrected" in name]
    assert "Corrected figures" not in (tmp_path / "out" / "measure.html").read_text()


def test_profiles_of_vessels_are_corrected_and_a_run_folder_is_read(slices: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "run" / "scores").mkdir(parents=True)
    write_scores(tmp_path / "run" / "scores" / "test.json", images=12)
    assert run("measure", slices, "--out", tmp_path / "out", "--scores", tmp_path / "run") == 0
    printed = capsys.readouterr().out
    assert "fraction_corrected_low" in printed
    assert "profiles_corrected_per_mm2" in printed
    assert "Touching" not in printed
    assert run("measure", slices, "--out", tmp_path / "other", "--scores", tmp_path / "run", "--neck", "0.5") == 0
    assert "parted by --neck 0.5 here and by 0.7 in the scores" in " ".join(capsys.readouterr().out.split())
    assert "like those of the test images (toy, split test, 12 images)" in printed


def test_too_few_images_give_corrected_figures_without_an_interval(slices: Path, tmp_path: Path) -> None:
    content = json.loads(write_scores(tmp_path / "scores.json", images=3).read_text())
    content["per_image"]["tiles"] = content["objects"]["tiles"] = []
    (tmp_path / "scores.json").write_text(json.dumps(content))
    found = neurotome.measure(slices, out=tmp_path / "out", scores=tmp_path / "scores.json")
    fractions, density = found.tables["fractions"], found.tables["density"]
    assert np.isfinite(fractions["fraction_corrected"]).all()
    assert np.isnan(fractions["fraction_corrected_low"]).all()
    assert np.isfinite(density["density_corrected_per_mm3"][0])
    assert np.isnan(density["density_corrected_high_per_mm3"][0])
    assert any("too few test images" in note for note in found.notes)


def test_volumes_are_not_corrected_by_cells_of_slices(tmp_path: Path) -> None:
    labels = np.zeros((20, 30, 30), np.uint8)
    labels[5:12, 5:12, 5:12], labels[:, :, 28:] = CELL, VESSEL
    write_labels(tmp_path / "labels.tif", labels, CLASSES, Volume(labels, "labels", (1.0, 1.0, 1.0)))
    found = neurotome.measure(
        tmp_path / "labels.tif", out=tmp_path / "out", scores=write_scores(tmp_path / "scores.json"), grid_um=10.0
    )
    assert np.isnan(found.tables["density"]["density_corrected_per_mm3"]).all()
    assert np.isfinite(found.tables["fractions"]["fraction_corrected"]).all()
    assert any("number of cell is not corrected: the test images are slices" in note for note in found.notes)
    assert any("Lengths and branch points of vessels are not corrected" in note for note in found.notes)


def test_classes_that_the_test_images_lack_are_said(tmp_path: Path) -> None:
    labels = np.zeros((1, 60, 60), np.uint8)
    labels[0, 10:20, 10:20], labels[0, :, 50:] = CELL, AXON
    write_labels(tmp_path / "labels.tif", labels, TISSUE, Volume(labels, "labels", (1.0, 1.0, 1.0)))
    asked = {"vessels": "none", "axons": "none"}
    scores = write_scores(tmp_path / "scores.json", classes=TISSUE)
    found = neurotome.measure(tmp_path / "labels.tif", out=tmp_path / "out", scores=scores, **asked)
    assert np.isnan(found.tables["fractions"]["fraction_corrected"]).all()
    assert any("not corrected where there is axon: in the test images no pixel is predicted so" in n for n in found.notes)
    content = json.loads(scores.read_text())
    for matrix in (content["confusion"], *content["per_image"]["confusion"]):
        matrix[0][AXON] = 7  # predicted, and never right
    content["objects"]["distance"]["per_class"]["cell"]["matched"] = 0
    scores.write_text(json.dumps(content))
    found = neurotome.measure(tmp_path / "labels.tif", out=tmp_path / "b", scores=scores, **asked)
    assert found.tables["fractions"]["fraction_corrected"][AXON] == 0
    assert any("no pixel is truly axon" in note for note in found.notes)
    assert any(
        "cell is not corrected: the test images have 18, 15 were found, and none of them match" in n for n in found.notes
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objects": None}, "found no objects of class cell in the scores.*neurotome evaluate.*--cells none"),
        ({"asked": ObjectSettings(classes=("blood vessel",))}, "found no objects of class cell.*--objects.classes 'cell'"),
        ({"split": "val"}, "scores of the split val; expected images that no training saw.*--split test"),
        ({"classes": TISSUE}, "scores are of the classes background, blood vessel, cell, axon, the labels of background"),
        ({"macro": 3}, "not what neurotome writes"),
        ({"dimensions": 3}, "scored in volumes; expected slices.*--objects.as-slices"),
    ],
)
def test_scores_that_say_nothing_of_the_labels_are_refused_at_once(
    changes: dict[str, Any], said: str, slices: Path, tmp_path: Path
) -> None:
    classes = changes.pop("classes", CLASSES)
    asked, dimensions = changes.pop("asked", ObjectSettings()), changes.pop("dimensions", None)
    scores = write_scores(tmp_path / "scores.json", classes=classes, objects=asked)
    content = {**json.loads(scores.read_text()), **changes}
    if dimensions:
        content["objects"]["dimensions"] = dimensions
    scores.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    with pytest.raises(RunError, match=said):
        neurotome.measure(slices, out=tmp_path / "out", scores=scores)
    assert not (tmp_path / "out").exists()


def test_a_run_without_scores_of_a_test_split_is_refused(slices: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(RunError, match=r"found no scores of the split test.*neurotome evaluate"):
        neurotome.measure(slices, out=tmp_path / "out", scores=tmp_path / "run")


def test_densities_without_any_cell_are_corrected_to_nothing(tmp_path: Path) -> None:
    source, tally = make_tally(np.full((3, 4, 4, 4), 5))
    scores = json.loads(write_scores(tmp_path / "scores.json").read_text())
    cells = {name: np.zeros(0) for name in ("centroid_z_um", "centroid_y_um", "centroid_x_um")}
    table = {"region": ["whole"], "cells_counted": np.zeros(1)}
    found = correct_densities(
        source, {**cells, "counted": np.zeros(0, bool)}, table, tally, ModelErrors(scores, (), {}), 0.95
    )
    assert found["cells_counted_corrected"].tolist() == [0.0]
