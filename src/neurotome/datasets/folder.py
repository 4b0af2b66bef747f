"""The folder dataset: dataset.yaml beside images/ and labels/.

    name: vessels
    classes: {0: background, 1: blood vessel}
    ignore: 255                           # optional
    voxel_size_um: [1.17, 1.17, 1.17]     # optional; z, y, x
    splits:                               # optional
      train: [mouse1, {id: mouse2, z: [0, 80]}]
      val: [{id: mouse2, z: [100, 120]}]
    groups: {mouse1: A, mouse2: B}        # optional; the animal or region of each image
    volumes: [...]                        # optional; images of any size, see datasets.volumes
    licence: CC BY 4.0                    # optional, as are citation and source

An entry of a split is the id of a whole image, or a range of its slices, rows (y) or columns (x), the stop left out. Without
splits some are made and written to splits.yaml beside, which is then read; images of one group stay together. Classes may
also be written as a list of names or as names with ids; where ids begin with 1, `ignore: 0` says that 0 means not labelled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import unicodedata
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neurotome.classes import ClassSet
from neurotome.datasets.base import Cutout, Dataset, check_labels, format_size, list_sizes, view
from neurotome.datasets.splits import Entries, describe_value, make_splits, read_splits, write_splits
from neurotome.datasets.volumes import CACHE_BYTES, open_listed, read_volumes
from neurotome.documents import read_yaml
from neurotome.errors import DatasetError, ImageError, unknown
from neurotome.io.files import find_image, list_images, name_image
from neurotome.io.opening import open_labels, open_volume
from neurotome.io.picked import TileCache
from neurotome.progress import track
from neurotome.tables import count
from neurotome.volume import Size

_TEXT: tuple[Any, str] = (lambda value: isinstance(value, str), "text. Put it in quotes")

_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": _TEXT,
    "classes": (lambda value: isinstance(value, dict | list) and bool(value), "for example, {0: background, 1: cell}"),
    "ignore": (lambda value: type(value) is int, "an integer up to 255"),
    "voxel_size_um": (lambda value: value is None or _is_size(value), "three positive numbers [z, y, x] in micrometres"),
    "splits": (lambda value: value is None or isinstance(value, dict), "for example, {train: [id], test: [id]}"),
    "groups": (
        lambda value: isinstance(value, dict) and all(isinstance(text, str) for pair in value.items() for text in pair),
        "image ids with names of groups, all text, for example, {mouse1_left: mouse1}. Put them in quotes",
    ),
    "volumes": (
        lambda value: isinstance(value, list),
        "a list, for example, [{name: block, image: block.zarr, labels: block_labels.zarr}]",
    ),
    **dict.fromkeys(("licence", "citation", "source"), _TEXT),
}
"""What the value of each key of dataset.yaml must fulfil, and how a message says it."""

_DEFAULTS: dict[str, Any] = {"name": "", "classes": None, "ignore": 255, "licence": "", "citation": ""}
_DEFAULTS |= {"groups": {}, "volumes": []}

SLOW_BYTES = 200_000_000  # reading and checking this much takes some seconds

# So much of a dataset is read into memory, since compressed slices would be decoded for every patch; the rest stays in its
# files. Arrays in .npy files are memory-mapped and never copied.
KEPT_BYTES = 4 << 30


def open_folder(path: str | Path) -> Dataset:
    """Opens a folder dataset; every image and label that is used is read and checked once, of volumes the labels.

    Without splits in dataset.yaml those of splits.yaml are used; if that is absent too, it is made, see `make_splits`.

    Raises:
        DatasetError: The folder or dataset.yaml is missing or wrong, labels do not fit their image or the
            classes, or the same pixels are in two splits.
        ImageError: An image or label file is missing or cannot be used.
    """
    folder = Path(path)
    config = folder / "dataset.yaml"
    content = _load_config(folder, config)
    try:
        classes = ClassSet.from_config(content["classes"], content["ignore"])
    except DatasetError as error:
        raise DatasetError(f"{config}: {error}") from error
    name = content["name"] or folder.resolve().name.encode(errors="replace").decode()
    splits, source = _load_splits(folder, content.get("splits"), config)
    files = {kind: _list_files(folder / kind) for kind in ("images", "labels")}
    volumes = read_volumes(content["volumes"], config)
    if both := sorted(set(volumes) & set(files["images"])):
        raise DatasetError(
            f"{config}: {', '.join(both[:8])} is under volumes and in images/; expected one of them. Rename it."
        )
    annotated = set(files["images"]) & set(files["labels"]) | set(volumes)
    ids = annotated if splits is None else _list_used(splits)
    if not ids:
        raise DatasetError(
            f"{folder}: no file in images/ has one of the same name in labels/, and dataset.yaml lists no volumes; expected "
            "an annotated image."
        )
    known = set(files["images"]) | set(volumes)
    groups = _check_groups(content["groups"], ids, known | ids, config)
    edges_um = content.get("voxel_size_um")
    voxel_size_um = None if edges_um is None else (float(edges_um[0]), float(edges_um[1]), float(edges_um[2]))
    wholes = _read_pairs(folder, sorted(ids - set(volumes)), files, classes, voxel_size_um)
    cache = TileCache(CACHE_BYTES)
    for image_id in sorted(ids & set(volumes)):
        wholes[image_id] = open_listed(volumes[image_id], folder, classes, voxel_size_um, cache)
    is_made = splits is None
    splits = splits or make_splits(list(wholes.values()), len(classes), str(folder), groups)
    unlisted = tuple(sorted(known - _list_used(splits)))
    if is_made:
        _keep_splits(splits, source, name, unlisted)
    elif source != config and (later := _list_labelled(sorted(annotated - _list_used(splits)), files["labels"], classes)):
        warnings.warn(
            f"{name}: {count(len(later), 'annotated image')} in no split of {source}, so not used: {_list_some(later)}. "
            "List there what was labelled later, or remove the file to have splits made again.",
            stacklevel=2,
        )
    if source != config and (lonely := sorted(set(files["labels"]) - known)):
        warnings.warn(
            f"{name}: {count(len(lonely), 'label file')} without an image of the same name, so not used: "
            f"{_list_some(lonely)}. Rename image or labels.",
            stacklevel=2,
        )
    cutouts = {
        split: tuple(entry.cut(wholes[entry.image_id], source) for entry in entries) for split, entries in splits.items()
    }
    sizes = list_sizes(cutout.volume for group in cutouts.values() for cutout in group)
    if len(sizes) > 1:
        listed = ", ".join(f"{format_size(size)} ({example})" for size, example in sizes.items())
        warnings.warn(
            f"{name}: the images have different voxel sizes: {listed}. None is used then, as if it were not known: "
            "resample the images to one size, or state voxel_size_um in dataset.yaml if a file is wrong.",
            stacklevel=2,
        )
    return Dataset(
        name,
        classes,
        cutouts,
        content["licence"],
        content["citation"],
        unlisted=unlisted,
        groups=groups | {entry.name: groups[entry.image_id] for listed in splits.values() for entry in listed if groups},
        # what splits.yaml lists, so that folds are the same before and after it is there
        wholes=() if source == config else tuple(wholes[image_id] for image_id in sorted(_list_used(splits))),
    )


def _check_groups(content: Mapping[str, str], used: set[str], known: set[str], config: Path) -> dict[str, str]:
    """Returns the group of each image that is used; DatasetError if one has none, or another image is named."""
    groups = {unicodedata.normalize("NFC", image_id): group for image_id, group in content.items()}
    for image_id in groups:
        if image_id not in known:
            raise DatasetError(f"{config}: groups: {unknown('image', image_id, sorted(known))}")
    if groups and (without := sorted(used - set(groups))):
        raise DatasetError(f"{config}: groups lacks {', '.join(without[:8])}; expected a group for every annotated image.")
    return groups


def _list_files(folder: Path) -> dict[str, list[Path]]:
    """Returns the images in a folder by id; an id that has more than one is for `find_image` to refuse."""
    files: dict[str, list[Path]] = {}
    for path in list_images(folder) if folder.is_dir() else []:
        # bytes that are no text in a name are shown, and may be listed, as ?
        image_id = unicodedata.normalize("NFC", name_image(path)).encode(errors="replace").decode()
        files.setdefault(image_id, []).append(path)
    return files


def _list_used(splits: Entries) -> set[str]:
    return {entry.image_id for entries in splits.values() for entry in entries}


def _load_splits(folder: Path, content: Any, config: Path) -> tuple[Entries | None, Path]:
    """Returns the splits that somebody has written, None if nobody has, and the file they stand in."""
    beside = folder / "splits.yaml"
    if content is not None:
        if beside.exists():
            warnings.warn(f"{config} has splits, so {beside} is not used; remove one of them.", stacklevel=3)
        return read_splits(content, config), config
    if not beside.exists():
        return None, beside
    return read_splits(read_yaml(beside, DatasetError, "Correct it, or remove it to have it made again."), beside), beside


def _list_labelled(ids: Sequence[str], files: Mapping[str, list[Path]], classes: ClassSet) -> list[str]:
    """Returns the images of which a pixel is labelled, and those of which that cannot be told without more ado."""

    def has_label(path: Path) -> bool:
        with contextlib.suppress(ImageError):
            return any((np.asarray(plane) != classes.stored_ignore).any() for plane in open_labels(path))
        return True

    return [image_id for image_id in ids if image_id not in files or has_label(files[image_id][0])]


def _list_some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + f", ... ({len(names)} in all)" * (len(names) > 5)


def _keep_splits(splits: Entries, path: Path, name: str, unlisted: Sequence[str]) -> None:
    """Writes splits that were made, and says so."""
    made = "; ".join(f"{split} {_list_some([entry.name for entry in entries])}" for split, entries in splits.items())
    left_out = f"; left out, without a label: {_list_some(unlisted)}" if unlisted else ""
    try:
        write_splits(path, splits)
        kept = f"It is written down in {path}, for you to change."
    except OSError as error:
        kept = f"It cannot be written down in {path} ({error.strerror}); the same images give the same splits again."
    warnings.warn(f"{name}: dataset.yaml has no splits, so they were made: {made}{left_out}. {kept}", stacklevel=3)


def _load_config(folder: Path, config: Path) -> dict[str, Any]:
    if not folder.exists():
        raise DatasetError(f"{folder} does not exist; expected a folder with dataset.yaml. Check the name.")
    if not folder.is_dir():
        raise DatasetError(f"{folder} is a file; give the folder in which dataset.yaml lies.")
    if not config.is_file():
        found = ", ".join(sorted(item.name for item in folder.iterdir())[:8]) or "nothing"
        raise DatasetError(f"{folder} has no dataset.yaml (found {found}); add one with classes.")
    content = {**_DEFAULTS, **read_yaml(config, DatasetError, "Correct it.")}
    for key in content:
        if key not in _RULES:
            raise DatasetError(f"{config}: {unknown('key', str(key), _RULES)}")
    for key, value in content.items():
        fits, expected = _RULES[key]
        if not fits(value):
            raise DatasetError(f"{config}: {key} is {describe_value(value)}; expected {expected}.")
    return content


def _is_size(value: Any) -> bool:
    numbers = value if isinstance(value, list) else []
    return len(numbers) == 3 and all(type(edge) in (int, float) and 0 < edge < math.inf for edge in numbers)


def _read_pairs(
    folder: Path, ids: list[str], files: Mapping[str, dict[str, list[Path]]], classes: ClassSet, voxel_size_um: Size | None
) -> dict[str, Cutout]:
    def find(kind: str, image_id: str) -> Path:
        paths = files[kind].get(image_id, [])
        return paths[0] if len(paths) == 1 else find_image(folder / kind, image_id)

    pairs = [(image_id, find("images", image_id), find("labels", image_id)) for image_id in ids]
    slow = sum(path.stat().st_size for _, *pair in pairs for path in pair) > SLOW_BYTES
    cutouts: dict[str, Cutout] = {}
    left = KEPT_BYTES
    for image_id, image_path, labels_path in track(pairs, "reading images", len(pairs)) if slow else pairs:
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
