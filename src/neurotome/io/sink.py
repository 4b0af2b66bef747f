"""Sinks: labels, grey maps and overlays written slice by slice, whole or not at all, in memory that does not grow."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.atomic import atomic_folder, atomic_path
from neurotome.classes import ClassSet
from neurotome.errors import ImageError
from neurotome.io.calibration import describe_stack
from neurotome.io.checks import GREY_DTYPES
from neurotome.io.files import OUTPUT_SUFFIXES, describe_suffix, name_image
from neurotome.io.ome_zarr import create_ome_zarr
from neurotome.volume import Volume

BIG_TIFF_BYTES = 3_900_000_000
"""Pixels from which on a TIFF file has 64-bit offsets; 32 bits reach 4.29 GB, and compression can fail to help."""

CHUNK_EDGE = 1024
"""Largest edge of the chunks of a Zarr array."""

WriteSlices = Callable[[int, NDArray[Any]], object]
"""Takes the number of the first slice and slices."""


class Sink:
    """A file that is being written, from its first slice to the last; `create_labels` and `create_image` make sinks."""

    def __init__(
        self, path: str | Path, shape: Sequence[int], dtype: Any, like: Volume | None, classes: ClassSet | None = None
    ) -> None:
        """Keeps what the file will hold; `shape` has 3 as fourth number for colours."""
        self.path, self.shape, self.dtype, self.classes = Path(path), tuple(shape), np.dtype(dtype), classes
        self.voxel_size_um = None if like is None else like.voxel_size_um
        self.origin_zyx = (0, 0, 0) if like is None else like.origin_zyx
        self.names = {} if classes is None else dict(enumerate(classes.names, start=classes.first_id))  # by stored id
        self.palette = None if classes is None else classes.paint(classes.from_stored(np.arange(256)))  # (256, 3)
        self.write_slices: WriteSlices | None = None
        self.done = 0

    def append(self, slices: NDArray[Any]) -> None:
        """Writes the slices that come next.

        Args:
            slices: Shape (z, y, x), with 3 colours as last axis where the sink is one of colours. Labels may have any
                integer dtype.

        Raises:
            ImageError: Labels that are no integers 0..255.
            ValueError: Another shape or dtype, or more slices than the file has.
        """
        if slices.shape[1:] != self.shape[1:] or self.done + len(slices) > self.shape[0]:
            raise ValueError(f"{self.path}: shape {slices.shape} does not fit after {self.done} slices of {self.shape}")
        if slices.dtype != self.dtype:
            raise ValueError(f"{self.path}: dtype {slices.dtype}; expected {self.dtype}")
        assert self.write_slices is not None
        self.write_slices(self.done, slices)
        self.done += len(slices)


class _LabelSink(Sink):
    def append(self, slices: NDArray[Any]) -> None:
        if slices.dtype.kind not in "iu":
            raise ImageError(f"{self.path}: labels have dtype {slices.dtype}; expected integers 0..255.")
        if slices.size and not 0 <= slices.min() <= slices.max() <= 255:
            raise ImageError(f"{self.path}: labels lie in {slices.min()}..{slices.max()}; expected 0..255, which fit uint8.")
        super().append(slices.astype(np.uint8) if self.classes is None else self.classes.to_stored(slices))


def create_labels(
    path: str | Path, shape_zyx: Sequence[int], classes: ClassSet | None = None, like: Volume | None = None
) -> contextlib.AbstractContextManager[Sink]:
    """Creates a file of labels; it appears when the block ends without an error.

    A PNG or TIFF file shows its classes in their colours while its values stay class ids (a palette). TIFF and Zarr say the
    voxel size, the axes and the names of the classes.

    Args:
        path: .png (one slice), .tif, .tiff, .npy or .zarr.
        shape_zyx: Voxels (z, y, x).
        classes: Names, colours and stored ids; None: labels are stored as they are.
        like: Where the voxel size comes from.

    Raises:
        ImageError: The format cannot hold them.
    """
    return _create(_LabelSink(path, shape_zyx, np.uint8, like, classes))


def create_image(
    path: str | Path, shape_zyx: Sequence[int], dtype: Any, colours: bool = False, like: Volume | None = None
) -> contextlib.AbstractContextManager[Sink]:
    """Creates a file of grey values or colours; it appears when the block ends without an error.

    Args:
        path: .png (one slice, no floats), .tif, .tiff, .npy or .zarr.
        shape_zyx: Voxels (z, y, x).
        dtype: Of the values; uint8 for colours.
        colours: Three values (red, green, blue) per voxel; PNG and TIFF only.
        like: Where the voxel size comes from.

    Raises:
        ImageError: The format cannot hold them.
    """
    return _create(Sink(path, (*shape_zyx, 3) if colours else shape_zyx, dtype, like))


def write_image(path: str | Path, data: NDArray[Any], like: Volume | None = None) -> None:
    """Writes a grey image in one step: uint8, uint16 or float32, shape (y, x) or (z, y, x); see `create_image`."""
    if data.dtype.name not in GREY_DTYPES:
        raise ImageError(f"{path}: dtype {data.dtype} cannot be written as an image; use {', '.join(GREY_DTYPES)}.")
    stack = _as_stack(path, data)
    with create_image(path, stack.shape, data.dtype, like=like) as sink:
        sink.append(stack)


def write_labels(
    path: str | Path, labels: NDArray[Any], classes: ClassSet | None = None, like: Volume | None = None
) -> None:
    """Writes labels in one step: integers 0..255, shape (y, x) or (z, y, x); see `create_labels`."""
    stack = _as_stack(path, labels)
    with create_labels(path, stack.shape, classes, like) as sink:
        sink.append(stack)


def _as_stack(path: str | Path, data: NDArray[Any]) -> NDArray[Any]:
    if data.ndim not in (2, 3) or data.size == 0:
        raise ImageError(f"{path}: shape {data.shape}; expected (y, x) or (z, y, x) with at least one pixel.")
    return data if data.ndim == 3 else data[None]


@contextlib.contextmanager
def _create(sink: Sink) -> Iterator[Sink]:
    path, suffix = sink.path, sink.path.suffix.lower()
    suffixes = (".png", ".tif", ".tiff") if len(sink.shape) == 4 else OUTPUT_SUFFIXES
    if suffix not in suffixes:
        raise ImageError(describe_suffix(path, suffixes))
    if suffix == ".png" and sink.shape[0] != 1:
        raise ImageError(f"{path}: a PNG file holds one slice, found {sink.shape[0]}. Use the suffix .tif or .npy.")
    if suffix == ".png" and sink.dtype.kind == "f":
        raise ImageError(f"{path}: a PNG file holds integers, found {sink.dtype}. Use the suffix .tif or .npy.")
    start = {".png": _start_png, ".npy": _start_npy, ".zarr": _start_zarr}.get(suffix, _start_tiff)
    with (atomic_folder if suffix == ".zarr" else atomic_path)(path) as temporary, contextlib.ExitStack() as stack:
        sink.write_slices = start(sink, temporary, stack)
        yield sink
        if sink.done != sink.shape[0]:
            raise ValueError(f"{path}: {sink.done} of {sink.shape[0]} slices were written")


def _start_png(sink: Sink, temporary: Path, _: contextlib.ExitStack) -> WriteSlices:
    from PIL import Image

    def write(_: int, slices: NDArray[Any]) -> None:
        image = Image.fromarray(np.ascontiguousarray(slices[0]))
        if sink.palette is not None:
            image.putpalette(sink.palette.tobytes())
        image.save(temporary, format="PNG")

    return write


def _start_npy(sink: Sink, temporary: Path, stack: contextlib.ExitStack) -> WriteSlices:
    file = stack.enter_context(temporary.open("wb"))
    shape = sink.shape[1:] if sink.shape[0] == 1 else sink.shape  # one slice is an image (y, x)
    header = {"descr": np.lib.format.dtype_to_descr(sink.dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return lambda _, slices: file.write(slices.tobytes())


def _start_tiff(sink: Sink, temporary: Path, stack: contextlib.ExitStack) -> WriteSlices:
    import tifffile

    sizes, palette = sink.voxel_size_um, sink.palette
    big = int(np.prod(sink.shape)) * sink.dtype.itemsize > BIG_TIFF_BYTES
    writer = stack.enter_context(tifffile.TiffWriter(temporary, bigtiff=big))
    options: dict[str, Any] = {"photometric": "rgb" if len(sink.shape) == 4 else "minisblack"}
    if palette is not None:
        options = {"photometric": "palette", "colormap": palette.T.astype(np.uint16) * 257}
    if sizes is not None:
        options |= {"resolution": (1 / sizes[2], 1 / sizes[1]), "resolutionunit": "NONE"}
    description = describe_stack(sink.shape[0], sizes, sink.names)

    def write(first: int, slices: NDArray[Any]) -> None:
        for z, plane in enumerate(slices, start=first):
            # the description of the first slice is that of the stack
            writer.write(plane, compression="zlib", metadata=None, description=None if z else description, **options)

    return write


def _start_zarr(sink: Sink, folder: Path, _: contextlib.ExitStack) -> WriteSlices:
    chunk = (1, min(CHUNK_EDGE, sink.shape[1]), min(CHUNK_EDGE, sink.shape[2]))
    image_label = None
    if sink.palette is not None:
        colours = {value: [*sink.palette[value].tolist(), 255] for value in sink.names}
        image_label = {
            "colors": [{"label-value": value, "rgba": rgba} for value, rgba in colours.items()],
            "properties": [{"label-value": value, "name": name} for value, name in sink.names.items()],
        }
    array = create_ome_zarr(
        folder,
        sink.shape,
        sink.dtype,
        sink.voxel_size_um,
        name=name_image(sink.path),
        origin_zyx=sink.origin_zyx,
        shard=chunk,
        chunk=chunk,
        image_label=image_label,
    )

    def write(first: int, slices: NDArray[Any]) -> None:
        array[first : first + len(slices)] = slices

    return write
