"""The benchmarks of training in their small form: that all of it runs, never how fast."""

import json
import signal
import sys
import warnings
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # as for a script that is run

import time_to_quality
import training_jobs
import training_methods
import training_speed


def run_here(name, command, environment):
    """Does a job in this process, because importing torch takes longer than the rest; the step limit in its own."""
    job = json.loads(command[-1])
    if job["method"] == "limit":
        return run_child(name, command, environment)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning's hints to the plain recipe
            return training_methods.do_job(job)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def never(*_):
    raise AssertionError("nothing is left to do")


run_child = training_jobs.run_child


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "methods"),
    [(training_speed, ("limit", "neurotome", "plain")), (time_to_quality, ("neurotome", "plain"))],
    ids=["speed", "quality"],
)
def test_the_small_form_runs_and_keeps_what_it_found(tmp_path, capsys, monkeypatch, script, methods):
    monkeypatch.setattr("neurotome.models.net.measure_halo", lambda *_: (64, True))
    monkeypatch.setattr(training_jobs, "run_child", run_here)
    asked = ["--small", "--threads", "1", "--device", "cpu", "--out", str(tmp_path), "--peers", str(tmp_path / "none")]
    script.main(asked)
    first = capsys.readouterr().out
    assert all(f"| {method} | " in first for method in methods)
    assert "not installed" in first
    monkeypatch.setattr(training_jobs, "run_child", never)
    script.main(asked)
    assert capsys.readouterr().out == first
