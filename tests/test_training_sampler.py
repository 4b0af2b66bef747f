from pathlib import Path

import numpy as np
import pytest
import torch

from neurotome.classes import ClassSet
from neurotome.datasets.base import Cutout, CutoutSource, Dataset
from neurotome.errors import NeurotomeError
from neurotome.io.picked import PickedSlices
from neurotome.normalize import Normalization
from neurotome.training.resident import ResidentImages, measure_images
from neurotome.training.sampler import PatchSampler, SampleSettings, list_labelled
from neurotome.volume import Volume

CLASSES = ClassSet(("background", "cell", "axon"))
AS_IS = Normalization("dataset", 0.0, 1.0, "float32")


def make_dataset(*shapes, rare=True):
    """Grey values name their pixel; one pixel of the first cutout is an axon."""
    cutouts, start = [], 0
    for i, shape in enumerate(shapes):
        size = int(np.prod(shape))
        image = np.arange(start, start + size, dtype=np.float32).reshape(shape)
        labels = np.zeros(shape, np.uint8)
        labels[:, : shape[1] // 2] = 1
        cutouts.append(Cutout(Volume(image, f"c{i}"), labels))
        start += size
    if rare:
        cutouts[0].labels[0, -1, -1] = 2
    return Dataset("toy", CLASSES, {"train": tuple(cutouts)})


def make_sampler(dataset, channels=1, seed=0, depth=None, **settings):
    return PatchSampler(dataset, SampleSettings(**settings), AS_IS, channels, seed, depth=depth)


def test_a_batch_depends_on_seed_and_step_alone():
    dataset = make_dataset((2, 40, 50))
    first, again = make_sampler(dataset, patch=16), make_sampler(dataset, patch=16)
    again.draw(3)
    np.testing.assert_array_equal(first.draw(7)[0], again.draw(7)[0])
    assert not np.array_equal(first.draw(7)[0], first.draw(8)[0])
    assert not np.array_equal(first.draw(7)[0], make_sampler(dataset, seed=1, patch=16).draw(7)[0])


def test_labels_belong_to_their_pixels():
    dataset = make_dataset((2, 40, 50), (1, 30, 20))
    images, labels = make_sampler(dataset, patch=16, batch=32).draw(0)
    assert images.shape == (32, 1, 16, 16)
    assert images.dtype == np.float32
    table = np.concatenate([c.labels.ravel() for c in dataset.split("train")])
    np.testing.assert_array_equal(labels, table[images[:, 0].astype(int)])


@pytest.mark.parametrize("rare", [0.0, 1.0])
def test_rare_classes_are_seen_when_asked(rare):
    sampler = make_sampler(make_dataset((4, 64, 64)), patch=8, batch=300, rare=rare)
    _, labels = sampler.draw(0)
    share = (labels == 2).any((1, 2)).mean()
    # drawn evenly among three classes, against 1 of 4 x 57 x 57 places
    assert share == pytest.approx(1 / 3, abs=0.08) if rare else share < 0.02


def test_images_smaller_than_a_patch_are_padded_and_not_learned():
    sampler = make_sampler(make_dataset((1, 40, 40), (1, 10, 20), rare=False), patch=32, batch=64)
    images, labels = sampler.draw(0)
    small = images[:, 0, 0, 0] >= 1600
    assert small.any()
    assert (labels[small][:, 10:] == 255).all()
    assert (labels[small][:, :, 20:] == 255).all()
    assert (labels[small][:, :10, :20] != 255).all()
    assert np.isfinite(images).all()


def test_sequential_tiles_cover_every_pixel_in_order():
    dataset = make_dataset((2, 20, 30), (1, 16, 16))
    sampler = make_sampler(dataset, patch=16, batch=4, order="sequential")
    # 2 slices x 2 x 2 tiles, 1 tile
    batches = [sampler.draw(step)[0] for step in range(3)]
    assert [len(batch) for batch in batches] == [4, 4, 1]
    seen = np.concatenate([batch.ravel() for batch in batches])
    assert np.unique(seen).size == 2 * 20 * 30 + 256
    starts = np.concatenate([batch[:, 0, 0, 0] for batch in batches])
    assert (np.diff(starts) > 0).all()
    np.testing.assert_array_equal(sampler.draw(3)[0], batches[0])


def test_neighbouring_slices_become_channels():
    dataset = make_dataset((3, 8, 8), rare=False)
    images, labels = make_sampler(dataset, channels=3, patch=8, batch=16).draw(0)
    middle = images[:, 1] // 64
    np.testing.assert_array_equal(images[:, 0] // 64, np.maximum(middle - 1, 0))
    np.testing.assert_array_equal(images[:, 2] // 64, np.minimum(middle + 1, 2))
    assert labels.shape == (16, 8, 8)


def test_a_patch_larger_than_every_image_is_refused():
    with pytest.raises(
        NeurotomeError, match=r"sample\.patch is 64, larger than every training image; the largest is c1.*patch 32"
    ):
        make_sampler(make_dataset((1, 20, 20), (1, 40, 50)), patch=64)


def test_nothing_labelled_is_refused():
    cutout = Cutout(Volume(np.zeros((1, 9, 9), np.float32), "c"), np.full((1, 9, 9), 255, np.uint8))
    with pytest.raises(NeurotomeError, match="ignore"):
        make_sampler(Dataset("toy", CLASSES, {"train": (cutout,)}), patch=8)


def test_labelled_slices_are_spread_evenly():
    cutouts = make_dataset((4, 8, 8), (6, 8, 8)).split("train")
    assert list_labelled(cutouts, 3, 0) == [(0, z) for z in range(4)] + [(1, z) for z in range(6)]
    assert list_labelled(cutouts, 3, 3) == [(0, 0), (1, 0), (1, 5)]
    sparse = make_dataset((4, 8, 8), (6, 8, 8)).split("train")
    for cutout in sparse:
        cutout.labels[1:] = 255
    assert list_labelled(sparse, 3, 3) == [(0, 0), (1, 0)]


@pytest.mark.parametrize("order", ["random", "sequential"])
def test_volumes_lie_within_one_cutout_and_have_its_labels(order):
    dataset = make_dataset((5, 40, 50), (3, 30, 20), (4, 12, 40))
    sampler = make_sampler(dataset, depth=3, patch=16, batch=64, order=order)
    images, labels = sampler.draw(1 if order == "random" else 0)
    assert images.shape[1:] == (3, 16, 16)
    assert labels.shape == images.shape
    assert images.dtype == np.float32
    table = np.concatenate([c.labels.ravel() for c in dataset.split("train")])
    learned = labels != CLASSES.ignore  # the third cutout is smaller than a patch
    assert 0.8 < learned.mean() < 1
    np.testing.assert_array_equal(labels[learned], table[images.astype(int)][learned])
    ends = np.cumsum([c.volume.data.size for c in dataset.split("train")])
    owner = np.searchsorted(ends, images.astype(int), side="right")
    assert (owner == owner[:, :1, :1, :1]).all()
    sizes = np.array([np.prod(c.volume.shape[1:]) for c in dataset.split("train")])[owner[:, 0]]
    np.testing.assert_array_equal(images[:, 1] - images[:, 0], sizes)  # neighbours in z are neighbours
    if order == "random":
        np.testing.assert_array_equal(images, sampler.draw(1)[0])
        assert {0, 1, 2} == set(owner[:, 0, 0, 0])
    else:  # z 0 and 2 of 5 slices, 0 of 3, 0 and 1 of 4
        assert len(images) == 2 * 3 * 4 + 2 * 2 + 2 * 3


def test_volumes_of_rare_classes_hold_them():
    sampler = make_sampler(make_dataset((8, 64, 64)), depth=4, patch=8, batch=200, rare=1.0)
    _, labels = sampler.draw(0)
    assert (labels == 2).any((1, 2, 3)).mean() == pytest.approx(1 / 3, abs=0.1)


def test_wrong_volumes():
    with pytest.raises(NeurotomeError, match=r"sample\.depth is 3, but c1 has 1 slices"):
        make_sampler(make_dataset((5, 40, 50), (1, 30, 20)), depth=3, patch=16)


def make_source(shape, grey=-1):
    """A source whose pixels are all of class cell and of one grey value, which no pixel of `make_dataset` has."""
    return CutoutSource((Cutout(Volume(np.full(shape, grey, np.float32), "other"), np.ones(shape, np.uint8)),))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1, 20, 20), (9, 200, 200)])
