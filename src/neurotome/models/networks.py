"""Builds networks by name: every decoder of segmentation_models_pytorch on every encoder it or timm offers."""

from __future__ import annotations

import contextlib
import os
import socket
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from neurotome.errors import ModelError, unknown
from neurotome.lazy import import_uncompiled, mend_torchvision

if TYPE_CHECKING:
    from neurotome.models.net import Network


EXTRA_ARGUMENTS = {"dpt": {"dynamic_img_size": True}}
"""What a decoder needs so that it takes images of any size."""

MINIMUM_EDGE = {"pan": 128}
"""Decoders that pool their coarsest features further and need pixels left to pool."""

DECODER_CHANNELS = dict.fromkeys(("unet", "unetplusplus", "manet"), (256, 128, 64, 32, 16))
"""Channels after each of a decoder's steps, for those that take them; a shorter decoder has the last of them."""

DEEPEST = 5

HEADS = ("fc", "_fc", "last_linear", "head", "classifier")
"""Layers that files of ImageNet weights end in and encoders lack."""


@dataclass(frozen=True)
class ModelSettings:
    """Which network is built. What is auto is taken from the model of --init, else it is the usual."""

    decoder: str = "auto"
    """Decoder: unet (usual), linknet, fpn, unetplusplus, manet, pspnet, pan, deeplabv3, deeplabv3plus, upernet, segformer,
    dpt."""

    encoder: str = "auto"
    """Encoder of segmentation_models_pytorch (resnet18, the usual; resnet34, ...) or any of timm's (convnext_tiny, ...)."""

    encoder_weights: str = "none"
    """What the encoder starts from: none, imagenet (downloaded once, then cached) or a local .safetensors file."""

    in_channels: int | Literal["auto"] = "auto"
    """Input channels (usual: 1): an odd number of neighbouring slices, the predicted one in the middle."""

    encoder_depth: int | Literal["auto"] = "auto"
    """Stages of the encoder, 3 to 5 (usual: 5, all that there are); fewer: a smaller and faster network that sees less."""

    dimensions: Literal[2, 3, "auto"] = "auto"
    """2 (usual): each slice is seen alone, or with neighbours as channels; 3: volumes are seen and labelled at once."""

    reach_from: int | Literal["auto"] = "auto"
    """With 3 dimensions: convolutions reach into neighbouring slices where the network has at least so many times fewer
    pixels along an edge than the image (1, 2, 4, ...); auto: where its pixels are as wide as slices are apart, by the
    voxel size of the data, or everywhere (1)."""


USUAL = ModelSettings("unet", "resnet18", in_channels=1, encoder_depth=DEEPEST, dimensions=2, reach_from=1)
"""The network that is built where neither a person nor a model decides."""


def settle_network(asked: ModelSettings, usual: ModelSettings = USUAL) -> ModelSettings:
    """Returns settings in which what was auto is as in `usual`."""
    automatic = {f.name: getattr(usual, f.name) for f in fields(asked) if getattr(asked, f.name) == "auto"}
    return replace(asked, **automatic)


def import_smp() -> Any:
    """Imports segmentation_models_pytorch, with a torchvision that it can import."""
    mend_torchvision()
    return import_uncompiled("segmentation_models_pytorch")


