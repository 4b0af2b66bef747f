"""How right, how sure and how fast `neurotome measure` is.

OMP_NUM_THREADS=1 python benchmarks/measure.py cells       # against the phantom's own list, by how cells are parted
OMP_NUM_THREADS=1 python benchmarks/measure.py vessels     # their length against the lines that the phantom painted
OMP_NUM_THREADS=1 python benchmarks/measure.py slices      # densities from single slices against those in 3D
OMP_NUM_THREADS=1 python benchmarks/measure.py coverage    # how often 95 % intervals hold the truth
OMP_NUM_THREADS=1 python benchmarks/measure.py corrected   # the same of intervals that hold a model's errors, and without
OMP_NUM_THREADS=1 python benchmarks/measure.py libraries   # labelling and distances by scipy, connected-components-3d, edt
OMP_NUM_THREADS=1 python benchmarks/measure.py speed --work runs/measure [--mvoxel 1024] [--without vessels axons]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from scipy import ndimage, stats
from scipy.spatial import KDTree
from scipy.special import ndtr

from neurotome.classes import ClassSet
from neurotome.datasets.phantom.make import CLASSES
from neurotome.datasets.phantom.regions import REGIONS, VOXEL_SIZE_UM
from neurotome.datasets.phantom.tissue import build_tissue
from neurotome.datasets.phantom.truth import list_cells, list_vessels
from neurotome.io.label_store import create_label_store
from neurotome.measuring.connected import connect
from neurotome.measuring.intervals import estimate_density, estimate_share
from neurotome.measuring.model_errors import ModelErrors
from neurotome.measuring.run import measure_labels
from neurotome.measuring.settings import MeasureSettings
from neurotome.measuring.source import Source
from neurotome.objects.scores import ObjectSettings
from neurotome.scoring import score_images
from neurotome.statistics import IntervalSettings

SHAPE = (64, 136, 136)
PAD = 4
NECKS = (0.0, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
APART_UM = 3.0


def make_pieces(seeds: int):
    """Yields region, labels, true cells and true vessels of pieces of tissue."""
    for name, region in REGIONS.items():
        for seed in range(seeds):
            padded = tuple(edge + 2 * PAD for edge in SHAPE)
            tissue = build_tissue(region, padded, np.random.default_rng([seed, 7]))
            labels = tissue.labels[(slice(PAD, -PAD),) * 3].copy()
            yield name, labels, list_cells(tissue, labels, PAD, name), list_vessels(tissue, labels, PAD, name)


def measure(labels, **settings):
    asked = MeasureSettings(**settings)
    box = tuple(slice(0, edge) for edge in labels.shape)
    flat = asked.as_slices or len(labels) == 1
    size = (VOXEL_SIZE_UM,) * 3
    return measure_labels(
        Source(Path("-"), labels, ClassSet(CLASSES), box, size, "as made", 2, flat, (256,) * 3, vessel=1, axon=3), asked
    ).tables


def compare_cells(seeds: int) -> None:
    pieces = list(make_pieces(seeds))
    print("| neck | " + " | ".join(f"{name}: cells, found, precision / recall" for name in REGIONS) + " |")
    print("|-|" + "-|" * len(REGIONS))
    for neck in NECKS:
        row = []
        for name in REGIONS:
            true = found = matched = 0
            for _, labels, listed, _ in (piece for piece in pieces if piece[0] == name):
                cells = [cell for cell in listed if cell.cut_by_border or cell.equivalent_diameter_um >= 4]
                places = np.array([(c.centroid_z_um, c.centroid_y_um, c.centroid_x_um) for c in cells])
                table = measure(labels, neck=neck)["cells"]
                centroids = np.stack([table[f"centroid_{axis}_um"] for axis in "zyx"], 1)
                apart, nearest = KDTree(centroids).query(places)
                mutual = KDTree(places).query(centroids)[1][nearest] == np.arange(len(places))
                true, found = true + len(places), found + len(centroids)
                matched += int(np.count_nonzero(mutual & (apart < APART_UM)))
            row.append(f"{true}, {found} ({found / true - 1:+.1%}), {matched / found:.3f} / {matched / true:.3f}")
        print(f"| {neck:g} | " + " | ".join(row) + " |", flush=True)


def compare_vessels(seeds: int) -> None:
    print("| region | piece | true, um | found | difference | true radius, um | found | from volume | branch points |")
    print("|-|-|-|-|-|-|-|-|-|")
    sums: dict[str, np.ndarray] = {}
    for piece, (name, labels, _, vessels) in enumerate(make_pieces(seeds)):
        found = measure(labels)["vessel_density"]
        true, length = sum(vessel.length_um for vessel in vessels), 1000 * found["length_mm"][0]
        radius = sum(vessel.length_um * vessel.radius_um for vessel in vessels) / true
        sums[name] = sums.get(name, np.zeros(2)) + np.array([true, length])
        shown = f"{radius:.2f} | {found['radius_um'][0]:.2f} | {found['radius_from_volume_um'][0]:.2f}"
        row = f"{true:,.0f} | {length:,.0f} | {length / true - 1:+.1%} | {shown} | {found['branch_points'][0]}"
        print(f"| {name} | {piece % seeds + 1} | {row} |", flush=True)
    for name, (true, length) in sums.items():
        print(f"| {name} | all | {true:,.0f} | {length:,.0f} | {length / true - 1:+.1%} | | | | |")


def compare_slices(seeds: int) -> None:
    print("| region | 3D, cells/mm3 | slices, auto height | ratio | slices, height from 3D | ratio |")
    print("|-|-|-|-|-|-|")
    gathered: dict[str, list[tuple[float, ...]]] = {}
    for name, labels, *_ in make_pieces(seeds):
        solid = measure(labels)
        cells = solid["cells"]
        diameter = float(cells["equivalent_diameter_um"][~cells["cut_by_border"]].mean())
        by_slice = measure(labels[::4], as_slices=True)["density"]
        known = measure(labels[::4], as_slices=True, cell_diameter_um=diameter)["density"]
        row = [table["density_per_mm3"][0] for table in (solid["density"], by_slice, known)]
        gathered.setdefault(name, []).append(tuple(row))
    for name, rows in gathered.items():
        solid, auto, known = np.mean(rows, 0)
        print(f"| {name} | {solid:,.0f} | {auto:,.0f} | {auto / solid:.2f} | {known:,.0f} | {known / solid:.2f} |")


def simulate_coverage(draws: int) -> None:
    rng = np.random.default_rng(11)
    print(f"| what ({draws} draws) | held by the 95 % interval |")
    print("|-|-|")
    points = {
        "12^3 cubes, 100 clusters of 5": ((12, 12, 12), 100, 5, 0.3),
        "16^3, clusters wider than a cube": ((16,) * 3, 100, 8, 1),
    }
    points |= {"single slice, 24^2": ((1, 24, 24), 100, 5, 1.0), "10^3, independent": ((10, 10, 10), 300, 1, 0.0)}
    for what, (shape, parents, each, spread) in points.items():
        held, truth = 0, parents * each / np.prod(shape)
        for _ in range(draws):
            around = np.array(shape) + 8 * spread
            made = rng.poisson(parents * np.prod(around) / np.prod(shape))
            centres = rng.uniform(0, 1, (made, 3)) * around - 4 * spread
            cells = np.repeat(centres, rng.poisson(each, made), 0)
            counts, _ = np.histogramdd(cells + rng.normal(0, 1, cells.shape) * spread, [np.arange(n + 1) for n in shape])
            found = estimate_density(counts, np.ones(shape), 0.95)
            held += found.low <= truth <= found.high
        print(f"| density, {what} | {held / draws:.3f} |", flush=True)
    fields = {"6^3 cubes": ((24, 24, 24), 2.0), "10^3": ((40, 40, 40), 2.5), "16^3": ((64, 64, 64), 4.0)}
    fields |= {"2 x 24^2": ((8, 96, 96), 3.0), "single slice, 24^2": ((1, 96, 96), 4.0)}
    for what, (shape, sigma) in fields.items():
        sigmas = [sigma if edge > 1 else 0.0 for edge in shape]
        margin = [int(3 * s + 1) for s in sigmas]
        unit = np.zeros([2 * m + 1 for m in margin], np.float32)
        unit[tuple(margin)] = 1
        deviation = float(np.sqrt(np.square(ndimage.gaussian_filter(unit, sigmas, truncate=3)).sum()))
        held, edges = 0, [min(4, edge) for edge in shape]
        for _ in range(draws):
            noise = rng.standard_normal([edge + 2 * m for edge, m in zip(shape, margin, strict=True)], np.float32)
            field = ndimage.gaussian_filter(noise, sigmas, truncate=3)
            inside = field[tuple(slice(m, m + edge) for edge, m in zip(shape, margin, strict=True))] > 0.8 * deviation
            cut = [n for edge, size in zip(edges, shape, strict=True) for n in (size // edge, edge)]
            hits = inside.reshape(cut).sum((1, 3, 5)).astype(float)
            found = estimate_share(hits, np.full(hits.shape, float(np.prod(edges))), 0.95)
            held += found.low <= 1 - ndtr(0.8) <= found.high
        print(f"| fraction, {what}, structures of {sigma:g} / 4 of a cube | {held / draws:.3f} |", flush=True)


def measure_as(classes, labels, scores, um=1.0):
    """Fractions and densities of a slice of labels, corrected by scores."""
    box = tuple(slice(0, edge) for edge in labels.shape)
    cell = classes.find_kind("cells")
    source = Source(Path("-"), labels, classes, box, (um,) * 3, "as made", cell, True, (1, 512, 512))
    settings = MeasureSettings(neck=0, smallest_um=0)
    with contextlib.redirect_stderr(io.StringIO()):
        errors = ModelErrors(scores, (), {})
        return measure_labels(source, settings, errors).tables


def draw_field(rng, edge):
    """Returns a patch of tissue and what a model says, which finds too much of it: structures a few pixels wide."""
    truth, noise = (
        ndimage.gaussian_filter(rng.standard_normal((edge + 32,) * 2, np.float32), 3)[16:-16, 16:-16] for _ in "ab"
    )
    unit = 1 / (2 * np.sqrt(np.pi) * 3)
    return ((field > limit * unit).astype(np.uint8) for field, limit in ((truth, 0.8), (truth + 0.5 * noise, 0.6)))


def draw_cells(rng, places):
    """Returns cells of 3 x 3 pixels, clustered, and what a model says: a quarter is missed, and some are invented."""
    rates = np.kron(rng.gamma(2, 0.1, (places // 4,) * 2), np.ones((4, 4)))
    there = rng.random((places,) * 2) < rates
    found = np.where(there, rng.random(there.shape) < 0.75, rng.random(there.shape) < 0.02)
    cell = np.zeros((6, 6), np.uint8)
    cell[1:4, 1:4] = 1
    return (np.kron(one, cell).astype(np.uint8) for one in (there, found))


def simulate_corrected(draws: int, row: int | None) -> None:
    rng, quick = np.random.default_rng(12), IntervalSettings(resamples=100)
    x = stats.gamma(2, scale=0.1)
    rate = x.expect(lambda value: np.minimum(value, 1))
    kinds = {
        "fraction": (ClassSet(("background", "tissue")), lambda edge: draw_field(rng, edge), 384, 64),
        "profiles per area": (ClassSet(("background", "cell")), lambda edge: draw_cells(rng, edge // 6), 432, 96),
    }
    print(f"| what ({draws} draws) | test images | held: corrected | as counted | without the scores' part | mean width |")
    print("|-|-|-|-|-|-|")
    for number, (what, images) in enumerate(itertools.product(kinds, (10, 40)), 1):
        if row in (None, number):
            classes, draw, edge, small = kinds[what]
            held, width = np.zeros(3), 0.0
            for _ in range(draws):
                tested = [(f"i{n}", *draw(small)) for n in range(images)]
                scores = score_images("made", "test", classes, tested, quick, ObjectSettings(smallest=0))
                _, labels = draw(edge)
                tables = measure_as(classes, labels[None], scores)
                if what == "fraction":
                    table, row, truth = tables["fractions"], 1, float(1 - ndtr(0.8))
                    names = ("fraction{}", "fraction_corrected{}")
                else:
                    table, row = tables["density"], 0
                    truth = rate * (edge // 6) ** 2 / table["frame_mm2"][0]
                    names = ("profiles{}_per_mm2", "profiles_corrected{}_per_mm2")
                low, high, value = (table[names[1].format(bound)][row] for bound in ("_low", "_high", ""))
                held[0] += low <= truth <= high
                width += (high - low) / truth / draws
                if what == "fraction":
                    plain = [table[names[0].format(bound)][row] for bound in ("_low", "_high", "")]
                else:
                    share = table["density_per_mm3"][0] / table["profiles_per_mm2"][0]
                    plain = [table[f"density{bound}_per_mm3"][row] / share for bound in ("_low", "_high", "")]
                held[1] += plain[0] <= truth <= plain[1]
                held[2] += plain[0] / plain[2] <= truth / value <= plain[1] / plain[2]
            print(
                f"| {what} | {images} | " + " | ".join(f"{one / draws:.3f}" for one in held) + f" | {width:.2f} |",
                flush=True,
            )


def compare_libraries() -> None:
    import cc3d
    import edt

    labels = np.concatenate([labels for _, labels, *_ in make_pieces(1)])
    mvoxel = labels.size / 1e6

    def time_each(what, ways, **arrays) -> None:
        for way, work in ways.items():
            spent = []
            for _ in range(3):
                began = time.process_time()
                work(**arrays)
                spent.append(time.process_time() - began)
            print(f"| {what} | {way} | {np.median(spent) / mvoxel:.4f} |", flush=True)

    print(f"| of {mvoxel:.1f} Mvoxel | by | s of processor time per Mvoxel, median of 3 |")
    print("|-|-|-|")
    for what, mask, corners in (
        ("vessels, 26 neighbours", labels == 1, True),
        ("all but vessels, 6 neighbours", labels != 1, False),
        ("cells, 6 neighbours", labels == 2, False),
    ):
        structure = ndimage.generate_binary_structure(3, 3 if corners else 1)
        ways = {
            "connect": lambda mask, corners, structure: connect(mask, corners=corners),
            "scipy": lambda mask, corners, structure: ndimage.label(mask, structure),
            "connected-components-3d": lambda mask, corners, structure: cc3d.connected_components(
                mask, connectivity=26 if corners else 6
            ),
        }
        time_each(what, ways, mask=mask, corners=corners, structure=structure)
    marked, _ = ndimage.label(labels == 2)
    boxes = enumerate(ndimage.find_objects(marked), 1)
    cells = [np.pad(marked[box] == number, 1) for number, box in boxes]
    what = f"distances within {len(cells)} cells, each by itself"
    distances = {
        "scipy": lambda masks: [ndimage.distance_transform_edt(mask) for mask in masks],
        "edt": lambda masks: [edt.edt(mask, parallel=1) for mask in masks],
    }
    time_each(what, distances, masks=cells)
    what = "distances within vessels, whole array"
    time_each(what, distances, masks=[labels == 1])


def measure_speed(work: Path, mvoxel: int, workers: int, without: list[str]) -> None:
    tiles = [labels[:, :128, :128] for _, labels, *_ in make_pieces(1)]
    shape = (64 * max(1, mvoxel // 64), 1024, 1024)
    path = work / f"labels_{shape[0]}.zarr"
    if not path.exists():
        made = {"classes": ClassSet(CLASSES), "block_zyx": (64, 512, 512), "chunk_zyx": (64, 128, 128)}
        store = create_label_store(path, shape, voxel_size_um=(VOXEL_SIZE_UM,) * 3, **made)
        rng = np.random.default_rng(0)
        for z, y, x in np.ndindex(shape[0] // 64, 2, 2):
            block = np.block([[tiles[rng.integers(4)][:, :: rng.choice([-1, 1])] for _ in range(4)] for _ in range(4)])
            store.write_block(tuple(slice(n * i, n * i + n) for i, n in zip((z, y, x), (64, 512, 512), strict=True)), block)
    command = [sys.executable, "-m", "neurotome", "measure", str(path), "--out", str(work / "out"), "--overwrite"]
    command += [word for what in without for word in (f"--{what}", "none")]
    began = time.monotonic()
    subprocess.run([*command, "--workers", str(workers)], check=True)
    seconds = time.monotonic() - began
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime
    voxels = np.prod(shape) / 1e6
    print(f"{voxels:.0f} Mvoxel, {workers} workers: {seconds:.0f} s, {voxels / seconds:.1f} Mvoxel/s")
    print(f"{cpu:.0f} s of processor time, {cpu / voxels:.3f} s per Mvoxel, {voxels / cpu:.1f} Mvoxel/s and core")
    print(f"at most {used.ru_maxrss / 1e3:.0f} MB in one process")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cells", "vessels", "slices", "coverage", "corrected", "libraries", "speed"))
    parser.add_argument("--seeds", type=int, default=3, help="pieces of tissue per region")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--row", type=int, help="of corrected only this row, from 1, with random numbers of its own")
    parser.add_argument("--work", type=Path, default=Path("runs/measure"))
    parser.add_argument("--mvoxel", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--without", nargs="*", default=[], choices=("cells", "vessels", "axons"), help="not measured for speed"
    )
    asked = parser.parse_args()
    if asked.what == "cells":
        compare_cells(asked.seeds)
    elif asked.what == "vessels":
        compare_vessels(asked.seeds)
    elif asked.what == "slices":
        compare_slices(asked.seeds)
    elif asked.what == "coverage":
        simulate_coverage(asked.draws)
    elif asked.what == "corrected":
        simulate_corrected(asked.draws, asked.row)
    elif asked.what == "libraries":
        compare_libraries()
    else:
        measure_speed(asked.work, asked.mvoxel, asked.workers, asked.without)


if __name__ == "__main__":
    main()
