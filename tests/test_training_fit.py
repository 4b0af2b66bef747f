import contextlib
import csv
import dataclasses
import json
import math
import re
import tempfile
import threading
from functools import partial

import numpy as np
import pytest
import torch

from conftest import QUICK, build, make_dataset, run, write_dataset
from neurotome.augment import AugmentSettings
from neurotome.datasets.base import Cutout, CutoutSource
from neurotome.errors import DatasetError, SettingsError, TrainingError
from neurotome.losses import LossSettings
from neurotome.models.model_folder import load_model
from neurotome.models.networks import ModelSettings
from neurotome.runs import Run
from neurotome.training import batches, keeper, machine
from neurotome.training import fit as fitting
from neurotome.training import module as training
from neurotome.training import prepare as preparing
from neurotome.training.average import MovingAverage
from neurotome.training.batches import BatchMaker
from neurotome.training.checkpoints import list_checkpoints
from neurotome.training.rank import Rank
from neurotome.training.recipe import Recipe, TrainSettings, parse_duration
from neurotome.training.recorded import record_step
from neurotome.training.sampler import SampleSettings
from neurotome.volume import Volume

ENCODER = "mobilenetv3_small_050"
SMALL = {
    "model": ModelSettings("linknet", ENCODER, encoder_depth=3),
    "sample": SampleSettings(patch=32, batch=4),
    "augment": AugmentSettings(),
}


@pytest.fixture(autouse=True)
def _no_halo(monkeypatch):
    """How far a network sees takes longer to measure than these trainings, and matters to predicting alone."""
    monkeypatch.setattr("neurotome.models.net.measure_halo", lambda *_: (64, True))


def run_fit(dataset, run, **settings):
    fitting.fit(build(dataset, Recipe(**settings)), Run(run))


def read_rows(run):
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


class KilledError(Exception):
    """Stands for a process that ends without warning."""


def strip(run):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read_rows(run)]


def load_newest(run):
    return torch.load(list_checkpoints(run / "checkpoints")[0], weights_only=True, map_location="cpu")


def assert_same_training(run, other):
    """All that training has come to is the same bit by bit: rows, weights, their average, the optimiser's memory."""
    assert strip(run) == strip(other)
    kept, expected = (load_newest(folder) for folder in (run, other))
    assert kept["state_dict"].keys() == expected["state_dict"].keys()
    for key, value in expected["state_dict"].items():
        assert torch.equal(kept["state_dict"][key], value), key
    moments = [
        [state[name] for _, state in sorted(checkpoint["optimizer"]["state"].items()) for name in sorted(state)]
        for checkpoint in (kept, expected)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))
    digests = [json.loads((folder / "model" / "model.json").read_text())["weights_sha256"] for folder in (run, other)]
    assert digests[0] == digests[1]


def test_too_little_memory_for_a_step_says_what_takes_less(tmp_path, monkeypatch, capsys):
    # torch itself says it, as a RuntimeError
    monkeypatch.setattr(training.SegmentationModule, "training_step", lambda *_: torch.empty(1 << 55))
    assert run("train", write_dataset(tmp_path / "data"), "--out", tmp_path / "run", *QUICK) == 1
    assert re.search(r"neurotome: out of memory\. Use a smaller --sample\.batch", capsys.readouterr().err)


def test_no_temporary_folder_is_needed(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    run_fit(make_dataset(), tmp_path / "run", train=TrainSettings(epochs=1, steps_per_epoch=1, device="cpu"), **SMALL)
    assert Run(tmp_path / "run").is_finished


def test_the_average_of_the_weights_warms_up():
    net = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.BatchNorm1d(1))
    average = MovingAverage(net, 0.4)
    # the first is taken; then decays 2/11, 3/12, 4/13, 5/14, and from 6/15 on the limit
    expected, decays = 1.0, (2 / 11, 3 / 12, 4 / 13, 5 / 14, 0.4, 0.4)
    for number, decay in enumerate((0.0, *decays), 1):
        net[0].weight.data.fill_(number)
        net[1].num_batches_tracked.fill_(number)
        average.follow(number)
        expected = decay * expected + (1 - decay) * number
        assert average.module[0].weight.item() == pytest.approx(expected, rel=1e-6)
        assert average.module[1].num_batches_tracked.item() == number


