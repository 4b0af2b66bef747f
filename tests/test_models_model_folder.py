from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import socket
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from neurotome.classes import ClassSet
from neurotome.errors import ModelError
from neurotome.load import load_predictor
from neurotome.models import model_folder
from neurotome.models.model_folder import find_model, load_model, save_model
from neurotome.models.net_predictor import NetPredictor
from neurotome.models.networks import ModelSettings, build_network, settle_network
from neurotome.normalize import Normalization


@pytest.fixture(scope="module")
def predictor() -> NetPredictor:
    torch.manual_seed(0)
    settings = ModelSettings("linknet", "resnet18", encoder_weights="imagenet", in_channels=3, encoder_depth=3)
    net = build_network(dataclasses.replace(settings, encoder_weights="none"), 3)
    with torch.no_grad():
        net(torch.randn(2, 3, 64, 64))  # moves the BatchNorm statistics
    return NetPredictor(
        net=net,
        settings=settings,
        classes=ClassSet(("background", "vessel", "cell"), ignore=9),
        normalization=Normalization("dataset", 123.4, 1 / 3, "uint16"),
        halo=256,
        bounded=True,
        patch=192,
        voxel_size_um=(1.17, 1.17, 1.17),
        facts={"licence": "CC-BY-4.0"},
    )


