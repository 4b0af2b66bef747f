"""OME-Zarr: written as 0.5, a Zarr 3 array with the metadata by which viewers know axes and voxel size; 0.4 is read too.

Metadata after the NGFF specification 0.5, https://ngff.openmicroscopy.org/0.5/.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import ImageError
from neurotome.io.axes import Choice, Layout, choose_axes, find_unit, guess_axes, keep_plausible
from neurotome.io.coarser import Placed, find_factors, read_placement
from neurotome.io.lazy_array import Coarser, LazyArray, Place, Source
from neurotome.io.listing import find_chunk_zyx, find_damaged_chunk, list_zarr_chunks
from neurotome.io.zarr_store import open_or_create, synced_store, whole_files
from neurotome.volume import Size

if TYPE_CHECKING:
    import zarr

LEVEL = "0"
CHUNK = (64, 64, 64)
SHARD_BYTES = 16 << 20


def create_ome_zarr(
    root: Path,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    voxel_size_um: Size | None,
    *,
    name: str,
    origin_zyx: tuple[int, int, int] = (0, 0, 0),
    shard: Sequence[int],
    chunk: Sequence[int],
    notes: Mapping[str, Any] | None = None,
    image_label: Mapping[str, Any] | None = None,
) -> zarr.Array[Any]:
    """Creates an OME-Zarr (z, y, x) of one level, or opens it again with its metadata written anew.

    A `shard` is a file, and a multiple of `chunk`, the voxels that are compressed together. `origin_zyx`, the voxel of a
    larger volume at which it begins, is kept as a translation in micrometres. `notes`, JSON, go beside the metadata, and
    `image_label` has colours and names of labels as the specification has them.

    Raises:
        RunError: There is one of another shape, dtype or cut.
    """
    import zarr

    array = open_or_create(root, LEVEL, shape, dtype, shard, chunk)
    multiscale = describe_multiscale(name, voxel_size_um, origin_zyx, {LEVEL: (1, 1, 1)})
    ome: dict[str, Any] = {"version": "0.5", "multiscales": [multiscale]}
    if image_label is not None:
        ome["image-label"] = dict(image_label)
    group = zarr.open_group(synced_store(root), mode="a", zarr_format=3)
    group.update_attributes({"ome": ome, "neurotome": dict(notes or {})})
    return array


def describe_multiscale(
    name: str, voxel_size_um: Size | None, origin_zyx: Sequence[int], levels: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """Returns an entry of `multiscales`, the same in 0.4 and 0.5.

    Args:
        name: Of the image.
        voxel_size_um: Edge lengths (z, y, x) at full resolution; None: no unit.
        origin_zyx: Voxel of a larger volume at which the image begins.
        levels: Path of each array, finest first, and how many voxels (z, y, x) of the finest one of its voxels covers. Its
            first voxel's centre lies in the middle of those, which the translation says.
    """
    sizes = voxel_size_um or (1.0, 1.0, 1.0)
    unit = {"unit": "micrometer"} if voxel_size_um else {}
    datasets = []
    for path, factors in levels.items():
        scale = [size * factor for size, factor in zip(sizes, factors, strict=True)]
        starts = [(start + (factor - 1) / 2) * size for start, factor, size in zip(origin_zyx, factors, sizes, strict=True)]
        transformations = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": starts}]
        datasets.append({"path": path, "coordinateTransformations": transformations})
    axes = [{"name": axis, "type": "space", **unit} for axis in "zyx"]
    return {"name": name, "axes": axes, "datasets": datasets}


def choose_shard(dtype: np.dtype[Any]) -> tuple[int, int, int]:
    """Returns 64 x 512 x 512 voxels, or less in y and x for wide dtypes, so that a worker's blocks stay small."""
    y = x = 512
    while CHUNK[0] * y * x * dtype.itemsize > SHARD_BYTES:
        y, x = (y // 2, x) if y >= x else (y, x // 2)
    return CHUNK[0], y, x


def is_zarr(path: Path) -> bool:
    """Returns whether a folder is a Zarr group or array of version 2 or 3."""
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray"))


def open_zarr(path: Path, choice: Choice) -> Source:
    """Opens an OME-Zarr 0.4 or 0.5 at its full resolution, or a plain Zarr array (z, y, x); chunks are read on demand."""
    import zarr

    node = zarr.open(whole_files(path), mode="r")
    if isinstance(node, zarr.Array):
        named: Any = getattr(node.metadata, "dimension_names", None) or node.attrs.get("_ARRAY_DIMENSIONS") or (None,)
        axes_named = "".join(named) if all(isinstance(name, str) for name in named) else guess_axes(path, node.shape)
        return Source(_wrap(path, node, choose_axes(path, axes_named, node.shape, choice)))
    attributes: dict[str, Any] = dict(node.attrs)
    described = attributes.get("ome", attributes)
    multiscales = described.get("multiscales") if isinstance(described, dict) else None
    if not multiscales:
        listed = ", ".join(sorted(node.keys())) or "nothing"
        raise ImageError(
            f"{path}: found no image (`multiscales`) but {listed}; expected an OME-Zarr "
            "of version 0.4 or 0.5. Name the folder of the image itself."
        )
    if attributes.get("neurotome", {}).get("complete") is False:
        raise ImageError(f"{path}: its fetch was not finished. Give the same command again; it goes on from there.")
    multiscale = multiscales[0]
    level, *coarser = multiscale["datasets"]
    _check_inside(path, level["path"])
    axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in multiscale["axes"]]
    array: Any = node[level["path"]]
    names = [str(axis["name"]) for axis in axes]
    if len(set(names)) != array.ndim:
        raise ImageError(
            f"{path}: its metadata name the axes {', '.join(names)}, but its array {level['path']} has {array.ndim} axes, "
            f"of shape {array.shape}; expected a name of its own for each. Correct `multiscales`, or export it again."
        )
    scale = np.ones(len(axes))
    for step in (*level.get("coordinateTransformations", ()), *multiscale.get("coordinateTransformations", ())):
        if step["type"] == "scale":
            if len(step["scale"]) != len(axes):
                raise ImageError(
                    f"{path}: its metadata give the scale {step['scale']} for the axes {', '.join(names)}; expected a "
                    "number for each. Correct `multiscales`, or export it again."
                )
            scale *= np.asarray(step["scale"], float)
    units = {axis["name"]: find_unit(axis.get("unit")) for axis in axes}
    sizes = {name: factor * unit for (name, unit), factor in zip(units.items(), scale.tolist(), strict=True) if unit}
    wanted = {"y", "x"} | {"z"} & set(units)  # of a z axis without a unit nothing is known
    known = (sizes.get("z", sizes["y"]), sizes["y"], sizes["x"]) if wanted <= set(sizes) else None
    channels = [str(channel.get("label", "")) for channel in described.get("omero", {}).get("channels", ())]
    layout = choose_axes(path, "".join(units), array.shape, choice, channels)
    data = _wrap(path, array, layout)
    placed = Placed(layout, *read_placement(level, len(axes)))
    data.coarser = functools.cache(lambda: _open_coarser(path, node, placed, coarser))
    return Source(data, keep_plausible(known))


