"""Blocks from a source into Zarr arrays: several at once, each checked, stored and written down before it counts.

The order is what makes a kill harmless: a block's voxels are checked, its file is written whole (temporary name, sync,
rename), then its line enters the ledger. Whatever is under a final name has therefore been checked. A kill between the last
two steps leaves a file without a line; it is read back, checked again and written down, not fetched again.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import FetchError
from neurotome.io.ledger import Ledger
from neurotome.io.zarr_store import StoredBlock, plan_files, read_block
from neurotome.progress import Progress

if TYPE_CHECKING:
    import zarr

Index = tuple[slice, slice, slice]

JOIN_S = 5.0  # how long a stopped command waits for its workers; they are daemons, and a block half-fetched is nothing


@dataclass(frozen=True)
class Transfer:
    """An array to fill.

    Attributes:
        array: Where the voxels go.
        read: Returns the voxels of an index of the array, from wherever they come; is called from several threads.
        name: For messages.
        largest: Largest value allowed, None for any. Values are narrowed to the array's dtype only within it, and the ledger
            gets their counts.
    """

    array: zarr.Array[Any]
    read: Callable[[Index], NDArray[Any]]
    name: str
    largest: int | None = None


def find_missing(transfers: Sequence[Transfer], ledger: Ledger) -> list[tuple[Transfer, StoredBlock]]:
    """Returns the blocks that are not done; what is stored but not written down is checked and written down."""
    missing = []
    for transfer in transfers:
        for block in plan_files(transfer.array):
            if ledger.holds(block.file):
                continue
            if block.file not in ledger.entries:
                voxels = read_block(transfer.array, block)
                if voxels is not None and not _list_wrong(voxels, transfer.largest):
                    ledger.add(block.file, **_count(voxels, transfer.largest))
                    continue
            missing.append((transfer, block))
    return missing


def transfer_blocks(
    missing: Sequence[tuple[Transfer, StoredBlock]],
    ledger: Ledger,
    workers: int,
    progress: Progress,
    *,
    stop: Callable[[], None] = lambda: None,
    note: Callable[[], str] = lambda: "",
) -> None:
    """Reads, checks, stores and writes down blocks; the first error ends it, and what is done stays done.

    Args:
        missing: From `find_missing`.
        ledger: Gets a line per block.
        workers: Blocks at once; each holds one block in its source's dtype and in the array's.
        progress: Counts million voxels.
        stop: Makes `read` return soon in all threads.
        note: Is shown beside the progress.

    Raises:
        FetchError: Voxels are not what they should be; or whatever `read` raises.
    """
    work: queue.SimpleQueue[tuple[Transfer, StoredBlock]] = queue.SimpleQueue()
    results: queue.SimpleQueue[StoredBlock | BaseException] = queue.SimpleQueue()
    ending = threading.Event()
    for item in missing:
        work.put(item)

    def run() -> None:
        while not ending.is_set():
            try:
                transfer, block = work.get_nowait()
            except queue.Empty:
                return
            try:
                store_block(transfer, block, ledger)
            except BaseException as error:
                results.put(error)
                return
            results.put(block)

    threads = [threading.Thread(target=run, daemon=True, name=f"transfer-{i}") for i in range(min(workers, len(missing)))]
    done = progress.first
    try:
        for thread in threads:
            thread.start()
        for _ in missing:
            result = _wait(results, progress, done, note)
            if isinstance(result, BaseException):
                raise result
            done += _count_mvoxel(result)
            progress.update(done, note())
    finally:
        ending.set()
        stop()
        for thread in threads:
            thread.join(JOIN_S)


def store_block(transfer: Transfer, block: StoredBlock, ledger: Ledger) -> None:
    """Reads one block, checks and narrows it, writes its file, then its line in the ledger.

    Raises:
        FetchError: Shape, dtype or values are wrong; nothing is written then.
    """
    array = transfer.array
    where = f"{transfer.name}, {','.join(f'{part.start}:{part.stop}' for part in block.place)}"
    voxels = transfer.read(block.place)
    expected = tuple(part.stop - part.start for part in block.place)
    if voxels.shape != expected or voxels.dtype.kind not in "iu":
        raise FetchError(
            f"{where}: found shape {voxels.shape} of {voxels.dtype}; expected {expected} of integers. Nothing of this block "
            "is kept; check the source."
        )
    wrong = _list_wrong(voxels, transfer.largest)
    if wrong:
        raise FetchError(
            f"{where}: label values outside 0..{transfer.largest}: {wrong}. Nothing of this block is kept. This is not the "
            "channel that was expected, or the server is at fault: check the address and --host, then give the same command "
            "again."
        )
    if transfer.largest is None and not np.can_cast(voxels.dtype, array.dtype):
        raise FetchError(f"{where}: dtype {voxels.dtype} does not fit into {array.dtype}; expected {array.dtype}.")
    narrow = voxels.astype(array.dtype, copy=False)
    array[block.place] = narrow
    ledger.add(block.file, dtype=voxels.dtype.name, **_count(narrow, transfer.largest))


def _wait(
    results: queue.SimpleQueue[StoredBlock | BaseException],
    progress: Progress,
    done: float,
    note: Callable[[], str],
) -> StoredBlock | BaseException:
    while True:
        try:
            return results.get(timeout=0.2)
        except queue.Empty:
            progress.update(done, note())  # a slow block must not look like a dead program


def _count_mvoxel(block: StoredBlock) -> float:
    return float(np.prod([part.stop - part.start for part in block.place])) / 1e6


def count_mvoxel(blocks: Sequence[StoredBlock]) -> float:
    """Returns million voxels of blocks."""
    return sum(_count_mvoxel(block) for block in blocks)


def _count(voxels: NDArray[Any], largest: int | None) -> dict[str, list[int]]:
    """Returns how many voxels have each of the values 0..largest, for the ledger."""
    if largest is None:
        return {}
    # four times as fast as bincount, which makes every label 64 bits wide first
    return {"counts": [int(np.count_nonzero(voxels == value)) for value in range(largest + 1)]}


def _list_wrong(voxels: NDArray[Any], largest: int | None) -> str:
    """Returns the values outside 0..largest with their counts, "" if there is none."""
    if largest is None or (voxels.max() <= largest and (voxels.dtype.kind == "u" or voxels.min() >= 0)):
        return ""
    values, counts = np.unique(voxels[(voxels < 0) | (voxels > largest)], return_counts=True)
    listed = ", ".join(f"{value} ({count} voxels)" for value, count in zip(values[:8], counts[:8], strict=True))
    return listed + (f", ... ({len(values)} values)" if len(values) > 8 else "")
