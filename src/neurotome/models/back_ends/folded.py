"""fold_network: a copy of a network without batch normalisation, which is folded into the convolutions before it."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from neurotome.models.inflated import SliceConv
from neurotome.models.net import Network, lay_out

TOLERANCE = 1e-4
"""Largest difference of a logit, relative to the largest, at which a folded network counts as the same."""

Convolution = nn.Conv2d | nn.ConvTranspose2d | SliceConv


def fold_network(net: Network, in_channels: int) -> Network:
    """Returns a copy for prediction in which every normalisation that follows a convolution is part of its weights.

    Which follows which is seen by running the network once, so that its code may be anything. The result is compared with
    the network's, and where it differs, a plain copy is returned.
    """
    plain = copy.deepcopy(net).eval().requires_grad_(False)
    folded = copy.deepcopy(plain)
    parameter = next(plain.parameters())
    edge = max(2 * net.stride, net.minimum)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((1, in_channels, edge, edge), generator=generator).to(parameter)
    with torch.inference_mode():
        pairs = _find_pairs(folded, images)
    for convolution, normalisation in pairs:
        fused = fuse_conv_bn_eval(convolution, normalisation, transpose=isinstance(convolution, nn.ConvTranspose2d))
        convolution.weight, convolution.bias = fused.weight.requires_grad_(False), fused.bias
        _replace(folded, normalisation, _rest_of(normalisation))
    with torch.inference_mode():
        expected, found = plain(images), folded(images)
    same = (found - expected).abs().max() <= TOLERANCE * expected.abs().max()
    chosen = folded if same else plain
    lay_out(chosen)
    return chosen


def _find_pairs(net: nn.Module, images: Tensor) -> list[tuple[Convolution, nn.BatchNorm2d]]:
    """Returns the convolutions and normalisations that are used once, one on the very tensor that the other returned."""
    makers: dict[int, Convolution] = {}
    kept: list[Tensor] = []  # an id is a tensor's own only while it lives
    pairs: list[tuple[Convolution, nn.BatchNorm2d]] = []
    uses: dict[nn.Module, int] = {}

    def note(module: nn.Module, given: tuple[Tensor, ...], returned: Any) -> None:
        uses[module] = uses.get(module, 0) + 1
        if isinstance(module, Convolution):
            makers[id(returned)] = module
            kept.append(returned)
        elif id(given[0]) in makers:
            pairs.append((makers[id(given[0])], cast(nn.BatchNorm2d, module)))

    hooks = [m.register_forward_hook(note) for m in net.modules() if isinstance(m, Convolution | nn.BatchNorm2d)]
    net(images)
    for hook in hooks:
        hook.remove()
    return [(made, norm) for made, norm in pairs if uses[made] == uses[norm] == 1]


def _rest_of(normalisation: nn.BatchNorm2d) -> nn.Module:
    """Returns what a normalisation does besides: timm's hold their activation."""
    rest = [getattr(normalisation, name) for name in ("drop", "act") if hasattr(normalisation, name)]
    return nn.Sequential(*rest) if rest else nn.Identity()


def _replace(net: nn.Module, wanted: nn.Module, by: nn.Module) -> None:
    for parent in net.modules():
        for name, child in parent.named_children():
            if child is wanted:
                setattr(parent, name, by)
