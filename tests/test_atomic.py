from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from neurotome.atomic import (
    atomic_folder,
    atomic_path,
    hold_folder,
    hold_output,
    sweep_partials,
    take_turns,
    write_bytes,
    write_json,
    write_json_once,
    write_text,
)
from neurotome.errors import BusyError, RunError


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_are_written_and_replaced(tmp_path: Path) -> None:
    target = tmp_path / "new" / "deep" / "a.txt"
    write_text(target, "vor")
    write_text(target, "Ångström\n")
    assert target.read_bytes() == "Ångström\n".encode()
    write_bytes(target, b"\x00\xff")
    assert target.read_bytes() == b"\x00\xff"
    write_json(target.with_name("b.json"), {"f1": None, "x": [1, 0.5]})
    assert json.loads(target.with_name("b.json").read_text()) == {"f1": None, "x": [1, 0.5]}
    assert list_names(target.parent) == ["a.txt", "b.json"]


def test_the_temporary_is_a_hidden_neighbour_with_the_same_suffix(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "labels.tif") as temporary:
        temporary.write_bytes(b"x")
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert temporary.suffix == ".tif"
        assert not (tmp_path / "labels.tif").exists()


def test_an_exception_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def write_half() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert target.read_text() == "old"
    assert list_names(tmp_path) == ["a.txt"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        write_text(target, "new")
    assert target.read_text() == "old"
    assert list_names(tmp_path) == ["a.txt"]


def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    program = (
        "import os, sys, pathlib; from neurotome.atomic import atomic_path\n"
        "with atomic_path(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, target], check=False).returncode == 9
    assert target.read_text() == "old"
    write_text(target, "new")
    assert target.read_text() == "new"


def test_nan_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    target = tmp_path / "scores.json"
    write_json(target, {"f1": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(target, {"f1": float("nan")})
    assert json.loads(target.read_text()) == {"f1": 1.0}
    assert list_names(tmp_path) == ["scores.json"]


def test_a_folder_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from neurotome.atomic import hold_folder\n"
        "with hold_folder(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="another process is working"), hold_folder(tmp_path / "run"):
            pass
        other.kill()
    with hold_folder(tmp_path / "run"):
        pass


def test_files_get_the_mode_of_the_umask_whoever_writes_them(tmp_path: Path) -> None:
    program = (
        "import os, sys; os.umask(0o027)\n"
        "from pathlib import Path; import numpy; from safetensors.numpy import save_file\n"
        "from neurotome.atomic import atomic_path, write_text\n"
        "with atomic_path(Path(sys.argv[1])) as temporary: save_file({'a': numpy.zeros(3)}, temporary)\n"
        "write_text(Path(sys.argv[2]), 'x')\n"
    )
    paths = [tmp_path / "model.safetensors", tmp_path / "a.txt"]
    subprocess.run([sys.executable, "-c", program, *paths], check=True)
    assert [path.stat().st_mode & 0o777 for path in paths] == [0o640, 0o640]


def test_names_of_any_length_and_texts_that_are_no_unicode_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / ("ä" * 120 + ".txt")
    write_text(target, "scan \udcff.png")
    assert target.read_bytes() == b"scan ?.png"


@pytest.mark.parametrize(
    "raised",
    [
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError("1000000 requested and 204544 written"),  # numpy's tofile
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 640 vs 534"),
        RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
        ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=repr,
)
def test_every_writers_word_for_a_full_disk_names_the_file(tmp_path: Path, raised: Exception) -> None:
    with pytest.raises(OSError, match="No space left on device") as caught, atomic_path(tmp_path / "a.ckpt"):
        raise raised
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "a.ckpt"))
    assert list_names(tmp_path) == []


def test_an_error_names_the_file_and_not_its_temporary_name(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with pytest.raises(FileNotFoundError) as caught, atomic_path(target):
        pass  # a writer that wrote nothing
    assert caught.value.filename == str(target)


def test_a_folder_is_replaced_whole_and_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    target = tmp_path / "a.zarr"
    for content in ("old", "new"):
        with atomic_folder(target) as temporary:
            (temporary / "c").mkdir(parents=True)
            (temporary / "c/0").write_text(content)
            assert not target.exists() or (target / "c/0").read_text() == "old"
        assert list_names(tmp_path) == ["a.zarr"]
    assert (target / "c/0").read_text() == "new"
    (tmp_path / ".a.new.1.ab.partial.zarr/c").mkdir(parents=True)
    (tmp_path / ".a.new.1.ab.partial.zarr/c/.0.1.ab.partial").touch()
    (tmp_path / ".old.partial").mkdir()
    (tmp_path / ".holiday.partial.mp4").write_text("somebody's own")
    sweep_partials(tmp_path)
    assert sorted(list_names(tmp_path)) == [".holiday.partial.mp4", ".old.partial", "a.zarr"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such hold")
@pytest.mark.parametrize(
    ("running", "wanted", "free"),
    [
        ((1, 1), (1, 1), False),
        ((1, 1), (2, 3), False),
        ((2, 3), (1, 1), False),
        ((2, 3), (2, 3), False),
        ((2, 3), (1, 3), True),
        ((2, 3), (2, 13), False),
        ((1, 11), (2, 11), True),
    ],
)
def test_parts_of_one_division_go_together_and_nothing_else(tmp_path, running, wanted, free):
    for _ in range(2):  # a hold of a job that has ended is none
        with hold_output(tmp_path, (1, 5)):
            pass
    with hold_output(tmp_path / "out", running):
        if free:
            with hold_output(tmp_path / "out", wanted):
                pass
        else:
            part = f"process {os.getpid()} on .*, part {running[0]} of {running[1]}. Wait"
            with pytest.raises(BusyError, match=part), hold_output(tmp_path / "out", wanted):
                pass
    with hold_output(tmp_path / "out", wanted):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such hold")
def test_a_hold_ends_with_its_process(tmp_path):
    script = "import sys; from pathlib import Path; from neurotome.atomic import hold_output\n"
    script += "with hold_output(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline().strip() == b"held"
        with pytest.raises(BusyError, match=f"process {other.pid} on"), hold_output(tmp_path):
            pass
        other.kill()
    with hold_output(tmp_path):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such hold")
def test_where_nothing_can_be_locked_it_is_said(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    for hold in (hold_output, hold_folder):
        with pytest.warns(UserWarning, match="no second command"), hold(tmp_path):
            pass
    with pytest.warns(UserWarning, match="no second command"), take_turns(tmp_path / "turns.lock"):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such hold")
def test_processes_take_turns(tmp_path):
    script = "import sys; from pathlib import Path; from neurotome.atomic import take_turns\n"
    script += "for _ in range(20):\n with take_turns(Path(sys.argv[1]) / 'turns.lock'):\n"
    script += "  file = Path(sys.argv[1]) / 'count'; count = int(file.read_text()); file.write_text(str(count + 1))"
    (tmp_path / "count").write_text("0")
    command = [sys.executable, "-c", script, str(tmp_path)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(30) for process in processes] == [0, 0]
    assert (tmp_path / "count").read_text() == "40"


@pytest.mark.parametrize("links", [True, False])
def test_a_file_is_written_once(tmp_path, monkeypatch, links):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    assert write_json_once(tmp_path / "new" / "a.json", {"a": [1, 2]})
    assert not write_json_once(tmp_path / "new" / "a.json", {"a": 2})
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == {"a": [1, 2]}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]
