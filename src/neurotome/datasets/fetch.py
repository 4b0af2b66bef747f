"""fetch: annotated data and volumes from BossDB."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from neurotome.datasets.mtneuro.download import fetch_mtneuro, import_mtneuro, list_versions
from neurotome.datasets.mtneuro.variants import CITATION, LICENCE, VOXEL_SIZE_UM
from neurotome.errors import SettingsError, unknown
from neurotome.io.bossdb import PUBLIC_TOKEN, BossDB, Box, Connection, parse_uri
from neurotome.io.ledger import hold_ledger
from neurotome.io.ome_zarr import CHUNK, choose_shard, create_ome_zarr
from neurotome.io.transfer import Transfer, find_missing, transfer_blocks
from neurotome.volume import Size

# A token is a secret: it does not belong into a file of settings, a command's history or the list of processes.
TOKEN_VARIABLE = "BOSSDB_TOKEN"


def fetch(
    source: str,
    *,
    out: Path,
    range_zyx: Annotated[str | None, Parameter(name="--range")] = None,
    voxel_size_um: Size | None = None,
    from_cache: Path | None = None,
    verify_counts: bool = True,
    connection: Annotated[Connection, Parameter(name="*")] = Connection(),
) -> Path:
    """Fetches MTNeuro task 2, or a box of any channel of BossDB; the same command goes on where it was stopped.

    The environment variable BOSSDB_TOKEN is your token for data that are not public.

    Args:
        source: mtneuro, or bossdb://COLLECTION/EXPERIMENT/CHANNEL.
        out: Folder that gets MTNeuro, or the OME-Zarr of a box (such as volume.zarr).
        range_zyx: Box of a channel, z0:z1,y0:y1,x0:x1 in voxels at full resolution, stops left out.
        voxel_size_um: Voxel size (z, y, x) in micrometres that is written into an OME-Zarr. Without it the server's; for
            prasad/prasad2020, whose server entry is wrong, the published 1.17.
        from_cache: Imports the task2_*.npy files of MTNeuro's own loader from this folder instead of fetching.
        verify_counts: Whether other pixels per class than the founding report's Table 1 are an error.
        connection: How BossDB is asked.

    Returns:
        `out`.

    Raises:
        NeurotomeError: A setting is wrong, or something cannot be fetched or verified; what has arrived is kept.
    """
    out = Path(out)  # text from Python
    token = os.environ.get(TOKEN_VARIABLE, PUBLIC_TOKEN)
    if source == "mtneuro":
        if range_zyx is not None or voxel_size_um is not None:
            raise SettingsError("--range and --voxel-size-um are for a channel (bossdb://...); mtneuro's are fixed.")
        if from_cache is not None:
            return import_mtneuro(from_cache, out, verify_counts=verify_counts)
        return fetch_mtneuro(out, connection, token, verify_counts=verify_counts)
    if not source.startswith("bossdb:"):
        raise SettingsError(unknown("source", source, ("mtneuro", "bossdb://collection/experiment/channel")))
    if from_cache is not None or not verify_counts:
        raise SettingsError("--from-cache and --no-verify-counts are for mtneuro, not for a channel.")
    parse_uri(source)
    if range_zyx is None:
        raise SettingsError(
            f"{source}: say which box with --range z0:z1,y0:y1,x0:x1, for example --range 380:409,900:1156,4600:4856."
        )
    return fetch_volume(source, parse_range(range_zyx), out, connection, token, voxel_size_um=voxel_size_um)


def parse_range(text: str) -> Box:
    """Returns the box of z0:z1,y0:y1,x0:x1, or raises a SettingsError."""
    numbers = re.fullmatch(",".join([r"\s*(\d+)\s*:\s*(\d+)\s*"] * 3), text)
    if numbers is None:
        raise SettingsError(f"--range {text}: expected z0:z1,y0:y1,x0:x1, for example 380:409,900:1156,4600:4856.")
    z0, z1, y0, y1, x0, x1 = map(int, numbers.groups())
    for axis, start, stop in (("z", z0, z1), ("y", y0, y1), ("x", x0, x1)):
        if start >= stop:
            raise SettingsError(f"--range {text}: {axis} is {start}:{stop}; expected a stop above the start.")
    return Box((z0, y0, x0), (z1, y1, x1))


def fetch_volume(
    uri: str,
    box: Box,
    out: Path,
    connection: Connection = Connection(),
    token: str = PUBLIC_TOKEN,
    *,
    voxel_size_um: Size | None = None,
) -> Path:
    """Fetches a box of a channel into an OME-Zarr 0.5 of one level, block by block; goes on where it was stopped.

    The ledger of its blocks lies beside it, as `<out>.ledger.jsonl`.

    Raises:
        FetchError: Something cannot be fetched; what has arrived is kept.
        SettingsError: The box is not within the channel, or the voxel size is not known.
        RunError: Another process is working there, or something else lies there.
    """
    source = {"host": connection.host, "uri": uri, "range_zyx": str(box)}
    with BossDB(connection, token) as client:
        channel = client.open_channel(uri)
        bounds, server_size_um = client.read_frame(uri)
        if any(a < low or b > high for a, b, low, high in zip(*box, *bounds, strict=True)):
            raise SettingsError(f"--range {box} is not within {uri}, which has {bounds} (z, y, x).")
        *experiment, name = parse_uri(uri)
        notes: dict[str, Any] = {"source": source, "versions": list_versions(), "complete": False}
        size_um = voxel_size_um or server_size_um
        if experiment in (["prasad", "prasad2020"], ["prasad", "prasad_analysis"]):
            notes |= {"licence": LICENCE, "citation": CITATION}
            size_um = voxel_size_um or VOXEL_SIZE_UM
        if size_um is None:
            raise SettingsError(f"{uri}: the server does not say how large a voxel is; give --voxel-size-um Z Y X.")
        if not all(0 < size < float("inf") for size in size_um):
            raise SettingsError(f"--voxel-size-um {size_um}: expected three positive numbers (z, y, x) in micrometres.")
        create = partial(
            create_ome_zarr,
            out,
            box.shape,
            channel.dtype,
            size_um,
            name=name,
            origin_zyx=box.start,
            shard=choose_shard(channel.dtype),
            chunk=CHUNK,
        )
        with hold_ledger(out, out.with_name(f"{out.name}.ledger.jsonl"), out, source) as ledger:
            transfers = [Transfer(create(notes=notes), lambda place: client.read_cutout(channel, box.cut(place)), uri)]
            transfer_blocks(transfers, find_missing(transfers, ledger), ledger, connection.workers, client)
            times = sorted(entry["time"] for entry in ledger.entries.values())
            notes |= {"complete": True, "times": {"first": times[0], "last": times[-1]}}
            create(notes=notes)
    return out