@pytest.mark.parametrize("rare", [0.0, 0.7])
def test_two_sources_are_drawn_by_weight_whatever_their_sizes(share, shape, rare):
    settings = SampleSettings(patch=8, batch=1000, rare=rare)

    def make_sampler_of(depth):
        return PatchSampler(make_dataset((4, 64, 64)), settings, AS_IS, 1, 0, (make_source(shape), share), depth)

    sampler = make_sampler_of(None)
    images, labels = sampler.draw(3)
    other = (images == -1).all((1, 2, 3))
    assert other.mean() == pytest.approx(share, abs=4 * (share * (1 - share) / 1000) ** 0.5)
    assert (images[~other] >= 0).all()
    assert (labels[other] == 1).all()
    np.testing.assert_array_equal(images, sampler.draw(3)[0])
    volumes, _ = make_sampler_of(1).draw(0)
    assert (volumes == -1).all((1, 2, 3)).mean() == pytest.approx(share, abs=0.07)


def test_classes_are_counted_as_they_are_drawn():
    dataset = make_dataset((1, 20, 10))  # 100 background, of which 1 axon; 100 cell
    assert make_sampler(dataset, patch=8).class_counts.tolist() == [99, 100, 1]
    # of five patches four are the other source's: as if it had 4 x 200 pixels, all of class cell
    sampler = PatchSampler(dataset, SampleSettings(patch=8), AS_IS, 1, 0, (make_source((3, 30, 30)), 0.8))
    assert sampler.class_counts.tolist() == [99, 100 + 800, 1]


