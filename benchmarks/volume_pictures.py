"""The pictures of docs/volumes.md: a phantom volume and a real cube in three planes, with what `predict` makes of them.

    python benchmarks/volume_pictures.py --data ../shared/data --model microct-base --out docs/pictures

The cube is microCT of another mouse brain: Dyer et al. (2017) eNeuro 4(5), doi:10.1523/ENEURO.0195-17.2017.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import zarr

from neurotome.datasets.phantom.make import make_cutout
from neurotome.datasets.phantom.regions import INSTRUMENT, REGIONS
from neurotome.figures import plot_planes, save_figure
from neurotome.inference.predict import PredictSettings, predict
from neurotome.inference.volume_settings import VolumeSettings
from neurotome.io.ome_zarr import create_ome_zarr
from neurotome.load import load_predictor

VOXEL_UM = 1.17


def label(volume: np.ndarray, model: str, folder: Path, axes: str) -> np.ndarray:
    """Writes a volume as OME-Zarr, predicts it there and reads the labels back."""
    sizes = (VOXEL_UM,) * 3
    source, target = folder / f"image-{axes}.zarr", folder / f"labels-{axes}.zarr"
    array = create_ome_zarr(source, volume.shape, volume.dtype, sizes, name="image", shard=volume.shape, chunk=volume.shape)
    array[:] = volume
    predict(model, source, target, settings=PredictSettings(), options=VolumeSettings(axes=axes))
    return np.asarray(zarr.open_array(str(target / "0"), mode="r")[:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="microct-base")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    classes = load_predictor(arguments.model, "cpu").classes
    phantom, truth = make_cutout(REGIONS["striatum"], INSTRUMENT, (96, 192, 192), np.random.default_rng(5))
    cube = np.load(arguments.data / "microct_patches" / "unlabelled" / "xbrain_cube3_96x200x200.npz")["volume"]
    with tempfile.TemporaryDirectory() as name:
        for title, volume, axes in (("phantom", phantom, "z"), ("phantom", phantom, "zyx"), ("xbrain", cube, "zyx")):
            folder = Path(name) / f"{title}-{axes}"
            folder.mkdir()
            labels = label(volume, arguments.model, folder, axes)
            figure = plot_planes(volume, labels, classes, (VOXEL_UM,) * 3)
            save_figure(figure, arguments.out / f"volume_{title}_{axes}.png")
            if title == "phantom":
                print(f"{title}, axes {axes}: {100 * (labels == truth).mean():.2f} % of voxels as they were made")
    save_figure(plot_planes(phantom, truth, classes, (VOXEL_UM,) * 3), arguments.out / "volume_phantom_truth.png")


if __name__ == "__main__":
    main()
