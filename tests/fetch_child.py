"""A fetch in a process that a test kills; it imports little, so that twenty of them take little."""

from __future__ import annotations

from pathlib import Path

from neurotome.datasets.mtneuro import download
from neurotome.io.bossdb import Connection


def fetch(host: str, out: Path, z_ranges: dict[str, tuple[int, int]]) -> None:
    """Fetches these slices from a BossDB, block by block."""
    download.Z_RANGES, download.BLOCK_SLICES = z_ranges, 1
    download.fetch_mtneuro(out, Connection(host, "http", workers=3), verify_counts=False)
