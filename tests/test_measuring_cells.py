"""Cells against balls of known places and sizes, and against brute force over whole arrays."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import cdist

from neurotome.blocks import Grid
from neurotome.measuring import objects
from neurotome.measuring.block import BlockWork
from neurotome.measuring.objects import Shaping
from neurotome.measuring.settings import MeasureSettings
from neurotome.measuring.source import open_source
from tests.measured_labels import CELL, CLASSES, draw_balls, measure_array, place_balls

ANISOTROPIC = (2.0, 1.0, 0.8)


@pytest.mark.parametrize("size_um", [(1.0, 1.0, 1.0), ANISOTROPIC])
def test_balls_have_their_place_size_and_shape(size_um: tuple[float, float, float]) -> None:
    centres, radii = [(18, 20, 25), (18, 40, 60), (18, 60, 22)], [8.0, 10.0, 12.0]
    labels = draw_balls((36, 80, 90), centres, radii, size_um)
    cells = measure_array(labels, size_um=size_um).tables["cells"]
    order = np.argsort(cells["volume_um3"])
    places = np.stack([cells[f"centroid_{axis}_um"] for axis in "zyx"], 1)[order]
    np.testing.assert_allclose(places, np.array(centres) * size_um, atol=0.05)
    voxels = [np.count_nonzero(draw_balls(labels.shape, [c], [r], size_um)) for c, r in zip(centres, radii, strict=True)]
    np.testing.assert_allclose(cells["volume_um3"][order], np.array(voxels) * np.prod(size_um))
    np.testing.assert_allclose(cells["equivalent_diameter_um"][order], 2 * np.array(radii), rtol=0.02)
    np.testing.assert_allclose(cells["surface_um2"][order], 4 * np.pi * np.square(radii), rtol=0.03)
    np.testing.assert_allclose(cells["sphericity"], 1, atol=0.03)
    apart = cdist(places, places) + np.where(np.eye(3), np.inf, 0)
    np.testing.assert_allclose(cells["nearest_neighbour_um"][order], apart.min(1))
    assert cells["counted"].all()
    assert not cells["cut_by_border"].any()


def test_a_long_ellipsoid_has_the_sphericity_of_the_formula() -> None:
    course, (long, short) = np.array([1, 2, 3]) / np.sqrt(14), (16.0, 7.0)
    offsets = np.stack(np.mgrid[-20:21, -20:21, -20:21], -1)
    along = offsets @ course
    labels = np.where(along**2 / long**2 + (np.square(offsets).sum(-1) - along**2) / short**2 <= 1, CELL, 0).astype(np.uint8)
    eccentricity = np.sqrt(1 - short**2 / long**2)
    surface = 2 * np.pi * short**2 * (1 + long / (short * eccentricity) * np.arcsin(eccentricity))
    volume = 4 / 3 * np.pi * long * short**2
    cells = measure_array(labels).tables["cells"]
    assert cells["sphericity"][0] == pytest.approx(np.pi ** (1 / 3) * (6 * volume) ** (2 / 3) / surface, rel=0.02)


def test_touching_balls_are_parted_and_those_that_merge_are_not() -> None:
    apart = draw_balls((30, 30, 60), [(15, 15, 15), (15, 15, 29)], [8, 8])
    found = measure_array(apart).tables["cells"]
    assert len(found["cell"]) == 2
    assert found["cells_in_object"].tolist() == [2, 2]
    np.testing.assert_allclose(found["centroid_x_um"], (15, 29), atol=0.7)
    assert len(measure_array(apart, neck=0.0).tables["cells"]["cell"]) == 1
    merged = draw_balls((30, 30, 60), [(15, 15, 15), (15, 15, 20)], [8, 8])
    assert len(measure_array(merged).tables["cells"]["cell"]) == 1


def test_small_objects_are_no_cells_unless_the_border_cuts_them() -> None:
    labels = draw_balls((20, 20, 60), [(10, 10, 10), (10, 10, 30)], [5, 1.5])
    labels[10, 10, 59] = CELL
    cells = measure_array(labels, smallest_um=4.0).tables["cells"]
    assert cells["volume_um3"].tolist() == [np.count_nonzero(labels[..., :20]), 1]
    assert cells["cut_by_border"].tolist() == [False, True]


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    block=st.tuples(*[st.integers(3, 30)] * 3),
    flat=st.booleans(),
    neck=st.sampled_from([0, 0.75]),
)
def test_any_block_size_gives_the_same_numbers(seed: int, block: tuple[int, int, int], flat: bool, neck: float) -> None:
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=(18, 26, 22)), rng.uniform(0.6, 2.5), mode="wrap")
    labels = (field > np.quantile(field, rng.uniform(0.5, 0.95))).astype(np.uint8) * CELL
    unknown = ndimage.gaussian_filter(rng.normal(size=labels.shape), 3)
    labels[unknown > np.quantile(unknown, rng.uniform(0.6, 1))] = 255
    regions = (field > 0).astype(np.int32) * 700_000_000
    options = {"regions": regions, "as_slices": flat, "neck": neck, "smallest_um": 1.5, "grid_um": 5.0}
    whole, cut = measure_array(labels, **options), measure_array(labels, block=block, **options)
    for name, table in whole.tables.items():
        for column, values in table.items():
            np.testing.assert_array_equal(cut.tables[name][column], values, err_msg=f"{name}.{column}")
    structure = ndimage.generate_binary_structure(3, 1)
    if flat:
        structure[[0, 2]] = False
    if neck == 0:
        marked, _ = ndimage.label(labels == CELL, structure)
        sizes = np.bincount(marked.ravel())[1:]
        unit = "area_um2" if flat else "volume_um3"
        kept = np.sort(whole.tables["cells"][unit])
        assert set(kept) <= set(sizes.astype(float))
        assert kept.sum() == sum(
            size
            for number, size in enumerate(sizes, 1)
            if size >= (np.pi / 4 * 1.5**2 if flat else np.pi / 6 * 1.5**3) or _is_cut(marked == number, labels == 255, flat)
        )


def test_blocks_can_be_measured_in_other_processes(tmp_path: Path) -> None:
    labels = draw_balls((20, 30, 40), [(10, 10, 10), (10, 20, 30)], [6, 5])
    array = zarr.create_array(tmp_path / "labels.zarr", shape=labels.shape, chunks=(8, 8, 8), dtype="uint8")
    array[:] = labels
    asked = MeasureSettings(classes=CLASSES.names, voxel_size_um=(1.0,))
    source = open_source(tmp_path / "labels.zarr", None, asked)
    grid = Grid(source.shape, (20, 30, 20), (20, 30, 20))
    work = BlockWork(source, grid, grid, Shaping(source.shape, source.size_um, 0.75, False))
    there = pickle.loads(pickle.dumps(work)).build()(0)
    here = work.measure(0)
    assert there.pieces.whole == here.pieces.whole
    np.testing.assert_array_equal(there.counts, here.counts)


def _is_cut(mask: np.ndarray, unknown: np.ndarray, flat: bool) -> bool:
    structure = ndimage.generate_binary_structure(3, 1)
    if flat:
        structure[[0, 2]] = False
    # a smallest cell of 1.5 does not fit into what is one voxel wide; nothing is known outside
    beyond = np.pad(unknown, [(0, 0) if flat else (2, 2), (2, 2), (2, 2)], constant_values=True)
    opened = ndimage.binary_opening(beyond, np.ones((1 if flat else 2, 2, 2)))
    unknown = opened[(slice(None) if flat else slice(2, -2)), 2:-2, 2:-2]
    faces = [mask[:, [0, -1]].any(), mask[:, :, [0, -1]].any()] + ([] if flat else [mask[[0, -1]].any()])
    return any(faces) or bool((ndimage.binary_dilation(mask, structure) & unknown).any())


def test_an_object_that_is_far_too_large_is_counted_and_not_parted(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = draw_balls((40, 40, 60), [(20, 20, 12), (20, 20, 45)], [6, 12])
    monkeypatch.setattr(objects, "LARGEST", 3000)
    for block in ((40, 40, 60), (7, 9, 11)):
        found = measure_array(labels, block=block)
        cells = found.tables["cells"]
        assert cells["too_large"].tolist() == [True, False]
        assert cells["volume_um3"].sum() == np.count_nonzero(labels)
        np.testing.assert_allclose(cells["centroid_x_um"], (45, 12))
        assert any("far too large" in note for note in found.notes)


def test_the_border_rule_counts_neither_too_many_nor_too_few() -> None:
    rng = np.random.default_rng(3)
    shape, counted, frame, seen = (60, 60, 60), 0, 0.0, 0
    true = 0
    for _ in range(8):
        centres = place_balls(rng, shape, 60, 4.5)
        labels = draw_balls(shape, centres, [4.5] * len(centres))
        true += np.count_nonzero(((centres >= 0) & (centres < shape)).all(1))
        for z, y, x in np.ndindex(2, 2, 2):
            box = tuple(slice(30 * i, 30 * i + 30) for i in (z, y, x))
            density = measure_array(labels[box]).tables["density"]
            counted += int(density["cells_counted"][0])
            seen += int(density["cells_seen"][0])
            frame += float(density["frame_mm3"][0])
    expected = true / (8 * 60**3 * 1e-9)
    assert counted / frame == pytest.approx(expected, rel=0.06)
    assert seen / (8 * 60**3 * 1e-9) > 1.4 * expected  # what counting all that is seen would say


# holes of the size of cells leave pieces of a cell on several sides, of which more than one may count
@pytest.mark.parametrize(("rough", "share", "within"), [(6.0, 0.3, 0.08), (2.5, 0.2, 0.13), (1.5, 0.1, 0.13)])
def test_what_is_not_labelled_changes_no_density(rough: float, share: float, within: float) -> None:
    rng, counted, frame, true = np.random.default_rng(1), 0, 0.0, 0.0
    for _ in range(8):
        centres = place_balls(rng, (60, 60, 60), 60, 4.5)
        labels = draw_balls((60, 60, 60), centres, [4.5] * 60)
        holes = ndimage.gaussian_filter(rng.normal(size=labels.shape), rough)
        true += measure_array(labels).tables["density"]["density_per_mm3"][0] / 8
        labels[holes > np.quantile(holes, 1 - share)] = 255
        density = measure_array(labels).tables["density"]
        counted, frame = counted + int(density["cells_counted"][0]), frame + float(density["frame_mm3"][0])
    assert counted / frame == pytest.approx(true, rel=within)


def test_a_cell_counts_where_its_first_voxel_is_known() -> None:
    labels = draw_balls((30, 30, 60), [(15, 15, 20), (15, 15, 40)], [6, 6])
    labels[:12, :, :30] = 255  # hides where the first begins, by more than a smallest cell
    labels[..., 42:] = 255  # cuts the second at its side
    found = measure_array(labels)
    assert found.tables["cells"]["counted"].tolist() == [True, False]
    assert found.tables["cells"]["cut_by_border"].all()
    # the box's first planes, and what is beside the first and the second of these
    frame = np.count_nonzero(labels[1:, 1:, 1:41] != 255) - 29 * 29 - 11 * 29
    assert found.tables["density"]["frame_mm3"][0] == pytest.approx(frame * 1e-9)


def test_what_no_cell_fits_into_is_no_border() -> None:
    centres, radii = [(15, 15, 20), (15, 15, 40)], [6, 5]
    labels = draw_balls((30, 30, 60), centres, radii)
    plain = measure_array(labels).tables["cells"]
    outlined = labels.copy()
    outlined[ndimage.binary_dilation(labels == CELL) & (labels != CELL)] = 255
    outlined[3:6, 3:6, 3:6] = 255
    found = measure_array(outlined)
    for column in ("counted", "cut_by_border", "volume_um3"):
        np.testing.assert_array_equal(found.tables["cells"][column], plain[column])
    assert not any("not labelled" in note for note in found.notes)
    wide = measure_array(outlined, smallest_um=1.0)
    assert not wide.tables["cells"]["counted"].any()
    assert any("2 of 2 cells begin beside voxels that are not labelled" in note for note in wide.notes)


def test_profiles_in_one_slice_give_the_density_of_spheres() -> None:
    rng = np.random.default_rng(0)
    shape = (24, 700, 700)
    centres = rng.uniform((-10, -10, -10), (34, 710, 710), (3000, 3))
    near = [i for i, c in enumerate(centres) if np.linalg.norm(centres[:i] - c, axis=1).min(initial=99) > 14.5]
    centres = centres[near]
    crossing = centres[np.abs(centres[:, 0] - 12) <= 6]
    labels = draw_balls((1, 700, 700), crossing - (12, 0, 0), [6.0] * len(crossing))
    true = np.count_nonzero(((centres >= 0) & (centres < shape)).all(1)) / (np.prod(shape) * 1e-9)
    density = measure_array(labels).tables["density"]
    # near its poles a ball of 12 um has profiles of less than 4 um, which are left out
    assert density["cell_height_um"][0] == pytest.approx(np.sqrt(12**2 - 4**2), rel=0.05)
    assert density["density_per_mm3"][0] == pytest.approx(true, rel=0.12)
    assert density["density_low_per_mm3"][0] < true < density["density_high_per_mm3"][0]
    # Abercrombie (1946): a slice of thickness T shows what lies within T + H
    thick = measure_array(labels, slice_thickness_um=8.0, cell_diameter_um=12.0, smallest_um=0.0).tables["density"]
    assert thick["density_per_mm3"][0] == pytest.approx(thick["profiles_per_mm2"][0] / 0.020)


def test_a_box_is_measured_as_if_it_were_all_there_is() -> None:
    rng = np.random.default_rng(5)
    labels = draw_balls((40, 50, 60), place_balls(rng, (40, 50, 60), 30, 4.0), [4.0] * 30)
    regions = rng.integers(0, 3, labels.shape)
    box = (slice(4, 36), slice(7, 49), slice(10, 60))
    inside = measure_array(labels, regions=regions, bbox="4:36,7:49,10:", block=(9, 13, 11)).tables
    alone = measure_array(labels[box], regions=regions[box]).tables
    for name, table in alone.items():
        for column, values in table.items():
            if column.startswith("cent"):
                values = values + {"z": 4, "y": 7, "x": 10}[column.split("_")[1]]
            if isinstance(values, list):
                assert inside[name][column] == values
            else:
                np.testing.assert_allclose(inside[name][column], values)


def test_circular_profiles_are_circular() -> None:
    labels = draw_balls((1, 60, 60), [(0, 20.4, 19.7), (0, 40.6, 44.8)], [12.2, 9.7])
    cells = measure_array(labels).tables["cells"]
    np.testing.assert_allclose(cells["circularity"], 1, atol=0.03)
    np.testing.assert_allclose(cells["perimeter_um"], 2 * np.pi * np.array([12.2, 9.7]), rtol=0.03)


def test_no_cell_gives_a_density_of_nothing_with_an_upper_end() -> None:
    density = measure_array(np.zeros((20, 20, 20), np.uint8)).tables
    assert len(density["cells"]["cell"]) == 0
    assert density["density"]["density_per_mm3"][0] == 0
    assert density["density"]["density_high_per_mm3"][0] == pytest.approx(-np.log(0.025) / (19**3 * 1e-9))


def test_one_region_everywhere_counts_as_no_map_does() -> None:
    labels = draw_balls((20, 30, 40), [(4, 9, 9), (12, 20, 30)], [6, 5])
    labels[:, :, 36:] = 255
    options = {"block": (9, 11, 13), "grid_um": 7.0}
    plain = measure_array(labels, **options).tables
    mapped = measure_array(labels, regions=np.zeros(labels.shape, np.int64), **options).tables
    for name in ("fractions_grid", "density_grid"):
        for column, values in plain[name].items():
            np.testing.assert_array_equal(mapped[name][column], values, err_msg=f"{name}.{column}")
    volumes = plain["fractions"]["volume_mm3"]
    assert volumes[CELL] == pytest.approx(np.count_nonzero(labels == CELL) * 1e-9)
    np.testing.assert_array_equal(mapped["fractions"]["volume_mm3"], [*volumes, *volumes])