@pytest.mark.parametrize("choice", ["data_on_device", "compile"])
def test_how_the_machine_is_used_changes_nothing_but_the_speed(tmp_path, monkeypatch, capsys, choice):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # others need a compiler, and a minute
    settings = TrainSettings(epochs=1, steps_per_epoch=2, device="cpu")
    for name, answer in (("plain", "off"), ("other", "on")):
        run_fit(make_dataset(), tmp_path / name, train=dataclasses.replace(settings, **{choice: answer}), **SMALL)
    assert_same_training(tmp_path / "plain", tmp_path / "other")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training on cpu, ")]
    assert ["on the device" in line for line in said] == [False, choice == "data_on_device"]
    assert ["not compiled" in line for line in said] == [True, choice != "compile"]


def record(step, batch, allow_unused_input):
    """Does on a CPU what torch does on a GPU: tries the step, and returns one that writes where it wrote before."""
    for _ in range(3):
        step(*batch).backward()
        step.zero_grad()
    written = torch.empty(())

    class Overwritten(torch.autograd.Function):
        @staticmethod
        def forward(context, loss):
            return written.copy_(loss).detach()

        @staticmethod
        def backward(context, gradient):
            return gradient

    return lambda *batch: Overwritten.apply(step(*batch))


@pytest.mark.parametrize("order", ["random", "sequential"])
def test_recorded_steps_train_as_others_do(tmp_path, monkeypatch, order):
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    small = {**SMALL, "sample": SampleSettings(patch=32, batch=3, order=order)}  # of 8 tiles, so that a third batch has 2
    settings = TrainSettings(epochs=2, steps_per_epoch=3, device="cpu")
    run_fit(make_dataset(), tmp_path / "plain", train=settings, **small)
    monkeypatch.setattr(machine, "choose_recorded", lambda *_: True)
    run_fit(make_dataset(), tmp_path / "recorded", train=settings, **small)
    assert_same_training(tmp_path / "plain", tmp_path / "recorded")


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@needs_gpu
def test_steps_that_a_gpu_repeats_train_as_those_it_is_given_one_by_one(tmp_path):
    small = {**SMALL, "model": ModelSettings("unet", "resnet18"), "sample": SampleSettings(patch=32, batch=8)}
    settings = TrainSettings(epochs=2, steps_per_epoch=3, device="cuda", deterministic=True)
    for choice in ("off", "on"):
        run_fit(make_dataset(), tmp_path / choice, train=dataclasses.replace(settings, cuda_graph=choice), **small)
    assert_same_training(tmp_path / "off", tmp_path / "on")


@needs_gpu
@pytest.mark.parametrize("is_resident", [False, True])
def test_batches_that_a_gpu_makes_ahead_are_those_made_in_place(is_resident):
    module = build(make_dataset(), Recipe(train=TrainSettings(device="cuda"), **SMALL))
    maker = BatchMaker(module.sampler, AugmentSettings(), 0, Rank(), torch.device("cuda", 0), is_resident)
    for step, batch in enumerate(maker.make_ahead(0, 8)):
        expected = maker._augment(maker._draw(step), step)
        assert all(torch.equal(made, wanted) for made, wanted in zip(batch, expected, strict=True))


def test_steps_that_cannot_be_recorded_are_launched_one_by_one_unless_recording_was_asked_for(monkeypatch):
    def fail(*_, **__):
        net(*batch)
        raise RuntimeError("operation not permitted when stream is capturing")

    net, batch = torch.nn.BatchNorm1d(1), (torch.arange(4.0)[:, None],)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fail)
    arguments = net, lambda images, labels: net(images).sum(), *batch, torch.zeros(4)
    with pytest.raises(SettingsError, match=r"cuda_graph is on, but .* not permitted .*Use --train.cuda-graph off"):
        record_step(*arguments, is_asked=True)
    net.reset_running_stats()
    with pytest.warns(UserWarning, match="cannot be recorded .*launched one by one"):
        assert record_step(*arguments, is_asked=False) is arguments[1]
    assert (net.running_mean.item(), net.num_batches_tracked.item()) == (0, 0)


