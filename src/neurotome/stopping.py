"""Requests to stop: Ctrl-C (SIGINT), and SIGTERM, by which a cluster warns before it takes the machine back."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, field

ECHO_S = 1.0
"""Seconds in which a second SIGTERM is no request of its own."""


class TerminatedError(KeyboardInterrupt):
    """SIGTERM has asked this process to stop; whoever handles a KeyboardInterrupt handles it too."""


@dataclass(frozen=True)
class StopRequest:
    """A signal that asks this process to stop, and when it came on the clock `time.monotonic`."""

    number: int
    at: float = field(default_factory=time.monotonic)

    def is_echoed_by(self, number: int) -> bool:
        """Says whether another signal is this request once more, and not somebody who has lost patience.

        A cluster sends SIGTERM to every process of a job, `timeout` to a process and to its group, and our own parents
        pass it on.
        """
        return number == self.number == signal.SIGTERM and time.monotonic() - self.at < ECHO_S

    def to_error(self) -> KeyboardInterrupt:
        """Returns what is raised to stop."""
        return TerminatedError() if self.number == signal.SIGTERM else KeyboardInterrupt()
