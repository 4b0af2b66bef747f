"""A grid of runs: what it leaves, how it goes on, who may share it, and what it refuses."""

import csv
import json
import os
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import yaml
from PIL import Image
from pyarrow import parquet

from conftest import run, write_dataset
from neurotome.datasets.phantom.make import PhantomSettings, make_phantom
from neurotome.errors import RunError
from neurotome.experiments.grids.grid import list_failures, open_grid, run_grid
from neurotome.experiments.grids.plan import read_grid
from neurotome.runs import Run

PIXELS = {"kind": "pixels", "learner": ["lr", "rf"], "features": "identity", "forest.trees": 2}
NETWORK = {
    "label": "tiny",
    "model": {"decoder": "linknet", "encoder": "mobilenetv3_small_050", "encoder_depth": 3},
    "sample": {"patch": 32, "batch": 2},
    "train": {"epochs": 2, "steps_per_epoch": 2, "device": "cpu"},
}
BROKEN = {**NETWORK, "label": "broken", "model": {**NETWORK["model"], "encoder_weights": "no_such.safetensors"}}


@pytest.fixture
def place(tmp_path):
    write_dataset(tmp_path / "toy")
    return tmp_path


def write_grid(place, *entries, name="grid.yaml", **more):
    (place / name).write_text(yaml.safe_dump({"runs": list(entries), **more}))
    return place / name


def give(place, grid, *options, out="out"):
    return run("grid", grid, "--data", place / "toy", "--out", place / out, *options)


def start(place, grid, out="out"):
    command = [sys.executable, "-m", "neurotome", "grid", grid, "--data", place / "toy", "--out", place / out]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def read_summary(place, out="out"):
    with (place / out / "summary.csv").open() as file:
        return list(csv.DictReader(file))


def read_times(place):
    return {path: path.stat().st_mtime_ns for path in (place / "out" / "runs").rglob("*") if path.is_file()}


@pytest.mark.filterwarnings("ignore:.*class:UserWarning")  # so little tissue lacks some
def test_the_phantom_is_made_once_for_all_runs(place, monkeypatch):
    tiny = make_phantom(PhantomSettings(height=32, width=32, train_depth=2, val_depth=1, test_depth=1, regions=("vp",)))
    monkeypatch.setattr("neurotome.experiments.grids.grid.open_dataset", lambda _: tiny)  # a run would make another one
    result = run_grid(read_grid(write_grid(place, {**PIXELS, "learner": "lr"})), "phantom", place / "out")
    assert (result.finished, result.failed) == (("pixels/lr/seed-0",), {})
    done = Run(place / "out" / "runs" / "pixels/lr/seed-0")
    assert done.read_config()["dataset"] == open_grid(place / "out").dataset == "phantom"
    assert sum(map(sum, done.read_scores("test")["confusion"])) == 32 * 32


def test_a_grid_is_run_once_and_summarised(place):
    grid = write_grid(place, PIXELS, seeds=[0, 1])
    assert give(place, grid) == 0
    names = ["pixels/lr/seed-0", "pixels/lr/seed-1", "pixels/rf/seed-0", "pixels/rf/seed-1"]
    rows = read_summary(place)
    classes = ["background", "vessel", "cell", "macro", "weighted"]
    assert [(r["run"], r["split"], r["class"]) for r in rows] == [
        (name, split, kind) for name in names for split in ("val", "test") for kind in classes
    ]
    for row in rows:
        done = Run(place / "out" / "runs" / row["run"])
        scores = done.read_scores(row["split"])
        part = scores[row["class"]] if row["class"] in ("macro", "weighted") else scores["per_class"][row["class"]]
        assert float(row["f1"]) == part["f1"]
        assert float(row["accuracy"]) == scores["accuracy"]
        record = done.read_record()
        assert (row["method"], int(row["seed"])) == (record.method, record.seed)
        assert (row["status"], row["set.learner"], row["kind"]) == ("finished", row["label"], "pixels")
        assert float(row["seconds"]) == done.read_training()["seconds"]
    table = parquet.read_table(place / "out" / "summary.parquet").to_pylist()
    assert [row["f1"] for row in table] == [float(row["f1"]) for row in rows]
    assert {type(row["set.forest.trees"]) for row in table} == {float}
    assert "train" not in Run(place / "out" / "runs" / names[0]).list_scored()  # not asked for

    before = read_times(place)
    assert give(place, grid) == 0
    assert read_times(place) == before
    (place / "out" / "runs" / names[2] / "scores" / "test.json").unlink()
    assert give(place, grid) == 0
    changed = {path.relative_to(place / "out" / "runs") for path, at in read_times(place).items() if before[path] != at}
    assert {str(path.parents[-4]) for path in changed} == {names[2]}
    assert [row["f1"] for row in read_summary(place)] == [row["f1"] for row in rows]


