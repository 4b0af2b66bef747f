"""Whole images and labels in memory: the short forms of `open_volume` and of the sinks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.errors import ImageError
from neurotome.io.calibration import Size
from neurotome.io.files import find_image
from neurotome.io.opening import GREY_DTYPES, check_grey, open_labels, open_volume
from neurotome.io.sink import create_image, create_labels
from neurotome.volume import Volume


def read_image(path: str | Path, *, voxel_size_um: Size | None = None, allow_constant: bool = False) -> Volume:
    """Reads a grey image or stack into memory; `open_volume` reads on demand.

    Args:
        path: As for `open_volume`.
        voxel_size_um: Edge lengths (z, y, x) in micrometres; None: what the file says.
        allow_constant: Take an image that has the same value everywhere.

    Returns:
        A volume named after the file; a 2D image has one slice. The data of a .npy file are memory-mapped.

    Raises:
        ImageError: As for `open_volume`, or pixels are no finite numbers.
    """
    volume = open_volume(path, voxel_size_um=voxel_size_um, allow_constant=allow_constant)
    data = np.asanyarray(volume.data)
    return Volume(data, volume.name, volume.voxel_size_um, path=volume.path)


def read_labels(path: str | Path) -> NDArray[Any]:
    """Reads a label image or stack into memory.

    Args:
        path: As for `open_labels`.

    Returns:
        Integers as stored, shape (z, y, x). Whether they are class ids is for the dataset to say.

    Raises:
        ImageError: As for `open_labels`.
    """
    labels: NDArray[Any] = np.asanyarray(open_labels(path))
    return labels


def write_image(path: str | Path, data: NDArray[Any], like: Volume | None = None) -> None:
    """Writes a grey image in one step.

    Args:
        path: .png (one slice, uint8 or uint16), .tif, .tiff, .npy or .zarr.
        data: Shape (y, x) or (z, y, x), uint8, uint16 or float32.
        like: Where its voxel size comes from.

    Raises:
        ImageError: The format cannot hold these data.
    """
    if data.dtype.name not in GREY_DTYPES:
        raise ImageError(f"{path}: dtype {data.dtype} cannot be written as an image; use {', '.join(GREY_DTYPES)}.")
    stack = _as_stack(path, data)
    with create_image(path, stack.shape[:3], stack.dtype, like=like) as sink:
        sink.write_all(stack)


def write_labels(
    path: str | Path, labels: NDArray[Any], classes: ClassSet | None = None, like: Volume | None = None
) -> None:
    """Writes labels as uint8 in one step.

    Args:
        path: .png (one slice), .tif, .tiff, .npy or .zarr.
        labels: Integers 0..255, shape (y, x) or (z, y, x).
        classes: Their names and colours, which go into the file where its format can hold them.
        like: Where their voxel size comes from.

    Raises:
        ImageError: Not integers, a value outside 0..255, or a format that cannot hold them.
    """
    stack = _as_stack(path, labels)
    with create_labels(path, stack.shape[:3], classes, like) as sink:
        sink.write_all(stack)


def _as_stack(path: str | Path, data: NDArray[Any]) -> NDArray[Any]:
    if data.ndim not in (2, 3) or data.size == 0:
        raise ImageError(f"{path}: shape {data.shape}; expected (y, x) or (z, y, x) with at least one pixel.")
    return data if data.ndim == 3 else data[None]


__all__ = ["check_grey", "find_image", "read_image", "read_labels", "write_image", "write_labels"]
