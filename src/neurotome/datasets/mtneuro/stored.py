"""The form in which MTNeuro is kept after `fetch`: a Zarr 3 store, a ledger of its blocks, and where they came from.

DIR/
  task2.zarr/<split>/<region>/{image,labels}   uint8, axes zyx, zstd, a CRC-32C per block of slices
  ledger.jsonl                                 a line per verified block
  provenance.json                              written last: sources, ranges, versions, counts, SHA-256 per block
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neurotome.documents import read_json
from neurotome.errors import DatasetError
from neurotome.io.zarr_store import open_or_create, plan_files, read_block

if TYPE_CHECKING:
    import zarr

STORE, LEDGER, PROVENANCE = "task2.zarr", "ledger.jsonl", "provenance.json"

BLOCK_SLICES = 32
"""Slices per file and request: 2 MiB of voxels, 16 MiB while labels are 64 bits wide."""


class StoredRegion(NamedTuple):
    """A region of a split as it is kept.

    Attributes:
        image: Grey values, uint8, shape (z, y, x).
        labels: Class ids 0..3, same shape; uint8, or what a .npy file has.
        origin_zyx: Voxel of the whole volume at which they begin.
        image_path: Where the image is, for messages.
        labels_path: Where the labels are, for messages.
    """

    image: NDArray[Any]
    labels: NDArray[Any]
    origin_zyx: tuple[int, int, int]
    image_path: Path
    labels_path: Path


def is_stored(folder: Path) -> bool:
    """Returns whether a fetch was begun in a folder."""
    return (folder / STORE).is_dir()


def open_arrays(
    folder: Path, split: str, region: str, shape: tuple[int, int, int], block_slices: int
) -> tuple[zarr.Array[Any], zarr.Array[Any]]:
    """Opens or creates the arrays of image and labels of a region.

    Raises:
        RunError: They were begun with another shape or block.
    """
    block = (min(block_slices, shape[0]), *shape[1:])
    place, dtype = f"{split}/{region}", np.dtype(np.uint8)
    image = open_or_create(folder / STORE, f"{place}/image", shape, dtype, block, shuffle="noshuffle")
    labels = open_or_create(folder / STORE, f"{place}/labels", shape, dtype, block, shuffle="bitshuffle")
    return image, labels


def read_provenance(folder: Path) -> dict[str, Any]:
    """Returns what is known about the data.

    Raises:
        DatasetError: The fetch has not ended, or its counts were wrong and nobody has accepted them.
    """
    path = folder / PROVENANCE
    again = f"neurotome fetch mtneuro --out {folder}"
    if not path.is_file():
        raise DatasetError(f"{folder}: the fetch has not ended. Go on with the command it was begun with, such as: {again}")
    content = read_json(path, DatasetError, f"Write it anew with: {again}")
    try:
        verification = content["verification"]
        verification["accepted"], content["regions"], content["blocks"]
    except (KeyError, TypeError) as error:
        raise DatasetError(f"{path} is damaged ({error!r}); write it anew with: {again}") from error
    if not verification["accepted"]:
        raise DatasetError(
            f"{folder} holds other pixels per class than the founding report's Table 1: "
            f"{'; '.join(verification['differences'])}. Accept them as they are with the command that fetched them and "
            "--no-verify-counts (what is there is not fetched again), or delete the folder and fetch anew."
        )
    return content


def read_regions(folder: Path, provenance: Mapping[str, Any], split: str, names: Iterable[str]) -> dict[str, StoredRegion]:
    """Returns regions of a split, read into memory: 35 MB for each of train, 7 MB at most for each of val and test.

    Raises:
        DatasetError: A block is absent or damaged.
    """
    regions = {}
    for name in names:
        ranges = provenance["regions"][split][name]
        paths = [f"{split}/{name}/{kind}" for kind in ("image", "labels")]
        image, labels = (_read_array(folder, path, provenance) for path in paths)
        origin_zyx = (ranges["z"][0], ranges["y"][0], ranges["x"][0])
        regions[name] = StoredRegion(image, labels, origin_zyx, *(folder / STORE / path for path in paths))
    return regions


def _read_array(folder: Path, path: str, provenance: Mapping[str, Any]) -> NDArray[np.uint8]:
    import zarr

    try:
        array = zarr.open_array(folder / STORE, path=path, mode="r")
    except (FileNotFoundError, ValueError) as error:
        raise DatasetError(
            f"{folder / STORE / path} is absent or damaged; the command that fetched it mends it: neurotome fetch mtneuro "
            f"--out {folder}"
        ) from error
    if array.ndim != 3 or array.dtype != np.uint8:
        raise DatasetError(f"{folder / STORE / path}: found {array.ndim} axes of {array.dtype}; expected zyx of uint8.")
    voxels: NDArray[np.uint8] = np.empty(array.shape, np.uint8)
    for block in plan_files(array):
        # zarr reads a file that is absent as zeros
        found = read_block(array, block) if block.file in provenance["blocks"] else None
        if found is None:
            raise DatasetError(
                f"{folder / STORE / block.file}: this block is absent or damaged; it alone is fetched again by: neurotome "
                f"fetch mtneuro --out {folder}"
            )
        voxels[block.place] = found
    return voxels
