"""Gets MTNeuro task 2 from BossDB, or from the .npy files of its own loader, and verifies it to the pixel."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from neurotome.atomic import write_json
from neurotome.datasets.mtneuro.stored import LEDGER, PROVENANCE, STORE, read_array
from neurotome.datasets.mtneuro.variants import (
    CITATION,
    EDGE,
    FOUR_CLASSES,
    LICENCE,
    REGIONS,
    TABLE_1,
    TABLE_1_GREY,
    VOXEL_SIZE_UM,
    Z_RANGES,
    read_caches,
    read_phantom,
)
from neurotome.errors import DatasetError, FetchError
from neurotome.io.bossdb import PUBLIC_TOKEN, BossDB, Box, Channel, Connection
from neurotome.io.lazy_array import Place
from neurotome.io.ledger import Ledger, hold_ledger
from neurotome.io.transfer import Transfer, find_missing, transfer_blocks
from neurotome.io.zarr_store import open_or_create
from neurotome.normalize import measure_grey

IMAGE_URI = "bossdb://prasad/prasad2020/image"
LABELS_URI = "bossdb://prasad/prasad_analysis/pixel_labels"

BLOCK_SLICES = 32
"""Slices per file and request: 2 MiB of voxels, 16 MiB while labels are 64 bits wide."""

Boxes = Mapping[tuple[str, str], Box]
"""Split and region -> where it is in the whole volume."""

Read = Callable[[str, str, str, Place], NDArray[Any]]
"""Takes split, region, image or labels, and a place in them."""


def fetch_mtneuro(
    out: Path, connection: Connection = Connection(), token: str = PUBLIC_TOKEN, *, verify_counts: bool = True
) -> Path:
    """Fetches image and labels of the four regions for the three splits into `out`; goes on where it was stopped.

    Pixels per class other than Table 1's are an error with `verify_counts`; they are compared and noted either way.

    Raises:
        FetchError: Something cannot be fetched, or is not what it should be; what has arrived is kept.
        RunError: Another process is working there, or the folder was begun from another source.
    """
    boxes = {
        (split, name): Box((start, y, x), (stop, y + EDGE, x + EDGE))
        for split, (start, stop) in Z_RANGES.items()
        for name, (y, x) in REGIONS.items()
    }
    source = {"host": connection.host, "image": IMAGE_URI, "labels": LABELS_URI}
    channels: dict[str, Channel] = {}
    with BossDB(connection, token) as client:

        def read(split: str, region: str, kind: str, place: Place) -> NDArray[Any]:
            return client.read_cutout(channels[kind], boxes[split, region].cut(place))

        with hold_ledger(out, out / LEDGER, out / STORE, source) as ledger:
            transfers = _plan_transfers(out, boxes, read)
            missing = find_missing(transfers, ledger)
            if missing:
                channels.update(image=client.open_channel(IMAGE_URI), labels=client.open_channel(LABELS_URI))
                if channels["image"].dtype != np.uint8:
                    raise FetchError(
                        f"{IMAGE_URI}: the server calls its datatype {channels['image'].dtype}; expected uint8, as "
                        "published. Check --host."
                    )
            transfer_blocks(transfers, missing, ledger, connection.workers, client)
            return _finish(out, boxes, ledger, source, verify_counts)


def import_mtneuro(cache: Path, out: Path, *, verify_counts: bool = True) -> Path:
    """Brings the `task2_*.npy` files of MTNeuro's own loader into the form of `fetch_mtneuro`, verified the same way.

    A split without files is left out. Raises what `fetch_mtneuro` and `read_caches` do.
    """
    if not cache.is_dir():
        raise DatasetError(f"--from-cache {cache}: no such folder; expected the one with MTNeuro's task2_*.npy files.")
    if read_phantom(cache):
        raise DatasetError(f"--from-cache {cache}: this is a phantom, which needs no import. Open it as mtneuro:{cache}.")
    caches = read_caches(cache)
    boxes = {
        (split, name): Box.at(region.origin_zyx, region.image.shape)
        for split, regions in caches.items()
        for name, region in regions.items()
    }
    source = {"cache": str(cache.resolve())}

    def read(split: str, region: str, kind: str, place: Place) -> NDArray[Any]:
        stored = caches[split][region]
        return np.asarray((stored.image if kind == "image" else stored.labels)[place])

    with hold_ledger(out, out / LEDGER, out / STORE, source) as ledger:
        transfers = _plan_transfers(out, boxes, read)
        transfer_blocks(transfers, find_missing(transfers, ledger), ledger, workers=2)
        return _finish(out, boxes, ledger, source, verify_counts)


def _plan_transfers(out: Path, boxes: Boxes, read: Read) -> list[Transfer]:
    """Opens or creates an array for image and labels of each region."""
    kinds: list[tuple[str, int | None, Literal["noshuffle", "bitshuffle"]]]
    kinds = [("image", None, "noshuffle"), ("labels", len(FOUR_CLASSES) - 1, "bitshuffle")]
    transfers = []
    for (split, region), box in boxes.items():
        block = (min(BLOCK_SLICES, box.shape[0]), *box.shape[1:])
        for kind, largest, shuffle in kinds:
            place = f"{split}/{region}/{kind}"
            array = open_or_create(out / STORE, place, box.shape, np.dtype(np.uint8), block, shuffle=shuffle)
            transfers.append(Transfer(array, partial(read, split, region, kind), place.replace("/", ", "), largest))
    return transfers


def _finish(out: Path, boxes: Boxes, ledger: Ledger, source: Mapping[str, Any], verify_counts: bool) -> Path:
    """Adds up the blocks' counts, writes the provenance, and says whether the data are those of the founding report."""
    entries = sorted(ledger.entries.items())  # <split>/<region>/<kind>/... -> what is known of the block
    regions: dict[str, dict[str, Any]] = {}
    for (split, region), box in boxes.items():
        ranges = {axis: list(ends) for axis, ends in zip("zyx", zip(*box, strict=True), strict=True)}
        regions.setdefault(split, {})[region] = ranges
    counted = {split: [0] * len(FOUR_CLASSES) for split in regions}
    dtypes: dict[str, set[str]] = {"image": set(), "labels": set()}
    for name, entry in entries:
        split, _, kind = name.split("/")[:3]
        dtypes[kind] |= {entry["dtype"]} if "dtype" in entry else set()
        if kind == "labels":
            counted[split] = [a + b for a, b in zip(counted[split], entry["counts"], strict=True)]
    differences = [
        f"{split}, {name}: {number:,} pixels, expected {wanted:,} ({number - wanted:+,})"
        for split, numbers in counted.items()
        for name, number, wanted in zip(FOUR_CLASSES.names, numbers, TABLE_1[split], strict=True)
        if number != wanted
    ]
    times = [entry["time"] for _, entry in entries]
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
        "source_dtypes": {kind: sorted(names) for kind, names in dtypes.items()},
        "versions": list_versions(),
        "blocks": {name: entry["sha256"] for name, entry in entries},
        "verification": {
            "checked": "shape, dtype and label values of every block; pixels per class of every split",
            "counts": counted,
            "expected": {split: list(numbers) for split, numbers in TABLE_1.items()},
            "differences": differences,
            "accepted": not differences or not verify_counts,
        },
    }
    grey = {split: _measure_grey(out, provenance, split) for split in regions}
    provenance["verification"]["grey"] = grey
    write_json(out / PROVENANCE, provenance)
    if differences and verify_counts:
        raise FetchError(
            f"{out} holds other pixels per class than the founding report's Table 1:\n  " + "\n  ".join(differences) + "\n"
            "The data are kept for inspection and not opened as a dataset. Delete the folder and fetch anew, or accept them "
            "as they are with the same command and --no-verify-counts; nothing is fetched again then."
        )
    absent = [split for split in TABLE_1 if split not in counted]
    agreement = "differ from Table 1, as accepted" if differences else "equal Table 1"
    unlike = "; ".join(f"{split} {_say_grey(split, measured)}" for split, measured in grey.items() if not measured["agrees"])
    greys = f"grey values differ: {unlike}" if unlike else "mean and standard deviation as well"
    lacking = f"; no files of {', '.join(absent)}" if absent else ""
    sys.stderr.write(f"{out}: {', '.join(counted)} verified; pixels per class {agreement}{lacking}; {greys}\n")
    return out


