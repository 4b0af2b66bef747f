"""How predicting a volume scales: 1 and 2 worker processes measured here, 1 to 512 GPUs simulated.

    python benchmarks/scaling.py measure MODEL VOLUME --work runs/scaling -- --back-end torch
    python benchmarks/scaling.py scheduler
    python benchmarks/scaling.py simulate --blocks runs/scaling/1.zarr --mvoxel-per-s 40 --tasks-per-s 300

`measure` predicts the volume, with the options of predict that follow --, with 1 worker on one core and with 2 on two, each
once, and compares the labels. Its rates are from the first block's begin to the last one's end, as the ledger has them;
starting and finishing are printed beside.

`scheduler` measures how many tasks per second go through dask, its scheduler, our client and back, when tasks do nothing.

`simulate` follows every block of a volume through a scheduler that sends one task at a time, a store whose bandwidth is
shared (of a node, and in total), and a GPU that computes one block at a time while the next is read and the last written.
Durations of blocks are drawn from a log-normal distribution, and a share of them takes a multiple: stragglers. With
`--blocks` spread and stragglers are those of a real ledger (of a run with --threads 1, whose blocks do not wait for one
another). Then each of these is taken away: what that gains says what binds. Without stragglers every block takes the mean,
so that the work is the same. Efficiency is the work of all blocks on one GPU over what all GPUs' time amounts to.
"""

import argparse
import datetime
import heapq
import math
import os
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from neurotome.inference.volume_job import LEDGER
from neurotome.io.block_ledger import BlockLedger, read_head
from neurotome.io.label_store import open_label_store

GPUS = (1, 8, 64, 512)
BINDS = 0.98  # what binds is that without which the makespan is shorter than this share of it
STRAGGLES = 2.0  # a block that takes this many times the median is one


@dataclass(frozen=True)
class Machine:
    """What blocks run on. Times in seconds, rates per second, bandwidth in bytes per second."""

    gpus: int
    block_s: float
    spread: float
    straggler_share: float
    straggler_factor: float
    block_bytes: float
    node_rate: float
    store_rate: float
    tasks_rate: float
    start_s: float
    gpus_per_node: int = 8
    threads: int = 4


def simulate(machine: Machine, blocks: int, seed: int = 0) -> tuple[float, float]:
    """Returns the makespan, and the sum of all blocks' computing; both in seconds.

    A worker has at most `threads` blocks read, computed or written at once and as many tasks waiting. Bandwidth is shared
    equally among a node's transfers and among all; what one cannot use is not passed on, so the store is never flattered.
    """
    rng = np.random.default_rng(seed)
    median = machine.block_s * np.exp(-(machine.spread**2) / 2)  # so that the mean without stragglers is block_s
    lengths = np.exp(rng.normal(np.log(median), machine.spread, blocks))
    lengths[rng.random(blocks) < machine.straggler_share] *= machine.straggler_factor
    slots = machine.gpus * machine.threads
    node = np.arange(slots) // machine.threads // machine.gpus_per_node
    left = np.zeros(slots)  # bytes that a slot still transfers
    moving = np.zeros(slots, bool)
    is_write = np.zeros(slots, bool)
    task = np.zeros(slots, int)
    waiting: list[deque[int]] = [deque() for _ in range(machine.gpus)]  # tasks that a worker has been sent
    idle = [list(range(gpu * machine.threads, (gpu + 1) * machine.threads)) for gpu in range(machine.gpus)]
    read: list[deque[int]] = [deque() for _ in range(machine.gpus)]  # slots whose block is read
    computes = [False] * machine.gpus
    events: list[tuple[float, int, str, int]] = []
    counter = sent = done = 0
    scheduler_free = 0.0

    def post(when: float, kind: str, what: int) -> None:
        nonlocal counter
        counter += 1
        heapq.heappush(events, (when, counter, kind, what))

    def ask(now: float, gpu: int) -> None:
        """A worker's next task leaves the scheduler when those before have."""
        nonlocal scheduler_free, sent
        if sent < blocks:
            sent += 1
            scheduler_free = max(scheduler_free, now) + 1 / machine.tasks_rate
            post(scheduler_free, "sent", gpu)

    def begin(gpu: int) -> None:
        while waiting[gpu] and idle[gpu]:
            slot = idle[gpu].pop()
            task[slot], left[slot], moving[slot], is_write[slot] = waiting[gpu].popleft(), machine.block_bytes, True, False

    def compute(now: float, gpu: int) -> None:
        if read[gpu] and not computes[gpu]:
            computes[gpu] = True
            slot = read[gpu].popleft()
            post(now + lengths[task[slot]], "computed", slot)

    now, number = 0.0, 0
    for _ in range(2 * machine.threads):
        for gpu in range(machine.gpus):
            ask(machine.start_s, gpu)
    while done < blocks:
        if moving.any():
            flows = np.bincount(node[moving], minlength=node[-1] + 1)
            rate = np.minimum(machine.node_rate / flows[node[moving]], machine.store_rate / moving.sum())
            step = left[moving] / rate
            arrival = now + step.min()
        else:
            arrival = math.inf
        if events and events[0][0] <= arrival:
            when, _, kind, what = heapq.heappop(events)
            if moving.any():
                left[moving] -= rate * (when - now)
            now = when
            if kind == "sent":
                waiting[what].append(number)
                number += 1
                begin(what)
            else:  # computed: labels are written, a fraction of what is read
                gpu = what // machine.threads
                computes[gpu] = False
                left[what], moving[what], is_write[what] = machine.block_bytes * WRITTEN, True, True
                compute(now, gpu)
            continue
        slot = int(np.flatnonzero(moving)[step.argmin()])
        left[moving] -= rate * (arrival - now)
        now, gpu = arrival, slot // machine.threads
        moving[slot] = False
        if is_write[slot]:
            done += 1
            idle[gpu].append(slot)
            ask(now, gpu)
            begin(gpu)
        else:
            read[gpu].append(slot)
            compute(now, gpu)
    return now, float(lengths.sum())


