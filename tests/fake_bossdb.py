"""A local BossDB: the routes that neurotome asks, voxels computed from coordinates, faults on demand.

By hand, from the root of the repository:

    python -m tests.fake_bossdb --port 8000 [--fault 429 --times 5] [--labels table-1]
    neurotome fetch mtneuro --out mtneuro --host localhost:8000 --protocol http

With `--labels table-1` the four regions hold exactly the founding report's pixels per class; with the default they do not,
so that both outcomes of the verification can be seen.
"""

from __future__ import annotations

import argparse
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from numcodecs import blosc

FAULTS = (
    "429", "500", "403", "404", "413", "stall", "stall-mid", "cut", "reset", "corrupt", "short",
    "dtype", "shape", "labels", "html", "html-json", "channel-dtype", "bomb", "redirect",
)  # fmt: skip

CHANNELS = {
    ("prasad", "prasad2020", "image"): ("uint8", "image"),
    ("prasad", "prasad_analysis", "pixel_labels"): ("uint64", "annotation"),
}
FRAME = {"x_start": 0, "x_stop": 6144, "y_start": 0, "y_stop": 2048, "z_start": 0, "z_stop": 720}
VOXEL = {"x_voxel_size": 1.0, "y_voxel_size": 1.0, "z_voxel_size": 2000.0, "voxel_unit": "nanometers"}

TABLE_1 = {
    (110, 379): (39665515, 2724278, 4448051, 23678892),
    (380, 409): (4101022, 243515, 532764, 2724875),
    (420, 470): (6591602, 456854, 820941, 5237803),
}
CORNERS = ((900, 4600), (500, 3700), (850, 3063), (650, 1543))  # (y, x) of cortex, striatum, VP, ZI


def make_image(z, y, x):
    """Grey values from broadcastable coordinates, uint8: noise with the mean (123) and deviation (32) of the real images.

    Noise, because what compresses too well, or not at all, would make a transfer look faster or slower than it is.
    """
    mixed = (x.astype(np.uint32) * 73856093) ^ (y.astype(np.uint32) * 19349663) ^ (z.astype(np.uint32) * 83492791)
    mixed *= np.uint32(2654435761)
    mixed ^= mixed >> 15
    mixed *= np.uint32(2246822519)
    return (28 + (mixed >> 26) + (mixed >> 20 & 63) + (mixed >> 14 & 63)).astype(np.uint8)


