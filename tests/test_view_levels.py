"""Coarser levels in the page: a scale that is asked for is answered from the level that is stored for it, at its place."""

import json

import numpy as np
import pytest
import zarr
from neuroglancer.downsample_scales import (
    compute_near_isotropic_downsampling_scales,
    compute_two_dimensional_near_isotropic_downsampling_scales,
)

from neurotome.io.ome_zarr import describe_multiscale
from neurotome.viewing import scene as scenes
from neurotome.viewing.levels import ALL, SECTIONS, Source, choose_limit, choose_source, list_scales
from neurotome.viewing.page import open_page
from neurotome.viewing.scene import open_scene
from test_view_page import fetch, fetch_voxels, find_key


@pytest.fixture(autouse=True)
def nothing_is_held(monkeypatch):
    monkeypatch.setattr(scenes, "HELD_BYTES", 0)


def count_up(shape, first=0, dtype=np.uint8):
    """Voxels of which neighbours differ."""
    return (first + np.arange(np.prod(shape)).reshape(shape) % 100).astype(dtype)


def write_levels(path, levels, chunk=(4, 4, 4), size_um=(1.0, 1.0, 1.0), change=lambda datasets: None):
    """Writes arrays, the finest first, with their factors, as an OME-Zarr; `change` changes what its metadata say."""
    group = zarr.open_group(path, mode="w", zarr_format=3)
    for number, (_, voxels) in enumerate(levels):
        group.create_array(str(number), data=voxels, chunks=chunk)
    multiscale = describe_multiscale("v", size_um, (0, 0, 0), {str(i): factors for i, (factors, _) in enumerate(levels)})
    change(multiscale["datasets"])
    group.update_attributes({"ome": {"version": "0.5", "multiscales": [multiscale]}})
    return path


def open_levels(*arguments, **options):
    return open_page(open_scene(write_levels(*arguments, **options)))


