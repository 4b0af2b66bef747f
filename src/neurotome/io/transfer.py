"""Blocks from a source into Zarr arrays: several at once, each checked, stored and written down before it counts.

The order is what makes a kill harmless: a block's voxels are checked, its file is written whole (temporary name, sync,
rename), then its line enters the ledger. Whatever is under a final name has therefore been checked. A kill between the last
two steps leaves a file without a line; it is read back, checked again and written down, not fetched again.
"""

from __future__ import annotations

import math
import queue
import threading
import time
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

    At most `workers` threads read and check at once and as many store, so that the source is not kept waiting for the disk.
    What is checked when it ends early is stored still.

    Args:
        missing: From `find_missing`.
        ledger: Gets a line per block.
        workers: Blocks that are read at once, and stored at once.
        progress: Counts million voxels.
        stop: Makes `read` return soon in all threads.
        note: Is shown beside the progress.

    Raises:
        FetchError: Voxels are not what they should be; or whatever `read` raises.
    """
    blocks: queue.SimpleQueue[tuple[Transfer, StoredBlock]] = queue.SimpleQueue()
    results: queue.SimpleQueue[StoredBlock | BaseException] = queue.SimpleQueue()
    reading, storing = threading.Semaphore(workers), threading.Semaphore(workers)
    ending = threading.Event()
    for item in missing:
        blocks.put(item)

    def work() -> None:
        try:
            while True:
                with reading:
                    if ending.is_set() or blocks.empty():
                        return
                    transfer, block = blocks.get_nowait()
                    voxels, facts = read_checked(transfer, block)
                with storing:
                    transfer.array[block.place] = voxels
                    ledger.add(block.file, **facts)
                results.put(block)
        except queue.Empty:
            return  # another thread took the last block
        except BaseException as error:
            ending.set()
            results.put(error)

    threads = [threading.Thread(target=work, daemon=True, name=f"transfer-{i}") for i in range(2 * workers)]
    done = progress.first
    try:
        for thread in threads[: 2 * len(missing)]:
            thread.start()
        for _ in missing:
            result = _wait(results, progress, done, note)
            if isinstance(result, BaseException):
                raise result
            done += count_mvoxel([result])
            progress.update(done, note())
    finally:
        ending.set()
        stop()
        until = time.monotonic() + JOIN_S
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))


def read_checked(transfer: Transfer, block: StoredBlock) -> tuple[NDArray[Any], dict[str, Any]]:
    """Reads one block, checks and narrows it; returns it as it is stored, and what the ledger is told of it.

    Raises:
        FetchError: Shape, dtype or values are wrong.
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
    return narrow, {"dtype": voxels.dtype.name, **_count(narrow, transfer.largest)}


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


def count_mvoxel(blocks: Sequence[StoredBlock]) -> float:
    """Returns million voxels of blocks."""
    return float(sum(math.prod(part.stop - part.start for part in block.place) for block in blocks)) / 1e6


def _count(voxels: NDArray[Any], largest: int | None) -> dict[str, list[int]]:
    """Returns how many of these checked voxels have each of the values 0..largest, for the ledger."""
    if largest is None:
        return {}
    # five times as fast as bincount, which makes every label 64 bits wide first
    counts = [int(np.count_nonzero(voxels == value)) for value in range(1, largest + 1)]
    return {"counts": [voxels.size - sum(counts), *counts]}


def _list_wrong(voxels: NDArray[Any], largest: int | None) -> str:
    """Returns the values outside 0..largest with their counts, "" if there is none."""
    if largest is None or (voxels.max() <= largest and (voxels.dtype.kind == "u" or voxels.min() >= 0)):
        return ""
    values, counts = np.unique(voxels[(voxels < 0) | (voxels > largest)], return_counts=True)
    listed = ", ".join(f"{value} ({count} voxels)" for value, count in zip(values[:8], counts[:8], strict=True))
    return listed + (f", ... ({len(values)} values)" if len(values) > 8 else "")
