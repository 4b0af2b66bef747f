from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from neurotome.datasets import open_dataset
from neurotome.datasets.base import check_labels
from neurotome.datasets.phantom import make as module
from neurotome.datasets.phantom.image import record_image
from neurotome.datasets.phantom.make import PhantomSettings, make_cutout, make_phantom, phantom
from neurotome.datasets.phantom.regions import INSTRUMENT, REGIONS, draw_instrument, draw_region
from neurotome.datasets.phantom.tissue import locate_fibres, sample_field
from neurotome.datasets.phantom.tubes import stamp_tubes
from neurotome.errors import DatasetError, RunError, SettingsError
from tests.traced_maps import paint_labels

STRAIGHT = replace(REGIONS["vp"], fibre_bend=0.0)
SMALL = PhantomSettings(height=40, width=48, train_depth=3, val_depth=1, test_depth=2)

# From Prasad et al. (2020): shares of vessel, cell and axon; mean and standard deviation of grey values
MEASURED = {
    "cortex": ((0.017, 0.026, 0.0), 113, 24),
    "striatum": ((0.019, 0.033, 0.173), 117, 28),
    "vp": ((0.031, 0.025, 0.571), 133, 34),
    "zi": ((0.059, 0.055, 0.0), 127, 38),
}


@pytest.fixture(scope="module")
def cutouts() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Several pieces of each region, because large vessels are rare."""
    made = {}
    for name, region in REGIONS.items():
        pieces = [make_cutout(region, INSTRUMENT, (1, 192, 192), np.random.default_rng(seed)) for seed in range(8)]
        made[name] = np.stack([p[0] for p in pieces]), np.stack([p[1] for p in pieces])
    return made


@pytest.mark.parametrize("name", REGIONS)
def test_class_shares_are_near_the_measured_ones(name: str, cutouts: dict) -> None:
    labels = cutouts[name][1]
    shares = np.bincount(labels.ravel(), minlength=4) / labels.size
    vessel, cell, axon = MEASURED[name][0]
    assert shares[1] == pytest.approx(vessel, rel=0.8)  # one large vessel more or less
    assert shares[2] == pytest.approx(cell, rel=0.35)
    assert shares[3] == pytest.approx(axon, rel=0.15)


@pytest.mark.parametrize("name", REGIONS)
def test_grey_values_are_near_the_measured_ones(name: str, cutouts: dict) -> None:
    image, labels = cutouts[name]
    _, mean, std = MEASURED[name]
    assert image.mean() == pytest.approx(mean, abs=6)
    assert image.std() == pytest.approx(std, abs=8)
    background, vessel, cell = (image[labels == i].mean() for i in range(3))
    assert vessel < cell < background - 40
    if (labels == 3).any():
        assert image[labels == 3].mean() > background + 20


@pytest.mark.parametrize("name", REGIONS)
def test_cells_are_as_many_as_measured(name: str, cutouts: dict) -> None:
    profiles = {"cortex": 47, "striatum": 44, "vp": 27, "zi": 55}
    found = []
    for piece in cutouts[name][1]:
        for plane in piece:
            marked, _ = ndimage.label(plane == 2)
            found.append((np.bincount(marked.ravel())[1:] >= 10).sum())
    assert np.mean(found) == pytest.approx(profiles[name] * (192 / 256) ** 2, rel=0.35)


def test_large_vessels_are_black_with_a_bright_halo() -> None:
    lumens = np.hypot(*np.mgrid[-48:48, -48:48])[None].repeat(12, 0) <= 12
    painted = np.where(lumens, REGIONS["zi"].lumen, REGIONS["zi"].neuropil).astype(np.float32)
    quiet = replace(REGIONS["zi"], noise_sd=0.01)
    image = record_image(painted, None, quiet, INSTRUMENT, np.random.default_rng(0))[6].astype(float)
    distance = ndimage.distance_transform_edt(~lumens[6])
    offsets = [image[abs(distance - d) < 0.5].mean() - quiet.neuropil for d in (1, 2, 3, 4, 7)]
    assert image[40:56, 40:56].mean() < 10
    assert offsets[0] < -10
    assert offsets[2:] == pytest.approx([35, 28, 0], abs=12)


def test_noise_correlates_like_the_measured_noise() -> None:
    flat = np.full((20, 128, 128), 128, np.float32)
    noise = record_image(flat, None, REGIONS["cortex"], INSTRUMENT, np.random.default_rng(0)).astype(float) - 128
    assert noise.std() == pytest.approx(REGIONS["cortex"].noise_sd, rel=0.03)
    variance = (noise**2).mean()
    along_y = [(noise[:, lag:] * noise[:, :-lag]).mean() / variance for lag in (1, 2, 3)]
    along_x = [(noise[..., lag:] * noise[..., :-lag]).mean() / variance for lag in (1, 2, 3)]
    assert along_y == pytest.approx([0.89, 0.63, 0.34], abs=0.04)
    assert along_x == pytest.approx([0.75, 0.38, 0.10], abs=0.04)


def test_air_is_dark_background_behind_a_bright_rim() -> None:
    instrument = replace(INSTRUMENT, air=0.4, rim=60.0)
    image, labels = make_cutout(REGIONS["cortex"], instrument, (4, 128, 128), np.random.default_rng(2))
    tissue = ndimage.binary_closing(image[2] > 60, iterations=6)
    assert (~tissue).mean() == pytest.approx(0.4, abs=0.1)
    depth = ndimage.distance_transform_edt(tissue)
    assert (labels[2][depth == 0] == 0).mean() > 0.97
    assert image[2][(depth > 1) & (depth < 4)].mean() > image[2][depth > 15].mean() + 20


def test_streaks_run_down_and_are_thin() -> None:
    flat = np.full((1, 128, 128), 128, np.float32)
    instrument = replace(INSTRUMENT, streaks=40.0, streak_depth=60.0)
    image = record_image(flat, None, replace(REGIONS["cortex"], noise_sd=0.01), instrument, np.random.default_rng(0))[0]
    marked, count = ndimage.label(image < 90)
    boxes = ndimage.find_objects(marked)
    assert count > 3
    assert np.median([box[0].stop - box[0].start for box in boxes]) >= 15
    assert np.median([box[1].stop - box[1].start for box in boxes]) <= 3


def test_randomised_phantoms_differ_more_than_faithful_ones() -> None:
    def spread(mode: str) -> float:
        made = (make_phantom(replace(SMALL, mode=mode, seed=seed, regions=("cortex",))) for seed in (0, 5))
        return np.ptp([cutout.volume.data.mean() for dataset in made for cutout in dataset.split("train")])

    assert spread("randomised") > spread("faithful")


def test_same_seed_same_voxels_and_other_seed_other_voxels() -> None:
    first, again = make_phantom(SMALL), make_phantom(SMALL)
    other = make_phantom(replace(SMALL, seed=1))
    for split in first.splits:
        for a, b, c in zip(first.splits[split], again.splits[split], other.splits[split], strict=True):
            np.testing.assert_array_equal(a.volume.data, b.volume.data)
            np.testing.assert_array_equal(a.labels, b.labels)
            assert (a.volume.data != c.volume.data).any()


def test_a_cutout_does_not_depend_on_which_others_are_made() -> None:
    everything = make_phantom(SMALL)
    alone = make_phantom(replace(SMALL, regions=("zi",), train_depth=1))
    np.testing.assert_array_equal(alone.split("test")[0].volume.data, everything.split("test")[3].volume.data)


def test_splits_share_no_voxels() -> None:
    same_size = PhantomSettings(height=40, width=48, train_depth=2, val_depth=2, test_depth=2)
    dataset = make_phantom(same_size)
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        for one, two in zip(dataset.split(a), dataset.split(b), strict=True):
            correlation = np.corrcoef(one.volume.data.ravel(), two.volume.data.ravel())[0, 1]
            assert abs(correlation) < 0.45


def test_dataset_has_names_sizes_and_classes() -> None:
    dataset = make_phantom(SMALL)
    assert [c.name for c in dataset.split("train")] == [f"train_{name}" for name in REGIONS]
    assert {c.volume.shape for c in dataset.split("val")} == {(1, 40, 48)}
    assert dataset.voxel_size_um == (1.17, 1.17, 1.17)
    for cutout in dataset.split("test"):
        assert cutout.volume.data.dtype == cutout.labels.dtype == np.uint8
        check_labels(cutout.labels, dataset.classes, cutout.name)


def test_folder_holds_what_was_made(tmp_path: Path) -> None:
    folder = phantom(out=tmp_path / "made", settings=SMALL)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made"]
    content = yaml.safe_load((folder / "dataset.yaml").read_text())
    assert content["classes"] == {0: "background", 1: "blood vessel", 2: "cell", 3: "axon"}
    assert content["voxel_size_um"] == [1.17, 1.17, 1.17]
    assert "seed 0" in content["citation"]
    read, made = open_dataset(folder), make_phantom(SMALL)
    assert read.classes == made.classes
    assert read.voxel_size_um == made.voxel_size_um
    for split in made.splits:
        for a, b in zip(read.split(split), made.split(split), strict=True):
            assert a.name == b.name
            np.testing.assert_array_equal(a.volume.data, b.volume.data)
            np.testing.assert_array_equal(a.labels, b.labels)


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert (phantom(out=tmp_path / "empty", settings=SMALL) / "dataset.yaml").is_file()


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_nothing_is_written_over(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "taken"
    if kind == "folder":
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    else:
        out.write_text("mine")
    with pytest.raises(RunError, match="taken exists already"):
        phantom(out=out, settings=SMALL)
    assert (out / "mine.txt" if kind == "folder" else out).read_text() == "mine"


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(module, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        phantom(out=tmp_path / "made", settings=SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"regions": ("cortx",)}, "Did you mean 'cortex'"),
        ({"regions": ()}, "empty"),
        ({"regions": ("vp", "vp")}, "each named once"),
        ({"height": 0}, "height is 0"),
        ({"val_depth": -1}, "val_depth is -1"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        PhantomSettings(**wrong)


@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 40), st.integers(1, 40)),
    name=st.sampled_from(sorted(REGIONS)),
    seed=st.integers(0, 2**32),
)
def test_any_size_can_be_made_with_any_numbers(shape: tuple[int, int, int], name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    region, instrument = draw_region(REGIONS[name], rng), draw_instrument(rng)
    image, labels = make_cutout(region, instrument, shape, rng)
    assert image.shape == labels.shape == shape
    assert labels.max() <= 3


def test_stamped_tube_is_the_union_of_balls() -> None:
    rng = np.random.default_rng(0)
    points, radii = rng.uniform(-3, 15, (12, 3)), rng.uniform(0.5, 2.9, 12)
    mask = np.zeros((12, 11, 10), bool)
    stamp_tubes(mask, points, radii)
    voxels = np.stack(np.indices(mask.shape), -1)[..., None, :]
    expected = (np.linalg.norm(voxels - points, axis=-1) <= radii).any(-1)
    np.testing.assert_array_equal(mask, expected)


def test_field_has_unit_variance_and_the_smoothness_asked_for() -> None:
    grid = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in (40, 120, 120)), indexing="ij"))
    field = sample_field(np.random.default_rng(0), grid, (3.0, 3.0, 6.0)).astype(float)
    assert field.mean() == pytest.approx(0, abs=0.1)
    assert field.std() == pytest.approx(1, abs=0.15)
    # white noise smoothed with sigma correlates as exp(-lag^2 / (4 sigma^2))
    measured = (field[..., 6:] * field[..., :-6]).mean() / (field**2).mean()
    assert measured == pytest.approx(np.exp(-0.25), abs=0.08)


def test_fibres_run_at_the_angle_asked_for() -> None:
    fibres = locate_fibres((2, 60, 60), replace(STRAIGHT, fibre_fan=1e5), np.random.default_rng(0))
    slope_y, slope_x = np.gradient(fibres[2, 0].astype(float))
    angle = np.rad2deg(np.arctan2(-slope_y.mean(), slope_x.mean())) % 180
    assert angle == pytest.approx(30, abs=12)


def test_fibres_fan_out() -> None:
    fibres = locate_fibres((1, 200, 200), STRAIGHT, np.random.default_rng(0))
    slope_y, slope_x = np.gradient(fibres[2, 0].astype(float))
    angles = np.unwrap(np.arctan2(-slope_y, slope_x).ravel()) % np.pi
    assert np.ptp(np.rad2deg(angles)) > 20


def test_fibres_that_dip_by_90_degrees_are_cut_across() -> None:
    fibres = locate_fibres((4, 30, 30), replace(STRAIGHT, fibre_fan=1e5, fibre_dip_deg=90.0), np.random.default_rng(0))
    assert np.diff(fibres[2], axis=0) == pytest.approx(1, abs=0.01)
    assert np.diff(fibres[2], axis=1) == pytest.approx(0, abs=0.01)


CROWDED = replace(
    REGIONS["vp"], cells_per_mvox=400.0, faint_cells=1.0, faint_cells_drawn=0.0, faint_vessels=0.5, faint_vessels_drawn=0.0
)


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        ({"cell_edge": 1.0}, 2),
        ({"vessel_edge": 1.0}, 1),
        ({"faint_cells_drawn": 1.0}, 2),
        ({"faint_vessels_drawn": 1.0}, 1),
        ({"cell_pole": 0.0}, 2),
    ],
)
def test_how_people_draw_changes_the_labels_and_not_the_image(changes: dict, value: int) -> None:
    few = replace(CROWDED, cell_pole=0.7)
    (image, narrow), (again, wide) = (
        make_cutout(region, INSTRUMENT, (3, 48, 48), np.random.default_rng(4)) for region in (few, replace(few, **changes))
    )
    np.testing.assert_array_equal(image, again)
    # a vessel wins over a cell
    assert np.isin(wide[narrow == value], (1, value)).all()
    assert (wide == value).sum() > 1.02 * (narrow == value).sum()


@pytest.mark.parametrize("sheet", [0.0, 20.0])
def test_white_matter_lies_beyond_a_border(sheet: float) -> None:
    bare = replace(REGIONS["cortex"], cells_per_mvox=0.0, beyond_share=1.0, sheet_width=sheet, specks_per_mvox=0.0)
    image, labels = make_cutout(bare, INSTRUMENT, (1, 96, 96), np.random.default_rng(1))
    axon = ndimage.binary_closing(labels[0] == 3, iterations=3)
    marked, _ = ndimage.label(axon)
    assert 0.08 < axon.mean() < 0.92
    assert np.bincount(marked.ravel())[1:].max() > 0.95 * axon.sum()  # in one piece
    assert image[labels == 3].mean() > image[labels == 0].mean() + 15


def read_real_maps() -> dict[str, np.ndarray]:
    path = Path(__file__).parents[2] / "shared" / "data" / "microct_patches" / "label_maps_128_patches.npz"
    if not path.is_file():
        pytest.skip("needs the real label maps of ../shared/data, which are not part of the project")
    return dict(np.load(path, allow_pickle=False))


@pytest.mark.parametrize(("name", "key"), [("cortex", "ctx"), ("striatum", "str"), ("vp", "trn"), ("zi", "zi")])
def test_real_label_maps_are_painted_with_their_own_geometry(name: str, key: str) -> None:
    maps = read_real_maps()[key][:6]
    region = REGIONS[name]
    images = np.stack([paint_labels(m, region, INSTRUMENT, np.random.default_rng(i)) for i, m in enumerate(maps)])
    assert images.shape == maps.shape
    background, vessel, cell = (images[maps == value].mean() for value in range(3))
    assert vessel < background - 40
    assert cell < background - 30
    if (maps == 3).any():
        assert images[maps == 3].mean() == pytest.approx(region.axon, abs=12)


def test_a_drawn_cell_is_dark_where_it_was_drawn() -> None:
    labels = np.zeros((40, 50), np.uint8)
    labels[10:20, 15:30] = 2
    quiet = replace(
        REGIONS["cortex"], noise_sd=0.01, cell_contrast=(1.0, 1.0), strand_sd=0.0, low_sd=0.0, specks_per_mvox=0.0
    )
    image = paint_labels(labels, quiet, INSTRUMENT, np.random.default_rng(0)).astype(float)
    assert image[13:17, 20:25].mean() < 85
    assert image[30:, :].mean() == pytest.approx(quiet.neuropil, abs=4)


@pytest.mark.parametrize("wrong", [np.zeros((2, 3, 4), np.uint8), np.full((8, 8), 7, np.uint8)])
def test_label_maps_that_cannot_be_painted_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(DatasetError, match=r"label map"):
        paint_labels(wrong, REGIONS["cortex"], INSTRUMENT, np.random.default_rng(0))
