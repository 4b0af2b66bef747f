"""Progress with rate and time left: live bars on a terminal, plain lines in a log file."""

from __future__ import annotations

import atexit
import sys
import time
from collections.abc import Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

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

    On a terminal a bar is redrawn at most five times a second, and bars of tasks at the same time stand below each other;
    elsewhere a plain line is printed every `interval_s` seconds, so that a log file stays short.
    """

    def __init__(self, title: str, total: float, unit: str = "", *, interval_s: float = 30.0) -> None:
        """Starts the clock; `update` counts up to `total`, and a rate is shown if its unit is given."""
        self.title, self.total, self.unit = title, total, unit
        self.stream = sys.stderr
        # while bars are shown, rich puts what prints above them in the place of standard error
        terminal = getattr(self.stream, "rich_proxied_file", self.stream)
        self.bars = _open_bars(terminal) if self.stream.isatty() else None
        self.task = self.bars.add_task(title, total=total or 1, text="") if self.bars else None
        self.interval_s = 0.2 if self.bars else interval_s
        self.started = time.monotonic()
        self.shown = -float("inf") if self.bars else self.started
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
        pieces = [f"{min(1.0, done / self.total) if self.total else 1.0:4.0%}"]
        if done > self.first and now > self.started:
            rate = (done - self.first) / (now - self.started)
            pieces.append(f"{rate:.3g} {self.unit}/s" if self.unit else "")
            pieces.append(f"{format_duration((self.total - done) / rate)} left")
        text = ", ".join(filter(None, [*pieces, note]))
        if self.bars is None or self.task is None:
            self._print(f"{self.title}: {text}")
        else:
            self.bars.start()
            self.bars.console.show_cursor()  # which an error would leave hidden
            self.bars.update(self.task, completed=done, text=text, refresh=True)

    def finish(self, note: str = "") -> None:
        """Shows the last line and ends it."""
        self._close()
        elapsed = time.monotonic() - self.started
        self._print(f"{self.title}: done in {format_duration(elapsed)}" + (f", {note}" if note else ""))

    def _print(self, text: str) -> None:
        if self.bars is None:
            self.stream.write(f"{text}\n")
            self.stream.flush()
        else:  # above the bars that are still there
            self.bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __del__(self) -> None:
        if hasattr(self, "task"):
            self._close()

    def _close(self) -> None:
        if self.bars is not None and self.task is not None:
            self.bars.remove_task(self.task)
            if not self.bars.tasks:
                self.bars.stop()
        self.task = None


@cache
def _open_bars(stream: TextIO) -> Bars:
    """Returns the bars of a terminal, one for all tasks; other messages are printed above them."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    title, text = (TextColumn(f"{{task.{name}}}", markup=False) for name in ("description", "fields[text]"))
    bars = Bars(title, BarColumn(20), text, console=Console(file=stream), auto_refresh=False, transient=True)
    atexit.register(bars.stop)
    return bars


def track(items: Iterable[T], title: str, total: int, unit: str = "") -> Iterator[T]:
    """Yields the items and shows progress over them."""
    progress = Progress(title, total, unit)
    for done, item in enumerate(items, start=1):
        yield item
        progress.update(done)
    progress.finish()
