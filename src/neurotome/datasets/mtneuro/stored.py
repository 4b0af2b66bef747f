"""The form in which MTNeuro is kept after `fetch`: a Zarr 3 store, a ledger of its blocks, and where they came from.

DIR/
  task2.zarr/<split>/<region>/{image,labels}   uint8, axes zyx, zstd, a CRC-32C per block of slices
  ledger.jsonl                                 a line per verified block
  provenance.json                              written last: sources, ranges, versions, counts, SHA-256 per block
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neurotome.documents import read_json
from neurotome.errors import DatasetError
from neurotome.io.zarr_store import plan_files, read_block

STORE, LEDGER, PROVENANCE = "task2.zarr", "ledger.jsonl", "provenance.json"


class StoredRegion(NamedTuple):
    """A region of a split as it is kept: grey values and class ids (z, y, x), where they begin, and their files.

    Image and labels are uint8, but for the labels of a .npy file; `origin_zyx` is a voxel of the whole volume.
    """

    image: NDArray[Any]
    labels: NDArray[Any]
    origin_zyx: tuple[int, int, int]
    image_path: Path
    labels_path: Path


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
        accepted, differences = content["verification"]["accepted"], content["verification"]["differences"]
        _ = content["regions"], content["blocks"]
    except (KeyError, TypeError) as error:
        raise DatasetError(f"{path} is damaged ({error!r}); write it anew with: {again}") from error
    if not accepted:
        raise DatasetError(
            f"{folder} holds other pixels per class than the founding report's Table 1: {'; '.join(differences)}. Accept "
            "them as they are with the command that fetched them and --no-verify-counts (what is there is not fetched "
            "again), or delete the folder and fetch anew."
        )
    return content


def read_regions(folder: Path, provenance: Mapping[str, Any], split: str, names: Iterable[str]) -> dict[str, StoredRegion]:
    """Returns regions of a split, read into memory: 35 MB for each of train, 7 MB at most for each of val and test.

    Raises:
        DatasetError: A block is absent or damaged.
    """
    regions = {}
    for name in names:
        z, y, x = (provenance["regions"][split][name][axis][0] for axis in "zyx")
        paths = [f"{split}/{name}/{kind}" for kind in ("image", "labels")]
        image, labels = (read_array(folder, path, provenance) for path in paths)
        regions[name] = StoredRegion(image, labels, (z, y, x), *(folder / STORE / path for path in paths))
    return regions


def read_array(folder: Path, path: str, provenance: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Reads image or labels of a region, `<split>/<region>/<kind>`, uint8 of shape (z, y, x); DatasetError if damaged."""
    import zarr

    again = f"neurotome fetch mtneuro --out {folder}"
    try:
        array = zarr.open_array(folder / STORE, path=path, mode="r")
    except (FileNotFoundError, ValueError) as error:
        raise DatasetError(
            f"{folder / STORE / path} is absent or damaged; the command that fetched it mends it: {again}"
        ) from error
    if array.ndim != 3 or array.dtype != np.uint8:
        raise DatasetError(f"{folder / STORE / path}: found {array.ndim} axes of {array.dtype}; expected zyx of uint8.")
    voxels: NDArray[np.uint8] = np.empty(array.shape, np.uint8)
    for block in plan_files(array):
        # zarr reads a file that is absent as zeros
        stored = read_block(array, block) if block.file in provenance["blocks"] else None
        if stored is None:
            raise DatasetError(
                f"{folder / STORE / block.file}: this block is absent or damaged; it alone is fetched again by: {again}"
            )
        voxels[block.place] = stored
    return voxels
