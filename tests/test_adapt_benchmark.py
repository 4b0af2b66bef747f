"""Self-training as benchmarks/adapt.py tries it: what is learned, from where, and when it is refused."""

import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # as for a script that is run

import adapt as script
import self_training
from self_training import Signals, Teaching

from neurotome.classes import ClassSet
from neurotome.datasets.base import Cutout
from neurotome.datasets.phantom.make import CLASSES
from neurotome.errors import ImageError
from neurotome.keywords import replace_settings
from neurotome.models.model_folder import load_model, save_model
from neurotome.models.net_predictor import NetPredictor
from neurotome.models.networks import ModelSettings, build_network
from neurotome.normalize import Normalization
from neurotome.volume import Volume

FOUR = ClassSet(CLASSES)
BEFORE = Signals(0.8, (0.8, 0.05, 0.05, 0.1), 0.7)


def keep(labels, confidence, share, class_wise, usable=None):
    labels, confidence = np.array(labels, np.uint8), np.array(confidence, np.float32)
    usable = np.ones(labels.shape, bool) if usable is None else np.array(usable, bool)
    (kept,) = self_training.keep_confident([(labels, confidence)], [usable], FOUR, share, class_wise)
    return kept.tolist()


def test_each_class_keeps_its_most_certain_half():
    labels, confidence = [0, 0, 0, 0, 2, 2, 3], [0.9, 0.99, 0.8, 0.95, 0.4, 0.5, 0.3]
    assert keep(labels, confidence, 0.5, True) == [255, 0, 255, 0, 255, 2, 3]
    # one threshold for all keeps none of the rare classes
    assert keep(labels, confidence, 0.5, False) == [0, 0, 0, 0, 255, 255, 255]


def test_what_is_not_usable_neither_counts_nor_is_kept():
    labels, confidence, usable = [1, 1, 1, 1], [0.9, 0.8, 0.7, 0.6], [False, False, True, True]
    assert keep(labels, confidence, 0.5, True, usable) == [255, 255, 1, 255]


def test_thresholds_are_of_all_images_together():
    sure, unsure = (np.full((1, 2), p, np.float32) for p in (0.9, 0.6))
    labels, usable = np.zeros((1, 2), np.uint8), np.ones((1, 2), bool)
    first, second = self_training.keep_confident([(labels, sure), (labels, unsure)], [usable] * 2, FOUR, 0.5, True)
    assert (first == 0).all()
    assert (second == 255).all()


def test_annotated_places_are_left_out_with_their_margin():
    usable = script.leave_out_places((1420, 5805), 64)
    for y, x in script.ANNOTATED.values():
        place = usable[y - 64 : y + 256 + 64, x - 64 : x + 256 + 64]
        assert place.shape == (384, 384)
        assert not place.any()
        assert usable[y - 65, x]
        assert usable[y, x + 256 + 64]
    assert (~usable).sum() == 4 * 384**2


def test_air_is_no_tissue():
    grey = np.full((1, 80, 80), 120, np.uint8)
    grey[:, :, 40:] = 0
    grey[:, 20:24, 20:24] = 0  # a vessel
    found = self_training.mark_tissue(Volume(grey, "half"))
    assert found[0, :, :35].all()
    assert not found[0, :, 50:].any()


class Passing:
    """Gives what it sees as probabilities, and in the class after it says which corner is where."""

    classes, preferred_tile, halo_zyx, stride_zyx, bounded = ClassSet(("a", "b")), None, (0, 0, 0), (1, 1, 1), True

    def predict_probs(self, patches):
        rows = np.broadcast_to(np.arange(patches.shape[2], dtype=np.float32)[:, None], patches[:, 0].shape)
        return np.stack([patches[:, 0], rows], 1)


def test_flips_and_turns_are_undone():
    image = np.random.default_rng(0).random((1, 5, 5), np.float32)
    probs = self_training.predict_turned(Passing(), image)
    assert probs[0] == pytest.approx(image[0])
    assert probs[1] == pytest.approx(2.0)  # from each side as often: the mean of 0 to 4


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (Signals(0.791, BEFORE.shares, 0.71), []),
        (Signals(0.789, BEFORE.shares, 0.71), ["the score of synthetic tissue falls by 0.011"]),
        (Signals(0.8, (0.75, 0.05, 0.04, 0.16), 0.71), ["by a factor of 1.60"]),
        (Signals(0.8, (0.82, 0.05, 0.03, 0.1), 0.71), ["by a factor of 1.67"]),
        (Signals(0.8, BEFORE.shares, 0.701), ["agreement of views rises by 0.0010"]),
        (Signals(0.5, (1, 0, 0, 0), 1.0), ["synthetic tissue", "by a factor of 50"]),  # finds nothing, with one voice
    ],
)
def test_a_model_is_refused_by_what_needs_no_label(after, said):
    reasons = self_training.explain_refusal(BEFORE, after)
    assert len(reasons) == len(said)
    assert all(part in reason for part, reason in zip(said, reasons, strict=True))


