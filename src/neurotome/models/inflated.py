"""inflate: a network of slices becomes one of volumes, as some of its convolutions reach into the slices beside theirs.

The slices of a volume are the images of a batch, so that every other layer, and all code of segmentation_models_pytorch and
timm, stays as it is: normalisation over the slices of a batch is normalisation over a volume. Nothing is pooled along z, so
that voxels may be deeper than wide and a volume may have any number of slices.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from neurotome.errors import ModelError


class SliceConv(nn.Conv3d):
    """A convolution over slices and, one to either side, their neighbours; beyond the ends of a volume is nothing, 0.

    Attributes:
        depth: Slices of each volume of a batch; None: all images of a batch are the slices of one volume.
    """

    depth: int | None = None

    def __init__(self, flat: nn.Conv2d) -> None:
        """Takes the weights of a convolution over slices; those for the neighbours are 0.

        Carreira and Zisserman (2017), arXiv 1705.07750, spread the weights over the slices instead; then a new network would
        blur along z, each layer more.
        """
        assert not isinstance(flat.padding, str)
        super().__init__(
            flat.in_channels,
            flat.out_channels,
            _extend(3, flat.kernel_size),
            _extend(1, flat.stride),
            _extend(1, flat.padding),
            _extend(1, flat.dilation),
            flat.groups,
            flat.bias is not None,
        )
        with torch.no_grad():
            self.weight.zero_()[:, :, 1] = flat.weight
            if self.bias is not None and flat.bias is not None:
                self.bias.copy_(flat.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Returns images (n, out_channels, y, x) of images (n, in_channels, y, x)."""
        volumes = images.view(-1, self.depth or len(images), *images.shape[1:]).transpose(1, 2)
        return super().forward(volumes).transpose(1, 2).flatten(0, 1)


def inflate(core: nn.Module, edge: int, reach_from: int) -> None:
    """Lets the last convolution of every resolution reach into the slices beside, on the way down and on the way up.

    Only the last, because three slices cost three times as much as one: a UNet on ResNet18 takes 1.45 times the products of
    its form for slices, and three times if all did. Which convolutions follow each other is seen by running the network
    once, so that its code may be anything. Kinds of convolution that timm brings itself stay as they are.

    Args:
        core: A network of segmentation_models_pytorch with one input channel; changed in place.
        edge: Edge in pixels of an image that it takes.
        reach_from: Only where the network has so many times fewer pixels along an edge than the image, or more times.

    Raises:
        ModelError: It has no such convolution.
    """
    seen: list[tuple[nn.Conv2d, int]] = []

    def note(module: nn.Module, _: Any, made: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        seen.append((module, made.shape[-1]))

    hooks = [module.register_forward_hook(note) for module in core.modules() if _can_reach(module)]
    was_training = core.training
    core.eval()
    with torch.no_grad():
        core(torch.zeros(1, 1, edge, edge))
    core.train(was_training)
    for hook in hooks:
        hook.remove()
    after = [*(size for _, size in seen[1:]), 0]
    chosen = {module for (module, size), following in zip(seen, after, strict=True) if size != following}
    chosen &= {module for module, size in seen if size * reach_from <= edge}
    if not chosen:
        raise ModelError(
            f"found no convolution that can reach into neighbouring slices where the network has {reach_from} times fewer "
            "pixels than the image (model.reach_from) or more; expected one. Lower model.reach_from, use another encoder, "
            "such as resnet18, or --model.dimensions 2."
        )
    for parent in list(core.modules()):
        for name, child in parent.named_children():
            if child in chosen:
                assert isinstance(child, nn.Conv2d)
                setattr(parent, name, SliceConv(child))


def _extend(along_z: int, plane: tuple[int, ...]) -> tuple[int, int, int]:
    y, x = plane
    return along_z, y, x


def _can_reach(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d) or type(module) is not nn.Conv2d:
        return False
    return module.padding_mode == "zeros" and not isinstance(module.padding, str) and max(module.kernel_size) > 1


def count_reach(net: nn.Module) -> int:
    """Returns how many slices to either side an output may depend on: one for each convolution that reaches there."""
    return sum(isinstance(module, SliceConv) for module in net.modules())
