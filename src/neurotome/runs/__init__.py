"""The run folder: what is in it, whose it is, and what of it is stale."""

from neurotome.runs.record import Record, record_run
from neurotome.runs.run import Run, find_method

__all__ = ["Record", "Run", "find_method", "record_run"]
