"""BossDB over HTTP: what a channel is, where it ends, and boxes of its voxels.

A cutout is one GET whose answer is a blosc buffer of voxels in C order, axes zyx. This is plain httpx2 and numcodecs
rather than BossDB's own client `intern`, which has no timeout, does not ask again, and unpacks whatever size an answer
claims.

Every answer is taken for a stranger's: its length is bounded before it is read and its claim checked before it is
unpacked. What may pass is asked again (429, 5xx, cut connections, stalls, damaged answers); what will not ends with
one message.
"""

from __future__ import annotations

import datetime
import email.utils
import json
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import FetchError, SettingsError
from neurotome.io.axes import find_unit
from neurotome.volume import Size

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")

PUBLIC_TOKEN = "public"  # BossDB's own word for whoever has no account

LONGEST_WAIT_S = 60.0
SLOWEST_BYTES_PER_S = 1000.0  # an answer that only drips holds a worker for hours without ever timing out
BETWEEN_NOTES_S = 5.0  # a host that is down affects all workers

LARGEST_JSON = 1 << 20
LONGEST_RETRY_AFTER_S = 600.0
BLOSC_HEADER = 16  # bytes; c-blosc, README_CHUNK_FORMAT: version, flags, then nbytes, blocksize, cbytes as uint32

REMEDIES = {
    400: "The range may lie outside the coordinate frame; check --range.",
    401: "The token is not accepted; set BOSSDB_TOKEN to yours, or unset it for public data.",
    403: "This channel is not open to this token; set BOSSDB_TOKEN in the environment to one that may read it.",
    404: "Check the address: bossdb://collection/experiment/channel.",
    413: "Ask for smaller blocks: give the same command with a smaller --request-mvoxel (for example 1).",
}


@dataclass(frozen=True)
class Connection:
    """How BossDB is asked."""

    host: str = "api.bossdb.io"
    """Name of the server, with :port if it is not the protocol's own."""

    protocol: Literal["https", "http"] = "https"
    """How it is spoken to; http is for a server of your own."""

    workers: int = 4
    """Requests at once."""

    timeout_s: float = 60.0
    """Seconds without an answer, or without another byte of it, until the block is asked for again."""

    attempts: int = 8
    """How often a block is asked for before giving up."""

    backoff_s: float = 1.0
    """Seconds before the second attempt, give or take half; doubled for each further one, up to a minute."""

    request_mvoxel: float = 20.0
    """Million voxels per request at most; less for a server that answers 413."""


