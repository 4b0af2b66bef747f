"""Networks that see volumes: what they compute, and their way from a recipe to labels."""

import contextlib
import copy
import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from torch import nn

from conftest import build, make_dataset
from neurotome.augment import AugmentSettings, augment
from neurotome.blocks import Grid
from neurotome.classes import ClassSet
from neurotome.datasets.base import Cutout, Dataset
from neurotome.errors import ModelError, SettingsError
from neurotome.inference.geometry import Geometry
from neurotome.inference.labelling import Region, predict_box
from neurotome.inference.predict import predict
from neurotome.inference.predict_settings import PredictSettings
from neurotome.inference.slices import predict_slices
from neurotome.inference.volume_settings import VolumeSettings
from neurotome.io.label_store import open_label_store
from neurotome.io.picked import PickedSlices
from neurotome.models.back_ends.attach import attach_back_end
from neurotome.models.inflated import SliceConv, count_reach
from neurotome.models.model_folder import load_model, save_model
from neurotome.models.net_predictor import NetPredictor, deepen, mix
from neurotome.models.networks import ModelSettings, build_network
from neurotome.normalize import Normalization, Scale
from neurotome.training import module as training
from neurotome.training.prepare import choose_reach, settle_recipe
from neurotome.training.recipe import Recipe, TrainSettings
from neurotome.training.resident import ResidentImages
from neurotome.training.sampler import PatchSampler, SampleSettings
from neurotome.volume import Volume
from test_training_fit import KilledError, assert_same_training, run_fit
from test_training_resume import interrupt

CLASSES = ClassSet(("background", "cell"))
FLAT = ModelSettings("linknet", "test_resnet", encoder_depth=3)
DEEP = dataclasses.replace(FLAT, dimensions=3)
HALO = 64
DECODERS = ("unet", "linknet", "fpn", "unetplusplus", "manet", "pspnet", "pan", "deeplabv3", "deeplabv3plus", "upernet")


