from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from scipy.special import softmax
from torch import nn

from neurotome.blocks import plan_blocks
from neurotome.classes import ClassSet
from neurotome.errors import SettingsError
from neurotome.models.net import measure_halo
from neurotome.models.net_predictor import NetPredictor
from neurotome.models.networks import ModelSettings, build_network
from neurotome.normalize import Normalization
from neurotome.predictor import TILE, choose_cores, label_by_probs, predict_slice

CLASSES = ClassSet(("background", "vessel", "cell"))
AS_IS = Normalization("dataset", 0.0, 1.0, "float32")

TOLERANCE = 1e-5
"""Convolution sums in another order for another image size; ten times float32's resolution allows for it."""


@dataclass
class Smoother:
    """Means over boxes, and means of blocks on the stride's grid, as logits: sees `reach` and `stride` pixels far."""

    reach: int
    stride: int
    in_channels: int = 1
    classes: ClassSet = CLASSES
    normalization: Normalization = AS_IS
    voxel_size_um: tuple[float, float, float] | None = None
    bounded: bool = True
    preferred_tile: int | None = None
    back_end: str = "scipy"

    label_patches = label_by_probs

    @property
    def halo_zyx(self) -> tuple[int, int, int]:
        reach = max(self.reach, self.stride - 1)
        return 0, reach, reach

    @property
    def stride_zyx(self) -> tuple[int, int, int]:
        return 1, self.stride, self.stride

    def predict_probs(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        image = patches[0, 0].astype(np.float64)
        smooth = uniform_filter(image, 2 * self.reach + 1, mode="constant")
        coarse = np.zeros_like(image)
        for y in range(0, image.shape[0], self.stride):
            for x in range(0, image.shape[1], self.stride):
                cell = np.s_[y : y + self.stride, x : x + self.stride]
                coarse[cell] = image[cell].sum() / self.stride**2
        return softmax(np.stack([image, smooth, coarse]), axis=0).astype(np.float32)[None]


def build_predictor(decoder: str) -> NetPredictor:
    """A network as if trained: random weights and BatchNorm statistics, and every class somewhere the most likely."""
    torch.manual_seed(0)
    net = build_network(ModelSettings(decoder), len(CLASSES))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    net.eval()
    with torch.no_grad():
        net.core.segmentation_head[0].bias -= net(torch.randn(1, 1, 128, 128)).mean((0, 2, 3))
    halo, bounded = measure_halo(net, 1)
    assert bounded
    return NetPredictor(net, ModelSettings(decoder), CLASSES, AS_IS, halo)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.integers(0, 6), st.integers(1, 5), st.integers(0, 99))
def test_tiles_equal_the_whole(height: int, width: int, tile: int, reach: int, stride: int, seed: int) -> None:
    predictor = Smoother(reach, stride)
    image = np.random.default_rng(seed).normal(size=(1, height, width)).astype(np.float32)
    pixels: list[int] = []
    found = predict_slice(predictor, image, tile, on_tile=pixels.append)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, predictor.predict_probs(image[None])[0], rtol=0, atol=1e-6)
    assert sum(pixels) == height * width


def test_a_halo_that_is_too_small_shows() -> None:
    predictor = Smoother(reach=4, stride=2)
    image = np.random.default_rng(0).normal(size=(1, 30, 30)).astype(np.float32)
    whole = predict_slice(predictor, image, 30)
    assert np.abs(predict_slice(predictor, image, 10, halo=3) - whole).max() > 0.01


def test_small_images_are_predicted_in_one_piece() -> None:
    pixels: list[int] = []
    predict_slice(Smoother(1, 1), np.zeros((1, 10, 12), np.float32), 12, on_tile=pixels.append)
    assert pixels == [120]


@pytest.mark.parametrize(
    ("shape", "cores"),
    [
        ((1420, 5805), (1440, 1184)),  # of whole height: 1.40 pixels are read for one, in squares of 1024 it would be 2.10
        ((5000, 5000), (1024, 1024)),
        ((1600, 1600), (1600, 1600)),  # as large as a square of 1024 with its halo
        ((64, 20_000), (64, 20_000)),
    ],
)
def test_cores_are_those_that_read_least(shape: tuple[int, int], cores: tuple[int, int]) -> None:
    assert choose_cores(Smoother(288, 32), shape) == cores
    assert choose_cores(Smoother(288, 32), shape, 100) == (128, 128)  # what is asked for is obeyed


@settings(deadline=None)
@given(st.integers(1, 6000), st.integers(1, 6000), st.integers(0, 300), st.integers(1, 40))
def test_chosen_cores_take_no_more_than_a_square(height: int, width: int, reach: int, stride: int) -> None:
    predictor = Smoother(reach, stride)
    cores, (_, *halo) = choose_cores(predictor, (height, width)), predictor.halo_zyx
    reads = [block.read for block in plan_blocks((height, width), cores, halo, (stride, stride))]
    areas = [(rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in reads]
    assert max(areas) <= (TILE + 2 * halo[0] + 3 * stride) ** 2


@pytest.mark.parametrize("wrong", [{"tile": 0}, {"tile": -32}, {"halo": -1}])
def test_impossible_tiles_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(SettingsError):
        predict_slice(Smoother(1, 1), np.zeros((1, 4, 4), np.float32), **wrong)


@pytest.mark.parametrize("decoder", ["unet", "linknet"])
def test_tiles_of_a_network_equal_the_whole(decoder: str) -> None:
    predictor = build_predictor(decoder)
    image = np.random.default_rng(0).normal(size=(1, 75, 845)).astype(np.float32)
    image.flags.writeable = False  # as a memory-mapped file is
    whole = predict_slice(predictor, image, 1024)
    tiles = predict_slice(predictor, image, 288)
    assert whole.shape == (3, 75, 845)
    np.testing.assert_allclose(whole.sum(0), 1, rtol=0, atol=1e-6)
    assert (np.bincount(whole.argmax(0).ravel(), minlength=3) > 1000).all()
    assert np.abs(tiles - whole).max() <= TOLERANCE
    second, first = np.sort(whole, axis=0)[-2:]
    certain = first - second > 2 * TOLERANCE
    assert certain.mean() > 0.999
    np.testing.assert_array_equal(tiles.argmax(0)[certain], whole.argmax(0)[certain])
    rough = predict_slice(predictor, image, 288, halo=32)
    assert np.abs(rough - whole).max() > 100 * TOLERANCE
    assert (rough.argmax(0) != whole.argmax(0)).any()
