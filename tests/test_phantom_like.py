from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from neurotome.datasets.phantom import like as module
from neurotome.datasets.phantom import measured
from neurotome.datasets.phantom.like import Appearance, Measured, draw_like, measure_appearance, read_appearance
from neurotome.datasets.phantom.make import PhantomSettings, make_cutout, make_phantom, phantom
from neurotome.datasets.phantom.regions import INSTRUMENT, REGIONS, draw_instrument, draw_region
from neurotome.datasets.phantom.stream import StreamSettings, open_stream
from neurotome.errors import ImageError, SettingsError
from neurotome.volume import Volume

SMALL = PhantomSettings(height=40, width=48, train_depth=1, val_depth=1, test_depth=1, regions=("vp",))


def make_images(seed: int, names: tuple[str, ...] = ("striatum", "vp"), edge: int = 160, **numbers: float) -> np.ndarray:
    """Slices of phantom tissue of which noise, grey values and edges are known, uint8 (z, y, x)."""
    of_instrument = {name: numbers.pop(name) for name in list(numbers) if hasattr(INSTRUMENT, name)}
    made = []
    for number, name in enumerate(names):
        region = replace(REGIONS[name], neuropil=118.0, lumens=((5.0, 8.0, 15.0),), lumen_squash=0.0, **numbers)
        rng = np.random.default_rng([seed, number])
        made.append(make_cutout(region, replace(INSTRUMENT, **of_instrument), (6, edge, edge), rng)[0][::2])
    return np.concatenate(made)


FAR_APART = {
    "sharp and quiet": {
        "noise_sd": 7.0,
        "axon": 142.0,
        "noise_sigma_zyx": (0.8, 0.9, 0.8),
        "blur_sigma": 0.85,
        "edge_gain": 1.1,
        "gain": 1.2,
    },
    "blurred and loud": {
        "noise_sd": 17.0,
        "axon": 166.0,
        "noise_sigma_zyx": (1.4, 1.7, 1.3),
        "blur_sigma": 1.4,
        "edge_gain": 2.4,
        "gain": 0.8,
    },
}


@pytest.mark.parametrize("name", FAR_APART)
def test_numbers_of_a_phantom_are_found_again(name: str) -> None:
    true = FAR_APART[name]
    found = measure_appearance([Volume(make_images(3, **true), "phantom")])
    assert found.image_neuropil_grey.centre == pytest.approx(118 * true["gain"], rel=0.05)
    assert found.noise_sd_grey.centre == pytest.approx(true["noise_sd"], rel=0.25)
    assert found.noise_sigma_y_px.centre == pytest.approx(true["noise_sigma_zyx"][1], rel=0.15)
    assert found.noise_sigma_x_px.centre == pytest.approx(true["noise_sigma_zyx"][2], rel=0.3)
    assert found.white_grey.centre == pytest.approx(true["axon"], abs=8)
    assert found.blur_sigma_px.centre == pytest.approx(true["blur_sigma"], rel=0.25)
    assert 1 / 1.8 < found.edge_gain.centre / true["edge_gain"] < 1.8  # a few vessels say no more
    region, instrument = draw_like(found, REGIONS["vp"], INSTRUMENT, None)
    assert (region.noise_sd, instrument.blur_sigma) == (found.noise_sd_grey.centre, found.blur_sigma_px.centre)
    assert instrument.gain == pytest.approx(true["gain"], rel=0.05)


@pytest.fixture
def uncorrected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the pieces of phantom that are made to correct what was measured, which take a second."""
    monkeypatch.setattr(module, "_correct", lambda appearance, _: appearance)


@pytest.fixture(scope="module")
def plane() -> np.ndarray:
    return make_images(5, ("vp",), 136)[0]


def shape_of(appearance: Appearance) -> dict:
    """The numbers that do not depend on an image's grey scale."""
    return {k: v for k, v in appearance.to_json().items() if not k.startswith("image") and k != "dtype" and v is not None}