def test_two_sources_have_no_order():
    with pytest.raises(NeurotomeError, match=r"sample\.order is sequential, but synthetic tissue has no end"):
        PatchSampler(
            make_dataset((1, 20, 20)), SampleSettings(8, order="sequential"), AS_IS, 1, 0, (make_source((1, 9, 9)), 0.5)
        )


@pytest.mark.parametrize("wrong", [{"patch": 7}, {"batch": 0}, {"rare": 1.5}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(NeurotomeError, match=r"sample\.patch is .* \(at least 8\), .* \(at least 1\), .* \(0 to 1\)"):
        SampleSettings(**wrong)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtypes", [(np.uint8,), (np.uint16, np.uint8), (np.uint16, np.float32)])
@pytest.mark.parametrize("order", ["random", "sequential"])
def test_batches_cut_on_the_device_are_those_cut_one_by_one(dtypes, channels, order):
    rng = np.random.default_rng(0)

    def make_cutout(number, stack, slices=None):
        dtype = np.dtype(dtypes[number % len(dtypes)])
        data = rng.integers(0, np.iinfo(dtype).max if dtype.kind == "u" else 99, stack, endpoint=True).astype(dtype)
        if slices:  # some of a stack, whose neighbours are not labelled
            data = PickedSlices(data, np.array(slices), Path("stack"))
        labels = rng.choice(np.array([0, 1, 2, 255]), data.shape)
        return Cutout(Volume(data, f"c{number}"), labels)

    # the second is mirrored several times
    cutouts = (make_cutout(0, (2, 40, 50)), make_cutout(1, (1, 7, 20)), make_cutout(2, (9, 30, 33), [0, 4, 5, 8]))
    replay = (CutoutSource([make_cutout(3, (2, 33, 35)), make_cutout(4, (1, 40, 40))]), 0.4) if order == "random" else None
    sampler = PatchSampler(
        Dataset("toy", CLASSES, {"train": cutouts}),
        SampleSettings(patch=32, batch=9, order=order),
        Normalization("image", 0.0, 1.0, "uint8"),
        channels,
        0,
        replay,
    )
    resident = ResidentImages(sampler, torch.device("cpu"))
    assert measure_images(sampler) == sum(row.numel() * row.element_size() for row in (resident.images, resident.labels))
    for step in range(3):
        images, labels = sampler.draw(step)
        found, known = resident.cut(resident.locate(sampler.list_places(step)))
        assert torch.equal(found, torch.from_numpy(images))
        assert torch.equal(known, torch.from_numpy(labels))


def test_images_of_another_dtype_stay_where_they_are():
    volume = Volume(np.arange(81, dtype=np.int32).reshape(1, 9, 9), "c")
    dataset = Dataset("toy", CLASSES, {"train": (Cutout(volume, np.zeros((1, 9, 9), np.uint8)),)})
    sampler = PatchSampler(dataset, SampleSettings(patch=8), Normalization("image", 0.0, 1.0, "int32"), 1, 0)
    with pytest.raises(NeurotomeError, match=r"data_on_device is on, but the training images are int32; expected uint8"):
        ResidentImages(sampler, torch.device("cpu"))
