"""search: resumable at any moment, in several processes, and blind to the split test."""

import dataclasses
import json
import re
import signal
import sqlite3
import subprocess
import sys

import numpy as np
import optuna
import pytest
import yaml
from PIL import Image

import neurotome
from conftest import TINY, make_dataset, run, write_dataset
from neurotome import figures
from neurotome.augment import AugmentSettings
from neurotome.errors import DatasetError, RunError, SettingsError
from neurotome.experiments.searches import search as searching
from neurotome.experiments.searches.space import Choice, Range, apply_values, choose_space, find_values, read_space
from neurotome.models.networks import ModelSettings
from neurotome.runs import Run
from neurotome.training.prepare import settle_recipe
from neurotome.training.recipe import Recipe, TrainSettings
from neurotome.training.sampler import SampleSettings

SPACE = {"train.learning_rate": [1e-4, 1e-2, "log"], "loss.terms": ["cross_entropy", "focal"]}
RECIPE = Recipe(
    model=ModelSettings("linknet", "mobilenetv3_small_050", encoder_depth=3),
    sample=SampleSettings(patch=32, batch=2),
    train=TrainSettings(epochs=2, steps_per_epoch=1, device="cpu"),
)


@pytest.fixture(autouse=True)
def _no_halo(monkeypatch):
    """How far a network sees takes longer to measure than these trainings, and matters to predicting alone."""
    monkeypatch.setattr("neurotome.models.net.measure_halo", lambda *_: (64, True))


def search(out, data=None, recipe=RECIPE, space=SPACE, **settings):
    return neurotome.search(data or make_dataset(), out=out, recipe=recipe, space=space, **settings)


@pytest.mark.slow
def test_three_trials_end_in_settings_that_train_takes(tmp_path, capsys):
    data = write_dataset(tmp_path / "data")
    config = tmp_path / "space.yaml"
    config.write_text("search: {train.learning_rate: [1e-4, 1e-2, log], loss: {terms: [cross_entropy, focal]}}\n")
    quick = [*TINY, "--train.epochs", "2", "--train.steps-per-epoch", "1", "--train.device", "cpu"]
    assert run("search", data, "--out", tmp_path / "s", "--config", config, "--trials", "3", *quick) == 0
    said = capsys.readouterr().out
    assert "0 (as given)" in said
    assert "3 complete" in said
    assert str(tmp_path / "s" / "search.png") in said
    with Image.open(tmp_path / "s" / "search.png") as picture:
        assert picture.width > 1000

    best = yaml.safe_load((tmp_path / "s" / "best.yaml").read_text())
    scores = {n: Run(tmp_path / "s" / "trials" / f"000{n}").read_scores("val")["macro"]["f1"] for n in range(3)}
    chosen = Run(tmp_path / "s" / "trials" / f"000{max(scores, key=scores.get)}").read_config()
    assert best["loss"] == chosen["loss"]
    assert best["train"]["learning_rate"] == chosen["train"]["learning_rate"]
    first = Run(tmp_path / "s" / "trials" / "0000").read_config()
    assert (first["loss"]["terms"], first["train"]["learning_rate"]) == ("cross_entropy + dice", 3e-3)
    assert run("train", data, "--out", tmp_path / "final", "--config", tmp_path / "s" / "best.yaml") == 0
    assert Run(tmp_path / "final").read_scores("val")["macro"]["f1"] == max(scores.values())


class KilledError(BaseException):
    """Stands for a process that ends without warning."""


@pytest.fixture
def quick(monkeypatch):
    """Trainings that take no time: their score follows from the learning rate, best at 1e-3, and grows over five epochs."""
    told = {}

    def train(dataset, name, out, recipe, splits=(), method="", on_epoch=None):
        assert "test" not in dataset.splits
        assert splits == ("val",)
        told.setdefault(out.name, []).append(recipe)
        score = 0.9 - 0.2 * abs(np.log10(recipe.train.learning_rate) + 3)
        for epoch in range(5):
            on_epoch({"epoch": epoch, "val_macro_f1": score * (epoch + 1) / 5}, (epoch + 1) / 5)
        trained = Run(out)
        monkeypatch.setattr(trained, "read_scores", lambda split: {"macro": {"f1": score}})
        return trained

    monkeypatch.setattr(searching, "train_and_score", train)
    return told


