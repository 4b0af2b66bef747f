"""A training that is stopped, killed or finds a damaged checkpoint ends as if nothing had happened, to the bit."""

import dataclasses
import errno
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from conftest import TINY, build, make_dataset, run, write_dataset
from neurotome.errors import RunError, TrainingError
from neurotome.models.networks import ModelSettings
from neurotome.runs import Run
from neurotome.stopping import ECHO_S, StopRequest, TerminatedError
from neurotome.training import checkpoints, keeper
from neurotome.training import fit as fitting
from neurotome.training import module as training
from neurotome.training import prepare as preparing
from neurotome.training.recipe import Recipe, TrainSettings
from neurotome.training.sampler import SampleSettings
from test_training_fit import SMALL, KilledError, assert_same_training, load_newest, read_rows, run_fit, strip
from test_training_fit import _no_halo as _no_halo

EACH_STEP = "0.000001s"


def list_kept(run):
    return [path.name for path in checkpoints.list_checkpoints(run / "checkpoints")]


def interrupt(monkeypatch, owner, name, calls, *signals):
    """Sends signals to this process when a function is called for the `calls`-th time; without any, it dies there."""
    original, left = getattr(owner, name), [calls]

    def call(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0 and not signals:
            raise KilledError
        for number in signals if left[0] == 0 else ():
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


KILLS = {  # what is called when it happens, and how many steps before the end of the training the kept checkpoints are
    "within a step": (training, "seed_device", 1, (1, 2)),
    "while a batch is drawn": (preparing.PatchSampler, "draw", 1, (1, 2)),
    "while a checkpoint is written": (torch, "save", 1, (1, 2)),
    "before the oldest is deleted": (checkpoints, "list_checkpoints", 2, (0, 1, 2)),
    "during validation": (training, "predict_slice", 1, (0, 1, 2)),
    "while the model is written": (keeper, "save_model", 1, (0, 1, 2)),
}
FEW_KILLS = ("within a step", "during validation")
DECODERS = ("fpn", "linknet", "unetplusplus", "manet", "pspnet", "pan", "deeplabv3", "deeplabv3plus", "upernet", "segformer")


@pytest.mark.parametrize("decoder", ["unet", *(pytest.param(d, marks=pytest.mark.slow) for d in (*DECODERS, "dpt"))])
def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path, monkeypatch, decoder):
    """Nor does it matter how often checkpoints are written, and whether algorithms have to be deterministic."""
    epochs = 2 if decoder == "unet" else 1
    settings = TrainSettings(epochs=epochs, steps_per_epoch=3, device="cpu", average=0.9, checkpoint_every="")
    model = ModelSettings(decoder, "test_vit" if decoder == "dpt" else "test_resnet")
    small = {**SMALL, "model": model, "sample": SampleSettings(patch=32, batch=2)}
    dataset = make_dataset()
    if decoder != "unet":
        dataset = dataclasses.replace(dataset, splits={split: cutouts[:1] for split, cutouts in dataset.splits.items()})
    run_fit(dataset, tmp_path / "whole", train=settings, **small)

    last, folder = 3 * epochs, tmp_path / "interrupted"
    every = "" if decoder == "dpt" else EACH_STEP  # its checkpoints are large
    settings = dataclasses.replace(settings, checkpoint_every=every, deterministic=True)
    with monkeypatch.context() as patch:
        interrupt(patch, training, "seed_device", last - 1, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt) as stopped:
            run_fit(dataset, folder, train=settings, **small)
    assert not isinstance(stopped.value, TerminatedError)
    kept = load_newest(folder)
    assert (kept["step"], len(kept["losses"]), len(kept["history"])) == (last - 1, 2, epochs - 1)
    kills, most = (KILLS, 3) if decoder == "unet" else (FEW_KILLS, 2)
    for kill in kills:
        owner, name, calls, before = KILLS[kill]
        with monkeypatch.context() as patch:
            interrupt(patch, owner, name, calls)
            with pytest.raises(KilledError):
                run_fit(dataset, folder, train=settings, **small)
        assert list_kept(folder) == [f"step-{last - steps}.ckpt" for steps in (before if every else (1,))[:most]], kill
    run_fit(dataset, folder, train=settings, **small)
    assert list_kept(folder) == [f"step-{last}.ckpt"]
    assert_same_training(folder, tmp_path / "whole")


KILLS_9 = {  # the same; and what is left
    "in the middle of a file": (torch, "save", 3, ["step-2.ckpt", "step-1.ckpt"]),
    "before the oldest is deleted": (checkpoints, "list_checkpoints", 4, ["step-3.ckpt", "step-2.ckpt", "step-1.ckpt"]),
}
FOUR_STEPS = TrainSettings(epochs=1, steps_per_epoch=4, device="cpu", checkpoint_every=EACH_STEP)


