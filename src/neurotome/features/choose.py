"""Which features are computed: chosen by name, built for voxels of a given size."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import SettingsError, unknown
from neurotome.features.base import Extractor, Read, check_patch
from neurotome.features.encoder import EncoderSettings, build_encoder
from neurotome.features.filters import Axes, Filters, FilterSettings

Kind = Literal["identity", "filters", "encoder"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class FeatureSettings:
    """Which features are computed."""

    kind: Kind = "filters"
    """identity: the grey value; filters: the grey value and filters at several scales; encoder: the grey value and inner
    layers of a network."""

    filters: FilterSettings = field(default_factory=FilterSettings)
    """Filters, for kind filters."""

    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    """Network and layers, for kind encoder."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SettingsError(unknown("kind of features", self.kind, KINDS))


class Identity(Extractor):
    """The grey value itself, the founding report's only feature."""

    names = ("grey",)
    in_channels = 1
    halo = 0
    window = 512

    def prepare(self, patch: NDArray[np.float32]) -> Read:  # noqa: D102
        check_patch(patch, 1)
        return lambda rows, columns: patch[:, rows, columns]


def build_extractor(settings: FeatureSettings, voxel_size_um: Axes | None = None, device: str = "cpu") -> Extractor:
    """Builds what computes the features.

    Args:
        settings: Which features.
        voxel_size_um: Edges (z, y, x) of the voxels they will be computed of, None if not known.
        device: Where a network runs.

    Raises:
        DatasetError: Sigmas are in micrometres and the voxel size is not known.
        ModelError: The encoder cannot be built or loaded, or lacks a stage.
    """
    if settings.kind == "identity":
        return Identity()
    if settings.kind == "filters":
        return Filters(settings.filters, voxel_size_um)
    return build_encoder(settings.encoder, device, voxel_size_um)
