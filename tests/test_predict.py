"""predict on what a scanner may deliver: other grey scales, inverted contrast, tiny images, other voxel sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from conftest import run
from neurotome.classes import ClassSet
from neurotome.errors import ImageError, RunError, SettingsError
from neurotome.inference.overlay import Painter
from neurotome.inference.predict import invert_grey, predict, predict_probs
from neurotome.inference.predict_settings import PredictSettings
from neurotome.inference.slices import predict_slices, resize
from neurotome.io import read_labels
from neurotome.io.lazy_array import LazyArray
from neurotome.models.model_folder import load_model, save_model
from neurotome.models.net_predictor import NetPredictor
from neurotome.models.networks import ModelSettings, build_network
from neurotome.normalize import Normalization
from neurotome.predictor import label_by_probs
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
    flipped = invert_grey(Volume(np.array([[[10, 250]], [[40, 240]]], dtype), "a")).data[:]
    assert flipped.ravel().tolist() == [250, 10, 220, 20]
    assert flipped.dtype == dtype


@pytest.mark.parametrize("shape", [(5, 7), (1, 2), (33, 1)])
def test_tiny_images(model: Path, tmp_path: Path, shape: tuple[int, int]) -> None:
    image = np.full(shape, 100, np.uint8)
    image[0, 0] = 20
    Image.fromarray(image).save(tmp_path / "tiny.png")
    predict(model, tmp_path / "tiny.png", tmp_path / "labels.png", settings=CPU)
    assert np.asarray(Image.open(tmp_path / "labels.png")).shape == shape


@dataclasses.dataclass
class Bright:
    """Stands for a network of voxel size 2 um: class 1 where the scaled grey is above 0."""

    voxel_size_um: tuple[float, float, float] | None = (9.0, 2.0, 2.0)
    in_channels: int = 1
    halo_zyx: tuple[int, int, int] = (0, 0, 0)
    stride_zyx: tuple[int, int, int] = (1, 1, 1)
    bounded: bool = True
    preferred_tile: int | None = None
    back_end: str = "numpy"

    label_patches = label_by_probs

    def __post_init__(self) -> None:
        self.classes = ClassSet(("background", "cell"))
        self.normalization = Normalization("dataset", 100, 50, "uint8")
        self.seen: list[tuple[int, ...]] = []

    def predict_probs(self, patches: np.ndarray) -> np.ndarray:
        self.seen.append(patches.shape[2:])
        bright = (patches[:, 0] > 0).astype(np.float32)
        return np.stack([1 - bright, bright], 1)


def label(predictor: Bright, volume: Volume, on_progress: Callable[[float], None] | None = None) -> np.ndarray:
    return np.stack([probs.argmax(0) for probs in predict_slices(predictor, volume, on_progress=on_progress)])


def make_disc(edge: int) -> np.ndarray:
    """A bright disc, its diameter half of the image's edge."""
    y, x = np.mgrid[:edge, :edge] - (edge - 1) / 2
    return np.where(y**2 + x**2 < (edge / 4) ** 2, 200, 0).astype(np.uint8)[None]


@pytest.mark.parametrize(("size", "seen"), [(1.0, 60), (4.0, 240), (2.09, 120), (1.92, 120), (0.5, 30)])
def test_slices_are_predicted_at_the_models_voxel_size(size: float, seen: int) -> None:
    grey = make_disc(120)
    predictor, progress = Bright(), []
    volume = Volume(grey, "a", (1.0, size, size))
    labels = label(predictor, volume, on_progress=progress.append)
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
    labels = label(predictor, Volume(make_disc(40).repeat(3, 0), "a", (5.0, 1.0, 2.0)))
    assert predictor.seen == [(20, 40)] * 3
    assert labels.shape == (3, 40, 40)


def test_an_odd_shape_comes_back_exactly() -> None:
    grey = np.zeros((1, 37, 1), np.uint8)
    grey[0, :20] = 200
    labels = label(Bright(), Volume(grey, "a", (1.0, 0.7, 0.1)))
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
        label(Bright(), Volume(make_disc(20), "a", (1.0, size, size)))