def train_and_die(folder, place):
    """Trains until the process is killed by SIGKILL, so that nothing can be put in order."""
    owner, name, calls, _ = KILLS_9[place]
    original, left = getattr(owner, name), [calls]

    def call(*args):
        result = original(*args)
        left[0] -= 1
        if left[0] == 0:
            if name == "save":
                os.truncate(args[1], args[1].stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    patch = pytest.MonkeyPatch()
    patch.setattr(owner, name, call)
    patch.setattr("neurotome.models.net.measure_halo", lambda *_: (64, True))
    run_fit(make_dataset(), folder, train=FOUR_STEPS, **SMALL)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_run_that_the_system_killed_ends_as_if_it_had_not(tmp_path):
    run_fit(make_dataset(), tmp_path / "whole", train=FOUR_STEPS, **SMALL)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["neurotome.experiments.grids.preloaded"])
    for place, (_, name, _, left) in KILLS_9.items():
        process = context.Process(target=train_and_die, args=(tmp_path / name, place))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert list_kept(tmp_path / name) == left
        assert bool(list((tmp_path / name).rglob(".step-3.*.partial.ckpt"))) == (name == "save")
        run_fit(make_dataset(), tmp_path / name, train=FOUR_STEPS, **SMALL)
        assert_same_training(tmp_path / name, tmp_path / "whole")


@pytest.mark.parametrize(("every", "saved"), [("5m", [3, 6, 6, 6]), ("", [6, 6])])
def test_checkpoints_are_written_as_often_as_asked(tmp_path, monkeypatch, every, saved):
    """By a clock on which a step takes two minutes; at the end of the epoch and of the training in any case."""
    module = build(
        make_dataset(),
        Recipe(train=TrainSettings(epochs=1, steps_per_epoch=6, device="cpu", checkpoint_every=every), **SMALL),
    )
    clock = SimpleNamespace(monotonic=lambda: 120.0 * module.step, time=time.time)
    monkeypatch.setattr(keeper, "time", clock)
    steps, write = [], keeper.write_checkpoint
    monkeypatch.setattr(keeper, "write_checkpoint", lambda *args, **kw: (steps.append(args[1]), write(*args, **kw)))
    fitting.fit(module, Run(tmp_path / "run"))
    assert steps == saved


TWICE_TWO = {"train": TrainSettings(epochs=2, steps_per_epoch=2, device="cpu", checkpoint_every=EACH_STEP), **SMALL}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neurotome.models.net.measure_halo", lambda *_: (64, True))
        run_fit(make_dataset(), folder, **TWICE_TWO)
    return folder


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of which the checkpoints of steps 2 and 3 are there."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neurotome.models.net.measure_halo", lambda *_: (64, True))
        interrupt(patch, training, "seed_device", 4)
        with pytest.raises(KilledError):
            run_fit(make_dataset(), folder, **TWICE_TWO)
    return folder


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "cut": lambda path: os.truncate(path, 1000),
    "empty": lambda path: os.truncate(path, 0),
    "a bit": flip_a_bit,
    "text": lambda path: path.write_text("no checkpoint, but longer than a checksum"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_with_a_message(tmp_path, begun, whole, damage):
    folder = shutil.copytree(begun, tmp_path / "run")
    DAMAGES[damage](folder / "checkpoints" / "step-3.ckpt")
    message = r"step-3\.ckpt: damaged checkpoint \(.+\)\. Training goes on from step-2\.ckpt and repeats 1 step\."
    with pytest.warns(UserWarning, match=message):
        run_fit(make_dataset(), folder, **TWICE_TWO)
    assert_same_training(folder, whole)


def test_a_whole_checkpoint_that_cannot_be_taken_up_is_named_and_kept(tmp_path, begun):
    """Such as another network's: that is nobody's damage, and an older one must not take its place unasked."""
    folder = shutil.copytree(begun, tmp_path / "run")
    newest = folder / "checkpoints" / "step-3.ckpt"
    content = checkpoints.read_checkpoint(newest)
    for other in ({"state_dict": {}}, {**content, "state_dict": {"net.other": torch.zeros(1)}}):
        checkpoints.write_checkpoint(newest.parent, 3, other)
        with pytest.raises(
            RunError, match=r"step-3\.ckpt: this checkpoint is whole, but the training cannot take it up \(.+\)"
        ):
            run_fit(make_dataset(), folder, **TWICE_TWO)
        assert list_kept(folder) == ["step-3.ckpt", "step-2.ckpt"]


def test_it_is_an_error_only_if_no_checkpoint_is_whole(tmp_path, begun, whole):
    folder = shutil.copytree(begun, tmp_path / "run")
    for name in ("step-2.ckpt", "step-3.ckpt"):
        flip_a_bit(folder / "checkpoints" / name)
    message = r"step-3\.ckpt: damaged .*step-2\.ckpt: damaged .* Delete .*checkpoints to train this run from its beginning"
    with pytest.raises(RunError, match=message):
        run_fit(make_dataset(), folder, **TWICE_TWO)
    assert list_kept(folder) == ["step-3.ckpt", "step-2.ckpt"]
    shutil.rmtree(folder / "checkpoints")
    run_fit(make_dataset(), folder, **TWICE_TWO)
    assert_same_training(folder, whole)


def test_a_checksum_guards_every_byte_of_a_checkpoint(tmp_path):
    checkpoints.write_checkpoint(tmp_path, 3, {"weights": torch.arange(4.0), "step": 3})
    (path,) = checkpoints.list_checkpoints(tmp_path)
    assert torch.equal(torch.load(path, weights_only=True)["weights"], torch.arange(4.0))
    content = path.read_bytes()
    others = [content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :] for i in range(0, len(content), 9)]
    for other in (*others, content[:-1], content + b"0"):
        path.write_bytes(other)
        with pytest.raises(RunError, match="checksum"):
            checkpoints.read_checkpoint(path)
    path.write_bytes(content)
    assert checkpoints.read_checkpoint(path)["step"] == 3


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.EIO, "Input/output error"), RunError),  # a bad block: the file is to blame
        (PermissionError(errno.EACCES, "Permission denied"), PermissionError),
        (MemoryError(), MemoryError),
    ],
)
def test_what_a_file_is_not_to_blame_for_is_no_damage(tmp_path, monkeypatch, error, raised):
    checkpoints.write_checkpoint(tmp_path, 3, {})

    def read(*_):
        raise error

    monkeypatch.setattr(checkpoints, "_digest", read)
    with pytest.raises(raised):
        checkpoints.take_newest(tmp_path, lambda _: None)
    assert len(checkpoints.list_checkpoints(tmp_path)) == 1


