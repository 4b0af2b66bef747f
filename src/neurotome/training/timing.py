"""time_steps: how long training steps take, in the very loop that trains."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neurotome.training.fit import make_trainer, repeat_exactly, tame_lightning

if TYPE_CHECKING:
    from neurotome.training.module import SegmentationModule


@dataclass(frozen=True)
class StepTimes:
    """What was measured.

    Attributes:
        seconds: Of a step, one value for each group of steps between which the device was waited for.
        peak_memory_bytes: Of the GPU, 0 without one.
    """

    seconds: tuple[float, ...]
    peak_memory_bytes: int


def time_steps(module: SegmentationModule, groups: int = 3, group: int = 1, warmup: int = 1) -> StepTimes:
    """Trains for a few steps and measures them, drawing and augmenting of the batches included; writes nothing.

    Args:
        module: From `prepare`; its weights are trained on.
        groups: Times to measure.
        group: Steps of each. A GPU works behind the back of the process, and is waited for only after a group.
        warmup: Steps before, which are slower and not counted.

    Raises:
        TrainingError: As of `fit`.
    """
    import lightning
    import torch

    ends: list[float] = []

    class Clock(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            done = batch_idx + 1 - warmup
            if done >= 0 and done % group == 0:
                if module.device.type == "cuda":
                    torch.cuda.synchronize(module.device)
                ends.append(time.monotonic())

    module.step, module.checked, module.steps_per_epoch = 0, 0, warmup + groups * group
    module.losses.clear()
    is_cuda = torch.cuda.is_available()
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    with tame_lightning(), repeat_exactly(module.settings):
        make_trainer(module, Clock(), max_epochs=1, logger=False).fit(module)
    seconds = tuple((end - begin) / group for begin, end in itertools.pairwise(ends))
    return StepTimes(seconds, torch.cuda.max_memory_allocated() if is_cuda else 0)
