"""A training with two processes on the CPU is the training of one: the same batches, and the same weights but for rounding."""

import dataclasses
import multiprocessing
import os
import signal
import sys

import numpy as np
import pytest
import torch

from conftest import TINY, build, make_dataset, run, write_dataset
from neurotome.augment import AugmentSettings, augment
from neurotome.datasets.base import CutoutSource
from neurotome.errors import SettingsError, TrainingError
from neurotome.experiments.run_network import train_and_score
from neurotome.losses import NAMES, LossSettings, build_loss, weigh_rehearsal
from neurotome.models.networks import ModelSettings
from neurotome.normalize import Normalization
from neurotome.runs import Run
from neurotome.stopping import TerminatedError
from neurotome.training.across import ShareStatistics
from neurotome.training.checkpoints import list_checkpoints
from neurotome.training.prepare import settle_recipe
from neurotome.training.rank import Rank
from neurotome.training.recipe import Recipe, TrainSettings
from neurotome.training.sampler import PatchSampler, SampleSettings

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a training has one device there")

TWO = dataclasses.replace
SETTINGS = TrainSettings(
    epochs=2,
    steps_per_epoch=3,
    device="cpu",
    devices=1,
    # whose steps follow the gradient; those of Adam are as long where it is nothing but rounding
    optimizer="sgd",
    learning_rate=0.003,
    warmup=0.0,
    val_slices=3,
    checkpoint_every="0.000001s",
)


def start(folder, devices, on_epoch=None):
    recipe = Recipe(
        ModelSettings("linknet", "mobilenetv3_small_050", encoder_depth=3),
        SampleSettings(patch=32, batch=4),
        train=dataclasses.replace(SETTINGS, devices=devices),
    )
    return train_and_score(make_dataset(slices=2), "toy", folder, recipe, ("val",), on_epoch=on_epoch)


def load_weights(folder):
    return torch.load(list_checkpoints(folder / "checkpoints")[0], weights_only=True)["state_dict"]


def signal_helper(number, epoch):
    """Returns what sends a signal to the only helper when an epoch is done."""

    def send(row, _):
        if row["epoch"] == epoch:
            (helper,) = [process for process in multiprocessing.active_children() if process.name == "rank-1"]
            os.kill(helper.pid, number)

    return send


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neurotome.models.net.measure_halo", lambda *_: (64, True))
        start(tmp_path_factory.mktemp("alone") / "run", 1)
    return next(tmp_path_factory.getbasetemp().glob("alone*")) / "run"


def assert_close(folder, other):
    """All weights and statistics, which have moved by more, and the scores are the same but for rounding."""
    found, expected = load_weights(folder), load_weights(other)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5, msg=key)
    rows, others = (Run(path).read_metrics() for path in (folder, other))
    assert [row["step"] for row in rows] == [row["step"] for row in others] == [3, 6]
    for row, known in zip(rows, others, strict=True):
        assert row["train_loss"] == pytest.approx(known["train_loss"], rel=1e-5)
        assert row["val_loss"] == pytest.approx(known["val_loss"], rel=1e-4)
        assert row["val_macro_f1"] == pytest.approx(known["val_macro_f1"], abs=2e-3)


@pytest.mark.slow
def test_two_processes_come_to_the_weights_of_one(tmp_path, alone, monkeypatch, capfd):
    monkeypatch.setattr("neurotome.models.net.measure_halo", lambda *_: (64, True))
    start(tmp_path / "two", 2)
    said = capfd.readouterr().err
    assert "training on cpu, 2 processes, " in said
    assert said.count("training: done") == 1
    assert_close(tmp_path / "two", alone)
    first = {key: value for key, value in build(make_dataset(slices=2), Recipe(
        ModelSettings("linknet", "mobilenetv3_small_050", encoder_depth=3), SampleSettings(patch=32, batch=4), train=SETTINGS
    )).net.state_dict().items()}
    moved = [(load_weights(alone)[f"net.{key}"] - value).abs().max().item() for key, value in first.items()]
    assert np.median(moved) > 1e-4
    assert not multiprocessing.active_children()

    # a process that dies ends the other one, and the same command goes on to the same weights
    message = r"device 1 of this training has failed: its process was killed by signal 9 .*The same command goes on"
    with pytest.raises(TrainingError, match=message):
        start(tmp_path / "killed", 2, signal_helper(signal.SIGKILL, 0))
    assert not multiprocessing.active_children()
    start(tmp_path / "killed", 2)
    found, expected = load_weights(tmp_path / "killed"), load_weights(tmp_path / "two")
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.slow
def test_one_process_goes_on_in_two_and_the_reverse_and_a_warning_to_any_is_heard(tmp_path, alone, monkeypatch):
    monkeypatch.setattr("neurotome.models.net.measure_halo", lambda *_: (64, True))

    def stop(row, _):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "run", 1, stop)
    hear = signal_helper(signal.SIGTERM, 0)
    monkeypatch.setattr(
        "neurotome.training.keeper.Keeper.describe", lambda keeper: hear({"epoch": 0 if keeper.module.step == 4 else 1}, 0)
    )
    with pytest.raises(TerminatedError):
        start(tmp_path / "run", 2)
    assert torch.load(list_checkpoints(tmp_path / "run" / "checkpoints")[0], weights_only=True)["step"] in (4, 5)
    start(tmp_path / "run", 1)
    assert_close(tmp_path / "run", alone)