def test_the_best_agreement_that_is_allowed_is_taken():
    better, best_refused = Signals(0.8, BEFORE.shares, 0.72), Signals(0.7, BEFORE.shares, 0.9)
    signals = {0.0: BEFORE, 0.25: Signals(0.8, BEFORE.shares, 0.71), 0.5: better, 0.75: better, 1.0: best_refused}
    assert self_training.choose_alpha(signals) == 0.5
    assert self_training.choose_alpha({0.0: BEFORE, 0.5: BEFORE, 1.0: best_refused}) == 0


def test_a_class_of_few_pixels_may_come_and_go():
    assert self_training.measure_move(Signals(0, (0.9999, 0.0001), 0), Signals(0, (0.9981, 0.0019), 0)) < 1.01


def make_image(seed):
    labels = np.tile(np.repeat(np.arange(4, dtype=np.uint8), 16), (1, 128, 2))
    grey = np.array([120, 20, 60, 160])[labels] + np.random.default_rng(seed).normal(0, 8, labels.shape)
    return Volume(grey.clip(0, 255).astype(np.uint8), f"image{seed}"), labels


def test_a_view_is_the_same_pixels_twice():
    volume, _ = make_image(0)
    predictor = SimpleNamespace(normalization=Normalization("range", 0, 255, "uint8"), in_channels=1)
    views = self_training.cut_views(predictor, [volume], [np.ones(volume.shape, bool)], 3, edge=32)
    assert len(views) == 3
    for view in views:
        assert view.wide.shape[1] > 32
        assert np.array_equal(view.wide[(slice(None), *view.crop)], view.alone)
    with pytest.raises(ImageError, match="no 32 x 32 pixels of tissue in 1 images"):
        self_training.cut_views(predictor, [volume], [np.zeros(volume.shape, bool)], 3, edge=32)


def test_a_student_learns_what_its_teacher_says(tmp_path, monkeypatch):
    monkeypatch.setattr("neurotome.datasets.phantom.stream.REPLAYED", 1)
    torch.manual_seed(5)
    network = ModelSettings("linknet", "mobilenetv3_small_050", in_channels=1, encoder_depth=3)
    net = build_network(network, 4)
    save_model(NetPredictor(net, network, FOUR, Normalization("tissue", 100, 25, "uint8"), 64), tmp_path / "base")
    volume, labels = make_image(1)
    settings = {"epochs": 1, "steps_per_epoch": 2, "device": "cpu", "learning_rate": 1e-2}
    recipe = replace_settings(self_training.GENTLE, {"train": settings, "sample": {"patch": 32, "batch": 2, "rare": 0.0}})
    recipe = replace_settings(recipe, {"init": str(tmp_path / "base")})

    usable, guesses = np.ones(volume.shape, bool), [(labels, np.ones(volume.shape, np.float32))]
    monkeypatch.setattr(self_training, "cut_views", partial(self_training.cut_views, number=2, edge=64))

    def adapt():
        tissue, teaching = [Cutout(volume, labels)], Teaching(follow=True)
        return self_training.adapt([volume], [usable], guesses, tissue, tmp_path / "followed", recipe, teaching)

    def train(name, said, follow):
        self_training.train_student([Cutout(volume, said)], FOUR, tmp_path / name, recipe, Teaching(follow=follow))
        return read_weights(tmp_path / name)

    signals = adapt()
    followed = read_weights(tmp_path / "followed" / "student")
    assert torch.equal(followed, train("other", 3 - labels, True))  # what it is given says only what is to be ignored
    assert not torch.equal(followed, train("fixed", labels, False))
    assert list(signals) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert sum(signals[0.0].shares) == pytest.approx(1)
    assert signals[0.0] != signals[1.0]
    monkeypatch.setattr(self_training, "train_student", None)
    assert adapt() == signals  # nothing is made again


def read_weights(run):
    return torch.cat([weights.flatten() for weights in load_model(run).net.parameters()])


def test_a_row_says_what_all_of_the_new_weights_would_bring():
    found = {0.0: BEFORE, 0.5: BEFORE, 1.0: Signals(0.79, (0.75, 0.05, 0.05, 0.15), 0.72)}
    row = script.describe("pseudo", [0.0], [found], [{"patches": 0.8, "selection": 0.7}])
    assert row == "| pseudo | 0 | -0.010 | 1.50 | +0.020 | 0.800 | 0.700 |"
    assert script.describe("none", [0.0], [], [{"patches": 0.8}]) == "| none | 0 |  |  |  | 0.800 |"