def test_steps_are_recorded_on_one_gpu_alone():
    choose = machine.choose_recorded
    alone, shared = TrainSettings(devices=1), TrainSettings(devices=2)
    assert choose(alone, "cuda:1")
    assert not choose(alone, "cpu")
    assert not choose(shared, "cuda")
    assert not choose(TrainSettings(devices=1, cuda_graph="off"), "cuda")
    for settings, device, found in ((alone, "cpu", "the device is cpu"), (shared, "cuda", "2 processes train together")):
        with pytest.raises(SettingsError, match=f"cuda_graph is on, but {found};.*--train.cuda-graph auto"):
            choose(dataclasses.replace(settings, cuda_graph="on"), device)


def test_slices_that_are_validated_together_score_as_one_by_one(tmp_path, monkeypatch):
    dataset = make_dataset()
    flat = dataset.split("val")
    high = Cutout(dataclasses.replace(flat[0].volume, data=flat[0].volume.data.mT), flat[0].labels.mT)
    dataset = dataclasses.replace(dataset, splits={**dataset.splits, "val": (*flat, high, *flat)})
    settings, shapes, original = TrainSettings(epochs=1, steps_per_epoch=2, device="cpu"), [], training.predict_slice
    monkeypatch.setattr(training, "predict_slice", lambda net, images: shapes.append(images.shape) or original(net, images))
    for name, pixels in (("together", 3 * 48 * 64 - 1), ("alone", 0)):
        monkeypatch.setattr(training, "TOGETHER", {"cpu": pixels})
        run_fit(dataset, tmp_path / name, train=settings, **SMALL)
    assert [count for count, *_ in shapes] == [2, 1, 2] + [1] * 5
    rows = [{key: float(value) for key, value in strip(tmp_path / name)[0].items()} for name in ("together", "alone")]
    assert rows[0] == pytest.approx(rows[1], abs=1e-5)


def test_a_gpu_compiles_for_long_trainings_and_holds_what_leaves_it_room(monkeypatch):
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 2000))
    sampler = build(make_dataset(), Recipe(train=TrainSettings(device="cpu"), **SMALL)).sampler
    long = TrainSettings(epochs=50, steps_per_epoch=100)
    short = (dataclasses.replace(long, epochs=49), dataclasses.replace(long, max_time="19m"))
    assert machine.choose_compile(long, "cuda:1", 64 * 256**2)
    assert not machine.choose_compile(long, "cpu", 64 * 256**2)
    assert not any(machine.choose_compile(settings, "cuda", 64 * 256**2) for settings in short)
    longer = dataclasses.replace(long, epochs=134)  # 13,400 steps with 24 patches are as many patches as 5025 with 64
    assert [machine.choose_compile(longer, "cuda", patches * 256**2) for patches in (23, 24)] == [False, True]
    assert not machine.choose_compile(dataclasses.replace(long, epochs=133), "cuda", 24 * 256**2)
    assert machine.choose_resident(long, sampler, "cuda", 250)
    assert not machine.choose_resident(long, sampler, "cuda", 251)
    assert not machine.choose_resident(long, sampler, "cpu", 1)
    sampler.is_changing = True
    assert not machine.choose_resident(long, sampler, "cuda", 1)


def test_a_network_that_cannot_be_compiled_is_trained_as_it_is_unless_compiling_was_asked_for(monkeypatch):
    def fail(*_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fail))
    net, images = torch.nn.Conv2d(1, 2, 3), torch.ones(1, 1, 8, 8)
    with pytest.raises(
        SettingsError, match=r"compile is on, but .* cannot be compiled .*no compiler.* Use --train.compile off"
    ):
        machine.compile_forward(net, True)(images)
    forward = machine.compile_forward(net, False)
    with pytest.warns(UserWarning, match="cannot be compiled on this machine .*it is trained as it is"):
        assert torch.equal(forward(images), net(images))
    assert torch.equal(forward(images), net(images))  # without another warning


