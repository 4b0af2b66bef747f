"""Panel: rows of fields, one task at a time in a thread of its own with progress and a stop, and what happened, as text."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from napari.qt.threading import create_worker
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QProgressBar,
    QPushButton,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from neurotome.errors import NeurotomeError, explain_system_error
from neurotome.napari.predicting import Report, StoppedError

T = TypeVar("T")


class Panel(QWidget):
    """A dock widget; what it says of itself is text, so that it can be read and copied."""

    progressed = Signal(float, str)

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self.viewer = viewer
        self.form = QFormLayout()
        self.buttons = QHBoxLayout()
        self.bar = QProgressBar()
        self.bar.setRange(0, 1000)
        self.bar.hide()
        self.message, self.command = QLabel(), QLineEdit()
        self.message.setWordWrap(True)
        self.message.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.command.setReadOnly(True)
        self.command.setPlaceholderText("the same as a command")
        self.command.setToolTip("What the last action was, as a command for a terminal.")
        layout = QVBoxLayout(self)
        layout.addLayout(self.form)
        layout.addLayout(self.buttons)
        for widget in (self.bar, self.message, self.command):
            layout.addWidget(widget)
        layout.addStretch()
        self.stop = self.add_button("Stop", self.ask_to_stop)
        self.stop.setEnabled(False)
        self._worker: Any = None
        self._done: Callable[[Any], str] = str
        self._stopping, self._notes = False, list[str]()
        self.progressed.connect(self._show_progress)

    def add_button(self, text: str, act: Callable[[], object], tip: str = "") -> QPushButton:
        """Adds a button in front of those that are there, in their row."""
        button = QPushButton(text)
        button.setToolTip(tip)
        button.clicked.connect(lambda *_: act())
        self.buttons.insertWidget(max(0, self.buttons.count() - 1), button)
        return button

    def add_path(self, label: str, tip: str) -> QLineEdit:
        """Adds a row for a folder, which can be typed or chosen."""
        edit, choose = QLineEdit(), QToolButton()
        edit.setToolTip(tip)
        choose.setText("...")
        choose.clicked.connect(lambda *_: self._choose_folder(edit, label))
        row = QHBoxLayout()
        row.addWidget(edit)
        row.addWidget(choose)
        self.form.addRow(label, row)
        return edit

    def _choose_folder(self, edit: QLineEdit, label: str) -> None:
        if chosen := QFileDialog.getExistingDirectory(self, label, edit.text()):
            edit.setText(chosen)

    @contextlib.contextmanager
    def saying_errors(self) -> Iterator[None]:
        """Makes an error that a user can mend the panel's message; any other goes on to napari."""
        try:
            yield
        except (NeurotomeError, OSError, MemoryError) as error:
            self.say(explain(error) or str(error))

    def say(self, text: str) -> None:
        """Shows what happened."""
        self.message.setText(text)

    def show_command(self, command: str) -> None:
        """Shows what is done as a command."""
        self.command.setText(command)
        self.command.setCursorPosition(0)

    def start(self, work: Callable[[Report], T], done: Callable[[T], str]) -> None:
        """Does work in a thread of its own.

        Args:
            work: Calls what it is given to say how far it is.
            done: Called in the window's thread with what `work` returned; returns what the panel says then.
        """
        self._done, self._stopping, self._notes = done, False, []
        self._worker = create_worker(work, self._report)
        self._worker.returned.connect(self._finish)
        self._worker.errored.connect(self._fail)
        self._worker.warned.connect(self._note)
        self._set_busy(True)
        self.say("")
        self._worker.start()

    def ask_to_stop(self) -> None:
        """Asks the task that is running to end."""
        self._stopping = True
        self.stop.setEnabled(False)

    @property
    def is_busy(self) -> bool:
        """Whether a task is running."""
        return self._worker is not None

    def _report(self, share: float, text: str) -> None:
        """Is called in the task's thread."""
        if self._stopping or self._worker.abort_requested:  # napari asks so when its window is closed
            raise StoppedError
        self.progressed.emit(share, text)

    def _show_progress(self, share: float, text: str) -> None:
        self.bar.setValue(round(share * 1000))
        self.bar.setFormat(f"{text} (%p%)")

    def _note(self, warned: tuple[Any, ...]) -> None:
        message, category, *_ = warned
        if issubclass(category, UserWarning):
            self._notes.append(str(message))
            self.say("\n".join(self._notes))

    def _finish(self, result: Any) -> None:
        self._set_busy(False)
        with self.saying_errors():
            self.say("\n".join([self._done(result), *self._notes]))

    def _fail(self, error: Exception) -> None:
        self._set_busy(False)
        if isinstance(error, StoppedError):
            self.say("Stopped; nothing was added.")
            return
        self.say(explain(error) or f"unexpected {type(error).__name__}: {error}")
        if explain(error) is None:
            raise error

    def _set_busy(self, is_busy: bool) -> None:
        if not is_busy:
            self._worker = None
        self.bar.setValue(0)
        self.bar.setVisible(is_busy)
        for i in range(self.buttons.count()):
            self.buttons.itemAt(i).widget().setEnabled(not is_busy)
        self.stop.setEnabled(is_busy)


def explain(error: BaseException) -> str | None:
    """Returns the message for an error that a user can mend, None for any other."""
    return str(error) if isinstance(error, NeurotomeError) else explain_system_error(error)