@pytest.mark.usefixtures("short_report")
def test_the_command_stops_with_a_message_and_goes_on(tmp_path, monkeypatch, capsys):
    command = ["train", write_dataset(tmp_path / "data"), "--out", tmp_path / "run", *TINY, "--train.steps-per-epoch", "3"]
    command += ["--train.epochs", "1", "--train.device", "cpu"]
    kept = Run(tmp_path / "run")
    # a cluster's warning may come to a process more than once
    for step, signals, status in ((1, [signal.SIGTERM] * 2, 143), (2, [signal.SIGINT], 130)):
        with monkeypatch.context() as patch:
            interrupt(patch, training, "seed_device", 1, *signals)
            assert run(*command) == status
        assert "stopping after this step" in capsys.readouterr().err
        assert load_newest(kept.folder)["step"] == step
        assert not kept.is_finished
    assert run(*command) == 0
    assert [row["step"] for row in read_rows(tmp_path / "run")] == ["3"]
    assert kept.is_finished
    assert kept.report.is_file()


def test_a_second_signal_stops_at_once(tmp_path, monkeypatch):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    interrupt(monkeypatch, training, "seed_device", 4, signal.SIGTERM, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_fit(make_dataset(), tmp_path / "run", train=TrainSettings(epochs=2, steps_per_epoch=2, device="cpu"), **SMALL)
    assert list_kept(tmp_path / "run") == ["step-2.ckpt"]  # of the first epoch
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_only_a_terminating_signal_soon_after_the_first_is_an_echo():
    asked = StopRequest(signal.SIGTERM)
    assert asked.is_echoed_by(signal.SIGTERM)
    assert not asked.is_echoed_by(signal.SIGINT)
    assert not StopRequest(signal.SIGINT).is_echoed_by(signal.SIGINT)
    assert not StopRequest(signal.SIGTERM, time.monotonic() - ECHO_S).is_echoed_by(signal.SIGTERM)


def test_a_prolonged_run_goes_on_nearly_as_if_it_had_been_so_long_from_the_start(tmp_path, monkeypatch):
    sizes, shrink = [], keeper.shrink_checkpoint

    def note_size(checkpoint):
        sizes.append((tmp_path / "run" / "checkpoints" / "step-2.ckpt").stat().st_size)
        return shrink(checkpoint)

    settings = TrainSettings(epochs=3, steps_per_epoch=1, device="cpu", schedule="constant", warmup=0.0)
    run_fit(make_dataset(), tmp_path / "whole", train=settings, **SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(keeper, "shrink_checkpoint", note_size)
        run_fit(make_dataset(), tmp_path / "run", train=dataclasses.replace(settings, epochs=2), **SMALL)
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert checkpoint.stat().st_size < 0.6 * sizes[0]
    assert Run(tmp_path / "run").is_finished
    module = build(make_dataset(), Recipe(train=settings, **SMALL))
    fitting.fit(module, Run(tmp_path / "run"))
    whole, prolonged = (strip(tmp_path / name) for name in ("whole", "run"))
    assert prolonged[:2] == whole[:2]
    assert [row["step"] for row in prolonged] == ["1", "2", "3"]
    assert prolonged[2]["train_loss"] == whole[2]["train_loss"]
    # the optimiser's memory is there, rounded: without it each weight would take another step of about the learning rate
    expected = load_newest(tmp_path / "whole")["state_dict"]
    apart = torch.cat([(p - expected[f"net.{name}"]).abs().flatten() for name, p in module.net.named_parameters()])
    assert apart.median() < 0.02 * module.rate
    assert int(module.average.n_averaged) == 3


@pytest.mark.parametrize("ended", [{"epochs": 1}, {"max_time": "0.001s"}, {"patience": 1, "learning_rate": 1e-9}])
def test_what_follows_from_the_checkpoint_is_written_again(tmp_path, monkeypatch, ended):
    """As after a kill between the checkpoint and training.json, however the training came to its end."""
    settings = TrainSettings(**{"epochs": 9, "steps_per_epoch": 1, "device": "cpu", **ended})
    run_fit(make_dataset(), tmp_path / "run", train=settings, **SMALL)
    files = {name: (tmp_path / "run" / name).read_text() for name in ("metrics.csv", "training.json")}
    assert json.loads(files["training.json"])["finished"]
    for name in files:
        (tmp_path / "run" / name).unlink()

    def forbid(*_):
        raise AssertionError("it trained on")

    monkeypatch.setattr(training.SegmentationModule, "training_step", forbid)
    run_fit(make_dataset(), tmp_path / "run", train=settings, **SMALL)
    assert {name: (tmp_path / "run" / name).read_text() for name in files} == files


def read_choices():
    """Returns what deterministic training changes of this process."""
    enabled = torch.are_deterministic_algorithms_enabled()
    return enabled, torch.backends.cudnn.benchmark, os.environ.get("CUBLAS_WORKSPACE_CONFIG")


def test_deterministic_algorithms_are_asked_for_and_given_back(tmp_path, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before, seen = read_choices(), []

    def build_loss(*_):
        def loss(logits, labels):
            seen.append(read_choices())
            return logits.mean() if len(seen) == 1 else logits.mean() + torch.zeros(1).put_(torch.tensor([0]), torch.ones(1))

        return loss

    monkeypatch.setattr(preparing, "build_loss", build_loss)
    settings = TrainSettings(epochs=1, steps_per_epoch=2, device="cpu", deterministic=True)
    message = (
        r"train\.deterministic: put_ does not have a deterministic implementation on this device\. Choose another --model"
    )
    with pytest.raises(TrainingError, match=message):
        run_fit(make_dataset(), tmp_path / "run", train=settings, **SMALL)
    assert seen == [(True, False, ":4096:8")] * 2
    assert read_choices() == before == (False, True, ":0:0")


def test_a_deterministic_training_says_what_a_gpu_lacks_and_leaves_other_errors_alone():
    settings = TrainSettings(deterministic=True)
    told = "this operation is not deterministic because it uses CuBLAS: set CUBLAS_WORKSPACE_CONFIG=:4096:8"
    with pytest.raises(TrainingError, match="Train in a process of its own"), fitting.repeat_exactly(settings):
        raise RuntimeError(told)
    with pytest.raises(RuntimeError, match="another"), fitting.repeat_exactly(settings):
        raise RuntimeError("another")
    before = read_choices()
    with fitting.repeat_exactly(TrainSettings()):
        assert read_choices() == before


def test_whoever_is_told_of_an_epoch_may_end_the_training_which_then_goes_on(tmp_path):
    settings = TrainSettings(epochs=3, steps_per_epoch=2, device="cpu")
    told = []

    def end_the_second(row, done):
        told.append((row["epoch"], row["val_macro_f1"], done))
        if row["epoch"] == 1:
            raise KilledError

    with pytest.raises(KilledError):
        fitting.fit(build(make_dataset(), Recipe(train=settings, **SMALL)), Run(tmp_path / "run"), end_the_second)
    assert [epoch for epoch, _, _ in told] == [0, 1]
    assert [done for _, _, done in told] == pytest.approx([1 / 3, 2 / 3])
    assert [row["val_macro_f1"] for row in Run(tmp_path / "run").read_metrics()] == [score for _, score, _ in told]
    assert Run(tmp_path / "run").read_training()["finished"] is False
    run_fit(make_dataset(), tmp_path / "run", train=settings, **SMALL)
    run_fit(make_dataset(), tmp_path / "whole", train=settings, **SMALL)
    assert_same_training(tmp_path / "run", tmp_path / "whole")
