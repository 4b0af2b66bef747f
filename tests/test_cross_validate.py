"""`--folds`: one method trained for every part of a dataset, and scored over all of them."""

import csv
import json

import numpy as np
import pytest
import yaml

import neurotome
from conftest import TINY, run
from neurotome.errors import DatasetError, SettingsError
from neurotome.experiments.grids.grid import open_grid
from neurotome.io import read_labels, write_image, write_labels
from neurotome.metrics import scores

BASELINE = ["--learner", "lr", "--features", "identity"]


def write_stack(folder, slices=24, **content):
    rng = np.random.default_rng(0)
    labels = np.zeros((slices, 32, 32), np.uint8)
    labels[:, 8:20] = 1
    labels[:, 24:] = 255
    grey = np.where(labels == 1, 120, 90) + rng.normal(0, 20, labels.shape)
    write_image(folder / "images" / "stack.tif", grey.clip(0, 255).astype(np.uint8))
    write_labels(folder / "labels" / "stack.tif", labels)
    (folder / "dataset.yaml").write_text(yaml.safe_dump({"classes": ["background", "cell"], **content}))
    (folder / "splits.yaml").write_text("train: [stack]")  # somebody has seen the made ones, and it is quiet
    return folder


def test_scores_over_folds_are_those_of_all_slices_pooled(tmp_path, capsys):
    data = write_stack(tmp_path / "data")
    for _ in range(2):
        assert run("baseline", data, "--out", tmp_path / "cv", "--folds", "4", "--gap", "2", *BASELINE) == 0
    shown = capsys.readouterr().out
    names = [f"pixels/lr/seed-0-fold-{fold}" for fold in range(4)]
    with (tmp_path / "cv" / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows if row["class"] == "macro"] == names
    assert {row["split"] for row in rows} == {"test"}
    truth = read_labels(data / "labels" / "stack.tif")
    predicted = np.concatenate(
        [
            read_labels(tmp_path / "cv/runs" / name / f"predictions/test/stack_z{6 * fold}-{6 * fold + 6}.tif")
            for fold, name in enumerate(names)
        ]
    )
    pairs = [[int(((truth == i) & (predicted == j)).sum()) for j in range(2)] for i in range(2)]
    pooled = scores(np.array(pairs), ("background", "cell"))
    macro = next(line for line in shown.splitlines() if line.startswith("macro "))
    assert [f"{pooled['macro'][key]:.3f}" for key in ("precision", "recall", "f1", "iou")] == [
        word for word in macro.replace("[", "").split() if not word.endswith(("]", ","))
    ][1:]
    record = json.loads((tmp_path / "cv/runs" / names[1] / "run.json").read_text())
    assert {split: list(images) for split, images in record["splits"].items()} == {
        "train": ["stack_z0-4", "stack_z20-24"],
        "val": ["stack_z12-18"],
        "test": ["stack_z6-12"],
    }


def test_a_network_is_cross_validated_and_other_folds_are_another_grid(tmp_path):
    data = write_stack(tmp_path / "data")
    settings = [*TINY, "--train.epochs", "1", "--train.steps-per-epoch", "1", "--train.device", "cpu"]
    assert run("train", data, "--out", tmp_path / "cv", "--folds", "3", *settings) == 0
    assert [run.fold for run in open_grid(tmp_path / "cv").runs] == [0, 1, 2]
    for other in (["--folds", "4"], ["--folds", "3", "--gap", "2"]):
        assert run("train", data, "--out", tmp_path / "cv", *other, *settings) == 1


def test_a_grid_has_folds_with_a_gap(tmp_path):
    data = write_stack(tmp_path / "data")
    entry = {"kind": "pixels", "learner": "lr", "features": "identity", "splits": ["test"]}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"runs": [entry], "folds": 3, "gap": 3}))
    result = neurotome.grid(tmp_path / "grid.yaml", data=data, out=tmp_path / "out")
    record = json.loads((tmp_path / "out/runs" / result.finished[0] / "run.json").read_text())
    assert list(record["splits"]["train"]) == ["stack_z19-24"]


@pytest.mark.parametrize(
    ("options", "content", "error", "message"),
    [
        ({"folds": 1}, {}, SettingsError, "found 1 folds; expected 3 or more"),
        ({"folds": -5}, {}, SettingsError, "found -5 folds"),
        ({"folds": 30}, {}, DatasetError, "stack has 24 annotated slices; expected 30 or more"),
        ({"folds": 3, "gap": 20}, {}, DatasetError, "no annotated slice is left to train on in fold 0"),
        ({"gap": 3}, {}, SettingsError, "--gap is for folds"),
        ({"folds": 3}, {"groups": {"stack": "mouse"}}, DatasetError, r"found 1 groups .*; expected 3 or more"),
    ],
)
def test_folds_that_cannot_be_leave_nothing(tmp_path, options, content, error, message):
    data = write_stack(tmp_path / "data", **content)
    for command in (neurotome.train, neurotome.baseline):
        with pytest.raises(error, match=message):
            command(data, out=tmp_path / "cv", **options)
    assert not (tmp_path / "cv").exists()


def test_stated_splits_are_not_crossed(tmp_path):
    data = write_stack(tmp_path / "data", splits={"train": ["stack"]})
    (data / "splits.yaml").unlink()
    with pytest.raises(DatasetError, match=r"splits are fixed.*Remove splits from dataset\.yaml"):
        neurotome.baseline(data, out=tmp_path / "cv", folds=3)
    assert not (tmp_path / "cv").exists()


def test_a_grid_needs_the_splits_that_it_scores_and_a_run_scores_those_there_are(tmp_path):
    data = write_stack(tmp_path / "data")
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"runs": [{"kind": "pixels", "learner": "lr"}]}))
    with pytest.raises(DatasetError, match="found no split 'val' with an image, only train"):
        neurotome.grid(tmp_path / "grid.yaml", data=data, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = neurotome.baseline(data, out=tmp_path / "run", learner="lr", features="identity")
    assert [path.name for path in sorted((report.parent / "scores").iterdir())] == ["train.json"]