@pytest.fixture(scope="module")
def saved(predictor: NetPredictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save_model(predictor, folder)
    return folder


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def edit(folder: Path, /, **changes: object) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_loaded_model_predicts_the_same_bits_without_network(
    predictor: NetPredictor, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was touched")

    for name in ("__init__", "connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    found = load_model(model)
    image = np.random.default_rng(0).normal(size=(1, 3, 70, 45)).astype(np.float32)
    np.testing.assert_array_equal(found.predict_probs(image), predictor.predict_probs(image))
    assert found.settings == dataclasses.replace(settle_network(predictor.settings), encoder_weights="none")
    for fact in (
        "classes",
        "normalization",
        "halo",
        "bounded",
        "patch",
        "voxel_size_um",
        "facts",
        "in_channels",
        "stride_zyx",
    ):
        assert getattr(found, fact) == getattr(predictor, fact)


def test_the_folder_says_where_the_weights_came_from(model: Path) -> None:
    assert sorted(path.name for path in model.iterdir()) == ["model.json", "model.safetensors"]
    content = json.loads((model / "model.json").read_text())
    assert content["pretraining"] == "imagenet"
    assert content["facts"] == {"licence": "CC-BY-4.0"}


def test_float16_halves_the_file_and_keeps_the_statistics(predictor: NetPredictor, model: Path) -> None:
    before = (model / "model.safetensors").stat().st_size
    save_model(predictor, model, storage="float16")
    assert (model / "model.safetensors").stat().st_size < 0.51 * before
    assert json.loads((model / "model.json").read_text())["storage"] == "float16"
    found, there = load_model(model).net.state_dict(), predictor.net.state_dict()
    parameters = dict(predictor.net.named_parameters())
    for key, value in there.items():
        assert found[key].dtype == value.dtype
        expected = value.half().float() if key in parameters else value
        assert torch.equal(found[key], expected)
    image = np.random.default_rng(0).normal(size=(1, 3, 70, 45)).astype(np.float32)
    np.testing.assert_allclose(load_model(model).predict_probs(image), predictor.predict_probs(image), atol=1e-2)


def test_weights_that_float16_cannot_hold_are_refused(predictor: NetPredictor, model: Path) -> None:
    first = next(predictor.net.parameters())
    kept = first.detach().clone()
    with torch.no_grad():
        first[0, 0, 0, 0] = 1e5
    try:
        with pytest.raises(ModelError, match=r"core\.encoder\.conv1\.weight reaches 1e\+05, more than the 65504"):
            save_model(predictor, model, storage="float16")
    finally:
        with torch.no_grad():
            first.copy_(kept)
    assert load_model(model).facts == predictor.facts


def test_a_shorter_network_is_saved_short(tmp_path: Path, predictor: NetPredictor) -> None:
    settings = ModelSettings(encoder_depth=3)
    short = dataclasses.replace(predictor, net=build_network(settings, 3), settings=settings)
    save_model(short, tmp_path)
    found = load_model(tmp_path)
    assert found.settings == settle_network(settings)
    assert not any("layer3" in key or "layer4" in key for key in found.net.state_dict())


def test_a_saved_model_is_replaced(predictor: NetPredictor, model: Path) -> None:
    save_model(predictor, model, {"epoch": 7})
    assert load_model(model).facts == {"epoch": 7}


@pytest.mark.parametrize("renames", range(4))
def test_a_model_whose_replacement_was_killed_still_loads(
    predictor: NetPredictor, model: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    """Dies before the first, second, third rename; after the third the new model is there."""
    replace, done = Path.replace, []

    def die_after(self: Path, target: Path) -> Path:
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(target)
        return replace(self, target)

    other = dataclasses.replace(predictor, facts={"new": True})
    with torch.no_grad():
        next(predictor.net.parameters()).mul_(2)
    monkeypatch.setattr(Path, "replace", die_after)
    try:
        save_model(other, model)
    except KeyboardInterrupt:
        assert renames < 3
    finally:
        with torch.no_grad():
            next(predictor.net.parameters()).div_(2)
    assert load_model(model).facts.get("new", False) == (renames >= 2)


def test_run_and_model_folders_are_found(model: Path) -> None:
    run = model.parent
    assert find_model(model) == model
    assert find_model(run) == model
    with pytest.raises(ModelError, match="nowhere: no such run or model folder"):
        load_model(run / "nowhere")


def test_folders_without_a_model_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model\.json here or in its model/ folder"):
        load_model(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ModelError, match="this run has no model yet; run its training command again"):
        load_model(tmp_path)


def test_one_flipped_bit_in_the_weights_is_found(model: Path) -> None:
    path = model / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors: the weights are not those that model\.json describes"):
        load_model(model)


def test_missing_weights_are_found(model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors: missing; copy the whole model folder"):
        load_model(model)


@pytest.mark.parametrize("content", [*(slice(kept) for kept in (0, 1, 100, -10)), "[]", "3", "null", "\x00"], ids=str)
def test_a_description_that_is_cut_or_none_is_found(model: Path, content: slice | str) -> None:
    path = model / "model.json"
    path.write_text(path.read_text()[content] if isinstance(content, slice) else content)
    with pytest.raises(ModelError, match="damaged model folder"):
        load_model(model)


def test_a_later_format_is_refused(model: Path) -> None:
    edit(model, format=2)
    with pytest.raises(ModelError, match=r"model\.json: format 2; this version reads format 1"):
        load_model(model)


NETWORK = {"decoder": "linknet", "encoder": "resnet18", "encoder_weights": "none", "in_channels": 3, "encoder_depth": 3}
CLASSES = {"names": ["background", "vessel", "cell"], "ignore": 9}
SCALE = {"mode": "dataset", "mean": 123.4, "std": 0.3, "dtype": "uint16"}
INFINITE, NOT_A_NUMBER = float("inf"), float("nan")
NO_COUNTS = (-1, INFINITE, -INFINITE, NOT_A_NUMBER, 10**400, 10**9, 1.5, "3", None, True, [3], {})

DAMAGED = [
    *({"halo": value} for value in NO_COUNTS),
    *({"patch": value} for value in (0, *NO_COUNTS)),
    *({"classes": {**CLASSES, "ignore": value}} for value in NO_COUNTS),
    *({"model": {**NETWORK, "in_channels": value}} for value in (0, 2, 5, *NO_COUNTS)),
    *({"model": {**NETWORK, "encoder_depth": value}} for value in (0, 2, 6, 4, "auto", *NO_COUNTS)),
    *({"voxel_size_um": value} for value in ([1.0, 1.0], [0, 1, 1], [1, 1, -1], [1, 1, NOT_A_NUMBER], [1, 1, INFINITE])),
    *({"voxel_size_um": value} for value in (1.17, "1.17", [1, 1, "1"], [1, 1, True], [[1], 1, 1], {}, [10**400, 1, 1])),
    *({"normalization": {**SCALE, "std": value}} for value in (0, -1, INFINITE, NOT_A_NUMBER, 10**400, None, [1])),
    *({"normalization": {**SCALE, "mean": value}} for value in (INFINITE, NOT_A_NUMBER, 10**400, None, [1])),
    {"normalization": {**SCALE, "mode": "slice"}},
    {"normalization": []},
    {"classes": {"names": ["a", "a"], "ignore": 255}},
    {"classes": {"names": ["a", "b"], "ignore": 255}},  # the weights are for three
    {"classes": {"names": "abc", "ignore": 255}},
    {"classes": {"names": [1, 2, 3], "ignore": 255}},
    {"classes": ["a", "b", "c"]},
    {"model": {**NETWORK, "depth": 5}},
    *(
        {"model": {**NETWORK, part: value}}
        for part in ("decoder", "encoder")
        for value in (["linknet"], 3, None, {}, "auto3")
    ),
    {"model": {**NETWORK, "decoder": "unet"}},
    {"model": ["linknet"]},
    {"bounded": 1},
    {"bounded": "false"},
    {"facts": [1]},
    {"facts": None},
    {"facts": {"val_macro_f1": NOT_A_NUMBER}},
    {"kind": 3},
    {"kind": ["network"]},
]


@pytest.mark.parametrize("changes", DAMAGED, ids=lambda changes: str(changes)[:80])
def test_damaged_descriptions_are_refused(model: Path, changes: dict[str, object]) -> None:
    edit(model, **changes)
    with pytest.raises(ModelError, match="damaged model folder") as caught:
        load_model(model)
    assert len(str(caught.value)) < 2500


@pytest.mark.parametrize("key", ["model", "classes", "normalization", "halo", "bounded", "patch", "voxel_size_um", "facts"])
def test_descriptions_that_lack_something_are_refused(model: Path, key: str) -> None:
    content = json.loads((model / "model.json").read_text())
    del content[key]
    (model / "model.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="damaged model folder"):
        load_model(model)


def test_a_description_nested_without_end_is_refused(model: Path) -> None:
    content = (model / "model.json").read_text()
    (model / "model.json").write_text(content.replace('"licence": "CC-BY-4.0"', '"a": ' + "[" * 9000 + "]" * 9000))
    with pytest.raises(ModelError, match="damaged model folder"):
        load_model(model)


def forge(folder: Path, content: bytes) -> None:
    """Replaces the weights, and the digest that would tell."""
    (folder / "model.safetensors").write_bytes(content)
    edit(folder, weights_sha256=hashlib.sha256(content).hexdigest())


FIRST, VARIANCE = "core.encoder.conv1.weight", "core.encoder.bn1.running_var"


@pytest.mark.parametrize(
    ("name", "value"),
    [(FIRST, NOT_A_NUMBER), (FIRST, INFINITE), (FIRST, -INFINITE), (FIRST, 1e30), (VARIANCE, -1e-3), (VARIANCE, INFINITE)],
)
def test_weights_that_no_training_gives_are_refused(model: Path, name: str, value: float) -> None:
    tensors = load((model / "model.safetensors").read_bytes())
    tensors[name] = tensors[name].copy()
    tensors[name].flat[0] = value
    forge(model, save(tensors))
    with pytest.raises(ModelError, match=rf"damaged model folder \(.*{re.escape(name)}"):
        load_model(model)


def test_weights_that_overflow_together_are_refused(model: Path) -> None:
    tensors = load((model / "model.safetensors").read_bytes())
    forge(model, save({name: t * np.float32(1e7) if t.ndim == 4 else t for name, t in tensors.items()}))
    with pytest.raises(ModelError, match="its probabilities are no numbers"):
        load_model(model)


def test_weights_of_another_network_are_refused(model: Path) -> None:
    tensors = load((model / "model.safetensors").read_bytes())
    rest = {name: tensor for name, tensor in tensors.items() if name != FIRST}
    for changed in (rest, {**tensors, "more": tensors[FIRST]}, {**rest, FIRST: tensors[FIRST][:1].copy()}):
        forge(model, save(changed))
        with pytest.raises(ModelError, match="damaged model folder"):
            load_model(model)
    forge(model, save({**rest, FIRST: tensors[FIRST].astype(np.int64)}))
    with pytest.raises(ModelError, match=r"conv1\.weight are torch\.int64, expected torch\.float32"):
        load_model(model)


@pytest.mark.parametrize("offsets", [[0, 8], [4, 12], [0, 1 << 40], [-8, 0], [8, 12], [0.5, 8], "08"])
def test_tensors_that_overlap_or_reach_beyond_the_file_are_refused(model: Path, offsets: object) -> None:
    header = {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in "ab"}
    header["b"]["data_offsets"] = offsets
    text = json.dumps(header).encode()
    forge(model, struct.pack("<Q", len(text)) + text + bytes(12))
    with pytest.raises(ModelError, match="damaged model folder"):
        load_model(model)


def test_too_little_memory_is_no_damage(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        torch.empty(1 << 58, dtype=torch.uint8)

    monkeypatch.setattr("neurotome.models.model_folder.build_network", refuse)
    with pytest.raises(RuntimeError, match="you tried to allocate"):
        load_model(model)


def test_a_model_is_read_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, paths = Path.read_bytes, []
    monkeypatch.setattr(Path, "read_bytes", lambda self: (paths.append(self), read(self))[1])
    load_predictor(str(model), "cpu")
    assert paths == [model / "model.safetensors"]


def test_names_and_paths_may_be_text() -> None:
    assert load_model("microct-base").classes.names == load_predictor(Path("microct-base"), "cpu").classes.names


def test_a_description_cannot_ask_for_a_download(model: Path) -> None:
    edit(model, model={"encoder_weights": "imagenet"})
    with pytest.raises(ModelError, match="encoder_weights must be none"):
        load_model(model)


def test_a_packaged_model_is_named_with_its_newest_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_folder, "ZOO", tmp_path / "zoo")
    monkeypatch.chdir(tmp_path)
    for name in ("base-2", "base-10", "other-base-1", "base-of-old"):
        (tmp_path / "zoo" / name).mkdir(parents=True)
        (tmp_path / "zoo" / name / "model.json").write_text("{}")
    assert [model_folder.name_version(name) for name in ("base", "base-2", "none")] == ["base-10", "base-2", "none"]
    assert find_model("base") == tmp_path / "zoo" / "base-10"
    (tmp_path / "base").mkdir()  # somebody's own folder
    assert model_folder.name_version("base") == "base"