def build_network(settings: ModelSettings, classes: int) -> Network:
    """Builds a network that takes images of any size: float32 (n, in_channels, y, x) to logits (n, classes, y, x).

    With 3 dimensions it begins as the network of the same settings with 2, so that the weights of both are the same.

    Raises:
        ModelError: A name is unknown, encoder and decoder do not fit, or the encoder's weights cannot be had.
    """
    from neurotome.models.net import Network

    settings = settle_network(settings)
    channels, depth = int(settings.in_channels), int(settings.encoder_depth)
    if channels < 1 or channels % 2 == 0:
        raise ModelError(f"model.in_channels is {channels}; expected an odd number of neighbouring slices (1, 3, 5, ...).")
    _check_dimensions(settings)
    if not 3 <= depth <= DEEPEST:
        raise ModelError(f"model.encoder_depth is {depth}; expected 3, 4 or 5 stages of the encoder.")
    smp = import_smp()
    decoders = smp.MODEL_ARCHITECTURES_MAPPING
    if settings.decoder not in decoders:
        raise ModelError(unknown("decoder", settings.decoder, decoders))
    encoder = find_encoder(settings.encoder)
    pretrained: str | bool | None = None
    if settings.encoder_weights == "imagenet":
        pretrained = True if encoder.startswith("tu-") else "imagenet"
    elif settings.encoder_weights != "none" and not Path(settings.encoder_weights).is_file():
        raise ModelError(
            f"model.encoder_weights is {settings.encoder_weights!r}, and no such file exists; expected none, imagenet or "
            "the path of a .safetensors file."
        )
    arguments: dict[str, Any] = dict(EXTRA_ARGUMENTS.get(settings.decoder, {}))
    if depth < DEEPEST:  # else decoders choose
        arguments["encoder_depth"] = depth
        if settings.decoder in DECODER_CHANNELS:
            arguments["decoder_channels"] = DECODER_CHANNELS[settings.decoder][-depth:]
    try:
        with warnings.catch_warnings(), _offline_if_unreachable(settings):
            warnings.simplefilter("ignore", DeprecationWarning)
            core = decoders[settings.decoder](
                encoder_name=encoder,
                encoder_weights=pretrained,
                in_channels=channels,
                classes=classes,
                **arguments,
            )
    except Exception as error:
        if _is_download_error(error):
            raise ModelError(
                f"the ImageNet weights of encoder {settings.encoder!r} are not in the local cache and could not be "
                f"downloaded ({type(error).__name__}). Do one of these: connect this machine to the network and run the "
                "same command again; on a connected machine run the same command once and copy its cache folder "
                "(~/.cache/huggingface, or where HF_HOME points) here; give a local file with --model.encoder-weights "
                "FILE.safetensors; or start without pretraining with --model.encoder-weights none."
            ) from error
        if depth < DEEPEST:
            raise ModelError(_explain_depth(settings, str(error))) from error
        raise ModelError(
            f"decoder {settings.decoder!r} cannot be built on encoder {settings.encoder!r}: {error} "
            "Choose another pair; unet on resnet18 always works."
        ) from error
    if 32 % core.encoder.output_stride:
        raise ModelError(
            f"encoder {settings.encoder!r} works on patches of {core.encoder.output_stride} pixels, which decoder "
            f"{settings.decoder!r} cannot join; choose one with patches of 8, 16 or 32 pixels."
        )
    if settings.encoder_weights not in ("none", "imagenet"):
        _load_encoder(core.encoder, Path(settings.encoder_weights), channels)
    net = Network(core, minimum=MINIMUM_EDGE.get(settings.decoder, 1))
    if depth < DEEPEST:
        _drop_unused(net, settings)
    if settings.dimensions == 3:
        from neurotome.models.inflated import inflate

        inflate(core, max(2 * net.stride, net.minimum), int(settings.reach_from))
    return net


def _check_dimensions(settings: ModelSettings) -> None:
    """Raises a ModelError unless dimensions, reach_from and in_channels fit each other."""
    reach = settings.reach_from
    if settings.dimensions not in (2, 3):
        raise ModelError(f"model.dimensions is {settings.dimensions}; expected 2 or 3.")
    if settings.dimensions == 3 and settings.in_channels != 1:
        raise ModelError(
            f"model.in_channels is {settings.in_channels} and model.dimensions 3, which sees neighbouring slices as they "
            "are; expected one channel. Leave model.in_channels out, or use --model.dimensions 2."
        )
    if reach not in (1, 2, 4, 8, 16, 32):
        raise ModelError(f"model.reach_from is {reach}; expected 1, 2, 4, 8, 16 or 32.")
    if settings.dimensions == 2 and reach != 1:
        raise ModelError(f"model.reach_from is {reach}, but model.dimensions 2 sees no volumes; leave it out.")