def list_trials(out):
    return optuna.load_study(study_name="neurotome search", storage=f"sqlite:///{out}/search.db").trials


def test_the_split_test_is_hidden_and_what_is_found_is_better_than_what_was_given(tmp_path, quick):
    result = search(tmp_path / "s", trials=14)
    given = next(row for row in result.rows if row["trial"] == 0)
    assert given["values"] == {"train.learning_rate": 3e-3, "loss.terms": "cross_entropy + dice"}
    assert result.rows[0]["score"] > given["score"]
    assert abs(np.log10(result.rows[0]["values"]["train.learning_rate"]) + 3) < 0.2
    best = yaml.safe_load(result.best.read_text())
    assert best["train"]["learning_rate"] == result.rows[0]["values"]["train.learning_rate"]
    assert result.unfinished == 0


def test_trials_that_lag_behind_are_ended_early_but_the_given_settings_never(tmp_path, quick):
    space = {"train.learning_rate": ["1e-4", "1e-2", "log"]}
    result = search(tmp_path / "s", recipe=apply_values(RECIPE, {"train.learning_rate": 9.9e-3}), space=space, trials=11)
    pruned = [row for row in result.rows if row["state"] == "pruned"]
    assert pruned
    for trial in list_trials(tmp_path / "s"):
        if trial.state.name == "PRUNED":
            assert 3 <= max(trial.intermediate_values) < 9
    assert next(row for row in result.rows if row["trial"] == 0)["state"] == "complete"
    assert "ended early" not in str(result)
    assert f"{len(pruned)} pruned" in str(result)


def test_a_killed_search_goes_on_and_tries_what_it_would_have_tried(tmp_path, quick, monkeypatch):
    whole = search(tmp_path / "whole", trials=5)
    train, calls = searching.train_and_score, []

    def die(*arguments, on_epoch, **keywords):
        calls.append(arguments)
        if len(calls) in (1, 3, 4, 6):
            on_epoch({"epoch": 0, "val_macro_f1": 0.1}, 0.1)
            raise KilledError
        return train(*arguments, on_epoch=on_epoch, **keywords)

    monkeypatch.setattr(searching, "train_and_score", die)
    for _ in range(4):
        with pytest.raises(KilledError):
            search(tmp_path / "killed", trials=5)
    again = search(tmp_path / "killed", trials=5)
    keys = ("trial", "state", "score", "values")
    assert [[row[key] for key in keys] for row in again.rows] == [[row[key] for key in keys] for row in whole.rows]
    assert len(list_trials(tmp_path / "killed")) == 5


def test_a_trial_that_kills_its_process_again_and_again_is_given_up_one_that_is_stopped_is_not(tmp_path, quick, monkeypatch):
    train, calls = searching.train_and_score, []

    def die(dataset, name, out, recipe, **keywords):
        if out.name == "0001":
            calls.append(out)
            raise KilledError if len(calls) > 5 else KeyboardInterrupt
        return train(dataset, name, out, recipe, **keywords)

    monkeypatch.setattr(searching, "train_and_score", die)
    for number in range(9):
        with pytest.raises(KeyboardInterrupt if number < 5 else KilledError):
            search(tmp_path / "s", trials=3)
    result = search(tmp_path / "s", trials=3)
    assert len(calls) == 9
    assert "trial 1 failed: its process was killed 4 times in the same epoch" in str(result)
    assert [row["state"] for row in sorted(result.rows, key=lambda row: row["trial"])] == ["complete", "failed", "complete"]


def test_trials_are_as_long_as_they_are_said_to_be(tmp_path, quick):
    def find_length(number, train, **settings):
        recipe = dataclasses.replace(RECIPE, train=train)
        search(tmp_path / str(number), recipe=recipe, trials=1, **settings)
        return quick["0000"][-1].train.max_time

    assert find_length(0, TrainSettings()) == "2m"
    assert find_length(1, TrainSettings(epochs=3)) == ""
    assert find_length(2, TrainSettings(max_time="50s")) == "50s"
    assert find_length(3, TrainSettings(), trial_time="70s") == "70s"
    with pytest.raises(SettingsError, match="expected one of the two"):
        find_length(4, TrainSettings(max_time="50s"), trial_time="70s")


