"""Engines: every task ends once, whatever happens to it."""

import errno
import sys
import threading
import time

import pytest

from neurotome.engines import EngineSettings, Outcome, open_engine, settle_engine
from neurotome.engines.serial import Serial
from neurotome.errors import NeurotomeError, SettingsError


def by_task(outcomes):
    listed = list(outcomes)
    found = {outcome.task: outcome for outcome in listed}
    assert len(found) == len(listed)
    return found


def build_square():
    return lambda task: task * task


def test_serial_returns_every_result_once():
    with open_engine(EngineSettings(threads=3), "cpu") as engine:
        found = by_task(engine.run(build_square, range(50)))
    assert {task: outcome.result for task, outcome in found.items()} == {task: task * task for task in range(50)}
    assert {(outcome.error, outcome.attempts) for outcome in found.values()} == {(None, 1)}


def test_serial_takes_tasks_as_they_are_needed_and_has_only_its_threads_in_work():
    drawn, together, most, lock = [], [0], [0], threading.Lock()

    def work(task):
        with lock:
            together[0] += 1
            most[0] = max(most[0], together[0])
        time.sleep(0.001)
        with lock:
            together[0] -= 1

    outcomes = Serial(threads=2).run(lambda: work, (drawn.append(i) or i for i in range(100)))
    next(outcomes)
    assert len(drawn) == 2
    outcomes.close()
    assert len(drawn) == 2
    assert len(list(Serial(threads=2).run(lambda: work, range(20)))) == 20
    assert most[0] == 2


def test_serial_tries_again_and_then_sets_aside():
    tries = {}

    def work(task):
        tries[task] = tries.get(task, 0) + 1
        if task == 3 or (task == 5 and tries[5] < 3):
            raise ValueError(f"task {task}")
        return task

    found = by_task(Serial(threads=2, retries=2).run(lambda: work, range(8)))
    assert found[3] == Outcome(3, None, "ValueError: task 3", 3, found[3].seconds)
    assert (found[5].result, found[5].attempts) == (5, 3)
    assert sum(tries.values()) == 8 + 2 + 2


def test_serial_ends_at_once_where_the_disk_is_full():
    begun = []

    def work(task):
        begun.append(task)
        raise OSError(errno.ENOSPC, "No space left on device", "out.zarr")

    with pytest.raises(OSError, match="No space"):
        list(Serial(threads=1).run(lambda: work, range(100)))
    assert begun == [0]


def test_serial_stopped_waits_for_what_is_under_way_alone():
    ended = []

    def work(task):
        time.sleep(0.05)
        ended.append(task)

    outcomes = Serial(threads=2).run(lambda: work, range(100))
    next(outcomes)
    with pytest.raises(KeyboardInterrupt):
        outcomes.throw(KeyboardInterrupt)
    assert len(ended) <= 4
    count = len(ended)
    time.sleep(0.1)
    assert len(ended) == count


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (EngineSettings(workers=0), "workers is 0; expected 1"),
        (EngineSettings(threads=-1), "threads is -1"),
        (EngineSettings(retries=-1), "retries is -1"),
        (EngineSettings(block_timeout_s=0.0), "block_timeout_s is 0"),
        (EngineSettings(scheduler="local", slurm="a.yaml"), "expected one of them"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        settle_engine(settings, "cpu")


def test_one_worker_for_each_visible_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    assert settle_engine(EngineSettings()).workers == 3
    assert settle_engine(EngineSettings(), "cpu").workers == 1
    assert settle_engine(EngineSettings(workers=2), "cuda").threads == 4


def test_cluster_without_its_extra_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(NeurotomeError, match=r"distributed is not installed.*neurotome\[cluster\]"),
        open_engine(EngineSettings(scheduler="tcp://host:8786"), "cpu"),
    ):
        pass
