"""phantom: a synthetic dataset in the likeness of X-ray microCT of mouse brain, for use without a download.

Four regions (cortex, striatum, ventral posterior thalamus, zona incerta) with four classes (background, blood
vessel, cell, axon). Every split has cutouts of its own from seeds of its own, so that no structure is in two.
The numbers were measured on two real slices and 128 human-drawn label maps of Prasad et al. (2020),
doi:10.1038/s41597-020-00692-y.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray

from neurotome.atomic import atomic_folder, write_json, write_text
from neurotome.classes import ClassSet
from neurotome.datasets.base import SPLITS, Cutout, Dataset
from neurotome.datasets.mtneuro.stored import PROVENANCE
from neurotome.datasets.mtneuro.variants import REGIONS as MTNEURO_REGIONS
from neurotome.datasets.mtneuro.variants import name_cache
from neurotome.datasets.phantom.image import paint_tissue, record_image
from neurotome.datasets.phantom.like import Appearance, draw_like, read_appearance
from neurotome.datasets.phantom.regions import (
    INSTRUMENT,
    REGIONS,
    VOXEL_SIZE_UM,
    Instrument,
    Region,
    draw_instrument,
    draw_region,
)
from neurotome.datasets.phantom.tissue import BACKGROUND, Tissue, build_tissue, grow_air
from neurotome.datasets.phantom.truth import Truth, list_cells, list_vessels, write_truth
from neurotome.datasets.phantom.tubes import Shape
from neurotome.errors import RunError, SettingsError, unknown
from neurotome.io.sink import write_image, write_labels
from neurotome.volume import Volume

CLASSES = ("background", "blood vessel", "cell", "axon")
LICENCE = "CC0-1.0"
CITATION = (
    "Synthetic: neurotome phantom, seed {seed}. Its numbers were measured on Prasad et al. (2020) A three-"
    "dimensional thalamocortical dataset for characterizing brain heterogeneity, Sci. Data 7:358, "
    "doi:10.1038/s41597-020-00692-y."
)

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Image and labels, both of shape (z, y, x)."""

PAD = 4  # voxels made around what is kept, so that blur sees no border


@dataclass(frozen=True)
class PhantomSettings:
    """What to make; sizes in voxels of 1.17 um."""

    seed: int = 0
    """Same seed, same voxels."""
    mode: Literal["faithful", "randomised"] = "faithful"
    """faithful: the measured numbers; randomised: every number drawn anew for each cutout from a range around them."""
    height: int = 192
    """Voxels along y of every cutout."""
    width: int = 192
    """Voxels along x of every cutout."""
    train_depth: int = 12
    """Slices of each training cutout."""
    val_depth: int = 4
    """Slices of each validation cutout."""
    test_depth: int = 8
    """Slices of each test cutout."""
    regions: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = tuple(REGIONS)
    """Regions to make, one cutout each per split."""
    like: Annotated[tuple[Path, ...], Parameter(consume_multiple=True)] = ()
    """Images, or folders of them, that the tissue shall look like: grey scale, noise, edges and texture are measured in
    them. They need no labels. In mode randomised numbers are drawn around what was measured."""
    voxel_size_um: float | Literal["auto"] = "auto"
    """Edge of a voxel of these images in micrometres; auto: what the files say, 1.17 if they say nothing."""

    def __post_init__(self) -> None:
        for name in self.regions:
            if name not in REGIONS:
                raise SettingsError(unknown("region", name, REGIONS))
        if not self.regions or len(set(self.regions)) < len(self.regions):
            raise SettingsError(f"regions are {', '.join(self.regions) or 'empty'}; expected at least one, each named once.")
        for name in ("height", "width", "train_depth", "val_depth", "test_depth"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}; expected at least 1 voxel.")
        if self.seed < 0:
            raise SettingsError(f"seed is {self.seed}; expected 0 or more.")
        if self.voxel_size_um != "auto" and (not self.like or not 0 < self.voxel_size_um < 1e4):
            raise SettingsError(
                f"voxel_size_um is {self.voxel_size_um:g} for {len(self.like)} images to measure; expected more than 0 and "
                "less than 10000 um, and images in --like: the phantom's own voxels have 1.17 um."
            )


def measure_like(settings: PhantomSettings) -> Appearance | None:
    """Returns what the images of setting `like` look like, None where there are none; errors as `read_appearance`."""
    if not settings.like:
        return None
    return read_appearance(settings.like, None if settings.voxel_size_um == "auto" else settings.voxel_size_um)


def make_phantom(settings: PhantomSettings = PhantomSettings(), appearance: Appearance | None = None) -> Dataset:
    """Makes the dataset in memory.

    Every cutout has a random stream of its own, named by seed, split and region: it does not depend on which
    others are made.

    Args:
        settings: What to make.
        appearance: What it shall look like; None: what setting `like` says.

    Returns:
        Cutouts `<split>_<region>`: uint8 images and uint8 labels of shape (depth, height, width).

    Raises:
        ImageError: An image to look like cannot be measured.
    """
    return make_known(settings, appearance or measure_like(settings))[0]


