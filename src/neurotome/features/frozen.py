"""The layers of a network that are features, in torch; apart from the settings, which must load fast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F


class Frozen(nn.Module):
    """An encoder, and the decoder if it is asked for, without the head; takes any image size."""

    def __init__(self, core: Any, stages: Sequence[str], in_channels: int, minimum: int = 1) -> None:
        """Keeps what the stages need of `core`, a model of segmentation_models_pytorch.

        Images smaller than `minimum` are padded; as the network has it, for a tile at the border must be padded as the
        whole image is.
        """
        super().__init__()
        self.encoder = core.encoder
        self.decoder = core.decoder if "decoder" in stages else None
        self.stages = tuple(stages)
        self.stride = max(32, int(getattr(core.encoder, "output_stride", 32)))
        self.minimum = minimum
        self.eval()
        edge = max(minimum, 4 * self.stride)
        with torch.inference_mode():
            layers = self._list_layers(torch.zeros(1, in_channels, edge, edge))
        self.channels = tuple(layer.shape[1] for layer in layers)

    def forward(self, images: Tensor) -> Tensor:
        """Returns all layers in the size of the images, shape (n, channels, y, x); what `measure_halo` looks at."""
        height, width = images.shape[-2:]
        padded = self._pad(images)
        layers = self._list_layers(padded)
        size = padded.shape[-2:]
        large = [F.interpolate(layer, size=size, mode="bilinear", align_corners=False) for layer in layers]
        return torch.cat(large, 1)[..., :height, :width]

    def run(self, patch: NDArray[np.float32]) -> list[tuple[int, Tensor]]:
        """Returns of each layer of a patch (in_channels, y, x) how many pixels one of its own is wide, and the layer.

        That lies on the CPU, float32 (channels, y, x).
        """
        device = next(self.parameters()).device
        with torch.inference_mode():
            images = torch.from_numpy(np.require(patch, np.float32, ["C", "W"]))[None].to(device)
            padded = self._pad(images.to(memory_format=torch.channels_last))
            layers = self._list_layers(padded)
            return [(padded.shape[-1] // layer.shape[-1], layer[0].float().cpu().contiguous()) for layer in layers]

    def _pad(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        below, right = (max(self.minimum, -(-size // self.stride) * self.stride) - size for size in (height, width))
        return F.pad(images, (0, right, 0, below), mode="replicate") if below or right else images

    def _list_layers(self, images: Tensor) -> list[Tensor]:
        features = self.encoder(images)
        decoded: list[Tensor] = [] if self.decoder is None else [self.decoder(features)]
        return [decoded[0] if stage == "decoder" else features[int(stage)] for stage in self.stages]


def enlarge(layer: Tensor, factor: int, rows: slice, columns: slice) -> NDArray[np.float32]:
    """Returns a window of a layer (channels, y, x) that is brought to `factor` times its size by bilinear interpolation.

    Only the part of the layer that the window needs is enlarged, with a pixel more around it, so that the result does not
    depend on the window.
    """
    picked, windows = [], []
    for span, size in ((rows, layer.shape[1]), (columns, layer.shape[2])):
        first, last = max(0, span.start // factor - 1), min(size, -(-span.stop // factor) + 1)
        picked.append(slice(first, last))
        windows.append(slice(span.start - first * factor, span.stop - first * factor))
    piece = layer[:, picked[0], picked[1]]
    with torch.inference_mode():
        if factor > 1:
            piece = F.interpolate(piece[None], scale_factor=factor, mode="bilinear", align_corners=False)[0]
        enlarged: NDArray[np.float32] = piece[:, windows[0], windows[1]].numpy()
    return enlarged
