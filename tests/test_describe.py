import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from neurotome.augment import AugmentSettings
from neurotome.classes import ClassSet
from neurotome.datasets.base import Cutout, Dataset
from neurotome.datasets.statistics import measure_dataset
from neurotome.errors import DatasetError, RunError, SettingsError
from neurotome.io import write_image, write_labels
from neurotome.report.chosen import spread_slices
from neurotome.report.describe import DRAWS, describe, draw_augmentation
from neurotome.training.recipe import Recipe
from neurotome.volume import Volume

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
