"""What will be done for a volume, settled before any block is computed: choices, geometry, memory, and which blocks."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.blocks import parse_bbox
from neurotome.engines import list_gpus, settle_engine
from neurotome.errors import SettingsError
from neurotome.inference.geometry import Geometry, estimate_memory, plan_geometry
from neurotome.inference.grey_scale import measure_scales
from neurotome.inference.halo import choose_halo
from neurotome.inference.predict_settings import PredictSettings
from neurotome.inference.selection import select_tiles
from neurotome.inference.volume_job import LEDGER, VolumeJob, VolumeSource, pack_tiles
from neurotome.inference.volume_settings import VolumeSettings
from neurotome.io.block_ledger import BlockLedger, read_head
from neurotome.io.chunks import list_chunks
from neurotome.io.identity import compare_by, identify_input
from neurotome.io.opening import open_labels
from neurotome.models.back_ends.choose import choose_back_end
from neurotome.models.back_ends.heap import release_heap, share_heap
from neurotome.models.back_ends.memory import measure_bytes_per_pixel, measure_device_bytes
from neurotome.models.model_folder import find_model, read_digest
from neurotome.models.stored_model import read_description
from neurotome.normalize import Scale
from neurotome.predictor import Predictor
from neurotome.quantities import format_bytes, read_bytes
from neurotome.runs.environment import measure_peak_memory
from neurotome.shared_scale import OWN
from neurotome.volume import Volume, note_unknown_size

MOST_MEMORY = 8_000_000_000
"""Bytes a worker may take where nobody says: more makes tiles hardly cheaper."""

PLANNED_THREADS = 4
"""Tiles are planned for so many threads, so that they, and the labels, do not depend on how many there are."""

DECODE_COST, DECODE_COST_GPU = 0.01, 0.5
"""Time of decoding a voxel over that of predicting one, roughly: a GPU waits for the input, a CPU hardly."""

BYTES_STEP = 1.25
PROGRAM_STEP = 1 << 28

SAMPLE_EDGE = 512
"""Pixels of the patch on which back ends are compared."""


@dataclass(frozen=True)
class VolumePlan:
    """A job, what it was planned with, and which blocks it is about.

    Attributes:
        job: What workers need.
        predictor, volume: Opened here, for the halo, a canary and the report.
        identity: Of the input, as `identify_input` returned it.
        chosen: What `auto` chose, JSON.
        blocks: Numbers of the blocks that are wanted, done or not, increasing.
        wanted: Flag per tile.
        notes: Sentences about what is skipped and chosen.
        memory_bytes: What a worker will take at most.
    """

    job: VolumeJob
    predictor: Predictor
    volume: Volume
    identity: Mapping[str, Any]
    chosen: Mapping[str, Any]
    blocks: NDArray[np.int64]
    wanted: NDArray[np.bool_]
    notes: list[str]
    memory_bytes: int


def plan_volume(
    model: str, source: Path, labels: Path, confidence: Path | None, settings: PredictSettings, options: VolumeSettings
) -> VolumePlan:
    """Opens the image and the model, and settles all that `auto` leaves open, or takes it from the ledger that was begun.

    Raises:
        NeurotomeError: What `predict_volume` raises before it writes.
    """
    from neurotome.load import load_predictor
    from neurotome.models.net import choose_device

    share_heap()
    device = str(choose_device(settings.device))
    edge = None if settings.voxel_size_um == "auto" else float(settings.voxel_size_um)
    channel, time = (None if choice == "auto" else choice for choice in (settings.channel, settings.time))
    opened = VolumeSource(str(source), channel, time, edge)
    volume = opened.open()
    parse_bbox(options.bbox, volume.shape)
    identity = identify_input(source)
    fingerprint: dict[str, Any] = {
        "model_sha256": read_digest(model),
        "normalization": dict(read_description(find_model(model))[0]["normalization"]),
        "input": compare_by(identity),
        "settings": _list_settings(settings, options),
        "device": device.partition(":")[0],
    }
    if settings.reference:  # else jobs that were begun before there was such a setting go on
        own = settings.reference == OWN
        fingerprint["reference"] = OWN if own else compare_by(identify_input(settings.reference))
    chosen: dict[str, Any] = {}
    if not options.overwrite and read_head(labels / LEDGER) is not None:
        chosen = dict(BlockLedger(labels / LEDGER, fingerprint, writer="none").head["chosen"])  # refuses another fingerprint
    predictor: Predictor = load_predictor(Path(model), device, chosen.get("back_end", "torch"), chosen.get("ranges"))
    if 255 - predictor.classes.first_id < len(predictor.classes):
        raise SettingsError(
            f"{model}: has {len(predictor.classes)} classes; expected fewer, because 255 means not predicted."
        )
    is_new = not chosen
    if is_new:
        source_of = functools.partial(_open_like, opened, volume)
        scales = measure_scales(predictor, [source], source_of, reference=settings.reference, invert=settings.invert)
        if settings.invert:
            chosen["flip"] = list(scales.flips[volume.data.dtype.name])
    if chosen.get("flip"):
        low, high = chosen["flip"]
        opened = dataclasses.replace(opened, flip=(low, high))
        volume = opened.open()
    if is_new:
        note_unknown_size(volume, predictor.voxel_size_um)
        predictor.normalization.note_unlike(volume)
        shared = scales.choose(source, volume) or predictor.normalization.scale_for(volume)
        chosen["scale"] = {"mean": shared.mean, "std": shared.std, "source": shared.source}
    memory = _choose_memory(options.max_memory)
    if "geometry" not in chosen:
        predictor = _choose(predictor, volume, chosen, settings, options, device, memory)
    geometry = Geometry.from_json(chosen["geometry"])
    threads = settle_engine(options.engine, device).threads
    assert threads != "auto"
    bound = chosen["program_bytes"] + estimate_memory(
        geometry,
        bytes_per_pixel=chosen["bytes_per_pixel"],
        threads=threads,
        itemsize=volume.data.dtype.itemsize,
        classes=len(predictor.classes),
        on_device=device.startswith("cuda"),
    )
    if bound > memory:
        raise SettingsError(
            f"max_memory is {options.max_memory}, but tiles that were planned before take {format_bytes(bound)} with "
            f"{threads} threads. Give more, use fewer --threads, or begin anew with --overwrite."
        )
    chunks = list_chunks(volume.data)
    mask = Volume(open_labels(Path(options.mask), stack=True), "mask", path=Path(options.mask)) if options.mask else None
    selection = select_tiles(geometry.grid, bbox=options.bbox, mask=mask, chunks=chunks)
    scale = chosen["scale"]
    job = VolumeJob(
        model=model,
        model_sha256=fingerprint["model_sha256"],
        device=device,
        back_end=chosen["back_end"],
        ranges=chosen["ranges"],
        source=opened,
        scale=Scale(scale["mean"], scale["std"]),
        geometry=geometry,
        labels=str(labels),
        confidence=str(confidence) if confidence else None,
        fingerprint=fingerprint,
        air_below=options.air_below,
        fill=chunks.fill if chunks else 0.0,
        wanted=pack_tiles(selection.wanted),
    )
    return VolumePlan(
        job, predictor, volume, identity, chosen, selection.blocks, selection.wanted, list(selection.notes), bound
    )


def _open_like(opened: VolumeSource, volume: Volume, path: Path | Volume) -> Volume:
    """Opens another image as the volume was opened, or returns the volume itself."""
    return volume if str(path) == opened.path else dataclasses.replace(opened, path=str(path)).open()


def _list_settings(settings: PredictSettings, options: VolumeSettings) -> dict[str, Any]:
    """Returns the settings that change a voxel."""
    kept = ("tile", "halo", "confidence", "invert", "voxel_size_um", "channel", "time")
    volume = ("axes", "tolerance", "air_below", "back_end", "ome_version")
    return {name: getattr(settings, name) for name in kept} | {name: getattr(options, name) for name in volume}


def _choose(
    predictor: Predictor,
    volume: Volume,
    chosen: dict[str, Any],
    settings: PredictSettings,
    options: VolumeSettings,
    device: str,
    memory_bytes: int,
) -> Predictor:
    """Settles back end, halo and geometry, writes them into `chosen`, and returns the predictor of that back end."""
    scale = Scale(chosen["scale"]["mean"], chosen["scale"]["std"])
    # 8 bit is fitted to the patches, so it needs to see more of the volume
    patches = scale.apply(_cut_patches(predictor, volume, 3 if options.back_end == "openvino-int8" else 1))
    predictor, reports = choose_back_end(predictor, patches, [options.back_end], math.prod(volume.shape))
    chosen |= {"back_end": "torch", "ranges": None, "back_end_measured": f"Computed by {predictor.back_end}."}
    if reports:
        best = next(report for report in reports if report.chosen)
        chosen |= {"back_end": best.back_end, "ranges": best.ranges}
        tried = "; ".join(report.sentence for report in reports)
        chosen["back_end_measured"] = f"Computed by {predictor.back_end}. On a patch of this volume {tried}."
    # rounded, so that what differs from one measurement to the next does not change the tiles
    bytes_per_pixel = float(BYTES_STEP ** math.ceil(math.log(measure_bytes_per_pixel(predictor), BYTES_STEP)))
    release_heap()
    program = -(-measure_used_memory() // PROGRAM_STEP) * PROGRAM_STEP
    if memory_bytes <= program:
        raise SettingsError(
            f"a worker may take {format_bytes(memory_bytes)} of memory, and the program with the model alone takes "
            f"{format_bytes(program)}; expected more. Raise --max-memory, or give fewer --workers."
        )
    device_bytes = measure_device_bytes(device)
    if device_bytes is not None and options.workers != "auto":  # several workers may share a GPU
        device_bytes //= -(-options.workers // max(1, len(list_gpus(device))))
    plan = functools.partial(
        plan_geometry,
        predictor,
        volume,
        axes=options.axes,
        tile=settings.tile,
        memory_bytes=memory_bytes - program,
        bytes_per_pixel=bytes_per_pixel,
        threads=PLANNED_THREADS,
        chunk_zyx=getattr(volume.data, "chunk_zyx", None),
        device_bytes=device_bytes,
        decode_cost=DECODE_COST if device_bytes is None else DECODE_COST_GPU,
    )
    if settings.halo != "auto":
        halo, measured = settings.halo, "as asked for"
    elif _has_whole_planes(plan, full := max(predictor.halo_zyx[1:])):
        halo, measured = full, "all that the model can see; tiles are as large as slices"
    else:
        choice = choose_halo(predictor, volume, scale, axes=options.axes, tolerance=options.tolerance)
        halo, measured = choice.halo, choice.measured
    geometry = plan(halo=halo)
    chosen |= {
        "halo": halo,
        "halo_measured": measured,
        "bytes_per_pixel": bytes_per_pixel,
        "program_bytes": program,
        "geometry": geometry.to_json(),
    }
    return predictor


def _has_whole_planes(plan: Callable[..., Geometry], halo: int) -> bool:
    """Says whether memory allows tiles without seams, so that no halo need be measured."""
    try:
        return plan(halo=halo).covers_planes()
    except SettingsError:  # a smaller halo may fit
        return False


def _cut_patches(predictor: Predictor, volume: Volume, count: int) -> NDArray[Any]:
    """Returns grey values (count, in_channels, y, x) from the middle of slices, on which back ends are compared."""
    depth, *plane = volume.shape
    rows, columns = (slice(max(0, (n - SAMPLE_EDGE) // 2), min(n, (n + SAMPLE_EDGE) // 2)) for n in plane)
    slices = [depth * (number + 1) // (count + 1) for number in range(count)]
    return np.stack([volume.read_context(z, predictor.in_channels, rows, columns) for z in slices])


def _choose_memory(text: str) -> int:
    """Returns how many bytes a worker may take."""
    return min(MOST_MEMORY, measure_memory() // 2) if text == "auto" else read_bytes(text)


def measure_memory() -> int:
    """Returns the memory that this process may have at all: the machine's, or less in a container; in bytes."""
    limit = Path("/sys/fs/cgroup/memory.max")
    allowed = limit.read_text().strip() if limit.is_file() else "max"
    if hasattr(os, "sysconf"):
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        import psutil

        physical = psutil.virtual_memory().total
    return min(physical, int(allowed)) if allowed.isdigit() else int(physical)


def measure_used_memory() -> int:
    """Returns the memory that this process has now, in bytes; its peak where the system does not tell."""
    status = Path("/proc/self/statm")
    if status.is_file():
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return measure_peak_memory()
