"""Keeper: shows progress and keeps the run folder true while a network trains."""

from __future__ import annotations

import math
import pickle
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import lightning
import psutil
import torch

from neurotome.atomic import atomic_path
from neurotome.errors import RunError, is_out_of_memory
from neurotome.models.model_folder import save_model
from neurotome.progress import Progress
from neurotome.runs import Run
from neurotome.runs.environment import measure_peak_memory
from neurotome.stopping import StopRequest
from neurotome.training.module import SegmentationModule, shrink_checkpoint

OnEpoch = Callable[[Mapping[str, float | None], float], None]
"""Is told an epoch's row of metrics.csv and the share of the training that is done."""


class StoppedError(Exception):
    """A person or the system asked the training to stop, and all that was done is kept."""


class Keeper(lightning.Callback):
    """Writes model, checkpoint, metrics and summary at the end of every epoch, and a checkpoint when asked to stop.

    The checkpoint alone decides where a training goes on; metrics and summary follow from it and are written again then.
    """

    def __init__(self, run: Run, module: SegmentationModule, on_epoch: OnEpoch | None = None) -> None:
        self.run, self.module, self.on_epoch = run, module, on_epoch
        self.last = run.checkpoints / "last.ckpt"
        self.summary: dict[str, Any] = {}
        self.progress = Progress("training", 1.0)
        self.request: StopRequest | None = None
        self.first_step_seconds: float | None = None
        self.step_seconds: list[float] = []
        self.step_began = 0.0
        self.steps_begun = 0

    def resume(self) -> None:
        """Takes up the training where the run's checkpoint was made, if there is one; raises RunError if it is damaged."""
        if not self.last.is_file():
            return
        try:
            checkpoint = torch.load(self.last, map_location="cpu", weights_only=True)
            self.module.restore(checkpoint)
            self.summary = checkpoint["summary"]
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, EOFError, pickle.PickleError) as error:
            if is_out_of_memory(error):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise RunError(
                f"{self.last}: damaged checkpoint ({reason}). Delete it to train this run from its beginning."
            ) from error
        if self.module.history:
            self.write_tables()

    def write_tables(self) -> None:
        """Writes what follows from the checkpoint."""
        self.run.write_metrics(self.module.history)
        self.run.write_training({"finished": False, **self.summary})

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Starts the progress where the run was left; takes signals from Lightning, which would drop the step under way."""
        self.progress.start_at(self.module.share_done())
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._note_signal)

    def _note_signal(self, number: int, _: object) -> None:
        if self.request is None:
            self.request = StopRequest(number)
            sys.stderr.write(
                "\nstopping after this step; once more stops at once and loses what was done since the last epoch\n"
            )
        elif not self.request.is_echoed_by(number):
            self.request = StopRequest(number)
            raise self.request.to_error()

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
        self.stop_if_asked()
        if self.module.share_of_time() >= 1:
            trainer.should_stop = True

    def _note_duration(self) -> None:
        """Notes how long a step has taken, when the device has been waited for."""
        if self.steps_begun:
            self.step_seconds.append((time.monotonic() - self.step_began) / self.steps_begun)
        self.steps_begun = 0

    def stop_if_asked(self) -> None:
        """Keeps what was done and raises StoppedError, if a signal has asked for that."""
        if self.request is not None:
            self.save()
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
        module.add_row(module.validate(self.stop_if_asked))
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
        trainer.should_stop = module.is_over()
        self.save()
        self.write_tables()
        if self.request is not None and not trainer.should_stop:
            raise StoppedError
        if self.on_epoch is not None:
            self.on_epoch(module.history[-1], module.share_done())

    def save(self) -> None:
        """Writes the checkpoint, unless a loss was not finite."""
        self.module.check_losses()
        self.summary = self.summarise()
        with atomic_path(self.last) as temporary:
            torch.save({**self.module.make_checkpoint(), "summary": self.summary}, temporary)

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
        """Marks the training as ended, and leaves in the checkpoint what prolonging it needs."""
        with atomic_path(self.last) as temporary:
            torch.save(shrink_checkpoint(torch.load(self.last, map_location="cpu", weights_only=True)), temporary)
        self.run.write_training({"finished": True, **self.summary})
        self.progress.finish(self.describe())
