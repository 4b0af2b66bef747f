"""A run's folder: whose it is, what of it is stale, and what becomes of damaged files."""

import dataclasses
import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import yaml

from neurotome.classes import ClassSet
from neurotome.datasets.base import Cutout, Dataset
from neurotome.errors import RunError
from neurotome.runs import Run, record_run
from neurotome.scoring import score_images
from neurotome.volume import Volume

CLASSES = ClassSet(("background", "vessel"))
CONFIG = {"dataset": "d", "model": {"decoder": "unet"}, "train": {"epochs": 2, "seed": 0}, "sigmas": (1, 2), "init": ""}
SUMMARY = {"finished": True, "epochs": 2, "steps": 10, "seconds": 1.5, "device": "cpu", "precision": "32-true"}


def make_dataset(classes=CLASSES, voxel_size_um=None, **changed):
    """A dataset of one image of 2 x 3 pixels per split, `changed` names (image, labels) of some."""
    splits = {}
    for split in ("train", "val", "test"):
        image, labels = changed.get(split, ([[1, 2, 3], [4, 5, 6]], [[0, 1, 0], [1, 255, 0]]))
        volume = Volume(np.array([image], np.uint8), split[0], voxel_size_um)
        splits[split] = (Cutout(volume, np.array([labels], np.uint8)),)
    return Dataset("toy", classes, splits)


def make_record(config=CONFIG, kind="network", dataset=None, seed=0, **more):
    return record_run(kind, "unet", config, dataset or make_dataset(), seed=seed, **more)


@pytest.fixture
def trained(tmp_path):
    """A finished run with every file that has a reader."""
    run = Run(tmp_path / "run")
    with run.claim(CONFIG, make_record()):
        run.write_training(SUMMARY)
        run.write_metrics([{"epoch": 0, "step": 5, "val_loss": None}, {"epoch": 1, "step": 10, "val_loss": 0.25}])
        run.write_importance(
            {"split": "val", "pixels": 9, "repeats": 2, "macro_f1": 0.5, "features": [{"name": "a", "drop": 0.1, "std": 0}]}
        )
        labels = np.array([[0, 1], [1, 1]])
        run.write_scores("test", score_images("toy", "test", CLASSES, [("t", labels, labels)]))
    return run


def list_files(run):
    return {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}


def test_a_claim_says_what_the_run_is(tmp_path):
    run = Run(tmp_path / "run")
    with run.claim(CONFIG, make_record(seed=7)):
        pass
    assert sorted(path.name for path in run.folder.iterdir()) == ["config.yaml", "environment.json", "run.json"]
    assert run.read_config() == {**CONFIG, "sigmas": [1, 2]}
    record = Run.open(run.folder).read_record()
    assert record == make_record(seed=7)
    assert (record.kind, record.method, record.seed, record.classes, record.ignore) == (
        "network",
        "unet",
        7,
        ("background", "vessel"),
        255,
    )
    assert record.splits.keys() == {"train", "val", "test"}
    assert {"python", "packages", "command", "git_commit"} <= run.read_environment().keys()


def test_open_needs_a_folder(tmp_path):
    (tmp_path / "file").touch()
    for name in ("gone", "file"):
        with pytest.raises(RunError, match="no such folder"):
            Run.open(tmp_path / name)


@pytest.mark.parametrize(
    "left", [[], [".config.7.aa.partial.yaml"], [".DS_Store"], ["run.json"], ["config.yaml", "run.json"]]
)
def test_a_folder_in_which_nothing_was_trained_is_free(tmp_path, left):
    """Whatever a kill in the first writes leaves."""
    with Run(tmp_path / "other").claim({"model": "other"}, make_record({"model": "other"}, "pixels")):
        pass
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    for name in left:
        source = tmp_path / "other" / name
        (run.folder / name).write_bytes(source.read_bytes() if source.is_file() else b"half")
    run.check(CONFIG, make_record())
    with run.claim(CONFIG, make_record()):
        pass
    assert run.read_config()["model"] == {"decoder": "unet"}
    assert run.read_record() == make_record()
    assert not list(run.folder.glob(".*partial*"))


