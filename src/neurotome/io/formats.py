"""HDF5, NIfTI, NRRD and MRC, which need the extra `formats`: h5py and mrcfile (BSD), nibabel and pynrrd (MIT).

Each reader raises an ImageError for a file that is no single image, or whose pixels lie in another file.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neurotome.errors import ImageError
from neurotome.io.axes import Choice, choose_axes, find_unit, guess_axes, keep_plausible
from neurotome.io.files import check_claim
from neurotome.io.lazy_array import Source
from neurotome.io.listing import find_chunk_zyx, list_hdf5_chunks
from neurotome.io.raster import PACKED_RATIO
from neurotome.lazy import import_extra
from neurotome.volume import Size

EXTRA = "formats"

HDF5_RATIO = 1_000_000
"""Chunks that hold nothing but the fill value take no room; a file claims more of them than this only if it is made to."""

NRRD_DTYPES = {
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "uint8"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "uint16"),
    "float": "float32",
}
"""What is memory-mapped; other types are read whole."""
IMOD, IMOD_STAMP, IMOD_SIGNED = 1146047817, slice(40, 48), 1
"""IMOD stores bytes without sign as those with one; its stamp and the flags after it tell (its description of MRC)."""

NRRD_SPACE = {"domain", "space"}
"""Kinds of axes along which pixels lie side by side."""


def open_hdf5(path: Path, inner: str, choice: Choice) -> Source:
    """Opens an array of an HDF5 file: that at `inner`, or the only one of 2 axes or more; chunks are read on demand."""
    h5py = import_extra("h5py", EXTRA)
    file = h5py.File(path, "r")
    arrays: list[str] = []
    # visits hard links only: what is linked from elsewhere is not read unasked
    file.visititems(lambda name, node: arrays.append(name) if isinstance(node, h5py.Dataset) and node.ndim > 1 else None)
    listed = ", ".join(arrays[:20]) or "none"
    if not inner and len(arrays) != 1:
        raise ImageError(
            f"{path}: found {len(arrays)} arrays: {listed}; expected one. Name it: {path}:/{[*arrays, 'data'][0]}."
        )
    name = inner.strip("/") or arrays[0]
    if name not in arrays:
        raise ImageError(f"{path}: found no array {name!r} in the file itself; there are {listed}.")
    dataset = file[name]
    if dataset.external or dataset.is_virtual:
        raise ImageError(f"{path}:/{name}: its values lie in other files; expected them in the file. Copy them into one.")
    check_claim(path, dataset.nbytes, HDF5_RATIO)
    layout = choose_axes(f"{path}:/{name}", _name_axes(f"{path}:/{name}", dataset), dataset.shape, choice)
    sizes = dataset.attrs.get("element_size_um")
    known = None if sizes is None else keep_plausible(tuple(np.ravel(sizes).astype(float).tolist()[-3:]))
    data = layout.wrap(path, dataset)
    if dataset.chunks is not None:
        data.chunk_zyx = find_chunk_zyx(layout, dataset.chunks)
        data.listing = functools.cache(lambda: list_hdf5_chunks(dataset, layout))
    return Source(data, known)


def _name_axes(where: str, dataset: Any) -> str:
    """Returns the axes as ilastik and h5py write them down; those of a nameless array end with z, y, x."""
    tags = dataset.attrs.get("axistags")
    if tags is not None:
        return "".join(axis["key"] for axis in json.loads(tags)["axes"])
    labels = "".join(dimension.label for dimension in dataset.dims)
    if len(labels) == dataset.ndim:
        return labels
    return guess_axes(where, dataset.shape)


def open_nifti(path: Path, choice: Choice) -> Source:
    """Opens a NIfTI file, which stores (x, y, z); compressed ones are unpacked whole, others are read when asked for."""
    image = import_extra("nibabel", EXTRA).load(path)
    layout = choose_axes(path, "xyztc"[: len(image.shape)], image.shape, choice)
    stored, dtype = image.dataobj, image.get_data_dtype()
    check_claim(path, math.prod(image.shape) * dtype.itemsize, PACKED_RATIO)
    if (stored.slope, stored.inter) != (1.0, 0.0):
        dtype = np.dtype(np.float32)
    if path.name.lower().endswith(".gz"):
        stored = np.asarray(stored, dtype)
    unit = find_unit(image.header.get_xyzt_units()[0])
    x, y, z = (*(float(size) for size in image.header.get_zooms()[:3]), 1.0)[:3]
    return Source(layout.wrap(path, stored, dtype), keep_plausible((z * unit, y * unit, x * unit)) if unit else None)


def open_nrrd(path: Path, choice: Choice) -> Source:
    """Opens a NRRD file, which stores (x, y, z); compressed ones are unpacked whole, others are read when asked for."""
    nrrd = import_extra("nrrd", EXTRA)
    with path.open("rb") as file:
        header = nrrd.read_header(file)
        offset = file.tell()
        if "data file" in header or "datafile" in header:
            raise ImageError(
                f"{path}: its pixels lie in another file; expected them in the file. Save it with attached data."
            )
        shape = tuple(int(size) for size in header["sizes"][::-1])
        dtype = np.dtype(NRRD_DTYPES.get(header["type"], "uint8"))
        check_claim(path, math.prod(shape) * dtype.itemsize, PACKED_RATIO)
        skips = header.get("byte skip") or header.get("line skip")
        if header["encoding"] == "raw" and header["type"] in NRRD_DTYPES and not skips:
            dtype = dtype.newbyteorder(">" if header.get("endian") == "big" else "<")
            stored = np.memmap(path, dtype, "r", offset, shape)
        else:
            stored = nrrd.read_data(header, file, str(path), index_order="C")
    layout = choose_axes(path, _name_nrrd_axes(path, header, stored.shape), stored.shape, choice)
    return Source(layout.wrap(path, stored), _read_nrrd_size(header))


def _name_nrrd_axes(path: Path, header: Any, shape: Sequence[int]) -> str:
    """Returns the axes by what the header calls their kinds; of 4 axes the fastest, which NRRD lists first, is channels."""
    kinds = [str(kind).lower() for kind in header.get("kinds", ())][::-1]
    if len(kinds) != len(shape) or not set(kinds) & NRRD_SPACE:
        return "zyxc" if len(shape) == 4 else guess_axes(path, shape)
    places = iter("zyx"[-sum(kind in NRRD_SPACE for kind in kinds) :])
    return "".join(next(places, "?") if kind in NRRD_SPACE else "c" for kind in kinds)


def _read_nrrd_size(header: Any) -> Size | None:
    directions = header.get("space directions")
    steps = header.get("spacings") if directions is None else np.linalg.norm(np.asarray(directions, float), axis=1)
    units = [find_unit(unit) for unit in header.get("space units", header.get("units", ()))]
    if steps is None or not units or None in units:
        return None
    sizes = [float(step) * float(unit or 0) for step, unit in zip(steps, units, strict=False)][-3:]
    if not all(np.isfinite(sizes)) or len(sizes) < 2:
        return None
    x, y = sizes[:2]
    return keep_plausible((sizes[2] if len(sizes) == 3 else y, y, x))


def open_mrc(path: Path, choice: Choice) -> Source:
    """Opens an MRC file, memory-mapped; its voxel sizes are in Angstrom."""
    mrcfile = import_extra("mrcfile", EXTRA)
    with mrcfile.mmap(path, mode="r") as file:
        stored, sizes = file.data, file.voxel_size
        stamp, flags = np.frombuffer(file.header.extra2.tobytes()[IMOD_STAMP], np.int32).tolist()
        if stored.dtype == np.int8 and stamp == IMOD and not flags & IMOD_SIGNED:
            stored = stored.view(np.uint8)
        layout = choose_axes(path, "czyx"[-stored.ndim :], stored.shape, choice)
        known = keep_plausible((float(sizes.z) * 1e-4, float(sizes.y) * 1e-4, float(sizes.x) * 1e-4))
    return Source(layout.wrap(path, stored), known)
