"""A grid within a time: what is measured, left out, made smaller, predicted and said."""

import dataclasses
import json
import math
import statistics
import time

import pytest

from conftest import build, make_dataset, run, write_dataset
from neurotome.errors import ModelError, SettingsError
from neurotome.experiments.grids import budget
from neurotome.experiments.grids.adapt import adapt_plan
from neurotome.experiments.grids.budget import Costs, scale_plan
from neurotome.experiments.grids.grid import GridResult
from neurotome.experiments.grids.measure import (
    NetSpeed,
    PixelSpeed,
    cut_piece,
    fill_in,
    measure_all,
    measure_network,
    measure_pixels,
    split_time,
)
from neurotome.experiments.grids.plan import read_grid
from neurotome.models.networks import ModelSettings
from neurotome.training.recipe import Recipe, TrainSettings
from neurotome.training.sampler import SampleSettings
from neurotome.training.timing import time_steps

SMALL = ModelSettings("linknet", "mobilenetv3_small_050", encoder_depth=3)


def make_plan(tmp_path, *runs, **recipes):
    content = {"recipes": recipes or {"ours": {}}, "runs": list(runs)}
    (tmp_path / "grid.yaml").write_text(json.dumps(content))
    return read_grid(tmp_path / "grid.yaml")


@pytest.fixture
def price(monkeypatch):
    """Makes every network take a second per 64 x 64 pixels of a step and nothing else, unless said otherwise."""

    def set_price(pixel=1 / 64**2, row=0.0, **slower):
        learners = PixelSpeed(0.0, row, 0.0, 0.0)

        def cost(runs, dataset, deadline):
            speeds = {budget._key(run): run.settings.get("model", {}).get("encoder") for run in runs}
            nets = {
                key: NetSpeed(0.0, 0.0, pixel * slower.get(encoder, 1), 0.0) for key, encoder in speeds.items() if encoder
            }
            return Costs(nets, {key: learners for key, encoder in speeds.items() if not encoder}, dataset, 0.0)

        monkeypatch.setattr(budget, "measure_costs", cost)

    return set_price


TOY = {"sample": {"patch": 32, "batch": 2}, "train": {"device": "cpu", "epochs": 10, "steps_per_epoch": 100}}


def test_a_grid_that_fits_stays_as_it_is(tmp_path, price, capsys):
    price()  # half a second a step of 2 x 32 x 32 pixels: 500 s
    plan = make_plan(tmp_path, {"model.encoder": "resnet18"}, ours=TOY)
    assert scale_plan(plan, make_dataset(), 600) == plan
    assert "predict: 1 run, 8 min 20 s" in capsys.readouterr().err


def test_all_networks_train_for_the_same_time_within_the_budget(tmp_path, price):
    price(resnet50=4)
    entries = {"model.encoder": ["resnet18", "resnet50"]}, {"kind": "pixels", "learner": "rf"}
    plan = make_plan(tmp_path, *entries, ours=TOY)
    scaled = scale_plan(plan, make_dataset(), 300)
    first, second, forest = scaled.runs
    assert forest == plan.runs[2]
    # 270 s without the reserve, less a step of each, 0.5 and 2 s: 133.75 s for each, up to what this test itself took
    seconds = [float(run.settings["train"]["max_time"].removesuffix("s")) for run in (first, second)]
    assert seconds[0] == seconds[1] == pytest.approx(133.75, abs=2)
    # the steps that were asked for stay, so that time ends the training
    for network, share in ((first, 0.5), (second, 2.0)):
        train = network.build().train
        assert train.steps_per_epoch * train.epochs >= 1000
        assert train.steps_per_epoch == math.ceil(math.ceil(seconds[0] / share) / 6)  # epochs of 20 s at least
    assert "Every network trains for 2 min" in scaled.scaled[-1]
    assert scaled.asked == plan.asked


def test_optional_runs_go_first_and_the_highest_before_the_others(tmp_path, price):
    price()
    entries = [{"model.encoder": encoder, "optional": level} for level, encoder in enumerate(("resnet18", "resnet34"))]
    entries.append({"model.encoder": "resnet50", "optional": 2})
    plan = make_plan(tmp_path, *entries, ours=TOY)
    # 40 steps of half a second for each: 20 s, so 90 s are enough for three, 50 s for two and 30 s for one
    for seconds, left in ((90, 3), (50, 2), (30, 1)):
        scaled = scale_plan(plan, make_dataset(), seconds)
        assert scaled.runs[-1].name == plan.runs[left - 1].name
        assert len(scaled.runs) == left
        assert all(run.build().sample.patch == 32 for run in scaled.runs)
    assert "2 of 3 runs are left out, which are optional: ours/unet-resnet34, ours/unet-resnet50." in scaled.scaled
    again = make_plan(tmp_path, *entries, {"model.encoder": "resnet18", "seeds": [1, 2], "optional": 3}, ours=TOY)
    assert "2 of 5 runs are left out, which are optional: 2 further seeds." in scale_plan(again, make_dataset(), 90).scaled


