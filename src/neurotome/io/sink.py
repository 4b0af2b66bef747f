"""Sinks: labels, grey maps and overlays written slice by slice, whole or not at all, in memory that does not grow."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.atomic import atomic_folder, atomic_path
from neurotome.classes import ClassSet
from neurotome.errors import ImageError
from neurotome.io.files import GREY_DTYPES, OUTPUT_SUFFIXES, describe_suffix, name_image
from neurotome.io.lazy_array import Place
from neurotome.io.ome_zarr import create_ome_zarr
from neurotome.volume import Volume

BIG_TIFF_BYTES = 3_900_000_000
"""Pixels from which on a TIFF file has 64-bit offsets; 32 bits reach 4.29 GB, and compression can fail to help."""

CHUNK_EDGE = 1024
"""Largest edge of the chunks of a Zarr array that is written slice by slice."""

WHOLE: Place = (slice(None), slice(None), slice(None))

WriteBlock = Callable[[Place, NDArray[Any]], object]


class Sink:
    """A file that is being written: slices from the first to the last, or in a Zarr array blocks in any order."""

    def __init__(
        self,
        path: str | Path,
        shape: Sequence[int],
        dtype: Any,
        like: Volume | None,
        block: Sequence[int] | None,
        classes: ClassSet | None = None,
    ) -> None:
        """Keeps what the file will hold; `create_labels` and `create_image` make sinks."""
        self.path, self.shape, self.dtype = Path(path), tuple(shape), np.dtype(dtype)  # (z, y, x), and 3 for colours
        self.block, self.classes = block, classes
        self.voxel_size_um = None if like is None else like.voxel_size_um
        self.origin_zyx = (0, 0, 0) if like is None else like.origin_zyx
        self.names = {} if classes is None else dict(enumerate(classes.names, start=classes.first_id))  # by stored id
        self.palette = None if classes is None else classes.paint(classes.from_stored(np.arange(256)))  # (256, 3)
        self.write_block: WriteBlock | None = None
        self.voxels = 0  # that were written

    def write(self, place: Place, values: NDArray[Any]) -> None:
        """Writes a block: the slices that come next, or any block of a Zarr array that begins and ends with its chunks.

        Args:
            place: Three slices (z, y, x).
            values: Shape of the block, with 3 colours as last axis where the sink is one of colours. Labels may have any
                integer dtype.

        Raises:
            ImageError: Labels that are no integers 0..255.
            ValueError: The block does not come next, or has another shape or dtype.
        """
        z, y, x = (range(size)[part] for part, size in zip(place, self.shape, strict=False))
        in_turn = z.start * y.stop * x.stop == self.voxels and (len(y), len(x)) == self.shape[1:3]
        if values.shape != (len(z), len(y), len(x), *self.shape[3:]) or not (in_turn or self.path.suffix.lower() == ".zarr"):
            raise ValueError(f"{self.path}: block {place} of shape {values.shape} cannot be written next")
        if values.dtype != self.dtype:
            raise ValueError(f"{self.path}: dtype {values.dtype}; expected {self.dtype}")
        assert self.write_block is not None
        self.write_block((slice(z.start, z.stop), slice(y.start, y.stop), slice(x.start, x.stop)), values)
        self.voxels += len(z) * len(y) * len(x)


class _LabelSink(Sink):
    def write(self, place: Place, values: NDArray[Any]) -> None:
        if values.dtype.kind not in "iu":
            raise ImageError(f"{self.path}: labels have dtype {values.dtype}; expected integers 0..255.")
        if values.size and not 0 <= values.min() <= values.max() <= 255:
            raise ImageError(f"{self.path}: labels lie in {values.min()}..{values.max()}; expected 0..255, which fit uint8.")
        super().write(place, values.astype(np.uint8) if self.classes is None else self.classes.to_stored(values))


def create_labels(
    path: str | Path,
    shape_zyx: Sequence[int],
    classes: ClassSet | None = None,
    like: Volume | None = None,
    *,
    block: Sequence[int] | None = None,
) -> contextlib.AbstractContextManager[Sink]:
    """Creates a file of labels; it appears when the block ends without an error.

    A PNG or TIFF file shows its classes in their colours while its values stay class ids (a palette). TIFF and Zarr say the
    voxel size, the axes and the names of the classes. Without `classes` labels are stored as they are. See `create_image`
    for the rest.
    """
    return _create(_LabelSink(path, shape_zyx, np.uint8, like, block, classes))


def create_image(
    path: str | Path,
    shape_zyx: Sequence[int],
    dtype: Any,
    colours: bool = False,
    like: Volume | None = None,
    *,
    block: Sequence[int] | None = None,
) -> contextlib.AbstractContextManager[Sink]:
    """Creates a file of grey values or colours; it appears when the block ends without an error.

    Args:
        path: .png (one slice, no floats), .tif, .tiff, .npy or .zarr.
        shape_zyx: Voxels (z, y, x).
        dtype: Of the values; uint8 for colours.
        colours: Three values (red, green, blue) per voxel; PNG and TIFF only.
        like: Where the voxel size comes from.
        block: Voxels per file of a Zarr array (z, y, x); one slice if not given.

    Raises:
        ImageError: The format cannot hold them.
    """
    return _create(Sink(path, (*shape_zyx, 3) if colours else shape_zyx, dtype, like, block))


def write_image(path: str | Path, data: NDArray[Any], like: Volume | None = None) -> None:
    """Writes a grey image in one step: uint8, uint16 or float32, shape (y, x) or (z, y, x); see `create_image`."""
    if data.dtype.name not in GREY_DTYPES:
        raise ImageError(f"{path}: dtype {data.dtype} cannot be written as an image; use {', '.join(GREY_DTYPES)}.")
    stack = _as_stack(path, data)
    with create_image(path, stack.shape, data.dtype, like=like) as sink:
        sink.write(WHOLE, stack)


def write_labels(
    path: str | Path, labels: NDArray[Any], classes: ClassSet | None = None, like: Volume | None = None
) -> None:
    """Writes labels in one step: integers 0..255, shape (y, x) or (z, y, x); see `create_labels`."""
    stack = _as_stack(path, labels)
    with create_labels(path, stack.shape, classes, like) as sink:
        sink.write(WHOLE, stack)


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
        sink.write_block = start(sink, temporary, stack)
        yield sink
        if sink.voxels != np.prod(sink.shape[:3]):
            raise ValueError(f"{path}: {sink.voxels} of {np.prod(sink.shape[:3])} voxels were written")


def _start_png(sink: Sink, temporary: Path, _: contextlib.ExitStack) -> WriteBlock:
    from PIL import Image

    def write(_: Place, values: NDArray[Any]) -> None:
        image = Image.fromarray(np.ascontiguousarray(values[0]))
        if sink.palette is not None:
            image.putpalette(sink.palette.tobytes())
        image.save(temporary, format="PNG")

    return write


def _start_npy(sink: Sink, temporary: Path, stack: contextlib.ExitStack) -> WriteBlock:
    file = stack.enter_context(temporary.open("wb"))
    shape = sink.shape[1:] if sink.shape[0] == 1 else sink.shape  # one slice is an image (y, x)
    header = {"descr": np.lib.format.dtype_to_descr(sink.dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return lambda _, values: [file.write(plane.tobytes()) for plane in values]


def _start_tiff(sink: Sink, temporary: Path, stack: contextlib.ExitStack) -> WriteBlock:
    import tifffile

    sizes, palette = sink.voxel_size_um, sink.palette
    big = int(np.prod(sink.shape)) * sink.dtype.itemsize > BIG_TIFF_BYTES
    writer = stack.enter_context(tifffile.TiffWriter(temporary, bigtiff=big))
    options: dict[str, Any] = {"photometric": "rgb" if len(sink.shape) == 4 else "minisblack"}
    if palette is not None:
        options = {"photometric": "palette", "colormap": palette.T.astype(np.uint16) * 257}
    if sizes is not None:
        options |= {"resolution": (1 / sizes[2], 1 / sizes[1]), "resolutionunit": "NONE"}
    description = _describe_stack(sink)

    def write(place: Place, values: NDArray[Any]) -> None:
        for z, plane in enumerate(values, start=place[0].start):
            # the description of the first slice is that of the stack
            writer.write(plane, compression="zlib", metadata=None, description=None if z else description, **options)

    return write


def _describe_stack(sink: Sink) -> str:
    """Returns a description as ImageJ writes it, so that Fiji shows micrometres and knows the axes."""
    lines = ["ImageJ=1.54f", f"images={sink.shape[0]}", f"slices={sink.shape[0]}"]
    if sink.voxel_size_um is not None:
        lines += ["unit=micron", f"spacing={sink.voxel_size_um[0]!r}"]
    if sink.names:
        lines.append(f"classes={json.dumps(sink.names)}")  # ImageJ leaves the line alone
    return "\n".join([*lines, "loop=false", ""])


def _start_zarr(sink: Sink, folder: Path, _: contextlib.ExitStack) -> WriteBlock:
    chunk = sink.block or (1, min(CHUNK_EDGE, sink.shape[1]), min(CHUNK_EDGE, sink.shape[2]))
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

    def write(place: Place, values: NDArray[Any]) -> None:
        for part, size, step in zip(place, sink.shape, chunk, strict=True):
            if part.start % step or (part.stop % step and part.stop != size):
                raise ValueError(f"block {place} does not begin and end with chunks of {chunk}")
        array[place] = values

    return write
