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
    settled = settle_engine(settings, device)
    assert settled.workers != "auto"
    assert settled.threads != "auto"
    if settled.scheduler or settled.slurm:
        from neurotome.lazy import import_extra

        import_extra("distributed", "cluster")
        from neurotome.engines.cluster import open_cluster

        with open_cluster(settled) as cluster:
            yield cluster
        return
    if settled.workers == 1 and settled.block_timeout_s == "auto":
        from neurotome.engines.serial import Serial

        yield Serial(settled.threads, settled.retries)
        return
    from neurotome.engines.processes import Processes

    yield Processes(settled.workers, settled.threads, settled.retries, settled.block_timeout_s, list_gpus(device))
