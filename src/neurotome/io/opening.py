"""open_volume: every format people bring as one lazy Volume, with voxel sizes, axes and a choice of channel and time."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import ImageError
from neurotome.io import formats
from neurotome.io.axes import Choice, choose_axes, looks_like_colours
from neurotome.io.files import GREY_DTYPES, SUFFIXES, describe_suffix, find_suffix, name_image, split_inner
from neurotome.io.lazy_array import LazyArray, Source, check_finite, name_failures
from neurotome.io.ome_zarr import is_zarr, open_zarr
from neurotome.io.raster import open_picture, read_picture_header, say_remedy
from neurotome.io.stack import Header, open_stack
from neurotome.io.tiff import open_tiff
from neurotome.sampling import is_large, plan_boxes
from neurotome.volume import Size, Volume

SAMPLED = 1 << 24
"""Voxels of a file above which boxes of it are looked at first: its first slices may be air, and be many."""


def open_volume(
    path: str | Path,
    *,
    channel: int | None = None,
    time: int | None = None,
    voxel_size_um: Size | float | None = None,
    stack: bool = False,
) -> Volume:
    """Opens a grey image or stack; voxels are read when they are asked for, but for a single PNG, JPEG or BMP.

    Args:
        path: A file with one of `SUFFIXES`, a Zarr folder, or `file.h5:/path/in/file`; uint8, uint16 or float32, and int8
            and int16, which become float32.
        channel: Which of several channels, from 0.
        time: Which of several times, from 0.
        voxel_size_um: Edge lengths (z, y, x) in micrometres; or that of a pixel, which is also how far slices are apart
            unless the file says that these are two things; None: what the file says.
        stack: Whether `path` may be a folder whose images are the slices of one volume, see `io.stack`.

    Returns:
        A volume named after the file; a 2D image has one slice. Pixels that are no finite numbers, or damaged, are refused
        with an ImageError when they are read.

    Raises:
        ImageError: The file is missing, empty, damaged or of another kind, has colours, or several channels or times of
            which none was chosen, or has the same value everywhere.
    """
    path = Path(path)
    source = _open_source(path, {"c": channel, "t": time}, labels=False, stack=stack)
    check_grey(source.data, str(path))
    size_um = source.voxel_size_um
    if isinstance(voxel_size_um, (int, float)):
        apart = voxel_size_um if size_um is None or size_um[0] == size_um[2] else size_um[0]
        size_um = apart, voxel_size_um, voxel_size_um
    elif voxel_size_um is not None:
        size_um = voxel_size_um
    return Volume(source.data, name_image(split_inner(path)[0]), size_um, path=path)


def read_image(path: str | Path, *, voxel_size_um: Size | None = None) -> Volume:
    """Opens a grey image or stack as `open_volume` does and reads it into memory; a .npy file is memory-mapped."""
    volume = open_volume(path, voxel_size_um=voxel_size_um)
    return dataclasses.replace(volume, data=np.asanyarray(volume.data))


def open_labels(path: str | Path, *, channel: int | None = None, time: int | None = None, stack: bool = False) -> Any:
    """Opens a label image or stack; labels are read when they are asked for, but for a single PNG or BMP.

    Returns:
        Integers as stored, shape (z, y, x), a numpy array or a LazyArray; palette indices are ids, masks of booleans are 0
        and 1. Whether they are class ids is for the dataset to say.

    Raises:
        ImageError: As for `open_volume`; or the file was compressed with loss, or does not hold integers.
    """
    return open_label_volume(path, channel=channel, time=time, stack=stack).data


def open_label_volume(
    path: str | Path, *, channel: int | None = None, time: int | None = None, stack: bool = False
) -> Volume:
    """Opens a label image or stack as `open_labels` does, together with the voxel size that the file says."""
    source = _open_source(Path(path), {"c": channel, "t": time}, labels=True, stack=stack)
    if source.data.dtype.kind not in "iu":
        raise ImageError(
            f"{path}: labels have dtype {source.data.dtype}; expected integers, one class id per pixel. Save them as uint8."
        )
    return Volume(source.data, name_image(split_inner(Path(path))[0]), source.voxel_size_um, path=Path(path))


def read_labels(path: str | Path) -> NDArray[Any]:
    """Opens a label image or stack as `open_labels` does and reads it into memory; a .npy file is memory-mapped."""
    labels: NDArray[Any] = np.asanyarray(open_labels(path))
    return labels


def _open_source(path: Path, choice: Choice, *, labels: bool, stack: bool = False) -> Source:
    """Returns voxels (z, y, x) as stored but in the machine's byte order, and their sizes."""
    outer, inner = split_inner(path)
    suffix = find_suffix(outer)
    if not outer.exists():
        raise ImageError(f"{path} does not exist; check the name.")
    if outer.is_dir():
        if not is_zarr(outer) and not stack:
            raise ImageError(f"{path} is a folder; expected a file with suffix {', '.join(SUFFIXES)}.")
    elif not suffix.endswith(SUFFIXES) or suffix.endswith(".zarr"):
        raise ImageError(describe_suffix(path))
    elif outer.stat().st_size == 0:
        raise ImageError(f"{path} is empty (0 bytes); copy or export it again.")
    with warnings.catch_warnings(), name_failures(path):
        warnings.simplefilter("error")  # a decoder that warns is not sure
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", ResourceWarning)
        if stack and outer.is_dir() and not is_zarr(outer):
            open_slice = functools.partial(_open_source, choice=choice, labels=labels)
            data, size, notes = open_stack(outer, functools.partial(_read_header, open_slice), open_slice)
        elif outer.is_dir():
            data, size, notes = open_zarr(outer, choice)
        elif suffix.endswith((".tif", ".tiff")):
            data, size, notes = open_tiff(path, choice, labels=labels)
        elif suffix == ".npy":
            data, size, notes = Source(_open_npy(path, choice, labels))
        elif suffix in (".png", ".bmp", ".jpg", ".jpeg"):
            choose_axes(path, "yx", (1, 1), choice)
            data, size, notes = open_picture(path, suffix, labels=labels)
        elif suffix in (".h5", ".hdf5"):
            data, size, notes = formats.open_hdf5(outer, inner, choice)
        else:
            readers = {".nrrd": formats.open_nrrd, ".mrc": formats.open_mrc}
            data, size, notes = readers.get(suffix, formats.open_nifti)(path, choice)
    for note in notes:
        warnings.warn(note, stacklevel=3)
    if data.size == 0:
        raise ImageError(f"{path}: shape {data.shape}; expected one slice (y, x) or one stack (z, y, x).")
    dtype = data.dtype.newbyteorder("=")
    if labels and dtype.kind == "b":
        dtype = np.dtype(np.uint8)
    elif not labels and dtype.name in ("int8", "int16"):
        dtype = np.dtype(np.float32)  # which holds them exactly
    if isinstance(data, LazyArray):
        data.dtype, data.reopen = dtype, functools.partial(_open_source, path, choice, labels=labels, stack=stack)
        return Source(data, size)
    return Source(data.astype(dtype, copy=False), size)


