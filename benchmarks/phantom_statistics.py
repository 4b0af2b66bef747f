"""Real tissue against phantom, number by number: the table of docs/phantom.md.

    python benchmarks/phantom_statistics.py --data ../shared/data --out table.md

Labels: 32 human-drawn maps of 128 x 128 pixels per region against as many of the phantom. Grey values: the annotated
regions of a real slice (z = 159), 256 x 256 each, against phantom slices of that size. VP is shown again at two places, with
the one label map that lies within a few slices of each and the grey values of that slice (z = 309 has 19 grey levels).
Profiles of cells and vessels: four real patches, whose grey values went through an unknown affine map, against phantom
patches; both are expressed so that the darkest pixel is 0 and the median of the tissue 100.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.measure import label, regionprops

from neurotome.datasets.phantom.make import make_cutout
from neurotome.datasets.phantom.regions import INSTRUMENT, REGIONS

REAL_MAPS = {"cortex": "ctx", "striatum": "str", "vp": "trn", "zi": "zi"}
ANNOTATED = {"cortex": (900, 4600), "striatum": (500, 3700), "vp": (850, 3063), "zi": (650, 1543)}
NEAR_PLANES = {159: 1, 309: 6}
"""Which of a region's eight label maps of 256 x 256 lies near a slice; entries of their quadrants are 8 apart."""
VESSEL, CELL = 1, 2
EDGE = 256


