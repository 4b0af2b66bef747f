"""record_step: the way from a batch to its loss and back, recorded once and then repeated by a GPU as a whole.

Launched one by one, the some two thousand operations of a step take the host longer than most GPUs need to do them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from neurotome.errors import SettingsError

Compute = Callable[[Tensor, Tensor], Tensor]
"""Loss of a batch."""


class _Recording(nn.Module):
    """What torch records: a function, and the network whose weights have gradients."""

    def __init__(self, net: nn.Module, compute: Compute) -> None:
        super().__init__()
        self.net, self.compute = net, compute

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.compute(images, labels)


def record_step(net: nn.Module, compute: Compute, images: Tensor, labels: Tensor, is_asked: bool) -> Compute:
    """Returns a function that computes what `compute` does, for batches of this shape from a recording.

    Nothing else may use the GPU meanwhile. The network's statistics are left as they are, and what it draws at random
    follows the generator of the device, as without a recording. Where it cannot be recorded, a SettingsError says so if
    that `is_asked` for; otherwise a warning does, and `compute` is returned.

    Args:
        net: In training mode; it must stay so, and where it is, while the function is used.
        compute: Returns the loss by this network, without looking at values on the way.
        images: A batch on a GPU.
        labels: Its labels.
        is_asked: Whether a person asked for it.
    """
    kind, kept = images.device.type, [buffer.clone() for buffer in net.buffers()]
    arithmetic = torch.autocast(
        kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False
    )  # rounded weights that are kept would be those of the first step forever
    try:
        with arithmetic:
            repeat: Any = torch.cuda.make_graphed_callables(
                _Recording(net, compute), (images.clone(), labels.clone()), allow_unused_input=True
            )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        if is_asked:
            raise SettingsError(
                f"train.cuda_graph is on, but the steps of this network cannot be recorded ({reason}). Use "
                "--train.cuda-graph off."
            ) from error
        warnings.warn(
            f"the steps of this network cannot be recorded ({reason}); they are launched one by one, which is slower.",
            stacklevel=2,
        )
        repeat = None
    with torch.no_grad():
        for buffer, before in zip(net.buffers(), kept, strict=True):
            buffer.copy_(before)
    if repeat is None:
        return compute
    shapes = images.shape, labels.shape

    def run(images: Tensor, labels: Tensor) -> Tensor:
        if (images.shape, labels.shape) != shapes:  # the last of a sequential pass
            return compute(images, labels)
        loss: Tensor = repeat(images, labels)
        return loss.clone()  # the next step writes where this one is

    return run
