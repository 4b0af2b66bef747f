"""Region, REGIONS: what four regions of the mouse thalamocortical axis look like in X-ray microCT.

Sizes, densities and grey values were measured, in voxels of 1.17 um, on two real slices and 128 human-drawn
label maps of Prasad et al. (2020), doi:10.1038/s41597-020-00692-y. What could not be measured (fields of
bundles and texture, number of large vessels) is chosen so that shares and grey values come out as measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Region:
    """What a brain region looks like; lengths in voxels, grey values 0..255.

    Attributes:
        axon_share: Share of voxels in axon bundles.
        fibre_angle_deg: Mean angle of the fibres above the x axis.
        fibre_fan: Distance at which the fibres would meet; small means that they fan.
        fibre_sigma: Correlation lengths of the bundles across (in z and in the plane) and along the fibres.
        cells_in_axon: Chance that a cell is kept where there are fibres.
        cells_per_mvox: Cells per 10^6 voxels.
        cell_diameter: Mean and standard deviation of the diameter of the sphere of a cell's volume.
        capillary_length: Voxels of capillary per voxel of tissue.
        lumens: Larger vessels, as (number per 256 x 256 slice, smallest calibre, largest calibre).
        neuropil: Mean grey value between cells.
        axon: Mean grey value of axon bundles.
        strand_sd: Standard deviation of the texture along the fibres in neuropil.
        streak_sd: Standard deviation of the texture along the fibres in bundles.
        noise_sd: Standard deviation of the noise.
        low_sd: Standard deviation of the slow change of brightness.
        specks_per_mvox: Bright specks per 10^6 voxels.
    """

    axon_share: float
    fibre_angle_deg: float
    fibre_fan: float
    fibre_sigma: tuple[float, float, float]
    cells_in_axon: float
    cells_per_mvox: float
    cell_diameter: tuple[float, float]
    capillary_length: float
    lumens: tuple[tuple[float, float, float], ...]
    neuropil: float
    axon: float
    strand_sd: float
    streak_sd: float
    noise_sd: float
    low_sd: float
    specks_per_mvox: float


REGIONS: Mapping[str, Region] = {
    "cortex": Region(
        axon_share=0.0,
        fibre_angle_deg=0.0,
        fibre_fan=2000.0,
        fibre_sigma=(8.0, 6.0, 42.0),
        cells_in_axon=1.0,
        cells_per_mvox=87.0,
        cell_diameter=(8.3, 1.5),
        capillary_length=1.5e-3,
        lumens=((2.0, 7.0, 14.0),),
        neuropil=117.0,
        axon=117.0,
        strand_sd=5.0,
        streak_sd=0.0,
        noise_sd=13.0,
        low_sd=3.0,
        specks_per_mvox=20.0,
    ),
    "striatum": Region(
        axon_share=0.173,
        fibre_angle_deg=0.0,
        fibre_fan=1200.0,
        fibre_sigma=(9.0, 7.0, 30.0),
        cells_in_axon=0.05,
        cells_per_mvox=68.0,
        cell_diameter=(9.9, 1.5),
        capillary_length=1.2e-3,
        lumens=((1.4, 7.0, 23.0),),
        neuropil=117.0,
        axon=158.0,
        strand_sd=3.0,
        streak_sd=10.0,
        noise_sd=12.5,
        low_sd=4.0,
        specks_per_mvox=20.0,
    ),
    "vp": Region(
        axon_share=0.571,
        fibre_angle_deg=30.0,
        fibre_fan=260.0,
        fibre_sigma=(8.0, 7.0, 30.0),
        cells_in_axon=0.25,
        cells_per_mvox=38.0,
        cell_diameter=(10.9, 1.6),
        capillary_length=2.2e-3,
        lumens=((2.0, 7.0, 16.0), (0.3, 30.0, 43.0)),
        neuropil=120.0,
        axon=151.0,
        strand_sd=7.0,
        streak_sd=17.0,
        noise_sd=16.0,
        low_sd=6.0,
        specks_per_mvox=50.0,
    ),
    "zi": Region(
        axon_share=0.0,
        fibre_angle_deg=30.0,
        fibre_fan=2000.0,
        fibre_sigma=(8.0, 7.0, 30.0),
        cells_in_axon=1.0,
        cells_per_mvox=74.0,
        cell_diameter=(11.3, 1.9),
        capillary_length=4.0e-3,
        lumens=((3.0, 7.0, 16.0), (0.8, 30.0, 43.0)),
        neuropil=139.0,
        axon=139.0,
        strand_sd=9.0,
        streak_sd=9.0,
        noise_sd=19.0,
        low_sd=5.0,
        specks_per_mvox=50.0,
    ),
}
