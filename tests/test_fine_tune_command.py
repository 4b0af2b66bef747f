"""neurotome fine-tune: how far to go from a model's weights towards those that a few images have taught it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import neurotome.experiments.fine_tune as command
from conftest import run, write_dataset
from neurotome.classes import ClassSet
from neurotome.datasets.base import Cutout, Dataset
from neurotome.datasets.phantom.make import CLASSES
from neurotome.errors import DatasetError, ImageError, ModelError, SettingsError
from neurotome.keywords import replace_settings
from neurotome.models.model_folder import load_model, save_model
from neurotome.models.net_predictor import NetPredictor, mix
from neurotome.models.networks import ModelSettings, build_network
from neurotome.normalize import Normalization
from neurotome.runs import Run
from neurotome.training.recipe import Recipe
from neurotome.volume import Volume

FOUR = ClassSet(CLASSES)
NETWORK = ModelSettings("linknet", "mobilenetv3_small_050", in_channels=1, encoder_depth=3)
RECIPE = replace_settings(
    command.RECIPE, {"train": {"epochs": 1, "steps_per_epoch": 1, "device": "cpu"}, "sample": {"patch": 32, "batch": 2}}
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("base") / "model"
    net = build_network(NETWORK, len(CLASSES))
    save_model(NetPredictor(net, NETWORK, FOUR, Normalization("tissue", 100, 25, "uint8"), 64), folder)
    return folder


@pytest.fixture(autouse=True)
def little_tissue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neurotome.datasets.phantom.stream.REPLAYED", 1)
    monkeypatch.setattr(command, "make_checked", lambda depth, seed: (make_cutout("tissue"),))


def make_cutout(name: str, ids: tuple[int, ...] = (0, 1, 2, 3)) -> Cutout:
    """Stripes of the four classes, of which some may be not labelled."""
    labels = np.tile(np.repeat(np.arange(4, dtype=np.uint8), 8), (1, 40, 2))
    grey = np.array([120, 20, 60, 160])[labels] + np.random.default_rng(len(name)).normal(0, 8, labels.shape)
    return Cutout(Volume(grey.clip(0, 255).astype(np.uint8), name), np.where(np.isin(labels, ids), labels, 255))


def make_patches(*names: str, **more: Any) -> Dataset:
    return Dataset("mine", FOUR, {"train": tuple(map(make_cutout, names))}, **more)


class Trainer:
    """Stands for the training: the weights that it comes to depend on the images alone, and it may be killed."""

    def __init__(self, base: Path) -> None:
        self.base, self.seen, self.kills = base, [], 0

    def __call__(self, dataset: Dataset, name: str, out: Path, recipe: Recipe, **_: Any) -> Run:
        found = Run(out)
        if found.is_finished:
            return found
        self.seen.append([cutout.name for cutout in dataset.split("train")])
        if self.kills == len(self.seen):
            raise KeyboardInterrupt
        predictor = load_model(self.base)
        with torch.no_grad():
            predictor.net.core.segmentation_head[0].bias[len(self.seen[-1])] += 3
        save_model(predictor, found.model)
        found.write_metrics([{"epoch": 0, "step": 1}])
        found.write_training({"finished": True, "device": "cpu", "precision": "32-true", "epochs": 1, "steps": 1})
        return found


@pytest.fixture
def trainer(base: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    stand_in = Trainer(base)
    monkeypatch.setattr(command, "train_and_score", stand_in)
    return stand_in


def tune(dataset: Dataset, base: Path, out: Path) -> Run:
    return command.tune_and_score(command.choose_images(dataset), "mine", out, dataclasses.replace(RECIPE, init=str(base)))


def test_each_image_is_left_out_once_and_the_test_never_looked_at(base: Path, trainer: Trainer, tmp_path: Path) -> None:
    a, b, c = map(make_cutout, "abc")
    patches = Dataset("mine", FOUR, {"train": (a,), "val": (b,), "test": (c,)})
    made = tune(patches, base, tmp_path / "run")
    assert trainer.seen == [["b"], ["a"], ["a", "b"]]
    choice = (made.read_training() or {})["fine_tuning"]
    assert [part["images"] for part in choice["parts"]] == [["a"], ["b"]]
    assert set(choice["left_out"]) == set(choice["tissue"]) == {"0.0", "0.25", "0.5", "0.75", "1.0"}
    saved = load_model(made.folder)
    assert saved.facts["fine_tuning"] == choice
    bias = saved.net.core.segmentation_head[0].bias - load_model(base).net.core.segmentation_head[0].bias
    np.testing.assert_allclose(bias.detach(), [0, 0, 3 * choice["alpha"], 0], atol=1e-6)
    assert made.list_scored() == ["train", "test"]
    assert not (made.folder / "parts").exists()
    assert "(kept)" in command.describe_choice(choice)
    # all is done
    assert tune(patches, base, tmp_path / "run").is_finished
    assert len(trainer.seen) == 3


def test_killed_it_goes_on_with_the_part_it_was_at(
    base: Path, trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "ALPHAS", (0.0, 1.0))
    monkeypatch.setattr(command, "score_splits", lambda *_: None)
    trainer.kills = 2
    with pytest.raises(KeyboardInterrupt):
        tune(make_patches("a", "b"), base, tmp_path / "run")
    trainer.kills = 0
    made = tune(make_patches("a", "b"), base, tmp_path / "run")
    assert trainer.seen == [["b"], ["a"], ["a"], ["a", "b"]]
    assert [part["images"] for part in (made.read_training() or {})["fine_tuning"]["parts"]] == [["a"], ["b"]]


def make_counts(right: int) -> np.ndarray:
    """A confusion matrix of 100 pixels of class 0 and 100 of class 1, of each of which so many are right."""
    wrong = 100 - right
    return np.array([[right, wrong, 0, 0], [wrong, right, 0, 0], [0] * 4, [0] * 4])


@pytest.mark.parametrize(
    ("left_out", "tissue", "alpha"),
    [
        ([50, 60, 70, 80, 75], [], 0.75),
        ([50, 60, 70, 80, 75], [90, 90, 90, 87, 80], 0.5),  # at 0.75 more than two hundredths of the tissue are forgotten
        ([50, 50, 50, 50, 50], [90] * 5, 0.0),  # nothing is gained
        ([50, 60, 70, 80, 75], [90, 80, 80, 80, 80], 0.0),
        ([], [90] * 5, 0.5),
        ([], [90, 90, 80, 80, 80], 0.25),
    ],
)
def test_the_choice_is_the_best_of_those_that_forget_little(left_out: list[int], tissue: list[int], alpha: float) -> None:
    parts, kept = (dict(zip(command.ALPHAS, map(make_counts, right), strict=False)) for right in (left_out, tissue))
    assert command.choose_alpha([parts] if parts else [], kept, FOUR) == alpha


def test_groups_stay_together_and_one_image_is_cut_into_quarters() -> None:
    five = [make_cutout(name) for name in "abcde"]
    parts = command.leave_out(five, {}, FOUR)
    assert [[c.name for c in unseen] for _, unseen in parts] == [["a", "e"], ["b"], ["c"], ["d"]]
    assert [len(seen) for seen, _ in parts] == [3, 4, 4, 4]
    parts = command.leave_out(five, {"a": "x", "b": "x", "c": "y", "d": "y", "e": "y"}, FOUR)
    assert [[c.name for c in unseen] for _, unseen in parts] == [["a", "b"], ["c", "d", "e"]]
    one = make_cutout("a")
    parts = command.leave_out([one, make_cutout("unlabelled", ())], {}, FOUR)
    assert len(parts) == 4
    hidden = [np.asarray(unseen[0].labels) for _, unseen in parts]
    assert [int((labels != 255).sum()) for labels in hidden] == [20 * 32] * 4
    for (seen, _), labels in zip(parts, hidden, strict=True):
        np.testing.assert_array_equal(np.where(labels == 255, seen[0].labels, labels), one.labels)
    corner = np.full_like(one.labels, 255)
    corner[0, :5, :5] = 1
    assert command.leave_out([Cutout(one.volume, corner)], {}, FOUR) == []


def test_images_without_stated_splits_are_all_learned() -> None:
    a, b, c = map(make_cutout, "abc")
    made = Dataset("mine", FOUR, {"train": (a,), "val": (b,), "test": (c,)}, wholes=(a, b, c))
    assert command.choose_images(made).splits == {"train": (a, b, c)}
    assert command.choose_images(dataclasses.replace(made, wholes=())).splits == {"train": (a, b), "test": (c,)}


def test_the_weights_lie_between_and_counts_are_the_new_ones(base: Path) -> None:
    old, new = load_model(base), load_model(base)
    with torch.no_grad():
        for tensor in new.net.state_dict().values():
            tensor.add_(4)
    mixed = mix(old, new, 0.25)
    for name, tensor in mixed.net.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, old.net.state_dict()[name] + 1)
        else:
            assert torch.equal(tensor, new.net.state_dict()[name])


def test_what_cannot_be_learned_from_is_refused_before_anything_is_written(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(DatasetError, match="all pixels of split 'train' have the ignore value 255"):
        tune(Dataset("mine", FOUR, {"train": (make_cutout("a", ()),)}), base, out)
    grey = Cutout(Volume(np.full((1, 40, 64), 7, np.uint8), "flat"), make_cutout("a").labels)
    with pytest.raises(ImageError, match=r"flat: every pixel is 7; a constant image has no scale\."):
        tune(Dataset("mine", FOUR, {"train": (make_cutout("a"), grey)}), base, out)
    assert not out.exists()


def test_own_classes_have_no_tissue_to_see_again(base: Path, trainer: Trainer, tmp_path: Path) -> None:
    trainer.kills = 1
    folder = tmp_path / "model"
    own = ClassSet(("background", "vessel", "cell", "axon"))
    save_model(dataclasses.replace(load_model(base), classes=own), folder)
    patches = dataclasses.replace(make_patches("a"), classes=own)
    with (
        pytest.warns(UserWarning, match="mine: there is no synthetic tissue of its classes"),
        pytest.raises(KeyboardInterrupt),
    ):
        tune(patches, folder, tmp_path / "run")


@pytest.mark.parametrize(
    ("names", "advice"),
    [
        (("background", "vessel", "cell", "axon"), "blood vessel is called otherwise there, or is missing"),
        (("background", "cell", "blood vessel", "axon"), "the same names in another order"),
        (("background", "cell"), "blood vessel, axon are called otherwise there, or are missing"),
    ],
)
def test_other_classes_are_answered_with_what_to_do(names: tuple[str, ...], advice: str, base: Path, tmp_path: Path) -> None:
    patches = dataclasses.replace(make_patches("a"), classes=ClassSet(names))
    with pytest.raises(ModelError, match=advice):
        tune(patches, base, tmp_path / "run")


def test_the_command_line_begins_with_the_built_in_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Recipe] = []

    def stop(dataset: Dataset, name: str, out: Path, recipe: Recipe) -> Run:
        found.append(recipe)
        raise SettingsError("seen")

    monkeypatch.setattr(command, "tune_and_score", stop)
    own = tmp_path / "own.yaml"
    own.write_text("train: {epochs: 2}\nsample: {batch: 3}")
    data = write_dataset(tmp_path / "data")
    for more in ([], ["--config", own], ["--config", own, "--train.epochs", "7", "--init", "mine"]):
        assert run("fine-tune", data, "--out", tmp_path / "run", *more) == 1
    assert found[0] == command.RECIPE
    assert found[1] == replace_settings(command.RECIPE, {"train": {"epochs": 2}, "sample": {"batch": 3}})
    assert found[2] == replace_settings(found[1], {"train": {"epochs": 7}, "init": "mine"})
