"""What is said of a volume: beforehand, by a dry run, in the output's attributes, and at the end."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from neurotome.engines import Engine, settle_engine
from neurotome.engines.serial import Serial
from neurotome.inference.labelling import label_block
from neurotome.inference.seams import describe_seams, measure_seams
from neurotome.inference.volume_plan import VolumePlan
from neurotome.inference.volume_settings import VolumeSettings
from neurotome.io.block_ledger import BlockLedger
from neurotome.io.label_store import NOT_PREDICTED, open_label_store
from neurotome.io.pyramid import build_pyramid, plan_levels
from neurotome.progress import format_duration
from neurotome.quantities import format_bytes
from neurotome.runs.environment import describe_environment

CANARY_S = 30.0
"""Seconds that a dry run computes, about: a block of a large network on few cores may take many minutes."""


@dataclass
class JobResult:
    """What one job did.

    Attributes:
        voxels: That it predicted.
        seconds: From the first to the last.
        peak_bytes: The most memory that a process held, as far as workers told.
        failed: Blocks that were set aside, with their reasons.
    """

    voxels: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    failed: list[tuple[int, str]] = field(default_factory=list)

    def add(self, facts: Mapping[str, Any]) -> None:
        """Adds what a worker says of a block."""
        self.voxels += sum(voxels for stored_id, voxels in facts["counts"].items() if stored_id != NOT_PREDICTED)
        self.peak_bytes = max(self.peak_bytes, facts["peak_bytes"])

    def to_json(self) -> dict[str, float]:
        """Returns numbers for the report."""
        rate = self.voxels / self.seconds / 1e6 if self.seconds else 0.0
        return {
            "voxels": self.voxels,
            "seconds": round(self.seconds, 2),
            "mvoxel_per_s": round(rate, 3),
            "peak_memory_bytes": self.peak_bytes,
        }


FEWEST_LEVEL_BLOCKS = 256
"""Blocks of coarser levels from which on the workers make them, and not this process."""

PYRAMID_SHARE = 0.2
"""Bytes of the coarser levels over those of the finest: an eighth of the voxels each time, but less alike."""


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
        f"The halo is {chosen['halo']} pixels, {chosen['halo_measured']}.",
        chosen["back_end_measured"],
        f"Grey values are scaled by {_say_scale(plan)}.",
        f"A worker takes at most {format_bytes(plan.memory_bytes)} of memory.",
    ]


@dataclass(frozen=True)
class Estimate:
    """What blocks will take, after some tiles of one of them were computed.

    Attributes:
        tile_seconds: For one tile.
        seconds: For all, with all workers.
        disk_bytes: Of what is written, coarser levels too.
        sentence: The same for a person.
    """

    tile_seconds: float
    seconds: float
    disk_bytes: float
    sentence: str


def estimate(plan: VolumePlan, options: VolumeSettings, blocks: Sequence[int], tiles: int) -> Estimate:
    """Computes up to so many tiles of the block in the middle, writes nothing, and returns what all blocks will take."""
    job, grid = plan.job, plan.job.geometry.grid
    canary = blocks[len(blocks) // 2]
    numbers = grid.tiles(canary)
    wanted = numbers[plan.wanted[numbers]][:tiles].tolist()
    began = time.monotonic()
    found = label_block(
        plan.predictor,
        plan.volume,
        job.scale,
        job.geometry,
        canary,
        wanted,
        confidence=job.confidence is not None,
        lock=contextlib.nullcontext(),
        air_below=job.air_below,
        fill=job.fill,
    )
    seconds = (time.monotonic() - began) / len(wanted)
    stored = [found.labels] if found.confidence is None else [found.labels, found.confidence]
    tile_bytes = sum(map(_pack, stored)) / len(wanted)
    counted = sum(int(plan.wanted[grid.tiles(block)].sum()) for block in blocks)
    settled = settle_engine(options.engine, job.device)
    assert settled.workers != "auto"
    total, disk = seconds * counted / settled.workers, tile_bytes * counted * (1 + PYRAMID_SHARE)
    parent = next(folder for folder in Path(job.labels).absolute().parents if folder.exists())
    return Estimate(
        seconds,
        total,
        disk,
        f"about {format_duration(total)} (workers: {settled.workers}; tiles measured: {len(wanted)}) and "
        f"{format_bytes(disk)} on the disk, of {format_bytes(shutil.disk_usage(parent).free)} free",
    )


def _say_scale(plan: VolumePlan) -> str:
    scale = plan.chosen["scale"]
    source = f"measured from {scale['source']}" if scale["source"] else "as the model says"
    return f"mean {scale['mean']:.4g} and deviation {scale['std']:.4g}, {source}"


def try_out(plan: VolumePlan, options: VolumeSettings) -> dict[str, str]:
    """Computes a block, or what half a minute allows of it, unwritten, and returns what the whole would take, by name."""
    number, count = options.share
    blocks = plan.blocks[plan.blocks % count == number - 1].tolist()
    for sentence in describe_plan(plan, len(blocks), len(blocks)):
        say(sentence)
    if not blocks:
        return {"blocks": "0, nothing to do"}
    first = estimate(plan, options, blocks, tiles=1)
    canary = estimate(plan, options, blocks, tiles=max(1, int(CANARY_S / first.tile_seconds)))
    return {
        "blocks": f"{len(blocks)} of {len(plan.job.geometry.grid)}",
        "memory": f"{format_bytes(plan.memory_bytes)} a worker",
        "time": format_duration(canary.seconds),
        "disk": format_bytes(canary.disk_bytes),
        "how": canary.sentence,
    }


def _pack(values: np.ndarray[Any, Any]) -> int:
    """Returns how many bytes values take about when they are written."""
    from numcodecs import Blosc

    packed = Blosc(cname="zstd", clevel=3, shuffle=Blosc.BITSHUFFLE).encode(np.ascontiguousarray(values))
    return len(packed)


def describe_run(plan: VolumePlan) -> dict[str, Any]:
    """Returns all that labels depend on, JSON, for the output's attributes."""
    job, predictor = plan.job, plan.predictor
    scaling, facts = predictor.normalization, getattr(predictor, "facts", {})
    return {
        "model": job.model,
        "model_sha256": job.model_sha256,
        "model_facts": {key: facts[key] for key in ("name", "version", "licence", "citation") if key in facts},
        "classes": predictor.classes.to_json(),
        "normalization": {"mode": scaling.mode, "mean": scaling.mean, "std": scaling.std, "dtype": scaling.dtype},
        "in_channels": predictor.in_channels,
        **plan.chosen,
        "back_end": predictor.back_end,
        "axes": job.geometry.axes,
        "air_below": job.air_below,
        "device": job.device,
        "settings": job.fingerprint["settings"],
        "input": dict(plan.identity),
        "environment": describe_environment(),
    }


