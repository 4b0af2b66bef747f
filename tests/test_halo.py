"""The halo by tolerance, on a network whose reach is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zarr

from neurotome.classes import ClassSet
from neurotome.inference import halo as halo_module
from neurotome.inference.halo import choose_halo
from neurotome.io import open_volume
from neurotome.models.net_predictor import NetPredictor
from neurotome.models.networks import ModelSettings
from neurotome.normalize import Normalization, Scale
from neurotome.volume import Volume

SCALE = Scale(128.0, 50.0)


class Ring(torch.nn.Module):
    """The second class's logit is the sum of pixels 0, `near` and `far` to all four sides, with a weight each."""

    stride, minimum = 4, 1

    def __init__(self, weights):
        super().__init__()
        kernel = torch.zeros(1, 1, 25, 25)
        for distance, weight in weights.items():
            for sign in (-1, 1):
                kernel[0, 0, 12 + sign * distance, 12] = kernel[0, 0, 12, 12 + sign * distance] = weight
        self.kernel = torch.nn.Parameter(kernel)

    def forward(self, images):
        logits = torch.nn.functional.conv2d(images, self.kernel, padding=12)
        return torch.cat([torch.zeros_like(logits), logits], 1)


def make_predictor(weights, bounded=True):
    classes, normalization = ClassSet(("background", "cell")), Normalization("dataset", 128.0, 50.0, "uint8")
    return NetPredictor(Ring(weights), ModelSettings(in_channels=1), classes, normalization, halo=12, bounded=bounded)


def make_volume(shape=(4, 200, 190)):
    return Volume(np.random.default_rng(0).integers(0, 255, shape, np.uint8), "made")


@pytest.mark.parametrize(
    ("weights", "tolerance", "expected"),
    [
        ({0: 1.0}, 1e-3, 0),
        ({0: 1.0, 3: 0.5}, 1e-3, 4),
        ({0: 1.0, 4: 0.5}, 1e-3, 4),
        ({0: 1.0, 5: 0.5}, 1e-3, 8),
        ({0: 1.0, 3: 0.5, 11: 1e-5}, 1e-3, 4),
        ({0: 1.0, 3: 0.5, 11: 1e-5}, 1e-7, 12),
        ({0: 1.0, 3: 0.5, 11: 1e-5}, 0, 12),
    ],
)
def test_the_halo_is_the_smallest_within_the_tolerance(weights, tolerance, expected):
    choice = choose_halo(make_predictor(weights), make_volume(), SCALE, axes="z", tolerance=tolerance)
    assert (choice.halo, choice.full) == (expected, 12)
    assert choice.difference <= tolerance
    assert choice.agreement >= 0.9999
    assert ("no smaller one" in choice.measured) == (expected == 12 and tolerance > 0)


def test_labels_decide_where_probabilities_do_not():
    # a pixel 5 away moves a probability by 0.1 at most; where the other weights are small, that flips labels
    predictor = make_predictor({0: 1e-3, 5: 1e-2})
    assert choose_halo(predictor, make_volume(), SCALE, axes="z", tolerance=0.5).halo == 8
    assert choose_halo(make_predictor({0: 10.0, 5: 1e-4}), make_volume(), SCALE, axes="z", tolerance=0.5).halo == 0


def test_a_halo_is_in_pixels_of_the_model():
    predictor, volume = make_predictor({0: 1.0, 7: 0.5}), make_volume((2, 300, 100))
    predictor.voxel_size_um = (1.0, 1.0, 1.0)
    coarse = Volume(volume.data, "made", (1.0, 1.0, 2.0))
    assert choose_halo(predictor, coarse, SCALE, axes="z", tolerance=1e-3).halo == 8


def test_every_axis_is_measured():
    volume = make_volume((180, 180, 180))
    volume.data[:] = volume.data[:1]  # nothing changes along z
    predictor = make_predictor({0: 1.0, 7: 0.5})
    assert choose_halo(predictor, volume, SCALE, axes="x", tolerance=1e-3).halo == 8
    assert choose_halo(predictor, volume, SCALE, axes="zyx", tolerance=1e-3).halo == 8


def test_empty_places_are_left_out(monkeypatch):
    volume = make_volume((4, 200, 400))
    volume.data[:, :, :250] = 9
    cut = []
    predict = halo_module._Places.predict
    monkeypatch.setattr(
        halo_module._Places, "predict", lambda self, i, halo: cut.append(self.boxes[i]) or predict(self, i, halo)
    )
    choice = choose_halo(make_predictor({0: 1.0, 7: 0.5}), volume, SCALE, axes="z", tolerance=1e-3)
    assert choice.halo == 8
    assert all(box[2].stop > 250 for box in cut)


def test_where_nothing_is_stored_is_not_read(tmp_path):
    """All of what is stored is one chunk of 800, which reading 48 places would miss."""
    array = zarr.create_array(tmp_path / "a.zarr", shape=(80, 2560, 2560), chunks=(16, 256, 256), dtype="uint8")
    array[32:48, 512:768, 1024:1280] = np.random.default_rng(0).integers(0, 255, (16, 256, 256), np.uint8)
    volume = open_volume(tmp_path / "a.zarr")
    choice = choose_halo(make_predictor({0: 1.0, 7: 0.5}), volume, SCALE, axes="z", tolerance=1e-3)
    assert choice.halo == 8
    assert "at 6 places" in choice.measured


def test_without_anything_to_measure_the_halo_is_full():
    predictor, flat = make_predictor({0: 1.0}), Volume(np.full((2, 200, 200), 7, np.uint8), "flat")
    assert choose_halo(predictor, flat, SCALE, axes="z", tolerance=1e-3).halo == 12
    assert choose_halo(predictor, make_volume((2, 100, 100)), SCALE, axes="z", tolerance=1e-3).halo == 12  # no seams
    unbounded = make_predictor({0: 1.0}, bounded=False)
    choice = choose_halo(unbounded, make_volume(), SCALE, axes="z", tolerance=1e-3)
    assert choice.halo == 12
    assert "approximate" in choice.measured


def test_a_slow_model_is_measured_at_fewer_places(monkeypatch):
    monkeypatch.setattr(halo_module, "LONGEST_S", 0.0)
    choice = choose_halo(make_predictor({0: 1.0, 3: 0.5}), make_volume(), SCALE, axes="z", tolerance=1e-3)
    assert "at 2 places" in choice.measured