def _read_header(open_slice: Callable[[Path], Source], path: Path) -> Header:
    """Returns what the header of a slice's file says."""
    suffix = find_suffix(path)
    if not suffix.endswith((".tif", ".tiff")):
        return Header(*read_picture_header(path, suffix))
    data = open_slice(path).data
    if data.shape[0] != 1:
        raise ImageError(f"{path}: found {data.shape[0]} slices in a folder of slices; expected one in each file.")
    return Header(data.shape[1:], data.dtype.name)


def _open_npy(path: Path, choice: Choice, labels: bool) -> Any:
    # A memory map holds plain numbers only: object arrays, which could run code when loaded, are
    # refused by numpy.
    data = np.lib.format.open_memmap(path, mode="r")
    if looks_like_colours(data.shape):
        remedy = say_remedy(labels)
        raise ImageError(f"{path}: shape {data.shape} looks like RGB(A) colours; expected (z, y, x). {remedy}")
    layout = choose_axes(path, "?zyx"[-data.ndim :], data.shape, choice)
    # of a large one pixels are checked when they are read, which a plain array's are at once
    return layout.wrap(path, data) if is_large(data) else data.reshape(layout.shape_zyx)


def check_grey(data: Any, where: str) -> None:
    """Checks that an array (z, y, x), which may be lazy, can be used as a grey volume; reads no more slices than it must.

    Raises:
        ImageError: Other dtype or shape, pixels that are NaN or infinite (a lazy one checks that when it is read), or one
            value everywhere.
    """
    if data.dtype.name not in GREY_DTYPES:
        raise ImageError(
            f"{where}: dtype {data.dtype}; expected {', '.join(GREY_DTYPES)}. Convert it first, for example "
            "with array.astype('float32'), so that no value changes unnoticed."
        )
    if data.ndim != 3 or data.size == 0:
        raise ImageError(f"{where}: shape {data.shape}; expected (z, y, x) with at least one pixel.")
    check_all = data.dtype.kind == "f" and not isinstance(data, LazyArray)
    if isinstance(data, LazyArray) and data.size > SAMPLED:
        parts = plan_boxes(data)
        from_middle = (*parts[len(parts) // 2 :], *parts[: len(parts) // 2])  # what lies there is rarely air
        if any(voxels.min() != voxels.max() for part in from_middle for voxels in part):
            return
        if is_large(data):
            warnings.warn(
                f"{where}: all places that were looked at have one grey value each. If they are not the volume's air, check "
                "how it was exported: a constant image shows nothing.",
                stacklevel=3,
            )
            return
    first, varies = data[0, 0, 0], False
    for z in range(len(data)):
        if varies and not check_all:
            return
        plane = np.asarray(data[z])
        varies = varies or bool((plane != first).any())
        if check_all:
            check_finite(plane[None], where, (z, 0, 0))
    if not varies:
        raise ImageError(
            f"{where}: every pixel is {first:g}; a constant image shows nothing. Check how it was exported, or leave it out."
        )
