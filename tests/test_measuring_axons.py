"""The direction of axons: straight fibres of a known direction."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from neurotome.blocks import Grid
from neurotome.measuring.orientation import gather_tensors, sum_tensors
from neurotome.measuring.skeleton import TileWork, plan_tiles
from tests.measured_labels import AXON, CELL, make_source, measure_array


def draw_fibres(
    shape: tuple[int, int, int], course: NDArray[np.float64], rng: np.random.Generator, size_um: tuple[float, float, float]
) -> NDArray[np.uint8]:
    """Cylinders of 3 um radius along a direction (zyx, in micrometres), anywhere across it."""
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) * size_um
    inside = np.zeros(shape, bool)
    for centre in rng.uniform(0, np.array(shape) * size_um, (14, 3)):
        offset = places - centre
        inside |= np.square(offset).sum(-1) - np.square(offset @ course) <= 9
    return inside.astype(np.uint8) * AXON


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32), thick=st.sampled_from([1.0, 1.5]))
def test_straight_fibres_have_their_direction(seed: int, thick: float) -> None:
    rng = np.random.default_rng(seed)
    course = rng.normal(size=3)
    course /= np.linalg.norm(course)
    labels = draw_fibres((40, 48, 48), course, rng, (thick, 1.0, 1.0))
    found = measure_array(labels, size_um=(thick, 1.0, 1.0)).tables["axon_direction"]
    direction = np.array([found[f"direction_{axis}"][0] for axis in "zyx"])
    assert np.degrees(np.arccos(min(1, abs(direction @ course)))) < 5
    assert found["coherence"][0] > 0.8
    assert found["mean_cos2"][0] > 0.85
    assert found["dip_deg"][0] == pytest.approx(np.degrees(np.arcsin(direction[0])))
    assert -90 <= found["angle_deg"][0] <= 90


@settings(max_examples=6, deadline=None)
@given(angle=st.floats(-89, 89))
def test_in_a_slice_stripes_have_their_angle(angle: float) -> None:
    y, x = np.indices((90, 90))
    across = np.sin(np.radians(angle)) * x + np.cos(np.radians(angle)) * y
    labels = (np.sin(across / 2.2) > 0).astype(np.uint8)[None] * AXON
    tables = measure_array(labels).tables
    found = tables["axon_direction"]
    assert abs((found["angle_deg"][0] - angle + 90) % 180 - 90) < 3
    assert found["coherence"][0] > 0.9
    assert found["dip_deg"][0] == 0
    angles = tables["axon_angles"]
    assert angles["share"].sum() == pytest.approx(1)
    near = np.abs((angles["angle_from_deg"] + 5 - angle + 90) % 180 - 90) < 16
    assert angles["share"][near].sum() > 0.9


def test_cells_among_fibres_and_the_cut_change_nothing() -> None:
    rng = np.random.default_rng(2)
    course = np.array([0.2, 0.5, 0.8]) / np.linalg.norm([0.2, 0.5, 0.8])
    labels = draw_fibres((70, 60, 60), course, rng, (1.0, 1.0, 1.0))
    labels[20:34, 20:34, 20:34] = CELL
    whole, cut = (measure_array(labels, block=(edge, edge, edge)).tables for edge in (256, 33))
    direction = np.array([whole["axon_direction"][f"direction_{axis}"][0] for axis in "zyx"])
    assert direction @ course > np.cos(np.radians(4))
    for name in ("axon_direction", "axon_direction_grid", "axon_angles"):
        for column, values in whole[name].items():
            np.testing.assert_array_equal(cut[name][column], values)


@pytest.mark.parametrize("edges", [(32, 32, 32), (18, 22, 16)])
def test_tiles_see_what_the_whole_sees(edges: tuple[int, int, int]) -> None:
    course = np.array([0.2, 0.5, 0.8]) / np.linalg.norm([0.2, 0.5, 0.8])
    labels = draw_fibres((40, 44, 48), course, np.random.default_rng(4), (1.0, 1.0, 1.0))
    labels[:, :, :16] = 0  # tiles without axons, beside others that have some
    labels[10:20, 10:20, 30:40] = CELL
    labels[:, 40:] = 255
    source, found = make_source(labels), []
    for tile in (edges, (64, 64, 64)):
        grid = plan_tiles(source.shape, (64, 64, 64), tile)
        work = TileWork(source, grid, Grid(source.shape, (10, 10, 10), (10, 10, 10))).build()
        results = [result.tensors for number in range(len(grid)) for result in work(number)]
        found.append(gather_tensors([tensors for tensors in results if tensors is not None]))
    np.testing.assert_array_equal(found[0].keys, found[1].keys)
    np.testing.assert_allclose(found[0].sums, found[1].sums, rtol=1e-12, atol=1e-12)


def test_without_axons_there_is_no_direction() -> None:
    tables = measure_array(np.zeros((20, 20, 20), np.uint8)).tables
    assert np.isnan(tables["axon_direction"]["coherence"]).all()
    assert tables["axon_direction"]["volume_mm3"].tolist() == [0]
    assert len(tables["axon_direction_grid"]["angle_deg"]) == 0


def test_tensors_are_those_of_the_filtered_array() -> None:
    noise = np.random.default_rng(6).normal(size=(24, 26, 28))
    labels = (ndimage.gaussian_filter(noise, 2) > 0).astype(np.uint8) * AXON
    source, place = make_source(labels), tuple(slice(0, size) for size in labels.shape)
    found = sum_tensors(source, labels, place, place, Grid(source.shape, source.shape, source.shape))
    assert found is not None
    smooth = ndimage.gaussian_filter((labels == AXON).astype(np.float32), 1.5, mode="nearest", truncate=2.5)
    gradients = [np.gradient(smooth.astype(float), axis=axis)[::2, ::2, ::2] for axis in range(3)]
    pairs = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
    expected = [(gradients[a] * gradients[b]).sum() for a, b in pairs]
    np.testing.assert_allclose(found.sums[0], expected, rtol=1e-5, atol=1e-5)
