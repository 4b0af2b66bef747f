"""Zarr arrays whose every file is written whole and synced, so that blocks can be trusted after a crash."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neurotome.atomic import write_bytes, write_json
from neurotome.documents import read_json
from neurotome.errors import RunError

if TYPE_CHECKING:
    import zarr
    from zarr.core.buffer import Buffer
    from zarr.storage import LocalStore

Shuffle = Literal["shuffle", "bitshuffle", "noshuffle"]

Version = Literal["0.5", "0.4"]
"""Of the OME-Zarr specification; 0.5 is stored as Zarr 3, 0.4 as Zarr 2."""


class StoredBlock(NamedTuple):
    """A part of an array that is one file: where it is in the array, and its file, relative to the store."""

    place: tuple[slice, slice, slice]
    file: str


def synced_store(root: Path) -> LocalStore:
    """Returns a store whose files are written whole and synced; zarr's own may leave an empty one after a power failure."""
    from zarr.storage import LocalStore  # takes a third of a second

    class SyncedStore(LocalStore):
        async def _set(self, key: str, value: Buffer, exclusive: bool = False) -> None:
            if exclusive and (self.root / key).exists():
                return
            await asyncio.to_thread(write_bytes, self.root / key, value.to_bytes())

        def set_sync(self, key: str, value: Buffer) -> None:
            write_bytes(self.root / key, value.to_bytes())

    return SyncedStore(root)


def whole_files(root: Path) -> LocalStore:
    """Returns a store for reading that refuses files that end too early.

    zarr takes an empty shard, or a chunk that begins behind the end of its shard, for one that was never written, and
    returns the fill value.
    """
    from zarr.abc.store import RangeByteRequest
    from zarr.storage import LocalStore

    def check(key: str, found: Buffer | None, wanted: Any) -> Buffer | None:
        expected = wanted.end - wanted.start if isinstance(wanted, RangeByteRequest) else 1
        if found is not None and len(found) < expected:
            raise ValueError(f"{key} ends after {len(found)} of {expected} bytes")
        return found

    class WholeFiles(LocalStore):
        async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Buffer | None:
            return check(key, await super().get(key, prototype, byte_range), byte_range)

        def get_sync(self, key: str, *, prototype: Any = None, byte_range: Any = None) -> Buffer | None:
            return check(key, super().get_sync(key, prototype=prototype, byte_range=byte_range), byte_range)

    return WholeFiles(root, read_only=True)


def open_or_create(
    root: Path,
    path: str,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    block: Sequence[int],
    chunk: Sequence[int] | None = None,
    shuffle: Shuffle = "shuffle",
    *,
    version: Version = "0.5",
    fill: int = 0,
) -> zarr.Array[Any]:
    """Opens an array (z, y, x) at `path` in a store that was begun, or creates it empty.

    A file has a `block` of voxels, compressed in one piece, or in chunks if there are any (a shard; 0.4 has none, and no
    checksums). `shuffle` is how bytes are sorted before: bitshuffle for labels, of which few bits are used (a tenth of the
    size); it spoils noisy grey values. Voxels never written are read as `fill`; a block of nothing else gets a file too if
    it is written through the array, so that what has none is not done.

    Raises:
        RunError: What is there has another shape, dtype or cut.
    """
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec
    from zarr.errors import ContainsArrayError

    store, codec = synced_store(root), make_codec(shuffle)
    config: Any = {"write_empty_chunks": True, "order": "C"}
    shards, chunks = (None, tuple(block)) if chunk is None else (tuple(block), tuple(chunk))
    if (root / path / ("zarr.json" if version == "0.5" else ".zarray")).exists():
        array: zarr.Array[Any] = zarr.open_array(store, path=path, mode="r+").with_config(config)
        if (array.shape, array.dtype, array.chunks, array.shards) != (tuple(shape), dtype, chunks, shards):
            raise RunError(
                f"{root / path}: found an array of shape {array.shape}, {array.dtype}, in blocks of "
                f"{array.shards or array.chunks}; expected {tuple(shape)}, {dtype}, {tuple(block)}. It was begun by another "
                "command or version; choose another --out, or delete it."
            )
        return array
    options: dict[str, Any] = {
        "compressors": (
            BloscCodec(typesize=dtype.itemsize, cname=codec.cname, clevel=codec.clevel, shuffle=shuffle),
            Crc32cCodec(),
        ),
        "dimension_names": ("z", "y", "x"),
    }
    if version == "0.4":
        options = {
            "compressors": codec,
            "chunk_key_encoding": {"name": "v2", "separator": "/"},
            "zarr_format": 2,
        }
    try:
        return zarr.create_array(
            store,
            name=path or None,
            shape=tuple(shape),
            dtype=dtype,
            chunks=chunks,
            shards=shards,
            fill_value=fill,
            config=config,
            **options,
        )
    except ContainsArrayError:  # another job was first
        return open_or_create(root, path, shape, dtype, block, chunk, shuffle, version=version, fill=fill)


