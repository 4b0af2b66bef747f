"""The pictures of docs/phantom.md: phantom beside real tissue, and what a model makes of real slices.

    python benchmarks/phantom_pictures.py --data ../shared/data --model microct-base --out docs/pictures

Real images: Prasad et al. (2020), doi:10.1038/s41597-020-00692-y, CC BY 4.0; they are shown reduced or as cut-outs.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from neurotome.classes import ClassSet
from neurotome.datasets.phantom.make import CLASSES, make_cutout
from neurotome.datasets.phantom.regions import INSTRUMENT, REGIONS, draw_instrument, draw_region
from neurotome.inference.slices import predict_slices
from neurotome.models.model_folder import load_model
from neurotome.volume import Volume

ANNOTATED = {"cortex": (900, 4600), "striatum": (500, 3700), "vp": (850, 3063), "zi": (650, 1543)}
BETWEEN = {
    (560, 3300): replace(REGIONS["striatum"], axon_share=0.05, beyond_share=1.0, fibre_angle_deg=-30.0, gap_depth=12.0),
    (420, 2560): replace(REGIONS["vp"], axon_share=0.95, beyond_share=0.6, fibre_angle_deg=0.0),
}
"""Places between the annotated regions: border of striatum and internal capsule; white matter above the thalamus."""
EDGE, GAP = 256, 6


def read_slice(data: Path, z: int) -> np.ndarray:
    return np.asarray(Image.open(data / "microct_patches" / "unlabelled" / f"slice_z{z}_1420x5805.png"))


def tile(rows: list[list[np.ndarray]]) -> np.ndarray:
    """Puts pictures (y, x, 3) of one size in rows, white between them."""
    height, width, _ = rows[0][0].shape
    sheet = np.full((len(rows) * (height + GAP) - GAP, len(rows[0]) * (width + GAP) - GAP, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            sheet[i * (height + GAP) :, j * (width + GAP) :][:height, :width] = picture
    return sheet


def grey(image: np.ndarray) -> np.ndarray:
    return np.repeat(image[..., None], 3, axis=-1)


def show_phantom(data: Path, out: Path, classes: ClassSet) -> None:
    plane = read_slice(data, 159)
    real, made, labelled, drawn = [], [], [], []
    places = [(place, REGIONS[name]) for name, place in ANNOTATED.items()] + list(BETWEEN.items())
    for number, ((y, x), region) in enumerate(places):
        image, labels = make_cutout(region, INSTRUMENT, (1, EDGE, EDGE), np.random.default_rng([9, number]))
        rng = np.random.default_rng([11, number])
        other, _ = make_cutout(draw_region(region, rng), draw_instrument(rng), (1, EDGE, EDGE), rng)
        real.append(grey(plane[y : y + EDGE, x : x + EDGE]))
        made.append(grey(image[0]))
        labelled.append(classes.overlay(image[0], labels[0]))
        drawn.append(grey(other[0]))
    Image.fromarray(tile([real, made, labelled, drawn])).save(out / "phantom_beside_real.png", optimize=True)


def show_model(data: Path, model: str, out: Path, classes: ClassSet) -> None:
    predictor = load_model(Path(model))
    for z in (159, 309):
        plane = read_slice(data, z)
        labels = next(predict_slices(predictor, Volume(plane[None], f"z{z}", predictor.voxel_size_um))).argmax(0)
        painted = classes.overlay(plane, labels)
        whole = Image.fromarray(painted).resize((plane.shape[1] // 3, plane.shape[0] // 3), Image.Resampling.LANCZOS)
        whole.save(out / f"{Path(model).name}_z{z}.jpg", quality=82)
        places = [(slice(y, y + EDGE), slice(x, x + EDGE)) for y, x in ANNOTATED.values()]
        rows = [[grey(plane[p]) for p in places], [painted[p] for p in places]]
        Image.fromarray(tile(rows)).save(out / f"{Path(model).name}_z{z}_regions.png", optimize=True)
        print(f"z = {z}: share of each class", np.bincount(labels.ravel(), minlength=4) / labels.size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="", help="leave out to draw the phantom alone")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    classes = ClassSet(CLASSES)
    show_phantom(arguments.data, arguments.out, classes)
    if arguments.model:
        show_model(arguments.data, arguments.model, arguments.out, classes)


if __name__ == "__main__":
    main()