def test_batches_and_then_patches_shrink_for_a_whole_recipe(tmp_path, price):
    price(resnet50=3)
    large, small = ({"sample": {"patch": patch, "batch": 64}, "train": TOY["train"]} for patch in (128, 64))
    entry = {"model.encoder": ["resnet18", "resnet50"], "recipe": ["large", "small"]}
    plan = make_plan(tmp_path, entry, large=large, small=small)
    # a step of 64 takes 768 and 192 s for resnet50; of 8, 96 and 24 s; 8 patches of 64 x 64 24 s. 40 of these: 960 s
    scaled = scale_plan(plan, make_dataset(), 5000)
    assert [(run.build().sample.batch, run.build().sample.patch) for run in scaled.runs] == [(8, 64)] * 4
    said = " ".join(scaled.scaled)
    for words in ("large: 8 patches per step instead of 64", "large: patches of 64 x 64 pixels instead of 128 x 128"):
        assert words in said
    assert "small: 8 patches" in said
    assert "small: patches" not in said
    # with four times as long only the batches
    scaled = scale_plan(plan, make_dataset(), 20000)
    assert [(run.build().sample.batch, run.build().sample.patch) for run in scaled.runs] == [(8, 128)] * 2 + [(8, 64)] * 2


def test_a_budget_too_small_for_a_step_is_refused(tmp_path, price):
    price(pixel=10 / 64**2)
    plan = make_plan(tmp_path, {"model.encoder": ["resnet18", "resnet34"]}, ours=TOY)
    with pytest.raises(SettingsError, match=r"the budget is 10 s; expected at least about 2\d s"):
        scale_plan(plan, make_dataset(), 10)


def test_classifiers_learn_less_where_they_take_too_long(tmp_path, price):
    price(row=1.0)  # a second for each pixel that is learned
    plan = make_plan(tmp_path, {"model.encoder": "resnet18"}, {"kind": "pixels", "pixels_per_class": 4000}, ours=TOY)
    scaled = scale_plan(plan, make_dataset(slices=4), 8000)  # of whose 7200 s classifiers may take 1080
    assert scaled.runs[1].settings["pixels_per_class"] == 1000
    assert "Pixel classifiers learn from 1,000 pixels of each class." in scaled.scaled


def test_training_images_are_not_scored_where_that_takes_too_long(tmp_path, price, monkeypatch):
    price()
    monkeypatch.setattr(Costs, "time_scoring", lambda self, run: 100.0 * len(run.splits))
    plan = make_plan(tmp_path, {"model.encoder": "resnet18", "splits": ["train", "test"]}, ours=TOY)
    assert scale_plan(plan, make_dataset(), 600).runs[0].splits == ("test",)
    assert scale_plan(plan, make_dataset(), 1000).runs[0].splits == ("train", "test")


def test_a_training_whose_last_weights_are_kept_is_hardly_validated(tmp_path, price):
    price()
    last = {**TOY, "train": {**TOY["train"], "keep": "last"}}
    plan = make_plan(tmp_path, {"model.encoder": "resnet18"}, last=last, best=TOY)
    kept = [run.settings["train"]["val_slices"] for run in scale_plan(plan, make_dataset(slices=3), 300).runs]
    assert kept == [1, 0]


def test_speeds_are_measured_within_their_time_and_filled_in(tmp_path):
    plan = make_plan(tmp_path, {"model.encoder": ["resnet18", "resnet34", "resnet50"]}, ours=TOY)
    runs = {run.label: run for run in plan.runs}
    speeds = iter((NetSpeed(1, 2, 3, 9), NetSpeed(2, 1, 5, 1)))

    def measure(run):
        if "34" in run.label:
            raise ModelError("cannot be built")
        return next(speeds)

    found = measure_all(runs, measure, "measuring", time.monotonic() + 60)
    assert list(found) == ["unet-resnet18", "unet-resnet50"]
    assert fill_in(found, runs)["unet-resnet34"] == NetSpeed(2, 2, 5, 9)  # as slow as the slowest in everything
    speeds = iter([NetSpeed(1, 1, 1, 1)])
    assert list(measure_all(runs, measure, "measuring", 0.0)) == ["unet-resnet18"]  # one although it is late
    assert fill_in({}, runs) == {}


