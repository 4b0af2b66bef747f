"""schedule_factor: how the learning rate changes as training goes on."""

from __future__ import annotations

import math

from neurotome.training.recipe import TrainSettings


def schedule_factor(settings: TrainSettings, done: float, epochs: int) -> float:
    """Returns the factor on the learning rate when a share of the training, and so many whole epochs, are done.

    `cosine`: Loshchilov and Hutter 2017, arXiv 1608.03983; `one-cycle`: Smith and Topin 2018, arXiv 1708.07120, by cosines
    up from 1/25 over 30 %, then down to 1/10000. The others rise linearly over the share `warmup`.
    """
    schedule, warmup = settings.schedule, settings.warmup
    if schedule == "one-cycle":
        if done < 0.3:
            return 1 / 25 + (1 - 1 / 25) * 0.5 * (1 - math.cos(math.pi * done / 0.3))
        return 1e-4 + (1 - 1e-4) * 0.5 * (1 + math.cos(math.pi * (done - 0.3) / 0.7))
    if done < warmup:
        return max(done, 0.01 * warmup) / warmup
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return float(settings.step_factor ** (epochs // settings.step_epochs))
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))
