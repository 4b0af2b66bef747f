"""Rank processes: helpers, the processes of all ranks but the first, which starts them, and ends when one of them does."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurotome.engines.processes import end_with_parent, explain_exit
from neurotome.errors import NeurotomeError, TrainingError, explain_system_error
from neurotome.lazy import lazy_import, mend_torchvision
from neurotome.stopping import StopRequest
from neurotome.training.rank import HOST, Rank

if TYPE_CHECKING:
    import torch
else:
    torch = lazy_import("torch")

Join = Callable[[], contextlib.AbstractContextManager[None]]
"""Connects a helper with the others; called when it is ready to train."""

READY, LOST, ENDED = "ready", "lost", "its process"
"""What a helper tells then, or when it has lost another; all else is why it has failed. How begins what is told of one that
has ended without a word."""

WAIT_S = 10.0
"""How long is waited for word of a helper that is missed, and for helpers to end when all is done."""


@dataclass(frozen=True)
class _Helper:
    number: int
    process: BaseProcess
    pipe: Connection


@contextlib.contextmanager
def work_together(rank: Rank, is_cuda: bool, work: Callable[..., None], arguments: Sequence[Any]) -> Iterator[None]:
    """Has helpers do `work(rank, join, *arguments)` in processes of their own while the block, the first rank's, runs.

    The threads of torch are shared out. However the block ends, no helper is left; and helpers end with this process.

    Raises:
        TrainingError: A helper has ended or failed, which ends the block.
    """
    if rank.count == 1:
        yield
        return
    threads = torch.get_num_threads()
    share = max(1, threads // rank.count)
    with socket.create_server((HOST, 0)) as server, contextlib.ExitStack() as ending:
        port = int(server.getsockname()[1])
        helpers = []
        for number in range(1, rank.count):
            helpers.append(_start(Rank(number, rank.count), is_cuda, port, share, (work, *arguments)))
            ending.callback(_end, helpers[-1])
        torch.set_num_threads(share)
        ending.callback(torch.set_num_threads, threads)
        for helper in helpers:
            if (word := _read(helper)) != READY:
                raise _to_error(helper, word)
        try:
            with rank.join(port, server.detach(), is_cuda):
                yield
            until = time.monotonic() + WAIT_S
            for helper in helpers:
                helper.process.join(max(0.0, until - time.monotonic()))
        except RuntimeError as error:
            if not is_lost(error):
                raise
            for helper in helpers:  # of which one has ended, or tells why it will
                if (word := _read(helper, WAIT_S)) != LOST:
                    raise _to_error(helper, word) from error
            raise


def is_lost(error: BaseException) -> bool:
    """Says whether an error is torch's that another rank does not answer any more."""
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in ("gloo", "nccl", "connection"))


def _choose_context(is_cuda: bool) -> ForkServerContext | SpawnContext:
    """Returns how processes are made: this one has threads and cannot be forked, but one that only imports can."""
    if is_cuda or "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["neurotome.training.preloaded"])
    return context


def _start(rank: Rank, is_cuda: bool, port: int, threads: int, work: tuple[Any, ...]) -> _Helper:
    context = _choose_context(is_cuda)
    ours, theirs = context.Pipe(duplex=False)
    # read only when torchvision has been mended, which is imported by what is pickled
    packed = bytes(ForkingPickler.dumps(work))
    arguments = (rank, theirs, is_cuda, port, threads, packed)
    process = context.Process(target=_enter, args=arguments, name=f"rank-{rank.number}")
    process.start()
    theirs.close()
    return _Helper(rank.number, process, ours)


def _end(helper: _Helper) -> None:
    helper.process.kill()
    helper.process.join()
    helper.pipe.close()


def _read(helper: _Helper, limit_s: float | None = None) -> str:
    """Waits for a word of a helper and returns it; how it has ended, of one that has without, and LOST after the limit."""
    if not helper.pipe.poll(limit_s):
        return LOST
    try:
        return str(helper.pipe.recv())
    except (EOFError, OSError):
        helper.process.join(WAIT_S)
        return f"{ENDED} {explain_exit(helper.process.exitcode)}"


def _to_error(helper: _Helper, word: str) -> BaseException:
    """Returns what is raised because of what a helper has told."""
    number = -(helper.process.exitcode or 0)
    if word.startswith(ENDED) and number in (signal.SIGINT, signal.SIGTERM):  # before it listened
        return StopRequest(number).to_error()
    hint = (
        " In a script of your own, put `if __name__ == '__main__':` around what it does." if word.startswith(ENDED) else ""
    )
    return TrainingError(
        f"device {helper.number} of this training has failed: {word.rstrip('.')}. The same command goes on from the last "
        f"checkpoint. {hint}".rstrip()
    )


def _enter(rank: Rank, pipe: Connection, is_cuda: bool, port: int, threads: int, packed: bytes) -> None:
    """Is what a helper does; it is silent, because the first rank says all that is to be said."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):  # until it listens
        signal.signal(number, signal.SIG_DFL)
    sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # for as long as it lives
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    if is_cuda:
        torch.cuda.set_device(rank.number)

    @contextlib.contextmanager
    def join() -> Iterator[None]:
        pipe.send(READY)
        with rank.join(port, None, is_cuda):
            yield

    try:
        mend_torchvision()
        work, *arguments = ForkingPickler.loads(packed)
        work(rank, join, *arguments)
    except KeyboardInterrupt:  # the first rank has heard of it
        return
    except Exception as error:
        known = str(error) if isinstance(error, NeurotomeError) else explain_system_error(error)
        with contextlib.suppress(OSError):
            pipe.send(LOST if is_lost(error) else known or f"{type(error).__name__}: {error}")
        sys.exit(1)
