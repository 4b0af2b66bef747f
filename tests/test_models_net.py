from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from neurotome.classes import ClassSet
from neurotome.errors import SettingsError
from neurotome.models.net import UNBOUNDED_HALO, Network, choose_device, measure_halo
from neurotome.models.net_predictor import NetPredictor
from neurotome.models.networks import ModelSettings, build_network
from neurotome.normalize import Normalization, Scale

CLASSES = ClassSet(("background", "vessel", "cell"))


class Core(nn.Module):
    """Stands for a network: notes what it is given, and answers with `layer`."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Identity()
        self.layer = layer
        self.given = torch.empty(0)

    def forward(self, images: Tensor) -> Tensor:
        self.given = images
        out: Tensor = self.layer(images)
        return out


class Centre(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images - images.mean((2, 3), keepdim=True)


def set_all_paths_open(module: nn.Module) -> nn.Module:
    """Makes every weight positive and every layer linear, so that each pixel in reach has a gradient."""
    for name, child in module.named_children():
        if isinstance(child, nn.MaxPool2d):
            setattr(module, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
        elif isinstance(child, nn.ReLU):
            setattr(module, name, nn.Identity())
        elif isinstance(child, nn.Conv2d):
            nn.init.constant_(child.weight, 1 / child.weight[0].numel())
        else:
            set_all_paths_open(child)
    return module


def test_images_are_padded_by_their_edge_and_cropped_back() -> None:
    core = Core(nn.Identity())
    images = torch.arange(1, 7.0).reshape(1, 1, 2, 3)
    assert torch.equal(Network(core)(images), images)
    assert core.given.shape == (1, 1, 32, 32)
    assert core.given[0, 0, :3, :5].tolist() == [[1, 2, 3, 3, 3], [4, 5, 6, 6, 6], [4, 5, 6, 6, 6]]
    assert Network(core, minimum=128)(torch.zeros(1, 1, 140, 5)).shape == (1, 1, 140, 5)
    assert core.given.shape == (1, 1, 160, 128)
    fitting = torch.rand(1, 1, 64, 32)
    Network(core)(fitting)
    assert core.given is fitting


@pytest.mark.parametrize(("kernel", "halo"), [(1, 0), (3, 32), (65, 32), (67, 64)])
def test_halo_of_one_convolution(kernel: int, halo: int) -> None:
    convolution = nn.Conv2d(1, 2, (kernel, 1), padding=(kernel // 2, 0))
    assert measure_halo(Network(Core(convolution)), 1) == (halo, True)


def test_what_averages_the_whole_image_is_unbounded() -> None:
    assert measure_halo(Network(Core(nn.Sequential(nn.Conv2d(1, 2, 1), Centre()))), 1) == (UNBOUNDED_HALO, False)
    assert measure_halo(build_network(ModelSettings("pspnet"), 2), 1) == (UNBOUNDED_HALO, False)


@pytest.mark.parametrize("decoder", ["unet", "linknet"])
def test_halo_is_the_reach_of_all_paths(decoder: str) -> None:
    net = build_network(ModelSettings(decoder), 3)
    halo, bounded = measure_halo(net, 1)
    assert bounded
    set_all_paths_open(net)
    assert measure_halo(net, 1) == (halo, True)


def test_measuring_leaves_the_network_as_it_was() -> None:
    net = build_network(ModelSettings("linknet"), 3).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    measure_halo(net, 1)
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_gpu_is_chosen_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for count, there in ((1, "1 GPU, cuda:0"), (3, "3 GPUs, cuda:0 to cuda:2")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert choose_device(f"cuda:{count - 1}") == f"cuda:{count - 1}"
        with pytest.raises(SettingsError, match=f"device 'cuda:{count}' is not on this machine, which has {there}"):
            choose_device(f"cuda:{count}")
    for wrong in ("cuda:", "cuda:x", "cuda:-1", "cpu:0", "gpu"):
        with pytest.raises(SettingsError, match="unknown device"):
            choose_device(wrong)


def test_probabilities_are_the_softmax_of_the_logits() -> None:
    net = build_network(ModelSettings("linknet", in_channels=3), 3)
    predictor = NetPredictor(net, ModelSettings(in_channels=3), CLASSES, Normalization("dataset", 0, 1, "uint8"), 256)
    assert (predictor.in_channels, predictor.stride_zyx, predictor.device.type) == (3, (1, 32, 32), "cpu")
    assert not net.training
    patches = np.random.default_rng(0).normal(size=(2, 3, 40, 50)).astype(np.float32)
    patches.flags.writeable = False
    probs = predictor.predict_probs(patches)
    assert probs.dtype == np.float32
    assert probs.shape == (2, 3, 40, 50)
    with torch.inference_mode():
        expected = np.exp(net(torch.tensor(patches)).double().numpy())
    np.testing.assert_allclose(probs, expected / expected.sum(1, keepdims=True), rtol=0, atol=1e-6)


def build_predictor(slices: int = 1) -> NetPredictor:
    torch.manual_seed(0)
    settings = ModelSettings("linknet", "mobilenetv3_small_050", in_channels=slices, encoder_depth=3)
    return NetPredictor(build_network(settings, 3), settings, CLASSES, Normalization("dataset", 0, 1, "uint8"), 96)


@pytest.mark.parametrize("dtype", ["uint8", ">u2", "int16", "uint32", "float64"])
def test_labels_are_the_most_likely_classes_of_scaled_grey(dtype: str) -> None:
    predictor = build_predictor(3)
    grey = np.random.default_rng(0).integers(0, 120, (2, 3, 40, 52)).astype(dtype)
    grey.flags.writeable = False
    scale, crop = Scale(57.3, 31.7), (slice(3, 37), slice(8, None))
    probs = predictor.predict_probs(scale.apply(grey))[(..., *crop)]
    labels, confidence = predictor.label_patches(grey, scale, crop, confidence=True)
    assert (labels.dtype, labels.shape, confidence.dtype) == (np.uint8, (2, 34, 44), np.uint8)
    assert len(np.unique(labels)) > 1
    np.testing.assert_array_equal(labels, probs.argmax(1))
    np.testing.assert_array_equal(confidence, (probs.max(1) * 255).round())
    assert predictor.label_patches(grey, scale, crop, confidence=False)[1] is None


def test_a_record_says_what_computed() -> None:
    assert build_predictor().back_end == f"torch {torch.__version__.partition('+')[0]}, cpu, float32"


@pytest.mark.parametrize("in_channels", [1, 3])
def test_no_layer_copies_from_one_order_in_memory_to_another(in_channels):
    settings = ModelSettings("unet", "resnet18", in_channels=in_channels, encoder_depth=3)
    net = build_network(settings, 3)
    predictor = NetPredictor(net, settings, CLASSES, Normalization("dataset", 0, 1, "uint8"), 96)
    is_last = {}

    def note(name: str, found: object) -> None:
        if isinstance(found, Tensor) and found.ndim == 4 and found.shape[1] > 1:
            is_last[name] = found.is_contiguous(memory_format=torch.channels_last)

    for name, module in net.core.named_modules():
        module.register_forward_hook(lambda _, __, found, name=name: note(name, found))
    predictor.predict_probs(np.zeros((2, in_channels, 64, 64), np.float32))
    assert len(is_last) > 20
    assert [name for name, fine in is_last.items() if not fine] == []