def make_phantoms(name: str, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    made = [make_cutout(REGIONS[name], INSTRUMENT, (1, EDGE, EDGE), np.random.default_rng([9, i])) for i in range(count)]
    return [(image[0], labels[0]) for image, labels in made]


def cut_quadrants(planes: list[np.ndarray]) -> np.ndarray:
    half = EDGE // 2
    return np.stack([p[y : y + half, x : x + half] for p in planes for y in (0, half) for x in (0, half)])


def measure_labels(maps: np.ndarray) -> dict[str, str]:
    """Counts and sizes of profiles in label maps (n, 128, 128); counts are per 256 x 256."""
    found: dict[str, str] = {}
    shares = np.bincount(maps.ravel(), minlength=4)[:4] / maps.size * 100
    found["background / vessel / cell / axon, %"] = " / ".join(f"{s:.1f}" for s in shares)
    for kind, value in (("cell", CELL), ("vessel", VESSEL)):
        profiles = [p for m in maps for p in regionprops(label(m == value, connectivity=2)) if p.area >= 4]
        diameters = np.array([p.equivalent_diameter_area for p in profiles])
        found[f"{kind} profiles per 256 x 256"] = f"{len(profiles) / len(maps) * 4:.0f}"
        if kind == "cell":
            found["cell profile diameter"] = f"{diameters.mean():.1f} ± {diameters.std():.1f}"
            found["nearest cell, median"] = f"{np.median(measure_neighbours(maps)):.0f}"
            continue
        found["vessel profile diameter, median"] = f"{np.median(diameters):.1f}"
        long = [p for p in profiles if p.axis_major_length >= 3 * max(p.axis_minor_length, 1)]
        found["vessel profiles longer than 3 : 1, %"] = f"{100 * len(long) / len(profiles):.0f}"
        widest = max(2 * ndimage.distance_transform_edt(np.pad(m == VESSEL, 1, mode="edge")).max() for m in maps)
        found["widest vessel"] = f"{widest:.0f}"
    return found


def measure_neighbours(maps: np.ndarray) -> np.ndarray:
    distances = []
    for m in maps:
        centres = np.array([p.centroid for p in regionprops(label(m == CELL, connectivity=2)) if p.area >= 4])
        if len(centres) > 1:
            apart = np.linalg.norm(centres[:, None] - centres, axis=-1)
            distances.append(np.sort(apart, axis=1)[:, 1])
    return np.concatenate(distances)


def measure_grey(planes: list[np.ndarray]) -> dict[str, str]:
    values = np.stack(planes).astype(float)
    fine = values - ndimage.gaussian_filter(values, (0, 12, 12))
    quiet = (values > np.median(values) - 40) & (values < 235)  # neuropil and axons, not vessels, cells or specks
    found = {"grey mean / sd": f"{values.mean():.0f} / {values.std():.0f}"}
    found["sd of neuropil and axons without slow changes"] = f"{fine[quiet].std():.0f}"
    for axis, name in ((2, "x"), (1, "y")):
        lags = []
        for lag in (1, 2, 3):
            a, b = (slice(None, -lag), slice(lag, None))
            first = fine[:, :, a] if axis == 2 else fine[:, a]
            second = fine[:, :, b] if axis == 2 else fine[:, b]
            both = (quiet[:, :, a] & quiet[:, :, b]) if axis == 2 else (quiet[:, a] & quiet[:, b])
            lags.append((first[both] * second[both]).mean() / fine[quiet].var())
        found[f"autocorrelation at {name} lags 1-3"] = " / ".join(f"{v:.2f}" for v in lags)
    found["specks (220 and more) per slice"] = f"{np.mean([label(p >= 220).max() for p in planes]):.0f}"
    return found


def scale(image: np.ndarray) -> np.ndarray:
    low = np.percentile(image, 0.1)
    tissue = np.median(image[image > low + 0.25 * (np.percentile(image, 99.9) - low)])
    return (image - low) / (tissue - low) * 100


def measure_profile(pairs: list[tuple[np.ndarray, np.ndarray]], value: int, low: float, high: float) -> str:
    """Mean grey 3, 2, 1 pixels within profiles of a class and 1..5 outside, relative to the tissue around (0)."""
    rows = []
    for image, labels in pairs:
        marked, grey = label(labels == value, connectivity=1), scale(image.astype(float))
        for p in regionprops(marked):
            if not low <= p.equivalent_diameter_area < high:
                continue
            mask = marked == p.label
            outside, inside = ndimage.distance_transform_edt(~mask), ndimage.distance_transform_edt(mask)
            around = np.median(grey[(outside > 6) & (outside < 12)])
            rings = [abs(inside - d) < 0.5 for d in (3, 2, 1)] + [abs(outside - d) < 0.5 for d in (1, 2, 3, 4, 5)]
            rows.append([grey[r].mean() - around if r.any() else np.nan for r in rings])
    if len(rows) < 1:
        return "none"
    return " ".join(f"{v:+.0f}" for v in np.nanmean(np.array(rows), axis=0)) + f" ({len(rows)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    folder = arguments.data / "microct_patches"
    maps = np.load(folder / "label_maps_128_patches.npz", allow_pickle=False)
    slices = {z: np.asarray(Image.open(folder / "unlabelled" / f"slice_z{z}_1420x5805.png")) for z in NEAR_PLANES}
    columns = [(name, 159, slice(None)) for name in ANNOTATED]
    columns += [("vp", z, slice(plane, None, 8)) for z, plane in NEAR_PLANES.items()]
    rows: dict[str, list[str]] = {}
    phantoms = {name: make_phantoms(name, 8) for name in REGIONS}
    for name, z, entries in columns:
        y, x = ANNOTATED[name]
        images, labels = zip(*phantoms[name], strict=True)
        real = measure_labels(maps[REAL_MAPS[name]][entries]) | measure_grey([slices[z][y : y + EDGE, x : x + EDGE]])
        made = measure_labels(cut_quadrants(list(labels))) | measure_grey(list(images))
        for key in real:
            rows.setdefault(key, []).extend((real[key], made[key]))
    titles = [*ANNOTATED, *(f"vp at z = {z}" for z in NEAR_PLANES)]
    lines = ["| | " + " | ".join(f"{title} real | phantom" for title in titles) + " |", "|-|" + "-|" * 2 * len(titles)]
    lines += [f"| {key} | " + " | ".join(values) + " |" for key, values in rows.items()]
    patches = [
        tuple(np.asarray(Image.open(folder / kind / p.name)) for kind in ("images", "labels"))
        for p in sorted((folder / "images").glob("*.png"))
    ]
    drawn = [(i[y : y + 128, x : x + 128], m[y : y + 128, x : x + 128]) for pairs in phantoms.values() for i, m in pairs
             for y in (0, 128) for x in (0, 128)]  # fmt: skip
    lines += ["", "| grey from 3 pixels within to 5 outside (profiles) | real | phantom |", "|-|-|-|"]
    for title, value, low, high in (
        ("vessels of 3.5-7", VESSEL, 3.5, 7),
        ("vessels of 14 and more", VESSEL, 14, 99),
        ("cells of 3-7", CELL, 3, 7),
        ("cells of 7-14", CELL, 7, 14),
    ):
        real_row, made_row = measure_profile(patches, value, low, high), measure_profile(drawn, value, low, high)
        lines.append(f"| {title} | {real_row} | {made_row} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