def make_labels(z, y, x):
    """Classes 0..3 in blocks of some voxels."""
    return np.array([0, 3, 0, 1, 3, 2, 0, 0], np.uint8)[(x // 16 + y // 8 * 3 + z // 4 * 5) % 8]


def make_table_1(z, y, x):
    """Classes in order of the voxel's number within its split, so that a split has exactly Table 1's counts."""
    shape = np.broadcast_shapes(z.shape, y.shape, x.shape)
    labels = np.zeros(shape, np.uint8)
    for (first, last), counts in TABLE_1.items():
        for region, (row, column) in enumerate(CORNERS):
            number = ((region * (last - first) + z - first) * 256 + y - row) * 256 + x - column
            inside = (z >= first) & (z < last) & (y >= row) & (y < row + 256) & (x >= column) & (x < column + 256)
            found = np.searchsorted(np.cumsum(counts), number, side="right").astype(np.uint8)
            labels = np.where(inside, found, labels)
    return labels


@dataclass
class Fault:
    """Misbehaviour of the next `times` requests that contain `match`; -1 for all."""

    kind: str
    times: int = 1
    match: str = "/cutout/"


@dataclass
class Record:
    """What was asked: (path, headers) of every request, and how often each path was answered in full."""

    requests: list = field(default_factory=list)
    answered: Counter = field(default_factory=Counter)
    most_at_once: int = 0


class FakeBossDB(ThreadingHTTPServer):
    """Serves on a port of the local machine; 0 for any free one."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, port=0, labels=make_labels, stall_s=30.0, token=None, keep=False, delay_s=0.0):
        super().__init__(("127.0.0.1", port), Handler)
        self.labels, self.stall_s, self.token, self.delay_s = labels, stall_s, token, delay_s
        self.kept = {} if keep else None
        self.faults, self.record = [], Record()
        self.lock, self.ending, self.busy = threading.Lock(), threading.Event(), 0

    @property
    def host(self):
        return f"127.0.0.1:{self.server_address[1]}"

    def fail(self, kind, times=1, match="/cutout/"):
        assert kind in FAULTS, kind
        self.faults.append(Fault(kind, times, match))

    def take_fault(self, path):
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.match in path:
                    fault.times -= 1
                    return fault.kind
        return None

    def cutout(self, collection, experiment, channel, box_xyz):
        key = (collection, experiment, channel, *box_xyz)
        if self.kept is not None and key in self.kept:
            return self.kept[key]
        x, y, z = (np.arange(*span) for span in box_xyz)
        z, y, x = z[:, None, None], y[None, :, None], x[None, None, :]
        dtype = CHANNELS[collection, experiment, channel][0]
        make = make_image if dtype == "uint8" else self.labels
        body = pack(make(z, y, x).astype(dtype))
        if self.kept is not None:
            self.kept[key] = body
        return body

    def handle_error(self, request, client_address):
        """Keeps quiet about clients that were killed."""


def pack(voxels):
    return blosc.compress(np.ascontiguousarray(voxels), b"lz4", 5, blosc.SHUFFLE)


class Handler(BaseHTTPRequestHandler):
    """The routes: channel, experiment, coordinate frame, cutout."""

    protocol_version = "HTTP/1.1"
    server: FakeBossDB

    def setup(self):
        super().setup()
        self.connection.setsockopt(6, 1, True)  # TCP_NODELAY: headers and body are two writes

    def do_GET(self):
        server = self.server
        with server.lock:
            server.record.requests.append((self.path, dict(self.headers)))
            server.busy += 1
            server.record.most_at_once = max(server.record.most_at_once, server.busy)
        try:
            self.answer()
        finally:
            with server.lock:
                server.busy -= 1

    def answer(self):
        server = self.server
        fault = server.take_fault(self.path)
        if server.delay_s:
            time.sleep(server.delay_s)
        if server.token is not None and self.headers.get("Authorization") != f"Token {server.token}":
            return self.send_json(403, message=f"no access with {self.headers.get('Authorization')}", code=3004)
        if fault in ("429", "500", "403", "404", "413"):
            extra = {"Retry-After": "0"} if fault == "429" else {}
            return self.send_json(int(fault), message="misbehaving as asked", code=2000, extra=extra)
        if fault in ("html", "html-json"):
            return self.send_body(200, b"<!DOCTYPE html><html><body>Please log in</body></html>", "text/html")
        if fault == "redirect":
            return self.send_body(302, b"", "text/plain", {"Location": "https://elsewhere.example/"})
        if fault == "stall":
            server.ending.wait(server.stall_s)
            self.close_connection = True
            return None
        if fault == "reset":
            self.close_connection = True
            return None
        found = re.fullmatch(r"/v1/collection/([^/]+)/experiment/([^/]+)/channel/([^/]+)/?", self.path)
        if found:
            return self.send_channel(found.groups(), fault)
        found = re.fullmatch(r"/v1/collection/([^/]+)/experiment/([^/]+)/?", self.path)
        if found:
            return self.send_json(
                200, name=found[2], collection=found[1], coord_frame=f"{found[2]}_frame", num_hierarchy_levels=5
            )
        if re.fullmatch(r"/v1/coord/[^/]+/?", self.path):
            return self.send_json(200, name="frame", **FRAME, **VOXEL)
        found = re.fullmatch(r"/v1/cutout/([^/]+)/([^/]+)/([^/]+)/0/(\d+):(\d+)/(\d+):(\d+)/(\d+):(\d+)/(\?.*)?", self.path)
        if found:
            return self.send_cutout(found, fault)
        return self.send_json(404, message=f"no such route: {self.path}", code=4000)

    def send_channel(self, names, fault):
        if names not in CHANNELS:
            return self.send_json(404, message="channel not found", code=4000)
        dtype, kind = CHANNELS[names]
        return self.send_json(
            200, name=names[2], public=True, description="", experiment=names[1], default_time_sample=0, type=kind,
            base_resolution=0, datatype="uint16" if fault == "channel-dtype" else dtype, creator="fake", sources=[],
            downsample_status="NOT_DOWNSAMPLED", related=[], storage_type="spdb", bucket=None, cv_path=None,
        )  # fmt: skip

    def send_cutout(self, found, fault):
        names = found.groups()[:3]
        numbers = [int(number) for number in found.groups()[3:9]]
        box = tuple(zip(numbers[::2], numbers[1::2], strict=True))
        if self.headers.get("Accept") != "application/blosc":
            return self.send_json(400, message="expected Accept: application/blosc", code=1000)
        if names not in CHANNELS:
            return self.send_json(404, message="channel not found", code=4000)
        stops = (FRAME["x_stop"], FRAME["y_stop"], FRAME["z_stop"])
        if any(a >= b or b > stop for (a, b), stop in zip(box, stops, strict=True)):
            return self.send_json(400, message="out of the coordinate frame", code=1001)
        body = self.server.cutout(*names, box)
        shape = tuple(b - a for a, b in reversed(box))
        if fault == "corrupt":
            damaged = np.frombuffer(body, np.uint8).copy()
            damaged[16 : len(body) // 2] ^= 0xA5
            damaged[2] ^= 2  # what blosc could not compress it stores as it is; without this flag it is no longer valid
            body = damaged.tobytes()
        elif fault == "short":
            body = body[:-7]
        elif fault == "bomb":
            body = body[:4] + b"\xff\xff\xff\x7f" + body[8:]
        elif fault == "dtype":
            body = pack(np.zeros(shape, np.uint32))
        elif fault == "shape":
            body = pack(np.zeros((shape[0] + 1, *shape[1:]), CHANNELS[names][0]))
        elif fault == "labels":
            wrong = np.zeros(shape, CHANNELS[names][0])
            wrong[0, 0, :3] = (7, 2**40 if wrong.dtype.itemsize == 8 else 9, 3)
            body = pack(wrong)
        self.send_body(200, body, "application/blosc", fault=fault)
        if fault is None:
            with self.server.lock:
                self.server.record.answered[self.path] += 1
        return None

    def send_json(self, status, message=None, code=None, extra=None, **content):
        if message is not None:
            content = {"status": status, "code": code, "message": message}
        self.send_body(status, json.dumps(content).encode(), "application/json", extra or {})

    def send_body(self, status, body, kind, extra=None, fault=None):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (extra or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if fault in ("cut", "stall-mid"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if fault == "stall-mid":
                self.server.ending.wait(self.server.stall_s)
            self.close_connection = True
            return
        self.wfile.write(body)

    def log_message(self, format, *arguments):
        pass


@contextmanager
def serve(**options) -> Iterator[FakeBossDB]:
    """Serves while the block runs."""
    server = FakeBossDB(**options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ending.set()
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--labels", choices=("pattern", "table-1"), default="pattern")
    parser.add_argument("--fault", choices=FAULTS)
    parser.add_argument("--times", type=int, default=1, help="how many requests misbehave; -1 for all")
    parser.add_argument("--match", default="/cutout/", help="only requests whose path contains this")
    parser.add_argument("--token", help="refuse every other token")
    parser.add_argument("--delay-s", type=float, default=0.0, help="seconds before each answer")
    options = parser.parse_args()
    labels = make_table_1 if options.labels == "table-1" else make_labels
    server = FakeBossDB(options.port, labels, token=options.token, delay_s=options.delay_s)
    if options.fault:
        server.fail(options.fault, options.times, options.match)
    print(f"serving on {server.host}; Ctrl-C ends it", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print(f"{len(server.record.requests)} requests, at most {server.record.most_at_once} at once")


if __name__ == "__main__":
    main()
