"""TunePanel: fine-tune in a process of its own, which goes on by the same command when it was stopped."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from qtpy.QtCore import QProcess
from qtpy.QtGui import QTextCursor
from qtpy.QtWidgets import QLineEdit, QPlainTextEdit

from neurotome.errors import SettingsError
from neurotome.napari.commands import write_command
from neurotome.napari.fields import ModelBox, offer_model
from neurotome.napari.panel import Panel

MOST_LINES = 500
"""Lines of the command's output that are kept."""


class TunePanel(Panel):
    """Makes a model better by a dataset of corrected crops."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self.dataset = self.add_path("dataset", "Folder with dataset.yaml, such as the one that crops were added to.")
        self.out = self.add_path("run", "Folder of the new run; one that was stopped goes on.")
        self.model, self.options = ModelBox(), QLineEdit()
        self.options.setToolTip("Further options of neurotome fine-tune, such as --train.max-time 10m. None is needed.")
        self.form.addRow("begin with", self.model)
        self.form.addRow("options", self.options)
        self.add_button("Fine-tune", self.tune)
        self.lines = QPlainTextEdit()
        self.lines.setReadOnly(True)
        self.lines.setMaximumBlockCount(MOST_LINES)
        self.layout().insertWidget(self.layout().count() - 1, self.lines)
        self.process = QProcess(self)
        self.process.setProcessChannelMode(QProcess.ProcessChannelMode.MergedChannels)
        self.process.readyRead.connect(self._read)
        self.process.finished.connect(self._end)
        self.process.errorOccurred.connect(self._miss)

    def tune(self) -> None:
        """Starts the command."""
        with self.saying_errors():
            dataset, out = self.dataset.text().strip(), self.out.text().strip()
            if not dataset or not out:
                raise SettingsError("dataset or run is not named; expected two folders. Type or choose them.")
            command = write_command("fine-tune", dataset, init=self.model.model, out=out)
            try:
                words = [*shlex.split(command), *shlex.split(self.options.text())]
            except ValueError as error:
                raise SettingsError(f"options are {self.options.text()!r}: {error}. Close what is quoted.") from error
            self.show_command(shlex.join(words))
            self.lines.clear()
            self.say("Training; the window can be used meanwhile. Stopped, it goes on when it is started again.")
            self._set_busy(True)
            self.bar.setRange(0, 0)  # how long it takes stands in the lines
            self.process.start(sys.executable, ["-m", *words])

    def ask_to_stop(self) -> None:
        """Asks the command to end, which writes a checkpoint first; asked again, it ends at once."""
        if sys.platform == "win32" or self._stopping:
            self.process.kill()
        else:
            self.process.terminate()
            self.say("Stopping after the step under way. Stop again ends it at once.")
        self._stopping = True

    @property
    def is_busy(self) -> bool:
        """Whether the command is running."""
        return bool(self.process.state() != QProcess.ProcessState.NotRunning)

    def _read(self) -> None:
        text = bytes(self.process.readAll().data()).decode(errors="replace")
        self.lines.moveCursor(QTextCursor.MoveOperation.End)
        self.lines.insertPlainText(text)  # which may end within a line
        self.lines.ensureCursorVisible()

    def _miss(self, error: Any) -> None:
        if error == QProcess.ProcessError.FailedToStart:
            self._set_busy(False)
            self.say(f"{sys.executable} cannot be started: {self.process.errorString()}. Give the command in a terminal.")

    def _end(self, status: int, _: Any = None) -> None:
        self._read()
        self.bar.setRange(0, 1000)
        self._set_busy(False)
        if status == 0:
            offer_model(Path(self.out.text().strip()))
            self.say(f"{self.out.text()}: trained, and offered as model. Its report is report.html there.")
        elif self._stopping:
            self.say("Stopped. Fine-tune goes on from there.")
        else:
            self.say("It ended with an error; see the last lines.")
        self._stopping = False
