"""SuggestSettings: how places to annotate are looked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from neurotome.annotating.places import By
from neurotome.errors import SettingsError
from neurotome.predictor import Device


@dataclass(frozen=True)
class SuggestSettings:
    """How places to annotate are looked for."""

    patches: int = 8
    """How many patches to suggest."""

    edge: int | Literal["auto"] = "auto"
    """Edge of a patch in pixels of the image; auto: that of the patches the model was trained on, at its voxel size."""

    by: By = "both"
    """What counts: how uncertain the model is of a patch, how different it is from the training set and from the patches
    chosen before, or both (their product)."""

    also: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = ()
    """Further models of the same classes, which make an ensemble: where they contradict each other is uncertain."""

    every: int | Literal["auto"] = "auto"
    """Of a volume, look at every so many slices; auto: a quarter of a patch's edge, beyond which slices differ."""

    air_below: float | Literal["auto"] = "auto"
    """Grey value below which there is no tissue; patches of which less than half is tissue are not suggested. auto: a
    quarter of the way from an image's darkest grey values to its brightest."""

    voxel_size_um: float | Literal["auto"] = "auto"
    """Edge of the images' pixels in micrometres; auto: what the files say."""

    invert: bool = False
    """Flip the grey values first, as predict does; crops and --air-below have them flipped."""

    reference: str = ""
    """Image, or folder of images, over which the grey scale is measured, as in predict."""

    overwrite: bool = False
    """Replace an earlier suggestion in OUT, unless one of its files was changed, as labels are that somebody corrected."""

    device: Device = "auto"
    """Where to predict: auto (a GPU if there is one), cpu, cuda, cuda:1 (the second GPU) or mps."""

    def __post_init__(self) -> None:
        if self.patches < 1:
            raise SettingsError(f"patches is {self.patches}; expected at least 1.")
        if self.edge != "auto" and self.edge < 8:
            raise SettingsError(f"edge is {self.edge}; expected at least 8 pixels, or auto.")
        if self.every != "auto" and self.every < 1:
            raise SettingsError(f"every is {self.every}; expected at least 1, or auto.")
        if self.voxel_size_um != "auto" and not 0 < self.voxel_size_um < math.inf:
            raise SettingsError(f"voxel_size_um is {self.voxel_size_um}; expected micrometres, or auto.")
