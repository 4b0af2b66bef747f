from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from neurotome.datasets import open_dataset
from neurotome.datasets.base import Cutout
from neurotome.datasets.phantom.stream import PhantomStream, StreamSettings, open_stream
from neurotome.errors import SettingsError
from neurotome.models.networks import ModelSettings
from neurotome.normalize import fit_normalization
from neurotome.training.prepare import settle_recipe
from neurotome.training.recipe import Recipe
from neurotome.training.sampler import PatchSampler, SampleSettings

SMALL = StreamSettings(seed=3, pool=4, start=2, every=2, edge=40, depth=2, held_out=1, workers=0)


def voxels(window: list[tuple[int, Cutout]]) -> dict[int, bytes]:
    return {number: c.volume.data.tobytes() + np.asarray(c.labels).tobytes() for number, c in window}


def test_the_pool_grows_then_slides() -> None:
    stream = PhantomStream(SMALL)
    numbers = [[n for n, _ in stream.window(step)] for step in (0, 1, 2, 4, 6, 8)]
    assert numbers == [[0, 1], [0, 1], [0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_same_seed_same_voxels_on_any_number_of_workers(workers: int) -> None:
    alone, shared = PhantomStream(SMALL), PhantomStream(replace(SMALL, workers=workers))
    for step in (0, 3, 8):
        assert voxels(shared.window(step)) == voxels(alone.window(step))
    sent = pickle.loads(pickle.dumps(shared))  # as to another process, which has workers of its own
    assert voxels(sent.window(8)) == voxels(alone.window(8))


def test_a_run_that_goes_on_draws_from_the_same_tissue() -> None:
    straight, resumed = PhantomStream(SMALL), PhantomStream(SMALL)
    for step in range(9):
        expected = voxels(straight.window(step))
    assert voxels(resumed.window(8)) == expected


def test_other_seed_other_voxels() -> None:
    one, other = voxels(PhantomStream(SMALL).window(0)), voxels(PhantomStream(replace(SMALL, seed=4)).window(0))
    assert one[0] != other[0]


def test_held_out_tissue_is_none_of_the_training_tissue() -> None:
    dataset = open_stream(SMALL)
    held_out = {c.volume.data.tobytes() for split in ("val", "test") for c in dataset.split(split)}
    trained = {c.volume.data[:1].tobytes() for c in dataset.split("train")}
    assert len(held_out) == 2
    assert not held_out & trained


def test_held_out_slices_keep_their_neighbours() -> None:
    dataset = open_stream(replace(SMALL, held_out_depth=3))
    (cutout,) = dataset.split("val")
    assert cutout.volume.shape == cutout.labels.shape == (1, 40, 40)
    above, middle, below = cutout.volume.read_context(0, 3)
    np.testing.assert_array_equal(middle, cutout.volume.data[0])
    assert all(0.3 < np.corrcoef(middle.ravel(), other.ravel())[0, 1] < 1 for other in (above, below))
    assert cutout.slice_names == ["held_out_000"]
    assert dataset.fingerprint("val") != dataset.fingerprint("test")


def test_a_network_is_not_judged_without_the_neighbours_that_it_reads() -> None:
    asked = Recipe(ModelSettings(in_channels=3), SampleSettings(patch=32), stream=SMALL)
    with pytest.raises(SettingsError, match=r"stream\.held_out_depth is 1, .* 3 slices .*--stream\.held-out-depth 3"):
        settle_recipe(open_stream(SMALL), asked)
    assert settle_recipe(open_stream(replace(SMALL, held_out_depth=3)), asked).recipe.model.in_channels == 3


def test_batches_follow_the_stream_and_depend_on_the_step_alone() -> None:
    def sampler() -> PatchSampler:
        dataset = open_dataset("phantom-stream", SMALL)
        scale = fit_normalization((c.volume for c in dataset.split("train")), "image")
        return PatchSampler(dataset, SampleSettings(patch=16, batch=3, rare=0.5), scale, 1, seed=1)

    straight, jump = sampler(), sampler()
    batches = [straight.draw(step) for step in range(12)]
    images, labels = jump.draw(11)
    np.testing.assert_array_equal(images, batches[11][0])
    np.testing.assert_array_equal(labels, batches[11][1])
    assert jump.pools[0].numbers == [3, 4, 5, 6]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"every": 0}, "every 0"),
        ({"held_out_depth": 2}, "held_out_depth is 2"),
        ({"faithful": 2.0}, "faithful is 2.0"),
        ({"start": 9}, "at most the pool"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        open_stream(replace(SMALL, **wrong))
