"""The label maps from which `stream.maps` takes the geometry of traced tissue: quadrants put together, some left out.

    python benchmarks/label_maps.py --data ../shared/data --out runs/label_maps.npz

Of 8 planes per region, those are left out by which a model is judged: planes 1 and 6 lie near the two unlabelled slices,
and the four patches are quadrants of planes 6 (cortex, striatum), 3 (TRN) and 1 (zona incerta). So is plane 0 of the zona
incerta, in which every dark gap was drawn as a vessel.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from transfer_measures import read_planes

from neurotome.atomic import write_bytes

LEFT_OUT = {"cortex": (1, 3, 6), "striatum": (1, 3, 6), "vp": (1, 3, 6), "zi": (0, 1, 3, 6)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/label_maps.npz"))
    arguments = parser.parse_args()
    kept = {region: np.delete(maps, LEFT_OUT[region], 0) for region, maps in read_planes(arguments.data).items()}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    written = io.BytesIO()
    np.savez_compressed(written, **kept)
    write_bytes(arguments.out, written.getvalue())
    print(f"{arguments.out}: {', '.join(f'{len(maps)} {region}' for region, maps in kept.items())}")


if __name__ == "__main__":
    main()