def make_net(settings: ModelSettings, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_network(settings, 2).eval()


def use_neighbours(net: nn.Module) -> None:
    """Gives the weights for the slices beside, which begin at 0, values as large as those of the slice itself."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, SliceConv):
            own = module.weight.data[:, :, 1]
            for beside in (0, 2):
                module.weight.data[:, :, beside] = own[torch.randperm(len(own), generator=generator)]


def make_predictor(settings: ModelSettings = DEEP, mode: str = "image") -> NetPredictor:
    net = make_net(settings)
    use_neighbours(net)
    net.train()
    with torch.no_grad():
        for _ in range(3):  # so that normalisation knows what it normalises
            net(torch.randn(8, 1, 64, 64))
    return NetPredictor(net, settings, CLASSES, Normalization(mode, 100, 40, "uint8"), HALO)


def make_volume(shape: tuple[int, int, int]) -> Volume:
    rng = np.random.default_rng(3)
    grey = np.kron(rng.integers(0, 255, [-(-n // 6) for n in shape]), np.ones((6, 6, 6)))[tuple(slice(n) for n in shape)]
    return Volume((grey + rng.normal(0, 20, shape)).clip(1, 255).astype(np.uint8), "made")


def test_a_convolution_over_slices_against_scipy() -> None:
    rng = np.random.default_rng(0)
    images, kernel = rng.normal(size=(5, 7, 6)), rng.normal(size=(3, 3, 3))
    conv = SliceConv(nn.Conv2d(1, 1, 3, padding=1, bias=False)).double()
    conv.weight.data[0, 0] = torch.from_numpy(kernel)
    found = conv(torch.from_numpy(images)[:, None])[:, 0].detach()
    np.testing.assert_allclose(found, correlate(images, kernel, mode="constant"), atol=1e-12)
    conv.depth = 1  # five volumes of one slice
    np.testing.assert_allclose(
        conv(torch.from_numpy(images)[:, None])[:, 0].detach(),
        np.stack([correlate(plane, kernel[1], mode="constant") for plane in images]),
        atol=1e-12,
    )


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_sees_volumes_and_begins_as_its_form_for_slices(decoder: str) -> None:
    edge = 128 if decoder == "pan" else 64
    settings = ModelSettings(decoder, "test_resnet")
    flat, deep = make_net(settings), make_net(dataclasses.replace(settings, dimensions=3))
    volumes = torch.randn(2, 1, 3, edge, edge)
    assert count_reach(deep) > 0
    with torch.no_grad():
        logits = deep(volumes)
        assert logits.shape == (2, 2, 3, edge, edge)
        for n in range(2):
            torch.testing.assert_close(logits[n], flat(volumes[n, 0][:, None]).transpose(0, 1), atol=1e-4, rtol=1e-4)
        use_neighbours(deep)
        together = deep(volumes)
        assert (together - logits).abs().max() > 1e-3
        for n in range(2):  # a volume sees nothing of another
            alone = deep(volumes[n, 0][:, None]).transpose(0, 1)
            torch.testing.assert_close(together[n], alone, atol=1e-4, rtol=1e-4)


def test_where_nothing_changes_along_z_a_volume_is_as_a_slice() -> None:
    """Of weights w(-1), w(0), w(1) a slice sees their sum, far enough from the ends."""
    deep = make_net(DEEP)
    use_neighbours(deep)
    flat = make_net(FLAT)
    summed = {name: w.sum(2) if w.ndim == 5 else w for name, w in deep.state_dict().items()}
    flat.load_state_dict(summed)
    slice_ = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        logits = deep(slice_.expand(2 * count_reach(deep) + 1, -1, -1, -1))
        torch.testing.assert_close(logits[count_reach(deep)], flat(slice_)[0], atol=1e-4, rtol=1e-4)
        assert (logits[0] - logits[count_reach(deep)]).abs().max() > 1e-3


def test_a_network_sees_no_further_than_it_says() -> None:
    deep = make_net(DEEP).double()
    use_neighbours(deep)
    images = torch.randn(4 * count_reach(deep) + 1, 1, 64, 64, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(deep(images)[2 * count_reach(deep)].sum(), images)
    seen = gradient.abs().amax((1, 2, 3)).nonzero().flatten()
    assert 2 * count_reach(deep) - 1 >= seen[0] >= count_reach(deep)
    assert 2 * count_reach(deep) + 1 <= seen[-1] <= 3 * count_reach(deep)


def test_deep_voxels_are_joined_where_the_network_is_as_coarse() -> None:
    def list_reaching(start: int) -> set[str]:
        net = make_net(dataclasses.replace(DEEP, reach_from=start))
        return {name for name, module in net.named_modules() if isinstance(module, SliceConv)}

    assert list_reaching(4) < list_reaching(2) <= list_reaching(1)
    with pytest.raises(ModelError, match=r"32 times fewer pixels than the image \(model.reach_from\)"):
        make_net(dataclasses.replace(DEEP, reach_from=32))


@pytest.mark.parametrize(
    ("size_um", "expected"),
    [(None, 1), ((1, 1, 1), 1), ((0.3, 1, 1), 1), ((3, 1, 1), 4), ((4, 1, 1), 4), ((4, 2, 2), 2), ((99, 1, 1), 8)],
)
def test_from_where_on_slices_are_joined_depends_on_the_voxel(size_um: tuple[float, ...] | None, expected: int) -> None:
    volume = Volume(np.zeros((2, 8, 8), np.uint8), "c", size_um)  # type: ignore[arg-type]
    dataset = Dataset("toy", CLASSES, {"train": (Cutout(volume, np.zeros((2, 8, 8), np.uint8)),)})
    assert choose_reach(dataset, 3) == expected


@pytest.mark.parametrize(
    ("slices", "model", "sample", "error", "message"),
    [
        (4, {"dimensions": 3, "in_channels": 3}, {}, ModelError, "model.in_channels is 3 and model.dimensions 3"),
        (4, {"dimensions": 4}, {}, ModelError, "model.dimensions is 4; expected 2 or 3"),
        (4, {"dimensions": 3, "reach_from": 3}, {}, ModelError, "model.reach_from is 3; expected 1, 2, 4"),
        (4, {"reach_from": 2}, {}, ModelError, "model.dimensions 2 sees no volumes"),
        (4, {}, {"depth": 4}, SettingsError, "sample.depth is 4, but model.dimensions is 2"),
        (1, {"dimensions": 3}, {}, SettingsError, "toy has images of one slice; expected images of several"),
        (4, {"dimensions": 3}, {"depth": 5}, SettingsError, "sample.depth is 5, but train0 has 4 slices"),
    ],
)
def test_what_cannot_be_is_refused(slices, model, sample, error, message) -> None:  # type: ignore[no-untyped-def]
    recipe = Recipe(model=dataclasses.replace(FLAT, **model), sample=SampleSettings(patch=32, **sample))
    with pytest.raises(error, match=message):
        build(make_dataset(slices=slices), recipe)


def test_labels_that_do_not_follow_each_other_and_other_back_ends_are_refused() -> None:
    dataset = make_dataset(slices=4)
    cutout = dataset.split("train")[0]
    picked = dataclasses.replace(cutout.volume, data=PickedSlices(cutout.volume.data, np.array([0, 3]), Path("stack")))
    sparse = dataclasses.replace(dataset, splits={**dataset.splits, "train": (Cutout(picked, cutout.labels[[0, 3]]),)})
    with pytest.raises(SettingsError, match="labelled slices of train0 do not follow each other"):
        build(sparse, Recipe(model=DEEP, sample=SampleSettings(patch=32, depth=2)))
    pytest.importorskip("openvino")
    with pytest.raises(ModelError, match="openvino cannot run a network of 3 dimensions; use --back-end torch"):
        attach_back_end(make_predictor(), "openvino")


def test_labels_move_with_the_voxels_of_a_3d_patch() -> None:
    labels = torch.randint(0, 3, (16, 5, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    still = AugmentSettings(intensity_probability=0, interpolation="nearest", rotate_probability=1, elastic_probability=1)
    images, moved = augment(labels.float(), labels, still, 255, torch.Generator().manual_seed(0))
    known = moved != 255
    assert 0.5 < known.float().mean() < 1
    assert torch.equal(images[known], moved[known].float())
    only_z = dataclasses.replace(
        still, flip_vertical=0, flip_horizontal=0, quarter_turns=False, rotate_probability=0, scale_probability=0,
        elastic_probability=0,
    )  # fmt: skip
    _, moved = augment(labels.float(), labels, only_z, 255, torch.Generator().manual_seed(0))
    flipped = [bool(torch.equal(after, before.flip(0))) for before, after in zip(labels, moved, strict=True)]
    assert 2 < sum(flipped) < 14
    assert all(turned or torch.equal(a, b) for a, b, turned in zip(labels, moved, flipped, strict=True))


def test_3d_patches_on_a_device_are_those_that_are_cut_one_by_one() -> None:
    sampler = PatchSampler(
        make_dataset(slices=5), SampleSettings(patch=32, batch=3), Normalization("image", 0, 1, "uint8"), 1, 0, depth=3
    )
    resident = ResidentImages(sampler, torch.device("cpu"))
    images, labels = sampler.draw(2)
    found, known = resident.cut(resident.locate(sampler.list_places(2)))
    torch.testing.assert_close(found, torch.from_numpy(images), rtol=0, atol=1e-6)
    assert torch.equal(known, torch.from_numpy(labels))


TRAINED = {
    "model": DEEP,
    "sample": SampleSettings(patch=32, depth=3, batch=2),
    "train": TrainSettings(epochs=2, steps_per_epoch=2, device="cpu", checkpoint_every="0.000001s", average=0.9),
}


def test_a_training_of_volumes_that_was_killed_ends_as_if_it_had_not_been(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("neurotome.models.net.measure_halo", lambda *_: (HALO, True))
    dataset = make_dataset(slices=4)
    run_fit(dataset, tmp_path / "whole", **TRAINED)
    for calls, name in ((2, "seed_device"), (3, "predict_slice")):
        with monkeypatch.context() as patch:
            interrupt(patch, training, name, calls)
            with pytest.raises(KilledError):
                run_fit(dataset, tmp_path / "killed", **TRAINED)
    run_fit(dataset, tmp_path / "killed", **TRAINED)
    assert_same_training(tmp_path / "killed", tmp_path / "whole")
    loaded = load_model(tmp_path / "whole")
    assert (loaded.settings.dimensions, loaded.halo_zyx) == (3, (count_reach(loaded.net), HALO, HALO))
    assert any(m.weight[:, :, 0].abs().max() > 0 for m in loaded.net.modules() if isinstance(m, SliceConv))


def test_a_model_of_slices_is_the_beginning_of_one_of_volumes(tmp_path: Path) -> None:
    flat = NetPredictor(make_net(FLAT), FLAT, CLASSES, Normalization("dataset", 100, 40, "uint8"), HALO)
    save_model(flat, tmp_path / "flat")
    recipe = Recipe(model=ModelSettings(dimensions=3), sample=SampleSettings(patch=32), init=str(tmp_path / "flat"))
    settled = settle_recipe(make_dataset(slices=4), recipe)
    init = settled.init
    assert init is not None
    assert (settled.recipe.model.dimensions, settled.recipe.sample.depth, init.facts["deepened_from"]) == (3, 4, 2)
    patches = np.random.default_rng(0).normal(size=(3, 1, 64, 64)).astype(np.float32)
    np.testing.assert_allclose(init.predict_probs(patches), flat.predict_probs(patches), atol=1e-5)
    later = dataclasses.replace(init, net=copy.deepcopy(init.net))
    use_neighbours(later.net)
    np.testing.assert_allclose(mix(flat, later, 0.0).predict_probs(patches), flat.predict_probs(patches), atol=1e-5)
    np.testing.assert_allclose(mix(flat, later, 1.0).predict_probs(patches), later.predict_probs(patches), atol=1e-6)
    save_model(init, tmp_path / "deep")
    again = dataclasses.replace(recipe, init=str(tmp_path / "deep"), model=ModelSettings())
    assert settle_recipe(make_dataset(slices=4), again).recipe.model.dimensions == 3
    with pytest.raises(SettingsError, match=r"model.dimensions \(2 asked, 3 there\)"):
        settle_recipe(make_dataset(slices=4), dataclasses.replace(again, model=ModelSettings(dimensions=2)))
    with pytest.raises(ModelError, match="in_channels is 3"):
        deepen(dataclasses.replace(flat, settings=dataclasses.replace(FLAT, in_channels=3)), 1)


@pytest.mark.parametrize("axes", ["z", "zyx"])
def test_tiles_of_a_volume_are_as_the_whole(axes: str) -> None:
    predictor, volume = make_predictor(), make_volume((15, 28, 36))
    assert 3 <= count_reach(predictor.net) < 8
    scale, total = Scale(100, 40), np.zeros((2, *volume.shape), np.float32)
    for axis in axes:
        turned = np.moveaxis(volume.data, "zyx".index(axis), 0)
        probs = predictor.predict_probs(scale.apply(turned)[:, None])
        total += np.moveaxis(probs.swapaxes(0, 1), 1, 1 + "zyx".index(axis))
    grid = Grid(volume.shape, (8, 16, 32), (8, 16, 32))
    factors = ((1.0, 1.0),) * len(axes)
    geometry = Geometry(axes, grid, HALO, predictor.stride_zyx[1], 0, 5, factors, predictor.halo_zyx[0])
    for number in range(grid.count_tiles()):
        box = grid.tile_place(number)
        region = Region.read(volume, geometry.read_box(box))
        found = predict_box(predictor, region, scale, geometry, box, contextlib.nullcontext())
        np.testing.assert_allclose(found, total[(slice(None), *box)], atol=1e-4)


def test_a_volume_is_labelled_alike_whole_in_slabs_and_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neurotome.inference.volume_plan.measure_bytes_per_pixel", lambda predictor: 2000.0)
    predictor, volume = make_predictor(), make_volume((36, 32, 48))
    whole = predictor.predict_probs(predictor.normalization.scale_for(volume).apply(volume.data)[:, None])
    slabs = np.stack(list(predict_slices(predictor, volume, tile=32)))
    np.testing.assert_allclose(slabs, whole, atol=1e-5)
    save_model(predictor, tmp_path / "model")
    np.save(tmp_path / "volume.npy", volume.data)
    settings = PredictSettings(device="cpu", tile=32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        predict(
            tmp_path / "model",
            tmp_path / "volume.npy",
            tmp_path / "out.zarr",
            settings=settings,
            options=VolumeSettings(tolerance=0, threads=1),
        )
    store = open_label_store(tmp_path / "out.zarr")
    labels = store.read(tuple(slice(0, size) for size in store.shape_zyx))
    assert 0.02 < (labels == 1).mean() < 0.98
    assert (labels == whole.argmax(1)).mean() >= 0.9999
