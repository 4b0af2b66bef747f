from __future__ import annotations

import os
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from neurotome.errors import ModelError
from neurotome.models.networks import ModelSettings, build_network, find_encoder, import_smp

DECODERS = (
    "unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet",
    "deeplabv3", "deeplabv3plus", "pan", "upernet", "segformer", "dpt",
)  # fmt: skip


def run(settings: ModelSettings, images: Tensor, classes: int = 2) -> Tensor:
    torch.manual_seed(0)
    with torch.inference_mode():
        return build_network(settings, classes).eval()(images)


def write_encoder(path: Path, encoder: str = "resnet18") -> dict[str, Tensor]:
    """Writes weights as pretraining on colour images would leave them."""
    torch.manual_seed(1)
    weights = build_network(ModelSettings(encoder=encoder, in_channels=3), 2).core.encoder.state_dict()
    save_file(weights, path)
    return weights


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and an empty cache."""
    from huggingface_hub import constants

    def refuse(*_: object, **__: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def test_the_decoders_are_those_of_the_library() -> None:
    assert sorted(import_smp().MODEL_ARCHITECTURES_MAPPING) == sorted(DECODERS)


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_takes_images_of_any_size(decoder: str) -> None:
    settings = ModelSettings(decoder, "vit_tiny_patch16_224" if decoder == "dpt" else "resnet18")
    assert run(settings, torch.randn(2, 1, 70, 45), classes=4).shape == (2, 4, 70, 45)


@pytest.mark.parametrize("encoder", ["convnext_atto", "tu-convnext_atto", "efficientnet-b0"])
def test_encoders_of_both_libraries_take_slices_as_channels(encoder: str) -> None:
    assert run(ModelSettings(encoder=encoder, in_channels=3), torch.randn(1, 3, 33, 31)).shape == (1, 2, 33, 31)


def test_an_image_of_one_pixel_is_an_image() -> None:
    assert run(ModelSettings(), torch.zeros(1, 1, 1, 1)).shape == (1, 2, 1, 1)


def test_encoder_names() -> None:
    assert find_encoder("resnet18") == "resnet18"
    assert find_encoder("tu-resnet18") == "tu-resnet18"
    assert find_encoder("convnext_tiny") == find_encoder("tu-convnext_tiny") == "tu-convnext_tiny"
    assert find_encoder("convnext_tiny.in12k") == "tu-convnext_tiny.in12k"
    with pytest.raises(ModelError, match=r"unknown encoder 'resnet19'\. Did you mean 'resnet18'"):
        find_encoder("resnet19")


def test_unknown_decoders_suggest_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"unknown decoder 'u-net'\. Did you mean 'unet'"):
        build_network(ModelSettings("u-net"), 2)


@pytest.mark.parametrize("channels", [0, 2, -1])
def test_a_slice_needs_as_many_neighbours_above_as_below(channels: int) -> None:
    with pytest.raises(ModelError, match="expected an odd number"):
        build_network(ModelSettings(in_channels=channels), 2)


def test_pairs_that_do_not_fit_are_named() -> None:
    with pytest.raises(ModelError, match="'deeplabv3' cannot be built on encoder 'vgg11'"):
        build_network(ModelSettings("deeplabv3", "vgg11"), 2)
    with pytest.raises(ModelError, match="patches of 14 pixels, which decoder 'dpt' cannot join"):
        build_network(ModelSettings("dpt", "vit_small_patch14_dinov2"), 2)


def test_one_channel_responds_to_grey_as_three_do(tmp_path: Path) -> None:
    write_encoder(tmp_path / "a.safetensors")
    settings = ModelSettings(encoder_weights=str(tmp_path / "a.safetensors"))
    one = build_network(settings, 2).core.encoder.eval()
    three = build_network(replace(settings, in_channels=3), 2).core.encoder.eval()
    grey = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        found, expected = one(grey), three(grey.expand(-1, 3, -1, -1))
    assert len(found) == 6
    for level in range(1, 6):  # level 0 is the image itself
        torch.testing.assert_close(found[level], expected[level], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_files_load_as_the_library_loads_its_own(channels: int, tmp_path: Path) -> None:
    weights = write_encoder(tmp_path / "a.safetensors")
    expected = import_smp().encoders.get_encoder("resnet18")
    expected.load_state_dict(dict(weights))
    expected.set_in_channels(channels, pretrained=True)
    settings = ModelSettings(encoder_weights=str(tmp_path / "a.safetensors"), in_channels=channels)
    found = build_network(settings, 2).core.encoder.state_dict()
    assert found.keys() == expected.state_dict().keys()
    for key, weight in expected.state_dict().items():
        torch.testing.assert_close(found[key], weight, rtol=1e-6, atol=1e-7)


def test_files_of_timm_encoders_load(tmp_path: Path) -> None:
    weights = write_encoder(tmp_path / "a.safetensors", "convnext_atto")
    settings = ModelSettings(encoder="convnext_atto", encoder_weights=str(tmp_path / "a.safetensors"))
    found = build_network(settings, 2).core.encoder.state_dict()
    changed = [key for key in weights if not torch.equal(found[key], weights[key])]
    assert changed == ["model.stem_0.weight"]
    torch.testing.assert_close(found[changed[0]], weights[changed[0]].sum(1, keepdim=True))


def test_the_classifier_of_a_file_is_left_out(tmp_path: Path) -> None:
    weights = write_encoder(tmp_path / "a.safetensors")
    save_file(weights | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, tmp_path / "b.safetensors")
    build_network(ModelSettings(encoder_weights=str(tmp_path / "b.safetensors")), 2)


def test_pickled_weights_are_refused_unread(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "trapped"),)

    torch.save({"conv1.weight": Trap()}, tmp_path / "a.pth")
    with pytest.raises(ModelError, match=r"a\.pth: not a readable safetensors file.*they can run code"):
        build_network(ModelSettings(encoder_weights=str(tmp_path / "a.pth")), 2)
    assert not (tmp_path / "trapped").exists()


def test_missing_files_and_misspelt_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'imagnet', and no such file exists; expected none"):
        build_network(ModelSettings(encoder_weights="imagnet"), 2)


def test_the_file_of_another_encoder_is_refused(tmp_path: Path) -> None:
    write_encoder(tmp_path / "a.safetensors", "resnet34")
    with pytest.raises(ModelError, match=r"a\.safetensors: these are not the weights of this encoder: tensors 9\d not of"):
        build_network(ModelSettings(encoder_weights=str(tmp_path / "a.safetensors")), 2)
    write_encoder(tmp_path / "b.safetensors", "resnet18")
    with pytest.raises(ModelError, match=r"9\d missing \(first: layer1\.2\.bn1\.bias\)"):
        build_network(ModelSettings(encoder="resnet34", encoder_weights=str(tmp_path / "b.safetensors")), 2)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("encoder", ["resnet18", "convnext_atto"])
def test_imagenet_without_network_says_at_once_what_to_do(encoder: str) -> None:
    import_smp()  # which alone takes seconds
    begin = time.monotonic()
    advice = r"not in the local cache.*HF_HOME.*FILE\.safetensors.*--model.encoder-weights none"
    with pytest.raises(ModelError, match=advice):
        build_network(ModelSettings(encoder=encoder, encoder_weights="imagenet"), 2)
    assert time.monotonic() - begin < 25  # trying again and again takes half a minute


@pytest.mark.parametrize("depth", [3, 4])
@pytest.mark.parametrize("decoder", ["unet", "linknet"])
def test_a_shorter_network_holds_only_what_it_uses(decoder: str, depth: int) -> None:
    net = build_network(ModelSettings(decoder, encoder_depth=depth), 4)
    stages = {key.split(".")[2] for key in net.state_dict() if key.startswith("core.encoder.layer")}
    assert stages == {f"layer{i}" for i in range(1, depth)}
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    images = torch.randn(1, 1, 70, 45)
    net(images).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    # resnet18: 64, 64, 128, 256 channels; the last stage alone has three quarters of the encoder's weights
    full = build_network(ModelSettings(decoder), 4)
    assert sum(p.numel() for p in net.parameters()) < 0.26 * sum(p.numel() for p in full.parameters())


def test_a_shorter_unet_takes_the_last_channels() -> None:
    net = build_network(ModelSettings(encoder_depth=4), 2)
    # resnet18 gives 256 channels at 1/16 and 128 at 1/8
    assert [block.conv1[0].in_channels for block in net.core.decoder.blocks] == [256 + 128, 128 + 64, 64 + 64, 32]
    assert [block.conv2[0].out_channels for block in net.core.decoder.blocks] == [128, 64, 32, 16]


def test_a_shorter_encoder_still_starts_from_a_file(tmp_path: Path) -> None:
    weights = write_encoder(tmp_path / "weights.safetensors")
    settings = ModelSettings(encoder_depth=4, encoder_weights=str(tmp_path / "weights.safetensors"), in_channels=3)
    assert torch.equal(build_network(settings, 2).core.encoder.layer3[0].conv1.weight, weights["layer3.0.conv1.weight"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ModelSettings("fpn", encoder_depth=4), r"'fpn' .* cannot work with model\.encoder_depth 4: .* makes 128 x 128"),
        (ModelSettings("dpt", "vit_tiny_patch16_224", encoder_depth=3), r"'dpt' .* cannot work with model\.encoder_depth 3"),
        (ModelSettings(encoder_depth=2), r"model\.encoder_depth is 2; expected 3, 4 or 5"),
        (ModelSettings(encoder_depth=6), r"model\.encoder_depth is 6; expected 3, 4 or 5"),
    ],
)
def test_depths_that_cannot_work_are_refused(settings: ModelSettings, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_network(settings, 2)
