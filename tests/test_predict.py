"""predict on what a scanner may deliver: other grey scales, inverted contrast, tiny images, other voxel sizes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from neurotome.classes import ClassSet
from neurotome.errors import ImageError, SettingsError
from neurotome.inference.predict import PredictSettings, invert_grey, predict, predict_volume
from neurotome.inference.resample import resize
from neurotome.models.model_folder import load_model, save_model
from neurotome.models.net_predictor import NetPredictor
from neurotome.models.networks import ModelSettings, build_network
from neurotome.normalize import Normalization
from neurotome.volume import Volume
from test_cli import run

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


@dataclasses.dataclass
class Bright:
    """Stands for a network of voxel size 2 um: class 1 where the scaled grey is above 0."""

    voxel_size_um: tuple[float, float, float] | None = (9.0, 2.0, 2.0)
    in_channels: int = 1
    halo_zyx: tuple[int, int, int] = (0, 0, 0)
    stride_zyx: tuple[int, int, int] = (1, 1, 1)
    bounded: bool = True
    preferred_tile: int | None = None

    def __post_init__(self) -> None:
        self.classes = ClassSet(("background", "cell"))
        self.normalization = Normalization("dataset", 100, 50, "uint8")
        self.seen: list[tuple[int, ...]] = []

    def predict_probs(self, patches: np.ndarray) -> np.ndarray:
        self.seen.append(patches.shape[2:])
        bright = (patches[:, 0] > 0).astype(np.float32)
        return np.stack([1 - bright, bright], 1)


def make_disc(edge: int) -> np.ndarray:
    """A bright disc, its diameter half of the image's edge."""
    y, x = np.mgrid[:edge, :edge] - (edge - 1) / 2
    return np.where(y**2 + x**2 < (edge / 4) ** 2, 200, 0).astype(np.uint8)[None]


@pytest.mark.parametrize(("size", "seen"), [(1.0, 60), (4.0, 240), (2.09, 120), (1.92, 120), (0.5, 30)])
def test_slices_are_predicted_at_the_models_voxel_size(size: float, seen: int) -> None:
    grey = make_disc(120)
    predictor, progress = Bright(), []
    volume = Volume(grey, "a", (1.0, size, size))
    labels, _ = predict_volume(predictor, volume, on_progress=progress.append)
    assert predictor.seen == [(seen, seen)]
    assert labels.shape == grey.shape
    assert progress == [pytest.approx(120 * 120 / 1e6)]
    wrong = labels != (grey == 200)
    # a disc of radius 30 has an edge of 188 pixels; half a coarse pixel of it may be wrong
    assert wrong.sum() <= 188 * max(0.5 * 120 / seen, 0.5 if seen != 120 else 0)
    # symmetric: nothing was shifted
    assert np.array_equal(labels[0], labels[0, ::-1, ::-1])


def test_axes_are_resampled_each_by_itself() -> None:
    predictor = Bright()
    labels, _ = predict_volume(predictor, Volume(make_disc(40).repeat(3, 0), "a", (5.0, 1.0, 2.0)))
    assert predictor.seen == [(20, 40)] * 3
    assert labels.shape == (3, 40, 40)


def test_an_odd_shape_comes_back_exactly() -> None:
    grey = np.zeros((1, 37, 1), np.uint8)
    grey[0, :20] = 200
    labels, _ = predict_volume(Bright(), Volume(grey, "a", (1.0, 0.7, 0.1)))
    assert labels.shape == (1, 37, 1)
    assert labels[0, :19, 0].all()
    assert not labels[0, 21:, 0].any()


def test_shrinking_averages_and_keeps_the_sum_of_probabilities() -> None:
    # pixels of 0 and 1 alternate: sampling without averaging would give either
    planes = np.tile(np.array([[0, 1], [1, 0]], np.float32), (1, 32, 32))
    np.testing.assert_allclose(resize(planes, (16, 16))[:, 1:-1, 1:-1], 0.5, atol=0.01)
    probs = np.random.default_rng(0).dirichlet(np.ones(4), (30, 41)).astype(np.float32).transpose(2, 0, 1)
    for shape in ((11, 90), (61, 7)):
        np.testing.assert_allclose(resize(probs, shape).sum(0), 1, atol=1e-5)
    assert resize(probs, (30, 41)) is probs


