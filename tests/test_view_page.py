"""The page: what is served is what is in the files, to this machine alone; what is kept of a view."""

import io
import json
import socket
import zlib
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import psutil
import pytest

from chromium import CHROMIUM, open_browser
from neurotome.classes import OKABE_ITO
from neurotome.errors import RunError, SettingsError
from neurotome.io import write_image, write_labels
from neurotome.viewing import scene as scenes
from neurotome.viewing.page import open_page
from neurotome.viewing.scene import OPACITY, open_scene
from neurotome.viewing.state import read_state, write_state
from neurotome.volume import Volume
from test_view_scene import CLASSES, write_volume


def find_layer(page, name):
    return next(layer for layer in page.read_state()["layers"] if layer["name"] == name)


def find_key(page, name):
    """Returns the key of a layer's volume on its server, for addresses such as info/KEY."""
    source = find_layer(page, name)["source"]
    return (source[0] if isinstance(source, list) else source)["url"].removeprefix("python://volume/")


def fetch(page, path):
    with urlopen(f"http://127.0.0.1:{page.port}/{path}") as answer:
        return answer.read()


def fetch_voxels(page, name, start, stop, step=(1, 1, 1)):
    place = "/".join(",".join(map(str, numbers)) for numbers in (step, start, stop))
    return np.load(io.BytesIO(zlib.decompress(fetch(page, f"neuroglancer/npz/{find_key(page, name)}/{place}"))))


@pytest.mark.parametrize("held", [0, 1 << 20])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_voxels_sizes_and_types_are_those_of_the_files(tmp_path, monkeypatch, held, dtype):
    monkeypatch.setattr(scenes, "HELD_BYTES", held)
    image, labels, grey, ids = write_volume(tmp_path, "zarr", dtype=dtype)
    with open_page(open_scene(image, labels)) as page:
        for name, voxels, kind in (("image", grey, "image"), ("labels", ids, "segmentation")):
            np.testing.assert_array_equal(fetch_voxels(page, name, (0, 0, 0), (3, 5, 7)), voxels)
            np.testing.assert_array_equal(fetch_voxels(page, name, (1, 2, 3), (2, 5, 6)), voxels[1:2, 2:5, 3:6])
            info = json.loads(fetch(page, f"neuroglancer/info/{find_key(page, name)}"))
            assert info["shape"] == [3, 5, 7]
            assert info["dataType"] == voxels.dtype.name
            assert info["volumeType"] == kind
            assert list(map(int, info["voxelOffset"])) == [0, 0, 0]
            space = info["coordinateSpace"]
            assert list(space) == ["z", "y", "x"]
            assert [scale for scale, _ in space.values()] == pytest.approx([3e-6, 2e-6, 1.5e-6])
            assert {unit for _, unit in space.values()} == {"m"}
        coarse = fetch_voxels(page, "labels", (0, 0, 0), (2, 3, 4), (2, 2, 2))
        np.testing.assert_array_equal(coarse, ids[::2, ::2, ::2])  # ids are never averaged


def test_layers_have_the_colours_and_names_of_the_classes(tmp_path):
    image, labels, _, _ = write_volume(tmp_path)
    scene = open_scene(image, labels, [labels])
    with open_page(scene) as page:
        layer = find_layer(page, "labels")
        assert layer["segmentColors"] == {str(i): "#{:02x}{:02x}{:02x}".format(*OKABE_ITO[i - 1]) for i in (1, 2)}
        assert layer["segments"] == ["1", "2"]
        assert layer["selectedAlpha"] == OPACITY
        assert find_layer(page, "found")["visible"] is False
        assert find_layer(page, "image")["shaderControls"]["normalized"]["range"] == list(scene.contrast)
        path = layer["source"][1]["url"].removeprefix(f"precomputed://http://127.0.0.1:{page.port}/")
        names = json.loads(fetch(page, f"{path}/info"))["inline"]
        assert names["ids"] == ["1", "2"]
        assert names["properties"][0]["values"] == ["vessel", "cell"]


