"""Sinks: labels, grey maps and overlays written slice by slice, whole or not at all, in memory that does not grow."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neurotome.atomic import atomic_folder, atomic_path
from neurotome.classes import ClassSet
from neurotome.errors import ImageError
from neurotome.io.calibration import Size, describe_stack
from neurotome.io.files import OUTPUT_SUFFIXES, describe_suffix, name_image
from neurotome.io.lazy_array import Place
from neurotome.io.ome_zarr import create_ome_zarr
from neurotome.volume import Volume

BIG_TIFF_BYTES = 3_900_000_000
"""Pixels from which on a TIFF file has 64-bit offsets; 32 bits reach 4.29 GB, and compression can fail to help."""

CHUNK_EDGE = 1024
"""Largest edge of the chunks of a Zarr array that is written slice by slice."""

WriteBlock = Callable[[Place, NDArray[Any]], object]


class _Target(NamedTuple):
    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    kind: str  # labels, grey or colours
    classes: ClassSet | None
    like: Volume | None
    block: tuple[int, int, int] | None

    @property
    def voxel_size_um(self) -> Size | None:
        return self.like.voxel_size_um if self.like is not None else None

    @property
    def names(self) -> dict[int, str]:
        """Stored id -> name."""
        return {} if self.classes is None else dict(enumerate(self.classes.names, start=self.classes.first_id))

    @property
    def palette(self) -> NDArray[np.uint8] | None:
        """The colour of every value that a file of labels can hold, shape (256, 3)."""
        return None if self.classes is None else self.classes.paint(self.classes.from_stored(np.arange(256)))


class Sink:
    """A file that is being written: whole slices from the first to the last, or in a Zarr array any block."""

    def __init__(self, target: _Target, write: WriteBlock) -> None:
        """Keeps what is needed; `create_labels` and `create_image` make sinks."""
        self._target, self._write = target, write
        self._voxels = 0

    def write(self, place: Place, values: NDArray[Any]) -> None:
        """Writes a block.

        Args:
            place: Three slices (z, y, x): the slices that come next, with all rows and columns. In a Zarr array any block
                that begins and ends with its chunks.
            values: Shape of the block, with 3 colours as last axis where the sink is one of colours. Labels may have any
                integer dtype, 0..255.

        Raises:
            ImageError: Labels that are no integers 0..255.
            ValueError: The block does not come next, or has another shape or dtype.
        """
        path, shape = self._target.path, self._target.shape
        z, y, x = (range(size)[part] for part, size in zip(place, shape, strict=True))
        in_turn = z.start * shape[1] * shape[2] == self._voxels and (len(y), len(x)) == shape[1:]
        if values.shape[:3] != (len(z), len(y), len(x)) or not (in_turn or path.suffix.lower() == ".zarr"):
            raise ValueError(f"{path}: block {place} of shape {values.shape} cannot be written next")
        if self._target.kind == "labels":
            values = self._as_stored(values)
        if values.dtype != self._target.dtype:
            raise ValueError(f"{path}: dtype {values.dtype}; expected {self._target.dtype}")
        self._write((slice(z.start, z.stop), slice(y.start, y.stop), slice(x.start, x.stop)), values)
        self._voxels += len(z) * len(y) * len(x)

    def write_all(self, stack: NDArray[Any]) -> None:
        """Writes everything, slice by slice; `stack` has the shape of the sink."""
        for z in range(self._target.shape[0]):
            self.write((slice(z, z + 1), slice(None), slice(None)), stack[z : z + 1])

    def _as_stored(self, labels: NDArray[Any]) -> NDArray[np.uint8]:
        path, classes = self._target.path, self._target.classes
        if labels.dtype.kind not in "iu":
            raise ImageError(f"{path}: labels have dtype {labels.dtype}; expected integers 0..255.")
        if labels.size and not 0 <= labels.min() <= labels.max() <= 255:
            raise ImageError(f"{path}: labels lie in {labels.min()}..{labels.max()}; expected 0..255, which fit uint8.")
        return labels.astype(np.uint8) if classes is None else classes.to_stored(labels)

    def _check_finished(self) -> None:
        if self._voxels != np.prod(self._target.shape):
            raise ValueError(f"{self._target.path}: {self._voxels} of {np.prod(self._target.shape)} voxels were written")


@contextlib.contextmanager
def create_labels(
    path: str | Path,
    shape_zyx: Sequence[int],
    classes: ClassSet | None = None,
    like: Volume | None = None,
    *,
    block: tuple[int, int, int] | None = None,
) -> Iterator[Sink]:
    """Creates a file of labels; it appears when the block ends without an error.

    A PNG or TIFF file shows its classes in their colours while its values stay class ids (a palette). TIFF and Zarr say the
    voxel size, the axes and the names of the classes.

    Args:
        path: .png (one slice), .tif, .tiff, .npy or .zarr.
        shape_zyx: Voxels (z, y, x).
        classes: Names, colours and stored ids; None: labels are stored as they are.
        like: Where the voxel size comes from.
        block: Voxels per file of a Zarr array (z, y, x); one slice if not given.

    Raises:
        ImageError: The format cannot hold them.
    """
    z, y, x = shape_zyx
    with _create(_Target(Path(path), (z, y, x), np.dtype(np.uint8), "labels", classes, like, block)) as sink:
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
    z, y, x = shape_zyx
    kind = "colours" if colours else "grey"
    with _create(_Target(Path(path), (z, y, x), np.dtype(dtype), kind, None, like, block)) as sink:
        yield sink


@contextlib.contextmanager
def _create(target: _Target) -> Iterator[Sink]:
    path, suffix = target.path, target.path.suffix.lower()
    suffixes = (".png", ".tif", ".tiff") if target.kind == "colours" else OUTPUT_SUFFIXES
    if suffix not in suffixes:
        raise ImageError(describe_suffix(path, suffixes))
    if suffix == ".png" and target.shape[0] != 1:
        raise ImageError(f"{path}: a PNG file holds one slice, found {target.shape[0]}. Use the suffix .tif or .npy.")
    if suffix == ".png" and target.dtype.kind == "f":
        raise ImageError(f"{path}: a PNG file holds integers, found {target.dtype}. Use the suffix .tif or .npy.")
    starts = {".png": _start_png, ".npy": _start_npy, ".zarr": _start_zarr}
    with (atomic_folder if suffix == ".zarr" else atomic_path)(path) as temporary, contextlib.ExitStack() as stack:
        sink = Sink(target, starts.get(suffix, _start_tiff)(target, temporary, stack))
        yield sink
        sink._check_finished()


def _start_png(target: _Target, temporary: Path, _: contextlib.ExitStack) -> WriteBlock:
    from PIL import Image

    def write(_: Place, values: NDArray[Any]) -> None:
        image = Image.fromarray(np.ascontiguousarray(values[0]))
        if target.palette is not None:
            image.putpalette(target.palette.tobytes())
        image.save(temporary, format="PNG")

    return write


def _start_npy(target: _Target, temporary: Path, stack: contextlib.ExitStack) -> WriteBlock:
    file = stack.enter_context(temporary.open("wb"))
    shape = target.shape[1:] if target.shape[0] == 1 else target.shape  # one slice is an image (y, x)
    header = {"descr": np.lib.format.dtype_to_descr(target.dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return lambda _, values: file.write(values.tobytes())


def _start_tiff(target: _Target, temporary: Path, stack: contextlib.ExitStack) -> WriteBlock:
    import tifffile

    sizes, palette = target.voxel_size_um, target.palette
    samples = 3 if target.kind == "colours" else 1
    stored = int(np.prod(target.shape)) * target.dtype.itemsize * samples
    writer = stack.enter_context(tifffile.TiffWriter(temporary, bigtiff=stored > BIG_TIFF_BYTES))
    options: dict[str, Any] = {"photometric": "rgb" if samples == 3 else "minisblack"}
    if palette is not None:
        options = {"photometric": "palette", "colormap": palette.T.astype(np.uint16) * 257}
    if sizes is not None:
        options |= {"resolution": (1 / sizes[2], 1 / sizes[1]), "resolutionunit": "NONE"}
    description = describe_stack(target.shape[0], sizes, target.names)

    def write(place: Place, values: NDArray[Any]) -> None:
        for z, plane in enumerate(values, start=place[0].start):
            # the description of the first slice is that of the stack
            writer.write(plane, compression="zlib", metadata=None, description=None if z else description, **options)

    return write


def _start_zarr(target: _Target, folder: Path, _: contextlib.ExitStack) -> WriteBlock:
    shape, palette = target.shape, target.palette
    chunk = target.block or (1, min(CHUNK_EDGE, shape[1]), min(CHUNK_EDGE, shape[2]))
    image_label = None
    if palette is not None:
        image_label = {
            "colors": [{"label-value": value, "rgba": [*palette[value].tolist(), 255]} for value in target.names],
            "properties": [{"label-value": value, "name": name} for value, name in target.names.items()],
        }
    array = create_ome_zarr(
        folder,
        shape,
        target.dtype,
        target.voxel_size_um,
        name=name_image(target.path),
        origin_zyx=target.like.origin_zyx if target.like is not None else (0, 0, 0),
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
