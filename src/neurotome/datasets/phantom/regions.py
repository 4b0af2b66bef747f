"""Region, Instrument: what brain tissue and the microscope look like, as measured and as drawn for training.

`REGIONS` and `INSTRUMENT` hold what was measured, in voxels of 1.17 um and grey values 0..255, on two real slices
and 128 human-drawn label maps of Prasad et al. (2020), doi:10.1038/s41597-020-00692-y. What could not be measured
(shape of the bundle field, number of large vessels, texture of fibres) is chosen so that shares, counts and grey
values come out as measured; `docs/phantom.md` shows how near they come.

`draw_region` and `draw_instrument` draw all of it from ranges around these numbers: domain randomisation, as
SynthSeg does for MRI (Billot et al. 2023, doi:10.1016/j.media.2023.102789). A network that has seen every number
within a range does not depend on any one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

Span = tuple[float, float]

VOXEL_SIZE_UM = 1.17


@dataclass(frozen=True)
class Region:
    """What a brain region looks like; lengths in voxels, grey values 0..255."""

    axon_share: float  # share of voxels in axon bundles
    fibre_angle_deg: float  # mean angle of the fibres above the x axis
    fibre_fan: float  # distance at which the fibres would meet; small means that they fan
    fibre_dip_deg: float  # angle of the fibres to the plane: at 90 they are cut across
    fibre_bend: float  # voxels by which fibres swerve to the sides
    fibre_sigma: tuple[float, float, float]  # correlation lengths of the bundles across (z, plane) and along the fibres
    bundle_edge: float  # width of a bundle's edge, in standard deviations of the field it is cut from
    beyond_share: float  # share of axons beyond a border that crosses the field; `axon_share` for no border
    beyond_grey: float  # grey values by which neuropil differs beyond that border
    sheet_width: float  # with a border: width of a sheet that lies between `axon_share` on both sides, 0 for none
    cells_in_axon: float  # chance that a cell is kept where there are fibres
    cells_per_mvox: float  # cells per 10^6 voxels
    cell_diameter: Span  # mean and standard deviation of the diameter of the sphere of a cell's volume
    faint_cells: float  # faint cells, per cell that is not
    faint_cells_drawn: float  # share of the faint cells that people draw
    cell_pole: float  # a cell is drawn where its profile is wider than this share of its diameter
    cell_edge: float  # voxels by which people draw a cell too wide
    cell_clusters: float  # share of cells that are put beside another one
    cell_rows: float  # how much clusters stretch along the fibres; 0 for round ones
    capillary_length: float  # voxels of capillary per voxel of tissue
    capillary_radius: Span  # mean and standard deviation
    faint_vessels: float  # share of capillaries that are thinner than a voxel, and so faint
    faint_vessels_drawn: float  # share of these that people draw
    vessel_edge: float  # voxels by which people draw a vessel too wide
    dashes_per_mvox: float  # short vessels along the fibres per 10^6 voxels
    lumens: tuple[tuple[float, float, float], ...]  # larger vessels: number per 256 x 256 slice, calibre from, to
    lumen_squash: float  # share by which the most collapsed of them is narrower one way than the other
    neuropil: float  # mean grey value between cells
    axon: float  # mean grey value of axon bundles
    soma: float  # grey value within a cell
    cell_contrast: Span  # smallest and largest; 1 is as dark as `soma`, 0 invisible
    capillary: float  # grey value within a capillary, before blur
    lumen: float  # grey value within a large vessel: below 0, the reconstruction undershoots
    strand_sd: float  # standard deviation of the texture along the fibres in neuropil
    strand_sigma: tuple[float, float, float]  # correlation lengths of that texture across (z, plane) and along the fibres
    streak_sd: float  # standard deviation of the texture along the fibres in bundles
    streak_sigma: tuple[float, float, float]  # correlation lengths of that texture: longer along the fibres than in neuropil
    gap_depth: float  # grey values that thin dark gaps between fibres take away in bundles
    noise_sd: float  # standard deviation of the noise
    low_sd: float  # standard deviation of the slow change of brightness
    specks_per_mvox: float  # bright specks per 10^6 voxels


@dataclass(frozen=True)
class Instrument:
    """What the microscope and the reconstruction do to the tissue; lengths in voxels."""

    blur_sigma: float  # standard deviation of the blur; edges are about 2 voxels wide
    edge_gain: float  # strength of the phase-contrast edge: how much of the difference to a wider blur is added
    edge_sigma: float  # standard deviation of that wider blur
    noise_sigma_zyx: tuple[float, float, float]  # correlation of the noise
    streaks: float  # dark vertical streaks per 256 x 256 slice, within one band
    streak_depth: float  # grey values that a streak takes away
    seam: float  # chance of a dark vertical line from top to bottom, where two scans were joined
    air: float  # share of the cutout that lies outside the tissue, 0 for none
    rim: float  # grey values added where tissue meets air
    shift: float  # grey values added before clipping at 0: how much of the undershoot survives
    gain: float  # factor on grey values before clipping
    grey_step: float = 0.0  # distance of neighbouring grey values where an image has few of them


_CORTEX = Region(
    axon_share=0.0,
    fibre_angle_deg=0.0,
    fibre_fan=2000.0,
    fibre_dip_deg=0.0,
    fibre_bend=2.0,
    fibre_sigma=(8.0, 6.0, 42.0),
    bundle_edge=0.3,
    beyond_share=0.0,
    beyond_grey=0.0,
    sheet_width=0.0,
    cells_in_axon=1.0,
    cells_per_mvox=92.0,
    cell_diameter=(8.0, 1.4),
    faint_cells=0.4,
    faint_cells_drawn=0.0,
    cell_pole=0.45,
    cell_edge=0.0,
    cell_clusters=0.25,
    cell_rows=0.0,
    capillary_length=1.5e-3,
    capillary_radius=(1.65, 0.35),
    faint_vessels=0.2,
    faint_vessels_drawn=0.3,
    vessel_edge=0.1,
    dashes_per_mvox=0.0,
    lumens=((1.0, 7.0, 14.0),),
    lumen_squash=0.3,
    neuropil=118.0,
    axon=150.0,
    soma=62.0,
    cell_contrast=(0.55, 1.15),
    capillary=32.0,
    lumen=5.0,
    strand_sd=2.0,
    strand_sigma=(1.5, 1.3, 6.0),
    streak_sd=0.0,
    streak_sigma=(1.8, 1.6, 16.0),
    gap_depth=0.0,
    noise_sd=12.0,
    low_sd=3.0,
    specks_per_mvox=20.0,
)

REGIONS: Mapping[str, Region] = {
    "cortex": _CORTEX,
    "striatum": replace(
        _CORTEX,
        axon_share=0.173,
        beyond_share=0.173,
        fibre_bend=8.0,
        fibre_sigma=(9.0, 7.0, 30.0),
        fibre_fan=1200.0,
        cells_in_axon=0.05,
        cells_per_mvox=76.0,
        cell_diameter=(9.3, 1.3),
        cell_clusters=0.35,
        capillary_length=1.2e-3,
        lumens=((1.0, 7.0, 23.0),),
        axon=160.0,
        streak_sd=6.0,
        gap_depth=5.0,
        noise_sd=11.5,
        low_sd=4.0,
    ),
    "vp": replace(
        _CORTEX,
        axon_share=0.571,
        beyond_share=0.571,
        fibre_angle_deg=30.0,
        fibre_fan=260.0,
        fibre_bend=8.0,
        fibre_sigma=(8.0, 7.0, 30.0),
        cells_in_axon=0.2,
        cells_per_mvox=44.0,
        cell_diameter=(10.4, 1.4),
        cell_clusters=0.45,
        cell_rows=0.5,
        capillary_length=2.1e-3,
        dashes_per_mvox=40.0,
        lumens=((1.5, 7.0, 16.0), (0.3, 30.0, 43.0)),
        neuropil=122.0,
        axon=149.0,
        strand_sd=6.0,
        strand_sigma=(1.4, 1.2, 3.5),
        streak_sd=7.0,
        streak_sigma=(1.4, 1.2, 9.0),
        gap_depth=12.0,
        noise_sd=14.5,
        low_sd=5.0,
        specks_per_mvox=35.0,
    ),
    "zi": replace(
        _CORTEX,
        fibre_angle_deg=50.0,
        cells_per_mvox=82.0,
        cell_diameter=(10.9, 1.7),
        cell_clusters=0.3,
        capillary_length=3.1e-3,
        dashes_per_mvox=90.0,
        lumens=((1.2, 7.0, 16.0), (0.4, 30.0, 43.0)),
        neuropil=140.0,
        capillary_radius=(1.45, 0.3),
        capillary=45.0,
        strand_sd=9.0,
        strand_sigma=(1.3, 1.1, 2.8),
        streak_sd=8.0,
        noise_sd=15.0,
        low_sd=5.0,
        specks_per_mvox=50.0,
    ),
}

INSTRUMENT = Instrument(
    blur_sigma=1.15,
    edge_gain=2.3,
    edge_sigma=2.5,
    noise_sigma_zyx=(1.2, 1.45, 1.0),
    streaks=0.0,
    streak_depth=30.0,
    seam=0.0,
    air=0.0,
    rim=40.0,
    shift=0.0,
    gain=1.0,
)


def draw_region(base: Region, rng: np.random.Generator) -> Region:
    """Draws a region from the ranges around a measured one.

    Densities, sizes and contrasts are multiplied by log-uniform factors; grey values move by a few tens; a part
    of the regions changes its share of axons altogether, because what lies between the measured places
    (white matter, their borders) is not among them.
    """
    factor = partial(_draw_factor, rng)
    share = _draw_share(base.axon_share, rng)
    beyond_share, sheet_width = share, 0.0
    if rng.random() < 0.35:
        share, beyond_share = rng.beta(0.4, 2.0), rng.uniform(0.8, 1.0)
        if rng.random() < 0.4:
            sheet_width = factor(15, 110)
        elif rng.random() < 0.5:
            share, beyond_share = beyond_share, share
    neuropil = base.neuropil + rng.uniform(-12, 12)
    axon = neuropil + rng.uniform(12, 55)
    across = factor(3.5, 22)
    texture = factor(0.7, 1.4)
    # texture as strong as fibres' own is found where there are no bundles to be told from it, and is never as long
    strands = rng.uniform(4, 14) if max(share, beyond_share) < 0.2 and rng.random() < 0.5 else rng.uniform(1, 7)
    drawn_wider = rng.uniform(-0.5, 0.7)  # a person draws vessels and cells much alike
    return replace(
        base,
        axon_share=share,
        fibre_angle_deg=rng.uniform(0, 180),
        fibre_fan=factor(200, 2000),
        fibre_dip_deg=rng.uniform(-90, 90) if rng.random() < 0.4 else rng.uniform(-20, 20),
        fibre_bend=factor(2, 18),
        fibre_sigma=(across * factor(0.8, 1.5), across, across * factor(1.5, 8)),
        bundle_edge=factor(0.08, 0.6),
        beyond_share=beyond_share,
        beyond_grey=rng.normal(0, 6),
        sheet_width=sheet_width,
        cells_in_axon=rng.uniform(0.02, 0.5),
        cells_per_mvox=base.cells_per_mvox * factor(0.5, 2.0),
        cell_diameter=(base.cell_diameter[0] * factor(0.8, 1.2), base.cell_diameter[1] * factor(0.7, 1.3)),
        faint_cells=rng.uniform(0, 0.8),
        faint_cells_drawn=rng.beta(0.7, 1.4),
        cell_pole=rng.uniform(0, 0.6),
        cell_edge=drawn_wider + rng.uniform(-0.5, 0.1),
        cell_clusters=rng.uniform(0, 0.7),
        cell_rows=rng.uniform(0, 3),
        capillary_length=base.capillary_length * factor(1.0, 2.8),
        capillary_radius=(base.capillary_radius[0] * factor(0.75, 1.3), base.capillary_radius[1] * factor(0.7, 1.5)),
        faint_vessels=rng.uniform(0, 0.6),
        faint_vessels_drawn=rng.uniform(0, 1),
        vessel_edge=drawn_wider + rng.uniform(-0.1, 0.5),
        dashes_per_mvox=float(rng.choice([0.0, 1.0])) * factor(20, 150),
        lumens=((factor(0.5, 4), 6.0, 10.0), (factor(0.5, 3), 8.0, 20.0), (factor(0.05, 0.6), 20.0, 80.0)),
        lumen_squash=rng.uniform(0, 0.85),
        neuropil=neuropil,
        axon=axon,
        soma=neuropil * rng.uniform(0.3, 0.62),
        cell_contrast=(rng.uniform(0.5, 0.8), rng.uniform(0.95, 1.3)),
        capillary=rng.uniform(0, 65),
        lumen=rng.uniform(-25, 25),
        strand_sd=strands,
        strand_sigma=(texture * factor(1.0, 2), texture * factor(0.9, 1.8), texture * factor(1.5, 4.5)),
        streak_sd=rng.uniform(3, 11),
        streak_sigma=(texture * factor(1.2, 2.4), texture * factor(1.0, 2.2), factor(5, 40)),
        gap_depth=rng.uniform(0, 35),
        noise_sd=rng.uniform(6, 18),
        low_sd=rng.uniform(1, 12),
        specks_per_mvox=factor(3, 100),
    )


def _draw_share(measured: float, rng: np.random.Generator) -> float:
    """Draws the share of axons: white matter that fills the view, fanning bands with islands, or few bundles."""
    kind = rng.random()
    if kind < 0.14:
        return float(rng.uniform(0.9, 1.0))
    if kind < 0.4:
        return float(rng.uniform(0.35, 0.9))
    return float(rng.beta(1.0, 1.6)) if kind < 0.6 or measured > 0 else 0.0


def _draw_factor(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def draw_instrument(rng: np.random.Generator) -> Instrument:
    """Draws an instrument from the ranges around the measured one; every fifth cutout reaches into air."""
    correlation = _draw_factor(rng, 0.75, 1.3)
    return Instrument(
        blur_sigma=rng.uniform(0.75, 1.4),
        edge_gain=rng.uniform(1.0, 3.4),
        edge_sigma=rng.uniform(1.9, 3.2),
        noise_sigma_zyx=(1.2 * correlation, correlation * rng.uniform(0.95, 1.6), correlation * rng.uniform(0.85, 1.2)),
        streaks=rng.uniform(0, 8) if rng.random() < 0.3 else 0.0,
        streak_depth=rng.uniform(10, 50),
        seam=0.1,
        air=rng.uniform(0.02, 0.6) if rng.random() < 0.2 else 0.0,
        rim=rng.uniform(0, 90),
        shift=rng.uniform(0, 30),
        gain=rng.uniform(0.8, 1.25),
    )
