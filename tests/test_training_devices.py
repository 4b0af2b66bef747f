"""A training with two processes on the CPU is that of one: the same batches, and the same weights but for rounding."""

import contextlib
import copy
import dataclasses
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import build, make_dataset
from neurotome.augment import AugmentSettings, augment
from neurotome.classes import ClassSet
from neurotome.cli import make_app
from neurotome.datasets.base import CutoutSource
from neurotome.errors import SettingsError, TrainingError
from neurotome.experiments.run_network import train_and_score
from neurotome.losses import NAMES, LossSettings, build_loss, weigh_rehearsal
from neurotome.models.networks import ModelSettings
from neurotome.normalize import Normalization
from neurotome.runs import Run
from neurotome.stopping import TerminatedError
from neurotome.training.across import ShareStatistics, add_up
from neurotome.training.checkpoints import list_checkpoints
from neurotome.training.machine import choose_devices
from neurotome.training.prepare import settle_recipe
from neurotome.training.rank import Rank
from neurotome.training.recipe import Recipe, TrainSettings
from neurotome.training.sampler import PatchSampler, SampleSettings

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a training has one device there")

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


def make_recipe(devices):
    model = ModelSettings("linknet", "mobilenetv3_small_050", encoder_depth=3)
    return Recipe(model, SampleSettings(patch=32, batch=4), train=dataclasses.replace(SETTINGS, devices=devices))


def start(folder, devices, on_epoch=None):
    return train_and_score(make_dataset(slices=2), "toy", folder, make_recipe(devices), ("val",), on_epoch=on_epoch)


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
    first = build(make_dataset(slices=2), make_recipe(1)).net.state_dict()
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


class ThreadRank(Rank):
    """One of two ranks that are threads, and leave for each other what is to be added up."""

    def __init__(self, number, barrier, left):
        super().__init__(number, 2)
        self.barrier, self.left = barrier, left

    def reduce(self, values):
        self.left[self.number] = values.clone()
        self.barrier.wait(60)
        values.copy_(self.left[0] + self.left[1])
        self.barrier.wait(60)
        return values


def do_with_two(work):
    """Returns what `work` returns for each of two ranks."""
    barrier, left = threading.Barrier(2), [None, None]
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(lambda number: work(ThreadRank(number, barrier, left)), range(2)))


def make_batch():
    """Logits and labels of four images, of which the first half is labelled much less than the second."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (4, 8, 8), generator=generator)
    labels[0], labels[1, :6], labels[2, 0] = 255, 255, 255
    labels[:2][labels[:2] == 2] = 0
    return torch.randn(4, 3, 8, 8, generator=generator), labels


@pytest.mark.parametrize("own", [None, 1, 3])
@pytest.mark.parametrize("terms", [*NAMES, "focal + 0.5*dice"])
def test_the_loss_of_two_parts_is_that_of_the_batch_and_so_is_its_gradient(terms, own):
    logits, labels = make_batch()
    settings, classes, counts = LossSettings(terms), ClassSet(("a", "b", "c")), np.ones(3, np.int64)

    def differentiate(loss, logits, labels, own):
        if own is not None:
            loss = weigh_rehearsal(loss, own, 0.5, [1])
        logits = logits.clone().requires_grad_()
        value = loss(logits, labels)
        value.backward()
        return value.item(), logits.grad

    def work(rank):
        rows = slice(2 * rank.number, 2 * rank.number + 2)
        loss = build_loss(settings, classes, counts, partial(add_up, rank))
        here = None if own is None else len(range(own)[rows])
        return differentiate(loss, logits[rows], labels[rows], here)

    expected, gradient = differentiate(build_loss(settings, classes, counts), logits, labels, own)
    (first, one), (second, other) = do_with_two(work)
    assert first == second == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(torch.cat((one, other)) / 2, gradient, rtol=1e-5, atol=1e-9)  # which are averaged over ranks


@pytest.mark.parametrize("affine", [True, False])
def test_batch_normalisation_of_two_parts_is_that_of_the_batch(affine):
    """torch's own layer on the whole batch is the reference, in float64."""
    images = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 7
    images[:2] += 5
    net = torch.nn.Sequential(
        torch.nn.BatchNorm2d(3, affine=affine),
        torch.nn.Conv2d(3, 2, 3),
        torch.nn.BatchNorm2d(2, affine=affine, track_running_stats=False),
        torch.nn.Sigmoid(),
        torch.nn.BatchNorm2d(2).eval(),  # frozen
    ).double()

    def run_net(net, images, *within):
        net, images = copy.deepcopy(net), images.clone().requires_grad_()
        with contextlib.ExitStack() as stack:
            for context in within:
                stack.enter_context(context)
            made = net(images)
        (made**3).sum().backward()
        return made.detach(), images.grad, [p.grad for p in net.parameters()], net.state_dict()

    def work(rank):
        return run_net(net, images[2 * rank.number : 2 * rank.number + 2], ShareStatistics(rank))

    made, gradient, slopes, state = run_net(net, images)
    one, other = do_with_two(work)
    torch.testing.assert_close(torch.cat((one[0], other[0])), made)
    torch.testing.assert_close(torch.cat((one[1], other[1])), gradient)
    for first, second, expected in zip(one[2], other[2], slopes, strict=True):
        torch.testing.assert_close(first + second, expected)
    for key, value in state.items():
        torch.testing.assert_close(one[3][key], value)
        assert torch.equal(one[3][key], other[3][key])