@pytest.mark.filterwarnings("ignore::UserWarning")  # the splits that are made are written down, and said
def test_folds_test_every_image_and_a_class_may_be_absent(place):
    path = place / "toy" / "dataset.yaml"
    content = yaml.safe_load(path.read_text())
    content.pop("splits")
    path.write_text(yaml.safe_dump(content))
    labels = place / "toy" / "labels" / "b.png"
    plane = np.asarray(Image.open(labels)).copy()
    plane[plane == 2] = 255  # no cell, and no pixel of which it may be thought one
    Image.fromarray(plane).save(labels)
    grid = write_grid(place, {**PIXELS, "learner": "lr", "splits": ["test"]}, folds=4)
    assert give(place, grid) == 0
    rows = read_summary(place)
    assert [int(row["fold"]) for row in rows if row["class"] == "macro"] == [0, 1, 2, 3]
    tested = {}
    for row in rows:
        scores = Run(place / "out" / "runs" / row["run"]).read_scores("test")
        tested[row["fold"]] = scores["per_image"]["name"]
        if row["class"] == "cell":
            assert (row["f1"] == "") == (scores["per_image"]["name"] == ["b"])
            assert row["support"] == ("0" if scores["per_image"]["name"] == ["b"] else "210")
    assert sorted(tested.values()) == [["a"], ["b"], ["c"], ["d"]]


@pytest.mark.slow
def test_reports_are_written_where_they_are_asked_for(place):
    grid = write_grid(place, {**PIXELS, "learner": "lr"})
    report = place / "out" / "runs" / "pixels" / "lr" / "seed-0" / "report.html"
    assert give(place, grid) == 0
    assert not report.exists()
    assert give(place, grid, "--reports") == 0  # of finished runs too
    assert report.is_file()


def test_a_failed_run_is_reported_and_the_others_are_done(place, capsys):
    grid = write_grid(place, BROKEN, PIXELS)
    assert give(place, grid) == 1
    message = capsys.readouterr().err
    assert "1 of 3 runs failed:\n  default/broken/seed-0: model.encoder_weights is 'no_such.safetensors'" in message
    assert list(list_failures(place / "out")) == ["default/broken/seed-0"]
    status = {row["run"]: row["status"] for row in read_summary(place)}
    assert status == {
        "default/broken/seed-0": "failed",
        "pixels/lr/seed-0": "finished",
        "pixels/rf/seed-0": "finished",
    }
    failure = place / "out" / "failures" / "default__broken__seed-0.json"
    before = failure.stat().st_mtime_ns
    assert give(place, grid) == 1  # tried again
    assert failure.stat().st_mtime_ns > before


def test_folders_of_something_else_are_refused(place, capsys):
    def refuse(words, *options, grid=None, out="out"):
        before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
        assert give(place, grid or write_grid(place, PIXELS), *options, out=out) == 1
        assert words in capsys.readouterr().err
        assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before

    assert give(place, write_grid(place, PIXELS)) == 0
    capsys.readouterr()
    fewer = write_grid(place, {**PIXELS, "learner": "lr"}, name="fewer.yaml")
    refuse("holds another grid: only there: 1 run (pixels/rf/seed-0)", grid=fewer)
    other = write_grid(place, {**PIXELS, "pixels_per_class": 9}, name="other.yaml")
    refuse("other settings: 2 runs (pixels/lr/seed-0, pixels/rf/seed-0)", grid=other)
    (place / "mine").mkdir()
    (place / "mine" / "thesis.txt").write_text("mine")
    refuse("this folder holds something else than a grid", out="mine")
    refuse("a file is in the way", out="mine/thesis.txt")
    (place / "toy" / "images" / "d.png").write_bytes((place / "toy" / "images" / "c.png").read_bytes())
    refuse("other data: 1 split (test)")
    grid = place / "out" / "grid.json"
    grid.write_text(json.dumps({**json.loads(grid.read_text()), "runs": [{}]}))
    refuse("grid.json: not what neurotome writes")


