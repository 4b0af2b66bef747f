"""The command measure: what it writes, and against the truth that the phantom writes beside its labels."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from pyarrow import parquet
from scipy.spatial import KDTree

import neurotome
from neurotome.classes import ClassSet
from neurotome.errors import ImageError, NeurotomeError, RunError, SettingsError
from neurotome.experiments import measure as module
from neurotome.io.label_store import create_label_store
from neurotome.io.sink import write_labels
from neurotome.measuring.run import measure_labels
from neurotome.measuring.settings import MeasureSettings
from neurotome.measuring.source import open_source
from neurotome.volume import Volume
from tests.conftest import run
from tests.measured_labels import CELL, CLASSES, draw_balls

SIZE = (2.0, 1.0, 0.5)
TABLES = (
    *("fractions", "fractions_grid", "cells", "density", "density_grid"),
    *("vessels", "vessel_branches", "vessel_density", "vessel_density_grid"),
)


def read_table(path: Path) -> dict[str, np.ndarray]:
    return {name: np.array(values) for name, values in parquet.read_table(path.with_suffix(".parquet")).to_pydict().items()}


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    made = draw_balls((16, 60, 120), [(8, 20, 30), (8, 40, 80), (2, 50, 20)], [7, 6, 6], SIZE)
    made[:, :4] = 1
    made[:, :, 110:] = 255
    return made


@pytest.fixture(scope="module")
def tif(labels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "labels.tif"
    write_labels(path, labels, CLASSES, Volume(labels, "labels", SIZE))
    return path


def test_fractions_are_counts_of_the_labelled_voxels(tif: Path, labels: np.ndarray, tmp_path: Path) -> None:
    found = neurotome.measure(tif, out=tmp_path / "out").tables["fractions"]
    known = labels != 255
    for number, name in enumerate(CLASSES.names):
        row = found["class"].index(name)
        assert found["fraction"][row] == np.count_nonzero(labels == number) / np.count_nonzero(known)
        assert found["volume_mm3"][row] == pytest.approx(np.count_nonzero(labels == number) * 1e-9)
        assert found["fraction_low"][row] < found["fraction"][row] < found["fraction_high"][row]
    grid = read_table(tmp_path / "out" / "fractions_grid")
    vessels = grid["class"] == "blood vessel"
    summed = (grid["fraction"] * grid["labelled_mm3"])[vessels].sum()
    assert summed == pytest.approx(found["volume_mm3"][1])


def test_every_format_gives_the_same_numbers(tif: Path, labels: np.ndarray, tmp_path: Path) -> None:
    store = create_label_store(
        tmp_path / "labels.zarr",
        labels.shape,
        classes=CLASSES,
        block_zyx=(16, 64, 64),
        chunk_zyx=(16, 32, 32),
        voxel_size_um=SIZE,
        attributes={"inference": {"model": "microct-base-2", "model_sha256": "ab"}},
    )
    for x in (0, 64):
        store.write_block((slice(0, 16), slice(0, 60), slice(x, min(x + 64, 120))), labels[..., x : x + 64])
    slices = tmp_path / "slices"
    slices.mkdir()
    for z, plane in enumerate(labels):
        Image.fromarray(plane).save(slices / f"{z}.png")
    found = neurotome.measure(store.path, out=tmp_path / "b")
    stated = MeasureSettings(classes=CLASSES.names, voxel_size_um=SIZE, block=9)
    for path, settings in ((tif, MeasureSettings()), (slices, stated)):
        other = measure_labels(open_source(path, None, settings), settings)
        for name, table in found.tables.items():
            for column, values in table.items():
                np.testing.assert_array_equal(other.tables[name][column], values)
    assert json.loads((tmp_path / "b" / "measure.json").read_text())["made_by"]["model"] == "microct-base-2"
    assert "microct-base-2" in (tmp_path / "b" / "measure.html").read_text()


def test_everything_is_written_with_units(tif: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run("measure", tif, "--out", out, "--bbox", ":,0:60,0:100", "--neck", "0.7") == 0
    printed = capsys.readouterr().out
    assert "density_per_mm3" in printed
    assert str(out / "measure.html") in printed
    for path in (out / name for name in TABLES):
        table = read_table(path)
        with path.with_suffix(".csv").open(newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        assert list(reader.fieldnames or ()) == list(table)
        assert len(rows) == len(next(iter(table.values())))
        for name, values in table.items():
            if values.dtype.kind == "f":
                np.testing.assert_array_equal([float(row[name] or "nan") for row in rows], values)
    cells = read_table(out / "cells")
    assert cells["cut_by_border"].tolist() == [True, False, False]
    assert {"centroid_z_um", "volume_um3", "equivalent_diameter_um", "sphericity", "nearest_neighbour_um"} <= set(cells)
    said = json.loads((out / "measure.json").read_text())
    assert said["settings"]["neck"] == 0.7
    assert said["box"] == "0:16,0:60,0:100"
    assert said["voxel_size_um"] == list(SIZE)
    assert said["classes"]["names"] == list(CLASSES.names)
    page = (out / "measure.html").read_text()
    assert page.count("data:image/png") == 6
    assert "<script" not in page
    with tifffile.TiffFile(out / "maps" / "fraction_cell.tif") as file:
        assert file.imagej_metadata["spacing"] == pytest.approx(said["cube_um"][0])


def test_regions_are_measured_each_also_where_their_map_is_coarser(tif: Path, labels: np.ndarray, tmp_path: Path) -> None:
    coarse = np.zeros((8, 30, 60), np.uint32)
    coarse[:, :, 27:] = 614_454_277
    tifffile.imwrite(tmp_path / "map.tif", coarse, photometric="minisblack", metadata={"axes": "ZYX"})
    found = measure_labels(open_source(tif, tmp_path / "map.tif", MeasureSettings()), MeasureSettings()).tables
    for region, part in (("0", labels[..., :54]), ("614454277", labels[..., 54:110])):
        row = next(i for i, r in enumerate(found["fractions"]["region"]) if r == region) + CELL
        assert found["fractions"]["fraction"][row] == np.count_nonzero(part == CELL) / part.size
    assert found["density"]["region"] == ["whole", "0", "614454277"]
    assert found["density"]["cells_seen"].tolist() == [3, 2, 1]
    assert found["cells"]["region"].tolist() == [0, 0, 614_454_277]


@pytest.mark.parametrize(
    ("shape", "every", "sizes", "factors"),
    [
        ((100, 64, 48), (16, 16, 16), None, (16, 16, 16)),  # 7 slices, which 13 to 16 would give
        ((12, 64, 64), (1, 4, 4), None, (1, 4, 4)),
        ((1, 64, 60), (1, 8, 8), None, (8, 8, 8)),
        ((1, 10, 10), (1, 4, 4), 4.0, (4, 4, 4)),
        ((1, 10, 10), (1, 4, 4), None, None),
    ],
)
def test_how_much_coarser_a_map_is_follows_from_its_shape_or_its_voxel_size(
    shape: tuple[int, ...], every: tuple[int, ...], sizes: float | None, factors: tuple[int, ...] | None, tmp_path: Path
) -> None:
    labels = np.zeros(shape, np.uint8)
    write_labels(tmp_path / "labels.tif", labels, CLASSES, Volume(labels, "labels", (1.0, 1.0, 1.0)))
    coarse = labels[:: every[0], :: every[1], :: every[2]]
    like = None if sizes is None else Volume(coarse, "map", (sizes,) * 3)
    write_labels(tmp_path / "map.tif", coarse, None, like)
    if factors is None:
        with pytest.raises(ImageError, match=r"may be coarser by 3 or 4; expected only one.*voxel size"):
            open_source(tmp_path / "labels.tif", tmp_path / "map.tif", MeasureSettings())
        return
    source = open_source(tmp_path / "labels.tif", tmp_path / "map.tif", MeasureSettings())
    assert source.regions is not None
    assert source.regions.factors == factors


def test_classes_that_differ_in_signs_have_maps_of_their_own(tmp_path: Path) -> None:
    labels = np.repeat(np.arange(4, dtype=np.uint8), 10)[None, None] * np.ones((1, 40, 1), np.uint8)
    path = tmp_path / "labels.tif"
    write_labels(path, labels, ClassSet(("none", "GFP+", "gfp-", "膜")), Volume(labels, "labels", (1.0, 1.0, 1.0)))
    found = neurotome.measure(path, out=tmp_path / "out", grid_um=10.0)
    said = json.loads((found.folder / "measure.json").read_text())["maps"]
    assert list(said.values()) == ["fraction_none.tif", "fraction_GFP_.tif", "fraction_gfp__2.tif", "fraction_膜.tif"]
    for number, name in enumerate(said.values()):
        np.testing.assert_array_equal(tifffile.imread(found.folder / "maps" / name)[0], np.arange(4) == number)


def test_a_2d_picture_is_measured_as_profiles(tmp_path: Path) -> None:
    labels = draw_balls((1, 100, 100), [(0, 30, 30), (0, 60, 70), (0, 80, 20)], [8, 8, 7])
    Image.fromarray(labels[0]).save(tmp_path / "labels.png")
    found = neurotome.measure(tmp_path / "labels.png", out=tmp_path / "out", classes=CLASSES.names, voxel_size_um=(1.0,))
    assert found.tables["density"]["profiles_counted"].tolist() == [3]
    assert found.tables["cells"]["slice"].tolist() == [0, 0, 0]
    assert "Abercrombie" in (tmp_path / "out" / "measure.html").read_text()


@pytest.fixture(scope="module")
def tissue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "tissue"
    sizes = {"train_depth": 48, "val_depth": 1, "test_depth": 1, "height": 128, "width": 128}
    return Path(neurotome.phantom(out=folder, regions=("striatum", "zi"), **sizes))


def test_the_phantom_is_measured_as_it_was_made(tissue: Path, tmp_path: Path) -> None:
    with (tissue / "truth" / "cells.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    with (tissue / "truth" / "fractions.csv").open(newline="") as file:
        fractions = {(row["image"], row["class"]): float(row["fraction"]) for row in csv.DictReader(file)}
    with (tissue / "truth" / "vessels.csv").open(newline="") as file:
        vessels = list(csv.DictReader(file))
    made = seen = matched = 0
    for region in ("striatum", "zi"):
        image = f"train_{region}"
        tables = neurotome.measure(tissue / "labels" / f"{image}.tif", out=tmp_path / region).tables
        for name, fraction in zip(tables["fractions"]["class"], tables["fractions"]["fraction"], strict=True):
            assert fraction == fractions[image, name]
        true = [row for row in cells if row["image"] == image]
        true = [row for row in true if row["cut_by_border"] == "True" or float(row["equivalent_diameter_um"]) >= 4]
        places = np.array([[float(row[f"centroid_{axis}_um"]) for axis in "zyx"] for row in true])
        length_um = sum(float(row["length_um"]) for row in vessels if row["image"] == image)
        # the piece is small and dense: larger ones come out within 10 %, see docs/benchmarks.md
        assert 1000 * tables["vessel_density"]["length_mm"][0] == pytest.approx(length_um, rel=0.14)
        found = tables["cells"]
        centroids = np.stack([found[f"centroid_{axis}_um"] for axis in "zyx"], 1)
        apart, nearest = KDTree(centroids).query(places)
        paired = (KDTree(places).query(centroids)[1][nearest] == np.arange(len(places))) & (apart < 3)
        made, seen, matched = made + len(true), seen + len(centroids), matched + np.count_nonzero(paired)
        sizes = np.array([float(row["volume_um3"]) for row in true])
        assert np.median(found["volume_um3"][nearest[paired]] / sizes[paired]) == pytest.approx(1, abs=0.02)
    assert made > 100
    assert seen == pytest.approx(made, rel=0.05)
    assert matched > 0.95 * made


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"voxel_size_um": ()}, ImageError, "without a voxel size.*--voxel-size-um"),
        ({"classes": ()}, ImageError, "do not say what their ids mean.*--classes"),
        ({"classes": ("background", "cell")}, ImageError, r"found 2 \(\d+ voxels\), 7.*expected 0..1"),
        ({"cells": "neuron"}, SettingsError, "cells: unknown class 'neuron'"),
        ({"vessels": "vein"}, SettingsError, "vessels: unknown class 'vein'.*none, to leave vessels out"),
        ({"bbox": "0:1,0:90,0:9"}, SettingsError, "at most 30"),
        ({"regions": "map.npy"}, ImageError, r"shape \(1, 20, 29\), the labels \(1, 30, 30\).*Resample"),
        ({"neck": 2.0}, SettingsError, "neck is 2.0; expected a share"),
        ({"cell_diameter_um": 4.0}, SettingsError, "cell_diameter_um is 4 and smallest_um 4: no such cell"),
        ({"voxel_size_um": (1.0, 2.0)}, SettingsError, "expected three edges"),
    ],
)
def test_bad_input_ends_in_one_message_and_no_output(
    change: dict[str, object], error: type[NeurotomeError], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    labels = np.zeros((30, 30), np.uint8)
    labels[3:9, 3:9], labels[20, 20] = 2, 7
    Image.fromarray(labels).save("labels.png")
    np.save("map.npy", np.zeros((20, 29), np.int32))
    options = {"classes": CLASSES.names, "voxel_size_um": (1.0,), **change}
    with pytest.raises(error, match=said):
        neurotome.measure("labels.png", out="out", **options)
    assert not Path("out").exists()


def test_a_class_that_is_absent_is_said(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.zeros((20, 30, 30), np.uint8))
    found = neurotome.measure(tmp_path / "labels.npy", out=tmp_path / "out", classes=CLASSES.names, voxel_size_um=(1.0,))
    assert "No voxel is blood vessel, cell" in found.notes[0]
    assert found.tables["density"]["density_per_mm3"].tolist() == [0.0]
    np.save(tmp_path / "unknown.npy", np.full((20, 30, 30), 255, np.uint8))
    with pytest.raises(ImageError, match="found no labelled voxel"):
        neurotome.measure(tmp_path / "unknown.npy", out=tmp_path / "b", classes=CLASSES.names, voxel_size_um=(1.0,))


def test_what_corrects_slices_is_refused_for_a_volume(tif: Path, tmp_path: Path) -> None:
    for change in ({"cell_diameter_um": 11.0}, {"slice_thickness_um": 2.0}):
        with pytest.raises(SettingsError, match=r"correct the numbers of single slices.*is measured as a volume"):
            neurotome.measure(tif, out=tmp_path / "out", **change)


def test_labels_without_cells_vessels_and_axons_have_fractions_only(tmp_path: Path) -> None:
    labels = np.zeros((8, 30, 30), np.uint8)
    labels[:, 10:] = 1
    path = tmp_path / "labels.tif"
    write_labels(path, labels, ClassSet(("background", "tissue")), Volume(labels, "labels", (1.0, 1.0, 1.0)))
    found = neurotome.measure(path, out=tmp_path / "out")
    assert set(found.tables) == {"fractions", "fractions_grid"}
    assert any("no class is named cell" in note for note in found.notes)


def test_an_earlier_measurement_is_replaced_only_on_request_and_whole(
    tif: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    neurotome.measure(tif, out=out, cells="none")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match="--overwrite"):
        neurotome.measure(tif, out=out)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_measures", fail)
        with pytest.raises(RuntimeError, match="killed"):
            neurotome.measure(tif, out=out, overwrite=True)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    neurotome.measure(tif, out=out, overwrite=True)
    assert (out / "cells.csv").is_file()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(RunError, match="no measurement"):
        neurotome.measure(tif, out=tmp_path / "mine", overwrite=True)
    with pytest.raises(RunError, match="holds the input"):
        neurotome.measure(tif, out=tif.parent, overwrite=True)
