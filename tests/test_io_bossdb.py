"""BossDB: the protocol is spoken as it is written down, and every fault ends well or with one clear message."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from neurotome.errors import FetchError, SettingsError
from neurotome.io import bossdb
from neurotome.io.bossdb import LONGEST_RETRY_AFTER_S, BossDB, Box, Connection, parse_uri
from tests.fake_bossdb import make_image, make_labels, serve

IMAGE = "bossdb://prasad/prasad2020/image"
LABELS = "bossdb://prasad/prasad_analysis/pixel_labels"
BOX = Box((110, 900, 4600), (114, 932, 4640))


@pytest.fixture
def server():
    with serve(stall_s=5) as running:
        yield running


def connect(server, token="public", **settings):
    settings = {"timeout_s": 20, "backoff_s": 0.01, "attempts": 3, **settings}
    return BossDB(Connection(host=server.host, protocol="http", **settings), token)


def expected_labels(box=BOX):
    z, y, x = np.ogrid[tuple(slice(a, b) for a, b in zip(*box, strict=True))]
    return make_labels(z, y, x)


def read_labels(client, box=BOX):
    return client.read_cutout(client.open_channel(LABELS), box)


def test_voxels_axes_and_protocol(server):
    z, y, x = np.ogrid[110:114, 900:932, 4600:4640]
    with connect(server, token="secret") as client:
        image = client.open_channel(IMAGE)
        grey = client.read_cutout(image, BOX)
        labels = read_labels(client)
    assert (image.dtype, image.uri) == (np.uint8, IMAGE)
    np.testing.assert_array_equal(grey, make_image(z, y, x))
    np.testing.assert_array_equal(labels, make_labels(z, y, x))
    assert labels.dtype == np.uint64
    paths = [path for path, _ in server.record.requests]
    assert paths[0] == "/v1/collection/prasad/experiment/prasad2020/channel/image"
    assert paths[1] == "/v1/cutout/prasad/prasad2020/image/0/4600:4640/900:932/110:114/?access-mode=no-cache"
    accepted = [headers["Accept"] for _, headers in server.record.requests]
    assert accepted == ["application/json", "application/blosc"] * 2
    assert {headers["Authorization"] for _, headers in server.record.requests} == {"Token secret"}


def test_frame(server):
    with connect(server) as client:
        bounds, voxel_size_um = client.read_frame(IMAGE)
    assert bounds == Box((0, 0, 0), (720, 2048, 6144))
    assert voxel_size_um == pytest.approx((2.0, 0.001, 0.001))


@pytest.mark.parametrize("kind", ["429", "500", "stall", "stall-mid", "cut", "reset", "corrupt", "short"])
def test_what_passes_is_asked_again(server, kind):
    server.fail(kind, times=2)
    with connect(server, timeout_s=1.0 if "stall" in kind else 20) as client:
        np.testing.assert_array_equal(read_labels(client), expected_labels())
        assert client.retries == 2


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("429", r"answered 429 \(misbehaving as asked\); asked 3 times .* the same command goes on"),
        ("500", "answered 500"),
        ("stall", r"no answer for 0\.4 s; asked 3 times"),
        ("stall-mid", r"no answer for 0\.4 s"),
        ("cut", "the connection failed"),
        ("reset", "the connection failed"),
        ("corrupt", "the answer is damaged"),
        ("short", "damaged or cut short"),
    ],
)
def test_what_does_not_pass_ends(server, kind, says):
    server.fail(kind, times=-1)
    with connect(server, timeout_s=0.4 if "stall" in kind else 20) as client, pytest.raises(FetchError, match=says):
        read_labels(client)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("403", "answered 403 .*set BOSSDB_TOKEN"),
        ("404", "answered 404 .*Check the address"),
        ("413", "answered 413 .*smaller blocks.*--request-mvoxel"),
        ("html", "web page.*--host"),
        ("redirect", r"moved to https://elsewhere\.example/"),
        ("dtype", "4 bytes per voxel; expected 40960 for shape .*uint64"),
        ("shape", "another shape|10 bytes per voxel"),
        ("bomb", "sent 2147483647 bytes"),
    ],
)
def test_what_lasts_is_not_asked_again(server, kind, says):
    server.fail(kind, times=-1)
    with connect(server) as client, pytest.raises(FetchError, match=says):
        read_labels(client)
    assert sum("/cutout/" in path for path, _ in server.record.requests) == 1


def test_a_body_longer_than_it_can_be_is_not_read_to_its_end(server, monkeypatch):
    monkeypatch.setattr(server, "cutout", lambda *_: bytes(10_000_000))
    with connect(server) as client, pytest.raises(FetchError, match="longer than the 40976 bytes"):
        read_labels(client)


@pytest.mark.parametrize(
    ("kind", "says"), [("html-json", "web page"), ("404", "Check the address"), ("channel-dtype", "datatype")]
)
def test_channel_faults(server, kind, says):
    server.fail(kind, match="/channel/")
    with connect(server) as client:
        if kind == "channel-dtype":
            assert client.open_channel(IMAGE).dtype == np.uint16  # whether that will do is for the caller to say
            return
        with pytest.raises(FetchError, match=says):
            client.open_channel(IMAGE)


def test_json_of_another_kind(server, monkeypatch):
    for body, says in ((b"[1]", "no JSON object"), (b"{}", "datatype None"), (b"\xff\xfe", "no JSON object")):
        monkeypatch.setattr(
            server.RequestHandlerClass,
            "send_channel",
            lambda self, *_, body=body: self.send_body(200, body, "application/json"),
        )
        with connect(server) as client, pytest.raises(FetchError, match=says):
            client.open_channel(IMAGE)


def test_the_token_is_never_shown(server, capsys):
    server.token = "right"
    with connect(server, token="S3CRET-token") as client, pytest.raises(FetchError) as found:
        client.open_channel(IMAGE)  # the server repeats the token in its answer
    shown = str(found.value) + repr(found.value) + "".join(capsys.readouterr()) + repr(client.__dict__["connection"])
    assert "no access" in shown
    assert "S3CRET" not in shown
    with pytest.raises(SettingsError, match="BOSSDB_TOKEN") as refused:
        connect(server, token="S3CRET\nX: y")
    assert "S3CRET" not in str(refused.value)


def test_retry_after_is_heeded(server):
    assert bossdb._read_retry_after("7") == 7
    assert bossdb._read_retry_after("999999") == LONGEST_RETRY_AFTER_S
    assert bossdb._read_retry_after("soon") == 0
    assert bossdb._read_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    future = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    assert 90 < bossdb._read_retry_after(future) <= 100


def test_waits_grow_and_differ(server, monkeypatch):
    server.fail("500", times=-1, match="/")
    waits = []
    with connect(server, attempts=6, backoff_s=1.0) as client:
        monkeypatch.setattr(client._stop, "wait", lambda seconds: bool(waits.append(seconds)))
        with pytest.raises(FetchError, match="asked 6 times"):
            client.open_channel(IMAGE)
    assert all(0.5 * 2**i <= wait <= 1.5 * 2**i for i, wait in enumerate(waits))
    assert len(waits) == 5


def test_notes_are_few(server, capsys):
    server.fail("500", times=-1)
    with connect(server, attempts=4) as client, pytest.raises(FetchError):
        read_labels(client)
    assert client.retries == 3
    assert capsys.readouterr().err.count("neurotome: note: bossdb://prasad/prasad_analysis/pixel_labels 110:114") == 1


def test_a_large_box_is_asked_for_in_parts(server):
    with connect(server, request_mvoxel=0.001) as client:
        np.testing.assert_array_equal(read_labels(client), expected_labels())
    assert sum("/cutout/" in path for path, _ in server.record.requests) == 8


def test_stop_ends_waiting(server):
    server.fail("500", times=-1)
    client = connect(server, backoff_s=100.0, attempts=5)
    threading.Timer(0.2, client.stop).start()
    began = time.monotonic()
    with pytest.raises(bossdb.StoppedError):
        read_labels(client)
    assert time.monotonic() - began < 10
    client.__exit__()


def test_an_answer_that_drips_is_given_up(server, monkeypatch):
    def drip(handler, found, fault):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(100):
            if server.ending.wait(0.05):
                return
            handler.wfile.write(b"x")

    monkeypatch.setattr(server.RequestHandlerClass, "send_cutout", drip)
    with connect(server, attempts=1, timeout_s=0.4) as client, pytest.raises(FetchError, match="stalled after"):
        read_labels(client)


@pytest.mark.parametrize(
    "settings",
    [
        {"host": "http://localhost"},
        {"host": "a/b"},
        {"host": ""},
        {"workers": 0},
        {"workers": 1000},
        {"attempts": 0},
        {"timeout_s": 0.0},
        {"backoff_s": -1.0},
        {"request_mvoxel": 0.0},
        {"timeout_s": float("nan")},
    ],
)
def test_wrong_settings(settings):
    with pytest.raises(SettingsError, match=r"expected|at least|at most|above"):
        BossDB(Connection(**settings))


@pytest.mark.parametrize("uri", ["bossdb://a/b", "bossdb:a/b/c", "https://a/b/c", "bossdb://a/b/c/d", "bossdb://a/../c"])
def test_wrong_addresses(uri):
    with pytest.raises(SettingsError, match="expected bossdb://collection/experiment/channel"):
        parse_uri(uri)


def test_no_server_at_all():
    with serve() as gone:
        pass
    with connect(gone, attempts=2) as client, pytest.raises(FetchError, match=r"the connection failed .* Check the network"):
        client.open_channel(IMAGE)


def test_the_same_bytes_as_through_the_official_client(server):
    """BossDB's own client, against the same server, proves that both speak the same protocol."""
    pytest.importorskip("intern", reason="intern, BossDB's own client, is not installed (pip install intern)")
    from intern.remote.boss import BossRemote

    remote = BossRemote({"protocol": "http", "host": server.host, "token": "public"})
    (z0, y0, x0), (z1, y1, x1) = BOX
    with connect(server) as client:
        for uri in (IMAGE, LABELS):
            collection, experiment, name = parse_uri(uri)
            channel = remote.get_channel(name, collection, experiment)
            theirs = remote.get_cutout(channel, 0, [x0, x1], [y0, y1], [z0, z1])
            ours = client.read_cutout(client.open_channel(uri), BOX)
            assert theirs.dtype == ours.dtype
            assert theirs.tobytes() == ours.tobytes()
    cutouts = [path for path, _ in server.record.requests if "/cutout/" in path]
    assert len(cutouts) == 4
    assert cutouts[0::2] == cutouts[1::2]