def test_images_that_change_cannot_stay_on_the_device():
    dataset = dataclasses.replace(make_dataset(), source=CutoutSource(make_dataset().split("train")))
    with pytest.raises(SettingsError, match=r"data_on_device is on, but the images of toy change .* Use auto or off"):
        build(dataset, Recipe(train=TrainSettings(device="cpu", data_on_device="on"), **SMALL))


@pytest.mark.slow
def test_it_learns_and_keeps_the_best(tmp_path):
    settings = TrainSettings(epochs=3, steps_per_epoch=12, device="cpu", learning_rate=5e-3)
    run_fit(make_dataset(), tmp_path / "run", train=settings, **SMALL)
    rows = read_rows(tmp_path / "run")
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2]
    assert [int(row["step"]) for row in rows] == [12, 24, 36]
    best = max(float(row["val_macro_f1"]) for row in rows)
    assert best > 0.9
    summary = json.loads((tmp_path / "run" / "training.json").read_text())
    assert summary["finished"]
    assert summary["best_val_macro_f1"] == pytest.approx(best)
    assert summary["peak_memory_bytes"] > 1e8
    assert {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()} == {"step-36.ckpt"}

    # what is saved scores what was recorded
    predictor = load_model(tmp_path / "run")
    assert predictor.facts["val_macro_f1"] == pytest.approx(best)
    dataset = make_dataset()
    from neurotome.inference.slices import predict_slices
    from neurotome.scoring import score_images

    images = [(c.name, c.labels[0], next(predict_slices(predictor, c.volume)).argmax(0)) for c in dataset.split("val")]
    assert score_images("toy", "val", dataset.classes, images)["macro"]["f1"] == pytest.approx(best, abs=1e-9)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    settings = TrainSettings(epochs=3, steps_per_epoch=2, device="cpu")
    broken = preparing.build_loss

    def build_loss(*args):
        criterion, calls = broken(*args), []

        def loss(logits, labels):
            calls.append(1)
            return criterion(logits, labels) * (math.nan if len(calls) > 3 else 1.0)

        return loss

    monkeypatch.setattr(preparing, "build_loss", build_loss)
    with pytest.raises(TrainingError, match=r"loss became nan at step 3.*checkpoint is kept.*learning-rate"):
        run_fit(make_dataset(), tmp_path / "run", train=settings, **SMALL)
    kept = load_newest(tmp_path / "run")
    assert kept["step"] == 2
    assert all(torch.isfinite(v).all() for v in kept["state_dict"].values())


@pytest.mark.parametrize("step", [3, 4, 5])
def test_on_a_gpu_a_loss_that_is_not_finite_is_found_before_anything_is_kept(tmp_path, monkeypatch, step):
    monkeypatch.setattr(training.SegmentationModule, "look_every", 2)
    original = preparing.build_loss

    def build_loss(*args):
        criterion, calls = original(*args), []

        def loss(logits, labels):
            calls.append(1)
            return criterion(logits, labels) * (math.nan if len(calls) == step + 1 else 1.0)

        return loss

    monkeypatch.setattr(preparing, "build_loss", build_loss)
    settings = TrainSettings(epochs=2, steps_per_epoch=3, device="cpu", keep="last")
    with pytest.raises(TrainingError, match=f"loss became nan at step {step}"):
        run_fit(make_dataset(), tmp_path / "run", train=settings, **SMALL)
    assert load_newest(tmp_path / "run")["step"] == 3
    assert all(torch.isfinite(value).all() for value in load_model(tmp_path / "run").net.state_dict().values())
    assert Run(tmp_path / "run").read_training()["median_step_seconds"] > 0


def test_a_loss_that_was_not_read_yet_is_not_shown(tmp_path):
    module = build(make_dataset(), Recipe(train=TrainSettings(epochs=1, steps_per_epoch=1, device="cpu"), **SMALL))
    assert keeper.Keeper(Run(tmp_path), module).describe() == "step 0"


