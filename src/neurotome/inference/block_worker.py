"""BlockWorker: labels blocks of a volume and writes them down; one per process, called from several threads."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from pathlib import Path
from typing import Any

from neurotome.errors import ModelError
from neurotome.inference.geometry import PASSES_GPU
from neurotome.inference.labelling import BlockLabels, label_block
from neurotome.inference.volume_job import VolumeJob, unpack_tiles
from neurotome.io.block_ledger import BlockLedger, name_writer
from neurotome.io.label_store import NOT_PREDICTED, count_ids, open_label_store
from neurotome.load import load_predictor
from neurotome.models.back_ends.heap import share_heap
from neurotome.models.model_folder import read_digest
from neurotome.predictor import Predictor
from neurotome.runs.environment import measure_peak_memory

SWITCH_S = 2e-4
"""Seconds after which a thread that reads or writes lets the one that feeds a GPU go on."""


class _Kept:
    """Takes a lock when it is first entered and keeps it until a stack ends."""

    def __init__(self, lock: threading.Lock, stack: contextlib.ExitStack) -> None:
        self._lock, self._stack, self._is_taken = lock, stack, False

    def __enter__(self) -> None:
        if not self._is_taken:
            self._stack.enter_context(self._lock)
            self._is_taken = True

    def __exit__(self, *_: object) -> None:
        pass


class BlockWorker:
    """Does a block from reading to the ledger's line.

    Only the forward pass is under a lock, so that threads read, decompress, compress and write while one computes. On a CPU
    a thread keeps the lock from its block's first forward pass to the last: threads that took turns would end together, and
    nobody computes while all of them write and read. On a GPU they do take turns, because it waits while a batch is cut.
    """

    def __init__(self, job: VolumeJob, predictor: Predictor | None = None) -> None:
        """Opens all that a job names, but for a predictor that is there already.

        Raises:
            ModelError: The model is not the one that the job was planned with.
            NeurotomeError: As the functions that open.
        """
        share_heap()
        if job.device.startswith("cuda"):  # it would wait for Python's lock, 5 ms by itself, several times in every pass
            sys.setswitchinterval(SWITCH_S)
        if read_digest(job.model) != job.model_sha256:
            raise ModelError(
                f"{job.model}: has changed since the volume was begun; expected weights {job.model_sha256[:12]}."
            )
        self.job = job
        self.predictor: Predictor = predictor or load_predictor(Path(job.model), job.device, job.back_end, job.ranges)
        self.volume = job.source.open()
        self.labels = open_label_store(Path(job.labels))
        self.confidence = open_label_store(Path(job.confidence)) if job.confidence else None
        self.ledger = BlockLedger(job.ledger, job.fingerprint, writer=name_writer())
        self.wanted = unpack_tiles(job.wanted, job.geometry.grid.count_tiles())
        self.lock = threading.Lock()
        self.gpu = threading.Semaphore(PASSES_GPU)

    def label(self, block: int, tiles: list[int]) -> BlockLabels:
        """Computes some tiles of a block and writes nothing."""
        job = self.job
        with contextlib.ExitStack() as stack:
            return label_block(
                self.predictor,
                self.volume,
                job.scale,
                job.geometry,
                block,
                tiles,
                confidence=self.confidence is not None,
                lock=self.gpu if job.device.startswith("cuda") else _Kept(self.lock, stack),
                air_below=job.air_below,
                fill=job.fill,
            )

    def __call__(self, block: int) -> dict[str, Any]:
        """Labels a block, writes its files, then its line in the ledger; returns what that says."""
        began = time.monotonic()
        grid = self.job.geometry.grid
        place, tiles = grid.place(block), grid.tiles(block)
        wanted = tiles[self.wanted[tiles]].tolist()
        found = self.label(block, wanted)
        facts: dict[str, Any] = {
            "sha256": self.labels.write_block(place, found.labels),
            "counts": count_ids(found.labels),
            "tiles": "all" if len(wanted) == len(tiles) else wanted,
            "air": len(found.air_tiles),
            "seconds": round(time.monotonic() - began, 3),
        }
        if self.confidence is not None and found.confidence is not None:
            found.confidence[found.labels == NOT_PREDICTED] = 0  # as every grey map of the store has it
            facts["confidence_sha256"] = self.confidence.write_block(place, found.confidence)
        self.ledger.add(block, **facts)
        return {**facts, "peak_bytes": measure_peak_memory()}