@pytest.mark.usefixtures("uncorrected")
def test_another_grey_scale_has_the_same_shape(plane: np.ndarray) -> None:
    first = measure_appearance([Volume(plane[None], "image")])
    other = measure_appearance([Volume(plane[None].astype(np.uint16) * 37 + 500, "image")])
    assert other.image_neuropil_grey.centre == pytest.approx(first.image_neuropil_grey.centre * 37 + 500, rel=1e-3)
    for name, value in shape_of(first).items():
        assert shape_of(other)[name] == pytest.approx(value, rel=2e-3, abs=1e-3), name
    # the phantom is uint8: other images' grey scale is not its own
    assert draw_like(other, REGIONS["vp"], INSTRUMENT, None)[1].gain == 1.0


@pytest.mark.usefixtures("uncorrected")
def test_an_appearance_goes_through_json_and_is_the_same_every_time(plane: np.ndarray) -> None:
    found, again = (measure_appearance([Volume(plane[None], "image")]) for _ in range(2))
    assert found == again
    read = Appearance.from_json(json.loads(json.dumps(found.to_json())))
    assert read.to_json() == found.to_json()
    drawn = [draw_like(read, REGIONS["vp"], INSTRUMENT, np.random.default_rng(4)) for _ in range(2)]
    assert drawn[0] == drawn[1]


@pytest.mark.usefixtures("uncorrected")
def test_what_cannot_be_measured_stays_as_drawn() -> None:
    flat = make_images(5, ("cortex",), 136, axon_share=0.0)[0]
    found = replace(
        measure_appearance([Volume(flat[None], "image")]), blur_sigma_px=None, edge_gain=None, edge_sigma_px=None
    )
    assert found.white_grey is None
    rng = np.random.default_rng(0)
    region, instrument = draw_region(REGIONS["vp"], rng), draw_instrument(rng)
    like_region, like_instrument = draw_like(found, region, instrument, rng)
    kept = ("axon", "axon_share", "cells_per_mvox", "cell_diameter", "lumens", "neuropil", "fibre_sigma")
    assert all(getattr(like_region, name) == getattr(region, name) for name in kept)
    assert (like_instrument.blur_sigma, like_instrument.air) == (instrument.blur_sigma, instrument.air)
    reach = 2 * max(found.noise_sd_grey.spread, 0.05 * found.noise_sd_grey.centre)
    assert abs(like_region.noise_sd - found.noise_sd_grey.centre) <= reach


def test_noise_of_known_correlation_is_found_in_a_plane_of_nothing_else() -> None:
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(0).standard_normal((400, 400)), (1.7, 0.9), mode="wrap")
    tile = (118 + 15 * noise / noise.std()).astype(np.float32)
    found = measured.measure_noise(tile, np.ones(tile.shape, bool), 0.0)
    assert measured.fit_noise(np.array(list(found.values()))) == pytest.approx((15, 1.7, 0.9), rel=0.05)


def test_fewer_grey_values_are_found_and_made(plane: np.ndarray) -> None:
    instrument = replace(INSTRUMENT, grey_step=12.0)
    image = make_cutout(REGIONS["cortex"], instrument, (1, 40, 40), np.random.default_rng(0))[0]
    assert not (image[image < 252] % 12).any()
    coarse = (np.rint(plane / 12) * 12).clip(0, 252).astype(np.uint8)
    assert module._read_tiles(Volume(coarse[None], "image"), 1)[-1] == 12