def test_batches_are_drawn_ahead_in_order_and_errors_come_through(monkeypatch):
    module = build(make_dataset(), Recipe(train=TrainSettings(device="cpu"), **SMALL))
    drawn, original = [], module.sampler.draw
    maker = BatchMaker(module.sampler, AugmentSettings(enabled=False), 0, Rank(), torch.device("cpu"), False)

    def draw(step):
        drawn.append((step, threading.current_thread().name))
        if step == 3:
            raise KilledError
        return original(step)

    monkeypatch.setattr(module.sampler, "draw", draw)
    batches = maker.make_ahead(0, 4)
    for step in range(3):
        images, labels = next(batches)
        np.testing.assert_array_equal(images, original(step)[0])
        np.testing.assert_array_equal(labels, original(step)[1])
    with pytest.raises(KilledError):
        next(batches)
    assert [step for step, _ in drawn] == [0, 1, 2, 3]
    assert not [thread for thread in threading.enumerate() if thread.name in {name for _, name in drawn}]


def test_a_single_class_is_refused_before_anything_is_written(tmp_path):
    dataset = make_dataset()
    cutout = dataclasses.replace(dataset.split("train")[0], labels=np.zeros_like(dataset.split("train")[0].labels))
    with pytest.raises(DatasetError, match="all labelled training pixels are of class"):
        build(
            dataclasses.replace(dataset, splits={**dataset.splits, "train": (cutout,)}),
            Recipe(sample=SampleSettings(patch=32)),
        )


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_every_optimizer_and_schedule_trains(tmp_path, optimizer):
    schedule = {"adam": "constant", "adamw": "cosine", "sgd": "one-cycle"}[optimizer]
    settings = TrainSettings(epochs=1, steps_per_epoch=2, optimizer=optimizer, schedule=schedule, device="cpu")
    run_fit(make_dataset(np.float32), tmp_path / "run", train=settings, **SMALL)
    assert math.isfinite(float(read_rows(tmp_path / "run")[0]["train_loss"]))


