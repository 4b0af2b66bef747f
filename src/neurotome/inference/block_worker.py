"""BlockWorker: labels blocks of a volume and writes them down; one per process, called from several threads."""

from __future__ import annotations

import os
import platform
import secrets
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from neurotome.errors import ModelError
from neurotome.inference.labelling import BlockLabels, label_block
from neurotome.inference.volume_job import VolumeJob, unpack_tiles
from neurotome.io.block_ledger import BlockLedger
from neurotome.io.label_store import NOT_PREDICTED, open_label_store
from neurotome.load import load_predictor
from neurotome.models.model_folder import read_digest


class BlockWorker:
    """Does a block from reading to the ledger's line.

    Only the forward pass is under a lock, so that threads read, decompress, compress and write while one computes.
    """

    def __init__(self, job: VolumeJob) -> None:
        """Opens all that a job names.

        Raises:
            ModelError: The model is not the one that the job was planned with.
            NeurotomeError: As the functions that open.
        """
        import torch

        if job.device == "cpu" and job.workers > 1:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // job.workers))
        if read_digest(job.model) != job.model_sha256:
            raise ModelError(
                f"{job.model}: has changed since the volume was begun; expected weights {job.model_sha256[:12]}."
            )
        self.job = job
        self.predictor = load_predictor(Path(job.model), job.device, job.back_end, job.ranges)
        self.volume = job.source.open()
        self.labels = open_label_store(Path(job.labels))
        self.confidence = open_label_store(Path(job.confidence)) if job.confidence else None
        self.ledger = BlockLedger(job.ledger, job.fingerprint, writer=name_writer())
        self.wanted = unpack_tiles(job.wanted, job.geometry.grid.count_tiles())
        self.lock = threading.Lock()

    def label(self, block: int, tiles: list[int]) -> BlockLabels:
        """Computes some tiles of a block and writes nothing."""
        job = self.job
        return label_block(
            self.predictor,
            self.volume,
            job.scale,
            job.geometry,
            block,
            tiles,
            confidence=self.confidence is not None,
            lock=self.lock,
            air_below=job.air_below,
        )

    def __call__(self, block: int) -> dict[str, Any]:
        """Labels a block, writes its files, then its line in the ledger, and returns what the line says."""
        began = time.monotonic()
        grid = self.job.geometry.grid
        place, tiles = grid.place(block), grid.tiles(block)
        wanted = tiles[self.wanted[tiles]].tolist()
        found = self.label(block, wanted)
        counts = np.bincount(found.labels.reshape(-1), minlength=256)
        facts: dict[str, Any] = {
            "sha256": self.labels.write_block(place, found.labels),
            "counts": {i: int(n) for i, n in enumerate(counts) if n},
            "tiles": "all" if len(wanted) == len(tiles) else wanted,
            "air": len(found.air_tiles),
            "seconds": round(time.monotonic() - began, 3),
        }
        if self.confidence is not None and found.confidence is not None:
            found.confidence[found.labels == NOT_PREDICTED] = 0  # as every grey map of the store has it
            facts["confidence_sha256"] = self.confidence.write_block(place, found.confidence)
        self.ledger.add(block, **facts)
        return facts


def name_writer() -> str:
    """Returns a name for this process's file in a ledger that no other process on any machine has."""
    return f"{platform.node()}-{os.getpid()}-{secrets.token_hex(4)}"
