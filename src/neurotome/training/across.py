"""What is differentiated across ranks: sums of losses, and batch normalisation by the statistics of the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from neurotome.training.rank import Rank


def add_up(rank: Rank, sums: Tensor) -> Tensor:
    """Returns the sums over the ranks, as losses need them.

    Every rank computes the same loss of them, and gradients are averaged over the ranks; so that the average is the loss's
    gradient, each rank's is as many times as large as there are ranks.
    """
    total: Tensor = AddUp.apply(sums, rank)  # type: ignore[no-untyped-call]
    return total


class AddUp(torch.autograd.Function):
    """See `add_up`."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, rank: Rank) -> Tensor:
        """Returns the sums."""
        ctx.count = rank.count
        return rank.reduce(sums.detach().clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Is the same on every rank, so that nothing need be sent."""
        return gradient * ctx.count, None


class BatchNorm(torch.autograd.Function):
    """Batch normalisation (Ioffe and Szegedy 2015, arXiv 1502.03167) by the mean and variance of all ranks' batches.

    torch's SyncBatchNorm does the same, on GPUs only. All ranks have equally many values.
    """

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor,
        running: tuple[Tensor, Tensor] | None,
        momentum: float,
        eps: float,
        rank: Rank,
    ) -> Tensor:
        """Normalises images (n, channels, ...) and moves the running mean and variance, if there are any."""
        axes = [axis for axis in range(images.ndim) if axis != 1]
        ctx.values = images.numel() // images.shape[1] * rank.count
        own_var, own_mean = torch.var_mean(images, axes, correction=0)
        both = own_mean.new_zeros(rank.count, 2, len(own_mean))
        both[rank.number] = torch.stack((own_mean, own_var))
        means, variances = rank.reduce(both).unbind(1)
        mean = means.mean(0)
        var = (variances + (means - mean).square()).mean(0)  # within the ranks' batches, and between them
        if running is not None:
            running[0].lerp_(mean, momentum)
            running[1].lerp_(var * (ctx.values / (ctx.values - 1)), momentum)
        ctx.rank, ctx.eps = rank, eps
        ctx.save_for_backward(images, weight, mean, var)
        return torch.nn.functional.batch_norm(images, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients; that of the images also goes through mean and variance, and so through all ranks."""
        images, weight, mean, var = ctx.saved_tensors
        scale = torch.rsqrt(var + ctx.eps)
        through, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, images, weight, mean, var, mean, scale, False, ctx.eps, [True, True, True]
        )
        all_weight, all_bias = ctx.rank.reduce(torch.stack((by_weight, by_bias))) / ctx.values
        slope = -weight * scale.square() * all_weight
        offset = -weight * scale * all_bias - slope * mean
        shape = [-1 if axis == 1 else 1 for axis in range(images.ndim)]
        through.addcmul_(images, slope.view(shape)).add_(offset.view(shape))
        return through, by_weight, by_bias, None, None, None, None


class ShareStatistics(TorchFunctionMode):
    """Has every batch normalisation that is trained in the block take the statistics of all ranks' batches."""

    def __init__(self, rank: Rank) -> None:
        super().__init__()
        self.rank = rank

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Is asked before every function of torch."""
        kwargs = kwargs or {}
        if function is not torch.nn.functional.batch_norm:
            return function(*args, **kwargs)
        return self._normalise(*args, **kwargs)

    def _normalise(
        self,
        images: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return torch.nn.functional.batch_norm(images, running_mean, running_var, weight, bias, False, momentum, eps)
        weight = images.new_ones(images.shape[1]) if weight is None else weight
        bias = images.new_zeros(images.shape[1]) if bias is None else bias
        running = None if running_mean is None or running_var is None else (running_mean, running_var)
        result: Tensor = BatchNorm.apply(  # type: ignore[no-untyped-call]
            images, weight, bias, running, momentum, eps, self.rank
        )
        return result
