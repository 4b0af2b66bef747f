from __future__ import annotations

import dataclasses
import gc
import json
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import neurotome
from neurotome.classes import ClassSet
from neurotome.errors import ImageError, ModelError, RunError, SettingsError
from neurotome.models import stored_model
from neurotome.models.model_folder import load_model, save_model
from neurotome.models.net_predictor import NetPredictor
from neurotome.models.networks import ModelSettings, build_network
from neurotome.normalize import Normalization, Scale, describe_tissue
from neurotome.sharing.graph import measure_in_graph

TISSUE = Normalization("tissue", 110.0, 25.0, "uint8")
CITATION = "Nobody (2026), doi:10.1038/s41597-020-00692-y."


def make_predictor(normalization: Normalization = TISSUE, in_channels: int = 1) -> NetPredictor:
    torch.manual_seed(0)
    model = ModelSettings("unet", "resnet18", encoder_weights="none", in_channels=in_channels, encoder_depth=3)
    net = build_network(model, 3)
    with torch.no_grad():
        net(torch.randn(2, in_channels, 64, 64))  # moves the BatchNorm statistics
    classes, size = ClassSet(("background", "blood vessel", "cell")), (1.17, 1.17, 1.17)
    return NetPredictor(net, model, classes, normalization, halo=32, bounded=True, patch=64, voxel_size_um=size)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(make_predictor(), folder, {"licence": "CC-BY-4.0", "dataset": "nothing"})
    return folder


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    rng = np.random.default_rng(1)
    grey = rng.normal(120, 20, (96, 128))
    grey[20:30, 40:60] = 10
    return grey.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def package(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packages") / "tiny.zip"
    return neurotome.export(model, out=out, format="bioimageio", author=["A. Person"], citation=CITATION)


@pytest.mark.parametrize(
    ("normalization", "in_channels"),
    [
        (TISSUE, 3),
        (Normalization("dataset", 100.0, 20.0, "uint8"), 1),
        (dataclasses.replace(TISSUE, reference=Scale(90.0, 30.0, "elsewhere")), 1),
    ],
    ids=["each image's own", "of the training data", "of a reference"],
)
def test_an_onnx_file_takes_grey_values_and_gives_the_probabilities_of_torch(tmp_path, image, normalization, in_channels):
    import onnxruntime

    predictor = make_predictor(normalization, in_channels)
    save_model(predictor, tmp_path / "model", {})
    out = neurotome.export(tmp_path / "model", out=tmp_path / "model.onnx", format="onnx")
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    facts = json.loads(session.get_modelmeta().custom_metadata_map["neurotome"])
    grey = np.repeat(image[None, None], in_channels, 1).astype(np.float32)
    scale = normalization.reference or Scale(100.0, 20.0)
    given = {"scale": np.array([100, 20], np.float32)} if facts["scale"] == "given" else {}
    probs = session.run(["probs"], {"grey": grey, **given})[0]
    expected = predictor.predict_probs((grey - np.float32(scale.mean)) / np.float32(scale.std))
    assert np.abs(probs - expected).max() < 1e-4
    assert [one.name for one in session.get_inputs()] == ["grey", *given]
    assert (facts["scale"] == "given") == (normalization == TISSUE)
    scan = " of the same scan as the reference" if normalization.reference else ""
    holds = "" if normalization == TISSUE else f"images{scan} with grey values as they are in uint8"
    assert facts["scale_holds_for"] == holds
    assert facts["classes"] == ["background", "blood vessel", "cell"]
    assert (facts["halo"], facts["multiple_of"], facts["voxel_size_um"]) == (32, predictor.net.stride, [1.17] * 3)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 255), min_size=4, max_size=400), st.sampled_from([1, 2]))
def test_a_graph_measures_the_scale_that_neurotome_measures(values, images):
    grey = np.array(values, np.float32)
    batch = torch.from_numpy(np.stack([grey] * images)).reshape(images, 1, 1, -1)
    for mode in ("tissue", "image"):
        mean, std = (found.flatten().tolist() for found in measure_in_graph(batch, mode))
        found = describe_tissue(grey, "all").scale if mode == "tissue" else Scale(grey.mean(), grey.std())
        if found.std > 0.01:
            assert mean == pytest.approx([found.mean] * images, abs=1e-3)
            assert std == pytest.approx([found.std] * images, abs=1e-3)


