"""What is said of a volume: beforehand, by a dry run, in the output's attributes, and at the end."""

from __future__ import annotations

import contextlib
import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from neurotome.engines import settle_engine
from neurotome.inference.labelling import label_block
from neurotome.inference.volume_plan import VolumePlan
from neurotome.inference.volume_settings import VolumeSettings
from neurotome.io.block_ledger import BlockLedger
from neurotome.io.label_store import NOT_PREDICTED, LabelStore
from neurotome.progress import format_duration
from neurotome.quantities import format_bytes
from neurotome.runs.environment import describe_environment


def say(sentence: str) -> None:
    """Prints a sentence where progress is printed."""
    sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()


def describe_plan(plan: VolumePlan, blocks: int, left: int) -> list[str]:
    """Returns sentences: what there is to do, what is skipped, what was chosen and why, what memory it takes."""
    job, grid, chosen = plan.job, plan.job.geometry.grid, plan.chosen
    size, tile, block = (" x ".join(map(str, sizes)) for sizes in (grid.shape_zyx, grid.tile_zyx, grid.block_zyx))
    done = f", {blocks - left} of them done before" if left < blocks else ""
    return [
        f"volume {plan.volume.name}: {size} voxels (z, y, x), axes {job.geometry.axes}; {blocks} blocks of {block} in "
        f"tiles of {tile}{done}.",
        *plan.notes,
        f"halo {chosen['halo']} pixels: {chosen['halo_measured']}.",
        f"back end {plan.predictor.back_end}: {chosen['back_end_measured']}.",
        f"grey scale: {chosen['scale']['source'] or 'that of the training data'}.",
        f"memory of a worker: at most {format_bytes(plan.memory_bytes)}.",
    ]


def try_out(plan: VolumePlan, options: VolumeSettings) -> dict[str, str]:
    """Computes one block, without writing it, and returns what the whole would take, by name."""
    job, grid = plan.job, plan.job.geometry.grid
    number, count = options.share
    mine = plan.blocks[plan.blocks % count == number - 1]
    tiles = {int(block): grid.tiles(int(block)) for block in mine[len(mine) // 2 : len(mine) // 2 + 1]}
    seconds, bytes_per_voxel = 0.0, 0.0
    for block, numbers in tiles.items():
        began = time.monotonic()
        wanted = numbers[plan.wanted[numbers]].tolist()
        found = label_block(
            plan.predictor,
            plan.volume,
            job.scale,
            job.geometry,
            block,
            wanted,
            confidence=job.confidence is not None,
            lock=contextlib.nullcontext(),
            air_below=job.air_below,
        )
        seconds = (time.monotonic() - began) / len(wanted)
        stored = [found.labels] if found.confidence is None else [found.labels, found.confidence]
        bytes_per_voxel = sum(_pack(values) for values in stored) / found.labels.size
    counted = sum(int(plan.wanted[grid.tiles(int(block))].sum()) for block in mine)
    settled = settle_engine(options.engine, job.device)
    assert settled.workers != "auto"
    voxels = len(mine) * math.prod(grid.block_zyx)
    disk = min(voxels, math.prod(grid.shape_zyx)) * bytes_per_voxel * 1.15  # coarser levels
    parent = next(folder for folder in Path(job.labels).absolute().parents if folder.exists())
    sentences = describe_plan(plan, len(mine), len(mine))
    return {
        "plan": " ".join(sentences),
        "blocks": f"{len(mine)}, {counted} tiles",
        "time": f"{format_duration(seconds * counted / settled.workers)} with {settled.workers} workers, as one block took",
        "memory": f"{format_bytes(plan.memory_bytes)} a worker",
        "disk": f"{format_bytes(disk)}, of {format_bytes(shutil.disk_usage(parent).free)} free",
    }


def _pack(values: np.ndarray[Any, Any]) -> int:
    """Returns how many bytes values take about when they are written."""
    from numcodecs import Blosc

    packed = Blosc(cname="zstd", clevel=3, shuffle=Blosc.BITSHUFFLE).encode(np.ascontiguousarray(values))
    return len(packed)


def describe_run(plan: VolumePlan) -> dict[str, Any]:
    """Returns all that labels depend on, JSON, for the output's attributes."""
    job, predictor = plan.job, plan.predictor
    scaling = predictor.normalization
    return {
        "model": job.model,
        "model_sha256": job.model_sha256,
        "classes": predictor.classes.to_json(),
        "normalization": {"mode": scaling.mode, "mean": scaling.mean, "std": scaling.std, "dtype": scaling.dtype},
        "in_channels": predictor.in_channels,
        **plan.chosen,
        "back_end": predictor.back_end,
        "axes": job.geometry.axes,
        "air_below": job.air_below,
        "device": job.device,
        "fingerprint": dict(job.fingerprint),
        "input": dict(plan.identity),
        "environment": describe_environment(),
    }


def finish(plan: VolumePlan, ledger: BlockLedger, labels: LabelStore, options: VolumeSettings) -> None:
    """Makes the coarser levels, measures the seams, and writes and prints the report."""
    grid, classes = plan.job.geometry.grid, plan.predictor.classes
    counts: dict[int, int] = {}
    seconds, air = 0.0, 0
    for _, entry in ledger.find_all():
        for stored_id, voxels in entry["counts"].items():
            counts[stored_id] = counts.get(stored_id, 0) + voxels
        seconds += entry.get("seconds", 0.0)
        air += entry.get("air", 0)
    predicted = sum(voxels for stored_id, voxels in counts.items() if stored_id != NOT_PREDICTED)
    total = math.prod(grid.shape_zyx)
    shares = {
        name: counts.get(stored_id, 0) / max(1, predicted)
        for stored_id, name in enumerate(classes.names, start=classes.first_id)
    }
    report = {
        "voxels": total,
        "predicted": predicted,
        "not_predicted_share": 1 - predicted / total,
        "air_tiles": air,
        "blocks": sum(1 for _ in ledger.find_all()),
        "block_seconds": round(seconds, 1),
        "shares": {name: round(share, 6) for name, share in shares.items()},
    }
    labels.set_attributes(report=report)
