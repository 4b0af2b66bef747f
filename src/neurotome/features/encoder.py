"""Inner layers of a network as pixel features: of a trained model, or of an encoder by name."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import ModelError, unknown
from neurotome.features.base import Extractor, Read, check_patch
from neurotome.models.networks import MINIMUM_EDGE, ModelSettings, build_network, settle_network
from neurotome.normalize import Normalization
from neurotome.volume import note_other_size

if TYPE_CHECKING:
    from torch import Tensor

    from neurotome.features.frozen import Frozen

DECODER = "decoder"
USUAL_STAGES = ("1", "2", "3")


@dataclass(frozen=True)
class EncoderSettings:
    """Which network's inner layers are features."""

    model: str = ""
    """Trained model: run folder, model folder or the name of a packaged model. Not given: an encoder by its name."""

    name: str = "resnet18"
    """Encoder, where no model is given: of segmentation_models_pytorch or of timm."""

    weights: str = "none"
    """What an encoder by name starts from: none (random), imagenet, or a .safetensors file."""

    stages: tuple[str, ...] = ()
    """Layers: 1 is the encoder's first stage, at half resolution, 5 its last; decoder is a trained model's last layer before
    its classes. Not given: 1, 2, 3, and decoder of a trained model."""

    in_channels: int | Literal["auto"] = "auto"
    """Neighbouring slices read as input channels, odd; auto: what the model has, 1 for an encoder by name."""


class EncoderFeatures(Extractor):
    """A frozen network's inner layers, brought to the size of the image by linear interpolation; see `freeze`."""

    window = 256

    def __init__(
        self,
        net: Frozen,
        model: ModelSettings,
        classes: int,
        reach: tuple[int, bool],
        source: Mapping[str, Any],
        normalization: Normalization | None,
    ) -> None:
        self.net, self.model, self.classes, self.source, self.normalization = net, model, classes, source, normalization
        self.halo, self.bounded = reach
        self.in_channels, self.stride = int(model.in_channels), net.stride
        named = [stage if stage == DECODER else f"stage{stage}" for stage in net.stages]
        self.names = ("grey", *(f"{name}_{i}" for name, n in zip(named, net.channels, strict=True) for i in range(n)))

    def prepare(self, patch: NDArray[np.float32]) -> Read:
        """Runs the network over a patch, shape (in_channels, y, x)."""
        check_patch(patch, self.in_channels)
        return functools.partial(self._read, patch[patch.shape[0] // 2], self.net.run(patch))

    def _read(
        self, grey: NDArray[np.float32], layers: Sequence[tuple[int, Tensor]], rows: slice, columns: slice
    ) -> NDArray[np.float32]:
        from neurotome.features.frozen import enlarge

        features = np.empty((len(self.names), rows.stop - rows.start, columns.stop - columns.start), np.float32)
        features[0] = grey[rows, columns]
        first = 1
        for factor, layer in layers:
            features[first : first + len(layer)] = enlarge(layer, factor, rows, columns)
            first += len(layer)
        return features


def build_encoder(
    settings: EncoderSettings, device: str = "cpu", voxel_size_um: tuple[float, float, float] | None = None
) -> EncoderFeatures:
    """Builds the network, or loads it, and keeps the layers that are asked for; see `choose.build_extractor`.

    A trained model that knows other voxels than those it will look at is warned about.
    """
    from neurotome.models.model_folder import load_model

    if settings.model:
        trained = load_model(Path(settings.model))
        if settings.in_channels not in ("auto", trained.in_channels):
            raise ModelError(
                f"{settings.model}: the model reads {trained.in_channels} neighbouring slices as input channels, but "
                f"encoder.in_channels is {settings.in_channels}. Leave encoder.in_channels out, or choose a "
                "model that was trained with that many."
            )
        if trained.halo_zyx[0]:
            raise ModelError(
                f"{settings.model}: the model sees volumes (model.dimensions 3), and features are those of slices; expected "
                "a model of 2 dimensions. Choose another, or leave encoder.model out."
            )
        note_other_size(settings.model, trained.voxel_size_um, voxel_size_um)
        core, model, classes, normalization = trained.net.core, trained.settings, len(trained.classes), trained.normalization
        source = {"model": settings.model, "classes": list(trained.classes.names), **trained.facts}
        stages = settings.stages or (*_list_stages(core, USUAL_STAGES), DECODER)
    else:
        import torch

        channels = 1 if settings.in_channels == "auto" else settings.in_channels
        model = ModelSettings("unet", settings.name, settings.weights, channels)
        classes, normalization, source = 2, None, {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # random weights are features too, and must be the same ones each time
            core = build_network(model, classes).core
        stages = settings.stages or _list_stages(core, USUAL_STAGES)
        if DECODER in stages:
            raise ModelError(
                f"encoder.stages asks for {DECODER}, but {settings.name} is an encoder without a trained decoder. Give a "
                "trained model with encoder.model, or choose stages 1 to 5."
            )
    return freeze(core, model, classes, stages, source, normalization, device=device)


def freeze(
    core: Any,
    model: ModelSettings,
    classes: int,
    stages: tuple[str, ...],
    source: Mapping[str, Any],
    normalization: Normalization | None,
    reach: tuple[int, bool] | None = None,
    device: str = "cpu",
) -> EncoderFeatures:
    """Keeps what the chosen layers of a network need, which are features in the order of `stages`, after the grey value.

    `core` is a model of segmentation_models_pytorch, `model` and `classes` how it was built; `source` has the facts of its
    model, none for an encoder by name; `reach` is its halo and whether it is bounded, measured if not given.

    Raises:
        ModelError: It lacks a stage, or one is named twice.
    """
    from neurotome.features.frozen import Frozen
    from neurotome.models.net import measure_halo

    known = (*_list_stages(core, tuple(str(i) for i in range(1, len(core.encoder.out_channels)))), DECODER)
    for stage in stages:
        if stage not in known:
            raise ModelError(unknown(f"stage of {model.decoder} on {model.encoder}", stage, known))
    if not stages or len(set(stages)) < len(stages):
        raise ModelError(f"encoder.stages is {stages}; name each layer once, of {', '.join(known)}.")
    model = settle_network(model)
    channels, minimum = int(model.in_channels), MINIMUM_EDGE.get(model.decoder, 1) if DECODER in stages else 1
    try:
        net = Frozen(core, stages, channels, minimum).eval().requires_grad_(False)
        reach = reach or measure_halo(net, channels)
    except (RuntimeError, AssertionError) as error:  # encoders made for one image size
        raise ModelError(
            f"encoder {model.encoder!r} does not take images of any size ({error}); its layers cannot be features. "
            "Choose a convolutional one, such as resnet18."
        ) from error
    net.to(device)
    return EncoderFeatures(net, model, classes, reach, source, normalization)


def _list_stages(core: Any, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Returns those stages of an encoder that have channels; some have none at half resolution."""
    channels = core.encoder.out_channels
    return tuple(stage for stage in wanted if int(stage) < len(channels) and channels[int(stage)])
