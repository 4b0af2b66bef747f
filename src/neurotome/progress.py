"""Progress with rate and time left: a live line on a terminal, plain lines in a log file."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

T = TypeVar("T")


def format_duration(seconds: float) -> str:
    """Returns 42 s, 3 min 05 s or 2 h 07 min."""
    whole = round(max(0.0, seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Progress:
    """Reports how far a long task is.

    On a terminal one line is rewritten at most five times a second; elsewhere a plain line is printed every
    `interval_s` seconds, so that a log file stays short.
    """

    def __init__(
        self, title: str, total: float, unit: str = "", *, stream: TextIO | None = None, interval_s: float = 30.0
    ) -> None:
        """Starts the clock.

        Args:
            title: What is done.
            total: What `update` counts up to.
            unit: What is counted; the rate is shown if it is given.
            stream: Where to write; standard error if not given.
            interval_s: Seconds between plain lines where the stream is no terminal.
        """
        self.title, self.total, self.unit = title, total, unit
        self.stream = sys.stderr if stream is None else stream
        self.live = self.stream.isatty()
        self.interval_s = 0.2 if self.live else interval_s
        self.started = time.monotonic()
        self.shown = -float("inf") if self.live else self.started
        self.first = 0.0

    def start_at(self, done: float) -> None:
        """Says that `done` was there before, so that the rate counts only what is done now."""
        self.first = done

    def update(self, done: float, note: str = "") -> None:
        """Shows that `done` of `total` is finished; `note` is appended (loss, score)."""
        now = time.monotonic()
        if now - self.shown < self.interval_s:
            return
        self.shown = now
        self._show(done, now, note)

    def finish(self, note: str = "") -> None:
        """Shows the last line and ends it."""
        elapsed = time.monotonic() - self.started
        text = f"{self.title}: done in {format_duration(elapsed)}" + (f", {note}" if note else "")
        self._write(text, end="\n")

    def _show(self, done: float, now: float, note: str) -> None:
        elapsed = now - self.started
        share = min(1.0, done / self.total) if self.total else 1.0
        fresh = done - self.first
        parts = [f"{share:4.0%}"]
        if fresh > 0 and elapsed > 0:
            rate = fresh / elapsed
            if self.unit:
                parts.append(f"{rate:.3g} {self.unit}/s")
            parts.append(f"{format_duration((self.total - done) / rate)} left")
        if note:
            parts.append(note)
        text = ", ".join(parts)
        if not self.live:
            self._write(f"{self.title}: {text}", end="\n")
            return
        filled = round(share * 20)
        line = f"{self.title}: [{'#' * filled}{'.' * (20 - filled)}] {text}"
        # a line that wraps could not be erased, and every update would leave a row behind
        self._write(line[: shutil.get_terminal_size().columns - 1], end="")

    def _write(self, text: str, end: str) -> None:
        start = "\r\x1b[2K" if self.live else ""
        self.stream.write(start + text + end)
        self.stream.flush()


def track(items: Iterable[T], title: str, total: int, unit: str = "") -> Iterator[T]:
    """Yields the items and shows progress over them."""
    progress = Progress(title, total, unit)
    for done, item in enumerate(items, start=1):
        yield item
        progress.update(done)
    progress.finish()
