"""View: part of a volume, its values exchanged by a table, read only when it is indexed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

Place = tuple[slice, slice, slice]

WHOLE: Place = (slice(None), slice(None), slice(None))


class View:
    """Stands for `table[source[place]]` without reading or copying it; is indexed, iterated and converted like that array.

    Attributes:
        source: Shape (z, y, x); an array, or anything that is indexed by integers and slices like one.
        table: What stands for each value 0..255, shape (256,); None for the values themselves.
        shape: Voxels (z, y, x) of the part.
    """

    ndim = 3

    def __init__(self, source: NDArray[Any], place: Place = WHOLE, table: NDArray[np.uint8] | None = None) -> None:
        self.source, self.table = source, table
        self.dtype: np.dtype[Any] = source.dtype if table is None else table.dtype
        self._ranges = [range(size)[part] for size, part in zip(source.shape, place, strict=True)]
        self.shape = tuple(map(len, self._ranges))

    @property
    def size(self) -> int:
        """Voxels of the part."""
        z, y, x = self.shape
        return z * y * x

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> NDArray[Any]:
        keys = index if isinstance(index, tuple) else (index,)
        keys = (*keys, *(slice(None),) * (self.ndim - len(keys)))
        picked = [part[key] for part, key in zip(self._ranges, keys, strict=True)]
        values = np.asarray(self.source[tuple(_to_slice(place) if isinstance(place, range) else place for place in picked)])
        return values if self.table is None else self.table[values]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[z] for z in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a view is made when it is read; it cannot be had without a copy.")
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)


def view(source: NDArray[Any], place: Place = WHOLE, table: NDArray[np.uint8] | None = None) -> NDArray[Any]:
    """Returns part of a volume with its values exchanged, without reading it; numpy's own view where that is enough."""
    if isinstance(source, np.ndarray) and table is None:
        return source[place]
    # It behaves as an array wherever volumes are used; a numpy subclass could not exchange values as it reads them.
    return cast("NDArray[Any]", View(source, place, table))


def _to_slice(part: range) -> slice:
    return slice(part.start, part.stop if part.stop >= 0 else None, part.step)