def _check_inside(path: Path, inner: str) -> None:
    if Path(inner).is_absolute() or ".." in Path(inner).parts:
        raise ImageError(f"{path}: its pixels lie outside, at {inner}; expected them within the folder.")


def _open_coarser(path: Path, group: Any, finest: Placed, levels: Sequence[Mapping[str, Any]]) -> tuple[Coarser, ...]:
    """Opens the coarser levels whose voxels are whole boxes of the finest ones; says which are none."""
    opened = []
    for level in levels:
        _check_inside(path, level["path"])
        array = group[level["path"]]
        layout = finest.layout._replace(shape=tuple(int(size) for size in array.shape))
        factors = find_factors(finest, Placed(layout, *read_placement(level, len(layout.axes))))
        if factors is None:
            warnings.warn(
                f"{path}: its coarser level {level['path']} of shape {array.shape} is not used, since by its metadata its "
                f"voxels are no boxes of whole voxels of the finest level, of shape {finest.layout.shape}.",
                stacklevel=2,
            )
            continue
        opened.append(Coarser(factors, _wrap(path, array, layout)))
    return tuple(opened)


def _wrap(path: Path, array: zarr.Array[Any], layout: Layout) -> LazyArray:
    def read(place: Place) -> NDArray[Any]:
        try:
            return layout.read(array, place)
        except (MemoryError, OSError):  # which say nothing about what a chunk holds
            raise
        except Exception as error:
            damaged = find_damaged_chunk(array, layout, place)
            if damaged is None:
                raise
            raise ImageError(
                f"{damaged}: this chunk is damaged or was cut ({damaged.stat().st_size} bytes; {error}). Copy or export the "
                "image again. (A chunk that is absent is read as the fill value, a damaged one never.)"
            ) from error

    data = LazyArray(path, layout.shape_zyx, array.dtype, read)
    data.chunk_zyx = find_chunk_zyx(layout, array.chunks)
    data.listing = functools.cache(lambda: list_zarr_chunks(array, layout))
    return data
