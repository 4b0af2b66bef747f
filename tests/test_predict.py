"""predict on what a scanner may deliver: other grey scales, inverted contrast, tiny images, other voxel sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from neurotome.classes import ClassSet
from neurotome.errors import ImageError
from neurotome.inference.predict import PredictSettings, invert_grey, predict
from neurotome.models.build import ModelSettings, build_network
from neurotome.models.folder import save_model
from neurotome.models.net import NetPredictor
from neurotome.normalize import Normalization
from neurotome.volume import Volume

CPU = PredictSettings(device="cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    settings = ModelSettings(encoder="mobilenetv3_small_050", encoder_depth=3)
    net = build_network(settings, 3)
    with torch.no_grad():
        net(torch.randn(4, 1, 64, 64))
    folder = tmp_path_factory.mktemp("model")
    classes = ClassSet(("background", "vessel", "cell"))
    save_model(NetPredictor(net, settings, classes, Normalization("tissue", 100, 25, "uint8"), 64), folder)
    return folder


def make_image(height: int = 50, width: int = 70) -> np.ndarray:
    """Tissue of grey 100, the upper eighth dark, the next one bright."""
    rng = np.random.default_rng(1)
    grey = rng.normal(100, 5, (height, width))
    grey[: height // 8] = rng.normal(25, 5, (height // 8, width))
    grey[height // 8 : height // 4] = rng.normal(125, 5, (height // 4 - height // 8, width))
    return grey.clip(0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_another_bit_depth_gives_the_same_labels(model: Path, dtype: str) -> None:
    image = make_image()
    labels = predict(model, image, settings=CPU)
    assert isinstance(labels, np.ndarray)
    assert len(np.unique(labels)) > 1
    assert (predict(model, image.astype(dtype) * 100 + 7, settings=CPU) == labels).mean() > 0.999


def test_inverted_contrast_is_refused_and_then_flipped(model: Path) -> None:
    image = make_image()
    flipped = image.max() - image + image.min()
    with pytest.raises(ImageError, match=r"array: the contrast seems inverted: .*--invert"):
        predict(model, flipped, settings=CPU)
    found = predict(model, flipped, settings=PredictSettings(device="cpu", invert=True))
    np.testing.assert_array_equal(found, predict(model, image, settings=CPU))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_flipping_by_hand(dtype: str) -> None:
    flipped = invert_grey(Volume(np.array([[[10, 250]], [[40, 240]]], dtype), "a")).data
    assert flipped.ravel().tolist() == [250, 10, 220, 20]
    assert flipped.dtype == dtype


@pytest.mark.parametrize("shape", [(5, 7), (1, 2), (33, 1)])
def test_tiny_images(model: Path, tmp_path: Path, shape: tuple[int, int]) -> None:
    image = np.full(shape, 100, np.uint8)
    image[0, 0] = 20
    Image.fromarray(image).save(tmp_path / "tiny.png")
    predict(model, tmp_path / "tiny.png", tmp_path / "labels.png", settings=CPU)
    assert np.asarray(Image.open(tmp_path / "labels.png")).shape == shape


def test_constant_images_are_refused(model: Path) -> None:
    with pytest.raises(ImageError, match="constant"):
        predict(model, np.full((8, 8), 3, np.uint16), settings=CPU)
