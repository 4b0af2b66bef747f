from __future__ import annotations

import io
import re

import pytest

from neurotome import progress
from neurotome.progress import Progress, format_duration, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.7, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.9, "1 h 00 min"),
        (7620, "2 h 07 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_log_gets_plain_lines_now_and_then(clock: Clock) -> None:
    log = io.StringIO()
    shown = Progress("reading", 100, "MB", stream=log, interval_s=30)
    for second in range(1, 101):
        clock.now += 1
        shown.update(second, "loss 0.5")
    shown.finish("F1 0.9")
    assert log.getvalue().splitlines() == [
        "reading:  30%, 1 MB/s, 1 min 10 s left, loss 0.5",
        "reading:  60%, 1 MB/s, 40 s left, loss 0.5",
        "reading:  90%, 1 MB/s, 10 s left, loss 0.5",
        "reading: done in 1 min 40 s, F1 0.9",
    ]


def test_a_terminal_gets_one_line_that_is_rewritten(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    terminal = Terminal()
    shown = Progress("reading", 4, stream=terminal)
    for done in range(1, 4):
        clock.now += 10
        shown.update(done)
    shown.finish()
    written = terminal.getvalue()
    assert written.count("\n") == 1
    assert written.endswith("\n")
    lines = written.split("\r\x1b[2K")
    assert lines[2] == "reading: [##########..........]  50%, 20 s left"
    assert lines[-1] == "reading: done in 30 s\n"


def test_a_line_never_wraps_on_a_terminal(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    terminal = Terminal()
    Progress("reading", 4, stream=terminal).update(2, "note " * 20)
    assert len(terminal.getvalue().removeprefix("\r\x1b[2K")) == 39


def test_a_terminal_is_not_flooded(clock: Clock) -> None:
    terminal = Terminal()
    shown = Progress("reading", 10_000, stream=terminal)
    for done in range(10_000):
        clock.now += 0.0001
        shown.update(done)
    assert terminal.getvalue().count("\r") <= 6  # one second at five a second, and the first


def test_what_was_done_before_does_not_count_for_the_rate(clock: Clock) -> None:
    log = io.StringIO()
    shown = Progress("training", 100, "steps", stream=log, interval_s=0)
    shown.start_at(90)
    clock.now += 10
    shown.update(95)
    assert log.getvalue() == "training:  95%, 0.5 steps/s, 10 s left\n"


def test_nothing_to_do_is_all_done(clock: Clock) -> None:
    log = io.StringIO()
    Progress("reading", 0, stream=log, interval_s=0).update(0)
    assert log.getvalue() == "reading: 100%\n"


def test_track_yields_everything_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track("abc", "reading", 3)) == ["a", "b", "c"]
    assert re.fullmatch(r"reading: done in 0 s\n", capsys.readouterr().err)
