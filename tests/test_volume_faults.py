"""Whatever happens to the jobs of a volume: the same command ends with the labels that an undisturbed job writes.

Each test kills, poisons or fills up something real and counts the blocks that are computed: never more than there are, and
those that were in work when it happened.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import shutil
import signal
import sys
import time

import numpy as np
import pytest
import zarr

import volume_jobs
from conftest import make_dataset, run
from neurotome.io.block_ledger import BlockLedger, read_head
from neurotome.io.label_store import open_label_store

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and signals")

SHAPE = (6, 40, 300)
BLOCKS = 10
PLAIN = ("--device", "cpu", "--tile", "32", "--threads", "1", "--tolerance", "0")
END_S = 60


def read_all(out):
    """The voxels of every level."""
    return {level: zarr.open_array(out / level, mode="r")[:] for level in open_label_store(out).levels}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a model, an image, and its labels from an undisturbed job."""
    from neurotome.pixels.saving import save_pixels
    from neurotome.pixels.train import BaselineSettings, fit_baseline

    folder = tmp_path_factory.mktemp("faults")
    save_pixels(fit_baseline(make_dataset(), BaselineSettings("lr", "identity")), folder / "model")
    grey = np.random.default_rng(1).normal(128, 40, SHAPE).clip(1, 255).astype(np.uint8)
    zarr.create_array(folder / "image.zarr", shape=SHAPE, chunks=(4, 32, 64), dtype="uint8")[:] = grey
    assert run("predict", folder / "model", folder / "image.zarr", folder / "whole.zarr", *PLAIN) == 0
    return folder


@pytest.fixture(scope="module")
def context():
    """Processes that are forked from a server which has imported what jobs need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["volume_jobs"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        patch.setenv("OMP_NUM_THREADS", "1")  # with more, what has computed cannot be forked
        multiprocessing.forkserver.ensure_running()
    return context


class Jobs:
    """Jobs on one output, and what they have begun."""

    def __init__(self, home, folder, context):
        self.home, self.out, self.log, self.context = home, folder / "out.zarr", folder / "log", context
        self.gate = folder / "gate"
        self.log.touch()
        self.started = []

    def start(self, *options, **faults):
        """Begins a job; faults are named after `b` and the block's number: b3="poison"."""
        command = ["predict", self.home / "model", self.home / "image.zarr", self.out, *PLAIN, *options]
        numbered = {int(key[1:]) if key[1:].isdigit() else key: fault for key, fault in faults.items()}
        return self.begin(volume_jobs.do_job, command, self.log, numbered)

    def begin(self, target, *arguments):
        process = self.context.Process(target=target, args=arguments)
        process.start()
        self.started.append(process)
        return process

    def serve(self, **faults):
        """Starts a scheduler of dask and two workers; returns its process and address."""
        pytest.importorskip("distributed", reason="needs the extra cluster")
        file = self.log.with_name("address")
        scheduler = self.begin(volume_jobs.serve_scheduler, self.log, file)
        until = time.monotonic() + END_S
        while not file.exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        numbered = {int(key[1:]) if key[1:].isdigit() else key: fault for key, fault in faults.items()}
        for _ in range(2):
            self.begin(volume_jobs.serve_worker, self.log, file.read_text(), numbered)
        return scheduler, file.read_text()

    def kill_all(self):
        for process in self.started:
            if process.is_alive():
                os.killpg(process.pid, signal.SIGKILL)
                process.join()

    def do(self, *options, **faults):
        """Does a job to its end; returns its exit status and what it said."""
        job = self.start(*options, **faults)
        return self.end(job), self.read_said(job)

    def end(self, job):
        job.join(END_S)
        assert not job.is_alive()
        return job.exitcode

    def read_said(self, job):
        return self.log.with_name(f"log.{job.pid}.txt").read_text()

    @property
    def begun(self):
        return [int(line) for line in self.log.read_text().split()]

    def wait_for(self, count):
        until = time.monotonic() + END_S
        while len(self.begun) < count:
            assert time.monotonic() < until
            time.sleep(0.02)

    def list_done(self):
        folder = self.out / "0" / "ledger"
        return dict(BlockLedger(folder, read_head(folder)["fingerprint"], writer="test").find_all())

    def finish(self, in_work):
        """Gives the command again, and compares what it ends with; `in_work`: blocks that the faults may have cost."""
        done = self.list_done()
        before = len(self.begun)
        status, said = self.do()
        assert status == 0, said
        assert not set(self.begun[before:]) & set(done)
        assert len(self.begun) <= BLOCKS + in_work
        self.compare()

    def compare(self):
        found, expected = read_all(self.out), read_all(self.home / "whole.zarr")
        assert found.keys() == expected.keys()
        for level, labels in expected.items():
            np.testing.assert_array_equal(found[level], labels)
        assert run("verify", self.out, "--deep") == 0
        assert not list(self.out.rglob(".*.partial*"))


@pytest.fixture
def jobs(home, tmp_path, context):
    jobs = Jobs(home, tmp_path, context)
    yield jobs
    jobs.kill_all()


def test_a_job_is_killed_between_data_and_ledger(jobs):
    status, _ = jobs.do(b4="kill before its line")
    assert status == -signal.SIGKILL
    assert set(jobs.list_done()) == {0, 1, 2, 3}
    assert (jobs.out / "0" / "c" / "0" / "0" / "4").exists()
    jobs.finish(in_work=1)


