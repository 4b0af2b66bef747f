"""verify: whether every block of a segmentation is still, byte by byte, what was written down when it was stored."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from neurotome.atomic import hold_output, sweep_partials
from neurotome.blocks import Grid
from neurotome.engines import EngineSettings, open_engine
from neurotome.errors import ImageError, RunError, SettingsError
from neurotome.io.block_array import NO_FILES, BlockArray
from neurotome.io.block_ledger import BlockLedger, name_writer, read_head
from neurotome.io.label_store import LabelStore, count_ids, name_confidence, open_label_store
from neurotome.io.pyramid import build_pyramid, plan_levels
from neurotome.progress import Progress

LEDGER = "ledger"
"""Within the array whose blocks it is about."""

MOST_LISTED = 50
"""Damaged blocks that are listed."""


@dataclass(frozen=True)
class VerifySettings:
    """How thoroughly a segmentation is looked at, and what is done about what is found."""

    deep: bool = False
    """Count the voxels of every class again too, which unpacks everything."""

    repair: bool = False
    """Delete what is damaged and mark it as not done, so that the command that wrote the output does it again; damaged
    coarser levels are made again at once."""

    threads: int = 4
    """Blocks that are read at once."""


@dataclass(frozen=True)
class Checked:
    """A level of a store, the ledger that it is compared with, and where in its lines the checksum is.

    Attributes:
        deep: Whether the voxels are counted again too.
    """

    array: BlockArray
    ledger: BlockLedger
    key: str
    deep: bool

    @property
    def grid(self) -> Grid:
        """Its blocks."""
        return Grid(self.array.shape_zyx, self.array.block_zyx, self.array.block_zyx)

    def check(self, block: int) -> str:
        """Returns what is wrong with a block, "" if nothing is."""
        place, entry = self.grid.place(block), self.ledger.find(block)
        digest = self.array.digest_block(place)
        if entry is None:
            return "" if digest == NO_FILES else "is there, but nobody wrote down that it is done"
        if digest != entry[self.key]:
            return "is missing" if digest == NO_FILES else "holds other bytes than were stored"
        if self.deep and count_ids(self.array.read(place)) != entry["counts"]:
            return "has its bytes, but other counts of classes than were written down"
        return ""

    def find_damage(self, threads: int, progress: Progress, begun: int) -> Iterator[Damage]:
        """Yields the blocks with which something is wrong; `begun` blocks were looked at before."""
        settings = EngineSettings(workers=1, threads=threads, retries=0)
        with open_engine(settings, "cpu") as engine:
            for done, outcome in enumerate(engine.run(lambda: self.check, range(len(self.grid))), begun + 1):
                progress.update(done)
                if what := outcome.error or outcome.result:
                    yield Damage(self, outcome.task, what)


@dataclass(frozen=True)
class Damage:
    """A block that is not what was written down: where, its number, and what is wrong with it."""

    checked: Checked
    block: int
    what: str

    def __str__(self) -> str:
        """Names the block and its voxels."""
        place = ",".join(f"{part.start}:{part.stop}" for part in self.checked.grid.place(self.block))
        array = self.checked.array
        return f"{array.path.name}/{array.level}, block {self.block} ({place}): {self.what}"


def verify(
    output: str | Path, *, settings: Annotated[VerifySettings, Parameter(name="*")] = VerifySettings()
) -> dict[str, str]:
    """Compares every block of a segmentation with the checksum that was written down when it was stored.

    Finds flipped bytes, truncated and missing files, and blocks of which the ledger knows nothing: in the labels, in the
    confidence beside them, and in their coarser levels.

    Args:
        output: An OME-Zarr that `predict` wrote.
        settings: How thoroughly, and whether to repair.

    Returns:
        What was looked at, and what was repaired.

    Raises:
        ImageError: It is no such output.
        RunError: Blocks are damaged and were not to be repaired, or a job is at work on what is to be repaired.
    """
    if settings.threads < 1:
        raise SettingsError(f"threads is {settings.threads}; expected 1 or more.")
    path = Path(output)
    labels, folder = open_label_store(path), path / "0" / LEDGER
    ledger = _open_ledger(folder)
    with hold_output(folder) if settings.repair else contextlib.nullcontext():
        stores, arrays = [labels], [Checked(labels, ledger, "sha256", settings.deep)]
        if any("confidence_sha256" in entry for _, entry in ledger.find_all()):
            confidence = open_label_store(name_confidence(path))
            stores.append(confidence)
            arrays.append(Checked(confidence, ledger, "confidence_sha256", deep=False))
        finest = len(arrays)
        arrays += [level for store in stores for level in _open_levels(store)]
        damaged = _find_all(arrays, settings.threads)
        report = _describe(ledger, arrays, finest)
        if not damaged:
            return report
        shown = [str(damage) for damage in damaged[:MOST_LISTED]] + ["..."] * (len(damaged) > MOST_LISTED)
        listed = "\n".join(shown)
        if not settings.repair:
            raise RunError(
                f"{path}: {len(damaged)} blocks are not what was written down:\n{listed}\nneurotome verify {path} --repair "
                "marks them as not done; the command that wrote the output then does these again."
            )
        left = _repair(damaged, arrays[:finest], stores, settings.threads)
    again = f"{left} blocks are marked as not done: the command that wrote the output does them again."
    made = "All damage was in coarser levels, which were made again."
    return {**report, "repaired": f"{again if left else made}\n{listed}"}


def _open_ledger(folder: Path) -> BlockLedger:
    """Opens a ledger that was begun, by whatever settings."""
    head = read_head(folder)
    if head is None:
        raise ImageError(f"{folder}: found no ledger of blocks; expected an OME-Zarr that neurotome predict wrote.")
    return BlockLedger(folder, head["fingerprint"], writer=f"verify-{name_writer()}")


def _open_levels(store: LabelStore) -> Iterator[Checked]:
    """Yields the coarser levels that a store lists."""
    listed = store.levels
    for level in plan_levels(store.shape_zyx, store.block_zyx, store.voxel_size_um)[1:]:
        if level.path in listed:
            array = store.open_level(level.path, level.shape_zyx, level.block_zyx)
            yield Checked(array, _open_ledger(store.path / level.path / LEDGER), "sha256", deep=False)


def _find_all(arrays: Sequence[Checked], threads: int) -> list[Damage]:
    """Returns what is damaged; what a job that is at work has put right meanwhile is not."""
    progress = Progress("verifying", sum(len(checked.grid) for checked in arrays), "block")
    damaged: list[Damage] = []
    begun = 0
    for checked in arrays:
        damaged += sorted(checked.find_damage(threads, progress, begun), key=lambda damage: damage.block)
        begun += len(checked.grid)
    progress.finish(f"{begun} blocks")
    for ledger in {damage.checked.ledger for damage in damaged}:
        ledger.refresh()
    return sorted(
        (damage for damage in damaged if _is_damaged(damage)),
        key=lambda damage: (arrays.index(damage.checked), damage.block),
    )


def _is_damaged(damage: Damage) -> bool:
    try:
        return damage.checked.check(damage.block) != ""
    except (ImageError, OSError):
        return True


def _describe(ledger: BlockLedger, arrays: Sequence[Checked], finest: int) -> dict[str, str]:
    done = [entry for _, entry in ledger.find_all()]
    in_part = sum(entry["tiles"] != "all" for entry in done)
    report = {
        "blocks": f"{len(done)} of {len(arrays[0].grid)} are written down as done, {in_part} of them in part",
        "coarser levels": f"{len(arrays) - finest}",
    }
    if (scale := ledger.head.get("chosen", {}).get("scale")) and scale["source"]:
        report["grey scale"] = f"mean {scale['mean']:.4g} and deviation {scale['std']:.4g}, measured from {scale['source']}"
    if failed := ledger.failures:
        report["set aside"] = ", ".join(map(str, failed))
    return report


def _repair(damaged: Sequence[Damage], finest: Sequence[Checked], stores: Sequence[LabelStore], threads: int) -> int:
    """Marks blocks as not done and deletes them; makes coarser levels again where all is well beneath; returns how many."""
    undone = {damage.block: damage.what for damage in damaged if damage.checked in finest}
    for block, what in undone.items():
        finest[0].ledger.undo(block, what)
        for checked in finest:  # a block is done with its confidence or not at all
            checked.array.delete_block(checked.grid.place(block))
    for store in stores:
        sweep_partials(store.path)
        if not undone:
            with open_engine(EngineSettings(workers=1, threads=threads), "cpu") as engine:
                build_pyramid(store, engine.run)
    return len(undone)
