"""Training that starts from a trained model, and models that come with the package."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from conftest import build, make_dataset, run, write_dataset
from neurotome.classes import ClassSet
from neurotome.datasets.base import Cutout, Dataset
from neurotome.datasets.phantom.make import CLASSES
from neurotome.errors import DatasetError, ModelError, SettingsError
from neurotome.models import model_folder as folders
from neurotome.models.model_folder import find_model, list_packaged, load_model, save_model
from neurotome.models.net_predictor import NetPredictor, mix, widen
from neurotome.models.networks import ModelSettings, build_network
from neurotome.normalize import Normalization
from neurotome.runs import Run
from neurotome.training.fit import fit
from neurotome.training.prepare import list_splits, settle_recipe
from neurotome.training.recipe import Recipe, TrainSettings
from neurotome.training.sampler import SampleSettings
from neurotome.volume import Volume

NETWORK = ModelSettings("linknet", "mobilenetv3_small_050", in_channels=1, encoder_depth=3, dimensions=2, reach_from=1)
SHORT = TrainSettings(epochs=1, steps_per_epoch=2, device="cpu")


def write_model(folder: Path, names: tuple[str, ...] = ("background", "cell")) -> Path:
    torch.manual_seed(5)
    net = build_network(NETWORK, len(names))
    scaling = Normalization("image", 100, 25, "uint8")
    save_model(NetPredictor(net, NETWORK, ClassSet(names), scaling, 64, facts={"licence": "BSD-3-Clause"}), folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("start") / "model")


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A packaged model of the classes of test_cli's dataset, and an empty working directory."""
    write_model(tmp_path / "zoo" / "micro-base", ("background", "vessel", "cell"))
    monkeypatch.setattr(folders, "ZOO", tmp_path / "zoo")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "zoo"


def make_recipe(start: Path, /, **changes: object) -> Recipe:
    sample = SampleSettings(patch=32, batch=2)
    return dataclasses.replace(Recipe(sample=sample, train=SHORT, init=str(start)), **changes)


def test_training_begins_with_the_models_weights_network_and_scaling(model: Path) -> None:
    module = build(make_dataset(), make_recipe(model))
    there = load_model(model)
    assert module.predictor.settings == NETWORK
    assert module.predictor.normalization == there.normalization
    assert module.predictor.halo == 64
    for key, value in there.net.state_dict().items():
        assert torch.equal(module.net.state_dict()[key], value)
    digest = json.loads((model / "model.json").read_text())["weights_sha256"]
    assert module.predictor.facts["init"] == {"name": str(model), "weights_sha256": digest, "licence": "BSD-3-Clause"}


