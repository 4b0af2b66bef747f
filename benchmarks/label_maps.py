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
from numpy.typing import NDArray

from neurotome.atomic import write_bytes

REGION_OF = {"ctx": "cortex", "str": "striatum", "trn": "vp", "zi": "zi"}
LEFT_OUT = {"ctx": (1, 3, 6), "str": (1, 3, 6), "trn": (1, 3, 6), "zi": (0, 1, 3, 6)}


def join_quadrants(maps: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns planes (8, 256, 256) of maps (32, 128, 128): 8 each of top left, bottom left, top right, bottom right."""
    top_left, bottom_left, top_right, bottom_right = maps.reshape(4, 8, 128, 128)
    top, bottom = np.concatenate([top_left, top_right], 2), np.concatenate([bottom_left, bottom_right], 2)
    return np.concatenate([top, bottom], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/label_maps.npz"))
    arguments = parser.parse_args()
    with np.load(arguments.data / "microct_patches" / "label_maps_128_patches.npz") as content:
        planes = {name: join_quadrants(content[name]) for name in REGION_OF}
    kept = {REGION_OF[name]: np.delete(of_region, LEFT_OUT[name], 0) for name, of_region in planes.items()}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    written = io.BytesIO()
    np.savez_compressed(written, **kept)
    write_bytes(arguments.out, written.getvalue())
    print(f"{arguments.out}: {', '.join(f'{len(maps)} {region}' for region, maps in kept.items())}")


if __name__ == "__main__":
    main()
