"""What is read of a volume until a browser has shown a whole plane of it, without and with stored coarser levels.

An OME-Zarr of 64 x 2048 x 2048 voxels (z y x, uint8, chunks of 64) is written, first with its finest level alone,
then with levels halved three times. Chromium, without a window, opens the page of each and is shown all of the plane in the
middle; what the page's server reads until nothing more is asked for is counted. Needs the extra view, and chromium.
Run: python benchmarks/view_levels.py
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from neurotome.io.lazy_array import LazyArray
from neurotome.io.ome_zarr import describe_multiscale
from neurotome.io.pyramid import shrink_grey
from neurotome.viewing.page import open_page
from neurotome.viewing.scene import open_scene

sys.path.insert(0, str(Path(__file__).parents[1]))

SHAPE = (64, 2048, 2048)
CHUNK = 64
STEPS = 3
QUIET_S = 15.0
"""Nothing was read for so long: all is shown."""


class Count:
    """Chunks and voxels that lazy arrays read, and when they last did."""

    def __init__(self) -> None:
        self.chunks = self.voxels = 0
        self.last = time.monotonic()
        self._lock = threading.Lock()

    def add(self, place: tuple[slice, slice, slice]) -> None:
        """Counts a place that is read."""
        chunks = np.prod([(part.stop - 1) // CHUNK - part.start // CHUNK + 1 for part in place])
        with self._lock:
            self.chunks += int(chunks)
            self.voxels += int(np.prod([part.stop - part.start for part in place]))
            self.last = time.monotonic()


def write_volume(path: Path, finest: NDArray[np.uint8], steps: int) -> Path:
    """Writes a volume and as many coarser levels."""
    group = zarr.open_group(path, mode="w", zarr_format=3)
    factors = {}
    for level in range(steps + 1):
        group.create_array(str(level), data=finest, chunks=(CHUNK,) * 3)
        factors[str(level)] = (2**level,) * 3
        finest = shrink_grey(finest, (2, 2, 2))
    group.update_attributes(
        {"ome": {"version": "0.5", "multiscales": [describe_multiscale("v", (1.0,) * 3, (0, 0, 0), factors)]}}
    )
    return path


def count_plane(path: Path, folder: Path) -> tuple[Count, float]:
    """Returns what is read for a whole plane, and the seconds from the browser's start to the last of it."""
    from tests.chromium import open_browser

    scene = open_scene(path)
    count, read = Count(), LazyArray._read_place

    def read_counted(self: LazyArray, place: Any) -> Any:
        voxels = read(self, place)
        count.add(place)
        return voxels

    with open_page(scene) as page:
        with page.viewer.txn() as state:
            state.layout = "xy"
            state.cross_section_scale = SHAPE[1] / 600
        LazyArray._read_place = read_counted  # type: ignore[method-assign]
        began = time.monotonic()
        try:
            with open_browser(folder, page.url) as browser:
                while count.voxels == 0 or time.monotonic() - count.last < QUIET_S:
                    time.sleep(0.5)
                browser.take_picture()
        finally:
            LazyArray._read_place = read  # type: ignore[method-assign]
    return count, count.last - began


def main() -> None:
    """Prints a row for each volume."""
    finest = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    with tempfile.TemporaryDirectory() as name:
        for steps in (0, STEPS):
            path = write_volume(Path(name) / f"levels_{steps}.zarr", finest, steps)
            count, seconds = count_plane(path, Path(name) / f"browser_{steps}")
            sys.stdout.write(
                f"coarser levels: {steps}; chunks read: {count.chunks}; Mvoxel: {count.voxels / 1e6:.1f}; {seconds:.0f} s\n"
            )


if __name__ == "__main__":
    main()
