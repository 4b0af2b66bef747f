"""Worker processes: killed, poisoned, hanging; every task still ends once, and little is done twice."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from neurotome.engines import EngineSettings, open_engine
from neurotome.engines.processes import Processes, share_cores
from neurotome.errors import RunError
from tests import engine_tasks
from tests.engine_tasks import FAILING, FULL, HANGING, POISON, count_begun


def run(engine, tmp_path, tasks, **behaviour):
    listed = list(engine.run(partial(engine_tasks.build, tmp_path, **behaviour), tasks))
    found = {outcome.task: outcome for outcome in listed}
    assert len(found) == len(listed)
    return found


def list_children():
    return [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def test_workers_do_every_task_once_and_end(tmp_path):
    with open_engine(EngineSettings(workers=2), "cpu") as engine:
        found = run(engine, tmp_path, range(40), seconds=0.005)
    assert {task: (outcome.result, outcome.attempts) for task, outcome in found.items()} == {
        n: (n * n, 1) for n in range(40)
    }
    assert count_begun(tmp_path) == dict.fromkeys(range(40), 1)
    assert len(list(tmp_path.glob("built.*"))) == 2
    assert not list_children()


def test_poisonous_hanging_and_failing_tasks_are_set_aside_and_others_done(tmp_path):
    engine = Processes(2, threads=2, retries=1, block_timeout_s=0.6)
    found = run(engine, tmp_path, range(12), ill=(POISON, HANGING, FAILING), seconds=0.02)
    assert sorted(found) == list(range(12))
    ill = {task: outcome for task, outcome in found.items() if outcome.error}
    assert sorted(ill) == [POISON, HANGING, FAILING]
    assert {outcome.attempts for outcome in ill.values()} == {2}
    assert "SIGKILL" in ill[POISON].error
    assert "it hung: no end after 0.6 s" in ill[HANGING].error
    assert ill[FAILING].error == "ValueError: task 5"
    begun = count_begun(tmp_path)
    assert begun[POISON] == 2
    # 2 deaths and 2 ended processes, each with at most one other task in work, which is done again
    assert sum(begun.values()) <= 12 + 3 + 4


def test_killed_worker_is_replaced_on_its_gpu_and_its_tasks_done_again(tmp_path):
    engine = Processes(2, threads=1, gpus=("4", "7"))
    outcomes = engine.run(partial(engine_tasks.build, tmp_path, seconds=0.03), range(150))
    done = []
    while len(list(tmp_path.glob("built.*"))) < 2:
        done.append(next(outcomes).task)
    victim, other = list_children()
    victim.kill()
    done += [outcome.task for outcome in outcomes]
    assert sorted(done) == list(range(150))
    assert sum(count_begun(tmp_path).values()) <= 151
    gpus = {int(file.suffix[1:]): file.read_text() for file in tmp_path.glob("built.*")}
    assert {gpus[victim.pid], gpus[other.pid]} == {"4", "7"}
    assert [gpu for worker, gpu in gpus.items() if worker not in (victim.pid, other.pid)] == [gpus[victim.pid]]


def test_full_disk_ends_the_run(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: 'out.zarr'"):
        run(Processes(1, threads=1), tmp_path, range(100), ill=(FULL,))
    assert len(count_begun(tmp_path)) <= FULL + 2
    assert not list_children()


def test_what_cannot_be_built_is_said_at_once(tmp_path):
    with pytest.raises(RunError, match="a worker cannot begin: ValueError: no such model"):
        list(Processes(1).run(partial(engine_tasks.build_broken, tmp_path), range(4)))


def test_workers_that_die_as_they_start_are_given_up(tmp_path):
    with pytest.raises(RunError, match=r"3 workers ended one after another.*ended with status 3"):
        list(Processes(1).run(partial(engine_tasks.build_dying, tmp_path), range(4)))


def test_each_worker_has_its_gpu_and_its_share_of_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    engine = Processes(2, threads=1, gpus=("4", "7"))
    found = list(engine.run(partial(engine_tasks.build_environment, tmp_path), range(20)))
    assert {outcome.result["CUDA_VISIBLE_DEVICES"] for outcome in found} <= {"4", "7"}
    assert {outcome.result["OMP_NUM_THREADS"] for outcome in found} == {str(max(1, len(share_cores(0, 2))))}
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    if hasattr(os, "sched_getaffinity"):
        shares = [core for place in range(2) for core in share_cores(place, 2)]
        assert sorted(shares) in ([], sorted(os.sched_getaffinity(0)))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path, number):
    script = Path(engine_tasks.__file__)
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # a test run started in the background ignores SIGINT, and its children would inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    parent.stdout.readline()
    workers = psutil.Process(parent.pid).children()
    assert len(workers) >= 2
    parent.send_signal(number)
    try:
        parent.wait(60)
    finally:
        parent.kill()
        parent.communicate()
    _, alive = psutil.wait_procs(workers, 5)
    assert not alive
    begun = count_begun(tmp_path)
    time.sleep(0.3)
    assert count_begun(tmp_path) == begun