def test_a_dataset_without_a_split_val_is_refused(tmp_path, quick):
    data = make_dataset()
    blind = dataclasses.replace(data, splits={"train": data.splits["train"], "test": data.splits["test"]})
    with pytest.raises(DatasetError, match="found no split 'val'"):
        search(tmp_path / "s", data=blind)
    assert not (tmp_path / "s").exists()


def test_a_class_that_the_split_val_lacks_is_noted(tmp_path, quick):
    data = make_dataset()
    empty = tuple(dataclasses.replace(cutout, labels=np.zeros_like(cutout.labels)) for cutout in data.splits["val"])
    with pytest.warns(UserWarning, match="no pixel of class cell in split val"):
        search(tmp_path / "s", data=dataclasses.replace(data, splits={**data.splits, "val": empty}), trials=1)


def test_more_trials_go_on_from_those_that_are_there(tmp_path, quick):
    search(tmp_path / "s", trials=2)
    assert sorted(quick) == ["0000", "0001"]
    search(tmp_path / "s", trials=4)
    assert sorted(quick) == ["0000", "0001", "0002", "0003"]
    assert all(len(times) == 1 for times in quick.values())


def test_a_trial_that_fails_says_why_and_the_others_go_on(tmp_path, quick, monkeypatch):
    train = searching.train_and_score

    def fail(dataset, name, out, recipe, **keywords):
        if out.name == "0001":
            raise SettingsError("no such thing.")
        if out.name == "0002":
            raise RuntimeError("CUDA out of memory")
        return train(dataset, name, out, recipe, **keywords)

    monkeypatch.setattr(searching, "train_and_score", fail)
    result = search(tmp_path / "s", trials=4)
    assert [row["state"] for row in sorted(result.rows, key=lambda row: row["trial"])] == [
        "complete",
        "failed",
        "failed",
        "complete",
    ]
    assert "trial 1 failed: no such thing." in str(result)
    assert "trial 2 failed: out of memory" in str(result)


def test_a_search_of_which_nothing_succeeds_says_why(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise SettingsError("no such thing.")

    monkeypatch.setattr(searching, "train_and_score", fail)
    with pytest.raises(RunError, match=r"no trial has succeeded; no such thing\."):
        search(tmp_path / "s", trials=2)
    assert not (tmp_path / "s" / "best.yaml").exists()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"train.lr": [1, 2]}, "unknown setting 'train.lr'"),
        ({"train.epochs": [1, 2]}, "train.epochs cannot be searched"),
        ({"train.learning_rate": 3}, "expected values to choose from"),
        ({"train.learning_rate": [1e-3]}, "expected values to choose from"),
        ({"train.learning_rate": [0, 1, "log"]}, "above 0 on a log scale"),
        ({"train.learning_rate": [2, 1, "linear"]}, "the smaller one first"),
        ({"train.learning_rate": ["a", 1, "log"]}, "expected two numbers before 'log'"),
        ({"train.learning_rate": [-1, 1, "linear"]}, "train.learning_rate is -1"),
        ({"augment.strength": [-1, 1, "linear"]}, "augment.strength is -1"),
        ({"loss.terms": ["focal", "vocal"]}, "unknown loss 'vocal'"),
        ({"train.optimizer": ["adam", "lamb"]}, "train.optimizer is 'lamb'"),
        ({"model.decoder": ["unet", "vnet"]}, "unknown decoder 'vnet'"),
        ({"model.encoder": ["resnet18", "resnet18"]}, "holds a value twice"),
        ({}, "found no setting"),
    ],
)
def test_an_impossible_space_is_refused(space, message):
    with pytest.raises(SettingsError, match=message):
        read_space(space, Recipe())


def test_a_space_is_read_by_the_types_of_the_settings():
    asked = {"train": {"learning-rate": ["1e-4", "1e-2", "log"]}, "sample.batch": ["4", "16", "linear"]}
    asked |= {"model.in_channels": ["1", "3"], "augment.enabled": ["true", "false"], "loss.class_weights": ["none", "1,2"]}
    assert read_space(asked, Recipe()) == {
        "train.learning_rate": Range(1e-4, 1e-2, log=True, whole=False),
        "sample.batch": Range(4, 16, log=False, whole=True),
        "model.in_channels": Choice((1, 3)),
        "augment.enabled": Choice((True, False)),
        "loss.class_weights": Choice(("none", "1,2")),
    }


