"""serial: threads of this process. Nothing to start, nothing to send; what kills a block kills the job."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from neurotome.engines.base import Attempt, Build, Outcome, Pending, describe
from neurotome.errors import is_disk_full

POLL_S = 0.2


@dataclass(frozen=True)
class Serial:
    """Does as many tasks at once as there are threads."""

    threads: int = 2
    retries: int = 2

    def run(self, build: Build, tasks: Iterable[int]) -> Iterator[Outcome]:
        """See `Engine.run`. When it is stopped, it waits for the tasks under way and begins no other."""
        work = build()
        pending = Pending(tasks, self.retries)
        given: queue.SimpleQueue[Attempt | None] = queue.SimpleQueue()
        ended: queue.SimpleQueue[tuple[Attempt, object, float]] = queue.SimpleQueue()

        def labour() -> None:
            while (attempt := given.get()) is not None:
                began = time.monotonic()
                try:
                    result = work(attempt.task)
                except Exception as error:
                    result = _Failed(error)
                ended.put((attempt, result, time.monotonic() - began))

        # daemons: a task that hangs must not keep a process that is told twice to end
        threads = [threading.Thread(target=labour, daemon=True, name=f"block-{i}") for i in range(self.threads)]
        under_way = 0
        try:
            for thread in threads:
                thread.start()
            while True:
                while under_way < self.threads and (attempt := pending.take()) is not None:
                    given.put(attempt)
                    under_way += 1
                if not under_way:
                    return
                try:
                    attempt, result, seconds = ended.get(timeout=POLL_S)  # a time-out, so that Ctrl-C is heard everywhere
                except queue.Empty:
                    continue
                under_way -= 1
                if not isinstance(result, _Failed):
                    yield Outcome(attempt.task, result, None, attempt.number, seconds)
                elif is_disk_full(result.error):
                    raise result.error
                elif (outcome := pending.fail(attempt, describe(result.error), seconds)) is not None:
                    yield outcome
        except KeyboardInterrupt:
            sys.stderr.write("stopping after the blocks under way\n")
            raise
        finally:
            for _ in threads:
                given.put(None)
            for thread in threads:
                if thread.ident is not None:
                    thread.join()


@dataclass(frozen=True)
class _Failed:
    error: Exception
