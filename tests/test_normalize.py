from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurotome.errors import ImageError, SettingsError
from neurotome.io import read_image
from neurotome.normalize import (
    MOST_VALUES,
    Normalization,
    Scale,
    fit_normalization,
    measure_grey,
    measure_tissue,
)
from neurotome.sampling import sample_grey
from neurotome.volume import Volume

SHARED = Path(__file__).parents[2] / "shared" / "data" / "microct_patches"

RANDOM = np.random.default_rng(0)


def test_mean_and_deviation_by_hand() -> None:
    first, second = np.array([[[0, 2]]], np.uint8), np.array([[[4]], [[6]]], np.uint8)
    assert measure_grey([first, second]) == (3.0, pytest.approx(5**0.5, rel=1e-15))


@pytest.mark.parametrize(
    "values",
    [
        RANDOM.integers(0, 256, (5, 40, 30)).astype(np.uint8),
        RANDOM.integers(65000, 65536, (5, 40, 30)).astype(np.uint16),
        RANDOM.normal(1e6, 1, (5, 40, 30)).astype(np.float32),  # float32 sums would be wrong in the first digit
        RANDOM.normal(-3e-5, 1e-6, (5, 40, 30)).astype(np.float32),
    ],
    ids=["uint8", "uint16", "float32 far off", "float32 tiny"],
)
def test_measures_equal_numpy_in_float64(values: np.ndarray) -> None:
    mean, std = measure_grey([values[:2], values[2:]])
    assert mean == pytest.approx(values.mean(dtype=np.float64), rel=1e-12)
    assert std == pytest.approx(values.astype(np.float64).std(), rel=1e-9)


def test_scaled_training_images_have_mean_0_and_deviation_1() -> None:
    data = RANDOM.integers(90, 200, (3, 20, 20)).astype(np.uint16)
    volume = Volume(data, "a")
    scaled = fit_normalization([volume]).scale_for(volume).apply(data)
    assert scaled.dtype == np.float32
    assert scaled.mean(dtype=np.float64) == pytest.approx(0, abs=1e-6)
    assert scaled.astype(np.float64).std() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("dtype", "largest"), [(np.uint8, 255), (np.uint16, 65535)])
def test_by_range_black_is_0_and_the_brightest_grey_1(dtype: type, largest: int) -> None:
    volume = Volume(np.array([[[0, 51, largest]]], dtype), "a")
    found = Normalization.from_json(dataclasses.asdict(fit_normalization([volume], "range")))
    assert (found.mode, found.mean, found.std) == ("range", 0, largest)
    scaled = found.scale_for(volume).apply(volume.data)
    np.testing.assert_allclose(scaled, [[[0, 51 / largest, 1]]], rtol=2e-7)
    assert scaled[0, 0, 0] == 0  # exactly, so that a fill of 0 is black
    # another dtype has another range
    assert found.scale_for(Volume(np.zeros((1, 1, 1), np.uint16), "b")) == Scale(0.0, 65535.0)


def test_floats_have_no_range() -> None:
    volume = Volume(np.array([[[0.0, 1.0]]], np.float32), "a")
    with pytest.raises(ImageError, match="a: dtype float32, but normalisation by range divides by the largest value"):
        fit_normalization([volume], "range")


def test_another_grey_scale_is_refused() -> None:
    trained = fit_normalization([Volume(np.array([[[0, 255]]], np.uint8), "a")])
    with pytest.raises(ImageError, match=r"b: dtype uint16, but .* were uint8.*--train\.normalization image"):
        trained.scale_for(Volume(np.zeros((1, 2, 2), np.uint16), "b"))


def test_image_mode_scales_every_volume_by_itself() -> None:
    volumes = [Volume(np.array([[[0, 255]]], np.uint8), "a"), Volume(np.array([[[0.0, 4.0]]], np.float32), "b")]
    with pytest.raises(ImageError, match="dtypes float32, uint8"):
        fit_normalization(volumes)
    trained = fit_normalization(volumes, "image")
    assert trained.scale_for(volumes[0]) == Scale(127.5, 127.5)
    assert trained.scale_for(volumes[1]) == Scale(2, 2)
    with pytest.raises(ImageError, match="every pixel is 7; a constant image"):
        trained.scale_for(Volume(np.full((2, 2, 2), 7, np.uint16), "c"))