def make_known(settings: PhantomSettings, appearance: Appearance | None) -> tuple[Dataset, Truth]:
    """Makes the dataset as `make_phantom` does; returns with it what is true of it, see `truth`."""
    splits, truth = {}, Truth([], [])
    for number, split in enumerate(SPLITS):
        cutouts = []
        for name in settings.regions:
            key = (number, tuple(REGIONS).index(name))
            rng = np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=key))
            shape = (getattr(settings, f"{split}_depth"), settings.height, settings.width)
            region, instrument = REGIONS[name], INSTRUMENT
            if settings.mode == "randomised":
                region, instrument = draw_region(region, rng), draw_instrument(rng)
            if appearance is not None:
                around = rng if settings.mode == "randomised" else None
                region, instrument = draw_like(appearance, region, instrument, around)
            pair, tissue = make_piece(region, instrument, shape, rng)
            cutouts.append(wrap_cutout(pair, f"{split}_{name}"))
            truth.cells.extend(list_cells(tissue, pair[1], PAD, f"{split}_{name}"))
            truth.vessels.extend(list_vessels(tissue, pair[1], PAD, f"{split}_{name}"))
        splits[split] = tuple(cutouts)
    citation = CITATION.format(seed=settings.seed)
    if appearance is not None:
        citation += f" Its appearance was measured in {appearance.images} unlabelled images of the user's."
    return Dataset("phantom", ClassSet(CLASSES), splits, LICENCE, citation), truth


def wrap_cutout(pair: Pair, name: str) -> Cutout:
    """Returns what `make_cutout` made as a cutout."""
    return Cutout(Volume(pair[0], name, (VOXEL_SIZE_UM,) * 3), pair[1])


def make_cutout(region: Region, instrument: Instrument, shape: Shape, rng: np.random.Generator) -> Pair:
    """Makes a piece of a brain region, as it looks when it is recorded by an instrument."""
    return make_piece(region, instrument, shape, rng)[0]


def make_piece(region: Region, instrument: Instrument, shape: Shape, rng: np.random.Generator) -> tuple[Pair, Tissue]:
    """Makes what `make_cutout` makes; returns with it the tissue, which is `PAD` voxels larger on every side."""
    padded = (shape[0] + 2 * PAD, shape[1] + 2 * PAD, shape[2] + 2 * PAD)
    tissue = build_tissue(region, padded, rng)
    air = grow_air(padded, instrument.air, rng) if instrument.air > 0 else None
    image = record_image(paint_tissue(region, tissue, rng), air, region, instrument, rng)
    labels = tissue.labels
    if air is not None:
        labels[air > 0] = BACKGROUND
    kept = (slice(PAD, -PAD),) * 3
    return (image[kept].copy(), labels[kept].copy()), tissue


def phantom(
    *,
    out: Path,
    layout: Literal["folder", "mtneuro"] = "folder",
    settings: Annotated[PhantomSettings, Parameter(name="*")] = PhantomSettings(),
) -> Path:
    """Writes a synthetic dataset: brain tissue with blood vessels, cells and axons, and its exact labels.

    The folder is there whole or not at all. What is true of its labels stands in truth/: cells.csv, a row per cell,
    vessels.csv, a row per vessel, and fractions.csv, the share of each class in each image. With --like it looks like images
    of your own, and like.json in it says what was measured in them.

    Args:
        out: Folder to write; it must be new or empty.
        layout: folder: dataset.yaml, images/*.tif and labels/*.tif; mtneuro: the files of MTNeuro's own loader, of any size,
            which open as mtneuro:FOLDER and are named as synthetic.
        settings: Seed, sizes, regions.

    Returns:
        The folder.

    Raises:
        RunError: The folder holds something already, or `out` is a file.
        SettingsError: The layout is mtneuro, but not all of its regions are to be made.
        ImageError: An image of --like cannot be read, is no image of brain, or shows too little tissue.
    """
    out = Path(out)  # text from Python
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} exists already and is not an empty folder; choose another name or delete it.")
    if layout == "mtneuro" and settings.regions != tuple(MTNEURO_REGIONS):
        raise SettingsError(
            f"regions are {', '.join(settings.regions)}, but MTNeuro's layout has {', '.join(MTNEURO_REGIONS)}; leave "
            "--regions out, or use --layout folder."
        )
    appearance = measure_like(settings)
    dataset, truth = make_known(settings, appearance)
    with atomic_folder(out) as temporary:
        (_write_folder if layout == "folder" else _write_mtneuro)(temporary, dataset)
        write_truth(temporary / "truth", dataset, truth)
        if appearance is not None:
            write_json(
                temporary / "like.json", {"measured_in": [Path(path).name for path in settings.like], **appearance.to_json()}
            )
    return out


def _write_mtneuro(folder: Path, dataset: Dataset) -> None:
    """Writes what MTNeuro's loader saves, the regions of a split one after the other, and that it is synthetic."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, cutouts in dataset.splits.items():
        np.save(folder / name_cache(split, "images"), np.concatenate([cutout.volume.data for cutout in cutouts]))
        np.save(
            folder / name_cache(split, "labels"), np.concatenate([cutout.labels for cutout in cutouts]).astype(np.uint64)
        )
    content = {"dataset": "phantom in the layout of MTNeuro task 2", "synthetic": True}
    write_json(folder / PROVENANCE, {**content, "licence": dataset.licence, "citation": dataset.citation})


def _write_folder(folder: Path, dataset: Dataset) -> None:
    import yaml

    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for cutouts in dataset.splits.values():
        for cutout in cutouts:
            write_image(folder / "images" / f"{cutout.name}.tif", np.asarray(cutout.volume.data), like=cutout.volume)
            write_labels(folder / "labels" / f"{cutout.name}.tif", np.asarray(cutout.labels), dataset.classes, cutout.volume)
    content = {
        "name": dataset.name,
        "classes": dict(enumerate(dataset.classes.names)),
        "ignore": dataset.classes.ignore,
        "voxel_size_um": list(dataset.voxel_size_um or ()),
        "splits": {split: [c.name for c in cutouts] for split, cutouts in dataset.splits.items()},
        "licence": dataset.licence,
        "citation": dataset.citation,
    }
    write_text(folder / "dataset.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110))
