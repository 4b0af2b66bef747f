"""predict, alone, in a folder and with --reference: which grey scale labels come from, told by a predictor of grey alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from conftest import run
from neurotome.classes import ClassSet
from neurotome.errors import ImageError, NeurotomeError, SettingsError
from neurotome.inference.predict import predict, predict_probs
from neurotome.inference.predict_settings import PredictSettings
from neurotome.normalize import Normalization
from neurotome.predictor import label_by_probs
from test_shared_scale import make_scene, stretch, write


class Bright:
    """Labels what is brighter than 0.6 units above tissue, as white matter is beside neuropil."""

    classes = ClassSet(("background", "axon"))
    normalization = Normalization("tissue", 100, 25, "uint8")
    in_channels = 1
    halo_zyx = (0, 0, 0)
    stride_zyx = (1, 1, 1)
    voxel_size_um = (1.0, 1.0, 1.0)
    bounded = True
    preferred_tile = None
    back_end = "numpy"
    label_patches = label_by_probs

    def predict_probs(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        bright = (patches[:, 0] > 0.6).astype(np.float32)
        return np.stack([1 - bright, bright], 1)


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neurotome.load.load_predictor", lambda *_: Bright())


def settle(**changes: object) -> PredictSettings:
    return PredictSettings(**{"voxel_size_um": 1.0, "device": "cpu", **changes})  # type: ignore[arg-type]


def read_share(path: Path) -> float:
    return float((np.asarray(Image.open(path)) == 1).mean())


WHITES = (0, 0.1, 0.3, 0.1, 1.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "images", [make_scene(white, seed) for seed, white in enumerate(WHITES)])


def test_white_matter_in_a_folder_or_with_a_reference(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = folder / "4.png"
    predict("m", alone, tmp_path / "alone.png", settings=settle())
    assert "4096 pixels alone" in capsys.readouterr().err
    predict("m", folder, tmp_path / "together", settings=settle())
    assert "5 images share a grey scale" in capsys.readouterr().err
    predict("m", alone, tmp_path / "with.png", settings=settle(reference=str(folder)))
    assert f"of the reference {folder}" in capsys.readouterr().err
    assert read_share(tmp_path / "alone.png") < 0.3
    assert read_share(tmp_path / "together" / "4.png") > 0.75
    np.testing.assert_array_equal(Image.open(tmp_path / "with.png"), Image.open(tmp_path / "together" / "4.png"))
    probs = predict_probs("m", np.asarray(Image.open(alone)), settings=settle(reference=str(folder)))
    assert probs[1].mean() == read_share(tmp_path / "with.png")
    # own: as each alone
    predict("m", folder, tmp_path / "own", settings=settle(reference="own"))
    np.testing.assert_array_equal(Image.open(tmp_path / "own" / "4.png"), Image.open(tmp_path / "alone.png"))


def test_a_folder_that_is_gone_on_with_keeps_its_scale(folder: Path, tmp_path: Path) -> None:
    predict("m", folder, tmp_path / "out", settings=settle())
    before = (tmp_path / "out" / "4.png").read_bytes()
    (tmp_path / "out" / "4.png").unlink()
    predict("m", folder, tmp_path / "out", settings=settle(existing="skip"))
    assert (tmp_path / "out" / "4.png").read_bytes() == before


def test_inverted_images_are_flipped_alike(folder: Path, tmp_path: Path) -> None:
    inverted = write(tmp_path / "inverted", [255 - np.asarray(Image.open(folder / f"{n}.png")) for n in range(5)])
    predict("m", folder, tmp_path / "out", settings=settle())
    predict("m", inverted, tmp_path / "flipped", settings=settle(invert=True))
    for number in range(5):
        np.testing.assert_array_equal(
            Image.open(tmp_path / "flipped" / f"{number}.png"), Image.open(tmp_path / "out" / f"{number}.png")
        )


def test_a_bad_image_in_a_folder_stops_no_other(folder: Path, tmp_path: Path) -> None:
    (folder / "5.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"1 of 6 images could not be predicted"):
        predict("m", folder, tmp_path / "out", settings=settle())
    assert read_share(tmp_path / "out" / "4.png") > 0.75


def test_stretched_images_are_labelled_as_each_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "stretched", [stretch(make_scene(white, seed)) for seed, white in enumerate((0, 1))])
    predict("m", folder, tmp_path / "out", settings=settle())
    assert "stretched by itself" in capsys.readouterr().err
    predict("m", folder / "1.png", tmp_path / "alone.png", settings=settle())
    np.testing.assert_array_equal(Image.open(tmp_path / "out" / "1.png"), Image.open(tmp_path / "alone.png"))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (255 - make_scene(0, 7), "reference.tif: the contrast seems inverted"),
        (np.zeros((64, 64), np.uint8), "reference.tif"),
        (np.full((64, 64, 3), 9, np.uint8), "reference.tif"),
        (make_scene(0.2, 7).astype(np.uint16), "dtype uint8, but the reference is uint16"),
    ],
    ids=["inverted", "air only", "RGB", "another dtype"],
)
def test_bad_references(folder: Path, tmp_path: Path, reference: NDArray[np.generic], message: str) -> None:
    path = tmp_path / "reference.tif"
    tifffile.imwrite(path, reference, photometric="rgb" if reference.ndim == 3 else "minisblack")
    with pytest.raises(ImageError, match=message) as found:
        predict("m", folder / "4.png", tmp_path / "out.png", settings=settle(reference=str(path)))
    if reference.dtype == np.uint8:  # word for word what predict says of such an image
        with pytest.raises(ImageError) as same:
            predict("m", path, tmp_path / "out.png", settings=settle())
        assert str(found.value) == str(same.value)
    assert not (tmp_path / "out.png").exists()


def test_a_reference_of_an_absurd_voxel_size(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "reference.tif"
    tifffile.imwrite(path, make_scene(0.2, 7), resolution=(100, 100), resolutionunit="CENTIMETER")
    with pytest.raises(ImageError, match=r"reference\.tif: voxel size 100 x 100 um, but the model expects 1 x 1 um"):
        predict("m", folder / "4.png", tmp_path / "out.png", settings=settle(voxel_size_um="auto", reference=str(path)))


@pytest.mark.parametrize(
    "other",
    [make_scene(0.1, 7) // 3, np.random.default_rng(0).normal(5, 2, (64, 64)).clip(0).astype(np.uint8)],
    ids=["another exposure", "noise of air"],
)
def test_a_reference_of_another_scan_is_noted(folder: Path, tmp_path: Path, other: NDArray[np.uint8]) -> None:
    Image.fromarray(other).save(tmp_path / "other.png")
    with pytest.warns(UserWarning, match="two grey scales, so labels may be wrong"):
        predict("m", folder / "0.png", tmp_path / "out.png", settings=settle(reference=str(tmp_path / "other.png")))


def test_other_models_take_no_reference(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bright, "normalization", Normalization("image", 100, 25, "uint8"))
    with pytest.raises(SettingsError, match="scales grey values by 'image'"):
        predict("m", folder, tmp_path / "out", settings=settle(reference=str(folder)))


def test_on_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["predict", "m", folder / "4.png", tmp_path / "out.png", "--voxel-size-um", "1"]
    assert run(*command, "--reference", folder) == 0
    assert read_share(tmp_path / "out.png") > 0.75
    assert run(*command, "--existing", "replace", "--reference", tmp_path / "nowhere") == 1
    assert "nowhere does not exist" in capsys.readouterr().err


def test_what_is_missing_is_an_error_of_ours(folder: Path) -> None:
    with pytest.raises(NeurotomeError, match="does not exist"):
        predict_probs("m", make_scene(0, 0), settings=settle(reference="nowhere.png"))
