"""When each training step ends, told by torch to a hook that every optimiser calls: no method is changed to be timed."""

import itertools
import statistics
import time

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


class StepClock:
    """Times the steps of a training within a `with` block.

    A GPU is waited for where the timed part begins and ends, and nowhere between, so that launching ahead is not disturbed.

    Attributes:
        ends: When each step ended, in seconds of `time.perf_counter`, and of this process's threads, all together.
    """

    def __init__(self, warmup: int, steps: int, batch: int, started: float) -> None:
        """Leaves the first `warmup` of `steps` untimed; `started` is when the process was started, by `time.time`."""
        self.warmup, self.steps, self.batch, self.started = warmup, steps, batch, started
        self.ends: list[tuple[float, float]] = []
        self.first_step_s = 0.0

    def __enter__(self) -> "StepClock":
        self.hook = register_optimizer_step_post_hook(self.note)
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()

    def note(self, *_: object) -> None:
        """Is called at the end of each step of any optimiser."""
        if len(self.ends) + 1 in (self.warmup, self.steps) and torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append((time.perf_counter(), time.process_time()))
        if len(self.ends) == 1:
            self.first_step_s = time.time() - self.started

    def summarise(self) -> dict:
        """Returns images per second over the timed steps, waiting for batches included, and what else was noted."""
        if len(self.ends) < self.steps:
            raise SystemExit(f"{len(self.ends)} steps were done; expected {self.steps}")
        ends, used = zip(*self.ends[self.warmup - 1 : self.steps], strict=True)
        return {
            "images_per_second": self.batch * (len(ends) - 1) / (ends[-1] - ends[0]),
            "median_step_s": statistics.median(b - a for a, b in itertools.pairwise(ends)),
            "cpu_step_s": (used[-1] - used[0]) / (len(ends) - 1),
            "timed_steps": len(ends) - 1,
            "first_step_s": self.first_step_s,
            "peak_memory_bytes": measure_peak_memory(),
        }


def measure_peak_memory() -> int:
    """Returns the most memory held so far, in bytes: the GPU's if there is one, otherwise this process's (Linux)."""
    import resource

    on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return on_gpu or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
