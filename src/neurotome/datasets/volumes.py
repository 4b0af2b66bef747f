"""Volumes of any size in dataset.yaml: read from disk as they are needed, labelled everywhere or in some slices.

    volumes:
      - name: block-a
        image: block_a.zarr           # relative to dataset.yaml; HDF5 as file.h5:/path
        labels: block_a_labels.zarr   # of the image's shape; slices without a label are left alone
      - name: block-b
        image: big.tif
        labels: block_b_slices/       # a stack or folder of label slices
        z: [12, 40, 77]               # which slices of the image they are, from 0

`channel` and `time` choose one of several in the image.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.datasets.base import Cutout, view
from neurotome.datasets.splits import describe_value
from neurotome.errors import DatasetError, show, unknown
from neurotome.io.chunks import ChunkMap, list_chunks
from neurotome.io.lazy_array import LazyArray, Place, Source
from neurotome.io.opening import open_labels, open_volume
from neurotome.io.picked import PickedSlices, TileCache
from neurotome.progress import Progress
from neurotome.sampling import is_large
from neurotome.volume import Size, Volume

CACHE_BYTES = 1 << 30
"""Most that decoded windows of a dataset's volumes take in memory."""

COUNTED_BYTES = 64 << 20
"""Most labels that are in memory while they are counted."""

COUNTED_EDGE = 256
"""Edge in pixels of the tiles, rounded up to whole chunks, of which it is known how many pixels each class has there."""

SAMPLED_EDGE, SAMPLED_BOXES = 64, 64
"""Edge in voxels and number of the boxes by which a large cutout is told from others; reading 1 TB would take hours."""


@dataclass(frozen=True)
class Listed:
    """A volume as dataset.yaml lists it; `z` are the slices that are labelled, None where the labels are a volume too."""

    name: str
    image: str
    labels: str
    z: tuple[int, ...] | None = None
    channel: int | None = None
    time: int | None = None


@dataclass(frozen=True)
class VolumeCutout(Cutout):
    """The labelled slices of a volume; their neighbours are context, and nothing is read that is not asked for.

    Attributes:
        classes: What the labels mean.
        tiles: Pixels of each class in every tile of every slice, int32, shape (slices, tiles along y, along x, classes).
        tile_yx: Pixels of a tile along y and x.
    """

    classes: ClassSet
    tiles: NDArray[np.int32]
    tile_yx: tuple[int, int]

    @cached_property
    def label_counts(self) -> NDArray[np.int64]:
        """Pixels of each slice per label value, int64, shape (slices, 256); known since the labels were checked."""
        counts = np.zeros((len(self.tiles), 256), np.int64)
        counts[:, : len(self.classes)] = self.tiles.sum(axis=(1, 2), dtype=np.int64)
        counts[:, self.classes.ignore] = np.prod(self.volume.shape[1:]) - counts.sum(axis=1)
        return counts

    def find_pixel(self, z: int, class_id: int, number: int) -> tuple[int, int]:
        """Returns (y, x) of a pixel of a class in a slice, of which only the tile is read that holds it."""
        reached = np.cumsum(self.tiles[z, :, :, class_id])
        tile = int(np.searchsorted(reached, number, side="right"))
        row, column = divmod(tile, self.tiles.shape[2])
        top, left = row * self.tile_yx[0], column * self.tile_yx[1]
        labels = self.read_labels(z, slice(top, top + self.tile_yx[0]), slice(left, left + self.tile_yx[1]))
        there = np.flatnonzero(labels.reshape(-1) == class_id)
        before = int(reached[tile - 1]) if tile else 0
        if len(there) != reached[tile] - before:
            raise DatasetError(
                f"{self.name}: {self.classes.names[class_id]} has {len(there)} pixels in slice {self.volume.numbers[z]} "
                f"around (y={top}, x={left}), and had {reached[tile] - before} when labels were counted; expected labels "
                "that stay as they are while they are used. Give the command again."
            )
        y, x = divmod(int(there[number - before]), labels.shape[1])
        return top + y, left + x

    def cut(self, name: str, place: Place) -> Cutout:
        """Returns the labelled slices within a part (z, y, x); only if it is narrower in y or x are labels counted anew."""
        volume, (z, y, x) = self.volume, place
        kept = np.flatnonzero((volume.numbers >= z.start) & (volume.numbers < z.stop))
        labels: Any = PickedSlices(self.labels, kept, volume.data.path)
        whole, tiles = volume.stack, self.tiles[kept]
        if (y.start, x.start, y.stop, x.stop) != (0, 0, *volume.shape[1:]):
            window = (slice(None), y, x)
            whole, labels = view(whole, window), view(labels, window)
            tiles = count_labels(labels, self.classes, self.tile_yx, f"counting labels of {name}")
        picked = PickedSlices(whole, volume.numbers[kept], volume.data.path)
        origin_zyx = (0, volume.origin_zyx[1] + y.start, volume.origin_zyx[2] + x.start)
        part = dataclasses.replace(volume, data=picked, name=name, origin_zyx=origin_zyx)
        return VolumeCutout(part, labels, self.classes, tiles, self.tile_yx)

    @cached_property
    def digests(self) -> Mapping[str, Any]:
        """As of any cutout; those of a large one are of boxes spread evenly over it and of the labels' number per slice."""
        if not is_large(self.volume.data):
            return super().digests
        shape = self.volume.shape
        pixels = hashlib.sha256(repr((shape, str(self.volume.data.dtype))).encode())
        labels = hashlib.sha256(np.ascontiguousarray(self.label_counts).tobytes())
        for place in spread_boxes(shape):
            pixels.update(np.ascontiguousarray(self.volume.data[place]).tobytes())
            labels.update(np.ascontiguousarray(self.labels[place], np.uint8).tobytes())
        voxel_size_um = [float(edge) for edge in self.volume.voxel_size_um or ()] or None
        sampled = (
            f"of {SAMPLED_BOXES} boxes of {SAMPLED_EDGE} voxels or less along an axis, and of the labels in every slice"
        )
        return {
            "pixels": pixels.hexdigest(),
            "labels": labels.hexdigest(),
            "voxel_size_um": voxel_size_um,
            "sampled": sampled,
        }


