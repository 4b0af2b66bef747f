"""OME-Zarr 0.5: a sharded Zarr 3 array with the metadata by which viewers know its axes and voxel size.

Metadata after the NGFF specification 0.5, https://ngff.openmicroscopy.org/0.5/: `multiscales` with one level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neurotome.io.zarr_store import create_group, open_or_create

if TYPE_CHECKING:
    import zarr

VERSION = "0.5"
LEVEL = "0"

CHUNK = (64, 64, 64)
SHARD_BYTES = 16 << 20


def create_ome_zarr(
    root: Path,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    voxel_size_um: tuple[float, float, float],
    *,
    name: str,
    origin_zyx: tuple[int, int, int] = (0, 0, 0),
    shard: Sequence[int] | None = None,
    chunk: Sequence[int] = CHUNK,
    notes: Mapping[str, Any] | None = None,
) -> zarr.Array[Any]:
    """Creates an OME-Zarr of one level, or opens it again with its metadata written anew.

    Args:
        root: Folder, usually ending in .zarr.
        shape: Voxels (z, y, x).
        dtype: Of the voxels.
        voxel_size_um: Edge lengths (z, y, x) in micrometres.
        name: Of the image.
        origin_zyx: Voxel of a larger volume at which it begins; kept as a translation in micrometres.
        shard: Voxels per file (z, y, x), a multiple of `chunk`; up to 16 MiB if not given.
        chunk: Voxels that are compressed together.
        notes: JSON that goes beside the metadata, under `neurotome`.

    Returns:
        The array of the full resolution, zeros where nothing has been written.

    Raises:
        RunError: There is one of another shape, dtype or cut.
    """
    array = open_or_create(root, LEVEL, shape, dtype, choose_shard(dtype) if shard is None else shard, chunk)
    translation = [start * size for start, size in zip(origin_zyx, voxel_size_um, strict=True)]
    multiscale = {
        "name": name,
        "axes": [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"],
        "datasets": [
            {
                "path": LEVEL,
                "coordinateTransformations": [
                    {"type": "scale", "scale": list(voxel_size_um)},
                    {"type": "translation", "translation": translation},
                ],
            }
        ],
    }
    create_group(root, attributes={"ome": {"version": VERSION, "multiscales": [multiscale]}, "neurotome": dict(notes or {})})
    return array


def choose_shard(dtype: np.dtype[Any]) -> tuple[int, int, int]:
    """Returns 64 x 512 x 512 voxels, or less in y and x for wide dtypes, so that a worker's blocks stay small."""
    y = x = 512
    while CHUNK[0] * y * x * dtype.itemsize > SHARD_BYTES:
        y, x = (y // 2, x) if y >= x else (y, x // 2)
    return CHUNK[0], y, x
