"""The command line as a user meets it: what works, and one clear message for everything that cannot."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from conftest import QUICK, TINY, make_images, run, write_dataset


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path / "data")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    write_dataset(folder / "data")
    assert run("train", folder / "data", "--out", folder / "run", *QUICK) == 0
    return folder


def test_a_run_holds_all_that_was_promised(trained):
    found = {str(p.relative_to(trained / "run")) for p in (trained / "run").rglob("*") if p.is_file()}
    expected = {
        "config.yaml",
        "environment.json",
        "run.json",
        "metrics.csv",
        "training.json",
        "report.html",
        "checkpoints/step-2.ckpt",
        "model/model.json",
        "model/model.safetensors",
        *(f"scores/{split}.json" for split in ("train", "val", "test")),
        "predictions/test/d.png",
    }
    assert expected <= found
    assert not [name for name in found if "partial" in name]
    config = yaml.safe_load((trained / "run" / "config.yaml").read_text())
    assert config["model"]["encoder"] == "mobilenetv3_small_050"
    environment = json.loads((trained / "run" / "environment.json").read_text())
    assert {"neurotome", "python", "packages", "command", "git_commit"} <= environment.keys()


def test_the_same_command_again_changes_nothing(trained):
    before = {p: p.read_bytes() for p in (trained / "run").rglob("*") if p.is_file() and "figures" not in str(p)}
    assert run("train", trained / "data", "--out", trained / "run", *QUICK) == 0
    assert {p: p.read_bytes() for p in before if p.name != "report.html"} == {
        p: content for p, content in before.items() if p.name != "report.html"
    }


@pytest.mark.usefixtures("short_report")
@pytest.mark.filterwarnings("always::UserWarning")
def test_damaged_files_of_a_run_are_made_again(trained, tmp_path, capsys):
    shutil.copytree(trained / "run", tmp_path / "run")
    for names in (("metrics.csv", "scores/test.json"), ("training.json",), ("predictions/test/d.png",)):
        for name in names:
            (tmp_path / "run" / name).write_bytes(bytes(range(256)))
        assert run("train", trained / "data", "--out", tmp_path / "run", *QUICK) == 0
        error = capsys.readouterr().err
        for name in names:
            assert name in error
    for name in ("metrics.csv", "scores/test.json", "predictions/test/d.png", "model/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (trained / "run" / name).read_bytes(), name
    assert json.loads((tmp_path / "run" / "training.json").read_text())["finished"]
    (tmp_path / "run" / "model" / "model.json").write_bytes(b"\xff")
    assert run("train", trained / "data", "--out", tmp_path / "run", *QUICK) == 1
    assert re.search(r"^neurotome: .*run/model.*damaged model folder|model\.json", capsys.readouterr().err)


@pytest.mark.usefixtures("short_report")
def test_config_yaml_repeats_the_run(trained, tmp_path):
    assert run("train", "--config", trained / "run" / "config.yaml", "--out", tmp_path / "again") == 0
    first, again = (
        (folder / "model" / "model.safetensors").read_bytes() for folder in (trained / "run", tmp_path / "again")
    )
    assert first == again


def test_evaluate_prints_a_table_and_writes_the_scores(trained, tmp_path, capsys):
    out = tmp_path / "scores.json"
    assert run("evaluate", trained / "run", "--data", trained / "data", "--split", "test", "--out", out) == 0
    table = capsys.readouterr().out
    for word in ("precision", "recall", "F1", "IoU", "vessel", "macro mean", "accuracy"):
        assert word in table
    found, kept = json.loads(out.read_text()), json.loads((trained / "run" / "scores" / "test.json").read_text())
    assert found == kept


def test_evaluate_agrees_with_the_prediction_files(trained):
    from sklearn.metrics import f1_score

    truth = np.asarray(Image.open(trained / "data" / "labels" / "d.png")).ravel()
    found = np.asarray(Image.open(trained / "run" / "predictions" / "test" / "d.png")).ravel()
    scores = json.loads((trained / "run" / "scores" / "test.json").read_text())
    assert scores["macro"]["f1"] == f1_score(truth, found, average="macro", labels=np.union1d(truth, found))


@pytest.mark.parametrize("form", ["png", "tif", "npy", "stack.tif", "stack.npy", "uint16.tif"])
def test_predict_keeps_the_shape(trained, tmp_path, form, capsys):
    image, _ = make_images(9)
    stack = np.stack([image, image[::-1]]) if "stack" in form else image
    source = tmp_path / f"in.{form}"
    if form == "png":
        Image.fromarray(stack).save(source)
    elif form.endswith("npy"):
        np.save(source, stack)
    else:
        tifffile.imwrite(source, stack.astype(np.uint16) if "uint16" in form else stack, photometric="minisblack")
    target = tmp_path / f"out.{form.split('.')[-1]}"
    status = run("predict", trained / "run", source, target, "--overlay", "--confidence", "--device", "cpu")
    if "uint16" in form:
        assert status == 1
        assert re.search(
            r"in\.uint16\.tif: dtype uint16, but the training images were uint8.*Convert", capsys.readouterr().err
        )
        assert list(tmp_path.iterdir()) == [source]
        return
    assert status == 0
    labels = {"png": lambda p: np.asarray(Image.open(p)), "tif": tifffile.imread, "npy": np.load}[target.suffix[1:]](target)
    assert labels.shape == stack.shape
    assert labels.dtype == np.uint8
    assert labels.max() <= 2
    assert len(list(tmp_path.glob("out*_overlay.*"))) == len(list(tmp_path.glob("out*_confidence.*"))) == 1
    # an array gives what the file gave
    from neurotome import predict

    np.testing.assert_array_equal(predict(trained / "run", stack), labels)


def test_predict_a_folder_and_finish_it_later(trained, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for seed in range(3):
        Image.fromarray(make_images(seed)[0]).save(tmp_path / "in" / f"s{seed}.png")
    out = tmp_path / "out"
    assert run("predict", trained / "run", tmp_path / "in", out) == 0
    assert sorted(p.name for p in out.iterdir()) == ["s0.png", "s1.png", "s2.png"]
    kept = (out / "s0.png").stat().st_mtime_ns
    (out / "s1.png").unlink()
    assert run("predict", trained / "run", tmp_path / "in", out) == 1
    assert "s0.png: is there already" in capsys.readouterr().err
    assert run("predict", trained / "run", tmp_path / "in", out, "--existing", "skip") == 0
    assert (out / "s1.png").is_file()
    assert (out / "s0.png").stat().st_mtime_ns == kept


def png(path, array):
    Image.fromarray(array).save(path)


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def replace_image(folder, suffix, array):
    (folder / "images" / "a.png").unlink()
    path = folder / "images" / f"a.{suffix}"
    np.save(path, array) if suffix == "npy" else tifffile.imwrite(path, array)
    return path


IMAGE, LABELS = make_images(0)
NOT_A_NUMBER = np.where(LABELS == 2, np.nan, IMAGE).astype(np.float32)

BAD_DATA = {
    "missing folder": (shutil.rmtree, r"data does not exist"),
    "empty folder": (lambda d: [shutil.rmtree(d), d.mkdir()], r"dataset\.yaml"),
    "image without label": (lambda d: (d / "labels" / "a.png").unlink(), r"labels/a with suffix.*found nothing"),
    "label of another shape": (lambda d: png(d / "labels" / "a.png", LABELS[:-1]), r"a\.png.*39.*40|a\.png.*40.*39"),
    "label outside the classes": (
        lambda d: png(d / "labels" / "a.png", LABELS * 3),
        r"a\.png.*3 \(320 pixels\), 6 \(210 pixels\)",
    ),
    "float labels": (
        lambda d: [(d / "labels" / "a.png").unlink(), tifffile.imwrite(d / "labels" / "a.tif", LABELS.astype(np.float32))],
        r"a\.tif.*float32.*uint8",
    ),
    "RGB labels": (
        lambda d: png(d / "labels" / "a.png", np.stack([LABELS, LABELS * 0, LABELS], -1)),
        r"a\.png.*(RGB|colour)",
    ),
    "truncated PNG": (lambda d: truncate(d / "images" / "a.png"), r"a\.png.*"),
    "truncated TIFF": (lambda d: truncate(replace_image(d, "tif", IMAGE)), r"a\.tif.*"),
    "truncated npy": (lambda d: truncate(replace_image(d, "npy", IMAGE)), r"a\.npy.*"),
    "NaN pixels": (lambda d: replace_image(d, "npy", NOT_A_NUMBER), r"a\.npy.*210 pixels are NaN or infinite"),
    "infinite pixels": (
        lambda d: replace_image(d, "tif", np.where(LABELS == 2, np.inf, 1).astype(np.float32)),
        r"a\.tif.*infinite",
    ),
    "constant image": (lambda d: png(d / "images" / "a.png", IMAGE * 0), r"a\.png.*every pixel is 0"),
    "id in two splits": (
        lambda d: (d / "dataset.yaml").write_text((d / "dataset.yaml").read_text().replace("- c", "- a")),
        r"dataset\.yaml.*'?a'?",
    ),
}


@pytest.mark.parametrize("case", BAD_DATA)
@pytest.mark.parametrize("command", ["train", "describe"])
def test_bad_data_get_one_clear_message(dataset, tmp_path, capsys, case, command):
    spoil, message = BAD_DATA[case]
    spoil(dataset)
    out = tmp_path / "out"
    assert run(command, dataset, "--out", out, *(QUICK if command == "train" else [])) == 1
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.startswith("neurotome: ")
    assert len(error.splitlines()) == 1
    assert not out.exists()


BAD_SETTINGS = {
    "unknown encoder": (["--model.encoder", "resnet81"], 1, "unknown encoder 'resnet81'. Did you mean 'resnet18'"),
    "unknown decoder": (["--model.decoder", "unett"], 1, "unknown decoder 'unett'. Did you mean 'unet'"),
    "unknown loss": (["--loss.terms", "focl"], 1, "Did you mean 'focal'"),
    "unknown option": (["--train.learning-rat", "1"], 2, "Did you mean --train.learning-rate"),
    "value of no kind": (["--train.optimizer", "adan"], 2, "adamw"),
    "patch larger than every image": (["--sample.patch", "64"], 1, "larger than every training image.*--sample.patch 32"),
    "weights of other classes": (["--loss.class-weights", "1,2"], 1, "3"),
    "missing weights": (["--model.encoder-weights", "gone.safetensors"], 1, "gone.safetensors.*no such file"),
    "missing config": (["--config", "gone.yaml"], 1, "gone.yaml: no such file"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_settings_get_one_clear_message(dataset, tmp_path, capsys, case):
    options, status, message = BAD_SETTINGS[case]
    out = tmp_path / "out"
    usual = dict(zip(QUICK[::2], QUICK[1::2], strict=True)) | dict(zip(options[::2], options[1::2], strict=True))
    assert run("train", dataset, "--out", out, *(word for pair in usual.items() for word in pair)) == status
    assert re.search(message, " ".join(capsys.readouterr().err.replace("│", " ").split()))
    assert not out.exists()


def test_unknown_keys_of_a_config_are_refused(dataset, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("model:\n  encodr: resnet18\n")
    assert run("train", dataset, "--out", tmp_path / "out", "--config", tmp_path / "c.yaml") == 2
    assert "--model.encoder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unknown_command_split_and_class(trained, tmp_path, capsys):
    assert run("trian", trained / "data") == 2
    assert "train" in capsys.readouterr().err
    assert run("evaluate", trained / "run", "--data", trained / "data", "--split", "tset") == 2
    message = capsys.readouterr().err
    assert 'Invalid value "tset" for --split' in message
    assert '"test"' in message
    for command in (["evaluate", trained / "run", "--data", trained / "data"], ["predict", trained / "run", "a", "b"]):
        assert run(*command, "--device", "cpy") == 1
        assert "unknown device 'cpy'. Did you mean 'cpu'" in capsys.readouterr().err
    assert run("train", "--out", tmp_path / "run") == 2
    assert "--dataset requires an argument" in capsys.readouterr().err
    assert run("train", "one", "two", "--out", tmp_path / "run") == 2
    assert "found 'one two'; expected one dataset" in " ".join(capsys.readouterr().err.replace("│", "").split())
    image = trained / "data" / "images" / "a.png"
    assert run("predict", trained / "run", image, tmp_path / "x.png", "--overlay", "--show", "vesel") == 1
    assert "unknown class 'vesel'. Did you mean 'vessel'" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


def test_a_folder_that_holds_another_run_is_left_alone(trained, capsys):
    before = {p: p.stat().st_mtime_ns for p in (trained / "run").rglob("*")}
    assert run("train", trained / "data", "--out", trained / "run", *QUICK, "--train.seed", "1") == 1
    assert re.search(r"holds another run, which differs in train\.seed \(0 there, 1 asked\).*--out", capsys.readouterr().err)
    assert before == {p: p.stat().st_mtime_ns for p in (trained / "run").rglob("*")}


def test_a_folder_that_holds_something_else_is_left_alone(dataset, capsys):
    assert run("train", dataset, "--out", dataset, *QUICK) == 1
    assert "holds files that are not a run" in capsys.readouterr().err


def test_changed_data_are_noticed(trained, tmp_path, capsys):
    shutil.copytree(trained / "run", tmp_path / "run")
    shutil.copytree(trained / "data", tmp_path / "data")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(trained / "data"), str(tmp_path / "data")))
    png(tmp_path / "data" / "labels" / "a.png", LABELS.T.copy().reshape(LABELS.shape))
    assert run("train", tmp_path / "data", "--out", tmp_path / "run", *QUICK) == 1
    assert "data changed" in capsys.readouterr().err


def test_a_model_of_other_classes_is_refused(trained, tmp_path, capsys):
    other = write_dataset(tmp_path / "other", ("background", "vessel", "nucleus"))
    assert run("evaluate", trained / "run", "--data", other) == 1
    assert re.search(r"model's classes are background, vessel, cell.*nucleus", capsys.readouterr().err)


def test_no_space_left(dataset, tmp_path, capsys, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert run("train", dataset, "--out", tmp_path / "out", *QUICK) == 1
    error = capsys.readouterr().err
    assert "no space left" in error
    assert "Traceback" not in error
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == []


def test_debug_shows_the_traceback(tmp_path, capsys):
    assert run("describe", tmp_path / "gone", "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("short_report")
def test_a_killed_and_a_stopped_run_go_on(dataset, tmp_path):
    """SIGTERM, 143, is seen where a grid is stopped as a cluster does it."""
    command = ["train", str(dataset), "--out", str(tmp_path / "run"), *TINY]
    command += ["--train.device", "cpu", "--train.steps-per-epoch", "5", "--train.epochs", "15"]
    summary = tmp_path / "run" / "training.json"  # the last file of an epoch
    for sent, status in ((signal.SIGKILL, -9), (signal.SIGINT, 130)):
        # a test run started in the background ignores SIGINT, and its children would inherit that
        ctrl_c = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
        process = subprocess.Popen(
            [sys.executable, "-m", "neurotome", *command], stderr=subprocess.PIPE, text=True, **ctrl_c
        )
        before = summary.stat().st_mtime_ns if summary.is_file() else None
        for _ in range(1800):
            if summary.is_file() and summary.stat().st_mtime_ns != before:
                break
            time.sleep(0.1)
        process.send_signal(sent)
        _, error = process.communicate(timeout=180)
        assert process.returncode == status
        assert ("the same command goes on" in error) == (sent == signal.SIGINT)
        assert "Traceback" not in error
        assert not json.loads(summary.read_text())["finished"]
    assert run(*command) == 0
    assert (tmp_path / "run" / "report.html").is_file()
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 16


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from neurotome import cli; cli.make_app()(['train', '--help']); "
        "assert type(sys.modules.get('torch')).__name__ != 'module'; "
        "assert not {'lightning', 'matplotlib', 'sklearn'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_device_that_is_not_there_is_refused(dataset, tmp_path, capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert run("train", dataset, "--out", tmp_path / "out", *TINY, "--train.device", "cuda") == 1
    assert "device 'cuda' is not on this machine; found cpu" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
