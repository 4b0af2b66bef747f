"""Synthetic tissue that looks like images of one's own: `measure_appearance` of unlabelled ones, `draw_like` around it.

Grey scale, noise, edges, texture and slow changes are estimated; where they interact, a few small pieces of phantom are
made with the estimates and measured in the same way, and the estimates corrected by what was found. Shapes, shares and
numbers of cells, vessels and fibres are not inferred.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.datasets.phantom import measured
from neurotome.datasets.phantom.image import paint_tissue, record_image
from neurotome.datasets.phantom.measured import GREY, Plane
from neurotome.datasets.phantom.regions import INSTRUMENT, REGIONS, VOXEL_SIZE_UM, Instrument, Region
from neurotome.datasets.phantom.tissue import Tissue, build_tissue
from neurotome.errors import ImageError
from neurotome.io.files import SUFFIXES, list_images
from neurotome.io.ome_zarr import is_zarr
from neurotome.io.opening import open_volume
from neurotome.normalize import measure_tissue
from neurotome.resampling import choose_factors
from neurotome.volume import Volume

EDGE = 160
SMALLEST_EDGE = 64
MOST_TILES = 32
"""Squares of 160 x 160 voxels, spread over all images, that are measured; of smaller images all, from 64 x 64."""

FEWEST_TISSUE = 12_000
"""Pixels of tissue (110 x 110) below which nothing is estimated."""

STRUCTURED = 3.0
"""Depth of the darkest 0.5 % below the median, in standard deviations, after smoothing and without slow changes.

2.5 to 2.65 in noise of any kind; 3.2 to 9 in 88 squares of two real slices and in four real patches.
"""

FEWEST_LUMENS = 3
STEPS = 3
PIECES = ("cortex", "striatum", "vp")
PIECE_SHAPE = (10, 136, 136)
PIECE_PAD = 4

SMALLEST_SPREAD = 0.05  # of a value: what was measured is not exact


@dataclass(frozen=True)
class Measured:
    """A number, and its standard deviation over the places where it was measured."""

    centre: float
    spread: float

    def draw(self, rng: np.random.Generator | None, low: float = 0.0) -> float:
        """Draws evenly from two standard deviations around the centre, not below `low`; without rng the centre."""
        if rng is None:
            return max(self.centre, low)
        reach = 2 * max(self.spread, SMALLEST_SPREAD * abs(self.centre))
        return float(max(rng.uniform(self.centre - reach, self.centre + reach), low))


@dataclass(frozen=True)
class Appearance:
    """What images look like. Grey values, unless they say image, are the phantom's: 0 is the darkest, 118 neuropil.

    Lengths are in voxels of 1.17 um; None is what could not be measured.
    """

    images: int
    tissue_px: int
    dtype: str
    image_darkest_grey: Measured
    image_neuropil_grey: Measured
    image_grey_step: float  # distance of neighbouring grey values where there are fewer than 64, else 0
    dark_share: Measured  # share of pixels darker than half of neuropil's grey; recorded, not used
    noise_sd_grey: Measured
    noise_sigma_y_px: Measured
    noise_sigma_x_px: Measured
    slow_sd_grey: Measured
    strand_sd_grey: Measured  # of the texture along fibres in neuropil
    specks_per_mpx: Measured
    soma_grey: Measured | None  # of cells' cores, recorded, not used: nuclei, nucleoli and contrast are in it
    white_grey: Measured | None  # of white matter
    streak_sd_grey: Measured | None  # of that in white matter
    blur_sigma_px: Measured | None
    edge_gain: Measured | None
    edge_sigma_px: Measured | None

    def to_json(self) -> dict[str, Any]:
        """Returns plain numbers, rounded to six digits."""
        return {name: _plain(value) for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Appearance:
        """Rebuilds an Appearance; KeyError or TypeError if something is missing."""
        values = {field.name: content[field.name] for field in dataclasses.fields(cls)}
        made: dict[str, Any] = {n: Measured(**v) if isinstance(v, Mapping) else v for n, v in values.items()}
        return cls(**made)


def read_appearance(paths: Sequence[str | Path], voxel_size_um: float | None = None) -> Appearance:
    """Measures image files, or folders of them; see `measure_appearance`.

    Args:
        paths: Files that `open_volume` reads, and folders of such.
        voxel_size_um: Edge of their voxels; None: what the files say, 1.17 if nothing.

    Raises:
        ImageError: A file cannot be read or is no grey image of brain, or there is too little tissue.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir() or is_zarr(path):
            files.append(path)
            continue
        found = list_images(path)
        if not found:
            raise ImageError(f"{path}: no {', '.join(SUFFIXES)} file in this folder; expected at least one image.")
        files += found
    size = None if voxel_size_um is None else (voxel_size_um,) * 3
    return measure_appearance([open_volume(file, voxel_size_um=size) for file in files])


