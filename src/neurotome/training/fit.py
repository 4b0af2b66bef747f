"""fit: train a network into a run folder, alone or with helpers; after any interruption it goes on where it was."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from neurotome.errors import TrainingError
from neurotome.lazy import import_extra
from neurotome.models.back_ends.heap import release_heap, share_heap
from neurotome.training.machine import choose_precision
from neurotome.training.rank import Rank
from neurotome.training.rank_processes import Join, work_together
from neurotome.training.recipe import Recipe, TrainSettings

if TYPE_CHECKING:
    import lightning

    from neurotome.datasets.base import Dataset
    from neurotome.runs import Run
    from neurotome.training.keeper import OnEpoch
    from neurotome.training.listener import Listener
    from neurotome.training.module import SegmentationModule

WORKSPACE, REPEATING = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
"""Environment variable of a GPU's matrix products, and the values with which they repeat to the bit."""


def fit(module: SegmentationModule, run: Run, on_epoch: OnEpoch | None = None) -> None:
    """Trains a network; goes on from the run's checkpoint if it has one.

    Writes, after every epoch: `model/` (the best by validation macro F1, or the last where that is asked for or nothing is
    validated), a checkpoint, `metrics.csv` and `training.json`. Within epochs it writes a checkpoint as often as
    `train.checkpoint_every` says and, asked to stop (Ctrl-C, SIGTERM), after the step under way. Batches, augmentation and
    dropout depend on the seed and the step alone, so that a run that was stopped or killed ends as if it had not been. A
    finished run goes on where the settings ask for more epochs or time. With `train.devices` above 1, helpers do their
    parts of each step; they write nothing.

    Args:
        module: From `prepare`.
        run: Claimed by the caller for these settings.
        on_epoch: Gets an epoch's row of metrics.csv and the share of the training that is done, 0 to 1, when the epoch is
            written down; what it raises ends the training, which can go on from there.

    Raises:
        TrainingError: The loss is not finite, a helper has failed, or `train.deterministic` asks for what an operation
            cannot do.
        RunError: There are checkpoints, but none is whole, or the newest cannot be taken up.
        KeyboardInterrupt: The training was asked to stop; a TerminatedError where SIGTERM did.
    """
    from lightning.pytorch.loggers import TensorBoardLogger

    from neurotome.training.keeper import Keeper

    settings, keeper = module.settings, Keeper(run, module, on_epoch)
    logger: TensorBoardLogger | Literal[False] = False
    taken = keeper.resume()
    if not module.is_over():
        sys.stderr.write(f"{module.machine}\n")
        together = work_together(module.rank, module.machine.device == "cuda", help_fit, (module.origin, taken))
        with tame_lightning(), together, repeat_exactly(settings):
            if settings.tensorboard:
                import_extra("tensorboard", "track")
                logger = TensorBoardLogger(save_dir=run.folder, name="tensorboard", version="")
            run_steps(module, keeper, logger=logger, default_root_dir=run.folder)
    keeper.finish()
    if keeper.request:
        raise keeper.request.to_error()


def help_fit(rank: Rank, join: Join, origin: tuple[Dataset, Recipe], taken: Path | None) -> None:
    """Does a helper's part of the training of `origin`, which goes on from the checkpoint `taken`."""
    from neurotome.training.checkpoints import read_checkpoint
    from neurotome.training.listener import Follower
    from neurotome.training.prepare import prepare, settle_recipe

    dataset, recipe = origin
    module = prepare(dataset, settle_recipe(dataset, recipe), rank)
    if taken is not None:
        module.restore(read_checkpoint(taken))
    with tame_lightning(), join(), repeat_exactly(module.settings):
        run_steps(module, Follower(module), logger=False)


def run_steps(module: SegmentationModule, listener: Listener, **options: Any) -> None:
    """Trains to the end, or until the listener was asked to stop, which is a KeyboardInterrupt."""
    from neurotome.training.listener import StoppedError

    trainer = make_trainer(module, listener, max_epochs=module.settings.epochs - len(module.history), **options)
    try:
        trainer.fit(module)
    except (StoppedError, SystemExit):  # Lightning turns Ctrl-C into an exit
        raise (listener.request.to_error() if listener.request else KeyboardInterrupt()) from None
    finally:
        release_heap()


def make_trainer(module: SegmentationModule, callback: lightning.Callback, **options: Any) -> lightning.Trainer:
    """Returns what runs the steps, where and in the arithmetic that the settings say; all else is the callback's."""
    import lightning

    settings = module.settings
    if module.machine.device == "cpu":  # else every step clears a gigabyte of pages anew, three tenths of its time
        share_heap()
    kind, _, index = settings.device.partition(":")
    if module.rank.group is not None:
        from neurotome.training.together import make_strategy

        options |= {"strategy": make_strategy(module.rank), "use_distributed_sampler": False}
    return lightning.Trainer(
        accelerator="gpu" if kind == "cuda" else kind,
        devices=[int(index)] if index else module.rank.count,
        precision=choose_precision(settings),
        gradient_clip_val=settings.clip or None,
        callbacks=[callback],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        **options,
    )


@contextlib.contextmanager
def tame_lightning() -> Iterator[None]:
    """Keeps Lightning's hints from the terminal; gives signals back, because Lightning would leave Ctrl-C ignored."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            # a recorded step's gradients come from the stream on which it was recorded; torch waits for that
            warnings.filterwarnings("ignore", "The AccumulateGrad node's stream does not match")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def repeat_exactly(settings: TrainSettings) -> Iterator[None]:
    """Has torch use algorithms that give the same to the bit each time, if settings ask for it; gives its choices back.

    Raises:
        TrainingError: An operation has no such algorithm on this device.
    """
    if not settings.deterministic:
        yield
        return
    import torch

    enabled, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, workspace = torch.backends.cudnn.benchmark, os.environ.get(WORKSPACE)
    if workspace not in REPEATING:
        os.environ[WORKSPACE] = REPEATING[0]
    torch.backends.cudnn.benchmark = False  # it would choose algorithms by their time
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if WORKSPACE in str(error):
            raise TrainingError(
                "train.deterministic: matrices were multiplied on the GPU in this process before, which settled how that is "
                f"done. Train in a process of its own, or set the environment variable {WORKSPACE}={REPEATING[0]} before it "
                "starts."
            ) from error
        if "deterministic_algorithms" in str(error):
            raise TrainingError(
                f"train.deterministic: {str(error).partition(',')[0]} on this device. Choose another --model.decoder, or "
                "train without --train.deterministic."
            ) from error
        raise
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        os.environ.pop(WORKSPACE, None)
        if workspace is not None:
            os.environ[WORKSPACE] = workspace
