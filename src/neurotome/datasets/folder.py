"""The folder dataset: dataset.yaml beside images/ and labels/.

    name: vessels
    classes: {0: background, 1: blood vessel}
    ignore: 255                           # optional
    voxel_size_um: [1.17, 1.17, 1.17]     # optional; z, y, x
    splits:                               # optional
      train: [mouse1, {id: mouse2, z: [0, 80]}]
      val: [{id: mouse2, z: [100, 120]}]
    licence: CC BY 4.0                    # optional, as are citation and source

An entry of a split is the id of a whole image, or a range of its slices, rows (y) or columns (x), the stop left out. Without
splits some are made and written to splits.yaml beside, which is then read. Classes may also be written as a list of names or
as names with ids; where ids begin with 1, `ignore: 0` says that 0 means not labelled.
"""

from __future__ import annotations

import dataclasses
import math
import unicodedata
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neurotome.classes import ClassSet
from neurotome.datasets.base import Cutout, Dataset, Size, check_labels, format_size, list_sizes, view
from neurotome.datasets.splits import Entries, describe_splits, describe_value, make_splits, read_splits, write_splits
from neurotome.documents import read_yaml
from neurotome.errors import DatasetError, show, unknown
from neurotome.io.files import find_image, list_images, name_image
from neurotome.io.opening import open_labels, open_volume
from neurotome.progress import track

KEYS = ("name", "classes", "ignore", "voxel_size_um", "splits", "licence", "citation", "source")

SPLITS_FILE = "splits.yaml"

SLOW_BYTES = 200_000_000  # reading and checking this much takes some seconds

KEPT_BYTES = 4 << 30
"""So much of a dataset is read into memory, since compressed slices would be decoded for every patch; the rest stays in its
files. Arrays in .npy files are memory-mapped and never copied."""


def open_folder(path: str | Path) -> Dataset:
    """Opens a folder dataset; every image and label that is used is read and checked once.

    Without splits in dataset.yaml those of splits.yaml are used; if that is absent too, it is made, see `make_splits`.

    Args:
        path: Folder with dataset.yaml, images/ and labels/.

    Raises:
        DatasetError: The folder or dataset.yaml is missing or wrong, labels do not fit their image or the
            classes, or the same pixels are in two splits.
        ImageError: An image or label file is missing or cannot be used.
    """
    folder = Path(path)
    config = folder / "dataset.yaml"
    content = _load_config(folder, config)
    classes = _read_classes(content, config)
    voxel_size_um = _read_voxel_size(content, config)
    name = _read_text(content, "name", config) or folder.resolve().name.encode(errors="replace").decode()
    licence, citation = (_read_text(content, key, config) for key in ("licence", "citation"))
    splits, source = _load_splits(folder, content, config)
    images, labels = _list_files(folder / "images"), _list_files(folder / "labels")
    if splits is None:
        annotated = sorted(set(images) & set(labels))
        if not annotated:
            raise DatasetError(
                f"{folder}: no file in images/ has one of the same name in labels/; expected an annotated image."
            )
        wholes = _read_pairs(folder, annotated, images, labels, classes, voxel_size_um)
        splits = make_splits(list(wholes.values()), len(classes), str(folder))
        _keep_splits(splits, source, name, sorted(set(images) - set(_list_used(splits))))
    else:
        wholes = _read_pairs(folder, _list_used(splits), images, labels, classes, voxel_size_um)
    cutouts = {
        split: tuple(entry.cut(wholes[entry.image_id], source) for entry in entries) for split, entries in splits.items()
    }
    _note_sizes(name, (cutout for group in cutouts.values() for cutout in group))
    used = set(_list_used(splits))
    return Dataset(name, classes, cutouts, licence, citation, unlisted=tuple(sorted(set(images) - used)))


def _list_files(folder: Path) -> dict[str, list[Path]]:
    """Returns the images in a folder by id; an id that has more than one is for `find_image` to refuse."""
    files: dict[str, list[Path]] = {}
    for path in list_images(folder) if folder.is_dir() else []:
        # bytes that are no text in a name are shown, and may be listed, as ?
        image_id = unicodedata.normalize("NFC", name_image(path)).encode(errors="replace").decode()
        files.setdefault(image_id, []).append(path)
    return files


def _list_used(splits: Entries) -> list[str]:
    return sorted({entry.image_id for entries in splits.values() for entry in entries})


def _load_splits(folder: Path, content: Mapping[str, Any], config: Path) -> tuple[Entries | None, Path]:
    """Returns the splits that somebody has written, None if nobody has, and the file they stand in."""
    beside = folder / SPLITS_FILE
    if content.get("splits") is not None:
        if beside.exists():
            warnings.warn(f"{config} has splits, so {beside} is not used; remove one of them.", stacklevel=3)
        return read_splits(content["splits"], config), config
    if not beside.exists():
        return None, beside
    return read_splits(read_yaml(beside, DatasetError, "Correct it, or remove it to have it made again."), beside), beside


