"""What the command line says where nothing needs a model: configs, encodings, pipes, stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import run
from neurotome.documents import CONFIGS, find_config
from neurotome.errors import SettingsError

HOSTILE = {
    "a date that does not exist": "train: {seed: 2021-02-30}",
    "a date": "train: {max_time: 2021-02-03}",
    "a tag": "train: !!python/object/apply:os.system ['echo']",
    "an unknown tag": "train: !thing {a: 1}",
    "a key that is a number": "train: {1: 2}",
    "a first key that is a number": "3: {a: 1}",
    "a key that is a list": "? [a, b]\n: 1",
    "a key that is null": "train: {~: 1}",
    "a key twice": "train: {seed: 1, seed: 2}",
    "thousands of digits": f"train: {{seed: {'9' * 6000}}}",
    "thousands deep": "train: " + "[" * 5000 + "]" * 5000,
    "a list": "[1, 2]",
    "nothing": "",
    "text": "train",
    "binary": "train: !!binary aGFsbG8=",
    "a set": "train: !!set {a, b}",
    "not closed": "train: {seed: 1",
    "a section that is a number": "train: 3",
    "a section that is a list": "train: [1, 2]",
    "settings for a value": "train: {seed: {a: 1}}",
    "a list for a value": "train: {seed: [1, 2]}",
    "a value of another type": "train: {epochs: many}",
    "a number beyond all bounds": "train: {epochs: 1e400}",
    "a section that is empty": "model:",
    "an alias to itself": "train: &a [*a]",
    "no UTF-8": b"train: {device: \xff}",
    "a NUL": b"train: \x00",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_configs_get_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    content = HOSTILE[case]
    config = tmp_path / "c.yaml"
    config.write_bytes(content if isinstance(content, bytes) else content.encode())
    status = run("train", tmp_path / "nowhere", "--out", tmp_path / "out", "--config", config)
    error = capsys.readouterr().err
    assert status in (1, 2)
    assert "Traceback" not in error
    assert len(error) < 4000
    assert "nowhere" not in error  # the config is what is refused
    if status == 1:
        assert error.startswith("neurotome: ")
        assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_configs_that_come_with_the_package_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("fine_tune", "fine_tune.yaml", "configs/fine_tune.yaml"):
        assert find_config(name) == CONFIGS / "fine_tune.yaml"
    assert find_config("founding_report/as_reported") == CONFIGS / "founding_report" / "as_reported.yaml"
    Path("fine_tune").write_text("train: {seed: 1}")
    assert find_config("fine_tune") == Path("fine_tune")  # one's own file comes first
    with pytest.raises(
        SettingsError, match=r"fine_tun: no such file, and unknown built-in config.*Did you mean 'fine_tune'"
    ):
        find_config("fine_tun")


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "", "--out", "x"],
        ["train", "phantom", "--out", ""],
        ["train", "phantom", "--out="],
        ["predict", "", "in.png", "out.png"],
        ["train", "phantom", "--config", ""],
    ],
)
def test_empty_texts_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 1
    assert "found an empty text after" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_config_option_without_a_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "phantom", "--config") == 1
    assert "--config: found nothing after it" in capsys.readouterr().err


def call(*arguments: str | bytes, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "neurotome", *arguments]
    return subprocess.run(command, capture_output=True, env={**os.environ, **(environment or {})}, check=False)


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "cp932"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}], ids=str)
def test_letters_that_a_terminal_lacks_are_replaced(environment: dict[str, str]) -> None:
    done = call("describe", "Gehörn-脳-\udcff", environment=environment)
    assert done.returncode == 1
    assert done.stderr.startswith(b"neurotome: Geh")
    assert b"does not exist" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_reader_that_has_read_enough_ends_the_command_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    program = "from neurotome import cli; cli.make_app().command(lambda: ['a', 'b'], name='list'); cli.main(['list'])"
    done = subprocess.run([sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.4, 0.8, 1.2, 1.6, 2.0])
@pytest.mark.parametrize("times", [1, 2])
def test_a_stop_while_modules_load_is_one_line(tmp_path: Path, seconds: float, times: int) -> None:
    image = tmp_path / "a.npy"
    import numpy as np

    np.save(image, np.arange(64, dtype=np.uint8).reshape(8, 8))
    labels = tmp_path / "b.png"
    command = [sys.executable, "-m", "neurotome", "predict", "microct-base-3", str(image), str(labels)]
    reset = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # a background test run ignores it
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **reset)  # type: ignore[call-overload]
    time.sleep(seconds)
    if labels.exists():
        process.communicate(timeout=60)
        pytest.skip(f"the command was done within {seconds} s")
    for _ in range(times):
        process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert len(error.splitlines()) == 1
    assert error.startswith("neurotome: stopped.")
