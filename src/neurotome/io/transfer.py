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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import FetchError
from neurotome.io.bossdb import BossDB
from neurotome.io.lazy_array import Place
from neurotome.io.ledger import Ledger
from neurotome.io.zarr_store import StoredBlock, plan_files, read_block, write_block
from neurotome.progress import Progress

if TYPE_CHECKING:
    import zarr

JOIN_S = 5.0  # how long a stopped command waits for its workers; they are daemons, and a block half-fetched is nothing


@dataclass(frozen=True)
class Transfer:
    """An array to fill with what `read` returns for its places, called from several threads; the name is for messages.

    Labels have a largest value. They are narrowed to the array's dtype only within it, and the ledger gets their counts.
    """

    array: zarr.Array[Any]
    read: Callable[[Place], NDArray[Any]]
    name: str
    largest: int | None = None


Missing = Sequence[tuple[Transfer, StoredBlock]]


def find_missing(transfers: Sequence[Transfer], ledger: Ledger) -> Missing:
    """Returns the blocks that are not done; what is stored but not written down is checked and written down."""
    missing = []
    for transfer in transfers:
        for block in plan_files(transfer.array):
            if ledger.holds(block.file):
                continue
            voxels = None if block.file in ledger.entries else read_block(transfer.array, block)
            if voxels is None or _list_wrong(voxels, transfer.largest):
                missing.append((transfer, block))
            else:
                ledger.add(block.file, **_count(voxels, transfer.largest))
    return missing


def transfer_blocks(
    transfers: Sequence[Transfer], missing: Missing, ledger: Ledger, workers: int, client: BossDB | None = None
) -> None:
    """Reads, checks, stores and writes down blocks, showing how far it is; after the first error what is done stays done.

    At most `workers` threads read and check at once while as many others store, so that the source is not kept waiting for
    the disk. What is checked when it ends early is stored still, and a `client` from whom voxels come is told to stop.

    Raises:
        FetchError: Voxels are not what they should be; or whatever `read` raises.
    """
    if not missing:
        return
    total = _count_mvoxel(block for transfer in transfers for block in plan_files(transfer.array))
    done = total - _count_mvoxel(block for _, block in missing)
    progress = Progress("fetching" if client else "importing", total, "Mvoxel", interval_s=10.0)
    progress.start_at(done)
    blocks: queue.SimpleQueue[tuple[Transfer, StoredBlock] | None] = queue.SimpleQueue()
    results: queue.SimpleQueue[StoredBlock | BaseException] = queue.SimpleQueue()
    reading, ending = threading.Semaphore(workers), threading.Event()

    def work() -> None:
        try:
            while True:
                with reading:
                    item = blocks.get()
                    if item is None or ending.is_set():
                        return
                    transfer, block = item
                    voxels, facts = _read_checked(transfer, block)
                write_block(transfer.array, block, voxels)
                ledger.add(block.file, **facts)
                results.put(block)
        except BaseException as error:
            ending.set()
            results.put(error)

    count = min(2 * workers, 2 * len(missing))
    threads = [threading.Thread(target=work, daemon=True, name=f"transfer-{i}") for i in range(count)]
    for item in (*missing, *[None] * count):
        blocks.put(item)

    def note() -> str:
        return f"asked again {client.retries} times" if client and client.retries else ""

    try:
        for thread in threads:
            thread.start()
        left = len(missing)
        while left:
            progress.update(done, note())  # also now and then: a slow block must not look like a dead program
            try:
                result = results.get(timeout=0.2)
            except queue.Empty:
                continue
            if isinstance(result, BaseException):
                raise result
            left -= 1
            done += _count_mvoxel([result])
    finally:
        ending.set()
        if client is not None:
            client.stop()
        until = time.monotonic() + JOIN_S
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))
    progress.finish(", ".join(filter(None, [f"{len(missing)} blocks", note()])))


def _read_checked(transfer: Transfer, block: StoredBlock) -> tuple[NDArray[Any], dict[str, Any]]:
    """Reads one block, checks and narrows it; returns it as it is stored, and what the ledger is told of it."""
    dtype = transfer.array.dtype
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
    if transfer.largest is None and not np.can_cast(voxels.dtype, dtype):
        raise FetchError(f"{where}: dtype {voxels.dtype} does not fit into {dtype}; expected {dtype}.")
    narrow = voxels.astype(dtype, copy=False)
    return narrow, {"dtype": voxels.dtype.name, **_count(narrow, transfer.largest)}


def _count_mvoxel(blocks: Iterable[StoredBlock]) -> float:
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
    if largest is None or 0 <= voxels.min() <= voxels.max() <= largest:
        return ""
    values, counts = np.unique(voxels[(voxels < 0) | (voxels > largest)], return_counts=True)
    listed = [f"{value} ({count} voxels)" for value, count in zip(values, counts, strict=True)]
    return ", ".join(listed[:8]) + (f", ... ({len(values)} values)" if len(values) > 8 else "")