@pytest.mark.parametrize("name", ["notes.txt", "model/model.json", ".git/HEAD", "environment.json", "config.yaml"])
def test_a_foreign_folder_is_refused_and_left_alone(tmp_path, name):
    run = Run(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(RunError, match="holds files that are not a run"), run.claim(CONFIG, make_record()):
        pass
    assert list_files(run) == {tmp_path / name: b"mine"}


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(RunError, match="a file is in the way"):
        Run(tmp_path / "run").check(CONFIG, make_record())


def test_other_settings_are_refused_and_all_named(trained):
    before = list_files(trained)
    other = {**CONFIG, "model": {"decoder": "fpn"}, "train": {"epochs": 3, "seed": 1}, "new": True}
    with pytest.raises(RunError, match="holds another run") as refused, trained.claim(other, make_record(other)):
        pass
    for words in ("model.decoder (unet there, fpn asked)", "train.epochs (2 there, 3 asked)", "new (nothing there, True"):
        assert words in str(refused.value)
    with pytest.raises(RunError, match=r"the run of a network \(train\); asked for is a pixel classifier"):
        trained.check(CONFIG, make_record(kind="pixels"))
    # how often a checkpoint is written makes no other run, nor where the images lie and how many devices share a batch
    harmless = {"checkpoint_every": "1m", "data_on_device": "on", "devices": 2}
    assert trained.check({**CONFIG, "train": {**CONFIG["train"], **harmless}}, make_record()) == []
    assert list_files(trained) == before


def test_how_a_path_is_spelled_is_no_difference(trained):
    trained.check({**CONFIG, "dataset": "./d/"}, make_record())


def test_models_are_told_apart_by_their_weights(tmp_path):
    config = {**CONFIG, "init": "a"}
    run = Run(tmp_path / "run")
    with run.claim(config, make_record(config, init_sha256="aa")):
        run.write_training(SUMMARY)
    run.check({**config, "init": "./a"}, make_record(config, init_sha256="aa"))
    for digest in ("bb", None):
        with pytest.raises(RunError, match=r"\(init a\) has other weights now"):
            run.check(config, make_record(config, init_sha256=digest))


IMAGE, LABELS = [[1, 2, 3], [4, 5, 6]], [[0, 1, 0], [1, 255, 0]]
CHANGES = {
    "a renamed class": ({"classes": ClassSet(("background", "cell"))}, "classes background, vessel there, background, cell"),
    "another ignore value": ({"classes": ClassSet(("background", "vessel"), ignore=254)}, "ignore value 255 there, 254 now"),
    "a voxel size": ({"voxel_size_um": (1.0, 1.0, 2.0)}, "voxel size of t in train"),
    "one pixel": ({"train": ([[1, 2, 3], [4, 5, 7]], LABELS)}, "pixels of t in train"),
    "one label": ({"val": (IMAGE, [[0, 1, 0], [1, 255, 1]])}, "labels of v in val"),
    "another shape": ({"train": ([[1, 2], [3, 4], [5, 6]], [[0, 1], [0, 1], [255, 0]])}, "pixels of t in train"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_changed_training_data_are_refused_with_what_changed(trained, case):
    change, words = CHANGES[case]
    # labels are checked by whoever makes a dataset
    with pytest.raises(RunError, match="training or validation data changed") as refused:
        trained.check(CONFIG, make_record(dataset=make_dataset(**change)))
    assert words in str(refused.value)


def test_images_that_come_and_go_are_named(trained):
    dataset = make_dataset()
    (cutout,) = dataset.splits["train"]
    other = dataclasses.replace(cutout, volume=dataclasses.replace(cutout.volume, name="other"))
    with pytest.raises(RunError, match="train has lost t; train has other more"):
        trained.check(
            CONFIG, make_record(dataset=dataclasses.replace(dataset, splits={**dataset.splits, "train": (other,)}))
        )


def test_changed_test_data_go_on_and_are_said(trained):
    dataset = make_dataset(test=(IMAGE, [[1, 0, 1], [0, 255, 1]]))
    record = make_record(dataset=dataset)
    assert dataset.fingerprint("test") != make_dataset().fingerprint("test")
    assert dataset.fingerprint("val") == make_dataset().fingerprint("val")
    with (
        pytest.warns(UserWarning, match="test data changed.*labels of t in test.*scored again"),
        trained.claim(CONFIG, record),
    ):
        pass
    assert trained.read_record() == record
    with trained.claim(CONFIG, record):  # said once
        pass


def test_a_run_may_grow_but_not_shrink(trained):
    longer = {**CONFIG, "train": {"epochs": 5, "seed": 0}}
    growing = {"train.epochs": float}
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        with trained.claim(longer, make_record(longer), growing):
            assert not trained.is_finished
            assert trained.read_training()["seconds"] == 1.5
    assert "goes on, with larger train.epochs" in str(notes[0].message)
    assert trained.read_config()["train"]["epochs"] == 5
    assert trained.read_record() == make_record(longer)
    with pytest.raises(RunError, match=r"train\.epochs \(5 there, 2 asked\)"):
        trained.check(CONFIG, make_record(), growing)


def test_a_run_is_of_one_process(trained):
    code = f"import fcntl, os; fcntl.flock(os.open({str(trained.folder)!r}, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    with trained.claim(CONFIG, make_record()):
        assert b"BlockingIOError" in subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).stderr
    subprocess.run([sys.executable, "-c", code], check=True)


def test_methods_differ_by_settings_data_and_origin_but_not_by_seeds():
    def digest(config=CONFIG, **more):
        return make_record(config, **more).method_sha256

    plain = digest()
    assert plain == digest({**CONFIG, "train": {"epochs": 2, "seed": 1}}, seed=1)
    assert plain == digest({**CONFIG, "dataset": "elsewhere", "init": "any"})
    assert plain == digest({**CONFIG, "train": {**CONFIG["train"], "checkpoint_every": "1m", "devices": 2}})
    assert plain == digest(dataset=make_dataset(test=(IMAGE, [[1, 0, 1], [0, 255, 1]])))
    others = [
        digest({**CONFIG, "train": {"epochs": 3, "seed": 0}}),
        digest(kind="pixels"),
        digest(dataset=make_dataset(train=(IMAGE, [[1, 0, 1], [0, 255, 1]]))),
        digest(init_sha256="aa"),
        digest(init_sha256="bb"),
        digest(init_sha256="aa", init_method="m"),
    ]
    assert len({plain, *others}) == 7
    assert others[-1] == digest(init_sha256="bb", init_method="m")


READERS = {
    "config.yaml": Run.read_config,
    "run.json": Run.read_record,
    "environment.json": Run.read_environment,
    "training.json": Run.read_training,
    "metrics.csv": Run.read_metrics,
    "importance.json": Run.read_importance,
    "scores/test.json": lambda run: run.read_scores("test"),
}


def spoil_values(content):
    """Yields JSON objects in which one value, at any depth, is of another type, or left out."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        for wrong in ([], {}, "text", {"a": [1]}, float("nan")):
            if type(wrong) is not type(value):
                changed = content.copy()
                changed[key] = wrong
                yield changed
        for deeper in spoil_values(value) if isinstance(value, dict | list) else ():
            changed = content.copy()
            changed[key] = deeper
            yield changed


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("damage", ["cut", "binary", "empty", "list", "number", "deep", "other keys"])
def test_damaged_files_are_named(trained, name, damage):
    path = trained.folder / name
    READERS[name](trained)
    content = path.read_bytes()
    path.write_bytes(
        {
            "cut": content[: len(content) // 2] + b'"[\x00',
            "binary": bytes(range(256)),
            "empty": b"",
            "list": b"[1, 2]",
            "number": b"5",
            "deep": b"[" * 100_000,
            "other keys": b'{"a": 1}',
        }[damage]
    )
    if (name, damage) in {("config.yaml", "other keys"), ("environment.json", "other keys")}:
        READERS[name](trained)  # nothing is demanded of them but keys
        return
    with pytest.raises(RunError) as refused:
        READERS[name](trained)
    assert str(path) in str(refused.value)
    assert len(str(refused.value)) < 1000


def test_values_of_wrong_types_are_refused_or_harmless(trained):
    """No reader of a run's files meets a type that it does not expect."""
    from neurotome.scoring import Scores

    path = trained.folder / "scores" / "test.json"
    content = json.loads(path.read_text())
    refused = 0
    for spoiled in spoil_values(content):
        path.write_text(json.dumps(spoiled))
        try:
            str(Scores(trained.read_scores("test")))
        except RunError as error:
            assert str(path) in str(error)  # noqa: PT017
            refused += 1
    assert refused > 100


def test_scores_without_confusions_of_images_are_to_be_made_again(trained):
    path = trained.folder / "scores/test.json"
    content = json.loads(path.read_text())
    del content["per_image"]["confusion"]
    path.write_text(json.dumps(content))
    with pytest.raises(
        RunError, match=r"not what neurotome writes \(no 'confusion'\)\. Delete it and give the run's command"
    ):
        trained.read_scores("test")


def test_damaged_files_that_can_be_made_again_do_not_stop_a_run(trained):
    (trained.folder / "training.json").write_bytes(b"\xff\x00")
    (trained.folder / "environment.json").write_bytes(b"\xff\x00")
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        with trained.claim(CONFIG, make_record()):
            assert not trained.is_finished
            assert trained.read_environment()["python"]
    for name, note in zip(("environment", "training"), notes, strict=True):
        assert f"{name}.json" in str(note.message)
        assert "made again now" in str(note.message)


def test_files_that_cannot_be_made_again_are_named(trained):
    (trained.folder / "run.json").unlink()
    with pytest.raises(RunError, match=r"run\.json: missing, but something was trained"):
        trained.check(CONFIG, make_record())


def test_metrics_keep_what_is_not_known(trained):
    assert trained.metrics.read_text() == "epoch,step,val_loss\n0,5,\n1,10,0.25\n"
    assert trained.read_metrics()[0] == {"epoch": 0.0, "step": 5.0, "val_loss": None}


def test_a_config_is_yaml_of_plain_values(trained):
    assert yaml.safe_load((trained.folder / "config.yaml").read_text(encoding="utf-8"))["sigmas"] == [1, 2]
    assert os.path.exists(trained.folder / "run.json")  # noqa: PTH110
