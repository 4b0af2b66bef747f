"""Listener: hears requests to stop while a network trains; Follower: all that a helper does between steps."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

import lightning

from neurotome.stopping import StopRequest
from neurotome.training.module import SegmentationModule


class StoppedError(Exception):
    """A person or the system asked the training to stop, and all that was done is kept."""


class Listener(lightning.Callback):
    """Takes signals from Lightning, which would drop the step under way.

    Attributes:
        request: The first signal, which may have come to another rank.
    """

    def __init__(self, module: SegmentationModule) -> None:
        self.module = module
        self.request: StopRequest | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begins to listen."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._note_signal)

    def _note_signal(self, number: int, _: object) -> None:
        if self.request is None:
            self._begin_to_stop(number)
        elif not self.request.is_echoed_by(number):
            self.request = StopRequest(number)
            raise self.request.to_error()

    def _begin_to_stop(self, number: int) -> None:
        self.request = StopRequest(number)
        sys.stderr.write(
            "\nstopping after this step; once more stops at once and loses what was done since the last checkpoint\n"
        )

    def meet(self, is_over: bool = False) -> tuple[bool, bool]:
        """Says whether any rank was asked to stop, and whether the training is over for any; to all the same."""
        number, over = self.module.meet(self.request.number if self.request else 0, is_over)
        if number and self.request is None:
            self._begin_to_stop(int(number))
        return bool(number), bool(over)


class Follower(Listener):
    """Goes the way of the first rank, which decides, shows and writes all there is."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stops with the others; ends the epoch when the time is over."""
        self._stop_if_asked()
        if self.module.share_of_time() >= 1:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Validates its part."""
        self.module.check_losses()
        self.module.add_row(self.module.validate(self._stop_if_asked))
        is_asked, trainer.should_stop = self.meet()
        if is_asked and not trainer.should_stop:
            raise StoppedError

    def _stop_if_asked(self) -> None:
        is_asked, _ = self.meet()
        if is_asked:
            raise StoppedError