def test_a_package_passes_the_formats_own_test_and_comes_back(package, model, image, tmp_path):
    from bioimageio.core import test_description

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves files open
        summary = test_description(package)
        gc.collect()
    assert summary.status == "passed", summary.format()
    Image.fromarray(image).save(tmp_path / "slice.png")
    labels = [
        neurotome.predict(origin, tmp_path / "slice.png", tmp_path / f"{origin.stem}_{i}.png", voxel_size_um=1.17)
        for i, origin in enumerate((package, model))
    ]
    first, second = (np.array(Image.open(paths[0])) for paths in labels)
    assert len(np.unique(first)) > 1
    assert np.array_equal(first, second)
    assert load_model(package).facts == load_model(model).facts
    with zipfile.ZipFile(package) as archive:
        assert {"cover.png", "card.md", "test_input.npy", "test_output.npy"} <= set(archive.namelist())
        assert "CC-BY-4.0" in archive.read("card.md").decode()


def test_a_folder_for_a_hub_has_a_card_and_is_a_model(package, tmp_path):
    for origin in (package, "microct-base-3"):
        out = neurotome.export(origin, out=tmp_path / f"hub_{Path(origin).stem}", format="hub")
        card = (out / "README.md").read_text()
        assert card.startswith("---\nlicense: ")
        assert "library_name: neurotome" in card
        assert "## Validation" in card
        load_model(out)
    assert "It has never seen a real image" in card  # the packaged model's own


def test_what_cannot_be_exported_is_refused_before_anything_is_written(model, package, image, tmp_path):
    def export(error: type[Exception], says: str, origin: Path = model, **wanted) -> None:
        with pytest.raises(error, match=says):
            neurotome.export(origin, **{"out": tmp_path / "out.zip", "format": "bioimageio", **wanted})
        assert not (tmp_path / "out.zip").exists()

    person = {"author": ["A. Person"], "citation": CITATION}
    export(SettingsError, "Give --author, --citation")
    export(SettingsError, "no DOI in the citation", author=["A"], citation="Nobody (2026)")
    export(SettingsError, "license", licence="as you like", **person)
    export(SettingsError, r"ends in \.zip", out=tmp_path / "out.onnx")
    export(SettingsError, r"ends in \.onnx", format="onnx")
    export(RunError, "is there already", out=package)
    deep = make_predictor()
    three = dataclasses.replace(deep.settings, dimensions=3, reach_from=1)
    save_model(dataclasses.replace(deep, net=build_network(three, 3), settings=three), tmp_path / "deep", {"licence": "MIT"})
    export(ModelError, "3 dimensions has no ONNX form", tmp_path / "deep", **person)
    Image.fromarray(image[:40]).save(tmp_path / "small.png")
    export(ImageError, r"1 x 40 x 128 voxels .* needs 96 x 96", sample=tmp_path / "small.png", **person)


def test_packages_of_others_and_damaged_ones_are_refused(package, tmp_path, monkeypatch):
    foreign, torn = tmp_path / "foreign.zip", tmp_path / "torn.zip"
    with zipfile.ZipFile(foreign, "w") as archive:
        archive.writestr("rdf.yaml", "type: model")
    torn.write_bytes(package.read_bytes()[:5000])
    flipped = bytearray(package.read_bytes())
    with zipfile.ZipFile(package) as archive:
        start = archive.getinfo("model.safetensors").header_offset
    flipped[start + 3000] ^= 255
    (tmp_path / "flipped.zip").write_bytes(flipped)
    locked = bytearray(package.read_bytes())
    locked[locked.index(b"PK\1\2") + 8] |= 1  # the flag of a file that is encrypted, in the list of files
    (tmp_path / "locked.zip").write_bytes(locked)
    with pytest.raises(ModelError, match="is encrypted"):
        load_model(tmp_path / "locked.zip")
    with pytest.raises(ModelError, match=r"holds no model\.json; only packages that neurotome export"):
        load_model(foreign)
    with pytest.raises(ModelError, match="no readable package"):
        load_model(torn)
    with pytest.raises(ModelError, match="damaged package"):
        load_model(tmp_path / "flipped.zip")
    monkeypatch.setattr(stored_model, "MOST_BYTES", 1000)
    with pytest.raises(ModelError, match="expected at most"):
        load_model(package)


def test_a_pixel_classifier_goes_to_a_hub_and_nowhere_else(tmp_path):
    dataset = neurotome.phantom(out=tmp_path / "tissue", height=64, width=64, train_depth=1, val_depth=1, test_depth=1)
    neurotome.baseline(dataset, out=tmp_path / "run", learner="lr", features="identity")
    with pytest.raises(ModelError, match="is a pixel classifier"):
        neurotome.export(tmp_path / "run", out=tmp_path / "model.onnx", format="onnx")
    out = neurotome.export(tmp_path / "run", out=tmp_path / "hub", format="hub")
    assert "identity" in (out / "model.json").read_text()
    assert "# run\n" in (out / "README.md").read_text()