def read_group(path: Path) -> tuple[Version, dict[str, Any]] | None:
    """Returns version and attributes of a group; None if there is no Zarr.

    Raises:
        RunError: It is an array, or its metadata are damaged.
    """
    remedy = "Copy it again, or choose another output."
    if (path / "zarr.json").is_file():
        node = read_json(path / "zarr.json", RunError, remedy)
        if node.get("node_type") == "group":
            return "0.5", dict(node.get("attributes", {}))
    elif (path / ".zgroup").is_file():
        return "0.4", read_json(path / ".zattrs", RunError, remedy) if (path / ".zattrs").is_file() else {}
    elif not (path / ".zarray").is_file():  # what another job makes meanwhile is a group
        return None
    raise RunError(f"{path}: found a Zarr array; expected an OME-Zarr, which is a group. Choose another output.")


def update_group(
    path: Path, version: Version, ome: Mapping[str, Any] | None = None, neurotome: Mapping[str, Any] | None = None
) -> None:
    """Changes metadata of a group by their keys, in one step; creates it if need be.

    Of several jobs that create one group at once all write the same; zarr would write an empty one first.
    """
    found = read_group(path)
    attributes = {} if found is None else found[1]
    if neurotome:
        attributes["neurotome"] = {**attributes.get("neurotome", {}), **neurotome}
    if version == "0.4":
        write_json(path / ".zattrs", {**attributes, **(ome or {})})
        if found is None:
            write_json(path / ".zgroup", {"zarr_format": 2})
        return
    if ome:
        attributes["ome"] = {"version": "0.5", **attributes.get("ome", {}), **ome}
    node = {} if found is None else read_json(path / "zarr.json", RunError, "Copy it again.")
    write_json(path / "zarr.json", {"zarr_format": 3, "node_type": "group", **node, "attributes": attributes})


def make_codec(shuffle: Shuffle) -> Any:
    """Returns numcodecs' compressor of what is called so; labels become no smaller by more work, only slower."""
    from numcodecs import Blosc

    sorting = {"noshuffle": Blosc.NOSHUFFLE, "shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}[shuffle]
    return Blosc(cname="zstd", clevel=1 if shuffle == "bitshuffle" else 3, shuffle=sorting)


def plan_files(array: zarr.Array[Any]) -> list[StoredBlock]:
    """Returns the parts of an array that are one file each, in C order."""
    steps = array.shards or array.chunks
    prefix = f"{array.path}/" if array.path else ""
    blocks = []
    for place in product(*(range(-(-size // step)) for size, step in zip(array.shape, steps, strict=True))):
        z, y, x = (slice(i * n, min((i + 1) * n, size)) for i, n, size in zip(place, steps, array.shape, strict=True))
        blocks.append(StoredBlock((z, y, x), f"{prefix}c/{'/'.join(map(str, place))}"))
    return blocks


def write_block(array: zarr.Array[Any], block: StoredBlock, voxels: NDArray[Any]) -> None:
    """Writes the voxels of a block; its file, of which zarr would read what is there first, may be damaged."""
    (array.store.root / block.file).unlink(missing_ok=True)  # type: ignore[attr-defined]  # of LocalStore
    array[block.place] = voxels


def read_block(array: zarr.Array[Any], block: StoredBlock) -> NDArray[Any] | None:
    """Returns the voxels of a block, None if its file is absent or damaged (every chunk has a CRC-32C)."""
    root = array.store.root  # type: ignore[attr-defined]  # of LocalStore
    if not (root / block.file).is_file() or not (root / block.file).stat().st_size:
        return None
    try:
        return np.asarray(array[block.place])
    except (ValueError, RuntimeError, OSError):
        return None