def test_unknown_sizes_change_nothing() -> None:
    for predictor, size in ((Bright(None), (1.0, 1.0, 1.0)), (Bright(), None)):
        label(predictor, Volume(make_disc(20), "a", size))
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
    more = ("--tile", "64", "--halo", "auto", "--channel", "auto", "--time", "0")
    assert run("predict", sized, source, target, "--device", "cpu", "--invert", "--voxel-size-um", "1", *more) == 0
    assert "voxel size" not in capsys.readouterr().err
    expected = predict(sized, image, settings=PredictSettings(device="cpu", voxel_size_um=1.0))
    np.testing.assert_array_equal(np.asarray(Image.open(target)), expected)


def write_images(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        Image.fromarray(make_image()).save(folder / name)
    return folder


def read_all(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("existing", ["refuse", "skip", "replace"])
@pytest.mark.parametrize(("source", "target"), [(".", "."), ("a.png", "a.png"), ("a.png", "."), ("a.png", "../in/a.png")])
def test_an_input_is_never_written_to(tmp_path: Path, existing: str, source: str, target: str) -> None:
    folder = write_images(tmp_path / "in", "a.png", "b.png")
    before = read_all(folder)
    asked = PredictSettings(existing=existing)  # type: ignore[arg-type]
    with pytest.raises(RunError, match=r"would overwrite the input .*a\.png"):
        predict("no such model", folder / source, folder / target, settings=asked)  # before the model is looked for
    assert read_all(folder) == before


@pytest.mark.parametrize("there", ["labels_overlay.png", "labels_confidence.png", "labels_legend.png", "labels.png"])
def test_every_file_is_planned_before_the_model_is_read(tmp_path: Path, there: str) -> None:
    folder = write_images(tmp_path / "in", "a.png")
    (tmp_path / there).write_text("mine")
    asked = PredictSettings(overlay=True, confidence=True)
    with pytest.raises(RunError, match=f"{there}: is there already"):
        predict("no such model", folder / "a.png", tmp_path / "labels.png", settings=asked)
    with pytest.raises(RunError, match=f"{there}: is there already"):
        predict("no such model", make_image(), tmp_path / "labels.png", settings=asked)
    assert (tmp_path / there).read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2


def test_outputs_that_collide_are_refused(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "in", "a.png", "a.bmp")
    with pytest.raises(RunError, match=r"a\.png: would be written twice"):
        predict("no such model", folder, tmp_path / "out")
    (folder / "a.bmp").rename(folder / "a_overlay.png")
    with pytest.raises(RunError, match=r"a_overlay\.png: would be written twice"):
        predict("no such model", folder, tmp_path / "out", settings=PredictSettings(overlay=True))


def test_skip_writes_what_is_missing_and_no_more(model: Path, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "in", "a.png", "b.png")
    asked = PredictSettings(device="cpu", overlay=True, confidence=True, existing="skip")
    predict(model, folder, tmp_path / "out", settings=asked)
    whole = read_all(tmp_path / "out")
    assert sorted(whole) == [f"{i}{what}.png" for i in "ab" for what in ("", "_confidence", "_overlay")] + ["legend.png"]
    (tmp_path / "out" / "b_overlay.png").unlink()
    (tmp_path / "out" / "a.png").write_bytes(b"mine")
    assert predict(model, folder, tmp_path / "out", settings=asked) == []
    assert read_all(tmp_path / "out") == whole | {"a.png": b"mine"}


def test_a_bad_image_does_not_keep_the_others_from_being_done(model: Path, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "in", "a.png", "b.png", "c.png", "d.png")
    Image.fromarray(np.full((30, 30), 9, np.uint8)).save(folder / "b.png")
    (folder / "c.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"(?s)2 of 4 images could not.*--existing skip:.*b\.png: every .*c\.png"):
        predict(model, folder, tmp_path / "out", settings=CPU)
    assert sorted(read_all(tmp_path / "out")) == ["a.png", "d.png"]


def test_a_folder_is_listed_as_datasets_are(model: Path, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "in", "a.PNG", "b.png")
    tifffile.imwrite(folder / "c.TIF", make_image())
    (folder / "._b.png").write_bytes(b"AppleDouble")
    predict(model, folder, tmp_path / "out", settings=CPU)
    assert sorted(read_all(tmp_path / "out")) == ["a.png", "b.png", "c.tif"]


@pytest.mark.parametrize("shape", [(64, 64, 3), (40, 30, 4)])
def test_arrays_of_colours_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="grey values without colours"):
        predict("no such model", np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8))


def test_an_array_is_written_with_all_that_was_asked_for(model: Path, tmp_path: Path) -> None:
    image = make_image()
    asked = PredictSettings(device="cpu", overlay=True, confidence=True)
    labels = predict(model, image, tmp_path / "a.png", settings=asked)
    assert sorted(read_all(tmp_path)) == ["a.png", "a_confidence.png", "a_legend.png", "a_overlay.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), labels)
    probs = predict_probs(model, image, settings=CPU)
    assert probs.shape == (3, 1, *image.shape)
    np.testing.assert_array_equal(probs.argmax(0)[0], labels)
    confidence = np.asarray(Image.open(tmp_path / "a_confidence.png"))
    np.testing.assert_array_equal(confidence, (probs.max(0)[0] * 255).round())
    with pytest.raises(SettingsError, match="files beside an output"):
        predict(model, image, settings=asked)


def test_probabilities_of_a_file_and_a_loaded_model(model: Path, tmp_path: Path) -> None:
    Image.fromarray(make_image()).save(tmp_path / "a.png")
    probs = predict_probs(load_model(model), tmp_path / "a.png", settings=CPU)
    np.testing.assert_allclose(probs.sum(0), 1, atol=1e-5)
    # load_model returns the network as it was trained, predict folds its batch normalisation away
    np.testing.assert_allclose(probs, predict_probs(model, make_image(), settings=CPU), atol=1e-5)


def test_the_legend_shows_the_colours_of_the_shown_classes(model: Path, tmp_path: Path) -> None:
    asked = PredictSettings(device="cpu", overlay=True, show=("cell",))
    predict(model, make_image(), tmp_path / "a.png", settings=asked)
    legend = np.asarray(Image.open(tmp_path / "a_legend.png")).reshape(-1, 3)
    classes = load_model(model).classes
    shown = [
        name for name, colour in zip(classes.names, classes.colours, strict=True) if (legend == colour).all(1).sum() > 50
    ]
    assert shown == ["cell"]


def test_slices_are_read_one_at_a_time_and_come_in_order() -> None:
    stack = np.stack([make_disc(40)[0] // (z + 1) for z in range(6)])
    reads: list[int] = []

    def read(place: tuple[slice, slice, slice]) -> np.ndarray:
        assert place[0].stop - place[0].start == 1
        reads.append(place[0].start)
        return stack[place]

    slices = predict_slices(Bright(None), Volume(LazyArray(Path("a"), stack.shape, np.uint8, read), "a"))
    first = next(slices)
    assert reads == [0]  # nothing is read ahead
    labels = np.stack([first, *slices]).argmax(1)
    np.testing.assert_array_equal(labels, label(Bright(None), Volume(stack, "a")))
    assert reads == list(range(6))


def test_all_slices_of_an_overlay_share_one_display_range() -> None:
    ramp = np.linspace(0, 1000, 1600).reshape(40, 40).astype(np.uint16)
    stack = np.stack([ramp, ramp * 3])
    painter = Painter(Volume(stack, "a"), ClassSet(("background", "cell")), [1])
    nothing = np.zeros((40, 40), np.uint8)
    dim, bright = (painter.paint(z, nothing)[..., 0] for z in (0, 1))
    assert dim.max() < 100
    assert bright.max() == 255
    low, high = np.percentile(stack, (0.5, 99.5))
    expected = np.clip((stack[1] - low) / (high - low), 0, 1) * 255
    np.testing.assert_allclose(bright, expected, atol=1)


def test_only_the_shown_classes_are_painted() -> None:
    grey = np.full((1, 1, 3), 100, np.uint8)
    classes = ClassSet(("background", "vessel", "cell"))
    painted = Painter(Volume(grey, "a"), classes, [2]).paint(0, np.array([[0, 1, 2]], np.uint8))
    expected = np.round(0.55 * 100 + 0.45 * np.array(classes.colours[2])).tolist()
    assert painted[0].tolist() == [[100] * 3, [100] * 3, expected]


def test_the_output_has_what_its_suffix_says(model: Path, tmp_path: Path) -> None:
    stack = np.stack([make_image(), make_image()[::-1]])
    labels = predict(model, stack, settings=CPU)
    for name in ("a.tif", "a.npy", "a.zarr"):
        predict(model, stack, tmp_path / name, settings=CPU)
        np.testing.assert_array_equal(read_labels(tmp_path / name), labels)
    flat = predict(model, stack[0], tmp_path / "flat.npy", settings=CPU)
    np.testing.assert_array_equal(np.load(tmp_path / "flat.npy"), flat, strict=True)  # an image stays an image (y, x)
    with pytest.raises(RunError, match=r"cannot write labels as '\.jpg'; expected \.png"):
        predict(model, stack, tmp_path / "a.jpg", settings=CPU)
    with pytest.raises(ImageError, match="a PNG file holds one slice, found 2"):
        predict(model, stack, tmp_path / "a.png", settings=CPU)
    assert not list(tmp_path.glob("*.[jp][pn]g"))


def test_one_of_several_channels_is_chosen(model: Path, tmp_path: Path) -> None:
    channels = np.stack([make_image(), make_image()[::-1]])
    tifffile.imwrite(tmp_path / "a.tif", channels, imagej=True, metadata={"axes": "CYX"})
    with pytest.raises(ImageError, match="channel"):
        predict(model, tmp_path / "a.tif", tmp_path / "b.tif", settings=CPU)
    predict(model, tmp_path / "a.tif", tmp_path / "b.tif", settings=dataclasses.replace(CPU, channel=1))
    np.testing.assert_array_equal(read_labels(tmp_path / "b.tif")[0], predict(model, channels[1], settings=CPU))


def test_labels_are_written_with_the_ids_that_the_dataset_has(model: Path, tmp_path: Path) -> None:
    """`ignore: 0` with classes from 1: the model knows them from 0, files have them from 1."""
    folder = tmp_path / "from_one"
    predictor = load_model(model)
    save_model(dataclasses.replace(predictor, classes=dataclasses.replace(predictor.classes, first_id=1)), folder)
    image = make_image()
    expected = predict(model, image, settings=CPU)
    assert isinstance(expected, np.ndarray)
    for name in ("a.png", "a.tif", "a.npy", "a.zarr"):
        labels = predict(folder, image, tmp_path / name, settings=dataclasses.replace(CPU, overlay=True, existing="replace"))
        np.testing.assert_array_equal(labels, expected + 1)
        np.testing.assert_array_equal(read_labels(tmp_path / name)[0], expected + 1)
    # the first class is a class like the others, not a background that overlays leave grey
    legend = np.asarray(Image.open(tmp_path / "a_legend.png")).reshape(-1, 3)
    classes = load_model(folder).classes
    assert all((legend == colour).all(1).sum() > 50 for colour in classes.colours)


def test_an_image_unlike_the_training_data_is_noted(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    normalization = Normalization("dataset", float(make_image().mean()), 25, "uint8")
    save_model(dataclasses.replace(load_model(model), normalization=normalization), folder)
    predict(folder, make_image(), settings=CPU)
    with pytest.warns(UserWarning, match=r"array: grey values have mean 3\d.*; that is 2\.\d of their standard deviations"):
        predict(folder, (make_image() * 0.4).astype(np.uint8), settings=CPU)
