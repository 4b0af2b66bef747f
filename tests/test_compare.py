"""compare: which runs are one method, what methods are called, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from neurotome import compare
from neurotome.classes import ClassSet
from neurotome.datasets.base import Cutout, Dataset
from neurotome.errors import RunError
from neurotome.experiments.compare import group_runs
from neurotome.figures.scores import plot_methods, summarise
from neurotome.pixels.train import BaselineSettings
from neurotome.runs import Run, record_run
from neurotome.scoring import score_images
from neurotome.statistics import estimate
from neurotome.volume import Volume

CLASSES = ClassSet(("background", "vessel"))


def make_dataset(offset=0):
    rng = np.random.default_rng(0)
    splits = {}
    for split in ("train", "val", "test"):
        image = rng.integers(10, 200, (1, 24, 24)) + offset
        splits[split] = (Cutout(Volume(image.astype(np.uint8), split), rng.integers(0, 2, (1, 24, 24)).astype(np.uint8)),)
    return Dataset("toy", CLASSES, splits)


@pytest.fixture
def make_run(tmp_path):
    """Returns a function that writes a scored run of a network or a pixel classifier."""

    def make(name, config, *, right=300, dataset=None, init_method=None, init_sha256=None):
        kind = "pixels" if "learner" in config else "network"
        method = f"{config['learner']} on {config['features']}" if kind == "pixels" else "unet, resnet18"
        if kind == "network":
            method = f"{config['model']['decoder']}, {config['model']['encoder']}"
        dataset = dataset or make_dataset()
        seed = config.get("seed", config.get("train", {}).get("seed", 0))
        run = Run(tmp_path / name)
        with run.claim(config, record_run(kind, method, config, dataset, seed, init_method, init_sha256)):
            for split in ("val", "test"):
                (cutout,) = dataset.split(split)
                truth = cutout.read_labels(0)
                predicted = truth.copy()
                predicted.ravel()[right:] = 0
                run.write_scores(split, score_images("toy", split, CLASSES, [(split, truth, predicted)]))
            work = {"pixels": {"vessel": 9}, "method": "sampled"} if kind == "pixels" else {"epochs": 1, "steps": 2}
            run.write_training({"finished": True, **work, "seconds": 10.0 + seed, "device": "cpu", "precision": "32-true"})
        return run

    return make


def network(decoder="unet", seed=0, **changed):
    config = {
        "dataset": "d",
        "model": {"decoder": decoder, "encoder": "resnet18"},
        "loss": {"terms": ["cross_entropy"], "gamma": 2.0},
        "train": {"epochs": 9, "learning_rate": 0.1, "seed": seed},
        "init": "",
    }
    for key, value in changed.items():
        group, _, name = key.partition("__")
        if name:
            config[group][name] = value
        else:
            config[group] = value
    return config


def pixels(**changed):
    settings = BaselineSettings(**{key: value for key, value in changed.items() if "__" not in key})
    config = {"dataset": "d", **dataclasses.asdict(settings)}
    for key, value in changed.items():
        group, _, name = key.partition("__")
        if name:
            config[group][name] = value
    return config


def test_runs_that_differ_in_their_seed_are_one_method(make_run, tmp_path):
    forest = [make_run(f"rf{seed}", pixels(seed=seed), right=300 + 100 * seed) for seed in (0, 1)]
    lines = make_run("lr", pixels(learner="lr", features="identity"))
    assert group_runs([forest[0], lines, forest[1]]) == {"rf on filters": forest, "lr on identity": [lines]}
    written = compare(forest[0].folder, lines.folder, forest[1].folder, out=tmp_path / "out")
    assert [path.name for path in written] == ["methods.png", "comparison.json", "comparison.md"]
    methods = json.loads(written[1].read_text())["methods"]
    single = [run.read_scores("test")["macro"]["f1"] for run in forest]
    measured = methods[0]["macro"]["f1"]
    assert measured.pop("interval") is None  # a single tile
    assert measured == pytest.approx({"mean": sum(single) / 2, "low": min(single), "high": max(single)})
    assert methods[0]["training_seconds"] == {"mean": 10.5, "low": 10.0, "high": 11.0}
    table = written[2].read_text()
    assert "| rf on filters | 2 |" in table
    assert "| lr on identity | 1 |" in table


def test_every_setting_that_differs_is_named(make_run):
    unet = make_run("a", network())
    fpn = make_run("b", network("fpn", loss__terms=["focal"], loss__gamma=3.0, train__epochs=5, train__learning_rate=0.2))
    first, second = group_runs([unet, fpn])
    assert first == ("unet, resnet18, loss.terms cross_entropy, loss.gamma 2.0, train.epochs 9, train.learning_rate 0.1")
    assert second == "fpn, resnet18, loss.terms focal, loss.gamma 3.0, train.epochs 5, train.learning_rate 0.2"


def test_settings_that_a_method_does_not_use_are_not_named(make_run):
    runs = [make_run("a", pixels(forest__trees=4)), make_run("b", pixels(learner="lr", forest__trees=60))]
    runs.append(make_run("c", pixels(forest__trees=5)))
    assert list(group_runs(runs)) == ["rf on filters, forest.trees 4", "lr on filters", "rf on filters, forest.trees 5"]
    same = [make_run("d", pixels(learner="lr", forest__trees=6, filters__sigmas=[1], features="identity"))]
    same.append(make_run("e", pixels(learner="lr", forest__trees=7, filters__sigmas=[2], features="identity")))
    assert list(group_runs(same)) == ["lr on identity"]


def test_runs_that_begin_with_other_seeds_of_one_method_are_one_method(make_run):
    first, second, other = (make_run(f"n{i}", network(seed=i, train__epochs=9 + i // 2)) for i in range(3))

    def tuned(origin):
        method = origin.read_record().method_sha256
        config = network(init=str(origin.folder))
        return make_run(f"t{origin.folder.name}", config, init_method=method, init_sha256=origin.folder.name)

    runs = [tuned(first), tuned(second), tuned(other)]
    groups = group_runs(runs)
    assert list(groups.values()) == [runs[:2], runs[2:]]
    assert all(f"init {run.folder}" in name for name, run in zip(groups, (first, other), strict=True))


def test_data_are_told_apart_by_content_not_by_spelling(make_run):
    spelled = [make_run(f"r{i}", {**network(seed=i), "dataset": path}) for i, path in enumerate(("d", "./d", "d/", "/x/d"))]
    other = make_run("other", network(), dataset=make_dataset(1))
    assert group_runs([*spelled, other]) == {
        "unet, resnet18": spelled,
        "unet, resnet18, other training data": [other],
    }


def test_names_can_be_given(make_run, tmp_path):
    runs = [make_run("a", network()), make_run("b", network(seed=1)), make_run("c", network("fpn"))]
    assert group_runs(runs, ["plain", "pyramid"]) == {"plain": runs[:2], "pyramid": runs[2:]}
    assert group_runs(runs, ["one", "two", "one"]) == {"one": [runs[0], runs[2]], "two": [runs[1]]}
    with pytest.raises(RunError, match="found 1 names; expected one for each of 2 methods or of 3 runs"):
        group_runs(runs, ["one"])
    written = compare(*(run.folder for run in runs), out=tmp_path / "out", names=["plain", "pyramid"])
    assert "| pyramid | 1 |" in written[2].read_text()


def test_a_list_and_text_are_taken_in_python(make_run, tmp_path):
    runs = [make_run("a", network()).folder, make_run("b", network("fpn")).folder]
    for given in ([runs], [[str(run) for run in runs]], runs):
        assert compare(*given, out=str(tmp_path / "out"))[0] == tmp_path / "out" / "methods.png"


def test_the_command_line_takes_runs_and_names(make_run, tmp_path):
    from neurotome.cli import main

    runs = [str(make_run("a", network()).folder), str(make_run("b", network("fpn")).folder)]
    with pytest.raises(SystemExit) as ended:
        main(["compare", *runs, "--out", str(tmp_path / "out"), "--names", "x", "y"])
    assert ended.value.code == 0
    methods = json.loads((tmp_path / "out" / "comparison.json").read_text())["methods"]
    assert [method["method"] for method in methods] == ["x", "y"]


def test_the_report_has_the_split_and_the_means_of_the_table(make_run, tmp_path):
    runs = [make_run(f"rf{seed}", pixels(seed=seed), right=300 + 100 * seed) for seed in (0, 1)]
    runs.append(make_run("lr", pixels(learner="lr", features="identity")))
    written = compare([run.folder for run in runs], out=tmp_path / "out", split="val", report=make_dataset())
    assert written[-1] == runs[0].report
    assert (runs[0].figures / "methods.png").is_file()
    page = runs[0].report.read_text()
    section = page[page.index('<section id="comparison">') :]
    assert "toy, split val" in section
    for method in json.loads((tmp_path / "out" / "comparison.json").read_text())["methods"]:
        cells = [method[mean][key] for mean in ("macro", "weighted") for key in ("precision", "recall", "f1")]
        for cell in (*cells, method["accuracy"]):
            assert f"<td>{cell['mean']:.3f}" in section


def test_what_cannot_be_compared_is_refused(make_run, tmp_path):
    run = make_run("a", network())
    out = tmp_path / "out"
    with pytest.raises(RunError, match="no run to compare"):
        compare(out=out)
    with pytest.raises(RunError, match="named twice"):
        compare(run.folder, run.folder, out=out)
    with pytest.raises(RunError, match="no such folder"):
        compare(tmp_path / "gone", out=out)
    with pytest.raises(RunError, match="scores of split test; finish the run first"):
        compare(tmp_path, out=out)
    with pytest.raises(RunError, match=r"split train; it has scores of val, test: choose with --split"):
        compare(run.folder, out=out, split="train")
    other = make_run("b", network("fpn"))
    content = other.read_scores("test")
    fewer = {name: {**values, "support": 1} for name, values in content["per_class"].items()}
    for change, message in (
        ({"dataset": "elsewhere"}, "scored on dataset elsewhere"),
        ({"per_class": fewer}, "images or labels differ"),
    ):
        other.write_scores("test", {**content, **change})
        with pytest.raises(RunError, match=message):
            compare(run.folder, other.folder, out=out)
    (other.folder / "scores" / "test.json").write_bytes(b"\xff")
    with pytest.raises(RunError, match=r"b/scores/test\.json: no valid JSON"):
        compare(run.folder, other.folder, out=out)
    assert not out.exists()


def test_somebody_elses_files_are_not_replaced(make_run, tmp_path):
    run = make_run("a", network())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "comparison.md").write_text("mine")
    with pytest.raises(RunError, match=r"comparison\.md: is there already, and nothing says that this command wrote it"):
        compare(run.folder, out=tmp_path / "out")
    assert (tmp_path / "out" / "comparison.md").read_text() == "mine"


def test_the_report_is_of_the_dataset_that_was_scored(make_run, tmp_path):
    run = make_run("a", network())
    scores = run.read_scores("test")
    made_from = {"data_sha256": make_dataset().fingerprint("test"), "weights_sha256": "a" * 64}
    run.write_scores("test", {**scores, "made_from": made_from})
    run.report.write_text("there")
    with pytest.raises(RunError, match="of other images, labels or voxel sizes than those of the dataset toy"):
        compare(run.folder, out=tmp_path / "out", report=make_dataset(offset=1))
    assert run.report.read_text() == "there"
    assert not (tmp_path / "out").exists()
    compare(run.folder, out=tmp_path / "out", report=make_dataset())


def test_other_images_under_the_same_labels_are_noted(make_run, tmp_path):
    runs = [make_run("raw", network()), make_run("denoised", network("fpn"), dataset=make_dataset(offset=1))]
    with pytest.warns(UserWarning, match=r"denoised was scored on other data than .*raw: pixels of test in test"):
        compare(*(run.folder for run in runs), out=tmp_path / "out")


def make_stack(seed, right):
    """Scores of 30 slices of which a share of pixels is right, with labels that are the same for every seed."""
    truth = np.random.default_rng(0).integers(0, 2, (30, 8, 8))
    kept = np.random.default_rng(seed).random(truth.shape) < right
    predicted = np.where(kept, truth, 1 - truth)
    slices = [(f"s/{z:04d}", *pair) for z, pair in enumerate(zip(truth, predicted, strict=True))]
    return score_images("toy", "test", CLASSES, slices)


def test_methods_are_compared_with_the_best_on_the_same_slices(make_run, tmp_path):
    runs = [make_run("good0", network()), make_run("good1", network(seed=1)), make_run("bad", network("fpn"))]
    runs.append(make_run("near", network("linknet")))
    for run, (seed, right) in zip(runs, ((1, 0.9), (2, 0.9), (3, 0.6), (4, 0.89)), strict=True):
        run.write_scores("test", make_stack(seed, right))
    written = compare(*(run.folder for run in runs), out=tmp_path / "out", interval={"resamples": 400})
    content = json.loads(written[1].read_text())
    good, bad, near = ("unet, resnet18", "fpn, resnet18", "linknet, resnet18")
    assert content["best"] == good
    assert content["interval"]["resamples"] == 400
    assert [rank["name"] for rank in content["ranks"]] == [good, near, bad]
    assert content["ranks"][2]["low"] == content["ranks"][2]["high"] == 3
    assert content["ranks"][2]["share_first"] == 0
    behind = {one["method"]: one for one in content["differences"]}
    means = {one["method"]: one["macro"]["f1"] for one in content["methods"]}
    for name, one in behind.items():
        assert one["effect"] == pytest.approx(means[name]["mean"] - means[good]["mean"])
        assert one["low"] < one["effect"] < one["high"]
        assert means[name]["interval"][0] < means[name]["mean"] < means[name]["interval"][1]
    assert behind[bad]["p_corrected"] == pytest.approx(2 * behind[bad]["p"])
    assert behind[bad]["high"] < 0
    assert behind[near]["p_corrected"] > 0.05
    table = written[2].read_text()
    assert f"| 3 | {bad} | {behind[bad]['effect']:+.3f} [{behind[bad]['low']:+.3f}, {behind[bad]['high']:+.3f}] |" in table
    assert "by Holm for 2 comparisons" in table


def test_bars_are_means_with_their_intervals():
    runs = {"seeds": [make_stack(1, 0.9), make_stack(2, 0.8)], "one": [make_stack(3, 0.7)]}
    figure = plot_methods(runs)
    drawn = [line.get_segments()[0][:, 1].tolist() for line in figure.axes[0].collections]
    for number, key in enumerate(("precision", "recall", "f1")):
        found = [estimate(scores, f"macro.{key}") for scores in runs.values()]
        assert [drawn[number], drawn[3 + number]] == [[one.low, one.high] for one in found]
    assert "slices and seeds" in figure.axes[0].get_xlabel()
    assert summarise([0.2, 0.6]) == (pytest.approx(0.4), (0.2, 0.6))
    assert summarise([0.2]) == (0.2, None)
    assert summarise([None, None]) == (None, None)