def test_what_cannot_work_is_refused_before_anything_is_written(place, capsys):
    dataset = yaml.safe_load((place / "toy" / "dataset.yaml").read_text())
    pair = {**NETWORK, "model": {"decoder": "unet", "encoder": "no_such"}}
    assert give(place, write_grid(place, PIXELS, pair)) == 1
    assert "default/tiny/seed-0: unknown encoder 'no_such'" in capsys.readouterr().err
    dataset["splits"].pop("test")
    (place / "toy" / "dataset.yaml").write_text(yaml.safe_dump(dataset))
    assert give(place, write_grid(place, PIXELS)) == 1
    assert "found no split 'test' with an image, only train, val" in capsys.readouterr().err
    assert not (place / "out").exists()
    with pytest.raises(RunError, match=r"holds no grid\.json"):
        open_grid(place / "toy")


def test_several_processes_share_a_folder(place):
    grid = write_grid(place, PIXELS, seeds=[0, 1])
    processes = [start(place, grid) for _ in range(2)]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert {row["status"] for row in read_summary(place)} == {"finished"}
    done = "".join(errors)
    for planned in read_grid(grid).runs:
        assert done.count(f"{planned.name}: done in") == 1, errors
    assert list(list_failures(place / "out")) == []


@pytest.mark.slow
def test_two_grids_in_one_folder_at_once(place):
    grids = [write_grid(place, {**PIXELS, "learner": name}, name=f"{name}.yaml") for name in ("lr", "rf")]
    processes = [start(place, grid) for grid in grids]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 1], errors
    assert sum("holds another grid" in error for error in errors) == 1
    assert len({row["run"] for row in read_summary(place)}) == 1


def wait_for(path, process):
    while not list(path.parent.glob(path.name)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


LONGER = {**NETWORK, "train": {"epochs": 40, "steps_per_epoch": 2, "device": "cpu"}}


@pytest.mark.slow
def test_a_stopped_and_a_killed_grid_go_on_and_end_as_an_undisturbed_one(place):
    grid = write_grid(place, LONGER, PIXELS)
    assert give(place, grid, out="whole") == 0
    folder = place / "out" / "runs" / "default" / "tiny" / "seed-0"
    process = start(place, grid)
    wait_for(folder / "checkpoints" / "step-*.ckpt", process)
    parent = psutil.Process(process.pid)
    for told in (parent, *parent.children(recursive=True)):  # as a cluster does
        told.terminate()
    message = process.communicate(timeout=300)[1]
    assert process.returncode == 143
    assert "stopping after this step" in (place / "out" / "logs" / "default__tiny__seed-0.log").read_text()
    assert not list(folder.rglob(".*partial*"))
    assert "the same command goes on from there" in message
    before = Run(folder).read_metrics()
    assert not Run(folder).is_finished
    process = start(place, grid)
    while len(Run(folder).read_metrics()) <= len(before):
        time.sleep(0.02)
    process.kill()
    process.communicate()
    began = time.monotonic()
    assert give(place, grid) == 0
    assert time.monotonic() - began < 60  # the dead owner is not waited for
    clock = ("seconds", "peak_memory_bytes", "scoring_mpixel_per_s")
    whole, resumed = (
        [{key: value for key, value in row.items() if key not in clock} for row in read_summary(place, out)]
        for out in ("whole", "out")
    )
    assert resumed == whole


@pytest.mark.slow
def test_a_process_that_is_killed_is_a_failure_with_its_signal(place):
    grid = write_grid(place, {**LONGER, "train": {**LONGER["train"], "epochs": 4000}}, {**PIXELS, "learner": "lr"})
    process = start(place, grid)
    wait_for(place / "out" / "runs" / "default" / "tiny" / "seed-0" / "checkpoints" / "step-*.ckpt", process)
    children = psutil.Process(process.pid).children(recursive=True)
    child = next(c for c in children if os.getsid(c.pid) == c.pid)
    child.kill()
    message = process.communicate(timeout=300)[1]
    assert process.returncode == 1
    assert "killed by signal 9 (SIGKILL), probably because memory ran out" in message
    assert {row["status"] for row in read_summary(place)} == {"failed", "finished"}
