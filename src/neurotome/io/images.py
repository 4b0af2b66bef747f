"""Grey images and label images in PNG, TIFF and npy files: read strictly, checked, written whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.atomic import atomic_path
from neurotome.errors import ImageError
from neurotome.io.decode import LABELS_REMEDY, SUFFIXES, describe_suffix, read_array, read_voxel_size
from neurotome.volume import Volume

GREY_DTYPES = ("uint8", "uint16", "float32")


def read_image(path: str | Path, *, voxel_size_um: tuple[float, float, float] | None = None) -> Volume:
    """Reads a grey image or stack.

    Args:
        path: .png, .tif, .tiff or .npy, 2D or 3D, uint8, uint16 or float32.
        voxel_size_um: Edge lengths (z, y, x) in micrometres; None: what the file says, see `read_voxel_size`.

    Returns:
        A volume named after the file; a 2D image has one slice. The data of a .npy file are memory-mapped.

    Raises:
        ImageError: The file is missing, empty, damaged or of another kind, has colours, has pixels that are
            no finite numbers, or has the same value everywhere.
    """
    path = Path(path)
    data = read_array(path)
    check_grey(data, str(path))
    return Volume(data, path.stem, voxel_size_um or read_voxel_size(path), path=path)


def read_labels(path: str | Path) -> NDArray[Any]:
    """Reads a label image or stack.

    Args:
        path: .png, .tif, .tiff or .npy, 2D or 3D, any integer dtype.

    Returns:
        Integers as stored, shape (z, y, x). Whether they are class ids is for `check_labels` to say.

    Raises:
        ImageError: The file is missing, empty, damaged or of another kind, has colours, or does not hold
            integers.
    """
    path = Path(path)
    labels = read_array(path, LABELS_REMEDY)
    if labels.dtype.kind not in "iu":
        raise ImageError(
            f"{path}: labels have dtype {labels.dtype}; expected integers, one class id per pixel. Save them as uint8."
        )
    return labels


def check_grey(data: NDArray[Any], where: str) -> None:
    """Checks that an array can be used as a grey volume; reads slice by slice.

    Args:
        data: Shape (z, y, x), uint8, uint16 or float32; may be memory-mapped.
        where: File or name for the message.

    Raises:
        ImageError: Other dtype or shape, pixels that are NaN or infinite, or one value everywhere.
    """
    if data.dtype.name not in GREY_DTYPES:
        raise ImageError(
            f"{where}: dtype {data.dtype}; expected {', '.join(GREY_DTYPES)}. Convert it first, for example "
            "with array.astype('float32'), so that no value changes unnoticed."
        )
    if data.ndim != 3 or data.size == 0:
        raise ImageError(f"{where}: shape {data.shape}; expected (z, y, x) with at least one pixel.")
    first = data[0, 0, 0]
    varies = False
    not_finite, position = 0, ""
    for z, plane in enumerate(data):
        varies = varies or bool((plane != first).any())
        if data.dtype.kind == "f":
            bad = ~np.isfinite(plane)
            count = int(np.count_nonzero(bad))
            if count and not not_finite:
                y, x = np.unravel_index(int(bad.argmax()), bad.shape)
                position = f"(z={z}, y={y}, x={x})"
            not_finite += count
        elif varies:
            return
    if not_finite:
        raise ImageError(
            f"{where}: {not_finite} pixels are NaN or infinite, the first at {position}; expected finite "
            "grey values. Replace them, for example with numpy.nan_to_num, or crop the image."
        )
    if not varies:
        raise ImageError(
            f"{where}: every pixel is {first:g}; a constant image shows nothing. Check how it was exported, or leave it out."
        )


def find_image(folder: Path, image_id: str) -> Path:
    """Returns the file of an image: `<folder>/<image_id>` with one of the known suffixes.

    Raises:
        ImageError: There is none, or more than one.
    """
    found = [path for suffix in SUFFIXES if (path := folder / f"{image_id}{suffix}").is_file()]
    if len(found) == 1:
        return found[0]
    expected = f"expected one file {folder / image_id} with suffix {', '.join(SUFFIXES)}"
    if found:
        raise ImageError(f"{', '.join(path.name for path in found)} all exist; {expected}. Remove the others.")
    near = sorted(path.name for path in folder.iterdir() if path.stem == image_id) if folder.is_dir() else []
    if Path(image_id).suffix.lower() in SUFFIXES:
        raise ImageError(f"{expected}; names are given without suffix: {Path(image_id).stem}.")
    raise ImageError(f"{expected}; found {', '.join(near) or 'nothing of that name'}. Add or convert the file.")


def write_image(path: str | Path, data: NDArray[Any]) -> None:
    """Writes a grey image in one step.

    Args:
        path: .png (one slice, uint8 or uint16), .tif, .tiff or .npy.
        data: Shape (y, x) or (z, y, x), uint8, uint16 or float32.

    Raises:
        ImageError: The format cannot hold these data.
    """
    if data.dtype.name not in GREY_DTYPES:
        raise ImageError(f"{path}: dtype {data.dtype} cannot be written as an image; use {', '.join(GREY_DTYPES)}.")
    _write_array(Path(path), data)


def write_labels(path: str | Path, labels: NDArray[Any]) -> None:
    """Writes labels as uint8 in one step.

    Args:
        path: .png (one slice), .tif, .tiff or .npy.
        labels: Integers 0..255, shape (y, x) or (z, y, x).

    Raises:
        ImageError: Not integers, a value outside 0..255, or a format that cannot hold them.
    """
    if labels.dtype.kind not in "iu":
        raise ImageError(f"{path}: labels have dtype {labels.dtype}; expected integers 0..255.")
    if labels.size and not 0 <= labels.min() <= labels.max() <= 255:
        raise ImageError(f"{path}: labels lie in {labels.min()}..{labels.max()}; expected 0..255, which fit uint8.")
    _write_array(Path(path), labels.astype(np.uint8))


def write_colours(path: str | Path, colours: NDArray[np.uint8]) -> None:
    """Writes a colour picture in one step.

    Args:
        path: .png (one slice), .tif or .tiff.
        colours: uint8, shape (y, x, 3) or (z, y, x, 3).

    Raises:
        ImageError: The format cannot hold these data.
    """
    path = Path(path)
    if path.suffix.lower() == ".png":
        _write_png(path, colours, ndim=3)
        return
    import tifffile

    with atomic_path(path) as temporary:
        tifffile.imwrite(temporary, colours, compression="zlib", photometric="rgb")


def _write_array(path: Path, data: NDArray[Any]) -> None:
    if data.ndim not in (2, 3) or data.size == 0:
        raise ImageError(f"{path}: shape {data.shape}; expected (y, x) or (z, y, x) with at least one pixel.")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ImageError(describe_suffix(path))
    if suffix == ".png":
        _write_png(path, data)
        return
    with atomic_path(path) as temporary:
        if suffix == ".npy":
            np.save(temporary, data, allow_pickle=False)
        else:
            import tifffile

            axes = "YX" if data.ndim == 2 else "ZYX"
            # photometric is said because a stack with 3 or 4 columns would else be taken for colours
            tifffile.imwrite(temporary, data, compression="zlib", photometric="minisblack", metadata={"axes": axes})


def _write_png(path: Path, data: NDArray[Any], ndim: int = 2) -> None:
    if data.ndim == ndim + 1 and data.shape[0] == 1:
        data = data[0]
    if data.ndim != ndim:
        raise ImageError(f"{path}: a PNG file holds one slice, found {data.shape[0]}. Use the suffix .tif or .npy.")
    if data.dtype.kind == "f":
        raise ImageError(f"{path}: a PNG file holds integers, found {data.dtype}. Use the suffix .tif or .npy.")
    from PIL import Image

    plane = np.ascontiguousarray(data)
    with atomic_path(path) as temporary:
        Image.fromarray(plane).save(temporary, format="PNG")
