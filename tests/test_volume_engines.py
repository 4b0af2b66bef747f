"""A volume on dask whose scheduler is killed: the same command ends with the same voxels, and little is done twice."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from neurotome.errors import RunError
from neurotome.inference.predict import predict
from neurotome.inference.predict_settings import PredictSettings
from neurotome.inference.volume_job import LEDGER
from neurotome.inference.volume_settings import VolumeSettings
from tests import engine_tasks
from tests.test_volumes import make_grey, make_model, read

SHAPE = (20, 64, 96)
CPU = PredictSettings(device="cpu", tile=32)
PLAIN = VolumeSettings(back_end="torch", tolerance=0, threads=1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a model, an image, and the labels of the whole image from a plain run."""
    folder = tmp_path_factory.mktemp("engines")
    make_model(folder / "model")
    image = zarr.create_array(folder / "image.zarr", shape=SHAPE, chunks=(4, 32, 32), dtype="uint8")
    image[:] = make_grey(SHAPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neurotome.inference.volume_plan.measure_bytes_per_pixel", lambda predictor: 2000.0)
        predict(folder / "model", folder / "image.zarr", folder / "whole.zarr", settings=CPU, options=PLAIN)
        yield folder


def read_lines(out: Path) -> list[dict]:
    files = (out / LEDGER).glob("*.jsonl")
    return [json.loads(line) for file in files for line in file.read_text().splitlines() if line.endswith("}")]


@contextlib.contextmanager
def kill_after(out: Path, lines: int, process: subprocess.Popen[str]) -> Iterator[None]:
    """Kills a process as soon as so many blocks are written down."""

    def watch() -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until and len(read_lines(out)) < lines:
            time.sleep(0.005)
        process.kill()

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield
    watcher.join()


def test_killed_scheduler_costs_nothing_that_is_written_down(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed", reason="needs the extra cluster")
    out, script = tmp_path / "out.zarr", Path(engine_tasks.__file__)
    server = subprocess.Popen(
        [sys.executable, str(script), "serve"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
    )
    assert server.stdout is not None
    options = replace(PLAIN, scheduler=server.stdout.readline().strip())
    monkeypatch.chdir(home)  # workers were started in another folder
    try:
        with (
            kill_after(out, 3, server),
            pytest.raises(RunError, match=r"the dask scheduler at tcp://.* has gone.*the same command goes on"),
        ):
            predict("model", "image.zarr", out, settings=CPU, options=options)
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
    assert len(read_lines(out)) >= 3
    predict("model", "image.zarr", out, settings=CPU, options=PLAIN)
    np.testing.assert_array_equal(read(out), read(home / "whole.zarr"))
    assert len(read_lines(out)) == len(read_lines(home / "whole.zarr"))
