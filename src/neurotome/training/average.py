"""MovingAverage: a copy of a network whose weights follow those of the trained one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class MovingAverage(AveragedModel):
    """torch's `AveragedModel`, but that it is told how many steps are done, because reading that from a GPU waits for it."""

    def __init__(self, net: nn.Module, limit: float) -> None:
        """Copies a network; `limit` is the decay that `average_decay` does not exceed."""
        super().__init__(net, use_buffers=True)
        self.requires_grad_(False)  # it follows, and learns nothing
        self.limit = limit
        self.attach(net)

    def attach(self, net: nn.Module) -> None:
        """Notes which tensors follow which, after either network was moved to another device."""
        pairs = zip(_list_tensors(self.module), _list_tensors(net), strict=True)
        self.weights: tuple[list[Tensor], list[Tensor]] = ([], [])
        self.counts: tuple[list[Tensor], list[Tensor]] = ([], [])  # such as those of batch normalisation
        for averaged, current in pairs:
            kind = self.weights if averaged.is_floating_point() else self.counts
            kind[0].append(averaged)
            kind[1].append(current)

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Takes up the weights after a step, counted from 1."""
        torch._foreach_lerp_(*self.weights, 1 - average_decay(self.limit, step - 1))
        if self.counts[0]:
            torch._foreach_copy_(*self.counts)
        self.n_averaged.fill_(step)


def average_decay(limit: float, done: int) -> float:
    """Returns the decay of a moving average after so many steps, min(limit, (1 + n) / (10 + n)); 0 for the first weights.

    An average as slow from the start as in the end would hold the first weights for long, and little else at the end of a
    short training.
    """
    return min(limit, (1 + done) / (10 + done)) if done else 0.0


def _list_tensors(net: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*net.parameters(), *net.buffers())]
