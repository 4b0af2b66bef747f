"""predict_volume: a volume of any size into an OME-Zarr, block by block; killed and resumed, on one machine or many."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

from neurotome.atomic import hold_output, sync_folder, take_turns
from neurotome.classes import Palette
from neurotome.engines import Engine, open_engine, settle_engine
from neurotome.engines.serial import Serial
from neurotome.errors import ImageError, RunError, SettingsError
from neurotome.inference.block_worker import BlockWorker
from neurotome.inference.predict_settings import PredictSettings
from neurotome.inference.volume_job import LEDGER, VolumeJob, pack_tiles
from neurotome.inference.volume_plan import VolumePlan, plan_volume
from neurotome.inference.volume_report import JobResult, describe_plan, describe_run, estimate, finish, say, try_out
from neurotome.inference.volume_settings import VolumeSettings
from neurotome.io.block_ledger import HEAD, BlockLedger, name_writer
from neurotome.io.files import find_suffix
from neurotome.io.identity import check_unchanged
from neurotome.io.label_store import check_output, create_label_store, find_image_of, name_confidence, open_label_store
from neurotome.io.ome_zarr import is_zarr
from neurotome.models.back_ends.heap import release_heap
from neurotome.outputs import plan_outputs
from neurotome.progress import Progress

MOST_LISTED = 20
"""Failed blocks that are listed with their reasons."""

TURNS = LEDGER / "turns.lock"
"""Held by the job that makes what all jobs of an output share."""

FEWEST_ESTIMATED = 100
"""Tiles from which on one is computed beforehand, to say how long they will take: it costs a hundredth at most."""

CHECK_S = 60.0
"""Seconds between two looks at whether the input has changed."""


def is_volume_output(path: Path) -> bool:
    """Returns whether labels go into an OME-Zarr: a folder of that suffix, or labels within an image."""
    return find_suffix(path).endswith(".zarr") or find_image_of(path) is not None


def predict_volume(
    model: str, source: Path, out: Path, settings: PredictSettings, options: VolumeSettings
) -> list[Path] | dict[str, str]:
    """Predicts what is not done yet, then makes the coarser levels and the report.

    Args:
        model: Run folder, model folder or the name of a packaged model.
        source: An image of any format, or a folder of slices.
        out: The label store.
        settings: How the model is applied.
        options: How the volume is done.

    Returns:
        The stores that were written; for a dry run what a run would take, by name.

    Raises:
        NeurotomeError: As `predict`; RunError too where blocks were set aside, after all others were done.
    """
    if settings.overlay or settings.show:
        raise SettingsError("--overlay and --show: not for a volume. Open the labels and the image together in a viewer.")
    if settings.existing != "refuse":
        raise SettingsError(
            f"--existing {settings.existing}: not for a volume. The same command goes on where it was, and --overwrite "
            "begins anew."
        )
    settle_engine(options.engine, settings.device)
    confidence = name_confidence(out) if settings.confidence else None
    _check_outputs(source, out, confidence, options)
    plan = plan_volume(model, source, out, confidence, settings, options)
    if options.dry_run:
        return try_out(plan, options)
    with hold_output(out / LEDGER, options.share):
        if options.overwrite:
            _clear(out, confidence)
            if confidence is None and (other := name_confidence(out)).exists():
                say(f"{other} is of an earlier prediction, and stays as it is. Delete it, or ask for --confidence too.")
        ledger = BlockLedger(out / LEDGER, plan.job.fingerprint, writer=name_writer(), chosen=plan.chosen)
        if ledger.head["chosen"] != json.loads(json.dumps(plan.chosen)):  # another job was first, and its choices hold
            plan = plan_volume(model, source, out, confidence, settings, replace(options, overwrite=False))
        with take_turns(out / TURNS):
            _create_stores(plan, settings.palette, options)
        with open_engine(options.engine, plan.job.device) as engine:
            done = _run(plan, ledger, options, engine)
            if done.failed:
                open_label_store(out).set_attributes(failures={str(block): why for block, why in done.failed})
                listed = [f"block {block} at {_say_place(plan, block)}: {why}" for block, why in done.failed[:MOST_LISTED]]
                raise RunError(
                    f"{out}: {len(done.failed)} of {len(plan.blocks)} blocks failed and are set aside; the others are done. "
                    "The same command tries these again:\n" + "\n".join(listed + ["..."] * (len(done.failed) > MOST_LISTED))
                )
            ledger.refresh()
            left = sum(not _is_done(plan, ledger, block) for block in plan.blocks.tolist())
            if left:
                say(f"{left} blocks are left to other jobs; the last of them makes the coarser levels and the report.")
            else:
                with take_turns(out / TURNS):  # several jobs may find that nothing is left
                    finish(plan, ledger, done, engine)
    release_heap()
    return [out] if confidence is None else [out, confidence]


def _run(plan: VolumePlan, ledger: BlockLedger, options: VolumeSettings, engine: Engine) -> JobResult:
    """Computes the blocks of this job that are not done."""
    number, count = options.share
    mine = plan.blocks[plan.blocks % count == number - 1].tolist()
    tasks = [block for block in mine if not _is_done(plan, ledger, block)]
    for sentence in describe_plan(plan, len(mine), len(tasks)):
        say(sentence)
    job, source = _keep_done(plan, ledger, tasks), Path(plan.job.source.path)
    sizes = {block: math.prod(part.stop - part.start for part in job.geometry.grid.place(block)) for block in tasks}
    result = JobResult()
    if not tasks:
        return result
    if len(tasks) * int(plan.wanted.sum()) >= FEWEST_ESTIMATED * len(plan.blocks):
        with contextlib.suppress(ImageError):  # its block will be tried, and named
            say(f"This takes {estimate(plan, options, tasks, tiles=1).sentence}.")
    progress = Progress(f"predicting {plan.volume.name}", sum(sizes.values()) / 1e6, "Mvoxel")
    began, checked, ended = time.monotonic(), time.monotonic(), 0
    # what runs here need not be loaded and compiled again
    build = functools.partial(BlockWorker, job.find_anywhere(), plan.predictor if isinstance(engine, Serial) else None)
    for outcome in engine.run(build, tasks):
        ended += sizes[outcome.task]
        if outcome.result is not None:
            result.add(outcome.result)
        elif outcome.error is not None:
            ledger.fail(outcome.task, outcome.error, outcome.attempts)
            result.failed.append((outcome.task, outcome.error))
        progress.update(ended / 1e6, f"{len(result.failed)} blocks failed" if result.failed else "")
        if time.monotonic() - checked > CHECK_S:
            check_unchanged(source, plan.identity)
            checked = time.monotonic()
    check_unchanged(source, plan.identity)
    result.seconds = time.monotonic() - began
    progress.finish(job.labels)
    return result


def _is_done(plan: VolumePlan, ledger: BlockLedger, block: int) -> bool:
    """Returns whether all tiles of a block that are wanted are written down."""
    found = ledger.find(block)
    if found is None or found["tiles"] == "all":
        return found is not None
    tiles = plan.job.geometry.grid.tiles(block)
    return set(tiles[plan.wanted[tiles]].tolist()) <= set(found["tiles"])


def _keep_done(plan: VolumePlan, ledger: BlockLedger, tasks: list[int]) -> VolumeJob:
    """Returns a job that also wants the tiles that are done in blocks which are done anew: blocks are written whole."""
    wanted = plan.wanted.copy()
    for block in tasks:
        found = ledger.find(block)
        if found is not None:
            wanted[found["tiles"]] = True
    return replace(plan.job, wanted=pack_tiles(wanted))


def _say_place(plan: VolumePlan, block: int) -> str:
    z, y, x = plan.job.geometry.grid.place(block)
    return f"z {z.start}:{z.stop}, y {y.start}:{y.stop}, x {x.start}:{x.stop}"


def _create_stores(plan: VolumePlan, palette: Palette, options: VolumeSettings) -> None:
    """Creates the stores, or opens them again, with all that the labels depend on in their attributes."""
    job, volume, grid = plan.job, plan.volume, plan.job.geometry.grid
    attributes = {"inference": describe_run(plan)}

    def create(path: str, *, is_labels: bool) -> None:
        create_label_store(
            Path(path),
            grid.shape_zyx,
            classes=plan.predictor.classes.with_palette(palette) if is_labels else None,
            block_zyx=grid.block_zyx,
            voxel_size_um=volume.voxel_size_um,
            origin_zyx=volume.origin_zyx,
            attributes=attributes,
            version=options.ome_version,
        )

    if job.confidence:
        create(job.confidence, is_labels=False)
    create(job.labels, is_labels=True)


def _check_outputs(source: Path, out: Path, confidence: Path | None, options: VolumeSettings) -> None:
    """Checks that what will be written, or deleted, is an output; nothing has been changed then."""
    image = find_image_of(out)
    own = [path for path in (out if image is None else None, confidence) if path is not None]
    inputs = [source, *([Path(options.mask)] if options.mask else [])]
    plan_outputs(own, inputs=inputs, existing="replace")
    if image is not None and not os.access(image, os.W_OK | os.X_OK):
        raise RunError(f"{out}: the folder {image} may not be written to. Check its permissions.")
    if options.overwrite and options.share[1] > 1:
        raise SettingsError(
            f"--overwrite with --shard {options.shard}: each job would delete what the others did. Delete {out} before."
        )
    for path in filter(None, (out, confidence)):
        check_output(path, options.ome_version)
        if not path.exists() and not path.is_symlink():
            continue
        if not path.is_dir() or (_holds_anything(path) and not is_zarr(path) and not (path / LEDGER).is_dir()):
            raise RunError(f"{path}: is there already, and is no output of predict. Choose another output.")
    if out.exists() and _holds_anything(out) and not options.overwrite and not (out / LEDGER).is_dir():
        raise RunError(
            f"{out}: is there already, without a ledger of what was predicted, so nobody knows by what. Choose another "
            "output, or say --overwrite."
        )


def _holds_anything(folder: Path) -> bool:
    """Returns whether there is more in a folder than the way to a ledger that another job may be making just now."""
    return any(path.name != LEDGER.parts[0] for path in folder.iterdir())


def _clear(out: Path, confidence: Path | None) -> None:
    """Deletes what is there, but for the files by which the output is held; first of all what says which blocks are done."""
    own = [path for path in (out / LEDGER).iterdir() if path.is_file() and path.suffix != ".hold"]
    for path in sorted(own, key=lambda path: path.name == HEAD):
        path.unlink()
    sync_folder(out / LEDGER)
    if confidence is not None and confidence.exists():
        shutil.rmtree(confidence)
    for folder in (out, out / LEDGER.parent, out / LEDGER):
        for path in folder.iterdir():
            if path.is_dir() and path not in (out / LEDGER.parent, out / LEDGER):
                shutil.rmtree(path)
            elif path.is_file() and path.suffix != ".hold":
                path.unlink()
