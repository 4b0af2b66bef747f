"""Layers of napari as volumes and labels, and where in them one looks; needs neither napari nor Qt itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.errors import ImageError, SettingsError
from neurotome.io.axes import looks_like_colours
from neurotome.io.lazy_array import LazyArray, Place
from neurotome.io.meanings import read_meanings
from neurotome.io.opening import check_grey
from neurotome.volume import Size, Volume, state_size

MICROMETRES = {
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "micron": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
}
"""Units of layers that are lengths, as pint spells them."""


def open_layer(layer: Any, size_um: Size | None = None) -> Volume:
    """Returns an image layer as a volume, which reads what is asked for.

    Args:
        layer: An image layer of two or three axes; further ones in front must have the length 1.
        size_um: Edges of a voxel (z, y, x); None: what the layer says.

    Raises:
        ImageError: It has colours, more axes, or a dtype that is no grey image's.
    """
    data = read_data(layer)
    data = data.astype(np.float32) if isinstance(data, np.ndarray) and data.dtype.name in ("int8", "int16") else data
    check_grey(data, f"layer {layer.name}")
    return Volume(data, name_file(layer.name), size_um or find_size(layer), path=find_path(layer))


def read_data(layer: Any) -> Any:
    """Returns the voxels of a layer (z, y, x), of several resolutions the finest; lazy unless they are a numpy array.

    Raises:
        ImageError: It has colours, or more axes.
    """
    data = layer.data[0] if layer.multiscale else layer.data
    shape = tuple(int(size) for size in data.shape)
    where = f"layer {layer.name}"
    if getattr(layer, "rgb", False) or looks_like_colours(shape):
        raise ImageError(f"{where}: has colours; expected grey values. Split its channels, or convert it to grey.")
    extra = shape[:-3]
    if len(shape) < 2 or any(size != 1 for size in extra):
        raise ImageError(
            f"{where}: has the shape {shape}; expected (y, x) or (z, y, x). Split its channels or times into layers first."
        )
    zyx = (*(1,) * (3 - len(shape)), *shape)[-3:]
    if isinstance(data, np.ndarray):
        return data.reshape(zyx)
    front = (0,) * len(extra)

    def read(place: Place) -> NDArray[Any]:
        return np.asarray(data[(*front, *place[3 - min(3, len(shape)) :])]).reshape(
            [part.stop - part.start for part in place]
        )

    dtype = np.dtype(np.float32) if data.dtype in (np.int8, np.int16) else data.dtype
    return LazyArray(find_path(layer) or Path(name_file(layer.name)), (zyx[0], zyx[1], zyx[2]), dtype, read)


def find_size(layer: Any) -> Size | None:
    """Returns the edges of a layer's voxels (z, y, x) in micrometres; None unless its units are lengths."""
    scale = [abs(float(edge)) for edge in layer.scale][-3:]
    units = [MICROMETRES.get(str(unit)) for unit in layer.units][-3:]
    if None in units or len(scale) < 2:
        return None
    edges = [edge * unit for edge, unit in zip(scale, units, strict=True) if unit is not None]
    z, y, x = edges if len(edges) == 3 else (edges[0], *edges)  # the depth of one slice is not used
    return z, y, x


def read_size(text: str) -> Size | None:
    """Returns the voxel size that somebody has typed: three edges in micrometres, z y x, or one; None for nothing."""
    try:
        return state_size([float(word) for word in re.split(r"[\s,;x]+", text.strip()) if word])
    except ValueError as error:
        raise SettingsError(f"voxel size is {text!r}; expected one edge in micrometres, or three, z y x.") from error


def read_triple(text: str, what: str) -> tuple[int, int, int]:
    """Returns the three whole numbers, z y x, that somebody has typed."""
    try:
        z, y, x = (int(word) for word in re.split(r"[\s,;x]+", text.strip()) if word)
    except ValueError as error:
        raise SettingsError(f"{what} is {text!r}; expected three whole numbers, z y x.") from error
    return z, y, x


def find_classes(layer: Any, stated: Sequence[str] = ()) -> ClassSet:
    """Returns what the ids of a layer of labels mean: as it says it, or its file, or else the names that are stated.

    Without a layer, None, it is these.

    Raises:
        SettingsError: Nobody says it.
    """
    if layer is None and stated:
        return ClassSet(tuple(stated))
    if layer is None:
        raise SettingsError("no classes are named; expected their names, that of id 0 first. Name them.")
    said = layer.metadata.get("neurotome")
    if isinstance(said, Mapping) and "classes" in said:
        return ClassSet.from_json(said["classes"])
    path = find_path(layer)
    known = read_meanings(path)[0] if path is not None and path.exists() else None
    if known is not None:
        return known
    if not stated:
        raise SettingsError(f"layer {layer.name}: does not say what its ids mean. Name the classes, that of id 0 first.")
    return ClassSet(tuple(stated))


def find_path(layer: Any) -> Path | None:
    """Returns the file of a layer, None if it has none."""
    path = getattr(getattr(layer, "source", None), "path", None)
    return Path(path) if path else None


def name_file(name: str) -> str:
    """Returns the name of a layer as one that a file may have."""
    return re.sub(r"[^\w .()+-]+", "_", name).strip(" .") or "layer"


def find_middle(viewer: Any, layer: Any) -> tuple[int, int, int]:
    """Returns the voxel of a layer (z, y, x) at which a viewer looks, or the nearest one of it."""
    shown = np.array(viewer.dims.point, float)
    centre = np.asarray(viewer.camera.center, float)[-viewer.dims.ndisplay :]
    shown[list(viewer.dims.displayed)] = centre
    return to_voxel(layer, shown)


def find_box(shapes: Any, layer: Any) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """Returns middle (z, y, x) and size (y, x) of the box around the shape that is selected, or else drawn last.

    Raises:
        SettingsError: The layer of shapes holds none.
    """
    if not len(shapes.data):
        raise SettingsError(f"layer {shapes.name}: holds no shape. Draw a rectangle, or cut out the middle of the view.")
    number = max(shapes.selected_data, default=len(shapes.data) - 1)
    corners = np.array([to_voxel(layer, shapes.data_to_world(corner)) for corner in np.asarray(shapes.data[number])])
    low, high = corners.min(0), corners.max(0)
    z, y, x = (int(place) for place in (low + high + 1) // 2)
    return (z, y, x), (int(max(1, high[1] - low[1])), int(max(1, high[2] - low[2])))


def to_voxel(layer: Any, place: Any) -> tuple[int, int, int]:
    """Returns the voxel of a layer (z, y, x) at a place in the world, or the nearest one of it."""
    place = np.asarray(place, float)
    axes = len(layer.scale)
    world = np.concatenate([np.zeros(max(0, axes - len(place))), place])[-axes:]
    data = layer.data[0] if layer.multiscale else layer.data
    found = np.round(layer.world_to_data(world)).astype(int)
    inside = np.clip(found, 0, np.array(data.shape[:axes]) - 1)
    z, y, x = (int(index) for index in np.concatenate([np.zeros(3, int), inside])[-3:])
    return z, y, x
