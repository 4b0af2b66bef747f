"""The scripts in benchmarks/ are run by hand; here they are imported, so that what they use is there.

One of them, the founding report's listing, is what its recipe is checked against.
"""

import importlib.util
import sys
from pathlib import Path

import pytest

from neurotome.datasets.phantom.make import PhantomSettings, phantom

SCRIPTS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


sys.path.append(str(SCRIPTS[0].parent))  # as for a script that is run; at the end, so that no name there hides a package


def load_script(path):
    spec = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
    script = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(script)
    return script


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_benchmark_finds_what_it_uses(path):
    load_script(path)


LISTING = load_script(next(path for path in SCRIPTS if path.stem == "founding_report_listing"))


@pytest.fixture(scope="module")
def few_slices(tmp_path_factory):
    """Tissue of which the first batch lacks a class."""
    settings = PhantomSettings(
        height=64, width=64, train_depth=4, val_depth=1, test_depth=1, regions=("cortex", "striatum"), seed=1
    )
    return phantom(out=tmp_path_factory.mktemp("phantom") / "data", settings=settings)


@pytest.mark.parametrize("loss", LISTING.LOSSES)
def test_as_reported_has_the_loss_of_the_listing(few_slices, monkeypatch, loss):
    monkeypatch.setattr("neurotome.models.net.measure_halo", lambda *_: (64, True))
    losses = LISTING.compare(few_slices, loss, edge=64, batch=2, steps=2)
    first, second = zip(*(losses[side] for side in ("listing", "neurotome")), strict=True)
    assert first[1] == pytest.approx(first[0], rel=1e-5)
    assert second[0] != first[0]
    assert second[1] == pytest.approx(second[0], rel=5e-2)  # Adam turns the rounding of one step into steps of its own


SCALING = load_script(next(path for path in SCRIPTS if path.stem == "scaling"))
IDEAL = {"gpus": 4, "block_s": 1, "spread": 0, "straggler_share": 0, "straggler_factor": 1, "block_bytes": 1e6, "start_s": 3}


@pytest.mark.parametrize(
    ("rates", "expected_s"),
    [
        ((1e15, 1e15, 1e9), 3 + 100 / 4),
        ((1e15, 1e15, 2), 3 + 100 / 2 + 1),  # the scheduler sends 2 tasks per second, the last one is computed then
        ((1e15, 1e6, 1e9), 3 + 110),  # 1 MB/s for 1 MB read and 0.1 MB written per block
        ((2e6, 1e15, 1e9), 3 + 55),
    ],
    ids=["computing", "scheduler", "store", "nodes"],
)
def test_simulated_volumes_take_what_binds(rates, expected_s):
    node_rate, store_rate, tasks_rate = rates
    machine = SCALING.Machine(**IDEAL, node_rate=node_rate, store_rate=store_rate, tasks_rate=tasks_rate)
    makespan_s, work_s = SCALING.simulate(machine, 100)
    assert work_s == pytest.approx(100)
    assert makespan_s == pytest.approx(expected_s, rel=0.1)


TRANSFER = load_script(next(path for path in SCRIPTS if path.stem == "transfer"))


def test_an_interval_over_seeds_is_students():
    assert TRANSFER.interval([0.1, 0.2, 0.3]) == "0.200 (-0.048 to 0.448)"  # t = 4.303 for 2 degrees, 4.303 * 0.1 / 3**0.5
    assert TRANSFER.interval([0.5]) == "0.500"


def test_looks_are_counted_by_what_a_model_is(tmp_path, monkeypatch):
    monkeypatch.setattr(TRANSFER, "read_digest", lambda model: model[0])  # "a" and "another" are the same model
    assert [TRANSFER.count_look(tmp_path, model) for model in ("a", "b", "another")] == [(1, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize(
    ("facts", "real"),
    [
        ({"dataset": "phantom-stream", "init": {"dataset": "phantom-stream"}}, []),
        ({"dataset": "phantom-stream", "init": {"dataset": "mine"}}, ["mine"]),
        ({"dataset": "mine", "init": {"dataset": "phantom-stream"}}, ["mine"]),
    ],
)
def test_real_data_are_told_from_synthetic_tissue(monkeypatch, facts, real):
    monkeypatch.setattr(TRANSFER, "find_model", lambda model: model)
    monkeypatch.setattr(TRANSFER, "read_description", lambda folder: ({"facts": facts}, b""))
    assert TRANSFER.list_real_data("model") == real


def test_repeats_choose_other_patches():
    others = list("abc")
    assert [TRANSFER.choose(others, 2, repeat) for repeat in range(3)] == [("a", "b"), ("b", "c"), ("c", "a")]
    assert sorted(TRANSFER.choose(others, 3, 2)) == others
