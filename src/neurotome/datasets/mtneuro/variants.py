"""MTNeuro task 2: the annotated X-ray microCT of Prasad et al. (2020), and every selection of it that is compared.

It is read from what `neurotome fetch mtneuro` writes (see `stored`), or from the files MTNeuro's own loader saves:
there four regions of 256 x 256 pixels stand one after the other in each file
`task2_<2D|3D>_<3class|4class><train|val|test><images|labels>.npy`; dimension and class count in the name do not change the
content, and the arrays stay on the disk. Such files of another size and a phantom in this layout open too, under other
names.

Sources: Quesada et al. (2022), NeurIPS Datasets and Benchmarks, arXiv:2301.00345; Prasad et al. (2020), Sci
Data 7:358, doi:10.1038/s41597-020-00692-y. Ranges are those of MTNeuro's task-2 configurations.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.datasets.base import Cutout, Dataset, check_labels, view
from neurotome.datasets.mtneuro.stored import PROVENANCE, STORE, StoredRegion, read_provenance, read_regions
from neurotome.documents import read_json
from neurotome.errors import DatasetError, unknown
from neurotome.io import check_grey, read_image, read_labels
from neurotome.volume import Volume

EDGE = 256
VOXEL_SIZE_UM = (1.17, 1.17, 1.17)  # the metadata of BossDB cannot be trusted; this is the publication's

# Half-open ranges of slices in the whole volume. The slices between are not annotated.
Z_RANGES = {"train": (110, 379), "val": (380, 409), "test": (420, 470)}


# Where the pixels of the brain regions begin in the whole volume (y, x).
REGIONS = {"cortex": (900, 4600), "striatum": (500, 3700), "vp": (850, 3063), "zi": (650, 1543)}

FOUR_CLASSES = ClassSet(("background", "blood vessel", "cell", "axon"))
THREE_CLASSES = ClassSet(("background", "blood vessel", "cell"))

# The founding report's Table 1, pixels of FOUR_CLASSES in all four regions: an exact checksum of the labels.
TABLE_1: Mapping[str, tuple[int, ...]] = {
    "train": (39665515, 2724278, 4448051, 23678892),
    "val": (4101022, 243515, 532764, 2724875),
    "test": (6591602, 456854, 820941, 5237803),
}

# Mean and standard deviation of the grey values there, as printed; of what the deviation is, is not said.
TABLE_1_GREY = {"train": ("123.24", "31.018"), "val": ("127.8", "31.699"), "test": ("130.48", "33.324")}

# People drew every thirtieth plane; the labels between were made from them, how is not published.
DRAWN_BY_HAND = range(140, 471, 30)


@dataclass(frozen=True)
class Variant:
    """A selection of MTNeuro task 2.

    `test_regions` are None where they are the same, `left_out` counts the last slices of train, and `by_hand` is for only
    the planes that people drew, each a cutout of one slice. Three classes merge axons into background.
    """

    description: str
    regions: tuple[str, ...]
    classes: ClassSet = FOUR_CLASSES
    test_regions: tuple[str, ...] | None = None
    left_out: int = 0
    by_hand: bool = False

    def regions_of(self, split: str) -> tuple[str, ...]:
        """Returns the regions of a split."""
        return self.test_regions if split == "test" and self.test_regions is not None else self.regions


# Experts cannot tell the axons of the zona incerta from background, so the official four classes leave it out.
OFFICIAL, ALL = ("cortex", "striatum", "vp"), ("cortex", "striatum", "vp", "zi")

VARIANTS = {
    "4class": Variant("MTNeuro's own: 4 classes, zona incerta (ZI) left out; 807/87/150 slices", OFFICIAL),
    "4class-with-zi": Variant("the founding report's: 4 classes, ZI kept; 1076/116/200 slices", ALL),
    "3class": Variant("MTNeuro's own: axons merged into background, ZI kept; 1076/116/200 slices", ALL, THREE_CLASSES),
    "human": Variant("4class, only the planes drawn by hand (z 140, 170, ...); 24/3/3 slices", OFFICIAL, by_hand=True),
    "human-with-zi": Variant("4class-with-zi, only the planes drawn by hand; 32/4/4 slices", ALL, by_hand=True),
    "4class-wide-gap": Variant(
        "4class without the last 40 slices of train, so that val is as far from train as test is; 687/87/150 slices",
        OFFICIAL,
        left_out=40,
    ),
    "leave-out-cortex": Variant(
        "train and val on striatum and VP, test on cortex; 538/58/50 slices", ("striatum", "vp"), test_regions=("cortex",)
    ),
    "leave-out-striatum": Variant(
        "train and val on cortex and VP, test on striatum; 538/58/50 slices", ("cortex", "vp"), test_regions=("striatum",)
    ),
    "leave-out-vp": Variant(
        "train and val on cortex and striatum, test on VP; 538/58/50 slices", ("cortex", "striatum"), test_regions=("vp",)
    ),
    "leave-out-zi": Variant(
        "train and val on the other three, test on ZI; 807/87/50 slices", OFFICIAL, test_regions=("zi",)
    ),
}

LICENCE = "CC BY 4.0"
CITATION = (
    "Quesada et al. (2022) MTNeuro, NeurIPS Datasets and Benchmarks, arXiv:2301.00345; Prasad et al. (2020) "
    "Sci. Data 7:358, doi:10.1038/s41597-020-00692-y"
)


def open_mtneuro(folder: str | Path, variant: str = "4class") -> Dataset:
    """Opens a variant of MTNeuro task 2 in a folder that `neurotome fetch mtneuro` wrote or where `task2_*.npy` files lie.

    Returns:
        One cutout per region and split (per plane where a variant has single planes), uint8: read into memory from a fetched
        folder, memory-mapped from .npy files. A split whose files are absent is absent.

    Raises:
        DatasetError: The variant is not known, or its data are absent, incomplete, not verified or damaged.
        ImageError: A file is damaged, or a region is constant.
    """
    folder = Path(folder)
    if variant not in VARIANTS:
        raise DatasetError(unknown("variant of mtneuro", variant, VARIANTS))
    if not folder.is_dir():
        raise DatasetError(
            f"{folder} is not a folder; expected one that `neurotome fetch mtneuro --out {folder}` wrote, or the one with "
            "MTNeuro's task2_*.npy files."
        )
    chosen = VARIANTS[variant]
    name, licence, citation, differences = f"mtneuro-{variant}", LICENCE, CITATION, []
    if (folder / STORE).is_dir():
        provenance = read_provenance(folder)
        sources: Mapping[str, Mapping[str, StoredRegion]] = {
            split: read_regions(folder, provenance, split, chosen.regions_of(split)) for split in provenance["regions"]
        }
        differences = provenance["verification"]["differences"]
    else:
        sources = read_caches(folder)
        phantom = read_phantom(folder)
        if phantom:  # every split is tissue of its own, from nowhere
            sources = {
                split: {region: stored._replace(origin_zyx=(0, 0, 0)) for region, stored in regions.items()}
                for split, regions in sources.items()
            }
            name, licence, citation = f"phantom-{name}", phantom["licence"], phantom["citation"]
        else:
            differences = [
                f"{split} has regions of shape {region.image.shape}, expected {(stop - start, EDGE, EDGE)}"
                for split, (start, stop) in Z_RANGES.items()
                for region in list(sources.get(split, {}).values())[:1]
                if region.image.shape != (stop - start, EDGE, EDGE)
            ]
    if differences:
        name = f"unverified-{name}"
        warnings.warn(
            f"{folder}: these are not MTNeuro's data, or not all of them: {'; '.join(differences)}. They are called {name}; "
            "do not compare their scores with published ones.",
            stacklevel=3,
        )
    splits = {
        split: tuple(cutout for name in chosen.regions_of(split) for cutout in _cut(regions[name], name, split, chosen))
        for split, regions in sources.items()
    }
    for split, cutouts in splits.items():
        if not cutouts:
            raise DatasetError(
                f"{folder}: split {split} has none of the slices that the variant {variant} keeps; where those are is known "
                "for MTNeuro's own files alone. Use 4class, 4class-with-zi or 3class."
            )
    return Dataset(name, chosen.classes, splits, licence, citation)


def read_phantom(folder: Path) -> dict[str, str]:
    """Returns licence and citation where .npy files are those of a phantom, and nothing otherwise."""
    path = folder / PROVENANCE
    again = "Delete the folder and make it anew with neurotome phantom --layout mtneuro."
    content = read_json(path, DatasetError, again) if path.is_file() else {}
    if content and not all(isinstance(content.get(key), str) for key in ("licence", "citation")):
        raise DatasetError(f"{path} is damaged: it names no licence or citation. {again}")
    return content


def name_cache(split: str, kind: str, form: str = "2D_4class") -> str:
    """Returns how MTNeuro's own loader names the file of a split's images or labels."""
    return f"task2_{form}{split}{kind}.npy"


def read_caches(folder: Path) -> dict[str, dict[str, StoredRegion]]:
    """Opens the .npy files of MTNeuro's own loader, memory-mapped: for each split that has files its regions.

    Raises:
        DatasetError: There is none, one of a pair is missing, or a shape is wrong.
        ImageError: A file is damaged.
    """
    caches = {}
    for split in Z_RANGES:
        lonely = ""
        for form in ("2D_4class", "3D_4class", "2D_3class", "3D_3class"):
            images, labels = (folder / name_cache(split, kind, form) for kind in ("images", "labels"))
            if images.is_file() and labels.is_file():
                caches[split] = _split_regions(images, labels, split)
                break
            if images.is_file() or labels.is_file():
                here, absent = (images, labels) if images.is_file() else (labels, images)
                lonely = f"{here} is there, but {absent.name} is not; put it beside, or remove the first."
        if lonely and split not in caches:
            raise DatasetError(lonely)
    if not caches:
        raise DatasetError(
            f"{folder} has no file of MTNeuro task 2; expected, for example, task2_2D_4classtrainimages.npy "
            f"and task2_2D_4classtrainlabels.npy. Fetch them with: neurotome fetch mtneuro --out {folder}"
        )
    return caches


def _split_regions(images_path: Path, labels_path: Path, split: str) -> dict[str, StoredRegion]:
    """Cuts files into regions; where they are in the whole volume is known for files of MTNeuro's own size alone."""
    images, labels = read_image(images_path).data, read_labels(labels_path)
    depth, rest = divmod(len(images), len(REGIONS))
    if rest or not depth:
        raise DatasetError(
            f"{images_path}: {len(images)} slices; expected as many of each of {len(REGIONS)} regions, one region after the "
            "other. Download it again."
        )
    if labels.shape != images.shape:
        raise DatasetError(
            f"{labels_path}: shape {labels.shape}; expected {images.shape}, as the images have. Download it again."
        )
    start, stop = Z_RANGES[split]
    known = images.shape == (len(REGIONS) * (stop - start), EDGE, EDGE)
    regions = {}
    for i, (name, (y, x)) in enumerate(REGIONS.items()):
        part = slice(i * depth, (i + 1) * depth)
        origin_zyx = (start, y, x) if known else (0, 0, 0)
        regions[name] = StoredRegion(images[part], labels[part], origin_zyx, images_path, labels_path)
    return regions


def _cut(region: StoredRegion, name: str, split: str, variant: Variant) -> Iterator[Cutout]:
    check_grey(region.image, f"{region.image_path}, {name}")
    check_labels(region.labels, FOUR_CLASSES, f"{region.labels_path}, {name}")
    first, y, x = region.origin_zyx
    depth = len(region.image)
    if variant.by_hand:
        parts = [(z - first, z - first + 1, f"{name}_z{z}") for z in DRAWN_BY_HAND if first <= z < first + depth]
    else:
        stop = depth - (variant.left_out if split == "train" else 0)
        parts = [(0, stop, name)] if stop > 0 else []
    for start, stop, label in parts:
        volume = Volume(region.image[start:stop], label, VOXEL_SIZE_UM, (first + start, y, x), region.image_path)
        yield Cutout(volume, _merge(region.labels[start:stop], variant.classes))


def _merge(labels: NDArray[Any], classes: ClassSet) -> NDArray[Any]:
    """Returns labels in which the classes beyond `classes` are background."""
    if len(classes) == len(FOUR_CLASSES):
        return labels
    table = np.arange(256, dtype=np.uint8)
    table[len(classes) : len(FOUR_CLASSES)] = 0
    return view(labels, table=table)
