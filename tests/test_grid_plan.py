"""A grid's file: what becomes of it, and what is refused."""

import json

import pytest

from neurotome.errors import SettingsError
from neurotome.experiments.grids.plan import Plan, read_grid
from neurotome.pixels.train import BaselineSettings
from neurotome.training.recipe import Recipe

GRID = """
recipes:
  plain: {train: {optimizer: adam, learning_rate: 1e-3}}
  two: [fine_tune, {train.epochs: 7}]
runs:
  - recipe: [plain, two]
    label: "{decoder}-{encoder}-{terms}-lr{learning_rate}"
    model.decoder: [unet, linknet]
    loss.terms: [focal, cross_entropy + dice]
    train.learning_rate: 3e-2
  - recipe: plain
    model: {decoder: fpn}
    loss.class_weights: [[0.1, 0.9], none]
    loss.terms: cross_entropy
    seeds: [3]
    splits: [test, train]
    optional: 2
  - kind: pixels
    learner: [lr, rf]
seeds: [0, 1]
"""


@pytest.fixture
def read(tmp_path):
    def read(text, **given):
        (tmp_path / "grid.yaml").write_text(text)
        return read_grid(tmp_path / "grid.yaml", **given)

    return read


def test_entries_are_products_of_their_lists(read):
    plan = read(GRID)
    runs = {run.name: run for run in plan.runs}
    assert len(runs) == len(plan.runs) == 2 * 2 * 2 * 2 + 2 + 2 * 2
    run = runs["plain/linknet-resnet18-cross_entropy-dice-lr3e-2/seed-1"]
    assert (run.method, run.recipe) == ("plain/linknet-resnet18-cross_entropy-dice-lr3e-2", "plain")
    assert (run.seed, run.fold, run.splits, run.optional) == (1, None, ("val", "test"), 0)
    recipe = run.build()
    assert isinstance(recipe, Recipe)
    assert (recipe.model.decoder, recipe.loss.terms, recipe.train.seed) == ("linknet", "cross_entropy + dice", 1)
    assert (recipe.train.optimizer, recipe.train.learning_rate) == ("adam", 0.03)  # the entry wins over the recipe
    two = runs["two/unet-resnet18-focal-lr3e-2/seed-0"].build()
    assert (two.train.epochs, two.train.freeze_statistics) == (7, True)  # the recipe's second part, and its first
    weighted = runs["plain/fpn-resnet18-0.1-0.9/seed-3"]
    assert weighted.build().loss.class_weights == (0.1, 0.9)
    assert (weighted.splits, weighted.optional) == (("train", "test"), 2)
    forest = runs["pixels/rf/seed-1"].build()
    assert isinstance(forest, BaselineSettings)
    assert (forest.learner, forest.seed) == ("rf", 1)


def test_equal_settings_make_one_run(read):
    plan = read(
        "runs:\n"
        "  - {model.decoder: [unet, linknet], optional: 1, splits: [test]}\n"
        "  - {model.decoder: unet, label: same, splits: [val]}\n"
    )
    assert [run.name for run in plan.runs] == ["default/unet-resnet18/seed-0", "default/linknet-resnet18/seed-0"]
    assert [(run.splits, run.optional) for run in plan.runs] == [(("val", "test"), 0), (("test",), 1)]


def test_folds_multiply_runs(read):
    plan = read("runs: [{kind: pixels}]\nfolds: 2\n", folds=3)
    assert [(run.name, run.fold) for run in plan.runs] == [(f"pixels/rf/seed-0-fold-{fold}", fold) for fold in range(3)]
    assert {run.method for run in plan.runs} == {"pixels/rf"}
    assert plan.folds == 3


def test_a_plan_survives_its_file(read):
    plan = read(GRID)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


REFUSED = {
    "run: []": "unknown key 'run'. Did you mean 'runs'",
    "seeds: [0]": "runs is None; expected a list",
    "runs: [{modle.decoder: unet}]": "entry 1 of runs: unknown setting 'modle'. Did you mean 'model'",
    "runs: [{model.decodr: unet}]": "unknown field of model 'decodr'. Did you mean 'decoder'",
    "runs: [{train.epochs: many}]": "train.epochs is 'many'; expected int",
    "runs: [{train.epochs: 0}]": "train.epochs is 0; out of range",
    "runs: [{train.epochs: []}]": "train.epochs is an empty list",
    "runs: [{loss.terms: focl}]": "Did you mean 'focal'",
    "runs: [{learner: rf}]": "unknown setting 'learner'",
    "runs: [{kind: pixels, learner: svm}]": "svm",
    "runs: [{kind: pixel}]": "unknown kind 'pixel'. Did you mean 'pixels'",
    "runs: [{recipe: mine}]": "unknown recipe 'mine'",
    "recipes: {a: no_such}\nruns: [{}]": "recipe a no_such: no such file",
    "recipes: {a: {train: {epoch: 1}}}\nruns: [{}]": "recipe a: unknown field of train 'epoch'",
    "recipes: {../a: {}}\nruns: [{}]": "expected settings by name",
    "runs: [{label: '{decodr}'}]": "unknown setting 'decodr'. Did you mean 'decoder'",
    "runs: [{label: same, model.decoder: [unet, fpn]}]": "another run named default/same/seed-0",
    "runs: [{train.seed: 3}]": "expected the seeds of runs under seeds",
    "runs: [{splits: [tset]}]": "splits is ['tset']",
    "runs: [{}]\nseeds: [a]": "seeds is ['a']",
    "runs: [{}]\nfolds: 1": "folds is 1",
    "runs: [3]": "entry 1 of runs is 3",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_be_run_is_refused(text, read):
    with pytest.raises(SettingsError) as error:
        read(text)
    assert REFUSED[text] in str(error.value)


def test_a_grid_that_is_not_there(tmp_path):
    with pytest.raises(SettingsError, match="grid fine_tun: no such file, and unknown built-in config"):
        read_grid("fine_tun")