WRITTEN = 0.1
"""Bytes of compressed labels for each byte that is read."""


def read_durations(store: Path) -> np.ndarray:
    """Seconds of every block in a store's ledger."""
    return np.array([entry["seconds"] for _, entry in open_ledger(store).find_all()])


def open_ledger(store: Path) -> BlockLedger:
    folder = store / LEDGER
    return BlockLedger(folder, (read_head(folder) or {})["fingerprint"], writer="none")


def describe_durations(seconds: np.ndarray) -> tuple[float, float, float]:
    """Spread of the logarithm without stragglers, their share, and how many times the median they take."""
    median = np.median(seconds)
    slow = seconds > STRAGGLES * median
    factor = float((seconds[slow] / median).mean()) if slow.any() else 1.0
    return float(np.log(seconds[~slow]).std()), float(slow.mean()), factor


def run_simulation(options: argparse.Namespace) -> None:
    spread, share, factor = options.spread, options.straggler_share, options.straggler_factor
    if options.blocks:
        measured = read_durations(options.blocks)
        spread, share, factor = describe_durations(measured)
        print(f"durations of {len(measured)} blocks of {options.blocks}: median {np.median(measured):.3g} s")
    voxels = options.block_mvoxel * 1e6
    blocks = math.ceil(options.gigavoxel * 1e9 / voxels)
    usual = Machine(
        gpus=1,
        block_s=options.block_mvoxel / options.mvoxel_per_s,
        spread=spread,
        straggler_share=share,
        straggler_factor=factor,
        block_bytes=voxels * options.bytes_per_voxel,
        node_rate=options.node_gb_per_s * 1e9,
        store_rate=options.store_gb_per_s * 1e9,
        tasks_rate=options.tasks_per_s,
        start_s=options.start_s,
    )
    sentences = (
        f"{options.gigavoxel:.0f} gigavoxel in {blocks} blocks of {options.block_mvoxel:.0f} Mvoxel",
        f"{usual.block_s:.3g} s each on a GPU of {options.mvoxel_per_s:.0f} Mvoxel/s",
        f"spread of the logarithm {spread:.2f}, {share:.1%} stragglers of {factor:.1f} times",
        f"{options.bytes_per_voxel} bytes read and {options.bytes_per_voxel * WRITTEN:.2g} written per voxel",
        f"{options.node_gb_per_s} GB/s per node of {usual.gpus_per_node} GPUs, {options.store_gb_per_s} GB/s in total",
        f"scheduler {options.tasks_per_s:.0f} tasks/s; workers start in {options.start_s:.0f} s",
    )
    print(*sentences, sep="; ")
    mean_s = usual.block_s * (1 + share * (factor - 1))
    removals = {
        "scheduler": {"tasks_rate": 1e9},
        "store": {"node_rate": 1e15, "store_rate": 1e15},
        "stragglers": {"block_s": mean_s, "straggler_share": 0.0, "spread": 0.0},
        "start": {"start_s": 0.0},
    }
    print("| GPUs | makespan | efficiency |" + "".join(f" without {name} |" for name in removals) + " binds |")
    print("|-" * (4 + len(removals)) + "|")
    for gpus in GPUS:
        machine = replace(usual, gpus=gpus)
        makespan, computing = simulate(machine, blocks)
        without = {name: simulate(replace(machine, **changed), blocks)[0] for name, changed in removals.items()}
        least = min(without, key=lambda name: without[name])
        binds = least if without[least] < BINDS * makespan else "computing"
        cells = [f"{seconds / 60:.1f} min" for seconds in without.values()]
        print(f"| {gpus} | {makespan / 60:.1f} min | {computing / gpus / makespan:.1%} | {' | '.join(cells)} | {binds} |")


