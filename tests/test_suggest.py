"""suggest: where to annotate next."""

from __future__ import annotations

import csv
import dataclasses
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import entropy

from conftest import run, write_dataset
from neurotome import figures, open_dataset, predict, suggest
from neurotome.annotating.disagreement import Seen, measure_disagreement, pick_slices, turn, turn_all
from neurotome.annotating.places import Place, choose_places, describe, list_windows
from neurotome.annotating.suggest import look_at
from neurotome.annotating.suggest_settings import SuggestSettings
from neurotome.classes import ClassSet
from neurotome.errors import ImageError, ModelError, RunError, SettingsError
from neurotome.inference.predict_settings import PredictSettings
from neurotome.io import read_labels
from neurotome.models.model_folder import load_model, save_model
from neurotome.models.net_predictor import NetPredictor
from neurotome.models.networks import ModelSettings, build_network
from neurotome.normalize import Normalization
from neurotome.predictor import predict_slice
from neurotome.volume import Volume

SETTINGS = SuggestSettings(patches=3, edge=32, device="cpu")


def make_model(folder: Path, seed: int, names: tuple[str, ...] = ("background", "vessel", "cell")) -> Path:
    torch.manual_seed(seed)
    settings = ModelSettings(encoder="mobilenetv3_small_050", encoder_depth=3)
    net = build_network(settings, len(names))
    with torch.no_grad():
        net(torch.randn(4, 1, 64, 64))
    normalization = Normalization("tissue", 100, 25, "uint8")
    save_model(NetPredictor(net, settings, ClassSet(names), normalization, 64, patch=48), folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [make_model(tmp_path_factory.mktemp("model"), seed) for seed in (3, 4)]


def make_image(seed: int = 0, height: int = 96, width: int = 128) -> np.ndarray:
    """Tissue of grey 100 with dark and bright stripes; air on the left."""
    rng = np.random.default_rng(seed)
    grey = rng.normal(100, 8, (height, width))
    grey[20:28] -= 60
    grey[60:66, 60:] += 40
    grey[:, : width // 2] = rng.normal(12, 3, (height, width // 2))
    return grey.clip(0, 255).round().astype(np.uint8)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "scan"
    folder.mkdir()
    for seed, name in enumerate(("a", "b")):
        Image.fromarray(make_image(seed)).save(folder / f"{name}.png")
    return folder


def read_rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "suggested.csv").read_text(encoding="utf-8").splitlines()))


def see(model: Path, image: np.ndarray) -> Seen:
    predictor = load_model(model)
    volume = Volume(image.reshape(-1, *image.shape[-2:]), "image")
    return Seen(predictor, volume, predictor.normalization.scale_for(volume))


@pytest.mark.parametrize("number", range(8))
def test_a_turned_network_says_what_it_says_of_the_turned_image(models: list[Path], number: int) -> None:
    predictor = load_model(models[0])
    patch = np.random.default_rng(1).normal(size=(1, 1, 64, 96)).astype(np.float32)
    axes = [axis for axis, bit in ((3, 1), (2, 2)) if number & bit]
    turned = np.flip(patch, axes)
    if number & 4:
        expected = np.flip(predictor.predict_probs(turned.swapaxes(2, 3)).swapaxes(2, 3), axes)
    else:
        expected = np.flip(predictor.predict_probs(turned), axes)
    found = turn(predictor, number).predict_probs(patch)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert number == 0 or not np.allclose(found, predictor.predict_probs(patch), atol=1e-3)


def test_disagreement_is_the_mutual_information(models: list[Path]) -> None:
    seen = [see(model, make_image()) for model in models]
    probs = np.stack([predict_slice(one.predictor, one.scale.apply(one.volume.data)) for one in seen])
    expected = entropy(probs.mean(0), axis=0) - entropy(probs, axis=1).mean(0)
    ((mean, found),) = measure_disagreement(seen)
    np.testing.assert_allclose(mean, probs.mean(0), atol=1e-5)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    ((_, agreed),) = measure_disagreement([seen[0], seen[0]])
    assert agreed.max() < 1e-5
    ((_, alone),) = measure_disagreement(seen[:1])
    np.testing.assert_allclose(alone, entropy(probs[0], axis=0), atol=1e-4)


def test_some_slices_of_a_stack_are_seen_as_in_the_stack(models: list[Path]) -> None:
    one = see(models[0], np.stack([make_image(seed) for seed in range(5)]))
    whole = [mean for mean, _ in measure_disagreement([one])]
    picked = [mean for mean, _ in measure_disagreement([one._replace(volume=pick_slices(one.volume, np.array([1, 4])))])]
    np.testing.assert_array_equal(picked, [whole[1], whole[4]])


