"""Sinks: labels, grey maps and overlays written slice by slice, whole or not at all, in memory that does not grow."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.atomic import atomic_path
from neurotome.classes import ClassSet
from neurotome.errors import ImageError
from neurotome.io.calibration import Size, describe_stack
from neurotome.io.files import OUTPUT_SUFFIXES, describe_suffix, name_image
from neurotome.io.lazy_array import Place
from neurotome.volume import Volume

BIG_TIFF_BYTES = 3_900_000_000
"""Pixels from which on a TIFF file has 64-bit offsets; 32 bits reach 4.29 GB, and compression can fail to help."""

CHUNK_EDGE = 1024
"""Largest edge of the chunks of a Zarr array that is written slice by slice."""

WriteSlices = Callable[[Place, NDArray[Any]], None]


class Sink:
    """A file that is being written; whole slices from the first to the last, in a Zarr array any block.

    Attributes:
        path: The file.
        shape: Voxels (z, y, x) in all.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int], dtype: Any, write: WriteSlices, *, any_order: bool) -> None:
        """Keeps what is needed; `create_labels` and `create_image` make sinks."""
        self.path, self.shape, self._dtype, self._write, self._any_order = path, shape, np.dtype(dtype), write, any_order
        self._written = 0

    def write(self, place: Place, values: NDArray[Any]) -> None:
        """Writes a block.

        Args:
            place: Three slices (z, y, x): the slices that come next, with all rows and columns. In a Zarr array any block
                that begins and ends with its chunks.
            values: Shape of the block, with 3 colours as last axis where the sink is one of colours.

        Raises:
            ImageError: Labels that are no integers 0..255.
            ValueError: The block does not come next, or has another shape or dtype.
        """
        z, y, x = (range(size)[part] for part, size in zip(place, self.shape, strict=True))
        in_turn = z.start == self._written // (self.shape[1] * self.shape[2]) and (len(y), len(x)) == self.shape[1:]
        if values.shape[:3] != (len(z), len(y), len(x)) or not (in_turn or self._any_order):
            raise ValueError(f"{self.path}: block {place} of shape {values.shape} cannot be written next")
        if values.dtype != self._dtype:
            raise ValueError(f"{self.path}: dtype {values.dtype}; expected {self._dtype}")
        self._write((slice(z.start, z.stop), slice(y.start, y.stop), slice(x.start, x.stop)), values)
        self._written += len(z) * len(y) * len(x)

    def write_all(self, stack: NDArray[Any]) -> None:
        """Writes everything, slice by slice.

        Args:
            stack: Shape of the sink.
        """
        for z in range(self.shape[0]):
            self.write((slice(z, z + 1), slice(None), slice(None)), stack[z : z + 1])

    def check_finished(self) -> None:
        """Raises ValueError if something was never written."""
        if self._written != np.prod(self.shape):
            raise ValueError(f"{self.path}: {self._written} of {np.prod(self.shape)} voxels were written")


class LabelSink(Sink):
    """A sink of class ids, which are stored as the ids that the dataset has for them.

    Attributes:
        classes: Know the stored ids; None: labels are stored as they are.
    """

    classes: ClassSet | None = None

    def write(self, place: Place, values: NDArray[Any]) -> None:
        """Writes a block of labels of any integer dtype, 0..255; see `Sink.write`."""
        if values.dtype.kind not in "iu":
            raise ImageError(f"{self.path}: labels have dtype {values.dtype}; expected integers 0..255.")
        if values.size and not 0 <= values.min() <= values.max() <= 255:
            raise ImageError(f"{self.path}: labels lie in {values.min()}..{values.max()}; expected 0..255, which fit uint8.")
        super().write(place, values.astype(np.uint8) if self.classes is None else self.classes.to_stored(values))


@contextlib.contextmanager
def create_labels(
    path: str | Path,
    shape_zyx: Sequence[int],
    classes: ClassSet | None = None,
    like: Volume | None = None,
    *,
    block: tuple[int, int, int] | None = None,
) -> Iterator[LabelSink]:
    """Creates a file of labels; it appears when the block ends without an error.

    A PNG or TIFF file shows its classes in their colours while its values stay class ids (a palette). TIFF and Zarr say the
    voxel size, the axes and the names of the classes.

    Args:
        path: .png (one slice), .tif, .tiff, .npy or .zarr.
        shape_zyx: Voxels (z, y, x).
        classes: Names and colours.
        like: Where the voxel size comes from.
        block: Voxels per file of a Zarr array (z, y, x); one slice if not given.

    Raises:
        ImageError: The format cannot hold them.
    """
    with _create(Path(path), shape_zyx, np.uint8, False, like, classes, block, LabelSink) as sink:
        assert isinstance(sink, LabelSink)
        sink.classes = classes
        yield sink


@contextlib.contextmanager
def create_image(
    path: str | Path,
    shape_zyx: Sequence[int],
    dtype: Any,
    colours: bool = False,
    like: Volume | None = None,
    *,
    block: tuple[int, int, int] | None = None,
) -> Iterator[Sink]:
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
    with _create(Path(path), shape_zyx, dtype, colours, like, None, block, Sink) as sink:
        yield sink


