"""Augmentation against torch.flip, torch.rot90, scipy.ndimage and torchvision."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from neurotome.augment import FOLDING, AugmentSettings, augment, check_augment, scale_augment
from neurotome.errors import ImageError, SettingsError

IGNORE = 255

OFF = AugmentSettings(
    flip_vertical=0.0,
    flip_horizontal=0.0,
    quarter_turns=False,
    rotate_degrees=(0.0, 0.0),
    scale=(1.0, 1.0),
    elastic_pixels=0.0,
    brightness=0.0,
    contrast=(1.0, 1.0),
    gamma=(1.0, 1.0),
    noise=0.0,
    blur=0.0,
)

REPORT = replace(
    OFF,
    flip_vertical=0.5,
    flip_horizontal=0.5,
    rotate_degrees=(0.0, 180.0),
    rotate_probability=1.0,
    padding="constant",
    fill=-1.5,
    corners="background",
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_batch(count: int = 4, channels: int = 1, size: int = 32, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = seeded(seed)
    images = torch.randn(count, channels, size, size, generator=generator)
    labels = torch.randint(0, 4, (count, size, size), generator=generator, dtype=torch.uint8)
    return images, labels


def smooth_image(size: int = 64) -> np.ndarray:
    """A smooth random image, for which two ways of interpolating agree."""
    noise = np.random.default_rng(0).standard_normal((size, size))
    image = ndimage.gaussian_filter(noise, 4)
    return (image / image.std()).astype(np.float32)


def rotate_only(degrees: float, **other: object) -> AugmentSettings:
    return replace(OFF, rotate_degrees=(degrees, degrees), rotate_probability=1.0, **other)


@pytest.mark.parametrize("choice", [OFF, replace(AugmentSettings(), enabled=False)])
def test_off_changes_nothing(choice: AugmentSettings) -> None:
    images, labels = random_batch()
    found, moved = augment(images, labels, choice, IGNORE, seeded())
    assert torch.equal(found, images)
    assert torch.equal(moved, labels)


@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_and_dtypes_stay_and_inputs_are_untouched(channels: int) -> None:
    images, labels = random_batch(channels=channels)
    before = images.clone(), labels.clone()
    found, moved = augment(images, labels, AugmentSettings(), IGNORE, seeded())
    assert found.shape == images.shape
    assert found.dtype == torch.float32
    assert moved.shape == labels.shape
    assert moved.dtype == torch.uint8
    assert found.is_contiguous()
    assert moved.is_contiguous()
    assert found.isfinite().all()
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])


def test_flips_equal_torch_flip() -> None:
    images, labels = random_batch()
    found, moved = augment(images, labels, replace(OFF, flip_vertical=1.0), IGNORE, seeded())
    assert torch.equal(found, images.flip(-2))
    assert torch.equal(moved, labels.flip(-2))
    found, moved = augment(images, labels, replace(OFF, flip_horizontal=1.0), IGNORE, seeded())
    assert torch.equal(found, images.flip(-1))
    assert torch.equal(moved, labels.flip(-1))


def test_flips_keep_patches_that_are_not_square() -> None:
    images, labels = torch.randn(2, 1, 4, 6), torch.zeros(2, 4, 6, dtype=torch.uint8)
    found, _ = augment(images, labels, replace(OFF, flip_vertical=1.0, flip_horizontal=1.0), IGNORE, seeded())
    assert torch.equal(found, images.flip(-1, -2))


@pytest.mark.parametrize("vertical", [0.0, 1.0])
@pytest.mark.parametrize("horizontal", [0.0, 1.0])
def test_quarter_turns_equal_rot90_after_the_flips(vertical: float, horizontal: float) -> None:
    images, labels = random_batch(64, size=6)
    choice = replace(OFF, flip_vertical=vertical, flip_horizontal=horizontal, quarter_turns=True)
    found, moved = augment(images, labels, choice, IGNORE, seeded())
    axes = [axis for axis, flipped in ((-2, vertical), (-1, horizontal)) if flipped]
    flipped_images, flipped_labels = images.flip(axes), labels.flip(axes)
    turns = set()
    for i in range(64):
        matches = [k for k in range(4) if torch.equal(found[i], torch.rot90(flipped_images[i], k, dims=(-2, -1)))]
        assert len(matches) == 1
        assert torch.equal(moved[i], torch.rot90(flipped_labels[i], matches[0], dims=(-2, -1)))
        turns.add(matches[0])
    assert turns == {0, 1, 2, 3}
    assert found.is_contiguous()


def test_the_eight_symmetries_are_equally_likely() -> None:
    image = torch.arange(9, dtype=torch.float32).view(1, 1, 3, 3).repeat(4000, 1, 1, 1)
    labels = torch.zeros(4000, 3, 3, dtype=torch.uint8)
    choice = replace(OFF, flip_vertical=0.5, flip_horizontal=0.5, quarter_turns=True)
    found, _ = augment(image, labels, choice, IGNORE, seeded())
    _, counts = found.flatten(1).unique(dim=0, return_counts=True)
    assert len(counts) == 8
    assert (counts - 500).abs().max() < 5 * math.sqrt(4000 * 1 / 8 * 7 / 8)


def test_rotation_by_a_quarter_through_the_grid_equals_rot90() -> None:
    images, labels = random_batch(size=17)
    found, moved = augment(images, labels, rotate_only(90.0), IGNORE, seeded())
    torch.testing.assert_close(found, torch.rot90(images, dims=(-2, -1)), atol=1e-4, rtol=0)
    assert torch.equal(moved, torch.rot90(labels, dims=(-2, -1)))


def test_rotation_by_no_angle_through_the_grid_is_the_identity() -> None:
    images, labels = random_batch(size=32)
    found, moved = augment(images, labels, rotate_only(1e-12), IGNORE, seeded())
    assert torch.equal(found, images)
    assert torch.equal(moved, labels)


@pytest.mark.parametrize("degrees", [-160.0, -33.0, 12.5, 71.0])
def test_rotation_equals_torchvision(degrees: float) -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as torchvision

    images, labels = random_batch(size=32)
    choice = rotate_only(degrees, padding="constant", fill=0.0)
    found, moved = augment(images, labels, choice, IGNORE, seeded())
    expected = torchvision.rotate(images, degrees, interpolation=InterpolationMode.BILINEAR)
    inside = torchvision.rotate(torch.ones_like(images), degrees, interpolation=InterpolationMode.BILINEAR) == 1
    torch.testing.assert_close(found[inside], expected[inside], atol=1e-4, rtol=0)
    # a centre that falls between two pixels may be rounded either way
    expected_labels = torchvision.rotate(labels, degrees, fill=[IGNORE])
    assert (moved == expected_labels).float().mean() > 0.998


@pytest.mark.parametrize("degrees", [-33.0, 12.5])
def test_rotation_equals_scipy(degrees: float) -> None:
    image = smooth_image()
    labels = (image > 0).astype(np.uint8)
    found, moved = augment(
        torch.tensor(image)[None, None], torch.tensor(labels)[None], rotate_only(degrees), IGNORE, seeded()
    )
    expected = ndimage.rotate(image, degrees, reshape=False, order=1, mode="reflect")
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=1e-4)
    inside = moved[0].numpy() != IGNORE
    expected_labels = ndimage.rotate(labels, degrees, reshape=False, order=0, mode="reflect")
    assert (moved[0].numpy() == expected_labels)[inside].mean() > 0.999
    filled = ndimage.rotate(np.ones((64, 64)), degrees, reshape=False, order=0, mode="grid-constant", cval=0)
    assert (inside == (filled == 1)).mean() > 0.998


@pytest.mark.parametrize("zoom", [0.5, 0.8, 1.5, 2.0])
def test_zoom_equals_scipy_about_the_centre(zoom: float) -> None:
    image = smooth_image()
    choice = replace(OFF, scale=(zoom, zoom), scale_probability=1.0)
    labels = torch.ones(1, 64, 64, dtype=torch.uint8)
    found, moved = augment(torch.tensor(image)[None, None], labels, choice, IGNORE, seeded())
    centre = 31.5
    expected = ndimage.affine_transform(image, np.eye(2) / zoom, offset=centre - centre / zoom, order=1, mode="reflect")
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=1e-4)
    within = np.abs(np.arange(64) - centre) / zoom < 32
    np.testing.assert_array_equal(moved[0].numpy() == 1, within[:, None] & within[None, :])


def test_founding_report_rotation_invents_an_eighth_of_the_pixels() -> None:
    """A square and itself turned by t share 2 / (1 + |sin t| + |cos t|): the mean lost is 1 - 4 ln 2 / pi."""
    images, labels = torch.zeros(600, 1, 48, 48), torch.ones(600, 48, 48, dtype=torch.uint8)
    _, moved = augment(images, labels, replace(REPORT, corners="ignore"), IGNORE, seeded())
    lost = (moved == IGNORE).float().mean().item()
    assert lost == pytest.approx(1 - 4 * math.log(2) / math.pi, abs=0.006)
    assert set(moved.unique().tolist()) == {1, IGNORE}


def test_founding_report_recipe_calls_corners_background() -> None:
    images, labels = torch.ones(16, 1, 48, 48), torch.ones(16, 48, 48, dtype=torch.uint8)
    found, moved = augment(images, labels, REPORT, IGNORE, seeded())
    assert set(moved.unique().tolist()) == {0, 1}
    corner = moved == 0
    assert corner.any()
    assert found.min().item() == pytest.approx(-1.5)
    assert found.max().item() == pytest.approx(1.0)
    assert (found[:, 0][corner] < 0).all()


@pytest.mark.parametrize("padding", ["constant", "reflection"])
def test_nearest_rotation_invents_no_grey_value_and_equals_torchvision(padding: Literal["constant", "reflection"]) -> None:
    images, labels = random_batch(size=16)
    turned = replace(REPORT, flip_vertical=0.0, flip_horizontal=0.0, padding=padding, fill=0.0, interpolation="nearest")
    found, _ = augment(images, labels, turned, IGNORE, seeded())
    assert set(found.unique().tolist()) <= {*images.unique().tolist(), 0.0}
    smooth, _ = augment(images, labels, replace(turned, interpolation="bilinear"), IGNORE, seeded())
    assert not set(smooth.unique().tolist()) <= {*images.unique().tolist(), 0.0}
    if padding == "constant":
        from torchvision.transforms.functional import rotate

        flips_and_angles = torch.rand(3 * len(images), generator=seeded(), dtype=torch.float64)
        draws = flips_and_angles[2 * len(images) :]
        expected = [rotate(image, float(180 * draw), fill=0.0) for image, draw in zip(images, draws, strict=True)]
        assert (found == torch.stack(expected)).float().mean() > 0.99  # a pixel halfway between two goes to either


def test_reflection_invents_no_grey_value() -> None:
    images, labels = random_batch(size=16)
    choice = replace(OFF, scale=(0.4, 0.4), scale_probability=1.0)
    found, _ = augment(images, labels, choice, IGNORE, seeded())
    assert found.min() >= images.min() - 1e-5
    assert found.max() <= images.max() + 1e-5
    assert (found != 0).all()


def test_image_and_labels_move_together() -> None:
    """The label map is drawn into the image: away from class borders the image must still show the label."""
    rows = torch.arange(64).view(-1, 1) // 16
    columns = torch.arange(64).view(1, -1) // 16
    drawn = ((rows + 2 * columns) % 4).to(torch.uint8).expand(32, 64, 64)
    images = drawn.float()[:, None]
    choice = replace(
        OFF,
        flip_vertical=0.5,
        flip_horizontal=0.5,
        quarter_turns=True,
        rotate_degrees=(-180.0, 180.0),
        rotate_probability=1.0,
        scale=(0.7, 1.4),
        scale_probability=1.0,
        elastic_pixels=6.0,
        elastic_probability=1.0,
    )
    found, moved = augment(images, drawn, choice, IGNORE, seeded())
    inside = moved != IGNORE
    whole = (found[:, 0] - found[:, 0].round()).abs() < 1e-3  # neighbours of one class: no border between them
    assert (inside & whole).float().mean() > 0.6
    agree = found[:, 0].round().to(torch.uint8) == moved
    # interpolating between classes 0 and 2 half way shows a 1
    assert agree[inside & whole].float().mean() > 0.999
    assert (found[:, 0] - moved)[inside].abs().mean() < 0.1


def test_ignored_pixels_stay_ignored() -> None:
    images = torch.randn(4, 1, 32, 32)
    labels = torch.full((4, 32, 32), IGNORE, dtype=torch.uint8)
    _, moved = augment(images, labels, AugmentSettings(), IGNORE, seeded())
    assert torch.equal(moved, labels)


def test_other_ignore_value() -> None:
    images, labels = random_batch()
    _, moved = augment(images, labels, rotate_only(45.0), 9, seeded())
    assert set(moved.unique().tolist()) == {0, 1, 2, 3, 9}


def test_elastic_moves_no_pixel_further_than_the_amplitude() -> None:
    """The image is a ramp, so its change is the displacement."""
    size, amplitude = 64, 5.0
    ramp = torch.arange(size, dtype=torch.float32)
    images = torch.stack((ramp.view(-1, 1).expand(size, size), ramp.view(1, -1).expand(size, size)))
    images = images.expand(50, 2, size, size)
    labels = torch.zeros(50, size, size, dtype=torch.uint8)
    choice = replace(OFF, elastic_pixels=amplitude, elastic_spacing=16.0, elastic_probability=1.0)
    found, moved = augment(images, labels, choice, IGNORE, seeded())
    shift = found - images
    assert shift.abs().max() <= amplitude
    assert shift.abs().max() > amplitude / 2
    inner = shift[..., 8:-8, 8:-8]
    assert inner.std().item() == pytest.approx(0.28 * amplitude, rel=0.1)
    assert (moved == IGNORE)[:, 8:-8, 8:-8].sum() == 0
    # neighbouring pixels keep their order: nothing folds
    assert (found[:, 0, 9:-8, 8:-8] > found[:, 0, 8:-9, 8:-8]).all()
    assert (found[:, 1, 8:-8, 9:-8] > found[:, 1, 8:-8, 8:-9]).all()


def test_samples_differ() -> None:
    images, labels = random_batch(1)
    choice = replace(OFF, rotate_degrees=(-15.0, 15.0), rotate_probability=0.5, brightness=0.5)
    found, moved = augment(images.expand(64, -1, -1, -1), labels.expand(64, -1, -1), choice, IGNORE, seeded())
    still = (moved == labels).flatten(1).all(dim=1)
    assert 20 <= still.sum() <= 44
    assert len(moved[~still].flatten(1).unique(dim=0)) == (~still).sum()
    assert len((found - images)[still].flatten(1)[:, 0].unique()) > 3


def test_same_seed_same_result() -> None:
    images, labels = random_batch()
    first = augment(images, labels, AugmentSettings(), IGNORE, seeded(3))
    again = augment(images, labels, AugmentSettings(), IGNORE, seeded(3))
    other = augment(images, labels, AugmentSettings(), IGNORE, seeded(4))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_global_random_state_plays_no_part() -> None:
    images, labels = random_batch()
    before = torch.get_rng_state()
    augment(images, labels, AugmentSettings(), IGNORE, seeded())
    assert torch.equal(torch.get_rng_state(), before)


def test_channels_share_geometry_and_grey_values() -> None:
    images, labels = random_batch(8)
    stacked = images.expand(-1, 3, -1, -1)
    found, _ = augment(stacked, labels, replace(AugmentSettings(), noise=0.0), IGNORE, seeded())
    torch.testing.assert_close(found[:, :1].expand_as(found), found, atol=1e-6, rtol=0)


def test_brightness_adds_at_most_its_value() -> None:
    images, labels = random_batch(200, size=4)
    choice = replace(OFF, brightness=0.5, intensity_probability=0.6)
    found, _ = augment(images, labels, choice, IGNORE, seeded())
    added = (found - images).flatten(1)
    torch.testing.assert_close(added, added[:, :1].expand_as(added), atol=1e-5, rtol=0)
    assert 0.4 < added.abs().max() <= 0.5 + 1e-5
    assert added.min() < 0 < added.max()
    assert 0.45 < (added[:, 0].abs() > 1e-5).float().mean() < 0.75


def test_contrast_stretches_about_the_samples_own_mean() -> None:
    images, labels = random_batch(channels=2)
    images = images + torch.tensor([0.0, 5.0, -3.0, 1.0]).view(4, 1, 1, 1)
    choice = replace(OFF, contrast=(2.0, 2.0), intensity_probability=1.0)
    found, _ = augment(images, labels, choice, IGNORE, seeded())
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(found, mean + 2 * (images - mean), atol=1e-5, rtol=0)


def test_gamma_bends_between_the_samples_extremes() -> None:
    image = torch.tensor([[-1.0, 0.0], [1.0, 3.0]])[None, None]
    labels = torch.zeros(1, 2, 2, dtype=torch.uint8)
    choice = replace(OFF, gamma=(2.0, 2.0), intensity_probability=1.0)
    found, _ = augment(image, labels, choice, IGNORE, seeded())
    # (g + 1) / 4 squared: 0, 1/16, 1/4, 1
    torch.testing.assert_close(found[0, 0], torch.tensor([[-1.0, -0.75], [0.0, 3.0]]))


def test_constant_sample_survives() -> None:
    images, labels = torch.full((4, 1, 8, 8), 2.0), torch.zeros(4, 8, 8, dtype=torch.uint8)
    choice = replace(AugmentSettings(), noise=0.0, brightness=0.0, intensity_probability=1.0)
    found, _ = augment(images, labels, choice, IGNORE, seeded())
    torch.testing.assert_close(found, images)


def test_noise_has_the_drawn_deviation() -> None:
    images, labels = torch.zeros(300, 2, 16, 16), torch.zeros(300, 16, 16, dtype=torch.uint8)
    choice = replace(OFF, noise=0.4, intensity_probability=1.0)
    found, _ = augment(images, labels, choice, IGNORE, seeded())
    deviation = found.std(dim=(1, 2, 3))
    assert deviation.max() < 0.45
    assert deviation.mean().item() == pytest.approx(0.2, abs=0.03)
    assert not torch.equal(found[:, 0], found[:, 1])


def test_blur_equals_scipy() -> None:
    """The first channel holds a single bright pixel, from which the drawn deviation is read."""
    images, labels = random_batch(6, channels=2, size=16)
    images[:, 0] = 0
    images[:, 0, 8, 8] = 1
    choice = replace(OFF, blur=1.5, intensity_probability=1.0)
    found, _ = augment(images, labels, choice, IGNORE, seeded())
    sigmas = (0.5 / (found[:, 0, 8, 8] / found[:, 0, 8, 9]).log()).sqrt()
    assert len(sigmas.unique()) == 6
    assert 1 < sigmas.max() <= 1.5
    for found_sample, sample, sigma in zip(found, images, sigmas.tolist(), strict=True):
        expected = ndimage.gaussian_filter(sample.numpy(), sigma, mode="nearest", radius=5, axes=(1, 2))
        np.testing.assert_allclose(found_sample.numpy(), expected, atol=1e-5)


def ranges(low: float, high: float) -> st.SearchStrategy[tuple[float, float]]:
    return st.tuples(st.floats(low, high), st.floats(low, high)).map(lambda pair: (min(pair), max(pair)))


@settings(max_examples=100, deadline=None)
@given(
    choice=st.builds(
        AugmentSettings,
        flip_vertical=st.floats(0, 1),
        flip_horizontal=st.floats(0, 1),
        quarter_turns=st.booleans(),
        rotate_degrees=ranges(-360, 360),
        rotate_probability=st.floats(0, 1),
        scale=ranges(0.1, 8),
        scale_probability=st.floats(0, 1),
        elastic_pixels=st.floats(0, 3),
        elastic_spacing=st.floats(3 * FOLDING, 100),
        elastic_probability=st.floats(0, 1),
        padding=st.sampled_from(["reflection", "constant"]),
        corners=st.sampled_from(["ignore", "background"]),
        brightness=st.floats(0, 2),
        contrast=ranges(0.1, 5),
        gamma=ranges(0.2, 4),
        noise=st.floats(0, 1),
        blur=st.floats(0, 3),
        intensity_probability=st.floats(0, 1),
    ),
    size=st.integers(1, 24),
    count=st.integers(0, 4),
    present=st.sets(st.sampled_from([1, 2, 3, 200, IGNORE]), min_size=1),
    seed=st.integers(0, 2**31),
)
def test_labels_are_the_classes_present_or_the_corners(
    choice: AugmentSettings, size: int, count: int, present: set[int], seed: int
) -> None:
    images = torch.randn(count, 1, size, size, generator=seeded(seed))
    values = torch.tensor(sorted(present), dtype=torch.uint8)
    labels = values[torch.randint(len(values), (count, size, size), generator=seeded(seed))]
    found, moved = augment(images, labels, choice, IGNORE, seeded(seed))
    invented = {IGNORE} if choice.corners == "ignore" else {0}
    assert set(moved.unique().tolist()) <= present | invented
    assert found.isfinite().all()


def test_parts_of_a_batch_of_volumes_are_changed_as_in_the_whole() -> None:
    images = torch.randn(4, 6, 16, 16, generator=seeded(0))
    labels = torch.randint(3, (4, 6, 16, 16), generator=seeded(1)).to(torch.uint8)
    for seed in range(8):
        whole = augment(images, labels, AugmentSettings(), IGNORE, seeded(seed))
        for first in (0, 2):
            here = slice(first, first + 2)
            part = augment(images[here], labels[here], AugmentSettings(), IGNORE, seeded(seed), first, 4)
            assert torch.equal(part[1], whole[1][here])
            torch.testing.assert_close(part[0], whole[0][here])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("flip_vertical", 1.5),
        ("flip_horizontal", -0.1),
        ("rotate_probability", math.nan),
        ("rotate_degrees", (10.0, -10.0)),
        ("rotate_degrees", (0.0, math.inf)),
        ("scale", (0.0, 1.0)),
        ("scale", (1.2, 0.8)),
        ("contrast", (-1.0, 1.0)),
        ("gamma", (1.0, math.nan)),
        ("elastic_pixels", -1.0),
        ("elastic_pixels", 16.0),
        ("elastic_spacing", 0.0),
        ("brightness", -0.1),
        ("noise", math.inf),
        ("blur", math.nan),
        ("fill", math.nan),
        ("padding", "reflect"),
        ("corners", "ignored"),
        ("intensity_probability", 2.0),
    ],
)
def test_settings_that_cannot_work_are_named(field: str, value: object) -> None:
    assert field in {known.name for known in fields(AugmentSettings)}
    with pytest.raises(SettingsError, match=rf"augment\.{field}"):
        check_augment(replace(AugmentSettings(), **{field: value}))


def test_quarter_turns_refuse_patches_that_are_not_square() -> None:
    images, labels = torch.zeros(1, 1, 4, 6), torch.zeros(1, 4, 6, dtype=torch.uint8)
    with pytest.raises(SettingsError, match="4 x 6"):
        augment(images, labels, AugmentSettings(), IGNORE, seeded())


def test_rotation_keeps_proportions_of_patches_that_are_not_square() -> None:
    image = smooth_image()[:40]
    labels = torch.zeros(1, 40, 64, dtype=torch.uint8)
    found, _ = augment(torch.tensor(image)[None, None], labels, rotate_only(20.0), IGNORE, seeded())
    expected = ndimage.rotate(image, 20.0, reshape=False, order=1, mode="reflect")
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=1e-4)


def test_strength_scales_sizes_and_probabilities_and_leaves_symmetries() -> None:
    usual = AugmentSettings()
    assert scale_augment(usual, 1.0) == usual
    twice = scale_augment(usual, 2.0)
    assert (twice.noise, twice.blur, twice.brightness) == (0.3, 2.0, 0.4)
    assert (twice.rotate_degrees, twice.rotate_probability, twice.elastic_pixels) == ((-90.0, 90.0), 0.3, 12.0)
    np.testing.assert_allclose(twice.contrast, (0.64, 1.5625))
    assert (twice.flip_vertical, twice.quarter_turns) == (usual.flip_vertical, usual.quarter_turns)
    none = scale_augment(usual, 0.0)
    assert (none.intensity_probability, none.noise, none.gamma, none.rotate_degrees) == (0.0, 0.0, (1.0, 1.0), (0.0, 0.0))


@given(st.floats(0, 30), st.floats(1, 100))
def test_any_strength_gives_settings_that_work(strength: float, spacing: float) -> None:
    check_augment(scale_augment(replace(AugmentSettings(), elastic_spacing=spacing), strength))


@pytest.mark.parametrize("strength", [-0.1, math.inf, math.nan])
def test_an_impossible_strength_is_refused(strength: float) -> None:
    with pytest.raises(SettingsError, match=r"augment.strength is .*expected a finite factor"):
        scale_augment(AugmentSettings(), strength)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(2, 8, 8), torch.zeros(2, 8, 8, dtype=torch.uint8)),
        (torch.zeros(2, 1, 8, 8), torch.zeros(2, 2, 8, 8, dtype=torch.uint8)),
        (torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 8)),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, 8, 8, dtype=torch.uint8)),
    ],
)
def test_wrong_tensors_are_refused(images: torch.Tensor, labels: torch.Tensor) -> None:
    with pytest.raises(ImageError, match="expected float32"):
        augment(images, labels, AugmentSettings(), IGNORE, seeded())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_seed_gives_the_same_on_the_device() -> None:
    images, labels = random_batch(8, size=64)
    settings = AugmentSettings(noise=0)  # which a device draws itself
    here = augment(images, labels, settings, IGNORE, seeded())
    there = augment(images.cuda(), labels.cuda(), settings, IGNORE, seeded())
    torch.testing.assert_close(there[0].cpu(), here[0], atol=1e-3, rtol=0)
    assert (there[1].cpu() == here[1]).float().mean() > 0.999
