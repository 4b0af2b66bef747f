"""Throughput and memory of fetch, beside a bare read of the same bytes with the same client.

    python benchmarks/fetch.py

A local server answers from memory, so that neither side waits for voxels to be computed. Both sides read the train split
of MTNeuro task 2 (labels 64 bits wide) block by block with the same client, workers and blocks: the bare read drops what it
gets, fetch checks, narrows, compresses, syncs and writes it down. The sides take turns, each in a process of its own; its
peak memory is its own too.
"""

from __future__ import annotations

import argparse
import json
import queue
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from neurotome.datasets.mtneuro import download  # noqa: E402
from neurotome.datasets.mtneuro.download import BLOCK_SLICES, IMAGE_URI, LABELS_URI  # noqa: E402
from neurotome.datasets.mtneuro.variants import EDGE, REGIONS, Z_RANGES  # noqa: E402
from neurotome.io.bossdb import BossDB, Box, Connection  # noqa: E402

TRAIN = {"train": Z_RANGES["train"]}
download.Z_RANGES = TRAIN


def plan_boxes():
    """Returns what fetch asks for: kind and box of every block."""
    boxes = []
    start, stop = TRAIN["train"]
    for y, x in REGIONS.values():
        for kind in ("image", "labels"):
            starts = range(start, stop, BLOCK_SLICES)
            boxes += [(kind, Box((z, y, x), (min(z + BLOCK_SLICES, stop), y + EDGE, x + EDGE))) for z in starts]
    return boxes


def read_bare(connection):
    work = queue.SimpleQueue()
    for item in plan_boxes():
        work.put(item)
    with BossDB(connection) as client:
        channels = {"image": client.open_channel(IMAGE_URI), "labels": client.open_channel(LABELS_URI)}

        def run():
            while True:
                try:
                    kind, box = work.get_nowait()
                except queue.Empty:
                    return
                client.read_cutout(channels[kind], box)

        threads = [threading.Thread(target=run) for _ in range(connection.workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def measure_side(side, host):
    """Runs one side in this process and prints seconds and peak memory."""
    connection = Connection(host, "http")
    # both sides begin with everything imported: a command's start is not throughput
    import httpx2  # noqa: F401
    import zarr.codecs
    import zarr.storage  # noqa: F401

    with tempfile.TemporaryDirectory(dir=ROOT) as folder:  # a real disk, not one in memory
        began, began_cpu = time.perf_counter(), time.process_time()
        if side == "bare":
            read_bare(connection)
        else:
            download.fetch_mtneuro(Path(folder) / "mtneuro", connection, verify_counts=False)
        seconds = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = used.ru_utime + used.ru_stime - began_cpu
    # not ru_maxrss, which a child begins with its parent's
    status = Path("/proc/self/status").read_text()
    peak_mb = int(status.split("VmHWM:")[1].split()[0]) / 1024
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peak_mb": peak_mb}))


def run_side(side, host):
    command = [sys.executable, __file__, "--side", side, "--host", host]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--side", choices=("bare", "fetch"))
    parser.add_argument("--host")
    parser.add_argument("--keep", action="store_true", help="the server answers from memory")
    options = parser.parse_args()
    if options.side:
        return measure_side(options.side, options.host)

    from tests.fake_bossdb import serve

    voxels = 2 * sum((stop - start) * 4 * 256 * 256 for start, stop in TRAIN.values()) / 1e6
    with serve(keep=options.keep) as server:
        run_side("bare", server.host)  # fills the server's memory
        found = {"bare": [], "fetch": []}
        for i in range(options.repeat):
            for side in ("bare", "fetch") if i % 2 == 0 else ("fetch", "bare"):
                found[side].append(run_side(side, server.host))
        sent = sum(len(body) for body in (server.kept or {}).values()) / 1e6
    print(f"{voxels:.0f} Mvoxel, {voxels / 2 + voxels * 4:.0f} MB unpacked, {sent:.0f} MB on the wire, n = {options.repeat}")
    for side, runs in found.items():
        seconds = sorted(run["seconds"] for run in runs)
        rate = voxels / statistics.median(seconds)
        cpu = statistics.median(run["cpu"] for run in runs)
        peak = max(run["peak_mb"] for run in runs)
        print(
            f"{side:5}: median {statistics.median(seconds):.2f} s ({seconds[0]:.2f} to {seconds[-1]:.2f}), "
            f"{rate:.0f} Mvoxel/s, CPU {cpu:.2f} s, peak memory {peak:.0f} MB"
        )
    ratios = sorted(one["seconds"] / other["seconds"] for one, other in zip(found["bare"], found["fetch"], strict=True))
    print(f"throughput of fetch over bare: median {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    return None


if __name__ == "__main__":
    main()
