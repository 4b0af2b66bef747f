"""The benchmarks of training in their small form: that all of it runs, never how fast."""

import json
import signal
import sys
import warnings
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # as for a script that is run

import time_to_quality
import training_jobs
import training_methods
import training_speed
from step_clock import StepClock


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
    with pytest.raises(SystemExit, match="delete the file"):  # kept with other settings
        script.main([*asked, "--threads", "2"])


def make_result(method, repetition, rate):
    job = {"method": method, "decoder": "unet", "encoder": "resnet18", "batch": 8, "patch": 64, "repetition": repetition}
    seconds = {"median_step_s": 1.0, "cpu_step_s": 1.0, "first_step_s": 1.0}
    return {"job": job, "found": {"images_per_second": rate, **seconds, "peak_memory_bytes": 1e9}}


def test_ratios_are_those_of_one_repetition():
    """A machine half as fast the second time; a third repetition of one method alone is in no ratio."""
    rates = {"limit": (10, 5), "plain": (5, 2), "monai": (8, 4, 100)}
    results = [make_result(method, n, rate) for method, found in rates.items() for n, rate in enumerate(found)]
    row = next(line for line in training_speed.tabulate(results).splitlines() if line.startswith("| monai |"))
    assert row.split(" | ")[1:4] == ["8.00 (4.00 to 100.00)", "0.80 (0.80 to 0.80)", "1.80 (1.60 to 2.00)"]


def test_the_clock_leaves_out_the_warm_up_and_refuses_too_few_steps():
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.ones(1)
    with StepClock(warmup=2, steps=5, batch=8, started=0) as clock:
        for optimizer in (torch.optim.SGD([weight]), torch.optim.AdamW([weight])):
            for _ in range(2):
                optimizer.step()
        with pytest.raises(SystemExit, match="4 steps were done; expected 5"):
            clock.summarise()
        optimizer.step()
    optimizer.step()  # after the block nothing is noted
    assert len(clock.ends) == 5
    assert clock.summarise()["timed_steps"] == 3