def do_nothing() -> object:
    return int


def measure_scheduler(options: argparse.Namespace) -> None:
    from neurotome.engines import EngineSettings, open_engine

    with open_engine(EngineSettings(scheduler="local", workers=options.workers, threads=4), "cpu") as engine:
        list(engine.run(do_nothing, range(100)))
        began = time.perf_counter()
        count = sum(outcome.error is None for outcome in engine.run(do_nothing, range(options.tasks)))
        seconds = time.perf_counter() - began
    print(f"{count} tasks that do nothing on {options.workers} workers: {seconds:.2f} s, {count / seconds:.0f} tasks/s")


def measure_workers(options: argparse.Namespace) -> None:
    cores = sorted(os.sched_getaffinity(0))
    rates, labels = [], []
    for workers in (1, 2):
        out = options.work / f"{workers}.zarr"
        command = [sys.executable, "-m", "neurotome", "predict", options.model, options.volume, out, "--overwrite"]
        command += ["--device", "cpu", "--workers", workers, "--threads", 1, *options.rest]
        began = time.perf_counter()
        subprocess.run(
            [str(part) for part in command],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: os.sched_setaffinity(0, cores[:workers]),  # noqa: B023  # called at once
        )
        whole_s = time.perf_counter() - began
        entries = [entry for _, entry in open_ledger(out).find_all()]
        ends = [datetime.datetime.fromisoformat(entry["time"]).timestamp() for entry in entries]
        span_s = max(ends) - min(end - entry["seconds"] for end, entry in zip(ends, entries, strict=True))
        store = open_label_store(out)
        labels.append(store.read(tuple(slice(0, size) for size in store.shape_zyx)))
        rates.append(labels[-1].size / span_s / 1e6)
        print(
            f"{workers} workers on as many cores: {len(entries)} blocks in {span_s:.1f} s, {rates[-1]:.3f} Mvoxel/s; "
            f"{whole_s - span_s:.1f} s to start and to finish"
        )
    same = "identical" if np.array_equal(*labels) else f"{(labels[0] != labels[1]).mean():.2e} of the voxels differ"
    print(f"2 workers are {rates[1] / rates[0]:.2f} times as fast as 1; labels: {same}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    measured = commands.add_parser("measure")
    measured.add_argument("model")
    measured.add_argument("volume")
    measured.add_argument("--work", type=Path, default=Path("runs/scaling"))
    measured.set_defaults(do=measure_workers)
    scheduler = commands.add_parser("scheduler")
    scheduler.add_argument("--tasks", type=int, default=3000)
    scheduler.add_argument("--workers", type=int, default=2)
    scheduler.set_defaults(do=measure_scheduler)
    simulated = commands.add_parser("simulate")
    simulated.add_argument("--gigavoxel", type=float, default=1000)
    simulated.add_argument("--block-mvoxel", type=float, default=32)
    simulated.add_argument("--mvoxel-per-s", type=float, default=40, help="of one GPU, without waiting")
    simulated.add_argument("--blocks", type=Path, help="a store whose ledger says how block times are spread")
    simulated.add_argument("--spread", type=float, default=0.1, help="standard deviation of the logarithm")
    simulated.add_argument("--straggler-share", type=float, default=0.01)
    simulated.add_argument("--straggler-factor", type=float, default=5)
    simulated.add_argument("--bytes-per-voxel", type=float, default=1.0, help="read, halos included")
    simulated.add_argument("--node-gb-per-s", type=float, default=2)
    simulated.add_argument("--store-gb-per-s", type=float, default=10)
    simulated.add_argument("--tasks-per-s", type=float, default=200)
    simulated.add_argument("--start-s", type=float, default=20)
    simulated.set_defaults(do=run_simulation)
    own, *rest = " ".join(sys.argv[1:]).split(" -- ")
    options = parser.parse_args(own.split())
    options.rest = " ".join(rest).split()
    options.do(options)


if __name__ == "__main__":
    main()