def finish(plan: VolumePlan, ledger: BlockLedger, job: JobResult, engine: Engine) -> None:
    """Makes the coarser levels, measures the seams, and writes and prints the report.

    Raises:
        RunError: Blocks of a coarser level failed.
    """
    grid = plan.job.geometry.grid
    labels = open_label_store(plan.job.labels)
    began = time.monotonic()
    for path in filter(None, (plan.job.labels, plan.job.confidence)):
        store = open_label_store(Path(path).absolute())
        coarser = plan_levels(store.shape_zyx, store.block_zyx, store.voxel_size_um)[1:]
        # workers take longer to start than a few blocks do, and they start for every level
        here = sum(len(level.grid) for level in coarser) < FEWEST_LEVEL_BLOCKS
        build_pyramid(store, Serial(max(2, min(8, (os.cpu_count() or 2) // 2)), 0).run if here else engine.run)
    pyramid_seconds = time.monotonic() - began
    axes = plan.job.geometry.axes
    along = "zyx" if len(axes) > 1 else "zyx".replace(axes, "")
    predicted = [grid.place(block) for block, entry in ledger.find_all() if set(entry["counts"]) - {NOT_PREDICTED}]
    seams = describe_seams(measure_seams(labels.read, grid.shape_zyx, grid.tile_zyx, along=along, within=predicted))
    report = {
        **_count(plan, ledger),
        "skipped": plan.notes,
        "job": job.to_json() if job.voxels else labels.attributes.get("report", {}).get("job"),
        "pyramid_seconds": round(pyramid_seconds, 1),
        "seams": seams,
    }
    labels.set_attributes(report=report, failures={})
    shares = ", ".join(f"{name} {share:.2%}" for name, share in report["shares"].items())
    say(f"Labels: {shares} of {report['predicted']:,} voxels; {report['not_predicted_share']:.2%} were not predicted.")
    if job.voxels:
        rate = job.voxels / job.seconds / 1e6
        say(f"{job.voxels / 1e6:.4g} Mvoxel in {format_duration(job.seconds)}, {rate:.3g} Mvoxel/s.")
    say(f"{seams['sentence']}.")


def _count(plan: VolumePlan, ledger: BlockLedger) -> dict[str, Any]:
    """Returns what the ledger says of all blocks together."""
    classes, counts = plan.predictor.classes, dict[int, int]()
    blocks, air, seconds = 0, 0, 0.0
    for _, entry in ledger.find_all():
        for stored_id, voxels in entry["counts"].items():
            counts[stored_id] = counts.get(stored_id, 0) + voxels
        blocks, air, seconds = blocks + 1, air + entry.get("air", 0), seconds + entry.get("seconds", 0.0)
    predicted = sum(voxels for stored_id, voxels in counts.items() if stored_id != NOT_PREDICTED)
    total = math.prod(plan.job.geometry.grid.shape_zyx)
    shares = {
        name: round(counts.get(stored_id, 0) / max(1, predicted), 6)
        for stored_id, name in enumerate(classes.names, start=classes.first_id)
    }
    return {
        "voxels": total,
        "predicted": predicted,
        "not_predicted_share": 1 - predicted / total,
        "air_tiles": air,
        "blocks": blocks,
        "block_seconds": round(seconds, 1),
        "shares": shares,
    }
