"""Network: takes any image size. NetPredictor: a trained network as a Predictor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from neurotome.classes import ClassSet
from neurotome.errors import SettingsError, unknown
from neurotome.models.build import ModelSettings
from neurotome.normalize import Normalization

UNBOUNDED_HALO = 256
"""Halo of networks that pool over the whole image; tiles then only approximate the whole."""


class Network(nn.Module):
    """A segmentation network padded to its stride inside and cropped after, so that any image size fits."""

    def __init__(self, core: nn.Module, minimum: int = 1) -> None:
        """Wraps a network.

        Args:
            core: A model of segmentation_models_pytorch.
            minimum: Smallest edge it can take; smaller images are padded to it.
        """
        super().__init__()
        self.core = core
        self.minimum = minimum
        self.stride = max(32, int(getattr(core.encoder, "output_stride", 32)))

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits.

        Args:
            images: Shape (n, in_channels, y, x).

        Returns:
            Shape (n, classes, y, x).
        """
        height, width = images.shape[-2:]
        below, right = (max(self.minimum, -(-size // self.stride) * self.stride) - size for size in (height, width))
        if below or right:
            images = F.pad(images, (0, right, 0, below), mode="replicate")
        logits: Tensor = self.core(images)
        return logits[..., :height, :width]


@dataclass
class NetPredictor:
    """A trained network with all that prediction needs.

    Attributes:
        net: The network; put into evaluation mode.
        settings: How it was built.
        classes: What its outputs mean.
        normalization: How its input is scaled.
        halo: Pixels around a pixel that its output depends on.
        bounded: False if the network pools over the whole image, so that no halo makes tiles exact.
        patch: Edge of the training patches in pixels.
        voxel_size_um: Voxel size (z, y, x) of the training data, None if not known.
        facts: Scores, licence, citation, training data: carried along, not used.
    """

    net: Network
    settings: ModelSettings
    classes: ClassSet
    normalization: Normalization
    halo: int
    bounded: bool = True
    patch: int = 256
    voxel_size_um: tuple[float, float, float] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.net.eval()
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it

    @property
    def in_channels(self) -> int:
        """Neighbouring slices read as channels."""
        return self.settings.in_channels

    @property
    def stride(self) -> int:
        """Tiles must begin at multiples of this."""
        return self.net.stride

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.net.parameters()).device

    def predict_probs(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns class probabilities, shape (n, classes, y, x), for patches (n, in_channels, y, x).

        On a CPU always in 32 bit, also while training runs in mixed precision: tiles then equal the whole slice, and what
        validation scores is what prediction gives.
        """
        mixed = self.device.type != "cpu" and torch.is_autocast_enabled(self.device.type)
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=mixed):
            images = torch.from_numpy(np.require(patches, np.float32, ["C", "W"])).to(self.device)
            logits = self.net(images.contiguous(memory_format=torch.channels_last))
            probs: NDArray[np.float32] = logits.float().softmax(1).cpu().numpy()
        return probs


def measure_halo(net: Any, in_channels: int) -> tuple[int, bool]:
    """Measures how far an output pixel can see, from the gradient of one stride's worth of output.

    The strip is narrow, because the reach along one axis does not depend on the other's length.

    Args:
        net: A `Network`, or another module of its kind: takes any image size, with a `stride` and a `minimum`.
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
        net(strip)[..., centre : centre + net.stride, :].sum().backward()
    assert strip.grad is not None
    seen = strip.grad.abs().amax(dim=(0, 1, 3)).nonzero().flatten()
    net.zero_grad(set_to_none=True)
    net.train(was_training)
    first, last = int(seen[0]), int(seen[-1])
    if first == 0 or last == length - 1:
        return UNBOUNDED_HALO, False
    reach = max(centre - first, last - (centre + net.stride - 1))
    return -(-reach // net.stride) * net.stride, True


def has_fast_bf16() -> bool:
    """Says whether this CPU multiplies matrices of bfloat16 in units made for it (AMX)."""
    # not public, so its absence must not stop anybody; torch 2.13 has it
    found = getattr(torch.cpu, "_is_amx_tile_supported", None)
    units = found is not None and bool(found())
    return units and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def choose_device(name: str) -> str:
    """Returns the device to use; `auto` takes a GPU if there is one.

    Raises:
        SettingsError: It is no device, or this machine has none.
    """
    have = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return "cuda" if have["cuda"] else "mps" if have["mps"] else "cpu"
    if name not in have:
        raise SettingsError(unknown("device", name, ("auto", *have)))
    if not have[name]:
        found = ", ".join(device for device, there in have.items() if there)
        raise SettingsError(f"device {name!r} is not on this machine; found {found}. Use --device auto.")
    return name
