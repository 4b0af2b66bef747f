"""Axes of stored arrays: where z, y and x are, which channel and time are meant, and units of voxel sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import ImageError
from neurotome.io.lazy_array import LazyArray, Place
from neurotome.volume import Size

NAMES = {"c": "channel", "t": "time"}

Choice = Mapping[str, int | None]
"""Which channel (c) and time (t) to read; None where there is one only."""

UNITS_UM = {
    **dict.fromkeys(("angstrom", "å"), 1e-4),
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1e-3),
    # the micro sign comes as either of two letters, or written out by ImageJ
    **dict.fromkeys(("um", "µm", "μm", "\\u00b5m", "micron", "micrometer", "micrometre"), 1.0),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), 1e3),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 1e4),
    **dict.fromkeys(("m", "meter", "metre"), 1e6),
}


class Layout(NamedTuple):
    """How an array with named axes, a small letter each, is read as (z, y, x); `fixed` has the index of the other axes."""

    axes: str
    shape: tuple[int, ...]
    fixed: dict[str, int]

    @property
    def shape_zyx(self) -> tuple[int, int, int]:
        """Voxels (z, y, x)."""
        z, y, x = (self.shape[self.axes.index(axis)] if axis in self.axes else 1 for axis in "zyx")
        return z, y, x

    def read(self, array: Any, place: Place) -> NDArray[Any]:
        """Reads a place (z, y, x) of the stored array; what it takes is an index of whole numbers and slices."""
        asked = dict(zip("zyx", place, strict=True))
        voxels = np.asarray(array[tuple(asked[axis] if axis in asked else self.fixed[axis] for axis in self.axes)])
        kept = [axis for axis in self.axes if axis in asked]
        voxels = voxels.transpose([kept.index(axis) for axis in "zyx" if axis in kept])
        return voxels if "z" in kept else voxels[None]

    def wrap(self, path: Path, array: Any, dtype: Any = None) -> LazyArray:
        """Returns the stored array as (z, y, x), read on demand."""
        return LazyArray(path, self.shape_zyx, dtype or array.dtype, lambda place: self.read(array, place))


def choose_axes(where: Any, axes: str, shape: Sequence[int], choice: Choice, channels: Sequence[str] = ()) -> Layout:
    """Finds z, y and x among the axes of an array, a letter each in any case; fixes the others or asks for a choice."""
    axes = axes.lower()
    has = f"{where}: found axes {axes.upper()} of shape {tuple(shape)}"
    if len(axes) != len(shape) or len(set(axes)) != len(axes) or not {"y", "x"} <= set(axes):
        raise ImageError(f"{has}; expected y and x, once each.")
    sizes = {"c": 1, "t": 1, **dict(zip(axes, shape, strict=True))}
    fixed = {}
    for axis in sorted(set(sizes) - set("zyx")):
        size = sizes[axis]
        asked = choice.get(axis)
        if asked is None and size != 1:
            if axis not in NAMES:
                raise ImageError(
                    f"{has}; expected one slice (y, x) or one stack (z, y, x). Mark the remaining axis as z (tifffile: "
                    "metadata={'axes': 'ZYX'}; Fiji: Image > Properties)."
                )
            listed = f" ({', '.join(f'{i}: {name}' for i, name in enumerate(channels))})" if axis == "c" and channels else ""
            raise ImageError(
                f"{has}, {size} {NAMES[axis]}s{listed}; expected one. Choose with {NAMES[axis]}=0..{size - 1}, or save them "
                "as separate files."
            )
        if asked is not None and not 0 <= asked < size:
            raise ImageError(f"{where}: {NAMES[axis]} {asked} asked for; there are {size}, 0..{size - 1}.")
        fixed[axis] = asked or 0
    return Layout(axes, tuple(int(size) for size in shape), fixed)


def looks_like_colours(shape: Sequence[int]) -> bool:
    """Returns whether an array of this shape is rather a picture (y, x, colours) than a stack (z, y, x)."""
    return len(shape) == 3 and shape[-1] in (3, 4) and min(shape[:2]) > 16


def guess_axes(where: Path | str, shape: Sequence[int]) -> str:
    """Returns the usual axes of an array that names none; `?` for each where there is no usual order.

    Raises:
        ImageError: It looks like a picture in colours.
    """
    if looks_like_colours(shape):
        raise ImageError(
            f"{where}: shape {tuple(shape)} looks like RGB(A) colours; expected (z, y, x). Save one grey channel, of labels "
            "the class ids themselves; or name the axes."
        )
    return {2: "yx", 3: "zyx", 4: "czyx", 5: "tczyx"}.get(len(shape), "?" * len(shape))


def find_unit(unit: Any) -> float | None:
    """Returns micrometres per unit, named in any case, in singular or plural; None for one that is not known."""
    name = str(unit).strip().lower()
    return UNITS_UM.get(name.removesuffix("s") if len(name) > 3 else name)


def keep_plausible(sizes: Size | None) -> Size | None:
    """Returns voxel sizes of 1e-4 to 1e4 um, None for others; a negative size is one counted downwards."""
    if sizes is None:
        return None
    z, y, x = (abs(size) for size in sizes)
    return (z, y, x) if all(1e-4 <= size <= 1e4 for size in (z, y, x)) else None
