"""Arrays made of others without reading them: some slices of a stack, and one whose decoded tiles stay in memory."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.io.lazy_array import LazyArray, Place, Source

Key = tuple[int, int, int, int]
"""A tile of an array: the array's number, slice, row and column of tiles."""

SMALLEST_TILE = 64
"""Edge in pixels: smaller chunks are kept together, or looking them up would take longer than reading."""


class PickedSlices(LazyArray):
    """Some slices of a stack as a stack of their own.

    Attributes:
        whole: The stack (z, y, x), a numpy array or a lazy one.
        numbers: Which slices of it these are, int64, increasing.
    """

    def __init__(self, whole: Any, numbers: NDArray[np.int64], path: Path) -> None:
        """Keeps what is given and reads nothing."""
        super().__init__(path, (len(numbers), *whole.shape[1:]), whole.dtype, self._pick)
        self.whole, self.numbers = whole, numbers
        self.reopen = functools.partial(_pick_again, whole, numbers, path)
        self.chunk_zyx = getattr(whole, "chunk_zyx", None)

    def _pick(self, place: Place) -> NDArray[Any]:
        numbers = self.numbers[place[0]]
        runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
        read = [np.asarray(self.whole[int(run[0]) : int(run[-1]) + 1, place[1], place[2]]) for run in runs if len(run)]
        return np.concatenate(read) if len(read) != 1 else read[0]


class TileCache:
    """The tiles of lazy arrays that were used last, decoded, up to a number of bytes.

    A tile is what one slice shows of a chunk: training reads small windows of a few slices again and again, of chunks that
    are many slices deep. Threads may share it.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.bytes = most_bytes, 0
        self._tiles: dict[Key, NDArray[Any]] = {}  # the one used last stands last
        self._lock = threading.Lock()
        self._arrays = 0

    def wrap(self, source: Any) -> Any:
        """Returns an array that reads windows through the cache; what needs no decoding is returned as it is."""
        chunk = getattr(source, "chunk_zyx", None)
        if chunk is None:
            return source
        number, self._arrays = self._arrays, self._arrays + 1
        tile_y, tile_x = (edge * -(-SMALLEST_TILE // edge) for edge in chunk[1:])
        height, width = source.shape[1:]

        def read(place: Place) -> NDArray[Any]:
            z, y, x = place
            voxels = (z.stop - z.start) * (y.stop - y.start) * (x.stop - x.start)
            if voxels * source.dtype.itemsize > self.most_bytes // 16:  # whole slices would drive out all windows
                return np.asarray(source[place])
            rows, columns = range(y.start // tile_y, -(-y.stop // tile_y)), range(x.start // tile_x, -(-x.stop // tile_x))
            keys = [(number, k, row, column) for k in range(z.start, z.stop) for row in rows for column in columns]
            with self._lock:
                found = {key: self._tiles.get(key) for key in keys}
            if missing := [key for key, tile in found.items() if tile is None]:
                top, left = (min(key[axis] for key in missing) * edge for axis, edge in ((2, tile_y), (3, tile_x)))
                bottom, right = (max(key[axis] + 1 for key in missing) * edge for axis, edge in ((2, tile_y), (3, tile_x)))
                box = np.asarray(source[z, top : min(height, bottom), left : min(width, right)])
                for key in missing:
                    begin_y, begin_x = key[2] * tile_y - top, key[3] * tile_x - left
                    found[key] = box[key[1] - z.start, begin_y : begin_y + tile_y, begin_x : begin_x + tile_x].copy()
            tiles = {key: tile for key, tile in found.items() if tile is not None}
            self._keep(tiles)
            out = np.empty((z.stop - z.start, y.stop - y.start, x.stop - x.start), source.dtype)
            for key, tile in tiles.items():
                from_y, to_y = _share(key[2] * tile_y, y, tile.shape[0])
                from_x, to_x = _share(key[3] * tile_x, x, tile.shape[1])
                out[key[1] - z.start, to_y, to_x] = tile[from_y, from_x]
            return out

        wrapped = LazyArray(source.path, source.shape, source.dtype, read)
        wrapped.chunk_zyx, wrapped.listing = chunk, source.find_chunks
        wrapped.reopen = functools.partial(self._wrap_again, source)
        return wrapped

    def __reduce__(self) -> tuple[type[TileCache], tuple[int]]:
        return TileCache, (self.most_bytes,)  # another process begins with an empty one

    def _wrap_again(self, source: Any) -> Source:
        return Source(self.wrap(source))

    def _keep(self, tiles: Mapping[Key, NDArray[Any]]) -> None:
        """Takes tiles as those used last, and lets go of others where they are too many."""
        with self._lock:
            for key, tile in tiles.items():
                if self._tiles.pop(key, None) is None:
                    self.bytes += tile.nbytes
                self._tiles[key] = tile
            while self.bytes > self.most_bytes and len(self._tiles) > len(tiles):
                self.bytes -= self._tiles.pop(next(iter(self._tiles))).nbytes


def _pick_again(whole: Any, numbers: NDArray[np.int64], path: Path) -> Source:
    return Source(PickedSlices(whole, numbers, path))


def _share(start: int, wanted: slice, size: int) -> tuple[slice, slice]:
    """Returns the pixels that a tile and a wanted range share along an axis, counted in the tile and in the range."""
    first, last = max(start, wanted.start), min(start + size, wanted.stop)
    return slice(first - start, last - start), slice(first - wanted.start, last - wanted.start)
