"""Workers of dask: lost, poisoned, hanging, joining late; a scheduler that goes; Slurm, played by scripts."""

from functools import partial

import pytest

from neurotome.engines import EngineSettings, open_engine
from neurotome.errors import RunError
from tests import engine_tasks
from tests.engine_tasks import FAILING, FULL, POISON, count_begun

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