def make_place(feature: float, uncertainty: float, x: int = 0, image: int = 0, z: int = 0) -> Place:
    return Place(image, z, 0, x, 10, 10, uncertainty, np.array([feature], np.float32))


PLACES = [
    make_place(feature, unsure, 100 * n) for n, (feature, unsure) in enumerate([(0, 9), (1, 8), (6, 3), (9, 1), (4, 2)])
]


@pytest.mark.parametrize(
    ("by", "known", "features"),
    [
        ("uncertainty", [0.0], [0, 1, 6]),
        ("difference", [0.0], [9, 4, 6]),  # 9 from 0; then 4 is 4 from 0, and 6 is 3 from 9; then 6 is 2 from 4
        ("both", [0.0], [6, 1, 4]),  # 6 * 3; then 1 * 8 beats 3 * 1 and 2 * 2; then 2 * 2 beats 3 * 1
        ("both", [], [0, 6, 1]),  # the most uncertain first, then as above
    ],
)
def test_choosing_by_hand(by: str, known: list[float], features: list[int]) -> None:
    chosen = choose_places(PLACES, [np.array([value], np.float32) for value in known], 3, by)  # type: ignore[arg-type]
    assert [int(one.place.features[0]) for one in chosen] == features


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 30), st.integers(0, 1), st.floats(0, 1)), min_size=1), st.data()
)
def test_chosen_places_do_not_repeat_each_other(drawn: list[tuple[int, int, int, float]], data: st.DataObject) -> None:
    places = [make_place(u * 3, u, x, image, z) for x, z, image, u in drawn]
    by = data.draw(st.sampled_from(["both", "uncertainty", "difference"]))
    chosen = [one.place for one in choose_places(places, [], 5, by)]
    for i, first in enumerate(chosen):
        for second in chosen[:i]:
            assert first.image != second.image or abs(first.z - second.z) >= 10 or abs(first.x - second.x) >= 10
    free = [place for place in places if not any(place.repeats(one) for one in chosen)]
    assert len(chosen) == 5 or not free


@settings(deadline=None, max_examples=40)
@given(st.integers(8, 90), st.integers(8, 90), st.integers(1, 50), st.integers(1, 50))
def test_windows_cover_a_slice(height: int, width: int, edge: int, step: int) -> None:
    edge, step = min(edge, height, width), min(step, edge, height, width)
    covered = np.zeros((height, width), int)
    for window in list_windows((height, width), edge, step):
        assert covered[window].shape == (edge, edge)
        covered[window] += 1
    assert covered.min() >= 1


def test_air_is_not_suggested_and_alike_places_are_alike(models: list[Path]) -> None:
    one = see(models[0], make_image())
    places, maps = look_at([one], 0, SETTINGS)
    assert places
    assert min(place.x for place in places) == 48  # half of it is tissue
    assert list(maps) == [0]
    _, uncertainty = next(measure_disagreement(turn_all([one])))
    for place in places:
        assert place.uncertainty == pytest.approx(float(uncertainty[place.window].mean()), rel=1e-5)
    with_air, _ = look_at([one], 0, dataclasses.replace(SETTINGS, air_below=0.0))
    assert min(place.x for place in with_air) == 0
    features = [describe(one.predictor, one.volume, one.scale, 0, place.window) for place in (with_air[0], *places[:2])]
    assert np.linalg.norm(features[1] - features[2]) < np.linalg.norm(features[1] - features[0])


def test_a_stack_is_looked_at_in_some_slices(models: list[Path]) -> None:
    one = see(models[0], np.stack([make_image(seed) for seed in range(20)]))
    places, maps = look_at([one], 0, dataclasses.replace(SETTINGS, every=8))
    assert list(maps) == [4, 12]
    assert {place.z for place in places} == {4, 12}
    chosen = choose_places(places, [], 8, "uncertainty")
    assert not any(first.place.repeats(second.place) for first, second in pairwise(chosen))


