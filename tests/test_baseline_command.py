from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from neurotome.cli import main
from neurotome.errors import RunError
from neurotome.experiments.commands import check_same_run, claim_run
from neurotome.experiments.compare import compare, group_runs
from neurotome.figures.methods import plot_methods, summarise
from neurotome.io.images import read_image

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


def test_killed_run_goes_on(data, runs, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("neurotome.experiments.baseline.score_splits", stop)
    assert run("baseline", data, "--out", tmp_path / "run", *SMALL) == 130
    weights = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    monkeypatch.undo()
    assert run("baseline", data, "--out", tmp_path / "run", *SMALL) == 0
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == weights
    found, expected = (json.loads((run_ / "scores" / "test.json").read_text()) for run_ in (tmp_path / "run", runs / "rf0"))
    assert found == expected


def test_run_killed_before_its_summary_gets_one(data, runs, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("neurotome.experiments.baseline._summarise", stop)
    assert run("baseline", data, "--out", tmp_path / "run", *SMALL) == 130
    assert not (tmp_path / "run" / "training.json").exists()
    monkeypatch.undo()
    assert run("baseline", data, "--out", tmp_path / "run", *SMALL) == 0
    found, whole = (json.loads((there / "training.json").read_text()) for there in (tmp_path / "run", runs / "rf0"))
    assert set(found) == set(whole)
    assert found["finished"]
    # this process neither trained nor scored
    assert found["peak_memory_bytes"] is None
    assert found["scoring_mpixel_per_s"] is None
    assert whole["peak_memory_bytes"] > 1e8
    assert "Peak memory" not in (tmp_path / "run" / "report.html").read_text()
    compare(tmp_path / "run", runs / "lr", out=tmp_path / "compared")
    assert "| – |" in (tmp_path / "compared" / "comparison.md").read_text()
    # scored again: only the speed is another
    (tmp_path / "run" / "scores" / "test.json").unlink()
    assert run("baseline", data, "--out", tmp_path / "run", *SMALL) == 0
    again = json.loads((tmp_path / "run" / "training.json").read_text())
    assert again.pop("scoring_mpixel_per_s") > 0
    assert again == {key: value for key, value in found.items() if key != "scoring_mpixel_per_s"}


def test_config_repeats_the_run(runs, tmp_path):
    assert run("baseline", "--config", runs / "rf1" / "config.yaml", "--out", tmp_path / "again") == 0
    found, expected = (
        json.loads((there / "scores" / "test.json").read_text()) for there in (tmp_path / "again", runs / "rf1")
    )
    assert found == expected


def test_out_of_memory_says_what_takes_less(data, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr("neurotome.experiments.baseline.fit_baseline", fail)
    assert run("baseline", data, "--out", tmp_path / "run", *SMALL) == 1
    message = capsys.readouterr().err
    assert "--max-memory" in message
    assert "--filters.sigmas" in message


def test_wrong_settings_leave_no_folder(data, tmp_path, capsys):
    assert run("baseline", data, "--out", tmp_path / "run", "--learner", "sklearn.svm.LinearSVC") == 2
    assert "--learner" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_folder_in_which_nothing_was_trained_takes_other_settings(data, tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise RunError("training failed")

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("neurotome.experiments.baseline.fit_baseline", fail)
        assert run("baseline", data, "--out", out, *SMALL, "--learner", "lr") == 1
    assert "training failed" in capsys.readouterr().err
    assert run("baseline", data, "--out", tmp_path / "none", *SMALL, "--max-memory", "200") == 1
    assert "Give more" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert sorted(path.name for path in out.iterdir()) == ["config.yaml", "environment.json"]
    (out / ".config.1.aa.partial.yaml").touch()  # of a killed writer
    assert run("baseline", data, "--out", out, *SMALL[:-1], "2") == 0
    assert yaml.safe_load((out / "config.yaml").read_text())["learner"] == "rf"
    assert run("baseline", data, "--out", out, *SMALL[:-1], "1") == 1
    assert "holds another run, which differs in forest.trees (2 there, 1 asked)" in capsys.readouterr().err


@pytest.mark.parametrize("trained", ["model", "checkpoints", "scores", "metrics.csv"])
def test_claim_keeps_whatever_was_trained(tmp_path, trained):
    claim_run(tmp_path, {"seed": 0}, {"train": "aa"}, None)
    (tmp_path / "environment.json").unlink()  # killed between the two files
    check_same_run(tmp_path, {"seed": 1}, {"train": "bb"})
    claim_run(tmp_path, {"seed": 1, "learner": "rf"}, {"train": "bb"}, "cc")
    claim_run(tmp_path, {"seed": 2}, {"train": "bb"}, None)  # a network instead
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"seed": 2}
    assert json.loads((tmp_path / "environment.json").read_text())["data_sha256"] == {"train": "bb"}
    (tmp_path / trained).mkdir()
    before = [(tmp_path / name).read_bytes() for name in ("config.yaml", "environment.json")]
    claim_run(tmp_path, {"seed": 2}, {"train": "bb"}, None)
    for config, digest in (({"seed": 3}, "bb"), ({"seed": 2}, "dd")):
        for refuse in (check_same_run, claim_run):
            with pytest.raises(RunError, match=r"holds another run|data changed"):
                refuse(tmp_path, config, {"train": digest}, None)
    assert before == [(tmp_path / name).read_bytes() for name in ("config.yaml", "environment.json")]


def test_training_that_failed_at_once_takes_other_settings(data, tmp_path, monkeypatch):
    def fail(*_):
        raise RunError("no space")

    monkeypatch.setattr("neurotome.experiments.commands.fit", fail)
    monkeypatch.setattr("neurotome.experiments.commands.prepare", lambda *_: object())
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


def test_paths_may_be_text_in_python(runs, tmp_path):
    assert compare(str(runs / "rf0"), str(runs / "lr"), out=str(tmp_path))[0] == tmp_path / "methods.png"


def test_training_cannot_start_from_a_baseline(data, runs, tmp_path, capsys):
    assert run("train", data, "--out", tmp_path / "run", "--init", runs / "rf0") == 1
    assert "is a pixel classifier" in capsys.readouterr().err


def test_compare_groups_seeds(runs, tmp_path):
    written = compare(runs / "rf0", runs / "lr", runs / "rf1", out=tmp_path)
    assert [path.name for path in written] == ["methods.png", "comparison.json", "comparison.md"]
    assert group_runs([runs / "rf0", runs / "lr", runs / "rf1"]) == {
        "rf on filters": [runs / "rf0", runs / "rf1"],
        "lr on identity": [runs / "lr"],
    }
    content = json.loads((tmp_path / "comparison.json").read_text())
    single = [json.loads((runs / name / "scores" / "test.json").read_text())["macro"]["f1"] for name in ("rf0", "rf1")]
    assert content["methods"][0]["macro"]["f1"] == pytest.approx(
        {"mean": sum(single) / 2, "low": min(single), "high": max(single)}
    )
    table = (tmp_path / "comparison.md").read_text()
    assert "| rf on filters | 2 |" in table
    assert "| lr on identity | 1 |" in table


def test_compare_puts_the_others_into_the_report(data, runs, tmp_path):
    written = compare(runs / "lr", runs / "rf0", runs / "rf1", out=tmp_path, report=data)
    assert written[-1] == runs / "lr" / "report.html"
    page = written[-1].read_text()
    assert page.index("Macro and weighted scores of each method") > page.index("rf on filters")
    assert (runs / "lr" / "figures" / "methods.png").is_file()


def test_compare_reports_one_split_and_the_means_of_its_table(data, runs, tmp_path):
    compare(runs / "rf0", runs / "rf1", runs / "lr", out=tmp_path, split="val", report=data)
    page = (runs / "rf0" / "report.html").read_text()
    section = page[page.index('<section id="comparison">') : page.index('<section id="viewer">')]
    assert "toy, split val: pooled" in section
    for method in json.loads((tmp_path / "comparison.json").read_text())["methods"]:
        cells = [method[mean][key] for mean in ("macro", "weighted") for key in ("precision", "recall", "f1")]
        for found in (*cells, method["accuracy"]):
            reach = f"<small>{found['low']:.3f}–{found['high']:.3f}</small>" if len(method["runs"]) > 1 else ""
            assert f"<td>{found['mean']:.3f}{reach}</td>" in section


def test_compare_tells_methods_of_one_name_apart(data, runs, tmp_path):
    assert run("baseline", data, "--out", tmp_path / "more", *SMALL[:-1], 4) == 0
    assert list(group_runs([runs / "rf0", tmp_path / "more"])) == ["rf on filters", "rf on filters, forest.trees 4"]


def test_compare_groups_runs_on_networks_of_other_seeds(tmp_path):
    def write(name, content):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(content))
        return tmp_path / name

    def network(name, seed, rate):
        return write(name, {"model": {"decoder": "unet"}, "train": {"seed": seed, "learning_rate": rate}})

    def deep(name, model, seed, stages=()):
        encoder = {"model": str(model), "name": "resnet18", "weights": "none", "stages": list(stages)}
        return write(name, {"learner": "gbdt", "features": "encoder", "encoder": encoder, "seed": seed})

    first, second, other = network("n0", 0, 0.1), network("n1", 1, 0.1), network("n2", 0, 0.2)
    runs = [deep("d0", first, 0), deep("d1", second, 1), deep("d2", other, 0)]
    runs += [deep("d3", first, 0, ("1", "2")), deep("d4", "", 0)]
    assert group_runs(runs) == {
        "gbdt on encoder": runs[:2],
        f"gbdt on encoder, encoder.model {other}": runs[2:3],
        "gbdt on encoder, encoder.stages 1 2": runs[3:4],
        "gbdt on resnet18 with weights none": runs[4:],
    }


def test_compare_knows_the_data_by_content_not_by_spelling(tmp_path):
    def write(name, dataset, seed, digest, **more):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump({**more, "dataset": dataset, "seed": seed}))
        (tmp_path / name / "environment.json").write_text(json.dumps({"data_sha256": {"train": digest}}))
        return tmp_path / name

    forest = {"learner": "rf", "features": "filters"}
    spelled = [
        write(f"r{seed}", dataset, seed, "aa", **forest)
        for seed, dataset in enumerate(("d/plain", "./d/plain", "d/plain/", str(tmp_path / "d" / "plain")))
    ]
    less = write("less", "d/plain", 0, "bb", **forest)  # the folder has lost some images since
    more = write("more", "./d/plain", 0, "aa", **forest, trees=9)
    assert group_runs([*spelled, less, more]) == {
        "rf on filters": spelled,
        "rf on filters, other training data": [less],
        "rf on filters, trees 9": [more],
    }
    # the same of the models that runs began with
    network = {"model": {"decoder": "unet", "encoder": "resnet18"}}
    first = [write(f"n{seed}", dataset, seed, "aa", **network) for seed, dataset in enumerate(("d/plain", "./d/plain"))]
    other = write("n2", "d/plain", 0, "bb", **network)
    tuned = [write(f"t{model.name}", "e", 0, "cc", **network, init=str(model)) for model in (*first, other)]
    assert list(group_runs(tuned).values()) == [tuned[:2], tuned[2:]]
    streamed = [write(f"s{seed}", "phantom-stream", seed, f"{seed}", **network) for seed in (0, 1)]
    assert list(group_runs(streamed).values()) == [streamed]


def test_compare_refuses(runs, tmp_path):
    with pytest.raises(RunError, match="no run to compare"):
        compare(out=tmp_path)
    with pytest.raises(RunError, match="named twice"):
        compare(runs / "rf0", runs / "rf0", out=tmp_path)
    with pytest.raises(RunError, match="expected a run folder with scores of split test"):
        compare(tmp_path, out=tmp_path)
    other = tmp_path / "other"
    (other / "scores").mkdir(parents=True)
    content = json.loads((runs / "lr" / "scores" / "test.json").read_text())
    for change, message in (
        ({"dataset": "elsewhere"}, "scored on dataset elsewhere"),
        ({"per_class": {name: {"support": 1} for name in content["classes"]}}, "images or labels differ"),
    ):
        (other / "scores" / "test.json").write_text(json.dumps({**content, **change}))
        with pytest.raises(RunError, match=message):
            compare(runs / "rf0", other, out=tmp_path)


def test_bars_of_several_seeds_by_hand():
    def score(value):
        means = {"precision": value, "recall": None, "f1": value, "iou": value}
        return {"macro": means, "weighted": means, "intervals": {"macro_f1": [0.1, 0.9]}}

    assert summarise([score(0.2), score(0.6)], "macro", "f1") == (pytest.approx(0.4), (0.2, 0.6))
    assert summarise([score(0.2)], "macro", "f1") == (0.2, (0.1, 0.9))
    assert summarise([score(0.2)], "macro", "precision") == (0.2, None)
    assert summarise([score(0.2), score(0.6)], "macro", "recall") == (None, None)
    figure = plot_methods({"seeds": [score(0.2), score(0.6)], "one": score(0.5)})
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == pytest.approx([0.4, 0.4, 0.5, 0.5])


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
