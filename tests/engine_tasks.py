"""Tasks that engines' tests send to other processes: each notes in a file that it was begun, then behaves or not."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

POISON, HANGING, FAILING, FULL, SLOW = 3, 4, 5, 6, 7


def build(folder, ill=(), seconds=0.0):
    (Path(folder) / f"built.{os.getpid()}").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    return partial(work, Path(folder), ill, seconds)


def work(folder, ill, seconds, task):
    with (folder / f"begun.{task}").open("a") as file:
        file.write(f"{os.getpid()}\n")
    if task in ill and task == POISON:
        os.kill(os.getpid(), signal.SIGKILL)
    if task in ill and task == HANGING:
        ctypes.PyDLL(None).sleep(30)  # keeps the interpreter's lock: nothing within the process can end it
    if task in ill and task == FAILING:
        raise ValueError(f"task {task}")
    if task in ill and task == FULL:
        raise OSError(28, "No space left on device", "out.zarr")
    time.sleep(30 if task in ill and task == SLOW else seconds)
    return task * task


def build_broken(folder):
    raise ValueError("no such model")


def build_dying(folder):
    os._exit(3)


def build_environment(folder):
    return lambda task: {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}


def count_begun(folder):
    """How often each task was begun."""
    return {int(file.suffix[1:]): len(file.read_text().split()) for file in Path(folder).glob("begun.*")}


def drive(folder, workers, tasks):
    """Runs an engine and prints its workers' ids: what a test kills."""
    from neurotome.engines.processes import Processes

    for outcome in Processes(workers).run(partial(build, folder, seconds=0.2), range(tasks)):
        sys.stdout.write(f"{outcome.task}\n")
        sys.stdout.flush()


def serve():
    """Is a dask scheduler with one worker in the same process; prints its address."""
    from distributed import LocalCluster

    options = {"processes": False, "protocol": "tcp://", "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=1, threads_per_worker=2, **options) as cluster:
        sys.stdout.write(f"{cluster.scheduler_address}\n")
        sys.stdout.flush()
        time.sleep(60)


if __name__ == "__main__":
    serve() if sys.argv[1] == "serve" else drive(sys.argv[1], 2, 1000)