@pytest.mark.parametrize("shape", [(7, 90), (31, 41), (64, 11)])
def test_resizing_equals_torch(shape: tuple[int, int]) -> None:
    planes = np.random.default_rng(0).normal(size=(3, 30, 41)).astype(np.float32)
    there = torch.nn.functional.interpolate(torch.from_numpy(planes)[None], shape, mode="bilinear", antialias=True)[0]
    np.testing.assert_allclose(resize(planes, shape), there.numpy(), atol=1e-5)


@pytest.mark.parametrize("size", [0.09, 41.0])
def test_absurd_voxel_sizes_are_refused(size: float) -> None:
    with pytest.raises(ImageError, match=r"a: voxel size .* but the model expects 2 x 2 um .* expected 0\.05 to 20"):
        predict_volume(Bright(), Volume(make_disc(20), "a", (1.0, size, size)))


def test_unknown_sizes_change_nothing() -> None:
    for predictor, size in ((Bright(None), (1.0, 1.0, 1.0)), (Bright(), None)):
        predict_volume(predictor, Volume(make_disc(20), "a", size))
        assert predictor.seen == [(20, 20)]


@pytest.fixture(scope="module")
def sized(model: Path) -> Path:
    """The same model, trained on voxels of 2 um."""
    folder = model.parent / f"{model.name}_sized"
    save_model(dataclasses.replace(load_model(model), voxel_size_um=(2.0, 2.0, 2.0)), folder)
    return folder


def test_a_voxel_size_that_is_not_known_is_noted_once(sized: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        Image.fromarray(make_image()).save(tmp_path / "in" / f"{name}.png")
    with pytest.warns(UserWarning, match=r"a\.png: .* voxel size is not known; the model expects 2 x 2 um") as noted:
        predict(sized, tmp_path / "in", tmp_path / "out", settings=CPU)
    assert len(noted) == 1
    with pytest.warns(UserWarning, match="array: the image's voxel size is not known"):
        predict(sized, make_image(), settings=CPU)


def test_the_option_and_the_file_say_the_voxel_size(sized: Path, tmp_path: Path) -> None:
    image = make_image()
    tifffile.imwrite(tmp_path / "a.tif", image, imagej=True, resolution=(1.0, 1.0), metadata={"unit": "um", "axes": "YX"})
    Image.fromarray(image).save(tmp_path / "b.png")
    asked = PredictSettings(device="cpu", voxel_size_um=1.0)
    predict(sized, tmp_path / "a.tif", tmp_path / "a.png", settings=CPU)
    predict(sized, tmp_path / "b.png", tmp_path / "c.png", settings=asked)
    first, second = (np.asarray(Image.open(tmp_path / name)) for name in ("a.png", "c.png"))
    np.testing.assert_array_equal(first, second)
    assert first.shape == image.shape
    # the option wins over the file
    predict(sized, tmp_path / "a.tif", tmp_path / "d.png", settings=dataclasses.replace(asked, voxel_size_um=2.0))
    plain = predict(sized, image, settings=dataclasses.replace(asked, voxel_size_um=2.0))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "d.png")), plain)


@pytest.mark.parametrize("size", [-1.0, float("inf"), float("nan")])
def test_voxel_sizes_that_are_none_are_refused(model: Path, size: float) -> None:
    with pytest.raises(SettingsError, match="voxel_size_um is"):
        predict(model, make_image(), settings=PredictSettings(voxel_size_um=size))


@pytest.mark.filterwarnings("always::UserWarning")
def test_the_options_on_the_command_line(sized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = make_image()
    Image.fromarray(image.max() - image + image.min()).save(tmp_path / "flipped.png")
    source, target = tmp_path / "flipped.png", tmp_path / "labels.png"
    assert run("predict", sized, source, target, "--device", "cpu") == 1
    shown = capsys.readouterr().err
    assert "contrast seems inverted" in shown
    assert "note: " in shown
    assert run("predict", sized, source, target, "--device", "cpu", "--invert", "--voxel-size-um", "1") == 0
    assert "note: " not in capsys.readouterr().err
    expected = predict(sized, image, settings=PredictSettings(device="cpu", voxel_size_um=1.0))
    np.testing.assert_array_equal(np.asarray(Image.open(target)), expected)
