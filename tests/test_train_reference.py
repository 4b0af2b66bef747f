"""train and evaluate: one grey scale for a dataset whose images share it, or that of a reference, which the model keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import build
from neurotome.classes import ClassSet
from neurotome.datasets.base import Cutout, CutoutSource, Dataset
from neurotome.datasets.scales import scale_dataset
from neurotome.errors import RunError, SettingsError
from neurotome.experiments import evaluate as evaluating
from neurotome.models.networks import ModelSettings
from neurotome.normalize import Normalization, measure_tissue
from neurotome.reference import identify_reference
from neurotome.runs import Run, record_run
from neurotome.training.prepare import settle_recipe
from neurotome.training.recipe import Recipe, TrainSettings
from neurotome.training.sampler import PatchSampler, SampleSettings
from neurotome.volume import Volume
from test_predict_reference import Bright
from test_shared_scale import make_scene, write

CLASSES = ClassSet(("background", "axon"))
TISSUE = Normalization("tissue", 100, 25, "uint8")
RECIPE = Recipe(
    ModelSettings(decoder="linknet", encoder="mobilenetv3_small_050", encoder_depth=3),
    SampleSettings(patch=32, batch=2),
    train=TrainSettings(normalization="tissue", keep="last", device="cpu"),
)


def make_dataset(whites: dict[str, tuple[float, ...]]) -> Dataset:
    """Images by split, of the shares of white matter that are named; what is white matter is labelled so."""

    def make_cutout(name: str, white: float, seed: int) -> Cutout:
        grey = make_scene(white, seed)[None]
        return Cutout(Volume(grey, name), (grey > 140).astype(np.uint8))

    splits = {
        split: tuple(
            make_cutout(f"{split}{number}", white, seed)
            for number, (seed, white) in enumerate(enumerate(shares, len(split)))
        )
        for split, shares in whites.items()
    }
    return Dataset("toy", CLASSES, splits)


def test_a_dataset_is_trained_on_one_scale_and_scored_on_it() -> None:
    dataset = make_dataset({"train": (0.1, 0.2, 1.0), "val": (0.1,), "test": (1.0,)})
    module = build(dataset, RECIPE)
    scales = module.sampler.pools[0].scales
    assert scales[0] == scales[2] == next(iter(module.scales.values()))
    for split in dataset.splits:
        alone = measure_tissue(dataset.split(split)[-1].volume)
        found = scale_dataset(TISSUE, dataset, split).scale_for(dataset.split(split)[-1].volume)
        assert abs(found.mean - scales[0].mean) < 0.4 * found.std
        assert split == "val" or found.mean < alone.mean - 0.5 * found.std


def test_white_matter_alone_is_scored_by_a_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluating, "load_predictor", lambda *_: Bright())
    monkeypatch.setattr(evaluating, "read_digest", lambda _: "0" * 64)
    dataset = make_dataset({"test": (1.0, 0.95)})
    reference = write(tmp_path / "reference", [make_scene(0.1, 20), make_scene(0, 21)])
    pooled = evaluating.evaluate("m", data=dataset)
    measured = evaluating.evaluate("m", data=dataset, reference=str(reference))
    assert pooled["per_class"]["axon"]["recall"] < 0.4
    assert measured["per_class"]["axon"]["recall"] > 0.9
    assert "2 images share a grey scale" in pooled["grey_scale"][0]
    assert "fit the reference: tissue at grey" in measured["grey_scale"][0]
    assert pooled["made_from"] != measured["made_from"]
    monkeypatch.setattr(Bright, "normalization", Normalization("image", 100, 25, "uint8"))
    with pytest.raises(SettingsError, match="scales grey values by 'image'"):
        evaluating.evaluate("m", data=dataset, reference=str(reference))


def test_a_model_keeps_its_reference(tmp_path: Path) -> None:
    reference = write(tmp_path / "reference", [make_scene(0.1, 20), make_scene(0, 21)])
    dataset = make_dataset({"train": (1.0, 0.9)})
    recipe = replace(RECIPE, train=replace(RECIPE.train, reference=str(reference)))
    module = build(dataset, recipe)
    kept = module.predictor.normalization
    assert kept.reference is not None
    assert str(reference) in kept.reference.source
    assert module.sampler.pools[0].scales == [kept.reference] * 2
    each = build(dataset, replace(RECIPE, train=replace(RECIPE.train, reference="own")))
    assert each.sampler.pools[0].scales == [measure_tissue(cutout.volume) for cutout in dataset.split("train")]


def test_cutouts_that_are_made_meanwhile_keep_their_own_scale() -> None:
    dataset = make_dataset({"train": (0.1, 1.0)})
    own = [measure_tissue(cutout.volume) for cutout in dataset.split("train")]
    source = CutoutSource(dataset.split("train"))
    assert [
        scale_dataset(TISSUE, replace(dataset, source=source)).scale_for(c.volume) for c in dataset.split("train")
    ] == own
    known = replace(TISSUE, reference=own[0])
    sampler = PatchSampler(dataset, RECIPE.sample, scale_dataset(known, dataset), 1, 0, (source, 0.5))
    assert sampler.pools[0].scales == [own[0], own[0]]
    assert sampler.pools[1].scales == own


def test_a_reference_needs_the_normalisation_tissue(tmp_path: Path) -> None:
    train = TrainSettings(normalization="image", keep="last", reference=str(tmp_path))
    with pytest.raises(SettingsError, match=r"train\.reference is .* scaled by 'image'"):
        settle_recipe(make_dataset({"train": (0.1,)}), replace(RECIPE, train=train))


def test_a_run_that_was_begun_with_another_reference_is_refused(tmp_path: Path) -> None:
    reference = write(tmp_path / "reference", [make_scene(0.1, 20), make_scene(0, 21)])
    dataset, config = make_dataset({"train": (0.1,)}), {"dataset": "toy", "train": {"reference": str(reference)}}
    digests = [None, identify_reference("own"), identify_reference(str(reference))]
    records = [record_run("network", "unet", config, dataset, 0, reference_sha256=digest) for digest in digests]
    assert len({record.method_sha256 for record in records}) == 3
    run = Run(tmp_path / "run")
    with run.claim(config, records[2]):
        run.checkpoints.mkdir()
        (run.checkpoints / "step-1.ckpt").touch()
    run.check(config, records[2])
    # where it lies makes no difference, what it shows does
    moved = {"dataset": "toy", "train": {"reference": "elsewhere"}}
    run.check(moved, records[2])
    write(reference / "more", [make_scene(0.5, 3)])
    (reference / "more" / "0.png").replace(reference / "2.png")
    changed = record_run("network", "unet", config, dataset, 0, reference_sha256=identify_reference(str(reference)))
    for record in (changed, records[0]):
        with pytest.raises(RunError, match="the reference over which this run measured the grey scale is another now"):
            run.check(config, record)
