"""Gets MTNeuro task 2 from BossDB, or from the .npy files of its own loader, and verifies it to the pixel."""

from __future__ import annotations

import contextlib
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neurotome.atomic import hold_folder, sweep_partials, write_json
from neurotome.datasets.mtneuro.stored import BLOCK_SLICES, LEDGER, PROVENANCE, STORE, open_arrays
from neurotome.datasets.mtneuro.variants import (
    CITATION,
    EDGE,
    FOUR_CLASSES,
    LICENCE,
    REGIONS,
    TABLE_1,
    VOXEL_SIZE_UM,
    Z_RANGES,
    read_caches,
)
from neurotome.errors import DatasetError, FetchError, RunError
from neurotome.io.bossdb import PUBLIC_TOKEN, BossDB, Box, Channel, Connection
from neurotome.io.ledger import Ledger
from neurotome.io.transfer import Index, Transfer, count_mvoxel, find_missing, transfer_blocks
from neurotome.io.zarr_store import StoredBlock, plan_files
from neurotome.progress import Progress

IMAGE_URI = "bossdb://prasad/prasad2020/image"
LABELS_URI = "bossdb://prasad/prasad_analysis/pixel_labels"

Reader = Callable[["Part", str], Callable[[Index], NDArray[Any]]]
"""Part and kind (image or labels) -> what reads an index of it."""


class Part(NamedTuple):
    """One region of one split, and where it is in the whole volume."""

    split: str
    region: str
    box: Box


def fetch_mtneuro(
    out: Path,
    connection: Connection = Connection(),
    token: str = PUBLIC_TOKEN,
    *,
    verify_counts: bool = True,
    z_ranges: Mapping[str, tuple[int, int]] = Z_RANGES,
    counts: Mapping[str, Sequence[int]] = TABLE_1,
    block_slices: int = BLOCK_SLICES,
) -> Path:
    """Fetches image and labels of the four regions for the three splits; goes on where it was stopped.

    Args:
        out: Folder, see `stored`.
        connection: How BossDB is asked.
        token: Proves who asks; never stored.
        verify_counts: Whether other pixels per class than `counts` are an error. They are compared and noted either way.
        z_ranges: Slices of each split in the whole volume, stop left out.
        counts: Expected pixels per class of each split.
        block_slices: Slices per request and file.

    Returns:
        The folder.

    Raises:
        FetchError: Something cannot be fetched, or is not what it should be; what has arrived is kept.
        RunError: Another process is working there, or the folder was begun from another source.
    """
    parts = [
        Part(split, region.name, Box((start, region.y, region.x), (stop, region.y + EDGE, region.x + EDGE)))
        for split, (start, stop) in z_ranges.items()
        for region in REGIONS
    ]
    source = {"host": connection.host, "image": IMAGE_URI, "labels": LABELS_URI}
    channels: dict[str, Channel] = {}
    with BossDB(connection, token, tell=Announcer()) as client, open_folder(out, source) as ledger:

        def read_part(part: Part, kind: str) -> Callable[[Index], NDArray[Any]]:
            return lambda index: client.read_cutout(channels[kind], part.box.cut(index))

        transfers = _plan_transfers(out, parts, read_part, block_slices)
        missing = find_missing(transfers, ledger)
        if missing:
            channels.update(image=client.open_channel(IMAGE_URI), labels=client.open_channel(LABELS_URI))
            if channels["image"].dtype != np.uint8:
                raise FetchError(
                    f"{IMAGE_URI}: the server calls its datatype {channels['image'].dtype}; expected uint8, as published. "
                    "Check --host."
                )
        run_transfer(transfers, missing, ledger, connection.workers, client)
        return _finish(out, parts, ledger, source, counts, verify_counts)


def import_mtneuro(
    cache: Path,
    out: Path,
    *,
    verify_counts: bool = True,
    counts: Mapping[str, Sequence[int]] = TABLE_1,
    block_slices: int = BLOCK_SLICES,
) -> Path:
    """Brings the `task2_*.npy` files of MTNeuro's own loader into the same form and verifies them the same way.

    Args:
        cache: Where the files lie; a split without files is left out.
        out: Folder, as are the others, see `fetch_mtneuro`.
        verify_counts: Whether other pixels per class than `counts` are an error.
        counts: Expected pixels per class of each split.
        block_slices: Slices per file.

    Raises:
        DatasetError: There are no such files, one of a pair is missing, or a shape is wrong.
        FetchError: A file does not hold what it should; what was imported is kept.
        ImageError: A file is damaged.
        RunError: Another process is working there, or the folder was begun from another source.
    """
    if not cache.is_dir():
        raise DatasetError(f"--from-cache {cache}: no such folder; expected the one with MTNeuro's task2_*.npy files.")
    caches = read_caches(cache)
    parts = [
        Part(split, name, Box.at(region.origin_zyx, region.image.shape))
        for split, regions in caches.items()
        for name, region in regions.items()
    ]
    source = {"cache": str(cache.resolve())}

    def read_part(part: Part, kind: str) -> Callable[[Index], NDArray[Any]]:
        region = caches[part.split][part.region]
        voxels = region.image if kind == "image" else region.labels
        return lambda index: np.asarray(voxels[index])

    with open_folder(out, source) as ledger:
        transfers = _plan_transfers(out, parts, read_part, block_slices)
        run_transfer(transfers, find_missing(transfers, ledger), ledger, workers=2)
        return _finish(out, parts, ledger, source, counts, verify_counts)


