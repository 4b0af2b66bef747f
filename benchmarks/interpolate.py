"""How well `neurotome interpolate` fills slices whose labels are hidden: by shapes, by the image, by the nearest slice.

    python benchmarks/interpolate.py --data ../shared/data
    python benchmarks/interpolate.py --picture docs/pictures/interpolate.png

Every so many slices keep their labels; macro F1 is that of the others, over the classes they hold. Two cutouts of the
phantom (25 x 160 x 160 voxels of 1.17 um), and 13 sections of vnc_sstem (512 x 512 pixels of 4.6 nm, 50 nm apart).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.metrics import f1_score

from neurotome import interpolate, open_dataset
from neurotome.annotating.interpolate import InterpolateSettings
from neurotome.classes import ClassSet
from neurotome.datasets.phantom.make import CLASSES, PhantomSettings, make_phantom
from neurotome.io import open_labels

IGNORE = 255


def list_stacks(data: Path | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns grey values and labels, shape (z, y, x), of every stack by its name."""
    stacks = {}
    for region in ("cortex", "vp"):
        settings = PhantomSettings(height=160, width=160, train_depth=25, val_depth=1, test_depth=1, regions=(region,))
        (cutout,) = make_phantom(settings).split("train")
        stacks[region] = np.asarray(cutout.volume.data[:]), np.asarray(cutout.labels)
    if data is not None:
        sections = [c for split in open_dataset(data / "vnc_sstem").splits.values() for c in split]
        sections = sorted(sections, key=lambda cutout: cutout.name)[:13]
        window = slice(None), slice(256, 768), slice(256, 768)
        stacks["vnc_sstem"] = (
            np.concatenate([np.asarray(cutout.volume.data[window]) for cutout in sections]),
            np.concatenate([np.asarray(cutout.labels)[window] for cutout in sections]).astype(np.uint8),
        )
    return stacks


def fill(grey: np.ndarray, labels: np.ndarray, kept: list[int], folder: Path, *, image: bool) -> tuple[np.ndarray, float]:
    """Returns the labels that the command makes of the kept slices, and the processor seconds it takes."""
    sparse = np.full_like(labels, IGNORE)
    sparse[kept] = labels[kept]
    np.save(folder / "sparse.npy", sparse)
    np.save(folder / "grey.npy", grey)
    settings = InterpolateSettings(image=folder / "grey.npy" if image else None, existing="replace")
    began = time.process_time()
    out, _ = interpolate(folder / "sparse.npy", out=folder / "full.npy", settings=settings)
    return np.asarray(open_labels(out)), time.process_time() - began


def draw(path: Path) -> None:
    """Draws a hidden slice of the white matter between two labelled ones: the image, the truth, and what is filled in."""
    import matplotlib
    from matplotlib.figure import Figure

    from neurotome.figures.style import STYLE, save_figure

    grey, labels = list_stacks(None)["vp"]
    kept, shown = list(range(0, len(labels), 4)), 6
    with tempfile.TemporaryDirectory() as folder:
        shapes, followed = (fill(grey, labels, kept, Path(folder), image=image)[0] for image in (False, True))
    panels = {"image": grey, "true labels": labels, "with --image": followed, "shapes alone": shapes}
    colours = np.array(ClassSet(CLASSES).colours, np.uint8)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 3.4))
        for axes, (title, stack) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
            plane = stack[shown]
            axes.imshow(plane if title == "image" else colours[plane], cmap="gray", interpolation="nearest")
            axes.set(title=title, xticks=[], yticks=[])
        save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds vnc_sstem; without it the phantom alone")
    parser.add_argument("--every", nargs="+", type=int, default=[2, 3, 4, 6])
    parser.add_argument("--picture", type=Path, help="draw one slice into this file, and measure nothing")
    asked = parser.parse_args()
    if asked.picture:
        draw(asked.picture)
        return
    heads = ("stack", "labelled: every", "nearest slice", "shapes", "image", "s / Mvoxel, shapes", "s / Mvoxel, image")
    print(f"| {' | '.join(heads)} |\n{'|-' * len(heads)}|")
    for name, (grey, labels) in list_stacks(asked.data).items():
        for every in asked.every:
            kept = list(range(0, len(labels), every))
            hidden = [z for z in range(kept[-1]) if z not in kept]
            nearest = labels[[min(kept, key=lambda k: abs(k - z)) for z in range(len(labels))]]
            with tempfile.TemporaryDirectory() as folder:
                found = [fill(grey, labels, kept, Path(folder), image=image) for image in (False, True)]
            truth = labels[hidden]
            known = truth != IGNORE
            scores = [
                f1_score(truth[known], one[hidden][known], labels=np.unique(truth[known]), average="macro")
                for one in (nearest, *(filled for filled, _ in found))
            ]
            speeds = [f"{1e6 * seconds / truth.size:.1f}" for _, seconds in found]
            print(f"| {' | '.join([name, str(every), *(f'{score:.3f}' for score in scores), *speeds])} |", flush=True)


if __name__ == "__main__":
    main()
