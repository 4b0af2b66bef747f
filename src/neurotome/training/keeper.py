"""Keeper: shows progress and keeps the run folder true while a network trains."""

from __future__ import annotations

import csv
import io
import math
import os
import time
from pathlib import Path
from typing import Any

import lightning
import psutil
import torch

from neurotome import memory
from neurotome.atomic import atomic_path, write_json, write_text
from neurotome.models.model_folder import save_model
from neurotome.progress import Progress
from neurotome.training.module import SegmentationModule


class Keeper(lightning.Callback):
    """Writes model, checkpoints, metrics and summary at the end of every epoch."""

    def __init__(self, run: Path, module: SegmentationModule) -> None:
        self.run, self.module = run, module
        self.progress = Progress("training", 1.0)
        self.first_step_seconds: float | None = None
        self.step_seconds: list[float] = []
        self.step_began = 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Starts the progress where the run was left."""
        self.progress.start_at(self.module.share_done())

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Notes when a step begins."""
        self.step_began = time.monotonic()
        if self.first_step_seconds is None:
            self.first_step_seconds = time.time() - psutil.Process().create_time()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Shows progress; ends the training when its time is over."""
        self.step_seconds.append(time.monotonic() - self.step_began)
        self.progress.update(self.module.share_done(), self.describe())
        if self.module.settings.max_seconds and self.module.elapsed() >= self.module.settings.max_seconds:
            trainer.should_stop = True

    def describe(self) -> str:
        """Returns step, loss and validation scores in words."""
        scored = [row["val_macro_f1"] for row in self.module.history if row["val_macro_f1"] is not None]
        best = f", val macro F1 {scored[-1]:.3f} (best {max(scored):.3f})" if scored else ""
        return f"step {self.module.global_step}, loss {self.module.last_loss:.3f}{best}"

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Keeps the model if it is the best or none can be told, then checkpoint, metrics and summary."""
        if not self.module.validation:
            self.module.add_row()
        score = self.module.history[-1]["val_macro_f1"]
        improved = not self.module.validation or (score is not None and score > self.module.best)
        self.module.stale = 0 if improved else self.module.stale + 1
        if improved or not (self.run / "model" / "model.json").is_file():
            self.module.best = score if score is not None else self.module.best
            facts = {**self.module.predictor.facts, "val_macro_f1": score}
            save_model(self.module.predictor, self.run / "model", facts, self.module.settings.storage)
        if self.module.settings.patience and self.module.stale >= self.module.settings.patience:
            trainer.should_stop = True
        checkpoints = self.run / "checkpoints"
        with atomic_path(checkpoints / "last.ckpt") as temporary:
            trainer.save_checkpoint(temporary)
        if improved:
            _link(checkpoints / "last.ckpt", checkpoints / "best.ckpt")
        write_text(self.run / "metrics.csv", _format_rows(self.module.history))
        self.write_summary(finished=False)

    def write_summary(self, *, finished: bool) -> None:
        """Writes training.json."""
        steps = sorted(self.step_seconds)
        write_json(
            self.run / "training.json",
            {
                "finished": finished,
                "epochs": len(self.module.history),
                "steps": self.module.global_step,
                "seconds": round(self.module.elapsed(), 3),
                "best_val_macro_f1": self.module.best if math.isfinite(self.module.best) else None,
                "seconds_to_first_step": self.first_step_seconds,
                "median_step_seconds": steps[len(steps) // 2] if steps else None,
                **self.module.sampler.facts,
                "peak_memory_bytes": measure_peak_memory(),
                "precision": self.module.trainer.precision,
                "device": str(self.module.device),
            },
        )

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Marks the training as ended."""
        self.write_summary(finished=True)
        self.progress.finish(self.describe())


def measure_peak_memory() -> int:
    """Returns the peak memory in bytes: of the GPU if one is used, otherwise of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    return memory.measure_peak_memory()


def _link(source: Path, target: Path) -> None:
    """Gives a file a second name; a copy where the file system has no hard links."""
    with atomic_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            temporary.write_bytes(source.read_bytes())


def _format_rows(rows: list[dict[str, float | None]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v is None else v for k, v in row.items()} for row in rows)
    return text.getvalue()
