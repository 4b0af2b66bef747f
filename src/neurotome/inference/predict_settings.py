"""PredictSettings: how a model is applied, to images and volumes alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from neurotome.classes import Palette
from neurotome.errors import SettingsError
from neurotome.outputs import Existing
from neurotome.predictor import Device


@dataclass(frozen=True)
class PredictSettings:
    """How a model is applied."""

    tile: int | Literal["auto"] = "auto"
    """Edge of a tile in pixels; larger images are predicted in overlapping tiles. auto: the edge that suits the model."""

    halo: int | Literal["auto"] = "auto"
    """Pixels read around a tile; auto: as many as the model can see, so that tiles equal the whole image, or for a volume as
    many as --tolerance needs."""

    overlay: bool = False
    """Write OUTPUT_overlay.png (a .tif for stacks), the image with the classes laid over it, and OUTPUT_legend.png."""

    show: tuple[str, ...] = ()
    """Classes that the overlay shows; all but the first if none is named."""

    confidence: bool = False
    """Write OUTPUT_confidence.png (a .tif for stacks, a .zarr beside a .zarr): the probability of the chosen class times
    255."""

    palette: Palette = "colour-blind-safe"
    """Colours of the overlay and of label files that have colours."""

    invert: bool = False
    """Flip the grey values first: for images in which vessels and cells are brighter than the tissue around them."""

    reference: str = ""
    """Image, or folder of images, of the same scan over which the grey scale is measured: for images that show one kind of
    tissue only, such as white matter. Empty: over all images of a folder that share a grey scale, or over the one image;
    own: each image by itself. For models of normalisation tissue, as the packaged one is."""

    voxel_size_um: float | Literal["auto"] = "auto"
    """Edge of the image's pixels in micrometres; auto: what the file says. Slices are as far apart, unless the file says
    another length. Where the model's pixels differ, slices are resampled to them and the labels brought back."""

    channel: int | Literal["auto"] = "auto"
    """Which channel of an image of several, from 0; auto: the only one."""

    time: int | Literal["auto"] = "auto"
    """Which time of an image of several, from 0; auto: the only one."""

    existing: Existing = "refuse"
    """What to do where an output is there already; skip finishes a folder that was stopped. A .zarr goes on by itself."""

    device: Device = "auto"
    """Where to predict: auto (a GPU if there is one), cpu, cuda, cuda:1 (the second GPU) or mps."""

    def __post_init__(self) -> None:
        if self.tile != "auto" and self.tile < 32:
            raise SettingsError(f"tile is {self.tile}; expected at least 32 pixels, or auto.")
        if self.halo != "auto" and self.halo < 0:
            raise SettingsError(f"halo is {self.halo}; expected 0 pixels or more, or auto.")
        if self.voxel_size_um != "auto" and not 0 < self.voxel_size_um < math.inf:
            raise SettingsError(f"voxel_size_um is {self.voxel_size_um}; expected micrometres, or auto.")