def test_shards_are_torn_that_the_ledger_does_not_confirm(jobs):
    jobs.do(b9="kill before its line")
    [lines] = (jobs.out / "0" / "ledger").glob("*.jsonl")
    kept = [line for line in lines.read_text().splitlines(keepends=True) if '"block": 2,' not in line]
    lines.write_text("".join(kept))
    for name in ("0/0/2", "0/1/4"):  # inside, and at the border of the volume
        file = jobs.out / "0" / "c" / name
        file.write_bytes(file.read_bytes()[:-9])
    assert set(jobs.list_done()) == set(range(BLOCKS)) - {2, 9}
    jobs.finish(in_work=2)


def test_a_worker_is_killed(jobs):
    status, said = jobs.do("--workers", "2", b3="kill worker")
    assert status == 0, said
    assert len(jobs.begun) <= BLOCKS + 2
    jobs.compare()


def test_the_scheduler_of_a_cluster_is_killed(jobs):
    scheduler, address = jobs.serve(gate=jobs.gate)
    job = jobs.start("--scheduler", address)
    jobs.wait_for(2)
    scheduler.kill()
    assert jobs.end(job) == 1
    assert f"the dask scheduler at {address} has gone. What is written down is done" in jobs.read_said(job)
    jobs.gate.touch()
    jobs.kill_all()
    jobs.finish(in_work=2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_job_with_workers_is_ended(jobs, number):
    job = jobs.start("--workers", "2", gate=jobs.gate)
    jobs.wait_for(2)
    os.kill(job.pid, number)
    assert jobs.end(job) == (-number if number == signal.SIGKILL else 143)
    jobs.finish(in_work=2)


def test_a_poisoned_block_is_set_aside(jobs):
    status, said = jobs.do("--retries", "1", b1="poison")
    assert status == 1
    assert "1 of 10 blocks failed" in said
    assert "block 1 at z 0:6, y 0:32, x 64:128: ValueError: poisoned" in said
    assert jobs.begun.count(1) == 2
    assert set(jobs.list_done()) == set(range(BLOCKS)) - {1}
    jobs.finish(in_work=2)


def test_a_block_hangs(jobs):
    status, said = jobs.do("--block-timeout", "3", b7="hang")
    assert status == 0, said
    assert jobs.begun.count(7) == 2
    jobs.compare()


def test_the_disk_is_full(jobs):
    status, said = jobs.do(room=6)
    assert status == 1
    assert "no space left on the disk" in said
    assert "give the same command again" in said
    assert len(jobs.list_done()) == 6
    jobs.finish(in_work=1)


def test_a_byte_flips_and_a_confirmed_shard_is_cut(jobs, home):
    shutil.copytree(home / "whole.zarr", jobs.out)
    for name in ("0/0/1", "0/1/4"):
        file = jobs.out / "0" / "c" / name
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content if name == "0/0/1" else content[:-9])
    assert run("verify", jobs.out) == 1
    assert run("verify", jobs.out, "--repair") == 0
    assert jobs.do()[0] == 0
    assert sorted(jobs.begun) == [1, 9]
    jobs.compare()


def test_two_jobs_at_once_do_not_harm_each_other(jobs):
    first = jobs.start(gate=jobs.gate)
    jobs.wait_for(1)
    for again in ((), ("--overwrite",)):
        status, said = jobs.do(*again)
        assert status == 1
        assert f"process {first.pid} on" in said
        assert "--shard" in said
    jobs.gate.touch()
    assert jobs.end(first) == 0
    assert sorted(jobs.begun) == list(range(BLOCKS))
    jobs.compare()


def test_jobs_of_an_array_begin_at_once(jobs):
    array = [jobs.start("--shard", f"{number}/3", gate=jobs.gate) for number in (1, 2, 3)]
    jobs.wait_for(3)
    jobs.gate.touch()
    for job in array:
        assert jobs.end(job) == 0, jobs.read_said(job)
    assert sorted(jobs.begun) == list(range(BLOCKS))
    jobs.compare()


def test_changed_settings_are_refused_and_nothing_is_lost(jobs):
    jobs.do(b4="kill before its line")
    status, said = jobs.do("--axes", "x")
    assert status == 1
    assert "settings.axes (found 'z', wanted 'x')" in said
    jobs.finish(in_work=1)


def test_blocks_of_nothing_are_not_done_again(jobs):
    for _ in range(2):
        status, said = jobs.do("--air-below", "300")
        assert status == 0, said
        assert sorted(jobs.begun) == list(range(BLOCKS))
    assert (read_all(jobs.out)["0"] == 255).all()


def test_the_image_changes_while_it_is_read(jobs, home, tmp_path):
    shutil.copytree(home / "image.zarr", tmp_path / "image.zarr")
    shutil.copytree(home / "model", tmp_path / "model")
    jobs.home = tmp_path
    job = jobs.start(gate=jobs.gate)
    jobs.wait_for(1)
    file = next(path for path in (tmp_path / "image.zarr" / "c").rglob("*") if path.is_file())
    file.write_bytes(file.read_bytes())
    jobs.gate.touch()
    assert jobs.end(job) == 1
    said = jobs.read_said(job)
    assert "changed while it was read: a file was written" in said
    assert "may mix what it was and what it is" in said
    jobs.home = home
    jobs.finish(in_work=0)
