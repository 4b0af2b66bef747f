"""Keeper: shows progress and keeps the run folder true while a network trains."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

from neurotome.models.model_folder import save_model
from neurotome.progress import Progress
from neurotome.runs import Run
from neurotome.runs.environment import measure_peak_memory
from neurotome.training.checkpoints import (
    list_checkpoints,
    read_checkpoint,
    shrink_checkpoint,
    take_newest,
    write_checkpoint,
)
from neurotome.training.listener import Listener, StoppedError
from neurotome.training.module import SegmentationModule

OnEpoch = Callable[[Mapping[str, float | None], float], None]
"""Is told an epoch's row of metrics.csv and the share of the training that is done."""


class Keeper(Listener):
    """Writes model, checkpoint, metrics and summary after every epoch; a checkpoint also in between, and when asked to stop.

    The checkpoint alone decides where a training goes on; metrics and summary follow from it and are written again then.
    """

    def __init__(self, run: Run, module: SegmentationModule, on_epoch: OnEpoch | None = None) -> None:
        super().__init__(module)
        self.run, self.on_epoch = run, on_epoch
        self.summary: dict[str, Any] = {}
        self.progress = Progress("training", 1.0)
        self.saved_at, self.saved_step = 0.0, 0
        self.first_step_seconds: float | None = None
        self.step_seconds: list[float] = []
        self.step_began = 0.0
        self.steps_begun = 0

    def resume(self) -> Path | None:
        """Takes up the training where the run's newest whole checkpoint was made, and returns that; see `take_newest`."""
        taken = take_newest(self.run.checkpoints, self._restore)
        if self.module.history:
            self.write_tables()
        return taken

    def _restore(self, checkpoint: Mapping[str, Any]) -> None:
        self.module.restore(checkpoint)
        self.summary = checkpoint["summary"]

    def write_tables(self) -> None:
        """Writes what follows from the checkpoint."""
        self.run.write_metrics(self.module.history)
        self.run.write_training({"finished": False, **self.summary})

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Starts the progress where the run was left."""
        super().on_train_start(trainer, pl_module)
        self.progress.start_at(self.module.share_done())
        self.saved_at, self.saved_step = time.monotonic(), self.module.step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Notes when a step begins, or the first of those that a GPU does without being waited for."""
        if not self.steps_begun:
            self.step_began = time.monotonic()
        self.steps_begun += 1
        if self.first_step_seconds is None:
            self.first_step_seconds = time.time() - psutil.Process().create_time()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Shows progress; ends the epoch when the time is over."""
        if self.module.checked == len(self.module.losses):
            self._note_duration()
        self.progress.update(self.module.share_done(), self.describe())
        self.keep()
        if self.module.share_of_time() >= 1:
            trainer.should_stop = True

    def _note_duration(self) -> None:
        """Notes how long a step has taken, when the device has been waited for."""
        if self.steps_begun:
            self.step_seconds.append((time.monotonic() - self.step_began) / self.steps_begun)
        self.steps_begun = 0

    def keep(self) -> None:
        """Writes a checkpoint if the last one is too old or a signal has asked to stop, which raises StoppedError then."""
        is_asked, _ = self.meet()
        every = self.module.settings.checkpoint_seconds
        is_due = 0 < every <= time.monotonic() - self.saved_at and self.module.step > self.saved_step
        if is_due or is_asked:
            self.save()
        if is_asked:
            raise StoppedError

    def describe(self) -> str:
        """Returns step, loss and validation scores in words."""
        scored = [row["val_macro_f1"] for row in self.module.history if row["val_macro_f1"] is not None]
        best = f", val macro F1 {scored[-1]:.3f} (best {max(scored):.3f})" if scored else ""
        loss = self.module.last_loss
        return f"step {self.module.step}{'' if math.isnan(loss) else f', loss {loss:.3f}'}{best}"

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Keeps the model if it is the best, none can be told or the last is asked for; then checkpoint and tables."""
        module = self.module
        module.check_losses()
        self._note_duration()
        module.add_row(module.validate(self.keep))
        score = module.history[-1]["val_macro_f1"]
        improved = not module.validation or (score is not None and score > module.best)
        module.stale = 0 if improved else module.stale + 1
        improved = improved or not (self.run.model / "model.json").is_file()
        if improved and score is not None:
            module.best = score
        if improved or module.settings.keep == "last":
            save_model(
                module.predictor, self.run.model, {**module.predictor.facts, "val_macro_f1": score}, module.settings.storage
            )
        is_asked, trainer.should_stop = self.meet(module.is_over())
        self.save()
        self.write_tables()
        if is_asked and not trainer.should_stop:
            raise StoppedError
        if self.on_epoch is not None:
            self.on_epoch(module.history[-1], module.share_done())

    def save(self) -> None:
        """Writes the checkpoint, unless a loss was not finite."""
        self.module.check_losses()
        self._note_duration()  # before the time that writing takes
        self.summary = self.summarise()
        content = {**self.module.make_checkpoint(), "summary": self.summary}
        write_checkpoint(self.run.checkpoints, self.module.step, content)
        self.saved_at, self.saved_step = time.monotonic(), self.module.step

    def summarise(self) -> dict[str, Any]:
        """Returns the content of training.json; peak memory is the GPU's if one is used, otherwise this process's."""
        module = self.module
        return {
            "epochs": len(module.history),
            "steps": module.step,
            "seconds": round(module.elapsed(), 3),
            "schedule_by": "time" if module.share_of_time() > module.step / module.total_steps else "steps",
            "keep": module.settings.keep,
            "best_val_macro_f1": module.best if math.isfinite(module.best) else None,
            "seconds_to_first_step": self.first_step_seconds,
            "median_step_seconds": statistics.median_high(self.step_seconds) if self.step_seconds else None,
            **module.sampler.facts,
            "peak_memory_bytes": torch.cuda.max_memory_allocated() or measure_peak_memory(),  # 0 without a GPU
            "precision": module.trainer.precision,
            "device": str(module.device),
        }

    def finish(self) -> None:
        """Marks the training as ended, and leaves one checkpoint, with what prolonging needs."""
        newest = list_checkpoints(self.run.checkpoints)[0]
        write_checkpoint(newest.parent, self.module.step, shrink_checkpoint(read_checkpoint(newest)), kept=1)
        self.run.write_training({"finished": True, **self.summary})
        self.progress.finish(self.describe())
