"""NetPredictor: a trained network as a Predictor."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from neurotome.classes import ClassSet
from neurotome.errors import ModelError
from neurotome.models.inflated import count_reach
from neurotome.models.net import Network, lay_out
from neurotome.models.networks import ModelSettings, build_network, settle_network
from neurotome.normalize import Normalization, Scale

Run = Callable[[Tensor], Tensor]
"""Computes logits (n, classes, y, x) of scaled images (n, in_channels, y, x), float32, any y and x."""


HALF = {"cuda": torch.float16}
"""Devices on which labels are computed in 16 bit. float16 is as fast as bfloat16 there and rounds eight times finer (99.99 %
instead of 99.9 % of the labels of the packaged model are those of 32 bit); where it overflows, 32 bit computes again."""


class Runtime(NamedTuple):
    """What computes a network's logits in its place.

    Attributes:
        name: With its version, for records.
        precision: In which it computes on a CPU.
        build: Makes a `run` that shares nothing but weights with another; what it holds in memory goes with it.
        run: What is used.
    """

    name: str
    precision: str
    build: Callable[[], Run]
    run: Run


@dataclass
class NetPredictor:
    """A trained network with all that prediction needs.

    Attributes:
        net: The network; put into evaluation mode.
        settings: How it was built.
        classes, normalization, bounded, voxel_size_um: As of every `Predictor`.
        halo: Pixels around a pixel, within its slice, that its output depends on.
        patch: Edge of the training patches in pixels.
        facts: Scores, licence, citation, training data: carried along, not used.
        runtime: What computes the logits in the network's place, if anything does.
    """

    net: Network = field(repr=False)
    settings: ModelSettings
    classes: ClassSet
    normalization: Normalization
    halo: int
    bounded: bool = True
    patch: int = 256
    voxel_size_um: tuple[float, float, float] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    runtime: Runtime | None = field(default=None, repr=False)
    preferred_tile: ClassVar[None] = None

    def __post_init__(self) -> None:
        self.net.eval()
        lay_out(self.net)

    @property
    def in_channels(self) -> int:
        """Neighbouring slices read as channels."""
        return int(settle_network(self.settings).in_channels)

    @property
    def halo_zyx(self) -> tuple[int, int, int]:
        """Voxels around a voxel that its output depends on; 0 along z where neighbouring slices are channels."""
        return count_reach(self.net), self.halo, self.halo

    @property
    def stride_zyx(self) -> tuple[int, int, int]:
        """Tiles must begin at multiples of this."""
        return 1, self.net.stride, self.net.stride

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.net.parameters()).device

    @property
    def back_end(self) -> str:
        """What computes it, where and how exactly `label_patches` does."""
        name = f"torch {torch.__version__.partition('+')[0]}" if self.runtime is None else self.runtime.name
        if self.device.type == "cuda":
            return f"{name}, {torch.cuda.get_device_name(self.device)}, float16"
        return f"{name}, {self.device.type}, {'float32' if self.runtime is None else self.runtime.precision}"

    def predict_probs(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns class probabilities, shape (n, classes, y, x), for patches (n, in_channels, y, x); see `Predictor`.

        On a CPU always in 32 bit, also while training runs in mixed precision: tiles then equal the whole slice, and what
        validation scores is what prediction gives.
        """
        mixed = self.device.type != "cpu" and torch.is_autocast_enabled(self.device.type)
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=mixed):
            images = torch.from_numpy(np.require(patches, np.float32, ["C", "W"])).to(self.device)
            probs: NDArray[np.float32] = self._compute_logits(images).softmax(1).cpu().numpy()
        return probs

    def label_patches(
        self, grey: NDArray[Any], scale: Scale, crop: tuple[slice, slice], confidence: bool
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Labels unscaled patches; see `Predictor`. Only their own bytes go to the device, and only uint8 comes back.

        A GPU computes in 16 bit (with sums in 32), a CPU in 32 bit.
        """
        raw = torch.from_numpy(np.require(grey, grey.dtype.newbyteorder("="), ["C", "W"]))
        on_gpu, half = self.device.type == "cuda", HALF.get(self.device.type)
        if on_gpu:
            raw = raw.pin_memory()
        with torch.inference_mode():
            images = raw.to(self.device, non_blocking=on_gpu).to(torch.float32, copy=True)
            images.sub_(scale.mean).mul_(1 / scale.std)
            with torch.autocast(self.device.type, half, enabled=half is not None):
                logits = self._compute_logits(images)[..., crop[0], crop[1]]
            if half is not None and not logits.isfinite().all():
                logits = self._compute_logits(images)[..., crop[0], crop[1]]
            labels = logits.argmax(1).to(torch.uint8)
            shares = (logits.softmax(1).amax(1) * 255).round().to(torch.uint8) if confidence else None
            return labels.cpu().numpy(), None if shares is None else shares.cpu().numpy()

    def _compute_logits(self, images: Tensor) -> Tensor:
        run = self.net if self.runtime is None else self.runtime.run
        logits: Tensor = run(images.to(memory_format=torch.channels_last))
        return logits.float()


def widen(predictor: NetPredictor, in_channels: int) -> NetPredictor:
    """Returns a predictor that reads more neighbouring slices and, until it is trained, says what the given one says.

    Its network has the same weights; those that the first convolution has for the added slices are 0.

    Args:
        predictor: A trained network; stays as it is.
        in_channels: Slices to read, odd and more than it reads.

    Raises:
        ModelError: More of the network depends on the number of slices than the first convolution.
    """
    settings = dataclasses.replace(predictor.settings, in_channels=in_channels)
    net, weights = build_network(settings, len(predictor.classes)), dict(predictor.net.state_dict())
    reads, beside = predictor.in_channels, (in_channels - predictor.in_channels) // 2
    have, want = ({name: tuple(t.shape) for name, t in tensors.items()} for tensors in (weights, net.state_dict()))
    differing = sorted(name for name in have | want if have.get(name) != want.get(name))
    first = have.get(differing[0], ()) if len(differing) == 1 else ()
    if len(first) != 4 or first[1] != reads or want.get(differing[0]) != (first[0], in_channels, *first[2:]):
        raise ModelError(
            f"{settings.decoder} on {settings.encoder} that reads {in_channels} slices differs from one that reads {reads} "
            f"in {', '.join(differing) or 'no weights'}; expected the first convolution alone, whose weights for the added "
            "slices begin at 0. Leave --model.in-channels out, or train without --init."
        )
    weights[differing[0]] = nn.functional.pad(weights[differing[0]], (0, 0, 0, 0, beside, beside))
    net.load_state_dict(weights)
    facts = {**predictor.facts, "widened_from": reads}
    return dataclasses.replace(predictor, net=net.to(predictor.device), settings=settings, facts=facts, runtime=None)


def deepen(predictor: NetPredictor, reach_from: int) -> NetPredictor:
    """Returns a predictor that sees volumes and, until it is trained, says of each slice what the given one says.

    Args:
        predictor: A trained network of slices; stays as it is.
        reach_from: As of `ModelSettings`.

    Raises:
        ModelError: It reads several slices as channels, or has no convolution that can reach into others.
    """
    settings = dataclasses.replace(predictor.settings, dimensions=3, reach_from=reach_from)
    net = build_network(settings, len(predictor.classes))
    weights = dict(predictor.net.state_dict())
    for name, wanted in net.state_dict().items():
        if wanted.ndim == weights[name].ndim + 1:
            weights[name] = nn.functional.pad(weights[name][:, :, None], (0, 0, 0, 0, 1, 1))
    net.load_state_dict(weights)
    facts = {**predictor.facts, "deepened_from": 2}
    return dataclasses.replace(predictor, net=net.to(predictor.device), settings=settings, facts=facts, runtime=None)


def mix(old: NetPredictor, new: NetPredictor, alpha: float) -> NetPredictor:
    """Returns a predictor as `new` is, on its device, with the weights (1 - alpha) * old + alpha * new.

    Of a network that was trained further from an old one, such weights keep what the old ones know of other images, and gain
    on images like those it was trained on: Wortsman et al. (2022), arXiv 2109.01903. What a network counts is the new one's.
    An old network that reads fewer slices takes part as `widen` makes it, one of slices beside one of volumes as
    `deepen` does.
    """
    old = widen(old, new.in_channels) if old.in_channels < new.in_channels else old
    if new.halo_zyx[0] and not old.halo_zyx[0]:
        old = deepen(old, int(new.settings.reach_from))
    net, before = copy.deepcopy(new.net), old.net.state_dict()
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.lerp(before[name].to(tensor), tensor, alpha))
    return dataclasses.replace(new, net=net)
