"""Claims on runs: one owner at a time, and a dead one's run is free again."""

import json
import os
import subprocess
import sys
import threading

import psutil
import pytest

from neurotome.experiments.grids import leases as module
from neurotome.experiments.grids.leases import Leases


def forge(folder, number=1, **changed):
    """Writes the claim of another owner."""
    owner = {"host": "elsewhere", "machine": "elsewhere", "pid": 1, "started": 0.0, "token": "a", **changed}
    path = folder / f"ours__unet.{number}.json"
    path.write_text(json.dumps(owner))
    return path


def test_a_run_has_one_owner_until_it_is_released(tmp_path):
    with Leases(tmp_path) as first, Leases(tmp_path) as second:
        assert first.take("ours/unet")
        assert not first.take("ours/unet")
        assert not second.take("ours/unet")
        assert second.find_holder("ours/unet") == first.owner["host"]
        assert second.take("ours/linknet")
        first.release("ours/unet")
        assert second.find_holder("ours/unet") is None
        assert second.take("ours/unet")
    with Leases(tmp_path) as third:
        assert third.take("ours/unet")
        assert third.take("ours/linknet")


def test_of_many_that_want_a_dead_owners_run_one_gets_it(tmp_path):
    forge(tmp_path, machine=module._identify_machine(), pid=2**22 + 7)
    everyone = [Leases(tmp_path) for _ in range(16)]
    start, taken = threading.Barrier(len(everyone)), []

    def take(leases):
        start.wait()
        if leases.take("ours/unet"):
            taken.append(leases)

    threads = [threading.Thread(target=take, args=(leases,)) for leases in everyone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1


def test_on_this_machine_a_process_decides(tmp_path):
    leases = Leases(tmp_path)
    here = {"machine": leases.owner["machine"]}
    ended = subprocess.Popen([sys.executable, "-c", ""])
    started = psutil.Process(ended.pid).create_time()
    while psutil.Process(ended.pid).status() != psutil.STATUS_ZOMBIE:
        pass
    forge(tmp_path, pid=ended.pid, started=started, **here)
    assert leases.find_holder("ours/unet") is None  # ended, though its parent has not noticed
    ended.wait()
    assert leases.find_holder("ours/unet") is None
    path = forge(tmp_path, pid=os.getpid(), started=psutil.Process().create_time(), **here)
    os.utime(path, (0, 0))
    assert leases.find_holder("ours/unet") == "elsewhere"  # it may have slept for long, but it is there
    forge(tmp_path, pid=os.getpid(), started=psutil.Process().create_time() - 100, **here)
    assert leases.find_holder("ours/unet") is None  # another process has got the number


def test_on_another_machine_the_heartbeat_decides(tmp_path):
    leases = Leases(tmp_path)
    path = forge(tmp_path)
    assert leases.find_holder("ours/unet") == "elsewhere"
    stopped = path.stat().st_mtime - module.DEAD_AFTER_S - 1
    os.utime(path, (stopped, stopped))
    assert leases.find_holder("ours/unet") is None
    assert leases.take("ours/unet")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"machine": 3, "pid": "x"}'])
def test_half_a_claim_counts_while_it_is_new(tmp_path, content):
    leases, path = Leases(tmp_path), forge(tmp_path)
    path.write_text(content)
    assert not leases.take("ours/unet")
    os.utime(path, (0, 0))
    assert leases.take("ours/unet")


def test_the_heart_beats_and_a_loss_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.01)
    with Leases(tmp_path) as leases:
        leases.take("ours/unet")
        path = tmp_path / "ours__unet.1.json"
        os.utime(path, (0, 0))
        while path.stat().st_mtime == 0:
            pass
        assert not leases.is_lost("ours/unet")
        forge(tmp_path, number=2)  # by someone who took this one for dead
        assert leases.is_lost("ours/unet")
    assert json.loads((tmp_path / "ours__unet.2.json").read_text())["token"] == "a"
