"""A run may die after any file that it writes: the same command again ends as if it had not.

While a run is undisturbed, its folder is copied whenever a file has got its final name: what a kill at that moment leaves,
temporary files of others included. Every copy is then gone on with.
"""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from neurotome.classes import ClassSet
from neurotome.datasets.base import Cutout, Dataset
from neurotome.errors import RunError
from neurotome.experiments.run_network import train_and_score
from neurotome.experiments.run_pixels import fit_and_score
from neurotome.models.model_folder import read_digest
from neurotome.models.networks import ModelSettings
from neurotome.pixels.learners import ForestSettings
from neurotome.pixels.train import BaselineSettings
from neurotome.runs import Run
from neurotome.training.recipe import Recipe, TrainSettings
from neurotome.training.sampler import SampleSettings
from neurotome.volume import Volume

CLASSES = ClassSet(("background", "vessel"))
RECIPE = Recipe(
    model=ModelSettings("linknet", "mobilenetv3_small_050", encoder_depth=3),
    sample=SampleSettings(patch=32, batch=2),
    train=TrainSettings(epochs=1, steps_per_epoch=1, device="cpu"),
)
SETTINGS = BaselineSettings(features="identity", forest=ForestSettings(trees=2))


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(0)
    splits = {}
    for split in ("train", "val", "test"):
        labels = np.zeros((1, 32, 32), np.uint8)
        labels[0, 8:24, 4:20] = 1
        grey = (np.where(labels, 160, 90) + rng.normal(0, 30, labels.shape)).clip(0, 255).astype(np.uint8)
        splits[split] = (Cutout(Volume(grey, split), labels),)
    return Dataset("toy", CLASSES, splits)


def read_result(run):
    """Returns all of a finished run that does not depend on the clock."""
    assert run.is_finished
    metrics = [{key: value for key, value in row.items() if key != "seconds"} for row in run.read_metrics()]
    paths = [run.model / "model.safetensors", *sorted(run.folder.glob("predictions/*/*"))]
    return (
        {str(path.relative_to(run.folder)): path.read_bytes() for path in paths},
        {split: run.read_scores(split) for split in run.list_scored()},
        run.read_record(),
        run.read_config(),
        run.read_importance(),
        metrics,
    )


def check_every_kill_point(work, folder, monkeypatch):
    """Does the work in `folder/run` and copies it to `folder/<n>` after its n-th file; goes on from every copy."""
    copies, replace = [], Path.replace

    def replace_and_copy(path, target):
        replaced = replace(path, target)
        copies.append((folder / str(len(copies)), Path(target).name))
        shutil.copytree(folder / "run", copies[-1][0])
        return replaced

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace_and_copy)
        work(folder / "run")
    expected = read_result(Run(folder / "run"))
    for copy, last in copies:
        try:
            work(copy)
        except Exception as error:
            raise AssertionError(f"killed after {copy.name} files, the last of them {last}: {error}") from error
        assert read_result(Run(copy)) == expected, f"killed after {copy.name} files, the last of them {last}"
        assert not list(copy.rglob(".*partial*")), last
    return [name for _, name in copies]


def test_a_baseline_killed_at_any_moment_ends_the_same(dataset, tmp_path, monkeypatch):
    names = check_every_kill_point(lambda out: fit_and_score(dataset, "toy", out, SETTINGS, "cpu"), tmp_path, monkeypatch)
    for name in (
        "config.yaml",
        "run.json",
        "model.next.json",
        "model.safetensors",
        "importance.json",
        "test.json",
        "test.png",
    ):
        assert name in names


@pytest.mark.slow
def test_a_training_killed_at_any_moment_ends_the_same(dataset, tmp_path, monkeypatch):
    names = check_every_kill_point(lambda out: train_and_score(dataset, "toy", out, RECIPE), tmp_path, monkeypatch)
    assert names.count("step-1.ckpt") >= 2
    for name in ("config.yaml", "run.json", "model.safetensors", "metrics.csv", "training.json", "test.json", "test.png"):
        assert name in names


@pytest.mark.slow
def test_a_finished_run_is_prolonged_and_scored_again(dataset, tmp_path):
    run = train_and_score(dataset, "toy", tmp_path / "run", RECIPE)
    before = run.read_scores("test")
    longer = dataclasses.replace(RECIPE, train=dataclasses.replace(RECIPE.train, epochs=2))
    with pytest.warns(UserWarning, match=r"the run goes on, with larger train\.epochs"):
        train_and_score(dataset, "toy", tmp_path / "run", longer)
    assert run.is_finished
    assert [row["epoch"] for row in run.read_metrics()] == [0, 1]
    assert run.read_config()["train"]["epochs"] == 2
    after = run.read_scores("test")["made_from"]
    assert after["data_sha256"] == before["made_from"]["data_sha256"]
    assert after["weights_sha256"] == read_digest(run.folder)


def test_a_finished_run_that_lacks_what_it_needs_says_so_and_stays(dataset, tmp_path):
    run = train_and_score(dataset, "toy", tmp_path / "run", RECIPE)
    shutil.rmtree(run.checkpoints)
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    longer = dataclasses.replace(RECIPE, train=dataclasses.replace(RECIPE.train, epochs=2))
    with pytest.raises(RunError, match=r"its checkpoints are gone, so it cannot go on with larger train\.epochs.*--init"):
        train_and_score(dataset, "toy", run.folder, longer)
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before
    train_and_score(dataset, "toy", run.folder, RECIPE)  # needs none
    weights = run.model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(RunError, match=r"damaged.*Restore .*model from a copy, or train in a new --out"):
        train_and_score(dataset, "toy", run.folder, RECIPE)
    shutil.rmtree(run.model)
    with pytest.raises(RunError, match=r"found no model, though the training is finished\. Restore"):
        train_and_score(dataset, "toy", run.folder, RECIPE)


def test_a_kill_before_the_first_file_is_gone_on_from(dataset, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.7.aaaa.partial.yaml").write_text("half")
    fit_and_score(dataset, "toy", tmp_path / "run", SETTINGS, "cpu")
    assert Run(tmp_path / "run").is_finished
