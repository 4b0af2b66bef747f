"""ChunkMap: which chunks of an image are stored; what is absent need be neither read nor computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.blocks import Box

Spans = tuple[NDArray[np.int64], NDArray[np.int64]]
"""First voxels of boxes along an axis, and the voxels after their last."""


@dataclass(frozen=True)
class ChunkMap:
    """Which chunks of a volume are stored.

    Attributes:
        shape_zyx: Voxels of the volume.
        chunk_zyx: Voxels of a chunk; the last of an axis may be cut by the volume's border.
        stored: Whether a chunk is stored, shape (z, y, x) of chunks.
        fill: Grey value of the voxels of all others.
    """

    shape_zyx: tuple[int, int, int]
    chunk_zyx: tuple[int, int, int]
    stored: NDArray[np.bool_]
    fill: float

    @property
    def note(self) -> str:
        """Says how many chunks are missing and what is read in their place; "" if none is."""
        missing = self.stored.size - int(np.count_nonzero(self.stored))
        return f"{missing} of {self.stored.size} chunks are missing; read as fill value {self.fill:g}." if missing else ""

    def meets(self, box: Box) -> bool:
        """Returns whether one box meets a stored chunk; `touch` is for many."""
        z, y, x = (slice(part.start // edge, -(-part.stop // edge)) for part, edge in zip(box, self.chunk_zyx, strict=True))
        return bool(self.stored[z, y, x].any())

    def touch(self, spans: Sequence[Spans]) -> NDArray[np.bool_]:
        """Returns whether boxes meet a stored chunk.

        Args:
            spans: Starts and stops in voxels along z, y and x; the boxes are all combinations.

        Returns:
            Shape (boxes along z, along y, along x).
        """
        chunks = [(starts // edge, -(-stops // edge)) for (starts, stops), edge in zip(spans, self.chunk_zyx, strict=True)]
        return any_within(self.stored, chunks)


def any_within(flags: NDArray[np.bool_], spans: Sequence[Spans]) -> NDArray[np.bool_]:
    """Returns whether any flag is set within each box of a grid: all combinations of `spans` along the axes."""
    for axis, (starts, stops) in enumerate(spans):
        padded = np.pad(flags, [(0, int(i == axis)) for i in range(3)])  # a box may end where the flags do
        ends = np.minimum(np.stack([starts, stops], axis=1), flags.shape[axis]).ravel()
        reduced = np.logical_or.reduceat(padded, ends, axis=axis)  # of every box, and of what lies between it and the next
        flags = reduced[tuple(slice(None, None, 2 if i == axis else None) for i in range(3))]
    return flags


def list_chunks(data: Any) -> ChunkMap | None:
    """Returns which chunks of an opened image (`Volume.data`) are stored; None where its format does not tell."""
    find_chunks = getattr(data, "find_chunks", None)
    return None if find_chunks is None else find_chunks()
