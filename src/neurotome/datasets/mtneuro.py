"""MTNeuro task 2: the annotated X-ray microCT of Prasad et al. (2020), from the files its own loader saves.

Four regions of 256 x 256 pixels stand one after the other in each file
`task2_<2D|3D>_<3class|4class><train|val|test><images|labels>.npy`; dimension and class count in the name do
not change the content. Arrays stay on the disk.

Sources: Quesada et al. (2022), NeurIPS Datasets and Benchmarks, arXiv:2301.00345; Prasad et al. (2020), Sci
Data 7:358, doi:10.1038/s41597-020-00692-y. Ranges are those of MTNeuro's task-2 configurations.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.datasets.base import Cutout, Dataset, check_labels
from neurotome.errors import DatasetError, unknown
from neurotome.io.images import check_grey, read_image, read_labels
from neurotome.volume import Volume

EDGE = 256
VOXEL_SIZE_UM = (1.17, 1.17, 1.17)  # the metadata of BossDB cannot be trusted; this is the publication's

# Half-open ranges of slices in the whole volume. The slices between are not annotated.
Z_RANGES = {"train": (110, 379), "val": (380, 409), "test": (420, 470)}


class Region(NamedTuple):
    """A brain region: its name and the voxel of the whole volume at which its pixels begin."""

    name: str
    y: int
    x: int


REGIONS = (
    Region("cortex", 900, 4600),
    Region("striatum", 500, 3700),
    Region("vp", 850, 3063),
    Region("zi", 650, 1543),
)

FOUR_CLASSES = ClassSet(("background", "blood vessel", "cell", "axon"))
THREE_CLASSES = ClassSet(("background", "blood vessel", "cell"))

# 4class is MTNeuro's own: experts cannot tell the axons of the zona incerta from background.
VARIANTS = {
    "4class": (FOUR_CLASSES, REGIONS[:3]),
    "4class-with-zi": (FOUR_CLASSES, REGIONS),
    "3class": (THREE_CLASSES, REGIONS),
}

LICENCE = "CC BY 4.0"
CITATION = (
    "Quesada et al. (2022) MTNeuro, NeurIPS Datasets and Benchmarks, arXiv:2301.00345; Prasad et al. (2020) "
    "Sci. Data 7:358, doi:10.1038/s41597-020-00692-y"
)


class MergedLabels:
    """Labels in which classes are replaced by others whenever they are read, so that nothing is copied.

    It is indexed, iterated and converted like the array it stands for.

    Attributes:
        source: Labels 0..255 of any integer dtype; may be memory-mapped.
        table: uint8, shape (256,): the label that stands for each.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, source: NDArray[Any], table: NDArray[np.uint8]) -> None:
        self.source, self.table = source, table

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the source."""
        return self.source.shape

    @property
    def ndim(self) -> int:
        """Axes of the source."""
        return self.source.ndim

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        return np.asarray(self.table[np.asarray(self.source[index])])

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return (self[z] for z in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("merged labels are made when they are read; they cannot be had without a copy.")
        return self[...].astype(self.dtype if dtype is None else dtype, copy=False)


def open_mtneuro(folder: str | Path, variant: str = "4class") -> Dataset:
    """Opens MTNeuro task 2.

    Args:
        folder: Where the `task2_*.npy` files lie.
        variant: `4class` without the zona incerta (ZI), as published; `4class-with-zi` as in the founding
            report; `3class` with axons merged into background, ZI kept.

    Returns:
        One cutout per region and split, uint8, memory-mapped. A split whose files are absent is absent.

    Raises:
        DatasetError: The variant is not known, there are no such files, one of a pair is missing, or shapes
            or labels are wrong.
        ImageError: A file is damaged, or a region is constant.
    """
    folder = Path(folder)
    if variant not in VARIANTS:
        raise DatasetError(unknown("variant of mtneuro", variant, VARIANTS))
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder; expected the one with MTNeuro's task2_*.npy files.")
    classes, regions = VARIANTS[variant]
    pairs = {split: pair for split in Z_RANGES if (pair := _find_pair(folder, split)) is not None}
    if not pairs:
        raise DatasetError(
            f"{folder} has no file of MTNeuro task 2; expected, for example, task2_2D_4classtrainimages.npy "
            "and task2_2D_4classtrainlabels.npy. Download them with MTNeuro's own loader."
        )
    splits = {split: tuple(_cut_regions(*pair, split, classes, regions)) for split, pair in pairs.items()}
    return Dataset(f"mtneuro-{variant}", classes, splits, LICENCE, CITATION)


def _find_pair(folder: Path, split: str) -> tuple[Path, Path] | None:
    lonely = ""
    for name in ("2D_4class", "3D_4class", "2D_3class", "3D_3class"):
        images, labels = (folder / f"task2_{name}{split}{kind}.npy" for kind in ("images", "labels"))
        if images.is_file() and labels.is_file():
            return images, labels
        if images.is_file() or labels.is_file():
            here, absent = (images, labels) if images.is_file() else (labels, images)
            lonely = f"{here} is there, but {absent.name} is not; put it beside, or remove the first."
    if lonely:
        raise DatasetError(lonely)
    return None


def _cut_regions(
    images_path: Path, labels_path: Path, split: str, classes: ClassSet, regions: tuple[Region, ...]
) -> Iterator[Cutout]:
    start, stop = Z_RANGES[split]
    depth = stop - start
    expected = (len(REGIONS) * depth, EDGE, EDGE)
    images, labels = read_image(images_path).data, read_labels(labels_path)
    for path, array in ((images_path, images), (labels_path, labels)):
        if array.shape != expected:
            raise DatasetError(
                f"{path}: shape {array.shape}; expected {expected}, {depth} slices of each of {len(REGIONS)} "
                "regions. Download it again."
            )
    for region in regions:
        first = REGIONS.index(region) * depth
        part = slice(first, first + depth)
        check_grey(images[part], f"{images_path}, {region.name}")
        check_labels(labels[part], FOUR_CLASSES, f"{labels_path}, {region.name}")
        origin_zyx = (start, region.y, region.x)
        volume = Volume(images[part], region.name, VOXEL_SIZE_UM, origin_zyx, images_path)
        yield Cutout(volume, _merge(labels[part], classes))


def _merge(labels: NDArray[Any], classes: ClassSet) -> NDArray[Any]:
    """Returns labels in which the classes beyond `classes` are background."""
    if len(classes) == len(FOUR_CLASSES):
        return labels
    table = np.arange(256, dtype=np.uint8)
    table[len(classes) : len(FOUR_CLASSES)] = 0
    # It behaves as an array wherever labels are used; a numpy subclass could not map values as it reads them.
    return cast("NDArray[Any]", MergedLabels(labels, table))
