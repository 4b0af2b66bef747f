"""Jobs of a volume in processes of their own, which tests can kill; with faults, such as a poisoned block, built in.

Jobs are forked from a server that has imported everything, because importing torch takes longer than a tiny volume.
"""

import asyncio
import contextlib
import errno
import logging
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import torch  # noqa: F401  # as below: so that no job need import it
import zarr.codecs  # noqa: F401

import neurotome.inference.jobs
import neurotome.inference.predict
import neurotome.inference.volumes
import neurotome.load
import neurotome.models.net
import neurotome.pixels.saving  # noqa: F401
from neurotome import atomic, cli
from neurotome.engines import processes
from neurotome.inference import block_worker, volumes  # noqa: F401  # so that jobs need not import it
from neurotome.io.block_ledger import BlockLedger

with contextlib.suppress(ImportError):  # needs the extra cluster
    import distributed.cli  # noqa: F401


def do_job(command, log, faults):
    """Gives a command as on a terminal."""
    prepare(log, faults)
    cli.main([str(part) for part in command])


def serve_scheduler(log, address):
    """Is a scheduler of dask until it is killed; writes its address into a file."""
    prepare(log, {})
    import distributed

    async def serve():
        async with distributed.Scheduler(host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0") as scheduler:
            atomic.write_text(address, scheduler.address)
            await scheduler.finished()

    asyncio.run(serve())


def serve_worker(log, address, faults):
    """Is a worker of dask until its scheduler goes."""
    prepare(log, faults)
    import distributed

    async def serve():
        async with distributed.Worker(address, nthreads=1, dashboard=False) as worker:
            await worker.finished()

    asyncio.run(serve())


def prepare(log, faults):
    """Builds faults into this process; `log` gets a line for every block that is begun, a file beside it what is said."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # processes may come from the server of trainings, which ignores it
    os.setpgid(0, 0)
    logging.disable()  # dask tells much
    said = Path(f"{log}.{os.getpid()}.txt")
    sys.stdout = sys.stderr = said.open("w", encoding="utf-8", buffering=1)  # until the process ends
    label_block, add, sync = block_worker.label_block, BlockLedger.add, atomic._sync
    processes.multiprocessing.get_context = lambda _: multiprocessing.context.ForkContext()
    begun = []

    def label(predictor, volume, scale, geometry, block, *rest, **options):
        with log.open("a") as file:
            file.write(f"{block}\n")
        first = log.read_text().split().count(str(block)) == 1
        fault = faults.get(block, "")
        if fault == "poison":
            raise ValueError("poisoned")
        if fault == "kill worker" and first:
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "hang" and first:
            time.sleep(1000)
        while faults.get("gate") and not faults["gate"].exists():
            time.sleep(0.01)
        return label_block(predictor, volume, scale, geometry, block, *rest, **options)

    def add_line(ledger, block, **facts):
        if faults.get(block) == "kill before its line":
            os.kill(os.getpid(), signal.SIGKILL)
        add(ledger, block, **facts)

    def sync_file(path, flags):
        begun.extend([path] * ("c" in path.parts and path.suffix == ".partial"))  # blocks
        if len(begun) > faults.get("room", 10**6):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        sync(path, flags)

    block_worker.label_block, BlockLedger.add, atomic._sync = label, add_line, sync_file
