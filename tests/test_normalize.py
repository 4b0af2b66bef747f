from __future__ import annotations

import numpy as np
import pytest

from neurotome.errors import ImageError, SettingsError
from neurotome.normalize import Normalization, Scale, fit_normalization, measure_grey
from neurotome.volume import Volume

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


def test_scale_by_hand() -> None:
    assert Scale(100, 50).apply(np.array([0, 100, 200], np.uint8)).tolist() == [-2, 0, 2]


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


@pytest.mark.parametrize("mode", ["dataset", "image"])
def test_constant_training_images_are_refused(mode: str) -> None:
    with pytest.raises(ImageError, match="every pixel of the training images is 9"):
        fit_normalization([Volume(np.full((2, 3, 3), 9, np.uint8), "a")] * 2, mode)


def test_no_image_and_unknown_modes_are_refused() -> None:
    with pytest.raises(ImageError, match="no image"):
        fit_normalization([])
    with pytest.raises(SettingsError, match="Did you mean 'image'"):
        fit_normalization([Volume(np.zeros((1, 1, 1), np.uint8), "a")], "images")


def test_json_round_trip() -> None:
    normalization = Normalization("dataset", 0.1, 1 / 3, "uint16")
    assert Normalization.from_json(normalization.to_json()) == normalization


@pytest.mark.parametrize("wrong", [{"mode": "slice"}, {"std": 0}, {"std": -1}, {"std": "nan"}])
def test_json_that_would_scale_wrongly_is_refused(wrong: dict[str, object]) -> None:
    content = Normalization("dataset", 0.1, 2.0, "uint16").to_json()
    with pytest.raises(ValueError, match="standard deviation"):
        Normalization.from_json(content | wrong)
