"""BatchMaker: makes the batch of any step, drawn, cut, scaled and augmented, while the step before is computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import torch
from torch import Tensor

from neurotome.augment import AugmentSettings, augment
from neurotome.training.rank import Rank
from neurotome.training.resident import ResidentImages
from neurotome.training.sampler import PatchSampler

AHEAD = 2
"""Steps of work that a GPU may have before it; each waits with a batch in its memory."""

Batch = tuple[Tensor, Tensor]
"""Scaled grey values and labels."""


class BatchStream:
    """What a function yields, each time anew."""

    def __init__(self, make: Callable[[], Iterator[Batch]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Batch]:
        return self.make()


class BatchMaker:
    """Makes batches that depend on the seed and the step alone.

    A thread draws them. On a GPU it also cuts and augments them, on a stream of its own, because there launching so many
    small operations takes longer than doing them. On a CPU, whose cores the step needs, that is done between steps.
    """

    def __init__(
        self,
        sampler: PatchSampler,
        augmentation: AugmentSettings,
        seed: int,
        rank: Rank,
        device: torch.device,
        is_resident: bool,
    ) -> None:
        """Puts the training images on the device where they are to be resident."""
        self.sampler, self.augmentation, self.seed, self.rank, self.device = sampler, augmentation, seed, rank, device
        self.ignore = sampler.pools[0].classes.ignore
        self.resident = ResidentImages(sampler, device) if is_resident else None
        self.stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.given: deque[Any] = deque()  # events: what a GPU had to do when each of the last batches was given
        self.coming: Future[tuple[Batch, Any]] | None = None

    def make_ahead(self, first: int, end: int) -> Iterator[Batch]:
        """Yields the batches of the steps from `first` to `end`, which is left out."""
        self.coming = None
        if self.stream is not None:  # where the images were put on the device, by another stream
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with ThreadPoolExecutor(1, "draw") as thread:
            for step in range(first, end):
                batch = self.coming or thread.submit(self._begin, step)
                self.coming = thread.submit(self._begin, step + 1) if step + 1 < end else None
                yield self._give(step, *batch.result())

    def wait(self) -> None:
        """Waits until the thread is done with what it was given: a file has one reader at a time."""
        if self.coming is not None:
            wait([self.coming])

    def _begin(self, step: int) -> tuple[Batch, Any]:
        """Returns a batch, and on a GPU the event that it waits for; on a CPU it is still to be augmented."""
        if self.stream is None:
            return self._draw(step), None
        with torch.cuda.stream(self.stream):
            return self._augment(self._draw(step), step), self.stream.record_event()

    def _give(self, step: int, batch: Batch, made: Any) -> Batch:
        """Returns a batch to the thread that computes the steps."""
        if self.stream is None:
            return self._augment(batch, step)
        current = torch.cuda.current_stream(self.device)
        current.wait_event(made)
        for tensor in batch:
            tensor.record_stream(current)  # its memory is not given to later batches before this stream is done with it
        self.given.append(current.record_event())
        if len(self.given) > AHEAD:
            self.given.popleft().synchronize()
        return batch

    def _draw(self, step: int) -> Batch:
        """Returns a batch on the device, not augmented."""
        if self.resident is not None:
            return self.resident.cut(self._send(self.resident.locate(self.sampler.list_places(step))))
        images, labels = (self._send(torch.from_numpy(array)) for array in self.sampler.draw(step))
        return images, labels

    def _send(self, tensor: Tensor) -> Tensor:
        """Returns a tensor on the device, without waiting for what that still has to do."""
        return (tensor.pin_memory() if self.stream is not None else tensor).to(self.device, non_blocking=True)

    def _augment(self, batch: Batch, step: int) -> Batch:
        """Returns a batch transformed, where each sample gets what it would get if all of the batch were here."""
        generator = torch.Generator().manual_seed(seed_of_step(self.seed, step))
        here = len(batch[0])
        first, count = here * self.rank.number, here * self.rank.count
        return augment(*batch, self.augmentation, self.ignore, generator, first, count)


def seed_of_step(seed: int, step: int) -> int:
    """Returns the seed of all that is drawn at random for a step, but for its patches."""
    return seed * 1_000_003 + step