def test_what_is_searched_unless_said_lies_around_the_given_settings():
    usual = settle_recipe(make_dataset(), Recipe(sample=SampleSettings(patch=32))).recipe
    space = read_space(choose_space(usual), Recipe())
    assert list(space) == [
        *("train.learning_rate", "loss.terms", "loss.class_weights", "augment.strength", "model.encoder"),
    ]
    assert space["train.learning_rate"] == Range(3e-4, 3e-2, log=True, whole=False)
    assert all(dimension.holds(find_values(usual, space)[name]) for name, dimension in space.items())
    # the network comes with the weights, and what is not augmented has no strength
    plain = dataclasses.replace(usual, init="microct-base", augment=AugmentSettings(enabled=False))
    assert list(choose_space(plain)) == ["train.learning_rate", "loss.terms", "loss.class_weights"]


def test_nothing_is_written_where_the_search_cannot_be(tmp_path, quick):
    for settings, message in (
        ({"trials": 0}, "trials is 0"),
        ({"workers": 0}, "workers is 0"),
        ({"trial_time": "soon"}, "trial_time is 'soon'"),
        ({"seed": -1}, "seed is -1"),
        ({"space": {"train.lr": [1, 2]}}, "unknown setting"),
        ({"workers": 2}, "workers must open the dataset themselves"),
    ):
        with pytest.raises(SettingsError, match=message):
            search(tmp_path / "s", **settings)
        assert not (tmp_path / "s").exists()


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path, quick):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="holds files, but no search"):
        search(tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]

    cut = b"SQLite format 3\0" + b"\1" * 90
    for name, content in (("garbage", b"no database at all, but as long as one " * 20), ("cut", cut)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "search.db").write_bytes(content)
        with pytest.raises(RunError, match="cannot be used as the file of a search"):
            search(tmp_path / name)
        assert (tmp_path / name / "search.db").read_bytes() == content

    (tmp_path / "other").mkdir()
    with sqlite3.connect(tmp_path / "other" / "search.db") as connection:
        connection.execute("CREATE TABLE accounts (name TEXT)")
    connection.close()
    with pytest.raises(RunError, match="a database of something else, with a table 'accounts'"):
        search(tmp_path / "other")

    (tmp_path / "study").mkdir()
    optuna.create_study(storage=f"sqlite:///{tmp_path}/study/search.db", study_name="theirs")
    with pytest.raises(RunError, match="holds another study, 'theirs'"):
        search(tmp_path / "study")


def test_another_search_in_the_same_folder_is_refused_by_what_differs(tmp_path, quick):
    search(tmp_path / "s", trials=1)
    for changed, message in (
        ({"seed": 1}, r"seed \(0 there, 1 asked\)"),
        ({"recipe": apply_values(RECIPE, {"train.weight_decay": 0.5})}, r"train.weight_decay \(0.01 there, 0.5 asked\)"),
        ({"space": {**SPACE, "train.warmup": [0, 0.1]}}, "space.train.warmup"),
        ({"data": make_dataset(slices=2)}, "the content of split train; the content of split val"),
    ):
        with pytest.raises(RunError, match=message):
            search(tmp_path / "s", trials=1, **changed)
    assert len(list_trials(tmp_path / "s")) == 1


def test_what_is_kept_is_numbers_and_json(tmp_path, quick):
    search(tmp_path / "s", trials=2)
    with sqlite3.connect(tmp_path / "s" / "search.db") as connection:
        columns = [
            (table, name, kind)
            for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            for _, name, kind, *_ in connection.execute(f"PRAGMA table_info({table})")
        ]
        values = [json.loads(text) for (text,) in connection.execute("SELECT value_json FROM study_user_attributes")]
    connection.close()
    assert values[0]["seed"] == 0
    assert not [column for column in columns if "BLOB" in column[2] or "pickle" in column[1]]


def test_a_missing_extra_names_its_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(neurotome.NeurotomeError, match=r"pip install 'neurotome\[hpo\]'"):
        search(tmp_path / "s")
    assert not (tmp_path / "s").exists()


def start(data, out, config, trials, *more):
    command = [
        sys.executable,
        "-m",
        "neurotome",
        "search",
        data,
        "--out",
        out,
        "--config",
        config,
        "--trials",
        trials,
        *more,
    ]
    return subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a test run started in the background ignores SIGINT, and its children would inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(process, beginning):
    """Reads what a process says until a line begins so."""
    for line in process.stderr:
        if line.startswith(beginning):
            return
    raise AssertionError(f"the process ended without a line {beginning}")