def make_tissue(seed: int, edge: int = 64) -> np.ndarray:
    """Neuropil of grey 100, an eighth dark vessels, a sixteenth bright fibres."""
    rng = np.random.default_rng(seed)
    grey = rng.normal(100, 6, (1, edge, edge))
    grey[:, : edge // 8] = rng.normal(20, 4, (edge // 8, edge))
    grey[:, edge // 8 : edge // 8 + edge // 16] = rng.normal(130, 6, (edge // 16, edge))
    return grey.clip(0, 255).round().astype(np.uint8)


def test_tissue_scale_by_hand() -> None:
    # the lowest two are alike and the highest two, so that the percentiles at the ends are they
    volume = Volume(np.array([[[0, 0, 50, 100, 100, 100, 100, 100, 100, 120, 120]]], np.uint8), "a")
    assert measure_tissue(volume) == Scale(100, 25)  # the median of the 9 above 30, and a quarter of the way down to 0
    expected = [-4, -4, -2, 0, 0, 0, 0, 0, 0, 0.8, 0.8]
    np.testing.assert_allclose(measure_tissue(volume).apply(volume.data).ravel(), expected, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 9),
    factor=st.floats(1e-3, 1e3),
    offset=st.floats(-3, 3),
    dtype=st.sampled_from(["uint8", "uint16", "float32"]),
)
def test_another_grey_scale_gives_the_same_scaled_tissue(seed: int, factor: float, offset: float, dtype: str) -> None:
    grey = make_tissue(seed)
    if dtype == "uint16":
        other = (grey.astype(np.uint16) * max(1, round(abs(factor) % 250)) + round(abs(offset) * 500)).astype(np.uint16)
    elif dtype == "uint8":
        other = grey + np.uint8(round(abs(offset) * 30))
    else:
        other = (grey * factor + offset * factor * 255).astype(np.float32)
    trained = fit_normalization([Volume(grey, "a")], "tissue")
    first, second = Volume(grey, "a"), Volume(other, "b")
    expected = trained.scale_for(first).apply(grey)
    np.testing.assert_allclose(trained.scale_for(second).apply(other), expected, atol=1e-3)
    assert (trained.mean, trained.std) == (trained.scale_for(first).mean, trained.scale_for(first).std)


def test_tissue_scale_does_not_move_with_air_or_fibres() -> None:
    grey = make_tissue(0, 128)
    air = np.concatenate([np.zeros_like(grey), grey], axis=2)
    assert measure_tissue(Volume(air, "a")).mean == pytest.approx(measure_tissue(Volume(grey, "b")).mean, abs=1)


@pytest.mark.parametrize("shape", [(1, 9000, 3000), (300, 300, 300), (5000, 100, 100), (1, 1, 5_000_000)])
def test_a_large_volume_is_thinned_evenly(shape: tuple[int, int, int]) -> None:
    picked = sample_grey(np.broadcast_to(np.arange(shape[-1], dtype=np.float32), shape), MOST_VALUES).values
    assert MOST_VALUES / 3 < picked.size <= MOST_VALUES
    assert picked.mean() == pytest.approx(shape[-1] / 2, rel=0.02)


def test_inverted_contrast_is_refused_with_its_numbers() -> None:
    grey = make_tissue(0)
    # inverted: tissue 155, fibres 125 at the dark end, vessels 235 at the bright one
    with pytest.raises(
        ImageError, match=r"b: the contrast seems inverted: .*a ratio of 0\.\d\d; expected about 2.*--invert"
    ):
        measure_tissue(Volume(255 - grey, "b"))


def test_constant_and_nearly_constant_images() -> None:
    with pytest.raises(ImageError, match="every pixel is 7; a constant image"):
        fit_normalization([Volume(np.full((2, 2, 2), 7, np.uint16), "c")], "tissue")
    nearly = np.full((1, 100, 100), 8.0, np.float32)
    nearly[0, 0, 0] = 0
    assert measure_tissue(Volume(nearly, "d")) == Scale(8, 2)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")
def test_real_patches_are_accepted_and_alike() -> None:
    found = [measure_tissue(read_image(path)) for path in sorted(SHARED.glob("images/*.png"))]
    assert len(found) == 4
    assert all(139 <= scale.mean <= 159 and 34 <= scale.std <= 40 for scale in found)
    for path in sorted(SHARED.glob("unlabelled/*.png")):
        assert measure_tissue(read_image(path)).mean == pytest.approx(132, abs=2)


@pytest.mark.parametrize("mode", ["dataset", "image"])
def test_constant_training_images_are_refused(mode: str) -> None:
    with pytest.raises(ImageError, match="every pixel of the training images is 9"):
        fit_normalization([Volume(np.full((2, 3, 3), 9, np.uint8), "a")] * 2, mode)


def test_no_image_and_unknown_modes_are_refused() -> None:
    with pytest.raises(ImageError, match="no image"):
        fit_normalization([])
    with pytest.raises(SettingsError, match="Did you mean 'image'"):
        fit_normalization([Volume(np.zeros((1, 1, 1), np.uint8), "a")], "images")


@pytest.mark.parametrize("wrong", [{"mode": "slice"}, {"std": 0}, {"std": -1}, {"std": "nan"}])
def test_json_that_would_scale_wrongly_is_refused(wrong: dict[str, object]) -> None:
    normalization = Normalization("dataset", 0.1, 1 / 3, "uint16")
    content = dataclasses.asdict(normalization)
    assert Normalization.from_json(content) == normalization
    with pytest.raises(ValueError, match="standard deviation"):
        Normalization.from_json(content | wrong)


def test_an_image_unlike_the_training_data_is_noted() -> None:
    trained = Normalization("dataset", 100, 20, "uint8")
    grey = np.full((2, 10, 10), 80, np.uint8)
    grey[:, ::2] = 119  # mean 99.5
    trained.note_unlike(Volume(grey, "a"))
    with pytest.warns(UserWarning, match=r"b: grey values have mean 39\.5, the training data 100; that is 3\.0 of their"):
        trained.note_unlike(Volume(grey - np.uint8(60), "b"))
    Normalization("image", 100, 20, "uint8").note_unlike(Volume(grey - np.uint8(60), "b"))