@contextlib.contextmanager
def _create(
    path: Path,
    shape_zyx: Sequence[int],
    dtype: Any,
    colours: bool,
    like: Volume | None,
    classes: ClassSet | None,
    block: tuple[int, int, int] | None,
    kind: type[Sink],
) -> Iterator[Sink]:
    z, y, x = shape_zyx
    shape, dtype, suffix = (z, y, x), np.dtype(dtype), path.suffix.lower()
    formats = (".png", ".tif", ".tiff") if colours else OUTPUT_SUFFIXES
    if suffix not in formats:
        raise ImageError(describe_suffix(path, formats))
    sizes = like.voxel_size_um if like is not None else None
    with contextlib.ExitStack() as stack:
        if suffix == ".zarr":
            temporary = stack.enter_context(_atomic_folder(path))
            write = _start_zarr(temporary, shape, dtype, sizes, classes, block, name_image(path), like)
        else:
            if suffix == ".png":
                _check_png(path, shape, dtype)
            temporary = stack.enter_context(atomic_path(path))
            if suffix == ".png":
                write = _start_png(temporary, classes)
            elif suffix == ".npy":
                write = _start_npy(stack, temporary, shape, dtype)
            else:
                write = _start_tiff(stack, temporary, shape, dtype, colours, sizes, classes)
        sink = kind(path, shape, dtype, write, any_order=suffix == ".zarr")
        yield sink
        sink.check_finished()


def _check_png(path: Path, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> None:
    if shape[0] != 1:
        raise ImageError(f"{path}: a PNG file holds one slice, found {shape[0]}. Use the suffix .tif or .npy.")
    if dtype.kind == "f":
        raise ImageError(f"{path}: a PNG file holds integers, found {dtype}. Use the suffix .tif or .npy.")


def _start_png(temporary: Path, classes: ClassSet | None) -> WriteSlices:
    from PIL import Image

    def write(_: Place, values: NDArray[Any]) -> None:
        image = Image.fromarray(np.ascontiguousarray(values[0]))
        if classes is not None:
            image.putpalette(_list_colours(classes).tobytes())
        image.save(temporary, format="PNG")

    return write


def _start_npy(
    stack: contextlib.ExitStack, temporary: Path, shape: tuple[int, int, int], dtype: np.dtype[Any]
) -> WriteSlices:
    file = stack.enter_context(temporary.open("wb"))
    kept = shape[1:] if shape[0] == 1 else shape  # one slice is an image
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": kept}
    np.lib.format.write_array_header_1_0(file, header)

    def write(_: Place, values: NDArray[Any]) -> None:
        file.write(values.tobytes())

    return write


def _start_tiff(
    stack: contextlib.ExitStack,
    temporary: Path,
    shape: tuple[int, int, int],
    dtype: np.dtype[Any],
    colours: bool,
    sizes: Size | None,
    classes: ClassSet | None,
) -> WriteSlices:
    import tifffile

    stored = int(np.prod(shape)) * dtype.itemsize * (3 if colours else 1)
    writer = stack.enter_context(tifffile.TiffWriter(temporary, bigtiff=stored > BIG_TIFF_BYTES))
    options: dict[str, Any] = {"photometric": "rgb" if colours else "minisblack"}
    if classes is not None:
        options = {"photometric": "palette", "colormap": _list_colours(classes).T.astype(np.uint16) * 257}
    if sizes is not None:
        options |= {"resolution": (1 / sizes[2], 1 / sizes[1]), "resolutionunit": "NONE"}
    description = describe_stack(shape[0], sizes, _name_ids(classes))

    def write(place: Place, values: NDArray[Any]) -> None:
        for z, plane in enumerate(values, start=place[0].start):
            # the description of the first slice is that of the stack
            writer.write(plane, compression="zlib", metadata=None, description=None if z else description, **options)

    return write


def _start_zarr(
    folder: Path,
    shape: tuple[int, int, int],
    dtype: np.dtype[Any],
    sizes: Size | None,
    classes: ClassSet | None,
    block: tuple[int, int, int] | None,
    name: str,
    like: Volume | None,
) -> WriteSlices:
    from neurotome.io.ome_zarr import create_ome_zarr

    chunk = block or (1, min(CHUNK_EDGE, shape[1]), min(CHUNK_EDGE, shape[2]))
    image_label = None
    if classes is not None:
        colours, names = _list_colours(classes), _name_ids(classes) or {}
        image_label = {
            "colors": [{"label-value": value, "rgba": [*colours[value].tolist(), 255]} for value in names],
            "properties": [{"label-value": value, "name": name} for value, name in names.items()],
        }
    array = create_ome_zarr(
        folder,
        shape,
        dtype,
        sizes,
        name=name,
        origin_zyx=like.origin_zyx if like is not None else (0, 0, 0),
        shard=chunk,
        chunk=chunk,
        image_label=image_label,
    )

    def write(place: Place, values: NDArray[Any]) -> None:
        for part, size, step in zip(place, shape, chunk, strict=True):
            if part.start % step or (part.stop % step and part.stop != size):
                raise ValueError(f"block {place} does not begin and end with chunks of {chunk}")
        array[place] = values

    return write


def _name_ids(classes: ClassSet | None) -> dict[int, str] | None:
    if classes is None:
        return None
    return {int(value): name for value, name in zip(classes.to_stored(np.arange(len(classes))), classes.names, strict=True)}


def _list_colours(classes: ClassSet) -> NDArray[np.uint8]:
    """Returns the colour of every stored value that a byte can have, shape (256, 3)."""
    return classes.paint(classes.from_stored(np.arange(256)))


@contextlib.contextmanager
def _atomic_folder(path: Path) -> Iterator[Path]:
    """As `atomic_path`, for a format that is a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    token = f"{os.getpid()}.{secrets.token_hex(4)}"
    temporary, replaced = (
        path.with_name(f".{path.stem}.{token}.{what}{path.suffix}") for what in ("partial", "old.partial")
    )
    try:
        yield temporary
        if path.exists():
            path.rename(replaced)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