@pytest.mark.parametrize("channels", [3, 5])
def test_neighbours_say_nothing_before_they_are_learned_from(model: Path, channels: int) -> None:
    asked = make_recipe(model, model=ModelSettings(in_channels=channels))
    module = build(make_dataset(slices=channels), asked)
    stack = torch.randn(2, channels, 48, 40, generator=torch.Generator().manual_seed(1))
    there = load_model(model)
    module.net.eval()
    with torch.inference_mode():
        expected = there.net(stack[:, channels // 2, None])
        # exactly so if sums were; a convolution of more channels may add in another order
        torch.testing.assert_close(module.net(stack), expected, rtol=1e-5, atol=1e-5)
    assert module.predictor.in_channels == channels
    assert module.predictor.settings == dataclasses.replace(NETWORK, in_channels=channels)
    assert module.predictor.facts["init"]["widened_from"] == 1
    module.net(stack).square().mean().backward()
    first = next(p for p in module.net.parameters() if p.ndim == 4 and p.shape[1] == channels)
    assert first.grad is not None
    assert (first.grad.abs().amax((0, 2, 3)) > 0).all()  # neighbours can be learned from


def move_first_weights(predictor: NetPredictor) -> None:
    """As training would: the neighbours count."""
    with torch.no_grad():
        next(p for p in predictor.net.parameters() if p.ndim == 4).add_(0.1)


def test_three_slices_lie_in_the_middle_of_five_and_cannot_become_one(model: Path, tmp_path: Path) -> None:
    three = widen(load_model(model), 3)
    move_first_weights(three)
    five, stack = widen(three, 5), torch.randn(1, 5, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(five.net(stack), three.net(stack[:, 1:4]), rtol=1e-5, atol=1e-5)
    save_model(three, tmp_path / "three")
    with pytest.raises(SettingsError, match=r"another than .*: model\.in_channels \(1 asked, 3 there\)"):
        settle_recipe(make_dataset(), make_recipe(tmp_path / "three", model=ModelSettings(in_channels=1)))
    with pytest.raises(ModelError, match=r"in_channels is 4; expected an odd number"):
        settle_recipe(make_dataset(), make_recipe(tmp_path / "three", model=ModelSettings(in_channels=4)))


def test_weights_between_a_model_and_one_that_reads_more_slices(model: Path) -> None:
    old = load_model(model)
    new, stack = widen(old, 3), torch.randn(1, 3, 32, 32)
    move_first_weights(new)
    none, whole = mix(old, new, 0.0), mix(old, new, 1.0)
    with torch.inference_mode():
        torch.testing.assert_close(none.net(stack), old.net(stack[:, 1:2]), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(whole.net(stack), new.net(stack), rtol=1e-5, atol=1e-5)


def test_more_slices_are_refused_where_more_than_one_convolution_reads_them() -> None:
    settings = ModelSettings("linknet", "mobileone_s0", in_channels=1, encoder_depth=3)  # its first block has branches
    scaling = Normalization("image", 100, 25, "uint8")
    predictor = NetPredictor(build_network(settings, 2), settings, ClassSet(("background", "cell")), scaling, 64)
    with pytest.raises(ModelError, match=r"linknet on mobileone_s0 that reads 3 slices .* expected the first convolution"):
        widen(predictor, 3)


def test_the_learning_rate_is_lower_from_a_model(model: Path) -> None:
    dataset = make_dataset()
    assert settle_recipe(dataset, make_recipe(model, init="")).recipe.train.learning_rate == 3e-3
    settled = settle_recipe(dataset, make_recipe(model)).recipe
    assert settled.train.learning_rate == 3e-4
    assert settled.train.normalization == "image"
    assert settle_recipe(dataset, settled).recipe == settled
    asked = make_recipe(model, train=TrainSettings(learning_rate=0.1))
    assert settle_recipe(dataset, asked).recipe.train.learning_rate == 0.1


def test_the_usual_patch_shrinks_to_small_images() -> None:
    # 48 x 64 pixels
    with pytest.warns(UserWarning, match="smaller than the usual patch of 256 pixels; patches of 32 are used"):
        assert settle_recipe(make_dataset(), Recipe()).recipe.sample.patch == 32
    for patch in (128, 256):  # stated, and too large: for the sampler to refuse
        asked = Recipe(sample=SampleSettings(patch=patch))
        assert settle_recipe(make_dataset(), asked).recipe.sample.patch == patch


def test_an_epoch_is_one_pass_of_at_least_50_steps() -> None:
    dataset = make_dataset()  # 2 images of 48 x 64 pixels: 2 x 2 x 2 tiles of 32
    for order, batch, steps in (("sequential", 4, 2), ("sequential", 3, 3), ("random", 4, 50)):
        asked = Recipe(sample=SampleSettings(patch=32, batch=batch, order=order))  # type: ignore[arg-type]
        assert settle_recipe(dataset, asked).recipe.train.steps_per_epoch == steps
    large = dataclasses.replace(dataset, splits={**dataset.splits, "train": dataset.split("train") * 50})
    asked = Recipe(sample=SampleSettings(patch=32, batch=2))
    assert settle_recipe(large, asked).recipe.train.steps_per_epoch == 100 * 48 * 64 / (32 * 32 * 2)


def test_a_batch_larger_than_the_memory_is_refused_at_once() -> None:
    asked = Recipe(sample=SampleSettings(patch=32, batch=10**9))
    # 1e9 patches of 32 x 32 pixels of 4 bytes, one channel in and two classes out
    with pytest.raises(SettingsError, match=r"sample\.batch is 1000000000; .* take 1\.23e\+04 GB, and this machine has"):
        settle_recipe(make_dataset(), asked)


def test_another_network_or_scaling_is_refused(model: Path) -> None:
    dataset = make_dataset()
    other = make_recipe(model, model=ModelSettings("fpn", in_channels=3))
    message = (
        r"the model's network is another .*model\.decoder \(fpn asked, linknet there\); model\.in_channels \(3 asked, 1"
    )
    with pytest.raises(SettingsError, match=message):
        build(dataset, other)
    same = make_recipe(model, model=NETWORK)
    assert settle_recipe(dataset, same).recipe.model == NETWORK
    with pytest.raises(SettingsError, match=r"train\.normalization is 'tissue', but .* was trained with 'image'"):
        build(dataset, make_recipe(model, train=dataclasses.replace(SHORT, normalization="tissue")))


@pytest.mark.parametrize(
    ("group", "name", "stated"),
    [
        ("model", "decoder", "unet"),
        ("model", "encoder", "resnet18"),
        ("model", "encoder_depth", 5),
        ("train", "normalization", "dataset"),
    ],
)
def test_what_is_stated_is_refused_even_if_it_is_the_usual(model: Path, group: str, name: str, stated: str | int) -> None:
    dataset, recipe = make_dataset(), make_recipe(model)
    asked = dataclasses.replace(getattr(recipe, group), **{name: stated})
    with pytest.raises(SettingsError, match=rf"{group}\.{name} .*{stated}"):
        settle_recipe(dataset, dataclasses.replace(recipe, **{group: asked}))


def test_a_settled_recipe_has_nothing_automatic(model: Path) -> None:
    for start in (model, ""):
        settled = settle_recipe(make_dataset(), make_recipe(model, init=str(start))).recipe
        assert "auto" not in (*dataclasses.asdict(settled.model).values(), settled.sample.patch)
        chosen = (settled.train.learning_rate, settled.train.normalization, settled.train.steps_per_epoch)
        assert "auto" not in chosen
    assert settled.model == ModelSettings("unet", "resnet18", in_channels=1, encoder_depth=5, dimensions=2, reach_from=1)


@pytest.mark.parametrize("names", [("background", "axon"), ("cell", "background"), ("background", "cell", "axon")])
def test_other_classes_are_refused(model: Path, names: tuple[str, ...]) -> None:
    dataset = dataclasses.replace(make_dataset(), classes=ClassSet(names))
    with pytest.raises(ModelError, match=rf"classes are background, cell, the dataset toy has {', '.join(names)}"):
        build(dataset, make_recipe(model))


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_statistics_stay_and_weights_move(model: Path, tmp_path: Path, frozen: bool) -> None:
    train = dataclasses.replace(SHORT, epochs=2, freeze_statistics=frozen, average=0.5)
    module = build(make_dataset(), make_recipe(model, train=train))
    before = {key: value.clone() for key, value in module.net.state_dict().items()}
    fit(module, Run(tmp_path / "run"))
    for found in (module.net.state_dict(), load_model(tmp_path / "run").net.state_dict()):
        for key, value in before.items():
            if "running" in key or "num_batches" in key:
                assert torch.equal(found[key], value) == frozen, key
        assert not torch.equal(found["core.encoder.model.conv_stem.weight"], before["core.encoder.model.conv_stem.weight"])


def test_an_encoder_without_a_rate_stays_as_it_is(model: Path, tmp_path: Path) -> None:
    module = build(make_dataset(), make_recipe(model, train=dataclasses.replace(SHORT, encoder_rate=0.0)))
    before = {key: value.clone() for key, value in module.net.state_dict().items()}
    fit(module, Run(tmp_path / "run"))
    moved = {key for key, value in module.net.state_dict().items() if not torch.equal(value, before[key])}
    assert moved
    assert not [key for key in moved if key.startswith("core.encoder.")]
    assert [key for key in moved if "running" in key]  # those of the decoder


@pytest.mark.filterwarnings("default:toy. no split val")
def test_without_a_split_val_the_last_weights_are_kept(model: Path, tmp_path: Path) -> None:
    whole = make_dataset()
    dataset = dataclasses.replace(whole, splits={k: v for k, v in whole.splits.items() if k != "val"})
    with pytest.raises(DatasetError, match="found no split val, by which training chooses"):
        list_splits(dataset, Recipe())
    train = dataclasses.replace(SHORT, epochs=2, average=0.0, storage="float16")
    with pytest.warns(UserWarning, match="no split val, so nothing is validated and the weights of the last epoch are kept"):
        module = build(dataset, make_recipe(model, train=train))
    fit(module, Run(tmp_path / "run"))
    saved = load_model(tmp_path / "run")
    weights = dict(module.net.named_parameters())
    for key, value in module.net.state_dict().items():
        assert torch.equal(saved.net.state_dict()[key], value.half().float() if key in weights else value)
    assert json.loads((tmp_path / "run" / "model" / "model.json").read_text())["storage"] == "float16"
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["val_macro_f1"], row["val_loss"]) for row in rows] == [("2", "", ""), ("4", "", "")]
    assert all(float(row["train_loss"]) > 0 for row in rows)
    assert json.loads((tmp_path / "run" / "training.json").read_text())["best_val_macro_f1"] is None
    with pytest.raises(SettingsError, match=r"train\.patience is 3, but toy has no split val"):
        build(dataset, make_recipe(model, train=dataclasses.replace(train, patience=3)))


def test_a_packaged_model_is_found_by_its_name(zoo: Path) -> None:
    assert list_packaged() == ["micro-base"]
    assert find_model(Path("micro-base")) == zoo / "micro-base"
    with pytest.raises(ModelError, match=r"micro-bass: .*unknown packaged model 'micro-bass'\. Did you mean 'micro-base'"):
        load_model(Path("micro-bass"))
    with pytest.raises(ModelError, match=r"elsewhere/micro-base: no such run or model folder\."):
        load_model(Path("elsewhere/micro-base"))


def test_a_folder_of_that_name_comes_first(zoo: Path) -> None:
    shutil.copytree(zoo / "micro-base", "micro-base")
    assert find_model(Path("micro-base")) == Path("micro-base")


@pytest.mark.filterwarnings("always::UserWarning")
def test_predict_and_fine_tune_by_name(zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_dataset(tmp_path / "data")
    content = yaml.safe_load((data / "dataset.yaml").read_text())
    content["splits"] = {"train": ["a", "b"], "test": ["c", "d"]}
    (data / "dataset.yaml").write_text(yaml.safe_dump(content))
    assert run("predict", "micro-base", data / "images" / "a.png", "labels.png", "--device", "cpu") == 0
    assert np.asarray(Image.open("labels.png")).shape == (40, 48)
    short = ["--train.epochs", "1", "--train.steps-per-epoch", "2", "--train.device", "cpu", "--train.replay", "0"]
    command = ["train", data, "--out", "mine", "--init", "micro-base", "--config", "fine_tune", *short]
    assert run(*command) == 0
    shown = capsys.readouterr().err
    assert "patches of 32 are used" in shown
    config = yaml.safe_load(Path("mine/config.yaml").read_text())
    assert (config["init"], config["model"]["decoder"], config["train"]["learning_rate"]) == ("micro-base", "linknet", 3e-4)
    assert sorted(path.name for path in Path("mine/scores").iterdir()) == ["test.json", "train.json"]
    assert Path("mine/report.html").is_file()
    # its own config.yaml repeats it, and so does the same command
    assert run("train", "--config", "mine/config.yaml", "--out", "again") == 0
    assert Path("again/model/model.safetensors").read_bytes() == Path("mine/model/model.safetensors").read_bytes()
    assert run(*command) == 0
    # prolonged, and the model named by another path: the weights are the same
    elsewhere = str(zoo / "micro-base")
    command[command.index("--train.epochs") + 1] = "2"
    command[command.index("micro-base")] = elsewhere
    capsys.readouterr()
    assert run(*command) == 0
    assert "the run goes on, with larger train.epochs" in capsys.readouterr().err
    with Path("mine/metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["2", "4"]
    assert yaml.safe_load(Path("mine/config.yaml").read_text())["train"]["epochs"] == 2
    # a run that began with other weights is not gone on with
    capsys.readouterr()
    with torch.no_grad():
        other = load_model(zoo / "micro-base")
        next(other.net.parameters()).mul_(2)
    save_model(other, zoo / "micro-base")
    assert run(*command) == 1
    assert f"mine: the model that this run began with (init {elsewhere}) has other weights now" in capsys.readouterr().err


@pytest.mark.parametrize("name", list_packaged())
def test_packaged_models_are_complete(name: str) -> None:
    folder = find_model(folders.ZOO / name)
    assert load_model(folder).facts["licence"]
    assert (folder / "README.md").read_text().startswith(f"# {name}")
    assert sum(path.stat().st_size for path in folder.iterdir()) < 15e6


def make_own(height: int) -> Dataset:
    """One image of the phantom's classes with two grey values."""
    labels = np.zeros((1, height, 40), np.uint8)
    labels[0, 5:9, 5:9] = 1
    image = np.tile(np.array([1000, 1010], np.uint16), (1, height, 20))
    cutout = Cutout(Volume(image, "mine"), labels)
    return Dataset("mine", ClassSet(CLASSES), {"train": (cutout,), "val": (cutout,)})


@pytest.mark.parametrize("height", [40, 1000])  # fewer and more pixels than the tissue's
def test_replay_draws_synthetic_tissue_to_the_share_asked_for(
    height: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neurotome.datasets.phantom.stream.REPLAYED", 10)
    start = write_model(tmp_path / "model", CLASSES)
    settings = dataclasses.replace(SHORT, replay=0.25)
    module = build(make_own(height), make_recipe(start, train=settings, sample=SampleSettings(patch=16, batch=300)))
    images, _ = module.sampler.draw(0)
    tissue = [len(np.unique(image)) > 2 for image in images]  # the own image has two grey values
    assert tissue == [False] * 225 + [True] * 75
    np.testing.assert_array_equal(images, module.sampler.draw(0)[0])


def test_what_generalises_moves_less(model: Path, tmp_path: Path) -> None:
    rates = {"encoder_rate": 0.0, "average": 0.0, "learning_rate": 0.01}
    for name, changes in (("encoder", rates), ("anchor", {**rates, "anchor": 1e6})):  # drawn back all the way
        module = build(make_dataset(), make_recipe(model, train=dataclasses.replace(SHORT, **changes)))
        before = {key: value.clone() for key, value in module.net.named_parameters()}
        fit(module, Run(tmp_path / name))
        moved = {key for key, value in module.net.named_parameters() if not torch.equal(value, before[key])}
        decoder = {key for key in before if not key.startswith("core.encoder.")}
        assert moved == (decoder if name == "encoder" else set())
    with pytest.raises(SettingsError, match=r"train\.anchor is 1, but there are no weights to stay near"):
        settle_recipe(make_dataset(), make_recipe(model, init="", train=TrainSettings(anchor=1)))


def test_replay_needs_two_patches_a_step_and_a_positive_weight(tmp_path: Path) -> None:
    start = write_model(tmp_path / "model", CLASSES)
    asked = make_recipe(start, train=dataclasses.replace(SHORT, replay=0.5), sample=SampleSettings(patch=16, batch=1))
    with pytest.raises(SettingsError, match=r"sample.batch is 1, but some of the patches"):
        settle_recipe(make_own(40), asked)
    with pytest.raises(SettingsError, match=r"train.replay_weight is 0"):
        settle_recipe(make_own(40), make_recipe(start, train=TrainSettings(replay_weight=0)))


def test_replay_needs_the_phantoms_classes(model: Path) -> None:
    settings = dataclasses.replace(SHORT, replay=0.5)
    with pytest.raises(SettingsError, match=r"train.replay is above 0, but .* has the classes background, cell;"):
        build(make_dataset(), make_recipe(model, train=settings))
