"""LazyArray: an array (z, y, x) whose voxels stay in their file until they are asked for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import ImageError, NeurotomeError
from neurotome.io.chunks import ChunkMap
from neurotome.volume import Size

Place = tuple[slice, slice, slice]


ITERATED_BYTES = 256 << 20
"""Most that is in memory of an array whose slices are taken one after the other."""


class Source(NamedTuple):
    """What a format's reader returns: voxels (z, y, x), in memory or lazy, their size, and what to tell."""

    data: Any
    voxel_size_um: Size | None = None
    notes: tuple[str, ...] = ()


class Coarser(NamedTuple):
    """A stored level: the same image in larger voxels.

    Attributes:
        factors: How many voxels (z, y, x) of the finest level one of its voxels covers. Its first voxel covers the first
            ones; where an axis is no multiple, its last voxel covers fewer, or is not stored.
        data: Its voxels (z, y, x).
    """

    factors: tuple[int, int, int]
    data: LazyArray


class LazyArray:
    """Reads what an index asks for, and nothing else; is indexed by whole numbers and slices."""

    ndim = 3

    def __init__(self, path: Path, shape: tuple[int, int, int], dtype: Any, read: Callable[[Place], NDArray[Any]]) -> None:
        """Keeps `read`, which returns the voxels of a place: three slices with start and stop."""
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype).newbyteorder("=")
        self.reopen: Callable[[], Source] | None = None  # for another process
        self.chunk_zyx: tuple[int, int, int] | None = None  # voxels that are decompressed together, where there are some
        self.listing: Callable[[], ChunkMap | None] | None = None  # which chunks are stored, where the format tells
        self.coarser: Callable[[], Sequence[Coarser]] | None = None  # the same image in larger voxels, where it is stored
        self._read, self._process = read, os.getpid()

    @property
    def size(self) -> int:
        """Number of voxels."""
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Returns voxels; those that cannot be read, or are no finite numbers, are an ImageError."""
        keys = index if isinstance(index, tuple) else (index,)
        if len(keys) > 3 or not all(isinstance(key, slice | int | np.integer) for key in keys):
            raise TypeError(f"{self.path} is indexed by up to three whole numbers or slices, found {index!r}")
        keys = (*keys, *(slice(None),) * (3 - len(keys)))
        picked = [range(size)[key] for key, size in zip(keys, self.shape, strict=True)]  # IndexError ends an iteration
        z, y, x = (
            slice(min(taken, default=0), max(taken, default=-1) + 1) if isinstance(taken, range) else slice(taken, taken + 1)
            for taken in picked
        )
        voxels = self._read_place((z, y, x))
        return voxels[tuple(slice(None, None, taken.step) if isinstance(taken, range) else 0 for taken in picked)]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        """Yields slice after slice; as many are read at once as are compressed together, up to `ITERATED_BYTES`."""
        depth = self.chunk_zyx[0] if self.chunk_zyx else 1
        depth = max(1, min(depth, ITERATED_BYTES // max(1, self.dtype.itemsize * self.shape[1] * self.shape[2])))
        for start in range(0, self.shape[0], depth):
            yield from self[start : start + depth]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_read": None, "listing": None, "coarser": None, "_process": 0}

    def find_chunks(self) -> ChunkMap | None:
        """Returns which chunks are stored; None where the format does not tell."""
        self._open_in_this_process()
        with name_failures(self.path):
            return None if self.listing is None else self.listing()

    def find_coarser(self) -> Sequence[Coarser]:
        """Returns the coarser levels that are stored, none where the format has none."""
        self._open_in_this_process()
        with name_failures(self.path):
            return () if self.coarser is None else self.coarser()

    def _open_in_this_process(self) -> None:
        if self._process != os.getpid():  # an open file must not be shared with a parent process
            if self.reopen is not None:
                again = self.reopen().data
                self._read, self.listing, self.coarser = again._read, again.listing, again.coarser
            self._process = os.getpid()

    def _read_place(self, place: Place) -> NDArray[Any]:
        self._open_in_this_process()
        with name_failures(self.path):
            voxels = self._read(place).astype(self.dtype, copy=False)
        if voxels.dtype.kind == "f":
            check_finite(voxels, str(self.path), (place[0].start, place[1].start, place[2].start))
        return voxels


def check_finite(voxels: NDArray[Any], where: str, start: tuple[int, int, int] = (0, 0, 0)) -> None:
    """Raises an ImageError if voxels (z, y, x), which begin at `start`, are NaN or infinite."""
    bad = ~np.isfinite(voxels)
    if bad.any():
        z, y, x = (int(i) + first for i, first in zip(np.unravel_index(bad.argmax(), bad.shape), start, strict=True))
        raise ImageError(
            f"{where}: {np.count_nonzero(bad)} pixels are NaN or infinite, the first at (z={z}, y={y}, x={x}); expected "
            "finite grey values. Replace them, for example with numpy.nan_to_num, or crop the image."
        )


@contextlib.contextmanager
def name_failures(path: Path) -> Iterator[None]:
    """Makes what a decoder raises an `ImageError` that names the file; damaged bytes make them raise almost anything."""
    try:
        yield
    except (NeurotomeError, MemoryError):
        raise
    except PermissionError as error:
        raise ImageError(f"{path} may not be read ({error.strerror}). Check its permissions.") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".rstrip(": ").replace("\n", " ")[:300]
        raise ImageError(
            f"{path} cannot be read ({reason}); it is damaged, incomplete or not a {path.suffix} file. "
            "Copy or export it again."
        ) from error