def _measure_grey(out: Path, provenance: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Returns mean and standard deviation of a split, and whether they are the printed ones to the printed digits.

    Whether the report's deviation is that of all pixels or the mean of every slice's is not said: either may agree.
    """
    images = [read_array(out, f"{split}/{region}/image", provenance) for region in provenance["regions"][split]]
    mean, std = measure_grey(images)
    std_of_slices = float(np.mean([plane.std(dtype=np.float64) for image in images for plane in image]))

    def is_printed(value: float, text: str) -> bool:
        return f"{value:.{len(text.partition('.')[2])}f}" == text

    printed_mean, printed_std = TABLE_1_GREY[split]
    agrees = is_printed(mean, printed_mean) and (is_printed(std, printed_std) or is_printed(std_of_slices, printed_std))
    return {"mean": mean, "std": std, "mean_std_of_slices": std_of_slices, "agrees": agrees}


def _say_grey(split: str, measured: Mapping[str, Any]) -> str:
    mean, std = TABLE_1_GREY[split]
    return (
        f"mean {measured['mean']:.5g}, printed {mean}, standard deviation {measured['std']:.5g} of all pixels and "
        f"{measured['mean_std_of_slices']:.5g} of a slice on average, printed {std}"
    )


def list_versions() -> dict[str, str]:
    """Returns the versions of all that took part in a transfer."""
    libraries = ("neurotome", "numpy", "zarr", "numcodecs", "httpx2")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in libraries}}
