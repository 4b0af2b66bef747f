"""What BossDB answers, taken apart: nothing is believed before it has been checked."""

from __future__ import annotations

import datetime
import email.utils
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import FetchError

LONGEST_RETRY_AFTER_S = 600.0
BLOSC_HEADER = 16  # bytes; c-blosc, README_CHUNK_FORMAT: version, flags, then nbytes, blocksize, cbytes as uint32
DAMAGED_ATTEMPTS = 3


class PassingError(Exception):
    """Something that may be gone at the next attempt; `wait_s` is what the server asks for."""

    def __init__(self, reason: str, wait_s: float = 0.0, attempts: int | None = None) -> None:
        super().__init__(reason)
        self.wait_s, self.attempts = wait_s, attempts


def decode_blosc(body: bytes, shape: tuple[int, int, int], dtype: np.dtype[Any], where: str) -> NDArray[Any]:
    """Unpacks a cutout (z, y, x), a blosc 1 buffer; nothing is allocated by what the body claims.

    Raises:
        PassingError: The buffer is damaged.
        FetchError: It holds another number of bytes than the shape needs.
    """
    from numcodecs import blosc

    header = np.frombuffer(body[:BLOSC_HEADER].ljust(BLOSC_HEADER, b"\0"), "<u4")
    nbytes, cbytes = int(header[1]), int(header[3])
    if body[:1] != b"\2" or cbytes != len(body):
        raise PassingError(f"the answer is damaged or cut short ({len(body)} bytes)", attempts=DAMAGED_ATTEMPTS)
    size = int(np.prod(shape))
    if nbytes != size * dtype.itemsize:
        guess = f", {nbytes // size} bytes per voxel" if nbytes % size == 0 else ", another shape"
        raise FetchError(
            f"{where}: the server sent {nbytes} bytes of voxels{guess}; expected {size * dtype.itemsize} for shape {shape} "
            f"of {dtype.name}, as the channel is described. Nothing of this block is kept; tell the operators of the server."
        )
    voxels = np.empty(shape, dtype)
    try:
        blosc.decompress(body, voxels)
    except (RuntimeError, ValueError) as error:
        raise PassingError(f"the answer is damaged ({error})", attempts=DAMAGED_ATTEMPTS) from error
    return voxels


def read_json(body: bytes, where: str) -> dict[str, Any]:
    """Returns a JSON object; what is none ends with a FetchError."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise FetchError(
            f"{where}: the answer is no JSON object but {len(body)} bytes of something else. Check --host and --protocol."
        )
    return content


def read_retry_after(value: str | None) -> float:
    """Returns seconds; RFC 9110 allows a number or a date."""
    try:
        seconds = float(value or 0)
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(str(value))
        except ValueError:
            return 0.0
        seconds = (date.replace(tzinfo=date.tzinfo or datetime.UTC) - datetime.datetime.now(datetime.UTC)).total_seconds()
    return min(max(0.0, seconds), LONGEST_RETRY_AFTER_S)
