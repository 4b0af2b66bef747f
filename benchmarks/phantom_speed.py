"""How fast synthetic tissue is made, on one core.

    OMP_NUM_THREADS=1 python benchmarks/phantom_speed.py

Counts the voxels that are kept, not those made around them so that blur sees no border. What training waits for tissue is in
the run's training.json (seconds_waited_for_tissue).
"""

import statistics
import time

import numpy as np

from neurotome.datasets.phantom.make import make_cutout
from neurotome.datasets.phantom.regions import INSTRUMENT, REGIONS, draw_instrument, draw_region

REPEATS = 7


def measure(shape: tuple[int, int, int], randomised: bool) -> list[float]:
    """Returns Mvoxel per second, over one cutout of each region per repetition."""
    found = []
    for repeat in range(REPEATS + 1):
        began = time.process_time()
        for number, base in enumerate(REGIONS.values()):
            rng = np.random.default_rng([repeat, number])
            region, instrument = (draw_region(base, rng), draw_instrument(rng)) if randomised else (base, INSTRUMENT)
            make_cutout(region, instrument, shape, rng)
        found.append(len(REGIONS) * np.prod(shape) / 1e6 / (time.process_time() - began))
    return found[1:]  # the first one imports


def main() -> None:
    print("| cutout | mode | Mvoxel/s and core, median (range) |")
    print("|-|-|-|")
    for shape in ((8, 256, 256), (64, 256, 256)):
        for randomised in (False, True):
            speed = measure(shape, randomised)
            name = "randomised" if randomised else "faithful"
            low, high = min(speed), max(speed)
            print(f"| {' x '.join(map(str, shape))} | {name} | {statistics.median(speed):.2f} ({low:.2f} to {high:.2f}) |")


if __name__ == "__main__":
    main()
