from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from neurotome.cli import main
from neurotome.errors import RunError
from neurotome.io import read_image
from neurotome.runs import Run

SMALL = ["--pixels-per-class", "200", "--filters.sigmas", "1", "--filters.sigmas", "2", "--forest.trees", "3"]


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        labels = np.zeros((48, 56), np.uint8)
        labels[5:25, 5:15] = 1
        labels[30:42, 20:36] = 2
        labels[0] = 255
        grey = (np.array([100, 180, 30] + [0] * 253)[labels] + rng.normal(0, 25, labels.shape)).clip(0, 255)
        for kind, values in (("images", grey), ("labels", labels)):
            (folder / kind).mkdir(exist_ok=True)
            Image.fromarray(values.astype(np.uint8)).save(folder / kind / f"{name}.png")
    content = {
        "name": "toy",
        "classes": {0: "background", 1: "vessel", 2: "cell"},
        "ignore": 255,
        "splits": {"train": ["a"], "val": ["b"], "test": ["c"]},
    }
    (folder / "dataset.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        assert run("baseline", data, "--out", folder / f"rf{seed}", "--seed", seed, *SMALL) == 0
    assert run("baseline", data, "--out", folder / "lr", "--learner", "lr", "--features", "identity") == 0
    return folder


def test_run_folder_is_whole(runs):
    there = runs / "rf0"
    for name in ("config.yaml", "environment.json", "training.json", "importance.json", "report.html"):
        assert (there / name).is_file(), name
    for split, image in (("train", "a"), ("val", "b"), ("test", "c")):
        assert (there / "scores" / f"{split}.json").is_file()
        assert (there / "predictions" / split / f"{image}.png").is_file()
    unsure = read_image(there / "uncertainty" / "test" / "c.png").data[0]
    assert unsure.shape == (48, 56)
    assert 0 < unsure.max() <= 255 * 2 / 3 + 1
    training = json.loads((there / "training.json").read_text())
    assert training["method"] == "sampled"
    assert training["pixels"] == {"background": 200, "vessel": 200, "cell": 192}
    assert json.loads((there / "model" / "model.json").read_text())["facts"]["macro_f1"]["test"] > 0.5
    page = (there / "report.html").read_text()
    for words in (
        "rf on filters on toy",
        "592 pixels, sampled",
        "Importance of all features",
        "neurotome baseline --config",
    ):
        assert words in page, words


def test_same_command_changes_nothing_and_another_is_refused(data, runs, capsys):
    def read_files():
        files = [path for path in (runs / "rf0").rglob("*") if path.is_file()]
        # the report is made again
        return {path: path.read_bytes() for path in files if path.name != "report.html" and path.parent.name != "figures"}

    before = read_files()
    assert run("baseline", data, "--out", runs / "rf0", *SMALL) == 0
    assert read_files() == before
    assert run("baseline", data, "--out", runs / "rf0", "--learner", "lr", *SMALL) == 1
    assert "learner (rf there, lr asked)" in capsys.readouterr().err
    after = json.loads((runs / "rf0" / "model" / "model.json").read_text())
    assert after["facts"]["training"]["learner"] == "random forest"


@pytest.mark.usefixtures("short_report")
def test_killed_run_goes_on(data, runs, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("neurotome.experiments.run_pixels.score_splits", stop)
        assert run("baseline", data, "--out", tmp_path / "run", *SMALL) == 130
    weights = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    assert run("baseline", data, "--out", tmp_path / "run", *SMALL) == 0
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == weights
    found, expected = (json.loads((run_ / "scores" / "test.json").read_text()) for run_ in (tmp_path / "run", runs / "rf0"))
    assert found == expected


def test_run_killed_before_its_summary_gets_one(data, runs, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "write_training", stop)
    assert run("baseline", data, "--out", tmp_path / "run", *SMALL) == 130
    monkeypatch.undo()
    assert run("baseline", data, "--out", tmp_path / "run", *SMALL) == 0
    summary, whole = (Run(folder).read_training() for folder in (tmp_path / "run", runs / "rf0"))
    assert set(summary) == set(whole)
    assert summary["finished"]
    # this process has not trained
    assert summary["peak_memory_bytes"] is None
    assert whole["peak_memory_bytes"] > 1e8
    assert "Peak memory" not in (tmp_path / "run" / "report.html").read_text()
    # scored again: only the speed is another
    (tmp_path / "run" / "scores" / "test.json").unlink()
    assert run("baseline", data, "--out", tmp_path / "run", *SMALL) == 0
    again = Run(tmp_path / "run").read_training()
    assert again.pop("scoring_mpixel_per_s") > 0
    assert again == {key: value for key, value in summary.items() if key != "scoring_mpixel_per_s"}


def exchange_classes(path):
    labels = np.asarray(Image.open(path)).copy()
    labels[np.isin(labels, (1, 2))] = 3 - labels[np.isin(labels, (1, 2))]
    Image.fromarray(labels).save(path)


@pytest.mark.usefixtures("short_report")
@pytest.mark.filterwarnings("always::UserWarning")
def test_scores_of_changed_test_data_are_made_again(data, runs, tmp_path, capsys):
    folder, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(data, folder)
    shutil.copytree(runs / "rf0", out)
    assert run("baseline", folder, "--out", out, *SMALL) == 0  # elsewhere, but the same data
    assert "scoring" not in capsys.readouterr().err
    before = {split: (out / "scores" / f"{split}.json").read_bytes() for split in ("train", "val", "test")}
    exchange_classes(folder / "labels" / "c.png")
    assert run("baseline", folder, "--out", out, *SMALL) == 0
    assert re.search(r"test data changed since they were scored \(labels of c in test\)", capsys.readouterr().err)
    after = {split: (out / "scores" / f"{split}.json").read_bytes() for split in ("train", "val", "test")}
    assert [split for split in before if before[split] != after[split]] == ["test"]
    assert run("evaluate", out, "--data", folder, "--out", tmp_path / "scores.json") == 0
    assert (tmp_path / "scores.json").read_bytes() == after["test"]
    assert json.loads((out / "model" / "model.json").read_text())["facts"]["macro_f1"]["test"] == pytest.approx(
        json.loads(after["test"])["macro"]["f1"]
    )
    # a split that is there no more
    content = yaml.safe_load((folder / "dataset.yaml").read_text())
    del content["splits"]["test"]
    (folder / "dataset.yaml").write_text(yaml.safe_dump(content))
    assert run("baseline", folder, "--out", out, *SMALL) == 0
    assert "test has lost c" in capsys.readouterr().err
    assert Run(out).list_scored() == ["train", "val"]
    assert not Run(out).predictions("test").exists()


@pytest.mark.usefixtures("short_report")
@pytest.mark.filterwarnings("always::UserWarning")
@pytest.mark.parametrize(
    "name",
    [
        "scores/test.json",
        "training.json",
        "importance.json",
        "environment.json",
        "predictions/test/c.png",
        "model/model.json",
        "model/model.safetensors",
    ],
)
@pytest.mark.parametrize("damage", ["cut", "binary", "gone"])
def test_what_is_damaged_is_made_again(data, runs, tmp_path, capsys, name, damage):
    out = tmp_path / "run"
    shutil.copytree(runs / "lr", out)
    path = out / name
    content = path.read_bytes()
    path.unlink() if damage == "gone" else path.write_bytes(content[:30] if damage == "cut" else bytes(range(256)))
    assert run("baseline", data, "--out", out, "--learner", "lr", "--features", "identity") == 0
    error = capsys.readouterr().err
    if damage != "gone":
        assert path.name in error or "damaged model folder" in error
        assert "again" in error
    for kept in ("scores/test.json", "importance.json", "predictions/test/c.png", "model/model.safetensors"):
        assert (out / kept).read_bytes() == (runs / "lr" / kept).read_bytes(), kept
    assert (out / "report.html").is_file()


@pytest.mark.parametrize("name", ["config.yaml", "run.json"])
def test_what_cannot_be_made_again_is_named(data, runs, tmp_path, capsys, name):
    shutil.copytree(runs / "lr", tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(b"\xff\x00")
    assert run("baseline", data, "--out", tmp_path / "run", "--learner", "lr", "--features", "identity") == 1
    assert re.search(rf"^neurotome: .*run/{name}: no valid", capsys.readouterr().err)


def test_evaluate_writes_over_nothing_but_scores(data, runs, tmp_path, capsys):
    text = (data / "dataset.yaml").read_text()
    for out, words in (
        (data / "dataset.yaml", "is there already"),
        (runs / "lr" / "scores" / "test.json", "would overwrite the input"),
        (data / "images", "is a folder"),
        ("", "empty text after --out"),
    ):
        assert run("evaluate", runs / "lr", "--data", data, "--out", out) == 1
        assert words in capsys.readouterr().err
    assert (data / "dataset.yaml").read_text() == text
    for _ in range(2):
        assert run("evaluate", runs / "lr", "--data", data, "--out", tmp_path / "scores.json") == 0


def test_a_certain_classifier_gets_a_report(tmp_path):
    folder = tmp_path / "data"
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    labels = np.zeros((40, 40), np.uint8)
    labels[10:30, 10:30] = 1
    for number, name in enumerate("abc"):
        Image.fromarray(np.where(labels, 200, 40 + number).astype(np.uint8)).save(folder / "images" / f"{name}.png")
        Image.fromarray(labels).save(folder / "labels" / f"{name}.png")
    content = {"classes": {0: "dark", 1: "bright"}, "splits": {"train": ["a"], "val": ["b"], "test": ["c"]}}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(content))
    for _ in range(2):
        assert run("baseline", folder, "--out", tmp_path / "run", "--features", "identity", "--forest.trees", "3") == 0
    assert not np.asarray(Image.open(tmp_path / "run" / "uncertainty" / "test" / "c.png")).any()
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.usefixtures("short_report")
def test_config_repeats_the_run(runs, tmp_path):
    assert run("baseline", "--config", runs / "rf1" / "config.yaml", "--out", tmp_path / "again") == 0
    found, expected = (
        json.loads((there / "scores" / "test.json").read_text()) for there in (tmp_path / "again", runs / "rf1")
    )
    assert found == expected


def test_out_of_memory_says_what_takes_less(data, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr("neurotome.experiments.run_pixels.fit_baseline", fail)
    assert run("baseline", data, "--out", tmp_path / "run", *SMALL) == 1
    message = capsys.readouterr().err
    assert "--max-memory" in message
    assert "--filters.sigmas" in message


def test_wrong_settings_leave_no_folder(data, tmp_path, capsys):
    assert run("baseline", data, "--out", tmp_path / "run", "--learner", "sklearn.svm.LinearSVC") == 2
    assert "--learner" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("short_report")
def test_folder_in_which_nothing_was_trained_takes_other_settings(data, tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise RunError("training failed")

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("neurotome.experiments.run_pixels.fit_baseline", fail)
        assert run("baseline", data, "--out", out, *SMALL, "--learner", "lr") == 1
    assert "training failed" in capsys.readouterr().err
    assert run("baseline", data, "--out", tmp_path / "none", *SMALL, "--max-memory", "200") == 1
    assert "Give more" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert sorted(path.name for path in out.iterdir()) == ["config.yaml", "environment.json", "run.json"]
    (out / ".config.1.aa.partial.yaml").touch()  # of a killed writer
    assert run("baseline", data, "--out", out, *SMALL[:-1], "2") == 0
    assert yaml.safe_load((out / "config.yaml").read_text())["learner"] == "rf"
    assert run("baseline", data, "--out", out, *SMALL[:-1], "1") == 1
    assert "holds another run, which differs in forest.trees (2 there, 1 asked)" in capsys.readouterr().err


def test_training_that_failed_at_once_takes_other_settings(data, tmp_path, monkeypatch):
    def fail(*_):
        raise RunError("no space")

    monkeypatch.setattr("neurotome.experiments.run_network.fit", fail)
    monkeypatch.setattr("neurotome.experiments.run_network.prepare", lambda *_: object())
    for patch in (32, 64):
        assert run("train", data, "--out", tmp_path / "run", "--sample.patch", patch) == 1
        assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["sample"]["patch"] == patch


def test_evaluate_and_predict_take_a_baseline(data, runs, tmp_path, capsys):
    assert run("evaluate", runs / "rf0", "--data", data, "--out", tmp_path / "scores.json") == 0
    found, expected = (json.loads(p.read_text()) for p in (tmp_path / "scores.json", runs / "rf0" / "scores" / "test.json"))
    assert found == expected
    assert run("predict", runs / "rf0", data / "images" / "c.png", tmp_path / "c.png", "--confidence") == 0
    labels = np.asarray(Image.open(tmp_path / "c.png"))
    np.testing.assert_array_equal(labels, np.asarray(Image.open(runs / "rf0" / "predictions" / "test" / "c.png")))
    capsys.readouterr()


def test_a_network_does_not_go_into_a_baselines_folder(data, runs, capsys):
    assert run("train", data, "--out", runs / "rf0", "--sample.patch", 32) == 1
    assert "holds the run of a pixel classifier (baseline); asked for is a network (train)" in capsys.readouterr().err


def test_training_cannot_start_from_a_baseline(data, runs, tmp_path, capsys):
    assert run("train", data, "--out", tmp_path / "run", "--init", runs / "rf0") == 1
    assert "is a pixel classifier" in capsys.readouterr().err


@pytest.mark.filterwarnings("always::UserWarning")
def test_class_without_a_training_pixel_is_named_and_null(data, tmp_path, capsys):
    folder = tmp_path / "data"
    (folder / "labels").mkdir(parents=True)
    (folder / "images").symlink_to(data / "images")
    for name in "abc":
        labels = np.asarray(Image.open(data / "labels" / f"{name}.png")).copy()
        if name == "a":
            labels[labels == 2] = 255
        Image.fromarray(labels).save(folder / "labels" / f"{name}.png")
    (folder / "dataset.yaml").write_text((data / "dataset.yaml").read_text())
    assert run("baseline", folder, "--out", tmp_path / "run", *SMALL) == 0
    assert "no training pixel of class cell" in capsys.readouterr().err
    scores = json.loads((tmp_path / "run" / "scores" / "test.json").read_text())
    # in the truth but never predicted: 0, as scikit-learn has it; null is for a class that is in neither
    assert scores["per_class"]["cell"]["precision"] == 0
    assert scores["per_class"]["cell"]["recall"] == 0
    assert json.loads((tmp_path / "run" / "scores" / "train.json").read_text())["per_class"]["cell"]["f1"] is None
    assert (tmp_path / "run" / "report.html").is_file()
    assert json.loads((tmp_path / "run" / "training.json").read_text())["pixels"]["cell"] == 0