def test_signed_labels_are_served_too(tmp_path):
    image, _, _, ids = write_volume(tmp_path)
    np.save(tmp_path / "objects.npy", ids.astype(np.int32) * 1000)
    with (
        pytest.warns(UserWarning, match="do not say"),
        open_page(open_scene(image, tmp_path / "objects.npy")) as page,
    ):
        voxels = fetch_voxels(page, "labels", (0, 0, 0), (3, 5, 7))
    assert voxels.dtype == np.uint32
    np.testing.assert_array_equal(voxels, ids.astype(np.uint32) * 1000)


def test_surfaces_lie_where_the_labels_do(tmp_path):
    ids = np.zeros((8, 10, 12), np.uint8)
    ids[2:5, 3:7, 4:9] = 2
    like = Volume(ids, "v", (3.0, 2.0, 1.5))
    write_image(tmp_path / "image.tif", np.arange(960).reshape(ids.shape).astype(np.uint16), like)
    write_labels(tmp_path / "labels.tif", ids, CLASSES, like)
    with open_page(open_scene(tmp_path / "image.tif", tmp_path / "labels.tif")) as page:
        mesh = fetch(page, f"neuroglancer/mesh/{find_key(page, 'labels')}/2")
    corners = np.frombuffer(mesh, np.float32, 3 * int.from_bytes(mesh[:4], "little"), 4).reshape(-1, 3) * 1e6
    np.testing.assert_allclose(corners.min(0), np.array([1.5, 2.5, 3.5]) * (3, 2, 1.5), rtol=1e-5)  # between voxels
    np.testing.assert_allclose(corners.max(0), np.array([4.5, 6.5, 8.5]) * (3, 2, 1.5), rtol=1e-5)


def test_the_page_is_for_this_machine_and_who_knows_its_token(tmp_path):
    image, labels, _, _ = write_volume(tmp_path)
    with open_page(open_scene(image, labels)) as page:
        listening = [c for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        assert [c.laddr.ip for c in listening if c.laddr.port == page.port] == ["127.0.0.1"]
        token = page.url.rstrip("/").rpartition("/")[2]
        assert b"main" in fetch(page, f"v/{token}/")
        for path in (f"v/{token[::-1]}/", f"neuroglancer/info/{token[::-1]}.x", "names/x/0/info", f"credentials/{token}"):
            with pytest.raises(HTTPError, match=r"40[45]"):
                fetch(page, path)
    with pytest.raises(OSError, match=r"refused|reset"):
        socket.create_connection(("127.0.0.1", page.port), 5)


def test_a_port_in_use_is_one_message(tmp_path):
    image, _, _, _ = write_volume(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(SettingsError, match=rf"port {port} is used by another program.*--port"),
            open_page(open_scene(image), port=port),
        ):
            pass


def test_what_cannot_be_read_is_said_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scenes, "HELD_BYTES", 0)
    image, labels, _, _ = write_volume(tmp_path, "zarr")
    scene = open_scene(image, labels)
    for chunk in (path for path in image.rglob("*") if path.is_file() and path.suffix != ".json"):
        chunk.write_bytes(chunk.read_bytes()[:-3])
    with open_page(scene) as page:
        for _ in range(2):
            with pytest.raises(HTTPError, match="400"):
                fetch_voxels(page, "image", (0, 0, 0), (3, 5, 7))
    said = capsys.readouterr().err
    assert said.count("neurotome: note:") == len(said.splitlines()) == 1
    assert "image.zarr" in said


def test_a_view_is_kept_and_comes_back(tmp_path):
    image, labels, _, _ = write_volume(tmp_path)
    scene = open_scene(image, labels, [labels])
    with open_page(scene) as page:
        with page.viewer.txn() as state:
            state.position = [1.5, 2.5, 0.5]
            state.layout = "xz"
            state.layers["found"].visible = True
            state.layers["labels"].selected_alpha = 0.8
            state.layers["image"].shader = "void main() { }"
        shown = page.read_state()
    points = {"name": "here", "type": "annotation", "source": "local://annotations", "annotations": [{"point": [1, 2, 0]}]}
    write_state(tmp_path / "view.json", {**shown, "layers": [*shown["layers"], points]})
    text = (tmp_path / "view.json").read_text()
    assert str(tmp_path) not in text
    assert "python://" not in text
    assert "void main" not in text
    with open_page(scene, state=read_state(tmp_path / "view.json")) as page:
        again = page.read_state()
        np.testing.assert_array_equal(fetch_voxels(page, "found", (0, 0, 0), (1, 5, 7)), scene.layers[0].data[:1])
    assert again["position"] == [1.5, 2.5, 0.5]
    assert again["layout"] == "xz"
    by_name = {layer["name"]: layer for layer in again["layers"]}
    assert by_name["found"].get("visible", True)
    assert by_name["labels"]["selectedAlpha"] == 0.8
    assert "emitGrayscale" in by_name["image"]["shader"]
    assert by_name["here"]["annotations"] == points["annotations"]
    with pytest.raises(RunError, match=r"view\.json: has appeared since"):
        write_state(tmp_path / "view.json", shown)
    assert (tmp_path / "view.json").read_text() == text