class Box(NamedTuple):
    """Voxels of a channel: the first one (z, y, x), and one past the last."""

    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    @classmethod
    def at(cls, start: tuple[int, int, int], shape: Sequence[int]) -> Box:
        """Returns the box of a shape that begins at a voxel."""
        z, y, x = (a + size for a, size in zip(start, shape, strict=True))
        return cls(start, (z, y, x))

    def cut(self, index: Sequence[slice]) -> Box:
        """Returns the part of the box at an index of it."""
        z, y, x = (a + part.start for a, part in zip(self.start, index, strict=True))
        return Box.at((z, y, x), [part.stop - part.start for part in index])

    def halve(self, axis: int) -> tuple[Box, Box]:
        """Returns the two halves of the box along an axis."""
        below, above = ([slice(0, size) for size in self.shape] for _ in range(2))
        below[axis], above[axis] = slice(0, self.shape[axis] // 2), slice(self.shape[axis] // 2, self.shape[axis])
        return self.cut(below), self.cut(above)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels (z, y, x)."""
        z, y, x = (b - a for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    def __str__(self) -> str:
        """Returns z0:z1,y0:y1,x0:x1, as --range takes it."""
        return ",".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True))


class Channel(NamedTuple):
    """An image or annotation of BossDB: its address, and the dtype of its voxels."""

    uri: str
    dtype: np.dtype[Any]


class PassingError(Exception):
    """Something that may be gone at the next attempt; `wait_s` is what the server asks for."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class StoppedError(Exception):
    """The client was told to stop while a request was under way."""


def parse_uri(uri: str) -> tuple[str, str, str]:
    """Returns collection, experiment and channel of `bossdb://collection/experiment/channel`, or raises a SettingsError."""
    parts = re.fullmatch(r"bossdb://([\w.~-]+)/([\w.~-]+)/([\w.~-]+)/?", uri)
    if parts is None or any(part.strip(".") == "" for part in parts.groups()):
        raise SettingsError(
            f"{uri} is no address of a channel; expected bossdb://collection/experiment/channel, for example "
            "bossdb://prasad/prasad2020/image."
        )
    return parts[1], parts[2], parts[3]


class BossDB:
    """A server of BossDB; may be asked from several threads. `retries` is how often something was asked again."""

    def __init__(self, connection: Connection, token: str = PUBLIC_TOKEN) -> None:
        """Checks settings and token, which is never shown or stored; nothing is asked yet."""
        import httpx2

        _check_connection(connection)
        if not re.fullmatch(r"[\x21-\x7e]+", token):
            raise SettingsError(
                "BOSSDB_TOKEN holds spaces, line breaks or letters beyond ASCII; expected the token as BossDB shows it. "
                "Copy it again, or unset it for public data."
            )
        self.connection, self.retries = connection, 0
        self._token, self._noted = token, -BETWEEN_NOTES_S
        self._stop = threading.Event()
        self._client = httpx2.Client(
            base_url=f"{connection.protocol}://{connection.host}/v1",
            headers={
                "Authorization": f"Token {token}",
                "Content-Type": "application/json",
                "User-Agent": f"neurotome/{metadata.version('neurotome')}",
            },
            timeout=connection.timeout_s,
            limits=httpx2.Limits(max_connections=connection.workers, max_keepalive_connections=connection.workers),
        )

    def __enter__(self) -> BossDB:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._client.close()

    def stop(self) -> None:
        """Makes requests that are waiting or under way in other threads end with `StoppedError`."""
        self._stop.set()

    def open_channel(self, uri: str) -> Channel:
        """Asks what a channel is; a FetchError says that it is not there, not allowed, or does not answer."""
        collection, experiment, name = parse_uri(uri)
        datatype = self._get_json(f"/collection/{collection}/experiment/{experiment}/channel/{name}", uri).get("datatype")
        if datatype not in ("uint8", "uint16", "uint32", "uint64"):
            raise FetchError(f"{uri}: the server calls its datatype {datatype!r}; expected uint8, uint16, uint32 or uint64.")
        return Channel(uri, np.dtype(datatype).newbyteorder("<"))

    def read_frame(self, uri: str) -> tuple[Box, Size | None]:
        """Asks for all voxels of a channel's coordinate frame, which may be padded, and for the size of a voxel.

        The size is not always right, and None if the server has none. A FetchError says that it names no frame.
        """
        collection, experiment, _ = parse_uri(uri)
        name = self._get_json(f"/collection/{collection}/experiment/{experiment}", uri).get("coord_frame")
        if not isinstance(name, str) or not re.fullmatch(r"[\w.~-]+", name):
            raise FetchError(f"{uri}: the server names no coordinate frame (found {name!r}).")
        answer = self._get_json(f"/coord/{name}", f"{uri}, coordinate frame {name}")
        ends = [answer.get(f"{axis}_{end}") for end in ("start", "stop") for axis in "zyx"]
        numbers = [end for end in ends if type(end) is int]
        if len(numbers) != 6 or any(a >= b for a, b in zip(numbers[:3], numbers[3:], strict=True)):
            raise FetchError(f"{uri}: the coordinate frame {name} has bounds {ends}; expected six whole numbers.")
        bounds = Box((numbers[0], numbers[1], numbers[2]), (numbers[3], numbers[4], numbers[5]))
        unit = find_unit(answer.get("voxel_unit"))
        sizes = [answer.get(f"{axis}_voxel_size") for axis in "zyx"]
        known = [float(size) * unit for size in sizes if unit and isinstance(size, int | float) and size > 0]
        return bounds, (known[0], known[1], known[2]) if len(known) == 3 else None

    def read_cutout(self, channel: Channel, box: Box) -> NDArray[Any]:
        """Reads voxels (z, y, x) at full resolution; a box above `request_mvoxel` is asked for in parts.

        Raises:
            FetchError: They cannot be had; the message says why and what to do.
            StoppedError: `stop` was called.
        """
        size = int(np.prod(box.shape))
        if size > max(1.0, self.connection.request_mvoxel * 1e6):
            axis = int(np.argmax(box.shape))
            return np.concatenate([self.read_cutout(channel, half) for half in box.halve(axis)], axis)
        ranges = "/".join(f"{box.start[axis]}:{box.stop[axis]}" for axis in (2, 1, 0))  # the protocol's order is x, y, z
        where = f"{channel.uri} {box}"
        return self._ask(
            f"/cutout/{'/'.join(parse_uri(channel.uri))}/0/{ranges}/?access-mode=no-cache",
            "application/blosc",
            size * channel.dtype.itemsize + BLOSC_HEADER,  # what blosc cannot compress it stores behind its header
            where,
            lambda body: _decode_blosc(body, box.shape, channel.dtype, where),
        )

    def _get_json(self, path: str, where: str) -> dict[str, Any]:
        content = self._ask(path, "application/json", LARGEST_JSON, where, _parse_json)
        if content is None:
            raise FetchError(f"{where}: the answer is no JSON object but something else. Check --host and --protocol.")
        return content

    def _ask(self, path: str, accept: str, limit: int, where: str, read: Callable[[bytes], T]) -> T:
        attempt = 0
        while True:
            attempt += 1
            try:
                return read(self._receive(path, accept, limit, where))
            except PassingError as reason:
                if attempt >= self.connection.attempts:
                    raise FetchError(
                        f"{where}: {reason}; asked {attempt} times at {self.connection.host}. Check the network, or wait "
                        "for the server; what has arrived is kept, and the same command goes on from there."
                    ) from reason
                wait = min(LONGEST_WAIT_S, self.connection.backoff_s * 2 ** (attempt - 1)) * random.uniform(0.5, 1.5)
                wait = max(wait, reason.wait_s)
                self.retries += 1
                if time.monotonic() - self._noted >= BETWEEN_NOTES_S:
                    self._noted = time.monotonic()
                    sys.stderr.write(f"neurotome: note: {where}: {reason}; asking again in {wait:.1f} s\n")
                if self._stop.wait(wait):
                    raise StoppedError from reason

    def _receive(self, path: str, accept: str, limit: int, where: str) -> bytes:
        """Returns the body of an answer with status 200; a passing failure is `PassingError`, a lasting one FetchError."""
        import httpx2

        if self._stop.is_set():
            raise StoppedError
        started = time.monotonic()
        body = bytearray()
        try:
            with self._client.stream("GET", path, headers={"Accept": accept}) as answer:
                most = limit if answer.status_code == 200 else LARGEST_JSON
                for piece in answer.iter_bytes():
                    body += piece
                    if self._stop.is_set():
                        raise StoppedError
                    if len(body) > most:
                        break
                    elapsed = time.monotonic() - started
                    if elapsed > self.connection.timeout_s and len(body) < SLOWEST_BYTES_PER_S * elapsed:
                        raise PassingError(f"the answer stalled after {len(body)} bytes")
        except httpx2.TimeoutException as error:
            raise PassingError(f"no answer for {self.connection.timeout_s:g} s") from error
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise PassingError(f"the connection failed ({error or type(error).__name__})") from error
        self._check_answer(answer, body, where)
        if len(body) > limit:
            raise FetchError(
                f"{where}: the answer is longer than the {limit} bytes it can have; the server holds another dtype or shape "
                "than it says, or does not speak BossDB's protocol. Check the address and --host."
            )
        return bytes(body)

    def _check_answer(self, answer: httpx2.Response, body: bytearray, where: str) -> None:
        status, host = answer.status_code, self.connection.host
        if status == 200:
            if answer.headers.get("Content-Type", "").startswith("text/html") or body[:64].lstrip()[:1] == b"<":
                raise FetchError(
                    f"{where}: {host} answered with a web page, not with data. Check --host and --protocol, and whether the "
                    "network asks for a login first."
                )
            return
        said = self._quote(body)
        if status in (408, 425, 429) or status >= 500:
            raise PassingError(f"the server answered {status}{said}", _read_retry_after(answer.headers.get("Retry-After")))
        remedy = REMEDIES.get(status, "Check --host, --protocol and the address.")
        if 300 <= status < 400:
            remedy = f"It moved to {answer.headers.get('Location', 'an address it does not name')}; give that with --host."
        raise FetchError(f"{where}: {host} answered {status}{said}. {remedy} What has arrived is kept.")

    def _quote(self, body: bytearray) -> str:
        """Returns the server's own words in brackets, cut short, without the token in case it is repeated there."""
        message = str((_parse_json(body) or {}).get("message", ""))
        if self._token != PUBLIC_TOKEN:
            message = message.replace(self._token, "...")
        plain = " ".join("".join(sign if sign.isprintable() else " " for sign in message).split())[:200].rstrip(".")
        return f" ({plain})" if plain else ""


def _check_connection(connection: Connection) -> None:
    if not re.fullmatch(r"(\[[0-9A-Fa-f:]+\]|[\w.-]+)(:\d{1,5})?", connection.host):
        raise SettingsError(
            f"--host {connection.host}: expected a name such as api.bossdb.io or localhost:8000, without http:// or a path."
        )
    if connection.workers > 32:
        raise SettingsError(f"--workers {connection.workers}: at most 32; BossDB is shared, and answers 429 to more.")
    lowest = {"workers": 1, "attempts": 1, "timeout_s": 1e-3, "backoff_s": 0, "request_mvoxel": 1e-6}
    for name, low in lowest.items():
        if not getattr(connection, name) >= low:
            raise SettingsError(f"--{name.replace('_', '-')} {getattr(connection, name)}: expected at least {low:g}.")


def _decode_blosc(body: bytes, shape: tuple[int, int, int], dtype: np.dtype[Any], where: str) -> NDArray[Any]:
    """Unpacks a cutout (z, y, x), a blosc 1 buffer; nothing is allocated by what the body claims."""
    from numcodecs import blosc

    header = np.frombuffer(body[:BLOSC_HEADER].ljust(BLOSC_HEADER, b"\0"), "<u4")
    nbytes, cbytes = int(header[1]), int(header[3])
    if body[:1] != b"\2" or cbytes != len(body):
        raise PassingError(f"the answer is damaged or cut short ({len(body)} bytes)")
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
        raise PassingError(f"the answer is damaged ({error})") from error
    return voxels


def _parse_json(body: bytes | bytearray) -> dict[str, Any] | None:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _read_retry_after(value: str | None) -> float:
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