class Announcer:
    """Tells on standard error that something is asked again, at most every few seconds: a host that is down affects all."""

    def __init__(self, interval_s: float = 5.0) -> None:
        self.interval_s, self.told, self._lock = interval_s, -float("inf"), threading.Lock()

    def __call__(self, message: str) -> None:
        """Shows a message unless another was just shown."""
        with self._lock:
            if time.monotonic() - self.told < self.interval_s:
                return
            self.told = time.monotonic()
        sys.stderr.write(f"neurotome: note: {message}\n")


@contextlib.contextmanager
def open_folder(out: Path, source: Mapping[str, Any]) -> Iterator[Ledger]:
    """Holds a folder against other processes, sweeps what a killed one left, and opens its ledger.

    Raises:
        RunError: It is no folder, is in use, or was begun from another source.
    """
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: a file is in the way; choose another folder with --out.")
    with hold_folder(out):
        if (out / STORE).exists() and not (out / LEDGER).exists():
            raise RunError(
                f"{out / STORE} is there, but its ledger {LEDGER} is not, so nobody knows where it comes from. Choose "
                "another folder with --out, or delete the store."
            )
        ledger = Ledger(out / LEDGER, out / STORE, source)
        sweep_partials(out)
        yield ledger


def run_transfer(
    transfers: Sequence[Transfer],
    missing: Sequence[tuple[Transfer, StoredBlock]],
    ledger: Ledger,
    workers: int,
    client: BossDB | None = None,
) -> None:
    """Transfers what is missing and shows how far it is, with rate and time left."""
    if not missing:
        return
    total = count_mvoxel([block for transfer in transfers for block in plan_files(transfer.array)])
    progress = Progress("fetching" if client else "importing", total, "Mvoxel", interval_s=10.0)
    progress.start_at(total - count_mvoxel([block for _, block in missing]))

    def note() -> str:
        return f"asked again {client.retries} times" if client is not None and client.retries else ""

    transfer_blocks(missing, ledger, workers, progress, stop=client.stop if client else lambda: None, note=note)
    progress.finish(", ".join(filter(None, [f"{len(missing)} blocks", note()])))


def _plan_transfers(out: Path, parts: Sequence[Part], read_part: Reader, block_slices: int) -> list[Transfer]:
    transfers = []
    for part in parts:
        image, labels = open_arrays(out, part.split, part.region, part.box.shape, block_slices)
        transfers.append(Transfer(image, read_part(part, "image"), f"{part.split}, {part.region}, image"))
        transfers.append(
            Transfer(labels, read_part(part, "labels"), f"{part.split}, {part.region}, labels", len(FOUR_CLASSES) - 1)
        )
    return transfers


def _finish(
    out: Path,
    parts: Sequence[Part],
    ledger: Ledger,
    source: Mapping[str, Any],
    counts: Mapping[str, Sequence[int]],
    verify_counts: bool,
) -> Path:
    """Adds up the blocks' counts, writes the provenance, and says whether the data are those of the founding report."""
    entries = sorted(ledger.entries.items())  # <split>/<region>/<kind>/... -> what is known of the block
    times = [entry["time"] for _, entry in entries]
    regions: dict[str, dict[str, Any]] = {}
    for part in parts:
        ranges = {axis: [part.box.start[i], part.box.stop[i]] for i, axis in enumerate("zyx")}
        regions.setdefault(part.split, {})[part.region] = ranges

    def list_entries(kind: str, split: str | None = None) -> list[dict[str, Any]]:
        places = [(name.split("/"), entry) for name, entry in entries]
        return [entry for place, entry in places if place[2] == kind and split in (None, place[0])]

    counted = {
        split: np.sum([entry["counts"] for entry in list_entries("labels", split)], axis=0).tolist() for split in regions
    }
    differences = [
        f"{split}, {name}: {number:,} pixels, expected {wanted:,} ({number - wanted:+,})"
        for split in counted
        if split in counts
        for name, number, wanted in zip(FOUR_CLASSES.names, counted[split], counts[split], strict=True)
        if number != wanted
    ]
    provenance: dict[str, Any] = {
        "dataset": "MTNeuro task 2",
        "source": dict(source),
        "resolution": 0,
        "axes": "zyx",
        "ranges": "half-open, in voxels of the whole volume",
        "voxel_size_um": VOXEL_SIZE_UM,
        "regions": regions,
        "classes": list(FOUR_CLASSES.names),
        "licence": LICENCE,
        "citation": CITATION,
        "times": {"first": min(times), "last": max(times)},
        "source_dtypes": {
            kind: sorted({entry["dtype"] for entry in list_entries(kind) if "dtype" in entry})
            for kind in ("image", "labels")
        },
        "versions": list_versions(),
        "blocks": {name: entry["sha256"] for name, entry in entries},
        "verification": {
            "checked": "shape, dtype and label values of every block; pixels per class of every split",
            "counts": counted,
            "expected": {split: list(numbers) for split, numbers in counts.items()},
            "differences": differences,
            "accepted": not differences or not verify_counts,
        },
    }
    write_json(out / PROVENANCE, provenance)
    if differences and verify_counts:
        raise FetchError(
            f"{out} holds other pixels per class than the founding report's Table 1:\n  " + "\n  ".join(differences) + "\n"
            "The data are kept for inspection and not opened as a dataset. Delete the folder and fetch anew, or accept them "
            "as they are with the same command and --no-verify-counts; nothing is fetched again then."
        )
    absent = [split for split in counts if split not in counted]
    agreement = "differ from Table 1, as accepted" if differences else "equal Table 1"
    lacking = f"; no files of {', '.join(absent)}" if absent else ""
    sys.stderr.write(f"{out}: {', '.join(counted)} verified; pixels per class {agreement}{lacking}\n")
    return out


def list_versions() -> dict[str, str]:
    """Returns the versions of all that took part in a transfer."""
    libraries = ("neurotome", "numpy", "zarr", "numcodecs", "httpx2")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in libraries}}
