"""Every YAML that ships trains for two steps, and says what the founding report did."""

from pathlib import Path

import pytest
import yaml

import neurotome
from conftest import run, write_dataset
from neurotome.datasets.phantom.make import CLASSES
from neurotome.experiments.grids.plan import read_grid

FILES = sorted((Path(neurotome.__file__).parent / "configs").rglob("*.yaml"))
CONFIGS = [path for path in FILES if path.stem != "grid"]  # a grid is many runs


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_config_trains_for_two_steps(config, tmp_path, monkeypatch):
    # what every configuration shares is tested elsewhere, and takes most of the time
    monkeypatch.setattr("neurotome.models.net.measure_halo", lambda *_: (64, True))
    monkeypatch.setattr("neurotome.experiments.evaluate.build_report", lambda run, *_: run.report)
    asked = yaml.safe_load(config.read_text())
    init = asked.pop("init", "")
    write_dataset(tmp_path / "data", CLASSES if init else ("background", "vessel", "cell"))
    small = ["--model.encoder-weights", "none", "--sample.patch", "32", "--sample.batch", "2"]
    short = ["--train.epochs", "1", "--train.steps-per-epoch", "2", "--train.device", "cpu"]
    short += ["--train.replay", "0"]  # synthetic tissue has other classes than this data
    out = tmp_path / "run"
    assert run("train", tmp_path / "data", "--out", out, "--config", config, *small, *short) == 0
    kept = yaml.safe_load((out / "config.yaml").read_text())
    assert kept["init"] == init
    for section, values in asked.items():
        for key, value in values.items():
            if f"--{section}.{key}".replace("_", "-") not in (*small, *short):
                assert kept[section][key] == value, (section, key)


def test_the_founding_report_trains_as_listed():
    (path,) = [path for path in CONFIGS if path.name == "as_reported.yaml"]
    asked = yaml.safe_load(path.read_text())
    train = asked["train"]
    assert (train["average"], train["clip"], train["weight_decay"], train["warmup"]) == (0, 0, 0, 0)
    assert (train["keep"], train["normalization"], asked["augment"]["fill"]) == ("last", "range", 0)
    assert asked["sample"]["order"] == "sequential"
    assert -(-1076 // asked["sample"]["batch"]) * train["epochs"] == 1700  # the step in the name of its checkpoint


def test_the_grid_holds_every_setting_of_the_reports_tables():
    plan = read_grid("founding_report/grid")
    always = {run.method for run in plan.runs if run.optional == 0}
    nets = [f"{decoder}-resnet{size}" for decoder in ("unet", "linknet") for size in (18, 34, 50)]
    reported = {f"{net}-focal-lr3e-2" for net in nets}
    reported |= {f"{decoder}-resnet18-ce-lr{rate}e-2" for decoder in ("unet", "linknet") for rate in (3, 5)}
    expected = {f"as-reported/{label}" for label in reported} | {f"ours/{net}" for net in nets}
    assert always == expected | {"pixels/lr", "pixels/rf", "pixels/gbdt"}
    runs = {run.name: run for run in plan.runs}
    table_7 = runs.pop("as-reported/linknet-resnet18-focal-lr3e-2/seed-0")
    assert table_7.splits == ("train", "val", "test")
    assert {run.splits for run in runs.values()} == {("val", "test")}
    weighted = runs["as-reported/unet-resnet18-wce-lr3e-2/seed-0"].build()
    assert weighted.loss.class_weights == (0.1, 0.3, 0.3, 0.2)
    assert (weighted.train.keep, weighted.train.normalization, weighted.sample.batch) == ("last", "range", 64)
    assert {run.seed for run in plan.runs if run.optional < 4} == {0}
