"""neurotome view from a terminal: the address, Ctrl-C, and one message for what cannot work."""

import json
import re
import signal
import subprocess
import sys
from urllib.request import urlopen

import pytest

import neurotome
from conftest import run
from neurotome.errors import SettingsError
from neurotome.viewing import view, window
from test_view_scene import write_volume


@pytest.fixture
def files(tmp_path):
    image, labels, _, _ = write_volume(tmp_path)
    return image, labels


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_the_page_is_there_until_it_is_ended(files, tmp_path, sent, status):
    saved = tmp_path / "view.json"
    command = [sys.executable, "-m", "neurotome", "view", *map(str, files), "--no-open", "--save-state", str(saved)]
    # a test run started in the background ignores SIGINT, and its children would inherit that
    ctrl_c = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **ctrl_c)
    lines = []
    while "Ctrl-C" not in (lines[-1] if lines else ""):
        lines.append(process.stdout.readline())
        assert lines[-1], process.stderr.read()
    said = "".join(lines)
    address = re.search(r"http://127\.0\.0\.1:\d+/v/\w+/", said)[0]
    with urlopen(address) as answer:
        assert answer.status == 200
    assert "1 vessel, 2 cell" in said
    assert "3 x 2 x 1.5 um (z y x)" in said
    process.send_signal(sent)
    _, error = process.communicate(timeout=60)
    assert process.returncode == status, error
    assert "Traceback" not in error
    assert [layer["name"] for layer in json.loads(saved.read_text())["layers"]] == ["image", "labels"]


def end_at_once(_):
    raise KeyboardInterrupt


def test_a_saved_view_is_never_overwritten(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(view.time, "sleep", end_at_once)
    saved = tmp_path / "view.json"
    assert run("view", *files, "--no-open", "--save-state", saved) == 0
    content = saved.read_bytes()
    assert run("view", *files, "--no-open", "--save-state", saved) == 1
    assert re.search(r"view\.json: is there already", capsys.readouterr().err)
    assert saved.read_bytes() == content
    assert run("view", *files, "--no-open", "--from-state", saved) == 0
    assert run("view", files[0], "--no-open", "--from-state", saved) == 1
    assert "shows a layer 'labels'" in capsys.readouterr().err


@pytest.mark.parametrize("is_there", [True, False])
def test_a_browser_is_opened_where_there_is_a_display(files, monkeypatch, capsys, is_there):
    monkeypatch.setattr(view.time, "sleep", end_at_once)
    monkeypatch.setattr(view, "has_display", lambda: is_there)
    opened = []
    monkeypatch.setattr(view.webbrowser, "open", lambda url: opened.append(url) or True)
    neurotome.view(*files)
    said = capsys.readouterr().out
    assert [url in said for url in opened] == [True] * is_there
    assert ("ssh -L" in said) is not is_there


def test_a_missing_extra_is_named(files, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "neuroglancer", None)
    assert run("view", *files) == 1
    assert capsys.readouterr().err == (
        "neurotome: neuroglancer is not installed, and this needs it. Install it with: pip install 'neurotome[view]'\n"
    )
    monkeypatch.setattr(window, "has_display", lambda: True)
    monkeypatch.setitem(sys.modules, "napari", None)
    assert run("view", *files, "--napari") == 1
    assert "pip install 'neurotome[napari]'" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="there is always a display")
def test_napari_without_a_display_is_one_message(files, monkeypatch, capsys):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert run("view", *files, "--napari") == 1
    said = capsys.readouterr().err
    assert re.match(r"neurotome: napari opens a window, and no display was found.*Leave out --napari", said)
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"port": 70000}, r"port is 70000; expected 1 to 65535"),
        ({"voxel_size_um": (1.0, 2.0)}, r"voxel_size_um is 1\.0 2\.0; expected three edges"),
        ({"napari": True, "save_state": "x.json"}, r"save_state are of the page in a browser"),
    ],
)
def test_settings_that_cannot_work(files, settings, message):
    with pytest.raises(SettingsError, match=message):
        neurotome.view(*files, **settings)
