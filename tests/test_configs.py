"""Every YAML that ships trains for two steps, and says what the founding report did."""

from pathlib import Path

import pytest
import yaml

import neurotome
from conftest import run, write_dataset

CONFIGS = sorted((Path(neurotome.__file__).parent / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_config_trains_for_two_steps(config, tmp_path, monkeypatch):
    # what every configuration shares is tested elsewhere, and takes most of the time
    monkeypatch.setattr("neurotome.models.net.measure_halo", lambda *_: (64, True))
    monkeypatch.setattr("neurotome.experiments.evaluate.build_report", lambda run, *_: run.report)
    write_dataset(tmp_path / "data")
    small = ["--model.encoder-weights", "none", "--sample.patch", "32", "--sample.batch", "2"]
    short = ["--train.epochs", "1", "--train.steps-per-epoch", "2", "--train.device", "cpu"]
    short += ["--train.replay", "0"]  # synthetic tissue has other classes than this data
    out = tmp_path / "run"
    assert run("train", tmp_path / "data", "--out", out, "--config", config, *small, *short) == 0
    kept, asked = yaml.safe_load((out / "config.yaml").read_text()), yaml.safe_load(config.read_text())
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
