from __future__ import annotations

import io
import re
import sys
from types import SimpleNamespace

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


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    made = io.StringIO()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=made))  # pytest sets its own once the test begins
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


def test_a_log_gets_plain_lines_now_and_then(clock: Clock, log: io.StringIO) -> None:
    shown = Progress("reading", 100, "MB", interval_s=30)
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


def read_screen(written: str) -> list[str]:
    """Returns the lines that a terminal shows in the end: the subset of its commands that rich uses."""
    lines, row, column = [""], 0, 0
    for command in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|\n|\r|[^\x1b\n\r]+", written):
        if command == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif command == "\r":
            column = 0
        elif command == "\x1b[2K":
            lines[row] = ""
        elif re.fullmatch(r"\x1b\[\d+A", command):
            row -= int(command[2:-1])
        elif not command.startswith("\x1b"):
            lines[row] = lines[row][:column] + command + lines[row][column + len(command) :]
            column += len(command)
    return [line.rstrip() for line in lines if line.strip()]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    made = Terminal()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=made))  # pytest sets its own once the test begins
    return made


def test_a_terminal_gets_a_bar_that_is_redrawn(clock: Clock, terminal: Terminal) -> None:
    shown = Progress("reading", 4)
    for done in range(1, 3):
        clock.now += 10
        shown.update(done, "loss [0.5]")
    [line] = read_screen(terminal.getvalue())
    assert re.fullmatch(r"reading \S+ +50%, 20 s left, loss \[0\.5\]", line)
    clock.now += 10
    shown.finish("[bold]F1")
    assert read_screen(terminal.getvalue()) == ["reading: done in 30 s, [bold]F1"]
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")  # the cursor is back


def test_two_tasks_at_a_time_have_a_bar_each(clock: Clock, terminal: Terminal) -> None:
    training, tissue = Progress("training", 10), Progress("making tissue", 10)
    clock.now += 10
    training.update(5)
    tissue.update(2)
    assert [line.split(" ")[0] for line in read_screen(terminal.getvalue())] == ["training", "making"]
    tissue.finish()
    clock.now += 1
    training.update(6)
    first, second = read_screen(terminal.getvalue())
    assert first == "making tissue: done in 10 s"
    assert second.startswith("training ")
    training.finish()
    assert read_screen(terminal.getvalue()) == ["making tissue: done in 10 s", "training: done in 11 s"]


def test_messages_stand_above_the_bars(clock: Clock, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "sys", sys)
    monkeypatch.setattr(sys, "stderr", terminal)
    training = Progress("training", 10)
    training.update(5)
    tissue = Progress("making tissue", 10)  # while standard error is not the terminal itself
    tissue.update(5)
    sys.stderr.write("neurotome: note: two sizes\n")
    assert [line.split(" ")[0] for line in read_screen(terminal.getvalue())] == ["neurotome:", "training", "making"]
    training.finish()
    tissue.finish()
    assert sys.stderr is terminal


def test_a_task_that_fails_leaves_no_bar(clock: Clock, terminal: Terminal) -> None:
    shown = Progress("reading", 4)
    shown.update(1)
    del shown
    assert read_screen(terminal.getvalue()) == []


def test_a_bar_never_wraps(clock: Clock, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    shown = Progress("reading", 4)
    shown.update(2, "note " * 20)
    assert max(len(line) for line in read_screen(terminal.getvalue())) <= 40
    shown.finish()
    assert read_screen(terminal.getvalue()) == ["reading: done in 0 s"]


def test_a_terminal_is_not_flooded(clock: Clock, terminal: Terminal) -> None:
    shown = Progress("reading", 10_000)
    for done in range(10_000):
        clock.now += 0.0001
        shown.update(done)
    assert terminal.getvalue().count("reading") <= 7  # one second at five a second, the first, and the start


def test_what_was_done_before_does_not_count_for_the_rate(clock: Clock, log: io.StringIO) -> None:
    shown = Progress("training", 100, "steps", interval_s=0)
    shown.start_at(90)
    clock.now += 10
    shown.update(95)
    assert log.getvalue() == "training:  95%, 0.5 steps/s, 10 s left\n"


def test_nothing_to_do_is_all_done(clock: Clock, log: io.StringIO) -> None:
    Progress("reading", 0, interval_s=0).update(0)
    assert log.getvalue() == "reading: 100%\n"


def test_track_yields_everything_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track("abc", "reading", 3)) == ["a", "b", "c"]
    assert re.fullmatch(r"reading: done in 0 s\n", capsys.readouterr().err)
