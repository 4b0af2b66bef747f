"""The network of vessels: lengths and parts known by hand, and cuts into blocks that change nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from neurotome.blocks import Grid
from neurotome.datasets.phantom.tubes import stamp_tubes
from neurotome.measuring.network import build_network
from neurotome.measuring.skeleton import TileWork, plan_tiles, skeletonize_whole
from tests.measured_labels import VESSEL, make_source, measure_array

Mask = NDArray[np.bool_]


def draw_lines(
    shape: tuple[int, int, int], lines: list[list[tuple[float, float, float]]], radius: float
) -> NDArray[np.uint8]:
    """Tubes around lines from point to point."""
    mask = np.zeros(shape, bool)
    for line in lines:
        for one, two in itertools.pairwise(np.array(line, float)):
            steps = np.linspace(0, 1, int(np.linalg.norm(two - one) / 0.4) + 2)[:, None]
            points = one + steps * (two - one)
            stamp_tubes(mask, points, np.full(len(points), radius))
    return mask.astype(np.uint8) * VESSEL


def draw_network(seed: int, shape: tuple[int, int, int], tubes: int, widest: float) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    for _ in range(tubes):
        line = [tuple(point) for point in rng.uniform(0, shape, (3, 3))]
        labels |= draw_lines(shape, [line], rng.uniform(0.9, widest))
    return labels


def test_a_straight_tube_is_as_long_as_the_box() -> None:
    labels = np.zeros((20, 20, 50), np.uint8)
    labels[9:12, 9:12] = VESSEL
    found = measure_array(labels, size_um=(2.0, 2.0, 0.5)).tables
    assert found["vessel_density"]["length_mm"][0] == pytest.approx(50 * 0.5e-3)
    assert found["vessel_density"]["length_mm_per_mm3"][0] == pytest.approx(0.025 / (20 * 20 * 50 * 2e-9))
    assert found["vessels"]["tortuosity"].tolist() == pytest.approx([1.0])
    assert found["vessels"]["cut_by_border"].tolist() == [True]
    assert found["vessels"]["radius_um"][0] == 4.0  # from the middle to the first voxel that is no vessel


@pytest.mark.parametrize("longer", [2.0, 5.0])
@pytest.mark.parametrize("radius_um", [1.2, 4.2, 9.2])
def test_a_straight_tube_is_as_long_as_the_box_along_longer_voxels_too(longer: float, radius_um: float) -> None:
    y, x = np.indices((30, 30)) - 15
    labels = np.repeat(np.where(y**2 + x**2 <= radius_um**2, VESSEL, 0).astype(np.uint8)[None], 24, 0)
    tables = measure_array(labels, size_um=(longer, 1.0, 1.0)).tables
    assert tables["vessels"]["length_um"].tolist() == pytest.approx([24 * longer])
    assert tables["vessels"]["cut_by_border"].tolist() == [True]


@pytest.mark.parametrize("slices", [2, 4, 7])
def test_vessels_through_a_box_thinner_than_they_are_have_its_thickness(slices: int) -> None:
    y, x = np.indices((60, 60)) - 30
    labels = np.repeat(np.where(y**2 + x**2 <= 4.2**2, VESSEL, 0).astype(np.uint8)[None], slices, 0)
    measured = measure_array(labels)
    assert measured.tables["vessels"]["length_um"].tolist() == pytest.approx([slices])
    assert measured.tables["vessels"]["cut_by_border"].tolist() == [True]
    assert measured.tables["vessel_density"]["radius_um"][0] == pytest.approx(4.2, rel=0.1)
    assert any(f"The box is {slices} um thick, and blood vessel up to" in note for note in measured.notes)


def test_where_labels_end_a_vessel_is_cut() -> None:
    labels = np.zeros((20, 20, 60), np.uint8)
    labels[9:12, 9:12, :] = VESSEL
    labels[:, :, 40:] = 255
    found = measure_array(labels).tables
    assert found["vessels"]["cut_by_border"].tolist() == [True]
    assert found["vessel_density"]["length_mm"][0] == pytest.approx(0.040, abs=0.0011)
    labels[:, :, 40:] = 0
    found = measure_array(labels).tables
    assert found["vessels"]["stop_degree"].tolist() == [1]


def test_three_arms_meet_in_one_branch_point() -> None:
    arms = [[(20.0, 20.0, 20.0), end] for end in ((20.0, 20.0, 45.0), (20.0, 41.65, 7.5), (20.0, -1.65, 7.5))]
    found = measure_array(draw_lines((40, 50, 60), arms, 2.0)).tables
    assert found["vessel_branches"]["degree"].tolist() == [3]
    place = [found["vessel_branches"][f"{axis}_um"][0] for axis in "zyx"]
    np.testing.assert_allclose(place, [20, 20, 20], atol=1.5)
    assert len(found["vessels"]["segment"]) == 3
    # two arms of 25 um, and one of which 23.1 um lie in the box
    assert found["vessel_density"]["length_mm"][0] == pytest.approx(0.0731, rel=0.07)
    assert found["vessel_density"]["connected_share"][0] == 1


def test_a_ring_has_no_branch_point_and_its_circumference() -> None:
    turns = np.linspace(0, 2 * np.pi, 48)
    line = [(15.0, 30 + 20 * float(np.sin(turn)), 30 + 20 * float(np.cos(turn))) for turn in turns]
    found = measure_array(draw_lines((30, 60, 60), [line], 2.0)).tables
    assert len(found["vessel_branches"]["degree"]) == 0
    assert found["vessels"]["start_degree"].tolist() == [0]
    assert np.isnan(found["vessels"]["tortuosity"]).all()
    assert found["vessel_density"]["length_mm"][0] == pytest.approx(2 * np.pi * 0.020, rel=0.03)


def test_tubes_that_touch_are_one_network_and_those_apart_two() -> None:
    crossing = [[(15.0, 10.0, 25.0), (15.0, 40.0, 25.0)], [(18.0, 25.0, 5.0), (18.0, 25.0, 45.0)]]
    found = measure_array(draw_lines((40, 50, 50), crossing, 2.0)).tables
    assert set(found["vessels"]["network"].tolist()) == {1}
    assert found["vessel_branches"]["degree"].sum() in (4, 6)  # one point of four, or two of three
    apart = [crossing[0], [(24.0, 25.0, 2.0), (24.0, 25.0, 48.0)]]
    found = measure_array(draw_lines((40, 50, 50), apart, 2.0)).tables
    assert sorted(found["vessels"]["network"].tolist()) == [1, 2]
    lengths = dict(zip(found["vessels"]["network"].tolist(), found["vessels"]["length_um"].tolist(), strict=True))
    assert lengths[1] > lengths[2]
    assert found["vessel_density"]["connected_share"][0] == pytest.approx(lengths[1] / (lengths[1] + lengths[2]))


def test_five_arms_are_reported_as_a_hub() -> None:
    ends = [(20.0, 20.0, 38.0), (20.0, 20.0, 2.0), (20.0, 38.0, 20.0), (20.0, 2.0, 20.0), (38.0, 20.0, 20.0)]
    measured = measure_array(draw_lines((40, 40, 40), [[(20.0, 20.0, 20.0), end] for end in ends], 1.5))
    assert measured.tables["vessel_branches"]["degree"].tolist() == [5]
    assert measured.tables["vessel_density"]["hubs"].tolist() == [1]
    assert any("1 of 1 branch points" in note for note in measured.notes)


@pytest.mark.parametrize("edge", [1, 2, 3, 4, 6])
def test_solid_cubes_are_kept(edge: int) -> None:
    mask = np.zeros((12, 12, 12), bool)
    mask[2 : 2 + edge, 2 : 2 + edge, 2 : 2 + edge] = True
    skeleton = skeletonize_whole(mask)
    assert skeleton.any()
    assert not (skeleton & ~mask).any()
    labels = mask.astype(np.uint8) * VESSEL
    assert len(measure_array(labels).tables["vessels"]["segment"]) == 1


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_every_object_keeps_its_own_skeleton(seed: int) -> None:
    noise = np.random.default_rng(seed).standard_normal((20, 24, 28))
    mask = ndimage.gaussian_filter(noise, 1.5) > 0.08
    objects, count = ndimage.label(mask, np.ones((3, 3, 3)))
    assert set(objects[skeletonize_whole(mask)].tolist()) == set(range(1, count + 1))


def test_side_branches_within_a_vessel_and_cavities_are_none() -> None:
    labels = draw_lines((30, 30, 80), [[(15.0, 15.0, -5.0), (15.0, 15.0, 85.0)]], 5.0)
    labels[20:22, 15, 40] = VESSEL  # a bump
    labels[15, 15, 20] = 0  # a hole within
    found = measure_array(labels).tables
    assert len(found["vessel_branches"]["degree"]) == 0
    assert found["vessel_density"]["length_mm"][0] == pytest.approx(0.080, rel=0.02)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32), radius=st.floats(1.2, 5))
def test_radius_and_length_of_digital_cylinders(seed: int, radius: float) -> None:
    rng = np.random.default_rng(seed)
    course = rng.normal(size=3)
    course /= np.linalg.norm(course)
    centre = 28 + rng.uniform(-0.5, 0.5, 3)
    labels = draw_lines((56, 56, 56), [[tuple(centre - 18 * course), tuple(centre + 18 * course)]], radius)
    found = measure_array(labels).tables["vessel_density"]
    assert found["radius_um"][0] == pytest.approx(radius, abs=0.75)
    # of 120 such tubes the mean is 0.7 too short, the worst 6
    assert found["length_mm"][0] * 1000 == pytest.approx(36, abs=4 + radius)
    assert found["tortuosity"][0] < 1.06
    # a tube of 36 um with two caps
    volume = np.pi * radius**2 * 36 + 4 / 3 * np.pi * radius**3
    wide = np.sqrt(volume / (np.pi * found["length_mm"][0] * 1000))
    assert found["radius_from_volume_um"][0] == pytest.approx(wide, rel=0.08)


@pytest.fixture(scope="module")
def network() -> NDArray[np.uint8]:
    return draw_network(3, (70, 90, 170), 14, 3.0)


@settings(max_examples=3, deadline=None)
@given(block=st.tuples(*[st.integers(1, 200)] * 3))
def test_how_the_volume_is_cut_changes_no_bit(network: NDArray[np.uint8], block: tuple[int, int, int]) -> None:
    source = make_source(network)
    tile = (32, 48, 64)
    whole = plan_tiles(source.shape, (512, 512, 512), tile)
    found = []
    for grid in (whole, plan_tiles(source.shape, block, tile)):
        clusters = Grid(source.shape, (16, 16, 16), (16, 16, 16))
        work = TileWork(source, grid, clusters).build()
        results = [result for number in range(len(grid)) for result in work(number)]
        found.append(build_network(sorted(results, key=lambda result: result.tile), grid, source.size_um))
    assert found[0].differing == 0
    for name, values in vars(found[0]).items():
        np.testing.assert_array_equal(vars(found[1])[name], values)


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**32), edge=st.sampled_from([24, 32, 40]))
def test_tiles_give_the_skeleton_of_the_whole(seed: int, edge: int) -> None:
    labels = draw_network(seed, (60, 72, 80), 8, 4.0)
    source = make_source(labels, size_um=(1.17, 1.17, 1.17))
    grid = plan_tiles(source.shape, (1, 1, 1), (edge, edge, edge))
    work = TileWork(source, grid, Grid(source.shape, (20, 20, 20), (20, 20, 20))).build()
    tiles = [result.thinned for number in range(len(grid)) for result in work(number) if result.thinned is not None]
    voxels = np.concatenate([thinned.voxels for thinned in tiles])
    order = np.argsort(voxels)
    whole = plan_tiles(source.shape, (512, 512, 512), (512, 512, 512))
    once = TileWork(source, whole, Grid(source.shape, (20, 20, 20), (20, 20, 20))).build()(0)[0].thinned
    assert once is not None
    np.testing.assert_array_equal(voxels[order], once.voxels)
    for name in ("radius_um", "to_border_um"):
        values = np.concatenate([getattr(thinned, name) for thinned in tiles])
        np.testing.assert_array_equal(values[order], getattr(once, name))


def test_a_vessel_too_wide_for_the_usual_halo_is_read_with_a_larger_one() -> None:
    labels = draw_lines((60, 60, 200), [[(30.0, 30.0, -20.0), (30.0, 30.0, 220.0)]], 12.0)
    found = measure_array(labels).tables
    assert found["vessel_density"]["length_mm"][0] == pytest.approx(0.200, rel=0.01)
    assert len(found["vessels"]["segment"]) == 1


def test_regions_and_cubes_share_the_length() -> None:
    labels = np.zeros((20, 20, 60), np.uint8)
    labels[9:12, 9:12] = VESSEL
    regions = np.zeros(labels.shape, np.int64)
    regions[:, :, 15:] = 7
    tables = measure_array(labels, regions=regions).tables
    assert tables["vessel_density"]["region"] == ["whole", "0", "7"]
    np.testing.assert_allclose(tables["vessel_density"]["length_mm"], [0.060, 0.015, 0.045], rtol=1e-9)
    assert tables["vessel_density_grid"]["length_mm"].sum() == pytest.approx(0.060)
    assert tables["vessels"]["region"].tolist() == [7]
    density = tables["vessel_density"]
    assert density["length_low_mm_per_mm3"][0] < density["length_mm_per_mm3"][0] < density["length_high_mm_per_mm3"][0]


def test_no_vessel_gives_rows_that_say_so() -> None:
    measured = measure_array(np.zeros((20, 20, 20), np.uint8))
    assert len(measured.tables["vessels"]["segment"]) == 0
    assert measured.tables["vessel_density"]["length_mm_per_mm3"].tolist() == [0]
    assert np.isnan(measured.tables["vessel_density"]["radius_um"]).all()


def test_profiles_in_a_slice_are_counted_as_cells_are() -> None:
    labels = np.zeros((1, 40, 40), np.uint8)
    for y, x in ((0, 10), (20, 20), (38, 30)):  # at an excluding edge, within, at a counting one
        labels[0, y : y + 3, x : x + 3] = VESSEL
    tables = measure_array(labels).tables
    density = tables["vessel_density"]
    assert density["profiles_seen"].tolist() == [3]
    assert density["profiles_counted"].tolist() == [2]
    assert density["profiles_per_mm2"][0] == pytest.approx(2 / (39 * 39e-6))
    assert density["diameter_um"][0] == pytest.approx(np.sqrt(4 * 9 / np.pi))
    assert density["length_if_isotropic_mm_per_mm3"][0] == 2 * density["profiles_per_mm2"][0]
    assert sorted(tables["vessels"]["area_um2"].tolist()) == [6, 9, 9]


def test_large_slices_are_read_in_parts() -> None:
    assert plan_tiles((500, 200, 300), (4, 200, 300)).block_zyx == (128, 256, 512)
    whole_slices = plan_tiles((500, 4096, 4096), (1, 4096, 4096))
    assert whole_slices.block_zyx == (128, 512, 4096)
    assert whole_slices.tile_zyx == plan_tiles((500, 4096, 4096), (256, 256, 256)).tile_zyx