def test_three_slices_image_normalisation_and_tensorboard(tmp_path):
    settings = TrainSettings(epochs=1, steps_per_epoch=2, normalization="image", tensorboard=True, device="cpu")
    run_fit(
        make_dataset(slices=3),
        tmp_path / "run",
        train=settings,
        **{**SMALL, "model": ModelSettings("linknet", ENCODER, encoder_depth=3, in_channels=3)},
    )
    assert load_model(tmp_path / "run").in_channels == 3
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_the_last_epoch_is_kept_where_it_is_asked_for(tmp_path, monkeypatch):
    falling = iter([0.9, 0.5, 0.4] * 3)
    monkeypatch.setattr(
        training,
        "scores",
        lambda *_: {"macro": {"f1": next(falling)}, "per_class": {n: {"f1": 0.5} for n in ("background", "cell")}},
    )
    kept = {}
    for keep in ("best", "last"):
        settings = TrainSettings(epochs=3, steps_per_epoch=1, device="cpu", keep=keep, average=0.0)
        run_fit(make_dataset(), tmp_path / keep, train=settings, **SMALL)
        checkpoint = load_newest(tmp_path / keep)["state_dict"]
        model = load_model(tmp_path / keep)
        same = [torch.equal(value, checkpoint[f"net.{key}"]) for key, value in model.net.state_dict().items()]
        kept[keep] = (all(same), model.facts["val_macro_f1"])
        assert Run(tmp_path / keep).read_training()["best_val_macro_f1"] == 0.9
    assert kept == {"best": (False, 0.9), "last": (True, 0.4)}

    # the same after a resume, and without a split val
    settings = dataclasses.replace(settings, epochs=2)
    dataset = dataclasses.replace(make_dataset(), splits={"train": make_dataset().split("train")})
    monkeypatch.undo()
    monkeypatch.setattr("neurotome.models.net.measure_halo", lambda *_: (64, True))
    run_fit(dataset, tmp_path / "whole", train=settings, **SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(keeper.Keeper, "save", lambda _: (_ for _ in ()).throw(KilledError()))  # after the model is written
        with contextlib.suppress(KilledError):
            run_fit(dataset, tmp_path / "stopped", train=settings, **SMALL)
    run_fit(dataset, tmp_path / "stopped", train=settings, **SMALL)
    assert_same_training(tmp_path / "stopped", tmp_path / "whole")


def test_slices_without_labels_are_not_validated(tmp_path):
    dataset = make_dataset()
    cutout = dataset.split("val")[0]
    grey = Volume(np.repeat(np.asarray(cutout.volume.data), 3, 0), "sparse")

    def split(*labelled):
        labels = np.full(grey.shape, 255, np.uint8)
        labels[list(labelled)] = cutout.labels[0]
        return dataclasses.replace(dataset, splits={**dataset.splits, "val": (Cutout(grey, labels),)})

    settings = TrainSettings(epochs=2, steps_per_epoch=1, device="cpu", val_slices=1, average=0.0)
    patient = dataclasses.replace(settings, patience=1)
    with pytest.raises(SettingsError, match=r"train\.patience is 1, but toy: split val has no labelled pixel"):
        build(split(), Recipe(train=patient, **SMALL))
    with pytest.warns(UserWarning, match="split val has no labelled pixel, so nothing is validated and the weights of"):
        module = build(split(), Recipe(train=settings, **SMALL))
    fitting.fit(module, Run(tmp_path / "run"))
    last = load_newest(tmp_path / "run")["state_dict"]
    assert all(torch.equal(v, last[f"net.{k}"]) for k, v in load_model(tmp_path / "run").net.state_dict().items())
    assert [z for _, z in build(split(2), Recipe(train=settings, **SMALL)).validation] == [2]


@pytest.mark.parametrize("order", ["random", "sequential"])
def test_a_batch_of_one_that_a_network_cannot_learn_from_is_refused(order):
    dataset = make_dataset()
    shape = dataset.split("train")[0].volume.shape[1:]
    tiles = sum(-(-y // 32) * -(-x // 32) * z for z, y, x in (c.volume.shape for c in dataset.split("train")))
    assert shape[0] >= 32
    batch = 1 if order == "random" else tiles - 1
    sample = SampleSettings(patch=32, batch=batch, order=order)
    recipe = Recipe(train=TrainSettings(device="cpu"), sample=sample, model=ModelSettings("unet", "resnet18"))
    with pytest.raises(SettingsError, match=r"sample\.batch is .* makes a patch of 32 pixels one pixel"):
        build(dataset, recipe)
    build(dataset, dataclasses.replace(recipe, model=SMALL["model"]))  # one that sees less


def test_the_schedule_step_falls_after_so_many_epochs(tmp_path):
    settings = TrainSettings(
        epochs=5,
        steps_per_epoch=1,
        device="cpu",
        schedule="step",
        step_epochs=2,
        step_factor=0.5,
        warmup=0,
        learning_rate=1e-3,
    )
    run_fit(make_dataset(), tmp_path / "run", train=settings, **SMALL)
    rates = [float(row["learning_rate"]) for row in read_rows(tmp_path / "run")]
    assert rates == pytest.approx([1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4])


def test_patience_stops_early(tmp_path, monkeypatch):
    monkeypatch.setattr(
        training, "scores", lambda *_: {"macro": {"f1": 0.5}, "per_class": {n: {"f1": 0.5} for n in ("background", "cell")}}
    )
    run_fit(
        make_dataset(), tmp_path / "run", train=TrainSettings(epochs=9, steps_per_epoch=1, patience=2, device="cpu"), **SMALL
    )
    assert len(read_rows(tmp_path / "run")) == 3


def test_time_limit_ends_the_schedule(tmp_path, monkeypatch):
    # a step takes an eighth of a second by this clock, however busy the machine is
    monkeypatch.setattr(training.SegmentationModule, "_read_clock", lambda module: module.step / 8)
    settings = TrainSettings(epochs=100, steps_per_epoch=50, max_time="4s", device="cpu", learning_rate=3e-3)
    run_fit(make_dataset(), tmp_path / "run", train=settings, **SMALL)
    last = read_rows(tmp_path / "run")[-1]
    assert int(last["step"]) == 32
    assert float(last["learning_rate"]) < 0.01 * settings.learning_rate
    assert Run(tmp_path / "run").read_training()["schedule_by"] == "time"


@pytest.mark.parametrize(
    ("text", "seconds"), [("", 0), ("90", 90), ("90s", 90), ("12m", 720), ("1.5h", 5400), ("3 min", 180)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_time": "soon"},
        {"max_time": "0s"},
        {"checkpoint_every": "often"},
        {"epochs": 0},
        {"learning_rate": -1.0},
        {"average": 1.0},
        {"warmup": 1.0},
        {"keep": "lst"},
        {"schedule": "stp"},
        {"step_epochs": 0},
        {"step_factor": 0.0},
        {"step_factor": 2.0},
    ],
)
def test_settings_out_of_range_are_named(tmp_path, wrong):
    with pytest.raises(SettingsError, match=f"train.{next(iter(wrong))}"):
        run_fit(make_dataset(), tmp_path / "run", train=TrainSettings(**wrong), loss=LossSettings())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("amx", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_a_cpu_trains_in_bf16_only_where_it_has_units_for_it(monkeypatch, amx, expected):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert machine.choose_precision(TrainSettings(device="cpu")) == expected
    assert machine.choose_precision(TrainSettings(device="cpu", precision="32")) == "32-true"
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert machine.choose_precision(TrainSettings(device="cpu")) == "32-true"


def test_in_bf16_only_the_network_is_mixed(tmp_path, monkeypatch):
    seen = {}
    original_augment, original_build, original_probs = batches.augment, preparing.build_loss, training.predict_slice

    def augment(images, *rest):
        images, labels = original_augment(images, *rest)
        seen["augment"] = (images.dtype, torch.is_autocast_enabled("cpu"))
        return images, labels

    def build_loss(*args):
        criterion = original_build(*args)

        def loss(logits, labels):
            seen["loss"] = (logits.dtype, torch.is_autocast_enabled("cpu"))
            return criterion(logits, labels)

        return loss

    def predict_slice(predictor, image):
        probs = original_probs(predictor, image)
        with torch.autocast("cpu", enabled=False):
            assert np.array_equal(probs, original_probs(predictor, image))
        seen["validated"] = torch.is_autocast_enabled("cpu")
        return probs

    monkeypatch.setattr(batches, "augment", augment)
    monkeypatch.setattr(training, "predict_slice", predict_slice)
    monkeypatch.setattr(preparing, "build_loss", build_loss)
    settings = TrainSettings(epochs=1, steps_per_epoch=1, device="cpu", precision="bf16")
    module = build(make_dataset(), Recipe(train=settings, **SMALL))
    module.net.register_forward_hook(lambda _, __, out: seen.update(logits=out.dtype))
    monkeypatch.setattr(module, "on_before_zero_grad", lambda optimizer: seen.update(fused=optimizer.defaults["fused"]))
    fitting.fit(module, Run(tmp_path / "run"))
    assert seen == {
        "augment": (torch.float32, False),
        "logits": torch.bfloat16,
        "loss": (torch.float32, False),
        "validated": True,
        "fused": True,
    }
    assert {p.dtype for p in module.net.parameters()} == {torch.float32}


def test_a_cpu_keeps_its_heap_for_as_long_as_steps_run(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(fitting, "share_heap", lambda: called.append("share"))
    monkeypatch.setattr(fitting, "release_heap", lambda: called.append("release"))
    module = build(make_dataset(), Recipe(train=TrainSettings(epochs=1, steps_per_epoch=1, device="cpu"), **SMALL))
    module.net.register_forward_hook(lambda *_: called.append("forward"))
    fitting.fit(module, Run(tmp_path / "run"))
    assert called == ["share", "forward", "release"]


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_the_gradient_is_clipped(tmp_path, precision):
    settings = TrainSettings(epochs=1, steps_per_epoch=2, device="cpu", precision=precision, clip=1e-3)
    module = build(make_dataset(), Recipe(train=settings, **SMALL))
    norms = []

    def note(optimizer):
        norms.append(torch.stack([p.grad.norm() for p in module.net.parameters() if p.grad is not None]).norm().item())

    module.on_before_optimizer_step = note
    clip = module.configure_gradient_clipping

    def configure(*args, **kwargs):
        clip(*args, **kwargs)
        note(None)

    module.configure_gradient_clipping = configure
    fitting.fit(module, Run(tmp_path / "run"))
    before, after = norms[0::2], norms[1::2]
    assert min(before) > 1e-2
    assert after == [pytest.approx(1e-3, rel=1e-2)] * 2
