"""Network: takes any image size; how far it sees, and where it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurotome.errors import SettingsError
from neurotome.models.inflated import SliceConv
from neurotome.predictor import check_device

UNBOUNDED_HALO = 256
"""Halo of networks that pool over the whole image; tiles then only approximate the whole."""


class Network(nn.Module):
    """A segmentation network padded to its stride inside and cropped after, so that any image size fits.

    Of a network that sees volumes, the images of a batch are the slices of one.
    """

    def __init__(self, core: nn.Module, minimum: int = 1) -> None:
        """Wraps a model of segmentation_models_pytorch; images with an edge below `minimum` are padded to it."""
        super().__init__()
        self.core = core
        self.minimum = minimum
        self.stride = max(32, int(getattr(core.encoder, "output_stride", 32)))

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits (n, classes, y, x) of images (n, in_channels, y, x).

        Of volumes (n, 1, z, y, x), where the network sees volumes, logits (n, classes, z, y, x).
        """
        is_batch = images.ndim == 5
        depth = images.shape[2] if is_batch else None
        for module in self.modules():
            if isinstance(module, SliceConv):
                module.depth = depth
        if not is_batch:
            return self.run_padded(self.core, images)
        slices = images.transpose(1, 2).flatten(0, 1).to(memory_format=torch.channels_last)
        logits = self.run_padded(self.core, slices)
        return logits.view(len(images), -1, *logits.shape[1:]).transpose(1, 2)

    def run_padded(self, core: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Returns what `core`, or another runtime of it, makes of images that are padded to the stride; cropped."""
        height, width = images.shape[-2:]
        below, right = (max(self.minimum, -(-size // self.stride) * self.stride) - size for size in (height, width))
        if below or right:
            images = F.pad(images, (0, right, 0, below), mode="replicate")
        return core(images)[..., :height, :width]


def lay_out(net: nn.Module) -> None:
    """Puts the weights into the order in memory, channels last, in which convolutions are fastest.

    A tensor of one channel counts as contiguous in both orders, so that torch's `contiguous` would leave it, and after a
    first convolution of one image channel half of the network would copy from one order to the other.
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for weights in net.parameters():
        if weights.ndim in formats:
            weights.data = weights.data.to(memory_format=formats[weights.ndim])


def measure_halo(net: Any, in_channels: int) -> tuple[int, bool]:
    """Measures how far an output pixel can see, from the gradient of one stride's worth of output.

    The strip is narrow, because the reach along one axis does not depend on the other's length.

    Args:
        net: A `Network`, or another module that takes any image size, with a `stride` and a `minimum`.
        in_channels: Its input channels.

    Returns:
        The reach in pixels, rounded up to the stride, and whether it is bounded; if it is not, `UNBOUNDED_HALO`.
    """
    length, width = 2048, max(2 * net.stride, net.minimum)
    was_training = net.training
    net.eval()
    parameter = next(net.parameters())
    generator = torch.Generator().manual_seed(0)
    strip = torch.randn((1, in_channels, length, width), generator=generator).to(parameter).requires_grad_()
    centre = length // 2 // net.stride * net.stride
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(net(strip)[..., centre : centre + net.stride, :].sum(), strip)
    seen = gradient.abs().amax(dim=(0, 1, 3)).nonzero().flatten()
    net.train(was_training)
    first, last = int(seen[0]), int(seen[-1])
    if first == 0 or last == length - 1:
        return UNBOUNDED_HALO, False
    reach = max(centre - first, last - (centre + net.stride - 1))
    return -(-reach // net.stride) * net.stride, True


def has_fast_bf16() -> bool:
    """Says whether this CPU multiplies matrices of bfloat16 in units made for it (AMX)."""
    # not public, so its absence must not stop anybody; torch 2.13 has it
    has_units = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return bool(has_units() and torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def choose_device(name: str) -> str:
    """Returns the device to use; `auto` takes a GPU if there is one, and one that this machine lacks is a SettingsError."""
    check_device(None, name)
    have = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return "cuda" if have["cuda"] else "mps" if have["mps"] else "cpu"
    kind, _, index = name.partition(":")
    if not have[kind]:
        found = ", ".join(device for device, is_here in have.items() if is_here)
        raise SettingsError(f"device {name!r} is not on this machine; found {found}. Leave it out, or say auto.")
    if index and int(index) >= (count := torch.cuda.device_count()):
        there = "1 GPU, cuda:0" if count == 1 else f"{count} GPUs, cuda:0 to cuda:{count - 1}"
        raise SettingsError(f"device {name!r} is not on this machine, which has {there}. Use one of these, or auto.")
    return name