@pytest.mark.slow
def test_processes_that_are_killed_stopped_and_run_side_by_side_end_in_one_search(tmp_path):
    data, out, config = write_dataset(tmp_path / "data"), tmp_path / "s", tmp_path / "space.yaml"
    model = {"decoder": "linknet", "encoder": "mobilenetv3_small_050", "encoder_depth": 3}
    train = {"epochs": 6, "steps_per_epoch": 1, "device": "cpu"}  # long enough to be stopped within
    config.write_text(yaml.safe_dump({"search": SPACE, "model": model, "sample": {"patch": 32, "batch": 2}, "train": train}))

    killed = start(data, out, config, 7)
    wait_for(killed, "trial 1 ")
    killed.kill()
    killed.communicate()
    stopped = start(data, out, config, 7)
    wait_for(stopped, "trial 1 ")
    stopped.send_signal(signal.SIGINT)
    assert "the same command goes on from there" in stopped.communicate()[1]
    assert stopped.returncode == 130

    alone, pair = start(data, out, config, 7), start(data, out, config, 7, "--workers", 2)
    said = [alone.communicate()[1], pair.communicate()[1], *(path.read_text() for path in out.glob("workers/*.log"))]
    assert (alone.returncode, pair.returncode, len(said)) == (0, 0, 4)
    begun = [line.split()[1] for text in said for line in text.splitlines() if re.match(r"trial \d+ \(", line)]
    assert sorted(begun) == ["1", "2", "3", "4", "5", "6"]
    assert {trial.state.name for trial in list_trials(out)} <= {"COMPLETE", "PRUNED"}
    assert len(list_trials(out)) == 7


def make_row(trial, state, score, **values):
    return {"trial": trial, "state": state, "score": score, "values": {"rate": None, "loss": None, **values}}


def test_the_picture_shows_every_trial_against_every_setting():
    rows = [
        make_row(0, "complete", 0.5, rate=1e-3, loss="focal"),
        make_row(1, "failed", None, rate=1e-4, loss="dice"),
        make_row(2, "complete", 0.7, rate=1e-2, loss="cross_entropy + dice"),
        make_row(3, "pruned", 0.3, rate=1e-1, loss="dice"),
        make_row(4, "complete", 0.6, rate=1e-2, loss="dice"),
    ]
    figure = figures.plot_search(rows, ["rate", "loss"], ["rate"])
    top, rate, loss = figure.axes
    assert top.get_title(loc="left") == "Best 0.700 by trial 2, settings as given 0.500"
    running = next(line for line in top.lines if len(line.get_xdata()) > 1)
    assert list(running.get_xdata()) == [0, 2, 4, 4]
    assert list(running.get_ydata()) == [0.5, 0.7, 0.7, 0.7]
    assert (rate.get_xscale(), rate.get_xlabel()) == ("log", "rate (logarithmic)")
    points = {(line.get_xdata()[0], line.get_ydata()[0]) for line in rate.lines}
    assert points == {(1e-3, 0.5), (1e-2, 0.7), (1e-1, 0.3), (1e-2, 0.6)}
    assert [label.get_text() for label in loss.get_xticklabels()] == ["focal", "dice", "cross_entropy\n+ dice"]
    said = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"ended early (its last score)", "failed", "best so far", "settings as given"} <= said


def test_workers_share_cores_and_devices(tmp_path, monkeypatch):
    environments = []

    class Ended:
        returncode = 0

        def __init__(self, command, env, **_):
            assert command[-2:] == ["--workers", "1"]
            environments.append((env["CUDA_VISIBLE_DEVICES"], env["OMP_NUM_THREADS"]))

        def poll(self):
            return 0

        wait = poll

    monkeypatch.setattr(subprocess, "Popen", Ended)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    recipe = dataclasses.replace(RECIPE, train=dataclasses.replace(RECIPE.train, device="auto"))
    with pytest.raises(RunError, match="no trial has succeeded; none has ended"):
        search(tmp_path / "s", data=write_dataset(tmp_path / "data"), recipe=recipe, workers=3)
    assert environments == [("4", "2"), ("7", "2"), ("4", "2")]