def test_validation_counts_every_slice_once_whoever_predicts_it(monkeypatch):
    monkeypatch.setattr("neurotome.models.net.measure_halo", lambda *_: (64, True))
    monkeypatch.setattr("neurotome.training.module.TOGETHER", {"cpu": 0})  # three slices for two: one is left over
    checks = []

    modules = [build(make_dataset(slices=2), make_recipe(1)) for _ in range(3)]

    def validate(rank):
        module = modules[rank.number + rank.count - 1]
        module.rank = rank
        module.trainer = SimpleNamespace(precision_plugin=SimpleNamespace(val_step_context=contextlib.nullcontext))
        return module.validate(lambda: checks.append(rank.count))

    counts, loss = validate(Rank())
    found = do_with_two(validate)
    for all_counts, all_loss in found:
        np.testing.assert_array_equal(all_counts, counts)
        assert all_loss == pytest.approx(loss, rel=1e-9)
    assert counts.sum() == 3 * 45 * 64  # three rows of each slice are not labelled
    assert sorted(checks) == [1] * 3 + [2] * 4


def test_a_part_of_a_batch_is_augmented_as_in_the_whole():
    images = torch.rand(6, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 3, (6, 16, 16), dtype=torch.uint8)
    settings = AugmentSettings(
        elastic_probability=0.3, elastic_spacing=8, elastic_pixels=1, blur=1.0, rotate_probability=0.3
    )
    for seed in range(12):
        whole = augment(images, labels, settings, 255, torch.Generator().manual_seed(seed))
        for first in range(0, 6, 2):
            rows = slice(first, first + 2)
            part = augment(images[rows], labels[rows], settings, 255, torch.Generator().manual_seed(seed), first, 6)
            for found, expected in zip(part, whole, strict=True):
                torch.testing.assert_close(found, expected[rows], rtol=0, atol=1e-6)


def test_parts_of_a_batch_are_drawn_as_the_whole():
    dataset = make_dataset()
    replay = (CutoutSource(make_dataset(slices=2).split("val")), 0.4)
    settings = dataset, SampleSettings(patch=16, batch=6), Normalization("image", 0.0, 1.0, "uint8"), 1, 0, replay
    whole, parts = PatchSampler(*settings), [PatchSampler(*settings, part=(number, 3)) for number in range(3)]
    assert [part.own_here for part in parts] == [2, 2, 0]
    assert whole.own_here == whole.own == 4
    for step in (0, 5):
        drawn = [part.draw(step) for part in parts]
        for found, expected in zip(zip(*drawn, strict=True), whole.draw(step), strict=True):
            np.testing.assert_array_equal(np.concatenate(found), expected)


@pytest.mark.parametrize(
    ("train", "sample", "message"),
    [
        ({"devices": 3}, {}, r"devices is 3, but sample\.batch is 4, .* Use --train\.devices 1, 2, 4, or a --sample\.batch"),
        ({"devices": 8}, {"batch": 8}, r"devices is 8, but this machine has 4 CPU cores .* Use --train\.devices 4 or auto"),
        ({"devices": 2}, {"order": "sequential"}, r"devices is 2, but sample\.order is sequential"),
        ({"devices": 2, "compile": "on"}, {}, r"devices is 2, but train\.compile is on"),
        ({"devices": 0}, {}, r"train\.devices is 0; out of range"),
    ],
)
def test_impossible_devices_are_refused_before_anything_is_made(monkeypatch, train, sample, message):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    recipe = Recipe(
        sample=SampleSettings(**{"patch": 32, "batch": 4, **sample}), train=TrainSettings(**{"device": "cpu", **train})
    )
    with pytest.raises(SettingsError, match=message):
        settle_recipe(make_dataset(), recipe)


def test_devices_are_chosen_by_what_is_there(monkeypatch):
    def choose(batch, **train):
        return choose_devices(TrainSettings(**train), SampleSettings(patch=32, batch=batch), 2)

    assert choose(64, device="cpu") == 1
    monkeypatch.setattr("neurotome.models.net.choose_device", lambda name: "cuda" if name == "auto" else name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 6)
    assert [choose(batch) for batch in (8, 16, 64, 96)] == [1, 2, 4, 6]
    assert choose(64, device="cuda:1") == 1
    assert choose(6, devices=6) == 6
    with pytest.raises(SettingsError, match=r"devices is 2, but this machine has one device cuda:1 to train on"):
        choose(64, device="cuda:1", devices=2)
    with pytest.raises(SettingsError, match=r"devices is 8, but this machine has 6 GPUs"):
        choose(64, devices=8)


@pytest.mark.parametrize(("status", "is_requeued"), [(0, False), (1, False), (143, True)])
def test_the_slurm_script_goes_on_where_it_was_warned_and_nowhere_else(tmp_path, status, is_requeued):
    page = (Path(__file__).resolve().parents[1] / "docs/cluster.md").read_text()
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", page, re.DOTALL)
    for name, does in {"srun": f'printf "%s\\n" "$@" > asked; exit {status}', "scontrol": 'echo "$@" > requeued'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "16", "SLURM_JOB_ID": "7"}
    assert subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, check=False).returncode == status
    assert (tmp_path / "requeued").exists() == is_requeued
    if is_requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    cores, program, *command = (tmp_path / "asked").read_text().split()
    assert (cores, program) == ("--cpus-per-task=16", "neurotome")
    recipe = make_app().parse_args(command)[1].arguments["recipe"]
    assert (recipe.train.devices, recipe.sample.batch) == (4, 64)