def write(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def test_the_command_records_what_was_measured_and_repeats_itself(tmp_path: Path, plane: np.ndarray) -> None:
    write(tmp_path / "mine" / "a.png", plane)
    settings = replace(SMALL, like=(tmp_path / "mine",))
    folder = phantom(out=tmp_path / "made", settings=settings)
    content = json.loads((folder / "like.json").read_text())
    assert content.pop("measured_in") == ["mine"]
    appearance = Appearance.from_json(content)
    assert appearance.tissue_px > 12_000
    assert "1 unlabelled image" in (folder / "dataset.yaml").read_text()
    # read again from like.json: rounded to six digits, the same voxels
    again, plain = make_phantom(replace(settings, like=()), appearance), make_phantom(SMALL)
    import tifffile

    image = tifffile.imread(folder / "images" / "train_vp.tif").reshape(1, 40, 48)
    np.testing.assert_array_equal(again.split("train")[0].volume.data, image)
    np.testing.assert_array_equal(again.split("train")[0].labels, plain.split("train")[0].labels)
    assert (image != plain.split("train")[0].volume.data).any()


def test_images_that_show_no_tissue_are_refused(tmp_path: Path, plane: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    air = rng.normal(20, 3, (128, 128)).clip(0, 255).astype(np.uint8)
    for name in "abc":
        write(tmp_path / "air" / f"{name}.png", air)
    with pytest.raises(ImageError, match=r"found 0 pixels of tissue in 3 images; expected at least 12000"):
        read_appearance([tmp_path / "air"])
    with pytest.raises(ImageError, match=r"contrast seems inverted"):
        read_appearance([write(tmp_path / "inverted.png", 255 - make_images(5, ("cortex",), 100)[0])])
    with pytest.raises(ImageError, match=r"found RGB colours"):
        read_appearance([write(tmp_path / "colours.png", np.stack([plane, plane // 2, plane], -1))])
    with pytest.raises(ImageError, match=r"every pixel is 7"):
        read_appearance([write(tmp_path / "constant.png", np.full_like(plane, 7))])
    with pytest.raises(ImageError, match=r"40 x 136 pixels .* at least 64 x 64"):
        read_appearance([write(tmp_path / "small.png", plane[:40])])
    with pytest.raises(ImageError, match=r"voxel size 100 x 100 um, but the model expects 1.17"):
        read_appearance([write(tmp_path / "image.png", plane)], 100.0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match=r"expected at least one image"):
        read_appearance([tmp_path / "empty"])
    with pytest.raises(ImageError, match=r"does not exist"):
        read_appearance([tmp_path / "missing.png"])
    with pytest.raises(ImageError, match=r"found 0 pixels"):  # nothing is written
        phantom(out=tmp_path / "made", settings=replace(SMALL, like=(tmp_path / "air",)))
    assert not (tmp_path / "made").exists()


@pytest.mark.usefixtures("uncorrected")
def test_the_stream_looks_like_the_image_too(tmp_path: Path, plane: np.ndarray) -> None:
    brighter = write(tmp_path / "image.png", np.clip(plane.astype(int) * 3 // 5 + 90, 0, 255).astype(np.uint8))
    few = StreamSettings(start=2, pool=2, edge=40, depth=1, held_out=1, workers=0, faithful=1.0)
    plain, like = open_stream(few), open_stream(replace(few, like=str(brighter)))
    for one, other in zip(plain.split("val"), like.split("val"), strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)
        assert other.volume.data.min() >= one.volume.data.min() + 40
    with pytest.raises(ImageError, match=r"does not exist"):
        open_stream(replace(few, like=str(tmp_path / "missing.png")))


@pytest.mark.usefixtures("uncorrected")
def test_other_voxels_are_measured_as_they_look_at_the_phantoms_size(tmp_path: Path, plane: np.ndarray) -> None:
    coarse = np.asarray(Image.fromarray(plane).resize((68, 68), Image.Resampling.BOX))
    fine = read_appearance([write(tmp_path / "image.png", coarse)], 2.34)
    assert fine.noise_sigma_x_px.centre > 1.2  # twice as coarse as recorded, in the phantom's voxels
    assert fine.tissue_px == pytest.approx(136 * 136, rel=0.15)


@pytest.mark.parametrize("size", [0.0, -1.0, 1e5])
def test_voxel_sizes_that_cannot_be_are_refused(size: float) -> None:
    with pytest.raises(SettingsError, match="voxel_size_um"):
        replace(SMALL, like=(Path("image.png"),), voxel_size_um=size)


def test_a_voxel_size_without_images_is_refused() -> None:
    with pytest.raises(SettingsError, match="images in --like"):
        PhantomSettings(voxel_size_um=1.0)


def test_a_number_is_drawn_within_two_spreads() -> None:
    drawn = [Measured(10.0, 1.0).draw(np.random.default_rng(seed)) for seed in range(200)]
    assert 8 <= min(drawn) < 8.3
    assert 11.7 < max(drawn) <= 12
    assert Measured(10.0, 1.0).draw(None) == 10.0
