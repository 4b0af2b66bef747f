"""NetPredictor: a trained network as a Predictor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.models.net import Network
from neurotome.models.networks import ModelSettings, settle_network
from neurotome.normalize import Normalization


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
    preferred_tile: ClassVar[None] = None

    def __post_init__(self) -> None:
        self.net.eval()
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it

    @property
    def in_channels(self) -> int:
        """Neighbouring slices read as channels."""
        return int(settle_network(self.settings).in_channels)

    @property
    def halo_zyx(self) -> tuple[int, int, int]:
        """Voxels around a voxel that its output depends on; neighbouring slices are channels."""
        return 0, self.halo, self.halo

    @property
    def stride_zyx(self) -> tuple[int, int, int]:
        """Tiles must begin at multiples of this."""
        return 1, self.net.stride, self.net.stride

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