def _drop_unused(net: Network, settings: ModelSettings) -> None:
    """Removes the layers that a shorter network still holds but never uses, such as the last stage of a ResNet.

    They are those whose parameters get no gradient; each is replaced by a layer without parameters, so that what refers to
    it stays whole. A decoder that gives no output of the input's size at this depth is refused.
    """
    import torch

    was_training = net.training
    net.eval()
    edge = max(2 * net.stride, net.minimum)
    try:
        with torch.enable_grad():
            # without the padding and cropping of Network, which would hide an output of another size
            logits = net.core(torch.zeros(1, int(settings.in_channels), edge, edge))
            logits.sum().backward()
    except (RuntimeError, ValueError, IndexError) as error:
        raise ModelError(_explain_depth(settings, str(error))) from error
    if logits.shape[-2:] != (edge, edge):
        size = " x ".join(map(str, logits.shape[-2:]))
        raise ModelError(_explain_depth(settings, f"from {edge} x {edge} pixels it makes {size}."))
    _replace_unused(net)
    net.zero_grad(set_to_none=True)
    net.train(was_training)


def _replace_unused(module: Any) -> None:
    from torch import nn

    for name, child in module.named_children():
        parameters = list(child.parameters())
        if parameters and all(parameter.grad is None for parameter in parameters):
            setattr(module, name, nn.Identity())
        else:
            _replace_unused(child)


def _explain_depth(settings: ModelSettings, reason: str) -> str:
    return (
        f"decoder {settings.decoder!r} on encoder {settings.encoder!r} cannot work with model.encoder_depth "
        f"{settings.encoder_depth}: {reason} Use encoder_depth 5, or decoder unet, which takes 3, 4 and 5."
    )


def find_encoder(name: str) -> str:
    """Returns smp's name of an encoder: its own, or timm's with or without the `tu-` prefix and a weight tag."""
    smp = import_smp()
    import timm

    if name in smp.encoders.encoders:
        return name
    plain = name.removeprefix("tu-")
    if timm.is_model(plain.split(".")[0]):
        return f"tu-{plain}"
    raise ModelError(unknown("encoder", name, [*smp.encoders.encoders, *timm.list_models()]))


@contextlib.contextmanager
def _offline_if_unreachable(settings: ModelSettings) -> Iterator[None]:
    """Looks only into the cache where the hub cannot be reached, instead of trying again for half a minute."""
    proxies = any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))
    if settings.encoder_weights != "imagenet" or proxies:
        yield
        return
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    host = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((host.hostname or "", host.port or 443), timeout=5).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _is_download_error(error: BaseException) -> bool:
    """Says whether an error, or one it came from, is the hub's or the network's."""
    cause = error.__cause__ or error.__context__
    packages = ("huggingface_hub", "requests", "httpx", "httpx2", "httpcore", "urllib", "socket")
    is_one = isinstance(error, ConnectionError) or type(error).__module__.split(".")[0] in packages
    return is_one or (cause is not None and _is_download_error(cause))


def _load_encoder(encoder: Any, path: Path, in_channels: int) -> None:
    """Loads weights from a safetensors file; three-channel first filters are fitted to `in_channels`.

    As with downloaded weights, one channel sums the three filters, so that a grey image gives the response that its three
    copies would, and other numbers repeat them scaled by 3 / in_channels.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        content = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path}: not a readable safetensors file ({error}). Pickled weights (.pth, .ckpt) are not loaded, because "
            "they can run code; convert them with safetensors.torch.save_file."
        ) from error
    wanted = encoder.state_dict()
    weights = {key: weight for key, weight in content.items() if key in wanted or key.split(".")[0] not in HEADS}
    for key, weight in weights.items():
        if key in wanted and weight.ndim == 4 and weight.shape[1] == 3 and wanted[key].shape[1] == in_channels != 3:
            repeated = weight[:, [i % 3 for i in range(in_channels)]] * (3 / in_channels)
            weights[key] = weight.sum(1, keepdim=True) if in_channels == 1 else repeated
    problems = {
        "missing": wanted.keys() - weights.keys(),
        "not of this encoder": weights.keys() - wanted.keys(),
        "of another shape": {key for key in wanted.keys() & weights.keys() if wanted[key].shape != weights[key].shape},
    }
    listed = "; ".join(f"{len(keys)} {what} (first: {min(keys)})" for what, keys in problems.items() if keys)
    if listed:
        raise ModelError(
            f"{path}: these are not the weights of this encoder: tensors {listed}. Expected its state_dict() under "
            "the names that segmentation_models_pytorch gives; choose the encoder that the file is of."
        )
    encoder.load_state_dict(weights)
