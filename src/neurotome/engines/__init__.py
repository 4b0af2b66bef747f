"""Engines: map a function over the blocks of a volume, in this process, in several, or on a cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from neurotome.engines.base import Engine, EngineSettings, Outcome, list_gpus, settle_engine

__all__ = ["Engine", "EngineSettings", "Outcome", "list_gpus", "open_engine", "settle_engine"]


@contextlib.contextmanager
def open_engine(settings: EngineSettings, device: str = "auto") -> Iterator[Engine]:
    """Yields the engine that the settings name: a cluster's, processes, or threads of this process.

    Args:
        settings: As given by the user.
        device: Where the function computes; decides whether GPUs are shared out among the workers.

    Raises:
        SettingsError: A value is impossible.
        RunError: A cluster cannot be reached.
    """
    from neurotome.engines.serial import Serial

    settled = settle_engine(settings, device)
    assert settled.threads != "auto"
    yield Serial(settled.threads, settled.retries)
