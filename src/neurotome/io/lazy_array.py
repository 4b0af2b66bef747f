"""LazyArray: an array (z, y, x) whose voxels stay in their file until they are asked for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import ImageError, NeurotomeError

Place = tuple[slice, slice, slice]
Reader = Callable[[Place], NDArray[Any]]


class LazyArray:
    """Reads what an index asks for, and nothing else; is indexed by whole numbers and slices.

    Attributes:
        path: The file.
        shape: Voxels (z, y, x).
        dtype: Of the voxels.
        reopen: Opens the file anew, in another process; returns a tuple that begins with the array.
    """

    ndim = 3

    def __init__(self, path: Path, shape: tuple[int, int, int], dtype: Any, read: Reader) -> None:
        """Keeps the reader.

        Args:
            path: The file, for messages.
            shape: Voxels (z, y, x).
            dtype: Of the voxels.
            read: Returns the voxels of a place, three slices with start and stop.
        """
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype).newbyteorder("=")
        self.reopen: Callable[[], tuple[Any, ...]] | None = None
        self._read: Reader | None = read
        self._process = os.getpid()

    @property
    def size(self) -> int:
        """Number of voxels."""
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Returns the voxels of an index: up to three whole numbers or slices.

        Raises:
            ImageError: They cannot be read, or are no finite numbers.
        """
        parts = index if isinstance(index, tuple) else (index,)
        if len(parts) > 3 or not all(isinstance(part, slice | int | np.integer) for part in parts):
            raise TypeError(f"{self.path} is indexed by up to three whole numbers or slices, found {index!r}")
        ranges = []
        for part, size in zip((*parts, *[slice(None)] * (3 - len(parts))), self.shape, strict=True):
            if isinstance(part, slice):
                ranges.append(range(size)[part])
            else:
                number = range(size)[part]  # raises IndexError, which ends an iteration
                ranges.append(range(number, number + 1))
        lows = [min(taken, default=0) for taken in ranges]
        z, y, x = (slice(low, max(taken, default=low - 1) + 1) for low, taken in zip(lows, ranges, strict=True))
        voxels = self._read_place((z, y, x))
        steps = tuple(slice(None, None, taken.step) for taken in ranges)
        kept = tuple(slice(None) if isinstance(part, slice) else 0 for part in parts)
        return voxels[steps][kept]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_read": None}

    def _read_place(self, place: Place) -> NDArray[Any]:
        if self._read is None or self._process != os.getpid():  # an open file must not be shared with a parent process
            if self.reopen is not None:
                self._read = self.reopen()[0]._read
            self._process = os.getpid()
        assert self._read is not None
        with name_failures(self.path):
            voxels = self._read(place)
        if voxels.dtype != self.dtype:
            voxels = voxels.astype(self.dtype)
        if voxels.dtype.kind == "f":
            check_finite(voxels, str(self.path), (place[0].start, place[1].start, place[2].start))
        return voxels


def check_finite(voxels: NDArray[Any], where: str, start: tuple[int, int, int] = (0, 0, 0)) -> None:
    """Checks that voxels are finite numbers.

    Args:
        voxels: Floats, shape (z, y, x).
        where: File or name for the message.
        start: Where they begin, for the message.

    Raises:
        ImageError: Some are NaN or infinite.
    """
    bad = ~np.isfinite(voxels)
    count = int(np.count_nonzero(bad))
    if count:
        z, y, x = (int(i) + first for i, first in zip(np.unravel_index(int(bad.argmax()), bad.shape), start, strict=True))
        raise ImageError(
            f"{where}: {count} pixels are NaN or infinite, the first at (z={z}, y={y}, x={x}); expected finite "
            "grey values. Replace them, for example with numpy.nan_to_num, or crop the image."
        )


@contextlib.contextmanager
def name_failures(path: Path) -> Iterator[None]:
    """Makes whatever a decoder raises an `ImageError` that names the file; damaged bytes make them raise almost anything.

    Raises:
        ImageError: Instead of any other error but those of memory and of the file's access.
    """
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