def test_the_command_writes_a_dataset_that_opens(models: list[Path], images: Path, tmp_path: Path) -> None:
    train = write_dataset(tmp_path / "known")
    out = tmp_path / "next"
    found = suggest(models[0], images, out=out, against=train, settings=SETTINGS)
    rows = read_rows(out)
    assert [int(row["rank"]) for row in rows] == [1, 2, 3] == list(range(1, len(found.chosen) + 1))
    assert all(float(row["difference"]) > 0 and row["edge"] == "32" for row in rows)
    merits = [float(row["uncertainty"]) * float(row["difference"]) for row in rows]
    assert merits == sorted(merits, reverse=True)
    dataset = open_dataset(out / "dataset")
    assert dataset.classes.names == ("background", "vessel", "cell")
    cutouts = {cutout.name: cutout for cutout in dataset.split("train")}
    assert set(dataset.groups.values()) <= {"a", "b"}
    for row in rows:
        image = np.asarray(Image.open(row["file"]))
        window = tuple(slice(int(row[axis]), int(row[axis]) + 32) for axis in "yx")
        cutout = cutouts[row["crop"]]
        np.testing.assert_array_equal(cutout.volume.data[0], image[window])
    alone = tmp_path / "alone"
    only = images / "a.png"
    suggest(models[0], only, out=alone, settings=SETTINGS)
    predict(models[0], only, tmp_path / "labels.png", settings=PredictSettings(device="cpu"))
    whole = read_labels(tmp_path / "labels.png")
    row = read_rows(alone)[0]
    y, x = int(row["y"]), int(row["x"])
    crop = read_labels(alone / "dataset" / "labels" / f"{row['crop']}.tif")
    np.testing.assert_array_equal(crop, whole[:, y : y + 32, x : x + 32])
    assert row["difference"] == ""
    assert (out / "pictures").is_dir()
    facts = json.loads((out / "suggest.json").read_text())
    assert facts["uncertainty"] == "mutual information over 8 predictions, nats"


def test_corrected_labels_are_never_replaced(models: list[Path], images: Path, tmp_path: Path) -> None:
    out = tmp_path / "next"
    command = ("suggest", models[0], images, "--out", out, "--patches", 2, "--edge", 32, "--device", "cpu")
    assert run(*command) == 0
    with pytest.raises(RunError, match=r"holds a suggestion already.*--overwrite"):
        suggest(models[0], images, out=out, settings=SETTINGS)
    assert run(*command, "--overwrite") == 0
    corrected = next((out / "dataset" / "labels").iterdir())
    labels = tifffile.imread(corrected)
    tifffile.imwrite(corrected, np.zeros_like(labels))
    again = dataclasses.replace(SETTINGS, overwrite=True)
    with pytest.raises(RunError, match=rf"dataset/labels/{corrected.name} was changed or added"):
        suggest(models[0], images, out=out, settings=again)
    assert not tifffile.imread(corrected).any()
    with pytest.raises(RunError, match="holds something that is no suggestion"):
        suggest(models[0], images, out=models[1], settings=again)
    with pytest.raises(RunError, match=r"input|holds the input"):
        suggest(models[0], images, out=images, settings=again)


def test_an_ensemble_and_what_does_not_fit_together(models: list[Path], images: Path, tmp_path: Path) -> None:
    both = dataclasses.replace(SETTINGS, also=(str(models[1]),), patches=1)
    suggest(models[0], images, out=tmp_path / "both", settings=both)
    facts = json.loads((tmp_path / "both" / "suggest.json").read_text())
    assert facts["uncertainty"] == "mutual information over 16 predictions, nats"
    other = make_model(tmp_path / "other", 5, ("background", "axon"))
    with pytest.raises(ModelError, match=r"has the classes background, axon, .* expected the same"):
        suggest(models[0], images, out=tmp_path / "x", settings=dataclasses.replace(SETTINGS, also=(str(other),)))
    with pytest.raises(ImageError, match=r"no patch of which half is tissue.*--air-below"):
        suggest(models[0], images, out=tmp_path / "x", settings=dataclasses.replace(SETTINGS, air_below=300.0))
    with pytest.warns(UserWarning, match="patches instead of 500"):
        suggest(models[0], images, out=tmp_path / "many", settings=dataclasses.replace(SETTINGS, patches=500))
    with pytest.raises(SettingsError, match="patches is 0"):
        SuggestSettings(patches=0)


def test_a_pixel_classifier_may_suggest_too(images: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "known")
    assert run("baseline", data, "--out", tmp_path / "forest", "--learner", "lr", "--features", "identity") == 0
    found = suggest(tmp_path / "forest", images, out=tmp_path / "next", against=data, settings=SETTINGS)
    assert len(found.chosen) == 3
    assert json.loads((tmp_path / "next" / "suggest.json").read_text())["uncertainty"] == "entropy, nats"


def test_the_picture_has_a_frame_for_each_patch_in_both_panels() -> None:
    grey = np.zeros((40, 60), np.uint8)
    figure = figures.plot_suggested("a", grey, np.zeros((4, 6), np.float32), [(1, 0, 10, 20), (7, 20, 30, 20)], "nats")
    for axes in figure.axes[:2]:
        assert [patch.get_bbox().bounds for patch in axes.patches] == [(10, 0, 20, 20), (30, 20, 20, 20)]  # type: ignore[attr-defined]
        assert [text.get_text() for text in axes.texts] == ["1", "7"]
        assert axes.get_xlabel() == "x (pixels)"