def average(voxels, by):
    z, y, x = (size // step for size, step in zip(voxels.shape, by, strict=True))
    return voxels.reshape(z, by[0], y, by[1], x, by[2]).mean((1, 3, 5)).astype(voxels.dtype)


FINEST, HALF, QUARTER = count_up((8, 16, 24)), count_up((4, 8, 12), 100), count_up((2, 4, 6), 200)
PYRAMID = [((1, 1, 1), FINEST), ((2, 2, 2), HALF), ((4, 4, 4), QUARTER)]


def test_a_scale_is_the_stored_level_at_its_place(tmp_path):
    with open_levels(tmp_path / "v.zarr", PYRAMID) as page:
        np.testing.assert_array_equal(fetch_voxels(page, "image", (0, 0, 0), (8, 16, 24)), FINEST)
        np.testing.assert_array_equal(fetch_voxels(page, "image", (0, 0, 0), (4, 8, 12), (2, 2, 2)), HALF)
        np.testing.assert_array_equal(fetch_voxels(page, "image", (1, 2, 3), (3, 7, 11), (2, 2, 2)), HALF[1:3, 2:7, 3:11])
        np.testing.assert_array_equal(fetch_voxels(page, "image", (1, 2, 3), (2, 4, 6), (4, 4, 4)), QUARTER[1:, 2:, 3:])
        between = fetch_voxels(page, "image", (0, 0, 0), (2, 8, 12), (4, 2, 2))  # of the level that divides it
        np.testing.assert_array_equal(between, average(HALF, (2, 1, 1)))
        beyond = fetch_voxels(page, "image", (0, 0, 0), (1, 2, 3), (8, 8, 8))
        np.testing.assert_array_equal(beyond, average(QUARTER, (2, 2, 2)))


def test_labels_are_never_averaged(tmp_path):
    image = write_levels(tmp_path / "image.zarr", PYRAMID)
    labels = write_levels(tmp_path / "labels.zarr", [(factors, ids.astype(np.int32)) for factors, ids in PYRAMID[:2]])
    with pytest.warns(UserWarning, match="do not say"):
        scene = open_scene(image, labels)
    with open_page(scene) as page:
        half = fetch_voxels(page, "labels", (0, 0, 0), (4, 8, 12), (2, 2, 2))
        quarter = fetch_voxels(page, "labels", (0, 0, 0), (2, 4, 6), (4, 4, 4))
    assert half.dtype == quarter.dtype == np.uint32
    np.testing.assert_array_equal(half, HALF)
    np.testing.assert_array_equal(quarter, HALF[::2, ::2, ::2])


@pytest.mark.parametrize("rest", [True, False], ids=["rounded up", "rounded down"])
def test_where_an_axis_is_no_multiple(tmp_path, rest):
    """What a writer leaves out is black, and the rest is where it belongs."""
    finest, half = count_up((5, 7, 9)), count_up((3, 4, 5), 100)
    stored = half if rest else half[:2, :3, :4]
    with open_levels(tmp_path / "v.zarr", [((1, 1, 1), finest), ((2, 2, 2), stored)]) as page:
        found = fetch_voxels(page, "image", (0, 0, 0), (3, 4, 5), (2, 2, 2))
        corner = fetch_voxels(page, "image", (2, 3, 4), (3, 4, 5), (2, 2, 2))
    expected = half if rest else np.pad(stored, ((0, 1), (0, 1), (0, 1)))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(corner, expected[2:, 3:, 4:])


def scale_by(factor):
    def change(datasets):
        datasets[1]["coordinateTransformations"][0]["scale"] = [factor] * 3

    return change


def start_at(place):
    def change(datasets):
        datasets[1]["coordinateTransformations"][1]["translation"] = [place] * 3

    return change


def test_levels_that_lie_elsewhere_are_said_and_not_used(tmp_path):
    for change in (scale_by(2.5), scale_by(3.0), start_at(1.5), start_at(-1.0)):
        scene = open_scene(write_levels(tmp_path / "v.zarr", PYRAMID[:2], change=change))
        said = r"v\.zarr: its coarser level 1 of shape \(4, 8, 12\) is not used"
        with pytest.warns(UserWarning, match=said), open_page(scene) as page:
            found = fetch_voxels(page, "image", (0, 0, 0), (4, 8, 12), (2, 2, 2))
        np.testing.assert_array_equal(found, average(FINEST, (2, 2, 2)))


def test_both_ways_to_say_where_a_level_begins(tmp_path):
    """In the middle of the voxels that its first one covers, or at the first of them; and scales that are rounded."""
    for change in (start_at(0.5), start_at(0.0), scale_by(2.0001), lambda said: said[1]["coordinateTransformations"].pop()):
        with open_levels(tmp_path / "v.zarr", PYRAMID[:2], change=change) as page:
            np.testing.assert_array_equal(fetch_voxels(page, "image", (0, 0, 0), (4, 8, 12), (2, 2, 2)), HALF)


def test_a_level_that_is_not_there_is_said(tmp_path):
    def rename(datasets):
        datasets[1]["path"] = "gone"

    scene = open_scene(write_levels(tmp_path / "v.zarr", PYRAMID, change=rename))
    said = r"v\.zarr cannot be read.*gone.*coarser levels are not used"
    with pytest.warns(UserWarning, match=said), open_page(scene) as page:
        np.testing.assert_array_equal(fetch_voxels(page, "image", (0, 0, 0), (8, 16, 24)), FINEST)


def test_sections_of_stored_slices(tmp_path):
    """A section across the slices is read from a level too: its voxels are repeated along the axis that is looked along."""
    levels = [((1, 1, 1), FINEST), ((1, 2, 2), count_up((8, 8, 12), 100))]
    with open_levels(tmp_path / "v.zarr", levels, chunk=(1, 8, 8)) as page:
        half = levels[1][1]
        np.testing.assert_array_equal(fetch_voxels(page, "image", (0, 0, 0), (8, 8, 12), (1, 2, 2)), half)
        across = fetch_voxels(page, "image", (1, 3, 1), (3, 6, 12), (2, 1, 2))
        np.testing.assert_array_equal(across, average(half[:, [1, 2, 2], 1:], (2, 1, 1))[1:3])


def test_a_channel_of_several(tmp_path):
    group = zarr.open_group(tmp_path / "v.zarr", mode="w", zarr_format=3)
    for number, voxels in enumerate((FINEST, HALF)):
        group.create_array(str(number), data=np.stack([np.zeros_like(voxels), voxels]), chunks=(1, 4, 4, 4))
    multiscale = describe_multiscale("v", (1.0, 1.0, 1.0), (0, 0, 0), {"0": (1, 1, 1), "1": (2, 2, 2)})
    multiscale["axes"].insert(0, {"name": "c", "type": "channel"})
    for dataset in multiscale["datasets"]:
        scale, translation = dataset["coordinateTransformations"]
        scale["scale"].insert(0, 1.0)
        translation["translation"].insert(0, 0.0)
    group.update_attributes({"ome": {"version": "0.5", "multiscales": [multiscale]}})
    with open_page(open_scene(tmp_path / "v.zarr", channel=1)) as page:
        np.testing.assert_array_equal(fetch_voxels(page, "image", (0, 0, 0), (4, 8, 12), (2, 2, 2)), HALF)


def test_the_browser_may_ask_as_far_as_there_are_levels(tmp_path):
    """And begins with all of the volume in view."""
    finest = np.lib.stride_tricks.as_strided(count_up((2,)), (2, 2, 4096), (1, 0, 0))
    levels = [((1, by, by), finest[:, : max(2 // by, 1), : 4096 // by]) for by in (1, 2, 4, 8)]
    limits, zooms = [], []
    for stored in (levels[:1], levels):
        with open_levels(tmp_path / "v.zarr", stored, chunk=(2, 2, 512)) as page:
            limits.append(json.loads(fetch(page, f"neuroglancer/info/{find_key(page, 'image')}"))["maxDownsampling"])
            zooms.append(page.read_state()["crossSectionScale"])
    assert limits[0] == 64 < limits[1]
    assert zooms[0] == 1 < zooms[1]


def test_scales_are_those_of_the_client():
    for shape, sizes in (((5000, 3000, 4000), (1, 1, 1)), ((300, 9000, 8000), (5, 1.5, 1)), ((64, 512, 512), (1, 3, 2))):
        ours = list(list_scales(shape, sizes, ALL[0], 1 << 60))
        theirs = compute_near_isotropic_downsampling_scales(
            np.array(shape), np.array(sizes), [0, 1, 2], max_downsampling=1 << 60
        )
        assert ours == [tuple(map(int, scale)) for scale in theirs]
    cube, alike = (5000,) * 3, (1, 1, 1)
    flat = compute_two_dimensional_near_isotropic_downsampling_scales(
        np.array(cube), np.array(alike), max_scales=4, max_downsampling=65
    )
    assert [list(list_scales(cube, alike, axes, 64)) for axes in SECTIONS] == [
        [tuple(map(int, scales[i])) for scales in flat] for i in range(3)
    ]
    assert list(list_scales(cube, alike, ALL[0], 16)) == [(1, 1, 1), (2, 2, 2), (4, 2, 2)]  # the limit cuts a step


def test_the_level_of_which_the_fewest_voxels_are_read():
    levels, alike = [(1, 1, 1), (2, 2, 2), (4, 4, 4)], (1.0, 1.0, 1.0)
    assert choose_source((1, 1, 1), levels, alike, flat=False) == Source(0, (1, 1, 1), (1, 1, 1))
    assert choose_source((8, 4, 4), levels, alike, flat=False) == Source(2, (1, 1, 1), (2, 1, 1))
    assert choose_source((2, 4, 4), levels, alike, flat=False) == Source(1, (1, 1, 1), (1, 2, 2))
    assert choose_source((1, 4, 4), levels, alike, flat=False) == Source(0, (1, 1, 1), (1, 4, 4))
    assert choose_source((1, 4, 4), levels, alike, flat=True) == Source(2, (4, 1, 1), (1, 1, 1))
    deep = (3.0, 1.0, 1.0)  # of level 1 a voxel would be 6 um deep, and one that is shown is 4 um wide
    assert choose_source((1, 4, 4), levels, deep, flat=True) == Source(0, (1, 1, 1), (1, 4, 4))
    assert choose_source((4, 4, 4), [(1, 1, 1), (3, 3, 3)], alike, flat=False) == Source(0, (1, 1, 1), (4, 4, 4))


def test_no_scale_reads_more_than_is_bearable():
    shape, alike = (4096, 4096, 4096), (1.0, 1.0, 1.0)
    assert choose_limit(shape, [(1, 1, 1)], alike, flat=False) == 64
    assert choose_limit(shape, [(1, 1, 1), (3, 3, 3)], alike, flat=False) == 64
    assert choose_limit(shape, [(1, 1, 1), (2, 2, 2)], alike, flat=False) == 8 * 64
    assert choose_limit(shape, [(1, 1, 1), (1, 2, 2)], alike, flat=True) == 2 * 64  # of (16, 8, 1)