def test_views_of_other_files_and_foreign_ones_are_refused(tmp_path):
    image, labels, _, _ = write_volume(tmp_path)
    with open_page(open_scene(image, labels)) as page:
        write_state(tmp_path / "view.json", page.read_state())
    saved = read_state(tmp_path / "view.json")
    bad = [
        (saved, open_scene(image), r"shows a layer 'labels', and these files are image;"),
        ({**saved, "layers": [{"name": "labels"}]}, open_scene(image, labels), r"shows a layer 'labels'"),
        ({**saved, "position": "here"}, open_scene(image, labels), r"says position: 'here'"),
    ]
    for state, scene, message in bad:
        with pytest.raises(RunError, match=message), open_page(scene, state=state):
            pass
    for content in ("{}", "[]", json.dumps({**saved, "format": "x"}), json.dumps({**saved, "layers": [1]})):
        (tmp_path / "foreign.json").write_text(content)
        with pytest.raises(RunError, match=r"foreign\.json.*--save-state"):
            read_state(tmp_path / "foreign.json")
    with pytest.raises(RunError, match=r"gone\.json: no such file"):
        read_state(tmp_path / "gone.json")


def test_a_view_brings_no_address_and_no_program(tmp_path):
    image, labels, _, _ = write_volume(tmp_path)
    with open_page(open_scene(image, labels)) as page:
        write_state(tmp_path / "view.json", page.read_state())
    saved = read_state(tmp_path / "view.json")
    for layer in saved["layers"]:
        layer |= {"source": "precomputed://https://example.org", "shader": "void main() {}"}
    saved["layers"].append(
        {"name": "points", "type": "annotation", "source": "precomputed://https://example.org", "shader": ""}
    )
    with open_page(open_scene(image, labels), state=saved) as page:
        text = json.dumps(page.read_state())
    assert "example.org" not in text
    assert "void main() {}" not in text


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_shows_image_and_classes(tmp_path):
    """Without any name that is found: what the page needs is here. Orange over black is the first class at its opacity."""
    ids = np.zeros((1, 60, 80), np.uint8)
    ids[0, :, :20], ids[0, :, 40:60] = 1, 2
    grey = np.zeros((1, 60, 80), np.uint8)
    grey[0, 30:] = 200
    np.save(tmp_path / "image.npy", grey)
    write_labels(tmp_path / "labels.tif", ids, CLASSES, Volume(grey, "v", (1.0, 1.0, 1.0)))

    def count(picture, grey_value, colour):
        wanted = (1 - OPACITY) * grey_value + OPACITY * np.array(colour)
        return int((np.abs(picture.astype(float) - wanted).max(-1) <= 3).sum())

    def counts(picture):
        return [count(picture, value, colour) for value in (0, 255) for colour in OKABE_ITO[:2]]

    with (
        open_page(open_scene(tmp_path / "image.npy", tmp_path / "labels.tif")) as page,
        open_browser(tmp_path / "browser", page.url) as browser,
    ):
        picture = browser.wait_for(lambda picture: min(counts(picture)) > 500)
        text = browser.evaluate("document.body.innerText")
    assert min(counts(picture)) > 500
    assert browser.said == []
    assert all(address.startswith(f"http://127.0.0.1:{page.port}/") for address in browser.asked)
    assert "vessel" in text
    assert "cell" in text
