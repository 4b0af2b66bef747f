"""Rank: one of the processes that train a network together, and all that they tell each other while they do.

Each has a device and an equal part of every batch, and does every step with it; gradients are averaged by torch's
DistributedDataParallel. What is no mean over the ranks is made of sums here: losses, batch statistics, scores.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from neurotome.lazy import lazy_import

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist
    from torch import Tensor
else:
    torch = lazy_import("torch")

T = TypeVar("T")

HOST = "127.0.0.1"
"""All ranks are on one machine and listen to nothing beyond it."""

INTERFACE = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Environment variables by which torch's back ends are told where to listen; they have no other way."""


class Rank:
    """One of the ranks.

    Attributes:
        number: From 0 on; the first of them holds the run folder, and it alone writes.
        count: How many there are; 1: a training in one process, to which nobody speaks.
    """

    def __init__(self, number: int = 0, count: int = 1) -> None:
        self.number, self.count = number, count
        self.group: dist.ProcessGroup | None = None

    @contextlib.contextmanager
    def join(self, port: int, listening: int | None = None, is_cuda: bool = False) -> Iterator[None]:
        """Connects with the other ranks, which do the same.

        Args:
            port: Of the first rank, on this machine.
            listening: File descriptor of its socket, which the first rank has, and which is closed.
            is_cuda: Whether each has a GPU.
        """
        import torch.distributed as dist

        with _listen_to_this_machine():
            store = dist.TCPStore(  # type: ignore[attr-defined]
                HOST, port, self.count, listening is not None, wait_for_workers=False, master_listen_fd=listening
            )
            back_end = "cpu:gloo,cuda:nccl" if is_cuda else "gloo"
            dist.init_process_group(back_end, store=store, rank=self.number, world_size=self.count)
            # of its own: gradients are on their way in the other one at the same time
            self.group = dist.new_group()
        try:
            yield
        finally:
            self.group = None
            dist.destroy_process_group()

    def agree(self, values: Sequence[float]) -> list[float]:
        """Returns the largest that any rank gives, of each value."""
        if self.group is None:
            return list(values)
        import torch.distributed as dist

        largest = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(largest, dist.ReduceOp.MAX, self.group)
        return list(largest.tolist())

    def count_all(self, counts: NDArray[Any]) -> NDArray[Any]:
        """Returns the sums over the ranks of int64 or float64 counts."""
        total = torch.from_numpy(np.array(counts))
        self.reduce(total)
        return total.numpy()

    def reduce(self, values: Tensor) -> Tensor:
        """Makes values the sums over the ranks, in place, and returns them."""
        if self.group is not None:
            import torch.distributed as dist

            dist.all_reduce(values, group=self.group)
        return values


@contextlib.contextmanager
def _listen_to_this_machine() -> Iterator[None]:
    """Names the interface of this machine alone to torch while its connections are made."""
    name = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    before = {variable: os.environ.get(variable) for variable in INTERFACE}
    if name is not None:
        os.environ.update(dict.fromkeys(INTERFACE, name))
    try:
        yield
    finally:
        for variable, value in before.items():
            os.environ.pop(variable, None)
            if value is not None:
                os.environ[variable] = value