def test_networks_of_the_same_build_and_arithmetic_are_measured_once(tmp_path):
    stated = {"model": {"decoder": "unet", "encoder": "resnet18", "in_channels": 1}, "train": {"precision": "32"}}
    entries = {"label": "a"}, {"label": "b", "train.precision": "bf16"}
    plan = make_plan(tmp_path, *entries, ours={"train": {"precision": "32"}}, stated=stated)
    keys = [budget._key(run) for run in plan.runs]
    assert keys[0] == keys[1] == "unet resnet18 1 5 32-true"
    assert keys[2] == keys[3] == "unet resnet18 1 5 bf16-mixed"


def test_the_time_of_a_step_is_split_into_what_pixels_add_and_the_rest():
    assert split_time({100: 2.0, 300: 4.0}) == pytest.approx((1.0, 0.01))
    assert split_time({100: 5.0, 300: 4.0}) == (0.0, 4.0 / 300)
    assert split_time({300: 6.0}) == (0.0, 0.02)
    assert split_time({100: 1.0, 300: 6.0}) == (0.0, 0.02)  # no step takes less than nothing


def test_a_network_and_a_classifier_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("neurotome.models.net.measure_halo", lambda *_: (64, True))
    ours = {**TOY, "model": dataclasses.asdict(SMALL)}
    plan = make_plan(tmp_path, {"recipe": "ours"}, {"kind": "pixels", "learner": "lr"}, ours=ours)
    speed = measure_network(make_dataset(), plan.runs[0])
    assert min(speed.prepare, speed.pixel, speed.predict) > 0 <= speed.step
    pixels = measure_pixels(make_dataset(), plan.runs[1])
    assert min(pixels.pixel, pixels.predict, pixels.classify) > 0 <= pixels.row


def test_steps_are_timed_in_groups_and_after_others():
    recipe = Recipe(model=SMALL, sample=SampleSettings(patch=32, batch=2), train=TrainSettings(device="cpu"))
    module = build(make_dataset(), recipe)
    first = time_steps(module, groups=2, group=3, warmup=1)
    assert (len(first.seconds), module.step, first.peak_memory_bytes >= 0) == (2, 7, True)
    again = time_steps(module, groups=3)
    assert (len(again.seconds), module.step) == (3, 4)
    assert 0 < statistics.median(again.seconds) < 60


def test_a_piece_has_every_split_and_more_than_one_class():
    piece = cut_piece(make_dataset(slices=3))
    assert {split: len(cutouts) for split, cutouts in piece.splits.items()} == {"train": 1, "val": 1, "test": 1}
    assert piece.split("train")[0].volume.shape == (1, 48, 64)


def test_what_the_data_cannot_give_is_replaced_and_said(tmp_path, monkeypatch):
    def refuse(settings, classes):
        assert settings.encoder_weights == "imagenet"
        raise ModelError("not in the cache")

    monkeypatch.setattr("neurotome.experiments.grids.adapt.build_network", refuse)
    listed = {
        "model": {"encoder_weights": "imagenet"},
        "sample": {"patch": 256},
        "loss": {"class_weights": [0.1, 0.3, 0.3, 0.2]},
    }
    plan = make_plan(tmp_path, {"model.encoder": "resnet18"}, {"kind": "pixels"}, listed=listed)
    adapted = adapt_plan(plan, make_dataset())
    run, forest = adapted.runs
    assert forest == plan.runs[1]
    assert (run.build().sample.patch, run.build().loss.class_weights) == (32, "balanced")
    assert run.build().model.encoder_weights == "none"
    assert len(adapted.scaled) == 3
    assert adapt_plan(make_plan(tmp_path, {"model.encoder": "resnet18"}), make_dataset()).scaled == ()


def test_the_command_scales_a_new_grid_and_goes_on_with_an_old_one(tmp_path, price, monkeypatch, capsys):
    price()
    write_dataset(tmp_path / "data")
    plan, started = make_plan(tmp_path, {"model.encoder": ["resnet18", "resnet34"]}, ours=TOY), []

    def note(plan, data, out):
        started.append(plan)
        return GridResult(plan, out, (), {})

    monkeypatch.setattr("neurotome.experiments.grids.grid.run_grid", lambda plan, data, out, reports: note(plan, data, out))
    command = ["grid", tmp_path / "grid.yaml", "--data", tmp_path / "data", "--out", tmp_path / "out"]
    assert run(*command, "--budget", "soon") == 1
    assert "budget is 'soon'; expected a time" in capsys.readouterr().err
    run(*command, "--budget", "5m")
    assert all(run.build().train.max_seconds for run in started[0].runs)
    assert "note: Every network trains for" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "grid.json").write_text("{}")  # whose plan run_grid goes on with
    run(*command, "--budget", "5m")
    assert started[1] == plan