def measure_appearance(volumes: Sequence[Volume]) -> Appearance:
    """Estimates what unlabelled images look like, for `draw_like`.

    Each image has a grey scale of its own: its darkest pixels (lumens, air) are 0, its neuropil is 118. Images of
    another voxel size are measured as they look at 1.17 um.

    Raises:
        ImageError: An image is constant, inverted, smaller than 64 x 64 or of a voxel size that cannot be right, or all
            together show too little tissue.
    """
    tiles: list[Plane] = []
    tissue_px, whites, darkest_greys, neuropils, step = 0, [], [], [], 0.0
    volumes = volumes[:: max(-(-len(volumes) // (2 * MOST_TILES)), 1)]  # of very many images some stand for all
    for volume in volumes:
        own, tissue, darkest, neuropil, white, own_step = _read_tiles(volume, -(-MOST_TILES // len(volumes)))
        tissue_px += tissue
        if not own:
            continue
        tiles += own
        darkest_greys.append(darkest)
        neuropils.append(neuropil)
        whites += [] if white is None else [white]
        step = max(step, own_step)
    white = float(np.median(whites)) if whites else None
    unit = GREY / float(np.median(np.subtract(neuropils, darkest_greys))) if neuropils else 1.0
    seen = _summarise(tiles, white, step * unit) | _fit_edges(tiles) if tissue_px >= FEWEST_TISSUE else {}
    if "noise_sd_grey" not in seen:
        flat = "" if tissue_px < FEWEST_TISSUE else ", nowhere 1500 of them away from cells and vessels"
        many = "s" * (len(volumes) != 1)
        raise ImageError(
            f"found {tissue_px} pixels of tissue in {len(volumes)} image{many}{flat}; expected at least {FEWEST_TISSUE} to "
            "measure what tissue looks like. Tissue is grey with darker cells and vessels in it; air and blank images are "
            "none. Give more images, or larger ones."
        )
    appearance = Appearance(
        images=len(volumes),
        tissue_px=tissue_px,
        dtype=volumes[0].data.dtype.name,
        image_darkest_grey=_spread(darkest_greys),
        image_neuropil_grey=_spread(neuropils),
        image_grey_step=step,
        **{name: seen.get(name) for name in _FITTED},  # type: ignore[arg-type]
    )
    begun: dict[str, Any] = {name: Measured(value, seen[name].spread) for name, (_, value) in _ALONG.items() if name in seen}
    return _correct(replace(appearance, **begun), seen)


def draw_like(
    appearance: Appearance, region: Region, instrument: Instrument, rng: np.random.Generator | None
) -> tuple[Region, Instrument]:
    """Replaces in a region and an instrument what was measured, drawn from its range; the rest stays as it is.

    Args:
        appearance: Of the images that the tissue shall look like.
        region: Measured or drawn; its neuropil stays, because the phantom's grey scale hangs on it.
        instrument: The same.
        rng: None for what was measured itself, without a range around it.
    """
    rng = None if rng is None else rng.spawn(1)[0]  # the tissue's geometry is the same with and without
    numbers: dict[str, Any] = {
        "noise_sd": appearance.noise_sd_grey.draw(rng, 0.01),
        "low_sd": appearance.slow_sd_grey.draw(rng),
        "strand_sd": appearance.strand_sd_grey.draw(rng),
        "specks_per_mvox": appearance.specks_per_mpx.draw(rng) / SLICES_OF_A_SPECK,
    }
    if appearance.white_grey is not None:
        numbers["axon"] = region.neuropil + max(appearance.white_grey.draw(rng) - GREY, 5.0)
    if appearance.streak_sd_grey is not None and region.axon_share > 0:
        numbers["streak_sd"] = appearance.streak_sd_grey.draw(rng)
    sigma_y, sigma_x = appearance.noise_sigma_y_px.draw(rng, 0.2), appearance.noise_sigma_x_px.draw(rng, 0.2)
    z_to_plane = INSTRUMENT.noise_sigma_zyx[0] / sum(INSTRUMENT.noise_sigma_zyx[1:])
    record: dict[str, Any] = {"noise_sigma_zyx": (z_to_plane * (sigma_y + sigma_x), sigma_y, sigma_x)}
    if appearance.blur_sigma_px is not None and appearance.edge_gain is not None and appearance.edge_sigma_px is not None:
        record["blur_sigma"] = appearance.blur_sigma_px.draw(rng, 0.3)
        record["edge_gain"] = appearance.edge_gain.draw(rng)
        record["edge_sigma"] = appearance.edge_sigma_px.draw(rng, record["blur_sigma"] + 0.3)
    if appearance.dtype == "uint8":  # the phantom is uint8 too: it can have the images' own grey scale
        darkest = appearance.image_darkest_grey.centre
        record["gain"] = (appearance.image_neuropil_grey.draw(rng, darkest + 1) - darkest) / GREY
        record["shift"] = darkest / record["gain"]
        record["grey_step"] = appearance.image_grey_step
    return replace(region, **numbers), replace(instrument, **record)


SLICES_OF_A_SPECK = 3.0
"""In how many slices a speck is seen, by which specks per area become specks per volume."""

_FITTED = tuple(field.name for field in dataclasses.fields(Appearance))[6:]
_ALONG = {"strand_sd_grey": ("neuropil_along", 3.0), "streak_sd_grey": ("white_along", 7.0)}
"""Texture: the covariance that shows it among others, and the value with which its correction begins."""


def _read_tiles(volume: Volume, most: int) -> tuple[list[Plane], int, float, float, float | None, float]:
    """Returns squares of tissue and how many pixels they hold, the image's greys, and its white matter and grey step.

    Squares and white matter are on the phantom's grey scale; the darkest grey, neuropil and the step on the image's.
    """
    from scipy.ndimage import gaussian_filter

    where = volume.path or volume.name
    factors = choose_factors(volume, "z", (VOXEL_SIZE_UM,) * 3)
    shape = tuple(int(n * factor + 0.5) for n, factor in zip(volume.shape[1:], factors, strict=True))
    if min(shape) < SMALLEST_EDGE:
        raise ImageError(
            f"{where}: {shape[0]} x {shape[1]} pixels at {VOXEL_SIZE_UM} um (y x x); expected at least {SMALLEST_EDGE} x "
            f"{SMALLEST_EDGE} to measure what tissue looks like. Give larger images."
        )
    scale = measure_tissue(volume)
    darkest, centre = scale.mean - 4 * scale.std, scale.mean
    tiles, tissue_px, levels = [], 0, np.empty(0)
    for tile in _spread_tiles(volume, factors, most):
        relative = (tile - np.float32(darkest)) / np.float32(centre - darkest)
        tissue = gaussian_filter(relative, 3.0) > 0.5
        if tissue.mean() < 0.6:
            continue
        tiles.append(tile)
        tissue_px += int(tissue.sum())
        levels = np.unique(np.concatenate([levels, np.unique(tile)]))
        if len(tiles) == most:
            break
    if not tiles or not _has_structure(tiles):
        return [], 0, darkest, centre, None, 0.0
    neuropil, white = measured.find_modes(tiles, darkest, centre)
    unit = np.float32(GREY / (neuropil - darkest))
    step = float(np.median(np.diff(levels))) if len(levels) < 64 else 0.0
    white = None if white is None else (white - darkest) * float(unit)
    return [(tile - np.float32(darkest)) * unit for tile in tiles], tissue_px, darkest, neuropil, white, step


def _spread_tiles(volume: Volume, factors: tuple[float, float], most: int) -> Iterator[Plane]:
    """Yields squares of a volume, in a random but fixed order, float32 (y, x), at the phantom's voxel size."""
    from PIL import Image

    depth, *plane = volume.shape
    edges = [min(n, round(EDGE / factor)) for n, factor in zip(plane, factors, strict=True)]
    starts = [np.linspace(0, n - edge, max(n // edge, 1)).astype(int) for n, edge in zip(plane, edges, strict=True)]
    slices = np.unique(np.linspace(0, depth - 1, min(depth, most)).astype(int))
    places = [(z, y, x) for z in slices for y in starts[0] for x in starts[1]]
    for number in np.random.default_rng(0).permutation(len(places))[: 8 * most]:
        z, y, x = (int(n) for n in places[number])
        tile = np.asarray(volume.data[z : z + 1, y : y + edges[0], x : x + edges[1]], np.float32)[0]
        if factors != (1.0, 1.0):
            size = round(edges[1] * factors[1]), round(edges[0] * factors[0])
            tile = np.asarray(Image.fromarray(tile).resize(size, Image.Resampling.BILINEAR))
        yield tile


def _has_structure(tiles: Sequence[Plane]) -> bool:
    """Returns whether squares (y, x) hold more that is dark than noise does."""
    from scipy.ndimage import gaussian_filter

    values = np.concatenate([(gaussian_filter(tile, 1.5) - gaussian_filter(tile, 8.0)).ravel() for tile in tiles])
    lowest, lower, middle = np.percentile(values, (0.5, 25, 50))
    return bool(middle - lowest > STRUCTURED * (middle - lower) / 0.674)


def _summarise(tiles: Sequence[Plane], white: float | None, step: float) -> dict[str, Measured]:
    """Returns the numbers of `Appearance` as they are measured, before any correction."""
    pooled = measured.pool(measured.measure_tile(tile, white, step) for tile in tiles)
    seen = {name: _spread(values) for name, values in pooled.items()}
    found: dict[str, Measured] = {name: seen[name] for name in ("dark_share", "soma_grey", "white_grey") if name in seen}
    found["specks_per_mpx"] = Measured(float(pooled["specks_per_mpx"].mean()), seen["specks_per_mpx"].spread)
    if white is None:
        found.pop("white_grey", None)
    if "fine_variance" in pooled:
        names = ["fine_variance"] + [f"fine_covariance_{axis}{lag}" for axis in "yx" for lag in range(1, measured.LAGS)]
        fitted = measured.fit_noise(np.array([np.median(pooled[name]) for name in names]))
        sds = np.sqrt(np.maximum(pooled["fine_variance"], 0.01))
        found["noise_sd_grey"] = Measured(fitted[0], _spread(sds).spread)
        found["noise_sigma_y_px"], found["noise_sigma_x_px"] = (Measured(v, 0.08 * v) for v in fitted[1:])
        found["slow_sd_grey"] = seen["slow_sd"]
    for name, (along, _) in _ALONG.items():
        if along in pooled:
            found[name] = _spread(np.sqrt(np.maximum(pooled[along], 0.25)))
    return found


def _fit_edges(tiles: Sequence[Plane]) -> dict[str, Measured]:
    """Returns blur and phase contrast of squares (y, x), if there are large vessels enough."""
    profiles: list[NDArray[np.float64]] = []
    radii: list[float] = []
    for tile in tiles:
        own_profiles, own_radii = measured.measure_lumens(tile)
        profiles += own_profiles
        radii += own_radii
    if len(profiles) < FEWEST_LUMENS:
        return {}
    fitted = measured.fit_edges(np.median(profiles, axis=0), radii, REGIONS["cortex"].lumen)
    names = ("blur_sigma_px", "edge_gain", "edge_sigma_px")
    return {name: Measured(value, 0.1 * value) for name, value in zip(names, fitted, strict=True)}


def _spread(values: Sequence[float] | NDArray[np.float64]) -> Measured:
    lower, middle, upper = np.percentile(values, (16, 50, 84))
    return Measured(float(middle), float(upper - lower) / 2)


_BOUNDS = {
    "noise_sigma_y_px": (0.25, 4.0),
    "noise_sigma_x_px": (0.25, 4.0),
}
_LEVELS = {"white_grey": (GREY + 5, 230.0)}
_VARIANCES = {
    "noise_sd_grey": (1.0, 60.0),
    "slow_sd_grey": (0.1, 40.0),
    "strand_sd_grey": (0.1, 30.0),
    "streak_sd_grey": (0.1, 40.0),
}


def _correct(appearance: Appearance, seen: Mapping[str, Measured]) -> Appearance:
    """Returns the appearance with which pieces of phantom are measured as the images were."""
    pieces = _build_pieces(PIECES if appearance.white_grey is not None else ("cortex",))
    neuropil = appearance.image_neuropil_grey
    for _ in range(STEPS):
        made = _simulate(appearance, pieces)
        darkest = appearance.image_darkest_grey.centre
        found_neuropil = darkest + (neuropil.centre - darkest) * GREY / made["neuropil"].centre
        corrected: dict[str, Any] = {"image_neuropil_grey": replace(neuropil, centre=found_neuropil)}
        for name, (low, high) in {**_BOUNDS, **_LEVELS, **_VARIANCES}.items():
            now = getattr(appearance, name)
            if now is None or name not in made:
                continue
            target, found = seen[name].centre, made[name].centre
            if name in _BOUNDS:
                better = now.centre * float(np.clip(target / max(found, 1e-6), 0.5, 2.0))
            elif name in _LEVELS:
                better = now.centre + target - found
            else:
                better = float(np.sqrt(max(now.centre**2 + target**2 - found**2, 0.0)))
            better = float(np.clip(better, low, high))
            corrected[name] = Measured(better, now.spread)
        appearance = replace(appearance, **corrected)
    return Appearance.from_json(appearance.to_json())  # rounded: a file of it makes the same voxels


def _build_pieces(names: Sequence[str]) -> list[tuple[Region, Tissue]]:
    pieces = []
    for number, name in enumerate(names):
        region = replace(REGIONS[name], neuropil=GREY)
        pieces.append((region, build_tissue(region, PIECE_SHAPE, np.random.default_rng([7, number]))))
    return pieces


def _simulate(appearance: Appearance, pieces: Sequence[tuple[Region, Tissue]]) -> dict[str, Measured]:
    """Returns what is measured of pieces of phantom that are drawn like an appearance."""
    tiles = []
    for number, (base, tissue) in enumerate(pieces):
        rng = np.random.default_rng([8, number])  # the same noise in every step
        region, instrument = draw_like(appearance, base, INSTRUMENT, None)
        instrument = replace(instrument, gain=1.0, shift=0.0, grey_step=0.0)
        image = record_image(paint_tissue(region, tissue, rng), None, region, instrument, rng).astype(np.float32)
        inside = slice(PIECE_PAD, -PIECE_PAD)
        tiles += list(image[inside, inside, inside])
    neuropil, white = measured.find_modes(tiles, 0.0, GREY)
    unit = np.float32(GREY / neuropil)
    found = _summarise([tile * unit for tile in tiles], None if white is None else white * float(unit), 0.0)
    return found | {"neuropil": Measured(neuropil, 0.0)}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value