def _keep_splits(splits: Entries, path: Path, name: str, unlabelled: list[str]) -> None:
    made = describe_splits(splits) + (f"; left out, without a label: {', '.join(unlabelled[:5])}" if unlabelled else "")
    made += f", ... ({len(unlabelled)} in all)" * (len(unlabelled) > 5)
    try:
        write_splits(path, splits)
        kept = f"It is written down in {path}, for you to change."
    except OSError as error:
        kept = f"It cannot be written down in {path} ({error.strerror}); the same images give the same splits again."
    warnings.warn(f"{name}: dataset.yaml has no splits, so they were made: {made}. {kept}", stacklevel=3)


def _note_sizes(name: str, cutouts: Iterable[Cutout]) -> None:
    sizes = list_sizes(cutout.volume for cutout in cutouts)
    if len(sizes) > 1:
        listed = ", ".join(f"{format_size(size)} ({example})" for size, example in sizes.items())
        warnings.warn(
            f"{name}: the images have different voxel sizes: {listed}. None is used then, as if it were not known: "
            "resample the images to one size, or state voxel_size_um in dataset.yaml if a file is wrong.",
            stacklevel=3,
        )


def _load_config(folder: Path, config: Path) -> Mapping[str, Any]:
    if not folder.exists():
        raise DatasetError(f"{folder} does not exist; expected a folder with dataset.yaml. Check the name.")
    if not folder.is_dir():
        raise DatasetError(f"{folder} is a file; give the folder in which dataset.yaml lies.")
    if not config.is_file():
        found = ", ".join(sorted(item.name for item in folder.iterdir())[:8]) or "nothing"
        raise DatasetError(f"{folder} has no dataset.yaml (found {found}); add one with classes.")
    content = read_yaml(config, DatasetError, "Correct it.")
    for key in content:
        if key not in KEYS:
            raise DatasetError(f"{config}: {unknown('key', str(key), KEYS)}")
    return content


def _read_text(content: Mapping[str, Any], key: str, config: Path) -> str:
    value = content.get(key, "")
    if not isinstance(value, str):
        raise DatasetError(f"{config}: {key} is {show(value)}; expected text. Put it in quotes.")
    return value


def _read_classes(content: Mapping[str, Any], config: Path) -> ClassSet:
    ignore, classes = content.get("ignore", 255), content.get("classes")
    if type(ignore) is not int:
        raise DatasetError(f"{config}: ignore is {show(ignore)}; expected an integer up to 255.")
    if not isinstance(classes, dict | list) or not classes:
        raise DatasetError(
            f"{config}: classes is {describe_value(classes)}; expected, for example, {{0: background, 1: cell}}."
        )
    try:
        return ClassSet.from_config(classes, ignore)
    except DatasetError as error:
        raise DatasetError(f"{config}: {error}") from error


def _read_voxel_size(content: Mapping[str, Any], config: Path) -> Size | None:
    sizes = content.get("voxel_size_um")
    if sizes is None:
        return None
    numbers = sizes if isinstance(sizes, list) else []
    if len(numbers) != 3 or not all(type(size) in (int, float) and math.isfinite(size) and size > 0 for size in numbers):
        raise DatasetError(
            f"{config}: voxel_size_um is {show(sizes)}; expected three positive numbers [z, y, x] in micrometres."
        )
    return float(numbers[0]), float(numbers[1]), float(numbers[2])


def _read_pairs(
    folder: Path,
    ids: Iterable[str],
    images: Mapping[str, list[Path]],
    labels: Mapping[str, list[Path]],
    classes: ClassSet,
    voxel_size_um: Size | None,
) -> dict[str, Cutout]:
    def find(kind: str, files: Mapping[str, list[Path]], image_id: str) -> Path:
        paths = files.get(image_id, [])
        return paths[0] if len(paths) == 1 else find_image(folder / kind, image_id)

    files = [(image_id, find("images", images, image_id), find("labels", labels, image_id)) for image_id in ids]
    slow = sum(path.stat().st_size for _, *pair in files for path in pair) > SLOW_BYTES
    cutouts, left = {}, KEPT_BYTES
    for image_id, image_path, labels_path in track(files, "reading images", len(files)) if slow else files:
        volume = open_volume(image_path, voxel_size_um=voxel_size_um)
        stored = open_labels(labels_path)
        if stored.shape != volume.shape:
            raise DatasetError(
                f"{labels_path}: labels have shape {stored.shape}, the image {image_path} has {volume.shape} "
                "(z, y, x); every pixel of the image needs one label."
            )
        size = sum(array.size * array.dtype.itemsize for array in (volume.data, stored))
        if size <= left:
            left -= size
            volume, stored = dataclasses.replace(volume, data=np.asanyarray(volume.data)), np.asanyarray(stored)
        check_labels(stored, classes, str(labels_path))
        if classes.first_id:
            stored = view(stored, table=classes.from_stored_table)
        cutouts[image_id] = Cutout(dataclasses.replace(volume, name=image_id), stored)
    return cutouts
