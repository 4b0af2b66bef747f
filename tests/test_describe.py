import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from neurotome import figures
from neurotome.augment import AugmentSettings
from neurotome.classes import ClassSet
from neurotome.datasets.base import Cutout, Dataset
from neurotome.datasets.statistics import measure_dataset
from neurotome.errors import DatasetError, RunError, SettingsError
from neurotome.io import write_image, write_labels
from neurotome.report.chosen import (
    draw_augmented,
    draw_predictions,
    draw_samples,
    list_augmented,
    pick_or_spread,
    pick_slices,
    spread_slices,
)
from neurotome.report.describe import DRAWS, describe, draw_augmentation
from neurotome.runs import Run
from neurotome.training.recipe import Recipe, TrainSettings
from neurotome.volume import Volume
from tests.conftest import run, write_dataset

OFF = Recipe(augment=AugmentSettings(enabled=False))


def make_dataset(dtype=np.uint8, depth=1, size=(40, 48)):
    def make(name, seed):
        labels = np.zeros((depth, *size), np.uint8)
        labels[:, 5:20, 8:30] = 1
        labels[:, 25:33, 4:40] = 2
        labels[:, 0] = 255
        grey = np.array([40, 120, 200])[np.minimum(labels, 2)] + np.random.default_rng(seed).normal(0, 5, labels.shape)
        return Cutout(Volume(grey.astype(dtype), name, (1.0, 0.5, 0.5)), labels)

    splits = {"train": (make("a", 0), make("b", 1)), "test": (make("c", 2),)}
    return Dataset("toy", ClassSet(("background", "vessel", "cell")), splits, licence="CC0")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_writes_numbers_and_pictures(tmp_path, dtype):
    out = tmp_path / "new" / "folder"
    dataset = make_dataset(dtype)
    statistics = describe(dataset, out=out)
    assert statistics == measure_dataset(dataset)
    assert json.loads((out / "statistics.json").read_text()) == statistics
    assert {path.name for path in out.iterdir()} == {
        "statistics.json",
        "samples.png",
        "augmentation.png",
        "class_shares.png",
        "histograms_train.png",
        "histograms_test.png",
    }


