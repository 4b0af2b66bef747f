"""Workers of dask: lost, poisoned, hanging, joining late; a scheduler that goes; Slurm, played by scripts."""

import dataclasses
import gc
import os
import sys
from functools import partial
from pathlib import Path

import pytest

from neurotome.engines import EngineSettings, open_engine
from neurotome.errors import RunError, SettingsError
from tests import engine_tasks
from tests.engine_tasks import FAILING, FULL, POISON, SLOW, count_begun

pytest.importorskip("distributed", reason="needs the extra cluster")


def run(engine, tmp_path, tasks, **behaviour):
    listed = list(engine.run(partial(engine_tasks.build, tmp_path, **behaviour), tasks))
    found = {outcome.task: outcome for outcome in listed}
    assert len(found) == len(listed)
    return found


@pytest.fixture(scope="module")
def engine():
    settings = EngineSettings(workers=2, threads=2, retries=1, block_timeout_s=1.0, scheduler="local")
    with open_engine(settings, "cpu") as engine:
        yield engine


def test_workers_do_every_task_once_and_build_once(engine, tmp_path):
    found = run(engine, tmp_path, range(40), seconds=0.01)
    assert {task: outcome.result for task, outcome in found.items()} == {task: task * task for task in range(40)}
    assert count_begun(tmp_path) == dict.fromkeys(range(40), 1)
    assert len(list(tmp_path.glob("built.*"))) == 2


def test_no_more_tasks_are_drawn_than_keep_the_workers_busy(engine, tmp_path):
    drawn = []
    outcomes = engine.run(partial(engine_tasks.build, tmp_path), (drawn.append(i) or i for i in range(100_000)))
    for _ in range(3):
        next(outcomes)
    assert len(drawn) <= 3 + 2 * 2 * 2
    outcomes.close()


def test_poisonous_hanging_and_failing_tasks_are_set_aside_and_others_done(engine, tmp_path):
    found = run(engine, tmp_path, range(12), ill=(POISON, FAILING), seconds=0.02)
    assert sorted(found) == list(range(12))
    ill = {task: outcome for task, outcome in found.items() if outcome.error}
    assert sorted(ill) == [POISON, FAILING]
    assert {outcome.attempts for outcome in ill.values()} == {2}
    assert "the worker that did it ended" in ill[POISON].error
    assert ill[FAILING].error == "ValueError: task 5"


def test_full_disk_and_what_cannot_be_built_end_the_run(engine, tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: 'out.zarr'"):
        run(engine, tmp_path, range(100), ill=(FULL,))
    with pytest.raises(RunError, match="a worker cannot begin: ValueError: no such model"):
        list(engine.run(partial(engine_tasks.build_broken, tmp_path), range(4)))


def test_hanging_task_is_told_and_its_worker_replaced(engine, tmp_path):
    found = run(dataclasses.replace(engine, retries=0, block_timeout_s=0.5), tmp_path, range(10), ill=(SLOW,))
    assert [task for task, outcome in found.items() if outcome.error] == [SLOW]
    assert "it hung: no end after 0.5 s" in found[SLOW].error


def test_other_versions_on_workers_are_refused(engine, tmp_path, monkeypatch):
    monkeypatch.setattr("neurotome.engines.site.metadata.version", lambda name: "0.0.1")
    with pytest.raises(RunError, match=r"cannot begin: the one at tcp://\S+ has neurotome \S+; expected 0.0.1"):
        run(engine, tmp_path, range(2))


def test_no_scheduler_is_said(monkeypatch):
    monkeypatch.setattr("neurotome.engines.cluster.CONNECT_S", 0.2)
    with (
        pytest.raises(RunError, match=r"no dask scheduler answers at tcp://127.0.0.1:9"),
        open_engine(EngineSettings(scheduler="tcp://127.0.0.1:9"), "cpu"),
    ):
        pass


SBATCH = """#!/bin/sh
if [ "$1" = --test-only ]; then exit 0; fi
cp "$1" {folder}/job.sh
{environment} setsid sh {folder}/job.sh > {folder}/log 2>&1 &
echo "Submitted batch job $!"
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder with a Slurm of two scripts, the first in PATH, and a file of options."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    where = os.pathsep.join(map(str, [Path(engine_tasks.__file__).parents[1], *sys.path]))
    scripts = {"sbatch": SBATCH.format(folder=folder, environment=f"PYTHONPATH={where}")}
    scripts["scancel"] = "#!/bin/sh\nkill -9 -- -$1\n"
    for name, script in scripts.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    (folder / "slurm.yaml").write_text("{cores: 2, processes: 1, memory: 1GiB, queue: gpu, interface: lo}\n")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_slurm_starts_workers_that_get_work_as_they_come(slurm, tmp_path):
    settings = EngineSettings(slurm=str(slurm / "slurm.yaml"), workers=1)
    with open_engine(settings, "cpu") as engine:
        found = run(engine, tmp_path, range(10))
    assert sorted(found) == list(range(10))
    assert {outcome.error for outcome in found.values()} == {None}
    script = (slurm / "job.sh").read_text()
    assert "#SBATCH -p gpu" in script
    assert "#SBATCH --cpus-per-task=2" in script


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # dask's half-built cluster was not closed
def test_slurm_that_takes_no_job_and_wrong_options_are_said(slurm):
    settings = EngineSettings(slurm=str(slurm / "slurm.yaml"))
    (slurm / "sbatch").write_text("#!/bin/sh\necho invalid partition specified: gpu >&2\nexit 1\n")
    with pytest.raises(RunError, match=r"(?s)Slurm takes no such job: invalid partition"), open_engine(settings, "cpu"):
        pass
    (slurm / "slurm.yaml").write_text("{cores: 2, memory: 1GiB, interface: lo, nonsense: 3}\n")
    with pytest.raises(SettingsError, match=r"slurm.yaml: .*nonsense"), open_engine(settings, "cpu"):
        pass
    with pytest.raises(SettingsError, match=r"no.yaml: not found"), open_engine(EngineSettings(slurm="no.yaml"), "cpu"):
        pass
    gc.collect()  # so that the warning comes while it is awaited
