"""The panels in napari, whose pytest plugins, Qt and warnings stay in a process of their own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_the_panels_in_napari(tmp_path: Path) -> None:
    if any(importlib.util.find_spec(name) is None for name in ("napari", "qtpy")):
        pytest.skip("napari is not installed beside the tests (extra: napari)")
    environment = {**os.environ, "QT_QPA_PLATFORM": "offscreen", "NAPARI_CONFIG": str(tmp_path / "settings.yaml")}
    plugins = [f"-pno:{name}" for name in ("napari", "napari-plugin-engine", "npe2", "xdist", "cacheprovider")]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--noconftest",
        *plugins,
        "-W",
        "ignore",
        f"--basetemp={tmp_path / 'session'}",
    ]
    command.append(str(Path(__file__).with_name("napari_session.py")))
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
