"""BlockArray: an array of bytes on disk whose blocks are written whole, by any number of writers.

A block is a file (OME-Zarr 0.5: a shard of Zarr 3) or a box of whole chunk files (0.4: Zarr 2). They are put together here,
as https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/ has it: zarr would read what is there before,
which fails for ever where that is torn, and packs with one thread per process. It serves for reading.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.atomic import write_bytes
from neurotome.errors import SettingsError
from neurotome.io.lazy_array import Place, name_failures
from neurotome.io.zarr_store import Version, make_codec, open_or_create, whole_files

CHUNK_VOXELS = 64**3
"""Voxels that are compressed together: a viewer reads few that it does not show."""

NO_FILES = hashlib.sha256().hexdigest()
"""The digest of a block that has no file."""

ABSENT = 2**64 - 1
"""Offset and length of a chunk that a shard does not have."""


class BlockArray:
    """An array (z, y, x) of uint8 whose blocks are written whole: one level of a `LabelStore`."""

    def __init__(self, path: Path, level: str, block_zyx: Sequence[int], version: Version) -> None:
        """Opens an array that is there."""
        import zarr

        self.path, self.level, self.version = path, level, version
        with name_failures(path):
            array: Any = zarr.open_array(whole_files(path), path=level, mode="r")
        self.shape_zyx: tuple[int, int, int] = array.shape
        self.chunk_zyx: tuple[int, int, int] = array.chunks
        self.block_zyx: tuple[int, int, int] = tuple(block_zyx)  # type: ignore[assignment]
        self._array, self._fill, self._codec = array, int(array.fill_value), make_codec("bitshuffle")

    def write_block(self, place: Place, values: NDArray[np.uint8]) -> str:
        """Writes a block in place of whatever is there, which is not read; its files are on disk when this returns.

        A block, or a chunk of it, that holds the fill value alone is not stored. Beside `values` this takes memory for what
        they are packed into.

        Args:
            place: The block's box; begins at a multiple of `block_zyx`, and ends there or at the volume's border.
            values: uint8, of the box's shape.

        Returns:
            The sha256 of the block's files, see `digest_block`.

        Raises:
            ValueError: The place is no block, or the values have another shape or dtype.
        """
        self._check_block(place)
        shape = tuple(part.stop - part.start for part in place)
        if values.shape != shape or values.dtype != np.uint8:
            raise ValueError(f"{self.path}: {values.dtype} of shape {values.shape}; expected uint8 of shape {shape}")
        digest, chunks = hashlib.sha256(), self._pack_chunks(values)
        contents = iter([self._make_shard(chunks)]) if self.version == "0.5" else (packed for _, packed in chunks)
        for file, content in zip(self._list_files(place), contents, strict=True):
            _sweep(file)
            if content is None:
                file.unlink(missing_ok=True)
            else:
                write_bytes(file, content)
                digest.update(self._name(file) + content)
        return digest.hexdigest()

    def delete_block(self, place: Place) -> None:
        """Deletes a block's files, whole or half-written; it is read as the fill value then."""
        for file in self._list_files(place):
            _sweep(file)
            file.unlink(missing_ok=True)

    def digest_block(self, place: Place) -> str:
        """Returns the sha256 of a block's files as they are on disk, `NO_FILES` if it has none.

        Of 0.5 it is that of the one file, which sha256sum shows too. Of 0.4, names and bytes of all, in the order of chunks.
        """
        digest = hashlib.sha256()
        for file in self._list_files(place):
            if file.is_file():
                digest.update(self._name(file))
                with file.open("rb") as opened:
                    while part := opened.read(1 << 20):
                        digest.update(part)
        return digest.hexdigest()

    def stamp(self, place: Place) -> str:
        """Returns a digest of names, sizes and times of a box's files, which tells at little cost whether they changed.

        `NO_FILES` if there are none.
        """
        digest = hashlib.sha256()
        for file in self._list_files(place):
            if file.is_file():
                found = file.stat()
                digest.update(f"{file.relative_to(self.path).as_posix()} {found.st_size} {found.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def read(self, place: Place) -> NDArray[np.uint8]:
        """Returns the voxels of any box; ImageError if a chunk in it is damaged."""
        with name_failures(self.path / self.level):
            return np.asarray(self._array[place])

    def _pack_chunks(self, values: NDArray[np.uint8]) -> Iterator[tuple[tuple[int, ...], bytes | None]]:
        """Yields each chunk of a block with its index, compressed; None where it holds the fill value alone."""
        counts = (-(-size // step) for size, step in zip(values.shape, self.chunk_zyx, strict=True))
        for index in np.ndindex(*counts):
            chunk = values[tuple(slice(i * step, (i + 1) * step) for i, step in zip(index, self.chunk_zyx, strict=True))]
            if (chunk == self._fill).all():
                yield index, None
                continue
            whole = chunk
            if chunk.shape != self.chunk_zyx:  # at the volume's border
                whole = np.full(self.chunk_zyx, self._fill, np.uint8)
                whole[tuple(slice(size) for size in chunk.shape)] = chunk
            yield index, bytes(self._codec.encode(np.ascontiguousarray(whole)))

    def _make_shard(self, chunks: Iterator[tuple[tuple[int, ...], bytes | None]]) -> bytes | None:
        """Returns a shard: chunks, each with its checksum, then offsets and lengths with theirs; None if all are empty."""
        counts = (block // step for block, step in zip(self.block_zyx, self.chunk_zyx, strict=True))
        places = np.full((*counts, 2), ABSENT, "<u8")
        parts, end = [], 0
        for index, packed in chunks:
            if packed is not None:
                parts.append(_add_checksum(packed))
                places[index] = end, len(parts[-1])
                end += len(parts[-1])
        return b"".join([*parts, _add_checksum(places.tobytes())]) if parts else None

    def _list_files(self, place: Place) -> Iterator[Path]:
        """Yields the files that a box may have, in the order of the volume; whether they exist is another question."""
        is_sharded = self.version == "0.5"
        folder = self.path / self.level / ("c" if is_sharded else "")
        steps = zip(place, self.block_zyx if is_sharded else self.chunk_zyx, strict=True)
        for index in product(*(range(part.start // step, -(-part.stop // step)) for part, step in steps)):
            yield folder.joinpath(*map(str, index))

    def _name(self, file: Path) -> bytes:
        """Returns what a digest needs to tell one file of several from another."""
        return b"" if self.version == "0.5" else f"{file.relative_to(self.path).as_posix()}\0".encode()

    def _check_block(self, place: Place) -> None:
        for part, size, step in zip(place, self.shape_zyx, self.block_zyx, strict=True):
            if part.start % step or part.stop != min(part.start + step, size):
                raise ValueError(f"{self.path}: {place} is no block of {self.block_zyx} in {self.shape_zyx}")


def open_block_array(
    path: Path,
    level: str,
    shape_zyx: Sequence[int],
    block_zyx: Sequence[int],
    chunk_zyx: Sequence[int] | None,
    version: Version,
    *,
    fill: int,
) -> BlockArray:
    """Opens an array or creates it empty, which is read as `fill`; for the other arguments see `create_label_store`."""
    chunk = choose_chunk(block_zyx) if chunk_zyx is None else tuple(chunk_zyx)
    if any(block % step for block, step in zip(block_zyx, chunk, strict=True)):
        raise SettingsError(f"{path}: blocks of {tuple(block_zyx)} are no multiple of chunks of {chunk}; choose others.")
    shard, inner = (block_zyx, chunk) if version == "0.5" else (chunk, None)
    open_or_create(path, level, shape_zyx, np.dtype(np.uint8), shard, inner, "bitshuffle", version=version, fill=fill)
    return BlockArray(path, level, block_zyx, version)


def choose_chunk(block_zyx: Sequence[int]) -> tuple[int, int, int]:
    """Returns a divisor of a block on each axis, so that chunks have about `CHUNK_VOXELS` and are near to cubes."""
    chunk, left = [], float(CHUNK_VOXELS)
    for axis, size in enumerate(block_zyx):
        edge = left ** (1 / (3 - axis))
        divisors = (divisor for divisor in range(1, size + 1) if size % divisor == 0)
        chunk.append(min(divisors, key=lambda divisor: abs(np.log(divisor / edge))))
        left = max(left / chunk[-1], 1.0)
    z, y, x = chunk
    return z, y, x


def _add_checksum(content: bytes) -> bytes:
    import google_crc32c

    return content + struct.pack("<I", google_crc32c.value(content))


def _sweep(file: Path) -> None:
    """Deletes what killed writers of a file left."""
    for left in file.parent.glob(f".{file.name}.*.partial"):
        left.unlink(missing_ok=True)
