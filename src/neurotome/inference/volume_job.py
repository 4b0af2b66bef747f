"""VolumeJob: all that a process needs to label blocks of one volume, so that it can be sent anywhere."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.inference.geometry import Geometry
from neurotome.io.chunks import ChunkMap, list_chunks
from neurotome.io.lazy_array import LazyArray, Place
from neurotome.io.opening import open_volume
from neurotome.normalize import Scale
from neurotome.predictor import BackEnd, Ranges
from neurotome.sampling import is_large, sample_boxes
from neurotome.volume import Volume

LEDGER = Path("0", "ledger")
"""Where the ledger lies in a label store: inside the array, where readers that list groups do not look."""


@dataclass(frozen=True)
class VolumeSource:
    """Which voxels are read, and how.

    Attributes:
        path: The image.
        channel, time: Which of several; None where there is one.
        voxel_size_um: What a person says, see `open_volume`; None: what the file says.
        flip: Lowest and highest grey value, between which all are flipped where the contrast is inverted.
    """

    path: str
    channel: int | None = None
    time: int | None = None
    voxel_size_um: float | None = None
    flip: tuple[float, float] | None = None

    def open(self) -> Volume:
        """Opens the volume, lazily; ImageError as `open_volume`."""
        volume = open_volume(
            Path(self.path), channel=self.channel, time=self.time, voxel_size_um=self.voxel_size_um, stack=True
        )
        return volume if self.flip is None else flip_grey(volume, *self.flip)


def find_extremes(volume: Volume) -> tuple[float, float]:
    """Returns the lowest and the highest grey value of a volume; of a large one those of a sample (`sampling`)."""
    if is_large(volume.data):
        sample = sample_boxes(volume.data)
        return sample.low, sample.high
    extremes = [(plane.min(), plane.max()) for plane in volume.data]
    return float(min(lowest for lowest, _ in extremes)), float(max(highest for _, highest in extremes))


def flip_grey(volume: Volume, lowest: float, highest: float) -> Volume:
    """Returns a volume whose grey values are flipped between two, others becoming one, when they are read; same dtype."""
    low, high = volume.data.dtype.type(lowest), volume.data.dtype.type(highest)

    def read(place: Place) -> NDArray[Any]:
        grey = np.asarray(volume.data[place]).clip(low, high)
        flipped: NDArray[Any] = (high - grey) + low  # in this order every step fits into the dtype
        return flipped

    def list_flipped() -> ChunkMap | None:
        chunks = list_chunks(volume.data)
        return chunks and replace(chunks, fill=highest + lowest - float(np.clip(chunks.fill, lowest, highest)))

    flipped = LazyArray(volume.path or Path(volume.name), volume.shape, volume.data.dtype, read)
    flipped.chunk_zyx = getattr(volume.data, "chunk_zyx", None)
    flipped.listing = list_flipped
    return replace(volume, data=flipped)


@dataclass(frozen=True)
class VolumeJob:
    """What is computed and where it goes; the same for every block, process and machine of a run.

    Attributes:
        model: Path or name of the model, and its digest, so that no worker computes with another.
        device, back_end, ranges: Where and with what a network runs.
        source: The volume.
        scale: Its grey scale, measured once.
        geometry: Tiles, halo and blocks.
        labels: The label store; its ledger lies in `LEDGER`.
        confidence: The store of the chosen class's probability, or None.
        fingerprint: What the ledger was begun with.
        air_below: Tiles of darker grey values only are not computed.
        fill: Nor are tiles that hold this value only, which stands for what is not stored.
        wanted: Which tiles are wanted, packed by `pack_tiles`; None: all.
    """

    model: str
    model_sha256: str
    device: str
    back_end: BackEnd
    source: VolumeSource
    scale: Scale
    geometry: Geometry
    labels: str
    confidence: str | None
    fingerprint: Mapping[str, Any]
    air_below: float | None = None
    fill: float = 0.0
    wanted: bytes | None = field(default=None, repr=False)
    ranges: Ranges | None = field(default=None, repr=False)

    @property
    def ledger(self) -> Path:
        """The ledger's folder."""
        return Path(self.labels) / LEDGER

    def find_anywhere(self) -> VolumeJob:
        """Returns the same job with whole paths, for workers that were started in another folder."""

        def whole(path: str) -> str:
            return str(Path(path).absolute())

        return replace(
            self,
            model=whole(self.model) if Path(self.model).exists() else self.model,
            source=replace(self.source, path=whole(self.source.path)),
            labels=whole(self.labels),
            confidence=self.confidence and whole(self.confidence),
        )


def pack_tiles(wanted: NDArray[np.bool_]) -> bytes | None:
    """Returns a flag per tile in few bytes, None where all are set."""
    return None if wanted.all() else zlib.compress(np.packbits(wanted).tobytes(), 1)


def unpack_tiles(packed: bytes | None, count: int) -> NDArray[np.bool_]:
    """Returns the flags that `pack_tiles` packed."""
    if packed is None:
        return np.ones(count, bool)
    return np.unpackbits(np.frombuffer(zlib.decompress(packed), np.uint8), count=count).astype(bool)
