"""MeasureSettings: what is measured in labels, and how; checked before anything is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from neurotome.errors import SettingsError
from neurotome.objects.splitting import NECK
from neurotome.volume import Size, state_size


@dataclass(frozen=True)
class MeasureSettings:
    """What is measured in labels, and how."""

    classes: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = ()
    """Names of the classes by their ids, the first is id 0; none: what the file, or dataset.yaml beside its folder, says."""

    voxel_size_um: Annotated[tuple[float, ...], Parameter(consume_multiple=True)] = ()
    """Edges of a voxel in micrometres, z y x, or one number for all three; none: what the file says."""

    bbox: str = ""
    """Only this box, z0:z1,y0:y1,x0:x1 in voxels."""

    cells: str = "auto"
    """Class of which single cells are measured; auto: the one named cell, if there is one; none: not measured."""

    vessels: str = "auto"
    """Class of which the network is measured: length, radius, branch points; auto and none as for cells."""

    axons: str = "auto"
    """Class of which the direction is measured; auto and none as for cells."""

    neck: float = NECK
    """Touching cells are parted where the neck between them is narrower than this share of the smaller one. 0: never."""

    smallest_um: float = 4.0
    """Smaller objects, by the diameter of a sphere of their volume (in slices: a disc of their area), are no cells; those
    that are cut by the border are kept, since nobody knows how large they are."""

    as_slices: bool = False
    """Take every slice by itself, as where slices lie far apart: profiles of cells are measured, and their number corrected
    to a density in 3D. A single slice always is."""

    cell_diameter_um: float | Literal["auto"] = "auto"
    """Mean diameter of a cell, for that correction; auto: that of spheres of one size with such profiles."""

    slice_thickness_um: float = 0.0
    """Thickness of a slice within which a cell is seen wherever it lies, for that correction; 0: a plane, as in a volume."""

    grid_um: float | Literal["auto"] = "auto"
    """Edge of the cubes of the coarse maps, which are also the clusters of the intervals; auto: 24 along the longest axis,
    but at least 8 voxels each."""

    level: float = 0.95
    """How often an interval should hold the truth."""

    block: int | Literal["auto"] = "auto"
    """Edge in voxels of what is read at once; the numbers are the same for any. auto: 256, or whole slices where the file
    stores these."""

    workers: int = 1
    """Processes that measure blocks."""

    overwrite: bool = False
    """Replace what an earlier measurement left in the output folder."""

    def __post_init__(self) -> None:
        state_size(self.voxel_size_um)
        for name in ("cell_diameter_um", "grid_um"):
            value = getattr(self, name)
            if value != "auto" and not 0 < value < math.inf:
                raise SettingsError(f"{name} is {value}; expected micrometres, more than 0, or auto.")
        if self.cell_diameter_um != "auto" and self.cell_diameter_um <= self.smallest_um:
            raise SettingsError(
                f"cell_diameter_um is {self.cell_diameter_um:g} and smallest_um {self.smallest_um:g}: no such cell would be "
                "seen. Lower --smallest-um."
            )
        for name in ("smallest_um", "slice_thickness_um"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingsError(f"{name} is {getattr(self, name)}; expected micrometres, 0 or more.")
        if not 0 <= self.neck <= 1:
            raise SettingsError(f"neck is {self.neck}; expected a share, 0 to 1.")
        if not 0 < self.level < 1:
            raise SettingsError(f"level is {self.level}; expected a share between 0 and 1, such as 0.95.")
        if self.block != "auto" and self.block < 1:
            raise SettingsError(f"block is {self.block}; expected at least 1 voxel, or auto.")
        if self.workers < 1:
            raise SettingsError(f"workers is {self.workers}; expected 1 or more.")

    @property
    def size_um(self) -> Size | None:
        """The stated voxel size (z, y, x), None if none is stated."""
        return state_size(self.voxel_size_um)
