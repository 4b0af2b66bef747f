"""A crop on its way to being corrected: a folder with a piece of an image, its labels, and what is known of both.

image.zarr      grey values (OME-Zarr)
labels.zarr     labels (OME-Zarr), to be corrected with any tool
crop.json       where the piece comes from, its classes, and a digest of its labels as they were cut out
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.atomic import atomic_folder, hold_folder, write_json
from neurotome.classes import ClassSet
from neurotome.datasets.base import check_labels
from neurotome.documents import read_json
from neurotome.errors import DatasetError, ImageError, RunError
from neurotome.io.opening import open_volume, read_labels
from neurotome.io.sink import write_image, write_labels
from neurotome.volume import Volume

DESCRIPTION, IMAGE, LABELS = "crop.json", "image.zarr", "labels.zarr"

FORMAT = "neurotome crop 1"


@dataclass(frozen=True)
class Crop:
    """A piece of an image with its labels.

    Attributes:
        folder: Where it lies; its name is the crop's.
        image: Grey values (z, y, x); `origin_zyx` says where in the whole image they begin.
        labels: Values as stored, uint8, shape of the image.
        classes: What they mean.
        source: Name of the whole image, which crops that show the same tissue share.
        digest: Of the labels as they were read.
        first_digest: Of the labels as they were cut out.
    """

    folder: Path
    image: Volume
    labels: NDArray[np.uint8]
    classes: ClassSet
    source: str
    digest: str
    first_digest: str


def write_crop(folder: Path, image: Volume, labels: NDArray[np.uint8], classes: ClassSet) -> None:
    """Writes a new crop, whole or not at all.

    Args:
        folder: Where; nothing may be there yet.
        image: Grey values in memory, named after the whole image; with `origin_zyx` and voxel size.
        labels: As stored, uint8, shape of the image.
        classes: What they mean.

    Raises:
        RunError: Something is there.
    """
    with hold_folder(folder.parent):
        if folder.exists():
            raise RunError(f"{folder}: is there already, and may hold corrections. Choose another --name or another output.")
        with atomic_folder(folder) as temporary:
            write_image(temporary / IMAGE, np.asarray(image.data), image)
            write_labels(temporary / LABELS, classes.from_stored(labels), classes, image)
            content = {
                "format": FORMAT,
                "image": image.name,
                "path": str(image.path or ""),
                "origin_zyx": list(image.origin_zyx),
                "classes": classes.to_json(),
                "labels_sha256": find_digest(labels),
            }
            write_json(temporary / DESCRIPTION, content)


def is_crop(folder: Path) -> bool:
    """Says whether a folder is a crop."""
    return (folder / DESCRIPTION).is_file()


def read_crop(folder: Path) -> Crop:
    """Reads a crop into memory.

    Raises:
        RunError: The folder is no crop, or its description is damaged.
        ImageError: Image or labels cannot be read, or do not fit each other.
    """
    if not is_crop(folder):
        raise RunError(f"{folder}: has no {DESCRIPTION}; expected a folder that neurotome crop made.")
    content = read_json(folder / DESCRIPTION, RunError, "Cut the crop out again.")
    try:
        z, y, x = (int(start) for start in content["origin_zyx"])
        classes = ClassSet.from_json(content["classes"])
        source, first_digest = str(content["image"]), str(content["labels_sha256"])
        if content["format"] != FORMAT:
            raise ValueError(f"the format {content['format']!r}")
    except (LookupError, TypeError, ValueError, AttributeError, DatasetError) as error:
        raise RunError(f"{folder / DESCRIPTION}: no description of a crop ({error}). Cut the crop out again.") from error
    opened = open_volume(folder / IMAGE)
    image = dataclasses.replace(opened, data=np.asarray(opened.data), name=folder.name, origin_zyx=(z, y, x))
    labels = _check(read_labels(folder / LABELS), image, classes, str(folder / LABELS))
    return Crop(folder, image, labels, classes, source, find_digest(labels), first_digest)


def save_labels(crop: Crop, labels: NDArray[Any]) -> Crop:
    """Writes corrected labels of a crop, whole or not at all, unless somebody has changed them since it was read.

    Args:
        crop: As it was read, or as this function returned it.
        labels: Values as stored, any integers, shape of the image.

    Returns:
        The crop with these labels.

    Raises:
        RunError: The labels on the disk are no longer those that were read; they stay.
        ImageError: The shape is another.
        DatasetError: A value is no class.
    """
    corrected = _check(labels, crop.image, crop.classes, f"the labels of {crop.folder.name}")
    path = crop.folder / LABELS
    with hold_folder(crop.folder):
        if find_digest(read_labels(path)) != crop.digest:
            raise RunError(
                f"{path}: was changed by somebody else since it was opened, and is left as it is. Open the crop again and "
                "repeat your corrections there."
            )
        write_labels(path, crop.classes.from_stored(corrected), crop.classes, crop.image)
    return dataclasses.replace(crop, labels=corrected, digest=find_digest(corrected))


def find_digest(labels: NDArray[Any]) -> str:
    """Returns the SHA-256 of labels (z, y, x) as bytes with their shape: what differs shows otherwise, however stored."""
    values = np.ascontiguousarray(labels, np.uint8)
    return hashlib.sha256(f"{values.shape}".encode() + values.tobytes()).hexdigest()


def _check(labels: NDArray[Any], image: Volume, classes: ClassSet, where: str) -> NDArray[np.uint8]:
    """Returns labels as uint8 in memory of their own, if they are such of the image."""
    if labels.shape != image.shape:
        raise ImageError(f"{where}: shape {labels.shape}; expected that of the crop, {image.shape} (z, y, x).")
    check_labels(labels, classes, where)
    return np.array(labels, np.uint8)