def spread_boxes(shape: tuple[int, int, int]) -> Iterator[Place]:
    """Yields boxes spread evenly over a volume, on whole chunks where these are as large as the boxes."""
    cells = np.array([-(-size // SAMPLED_EDGE) for size in shape])
    total = int(np.prod(cells))
    for number in sorted({round(i) for i in np.linspace(0, total - 1, SAMPLED_BOXES)}):
        starts = [int(at) * SAMPLED_EDGE for at in np.unravel_index(number, cells)]
        z, y, x = (slice(at, min(at + SAMPLED_EDGE, size)) for at, size in zip(starts, shape, strict=True))
        yield z, y, x


_KEYS = tuple(field.name for field in dataclasses.fields(Listed))


def read_volumes(content: Any, config: Path) -> dict[str, Listed]:
    """Reads and checks what dataset.yaml says of volumes; opens nothing.

    Raises:
        DatasetError: It has another form; names the file `config`.
    """
    listed: dict[str, Listed] = {}
    for number, entry in enumerate(content):
        where = f"{config}: volumes, entry {number + 1}"
        if not isinstance(entry, dict):
            raise DatasetError(f"{where} is {describe_value(entry)}; expected {{name: ..., image: ..., labels: ...}}.")
        for key in entry:
            if key not in _KEYS:
                raise DatasetError(f"{where}: {unknown('key', str(key), _KEYS)}")
        for key in ("name", "image", "labels"):
            value = entry.get(key)
            if not isinstance(value, str) or not value or (key == "name" and (set(value) & set("/\\\0") or value[0] == ".")):
                form = "a plain name, in quotes where it is not text" if key == "name" else "the path of a file or folder"
                raise DatasetError(f"{where}: {key} is {describe_value(value)}; expected {form}.")
        name = unicodedata.normalize("NFC", entry["name"])
        where = f"{config}: volume {name}"
        if name in listed:
            raise DatasetError(f"{where} is listed twice; expected names that differ. Rename one.")
        for key in ("channel", "time"):
            if key in entry and (type(entry[key]) is not int or entry[key] < 0):
                raise DatasetError(f"{where}: {key} is {describe_value(entry[key])}; expected a whole number from 0.")
        listed[name] = Listed(**{**entry, "name": name, "z": _read_z(entry["z"], where) if "z" in entry else None})
    return listed


def _read_z(z: Any, where: str) -> tuple[int, ...]:
    if not isinstance(z, list) or not z or not all(type(number) is int and number >= 0 for number in z):
        raise DatasetError(
            f"{where}: z is {describe_value(z)}; expected the numbers of the labelled slices in the image, from 0, such as "
            "[12, 40]."
        )
    if twice := sorted({number for number in z if z.count(number) > 1}):
        raise DatasetError(f"{where}: z lists {', '.join(map(str, twice[:8]))} twice; expected every slice once.")
    return tuple(z)


def open_listed(
    listed: Listed, folder: Path, classes: ClassSet, voxel_size_um: Size | None, cache: TileCache
) -> VolumeCutout:
    """Opens a volume and counts its labels, block by block.

    Args:
        listed: The volume.
        folder: Where dataset.yaml lies.
        classes: What the labels mean.
        voxel_size_um: Edge lengths (z, y, x) in micrometres; None: what the image says.
        cache: Keeps windows that were read.

    Raises:
        DatasetError: Labels do not fit the image or the classes, or nothing is labelled.
        ImageError: A file is missing or cannot be used.
    """
    image_path, labels_path = folder / listed.image, folder / listed.labels
    volume = open_volume(image_path, channel=listed.channel, time=listed.time, voxel_size_um=voxel_size_um, stack=True)
    stored = open_labels(labels_path, stack=True)
    check_fit(listed, volume, stored.shape, labels_path)
    numbers = np.arange(volume.shape[0]) if listed.z is None else np.array(sorted(listed.z))
    order = numbers if listed.z is None else np.argsort(listed.z)
    labels = read_classes(stored, classes, labels_path)
    chunk = labels.chunk_zyx or (1, COUNTED_EDGE, COUNTED_EDGE)
    tile_y, tile_x = (edge * -(-COUNTED_EDGE // edge) for edge in chunk[1:])
    ordered = labels if listed.z is None else PickedSlices(labels, order, labels_path)
    chunks = list_chunks(stored) if listed.z is None else None
    tiles = count_labels(ordered, classes, (tile_y, tile_x), f"counting labels of {listed.name}", chunks)
    labelled = np.flatnonzero(tiles.any(axis=(1, 2, 3)))
    if not len(labelled):
        raise DatasetError(
            f"{labels_path}: all pixels have the ignore value {classes.stored_ignore}; expected labelled ones. Label some, "
            f"or remove the volume {listed.name}."
        )
    data = PickedSlices(cache.wrap(volume.data), numbers[labelled], image_path)
    volume = dataclasses.replace(volume, data=data, name=listed.name)
    picked: Any = PickedSlices(cache.wrap(labels), order[labelled], labels_path)
    return VolumeCutout(volume, picked, classes, tiles[labelled], (tile_y, tile_x))


def check_fit(listed: Listed, volume: Volume, shape: tuple[int, int, int], labels_path: Path) -> None:
    """Raises a DatasetError if labels of a shape (z, y, x) are not those of a volume or of its slices `z`."""
    depth, *plane = volume.shape
    if listed.z is None:
        if shape != volume.shape:
            advice = " If these are some of its slices, say which under z." if list(shape[1:]) == plane else ""
            raise DatasetError(
                f"{labels_path}: labels have shape {shape}, the image {volume.path} has {volume.shape} (z, y, x); every "
                f"voxel of the image needs one label or the ignore value.{advice}"
            )
        return
    if beyond := [z for z in listed.z if z >= depth]:
        raise DatasetError(
            f"volume {listed.name}: z lists {', '.join(map(str, beyond[:8]))}, but {volume.path} has the slices 0 to "
            f"{depth - 1}. Correct z in dataset.yaml; it is counted from 0."
        )
    if shape != (len(listed.z), *plane):
        whole = " These are as many as the image has; leave out z if they are all of them." * (shape[0] == depth)
        raise DatasetError(
            f"{labels_path}: labels have shape {shape}; expected {(len(listed.z), *plane)} (z, y, x), a slice for each of "
            f"the {len(listed.z)} numbers under z of volume {listed.name}, as large as those of the image.{whole}"
        )


def read_classes(stored: Any, classes: ClassSet, path: Path) -> LazyArray:
    """Returns stored labels (z, y, x) as class ids, uint8, which are checked whenever they are read.

    What is read raises a DatasetError, which names file and place, if it holds other values than the classes'.
    """
    first, ignore, table = classes.first_id, classes.stored_ignore, classes.from_stored_table

    def read(place: Place) -> NDArray[Any]:
        values = np.asarray(stored[place])
        stray = (values >= first + len(classes)) & (values != ignore)
        if first or values.dtype.kind == "i":
            stray |= (values < first) & (values != ignore)
        if stray.any():
            at = np.unravel_index(int(stray.argmax()), stray.shape)
            z, y, x = (int(i) + part.start for i, part in zip(at, place, strict=True))
            raise DatasetError(
                f"{path}: label values outside the classes: {show(values[at].item())} ({np.count_nonzero(stray)} pixels "
                f"near it have such) at (z={z}, y={y}, x={x}); expected {classes.describe_stored()}. Correct the labels, or "
                "add the class to dataset.yaml."
            )
        return values if values.dtype == np.uint8 and not first else np.asarray(table[values])

    labels = LazyArray(path, stored.shape, np.uint8, read)
    labels.chunk_zyx = getattr(stored, "chunk_zyx", None)
    labels.reopen = functools.partial(_read_again, stored, classes, path)
    return labels


def _read_again(stored: Any, classes: ClassSet, path: Path) -> Source:
    return Source(read_classes(stored, classes, path))


def count_labels(
    labels: Any, classes: ClassSet, tile_yx: tuple[int, int], title: str, chunks: ChunkMap | None = None
) -> NDArray[np.int32]:
    """Counts the pixels of each class in every tile of every slice; reads blocks of whole chunks, one after the other.

    Args:
        labels: Class ids (z, y, x).
        classes: What they mean.
        tile_yx: Pixels of a tile.
        title: What a progress bar is called.
        chunks: Which chunks of the labels are stored, if that is known; the others are not read if they mean "not labelled".

    Returns:
        int32, shape (slices, tiles along y, along x, classes).
    """
    depth, height, width = labels.shape
    tile_y, tile_x = tile_yx
    chunk = getattr(labels, "chunk_zyx", None) or (1, 1, 1)
    counts = np.zeros((depth, -(-height // tile_y), -(-width // tile_x), len(classes)), np.int32)
    slices = max(1, min(chunk[0], COUNTED_BYTES // (tile_y * tile_x)))
    across = max(1, min(counts.shape[2], COUNTED_BYTES // (tile_y * tile_x * slices)))
    starts = [np.arange(0, size, step) for size, step in zip(labels.shape, (slices, tile_y, tile_x * across), strict=True)]
    read = np.ones([len(axis) for axis in starts], bool)
    if chunks is not None and chunks.fill == classes.stored_ignore:
        edges = zip(starts, (slices, tile_y, tile_x * across), labels.shape, strict=True)
        read = chunks.touch([(axis, np.minimum(axis + step, size)) for axis, step, size in edges])
    progress, done = Progress(title, np.count_nonzero(read) * slices * tile_y * tile_x * across / 1e6, "Mvoxel"), 0.0
    for z, y, x in zip(*(axis[i].tolist() for axis, i in zip(starts, np.nonzero(read), strict=True)), strict=True):
        box = labels[z : z + slices, y : y + tile_y, x : x + tile_x * across]
        for column in range(-(-box.shape[2] // tile_x)):
            tile = box[:, :, column * tile_x : (column + 1) * tile_x]
            # plane by plane and class by class is ten times faster than numpy's bincount, which takes 64-bit integers
            found = [[np.count_nonzero(plane == class_id) for class_id in range(len(classes))] for plane in tile]
            counts[z : z + len(box), y // tile_y, x // tile_x + column] = found
        done += box.size / 1e6
        progress.update(done)
    if is_large(labels):
        progress.finish()
    return counts