def test_without_out_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert describe(make_dataset())["splits"]["train"]["images"] == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"dataset": "nowhere"}, DatasetError),
        ({"palette": "founding-report"}, SettingsError),  # classes of which it has no colour
        ({"palette": "pink"}, SettingsError),
        ({"recipe": Recipe(augment=AugmentSettings(blur=-1))}, SettingsError),
    ],
)
def test_error_leaves_no_folder(tmp_path, arguments, error):
    dataset = make_dataset()
    if "palette" in arguments:
        dataset = Dataset("toy", ClassSet(("background", "vessel", "nucleus")), dataset.splits)
    with pytest.raises(error):
        describe(**{"dataset": dataset, **arguments}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_file_in_the_way(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(RunError, match="is a file; expected a folder"):
        describe(make_dataset(), out=tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_chosen_slices_are_spread():
    dataset = make_dataset(depth=4)
    assert [(cutout.name, z) for _, cutout, z in spread_slices(dataset, 4)] == [("a", 1), ("a", 3), ("b", 1), ("b", 3)]
    assert len(spread_slices(dataset, 100)) == 8
    assert spread_slices(make_dataset(), 1)[0].cutout.name == "b"


def test_slices_are_counted_through_the_images_of_a_split():
    train = make_dataset(depth=4).split("train")
    chosen = [(place.title, place.cutout.name, place.z) for place in pick_slices(train, (0, 3, 4, 7))]
    assert chosen == [
        ("slice 0: a, z 0", "a", 0),
        ("slice 3: a, z 3", "a", 3),
        ("slice 4: b, z 0", "b", 0),
        ("slice 7: b, z 3", "b", 3),
    ]
    assert [place.title for place in pick_or_spread(train, (0, 5))] == ["slice 0: a, z 0", "slice 5: b, z 1"]
    # not all there: as many, spread from the first to the last
    spread = [place.title.partition(":")[0] for place in pick_or_spread(train, (0, 200, 800))]
    assert spread == ["slice 0", "slice 3", "slice 7"]
    with pytest.raises(SettingsError, match="found no slice -1, 8; expected numbers from 0 to 7"):
        pick_slices(train, (-1, 0, 8))


def test_described_slices_are_those_that_are_asked_for(tmp_path, monkeypatch):
    drawn = {}
    for name in ("plot_samples", "plot_augmented"):
        draw = getattr(figures, name)
        monkeypatch.setattr(figures, name, lambda rows, *rest, n=name, d=draw: (drawn.update({n: rows}), d(rows, *rest))[1])
    dataset = make_dataset(depth=3)
    describe(dataset, out=tmp_path, slices=(1, 5), recipe=OFF)
    assert [row[0] for row in drawn["plot_samples"]] == ["slice 1: a, z 1", "slice 5: b, z 2"]
    for (title, grey, labels), (same, before, (after,)) in zip(drawn["plot_samples"], drawn["plot_augmented"], strict=True):
        assert title == same
        np.testing.assert_array_equal(before[0], grey[:, 4:44])
        np.testing.assert_array_equal(after[1], labels[:, 4:44])
    with pytest.raises(SettingsError, match="found no slice 6"):
        describe(dataset, out=tmp_path / "new", slices=(6,))
    assert not (tmp_path / "new").exists()


def test_the_augmentation_of_a_file_for_training_is_shown(tmp_path):
    settings = tmp_path / "recipe.yaml"
    settings.write_text("model: {decoder: linknet}\naugment: {enabled: false}\ntrain: {epochs: 3}\n")
    folder = write_dataset(tmp_path / "data")
    assert run("describe", folder, "--config", settings, "--out", tmp_path / "off") == 0
    assert run("describe", folder, "--out", tmp_path / "usual") == 0
    describe(folder, out=tmp_path / "same", recipe=OFF)
    pictures = {name: (tmp_path / name / "augmentation.png").read_bytes() for name in ("off", "usual", "same")}
    assert pictures["off"] == pictures["same"] != pictures["usual"]


@pytest.mark.parametrize("normalization", ["dataset", "range"])
def test_corners_are_as_dark_as_the_recipe_makes_them(normalization):
    dataset = make_dataset()
    turn = AugmentSettings(
        rotate_degrees=(45, 45), rotate_probability=1, scale_probability=0, elastic_probability=0, intensity_probability=0,
        padding="constant", fill=0, corners="background",
    )  # fmt: skip
    recipe = Recipe(augment=turn, train=TrainSettings(normalization=normalization))
    ((_, _, (after,)),) = list_augmented(dataset, pick_slices(dataset.split("train"), (0,)), {"r": recipe}, 0)[0]
    # 0 is the training data's mean, or black
    corner = {"dataset": measure_dataset(dataset)["splits"]["train"]["mean"], "range": 0}[normalization]
    assert abs(int(after[0][0, 0]) - corner) <= 1
    assert after[1][0, 0] == 0


def test_the_founding_reports_figures_for_any_dataset(tmp_path):
    dataset = make_dataset(depth=3)
    samples = draw_samples(dataset, dataset.classes)
    assert [axes.get_title() for axes in samples.axes[:4]] == [f"slice {n}: {p}" for n, p in PLACES]
    augmented = draw_augmented(dataset, dataset.classes, {"off": OFF, "ours": Recipe()})
    assert [axes.get_title("left") for axes in augmented.axes[:6:2]] == ["As it is", "off", "ours"]
    assert len(augmented.axes) == 4 * 6


PLACES = ((0, "a, z 0"), (1, "a, z 1"), (3, "b, z 0"), (5, "b, z 2"))


def test_predictions_of_chosen_slices(tmp_path):
    dataset = make_dataset(depth=2)
    predictions = tmp_path / "run" / "predictions" / "test"
    predictions.mkdir(parents=True)
    (cutout,) = dataset.split("test")
    found = np.where(cutout.labels == 255, 0, cutout.labels)
    found[1] = 0
    write_labels(predictions / "c.tif", found)
    figure = draw_predictions(Run(tmp_path / "run"), dataset, dataset.classes)
    assert [axes.get_ylabel().partition("\n")[0] for axes in figure.axes[::4]] == ["slice 0: c, z 0", "slice 1: c, z 1"]
    shares = [float(axes.get_xlabel().partition(" ")[0]) for axes in figure.axes[3::4]]
    wrong = 100 * np.isin(cutout.labels[1], (1, 2)).sum() / (cutout.labels[1] != 255).sum()
    assert shares == [0, pytest.approx(wrong, abs=0.05)]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_augmentation_that_is_off_changes_no_grey_value(dtype):
    before, after = draw_augmentation(make_dataset(dtype), OFF, 0)
    assert before[0].shape == (40, 40)
    assert len(after) == DRAWS
    for grey, labels in after:
        # float32 there and back may round the other way
        assert np.abs(grey.astype(int) - before[0]).max() <= 1
        np.testing.assert_array_equal(labels, before[1])


def test_augmentation_repeats_with_its_seed():
    dataset, settings = make_dataset(), Recipe()
    first, same, other = (draw_augmentation(dataset, settings, seed)[1] for seed in (3, 3, 4))
    assert all(np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]) for a, b in zip(first, same, strict=True))
    assert not all(np.array_equal(a[0], b[0]) for a, b in zip(first, other, strict=True))


def test_invented_pixels_are_not_labelled():
    settings = AugmentSettings(rotate_degrees=(45, 45), rotate_probability=1, scale_probability=0, elastic_probability=0)
    before, after = draw_augmentation(make_dataset(), Recipe(augment=settings), 0)
    assert before[1][20, 0] != 255
    for _, labels in after:
        assert {int(labels[y, x]) for y in (0, -1) for x in (0, -1)} == {255}


def test_one_scale_for_all_pictures():
    settings = AugmentSettings(
        rotate_probability=0, scale_probability=0, elastic_probability=0, brightness=1, contrast=(1, 1), gamma=(1, 1),
        noise=0, blur=0, intensity_probability=1,
    )  # fmt: skip
    before, after = draw_augmentation(make_dataset(np.float32), Recipe(augment=settings), 0)
    assert max(abs(float(grey.mean()) - float(before[0].mean())) for grey, _ in after) > 10


def test_numbers_as_text():
    dataset = make_dataset()
    statistics = measure_dataset(dataset)
    text = str(statistics)
    train = statistics["splits"]["train"]
    assert "toy: 3 classes, voxel size 1 x 0.5 x 0.5 um (z, y, x)" in text
    assert "licence: CC0" in text
    assert "citation" not in text
    assert "train: 2 images, 2 slices, 3,840 pixels" in text
    assert "test: 1 image, 1 slice, 1,920 pixels" in text
    assert f"mean {train['mean']:.5g}" in text
    # 2 x 15 x 22 pixels of vessel
    assert f"\nvessel{660:>14,}  {100 * 660 / 3744:.2f} %\n" in text
    assert f"\nnot labelled{96:>8}\n" in text
    html = statistics._repr_html_()
    assert "<td>vessel</td><td>660</td><td>17.63 %</td>" in html
    assert html.count("<table>") == 2
    assert repr(statistics) == text
    assert json.loads(json.dumps(statistics)) == statistics
    assert "train       2       2         40 x 48" in str(dataset)
    assert "<td>train</td><td>2</td><td>2</td><td>40 x 48</td>" in dataset._repr_html_()
    assert "–" not in text


def test_a_mask_of_0_and_255_is_described_with_what_to_do(tmp_path):
    dataset = make_dataset()
    for cutout in dataset.split("train"):
        cutout.labels[:] = np.where(cutout.labels == 1, 255, 0)
    with pytest.warns(UserWarning, match="all labelled .* of class background.* in masks of 0 and 255 write 1"):
        assert describe(dataset, out=tmp_path)["splits"]["train"]["counts"]["vessel"] == 0
    dataset = make_dataset()
    for cutout in dataset.split("train"):
        cutout.labels[cutout.labels == 1] = 255
    with pytest.warns(UserWarning, match="no training pixel of class vessel.* in masks of 0 and 255 write 1"):
        describe(dataset)


def test_images_that_no_split_names_are_named():
    dataset = dataclasses.replace(make_dataset(), unlisted=("d", "e<f>"))
    assert "in no split: d, e<f>" in str(describe(dataset))
    assert "in no split: d, e&lt;f&gt;" in describe(dataset)._repr_html_()
    assert "in no split: d, e&lt;f&gt;" in dataset._repr_html_()


def test_the_command_line_shows_the_table(tmp_path):
    dataset = make_dataset()
    for cutout in (*dataset.split("train"), *dataset.split("test")):
        write_image(tmp_path / "images" / f"{cutout.name}.tif", cutout.volume.data)
        write_labels(tmp_path / "labels" / f"{cutout.name}.tif", cutout.labels)
    (tmp_path / "dataset.yaml").write_text("classes: [background, vessel, cell]\nsplits: {train: [a], test: [c]}")
    command = [sys.executable, "-m", "neurotome", "describe", str(tmp_path)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout
    assert shown == f"{describe(tmp_path)}\n"
    assert "in no split: b" in shown


def test_somebody_elses_files_are_not_replaced(tmp_path):
    (tmp_path / "samples.png").write_text("mine")
    with pytest.raises(RunError, match=r"samples\.png: is there already, and nothing says that this command wrote it"):
        describe(make_dataset(), out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["samples.png"]
    describe(make_dataset(), out=tmp_path / "own")
    describe(make_dataset(), out=tmp_path / "own")


def test_nothing_is_written_into_what_is_described(tmp_path):
    with pytest.raises(RunError, match="images"):
        describe(tmp_path, out=tmp_path / "images")


def test_class_that_is_absent_and_split_without_labels():
    labels = np.full((1, 8, 8), 255, np.uint8)
    grey = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    some = labels.copy()
    some[0, 0, 0] = 0
    dataset = Dataset(
        "bare",
        ClassSet(("a", "b")),
        {"train": (Cutout(Volume(grey, "x"), some),), "val": (Cutout(Volume(grey, "y"), labels),)},
    )
    text = str(measure_dataset(dataset))
    assert "voxel size not known" in text
    assert "0.00 %" in text
    assert "imbalance not known" in text
    assert "–" in text


def test_import_is_light():
    code = (
        "import sys, neurotome.report.describe;"
        "heavy = {'matplotlib', 'jinja2', 'sklearn', 'skimage', 'torch._C'} & set(sys.modules);"
        "sys.exit(', '.join(heavy) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_can_be_opened_is_listed_without_data(capsys):
    from neurotome.cli import _show
    from neurotome.datasets.mtneuro.variants import VARIANTS

    known = describe(known=True)
    assert {f"mtneuro:<folder>@{name}" for name in VARIANTS} < set(known)
    _show(known)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(known)
    assert all(description in line for line, description in zip(lines, known.values(), strict=True))
    for wrong in ({"dataset": "phantom", "known": True}, {}):
        with pytest.raises(SettingsError, match="--list"):
            describe(**wrong)
