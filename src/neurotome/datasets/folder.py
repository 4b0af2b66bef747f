"""The folder dataset: dataset.yaml beside images/ and labels/.

    name: vessels
    classes: {0: background, 1: blood vessel}
    ignore: 255                           # optional
    voxel_size_um: [1.17, 1.17, 1.17]     # optional; z, y, x
    splits:
      train: [mouse1, {id: mouse2, z: [0, 80]}]
      val: [{id: mouse2, z: [100, 120]}]
    licence: CC BY 4.0                    # optional, as are citation and source

An entry of a split is the id of a whole image, or a range of its slices, the stop left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.datasets.base import SPLITS, Cutout, Dataset, check_labels
from neurotome.documents import read_yaml
from neurotome.errors import DatasetError, unknown
from neurotome.io.images import find_image, read_image, read_labels
from neurotome.progress import track
from neurotome.volume import Volume

KEYS = ("name", "classes", "ignore", "voxel_size_um", "splits", "licence", "citation", "source")

SLOW_BYTES = 200_000_000  # reading and checking this much takes some seconds


class Entry(NamedTuple):
    """Part of an image that a split uses.

    Attributes:
        image_id: The image.
        z: First slice and one past the last, None for all.
    """

    image_id: str
    z: tuple[int, int] | None

    @property
    def name(self) -> str:
        """Name of the cutout."""
        return self.image_id if self.z is None else f"{self.image_id}_z{self.z[0]}-{self.z[1]}"


def open_folder(path: str | Path) -> Dataset:
    """Opens a folder dataset; every listed image and label is read and checked once.

    Args:
        path: Folder with dataset.yaml, images/ and labels/.

    Raises:
        DatasetError: The folder or dataset.yaml is missing or wrong, labels do not fit their image or the
            classes, or the same slices are in two splits.
        ImageError: An image or label file is missing or cannot be used.
    """
    folder = Path(path)
    config = folder / "dataset.yaml"
    content = _load_config(folder, config)
    classes = _read_classes(content, config)
    voxel_size_um = _read_voxel_size(content, config)
    splits = _read_splits(content, config)
    _check_leakage(splits, config)
    ids = sorted({entry.image_id for entries in splits.values() for entry in entries})
    whole = {pair.name: pair for pair in _read_pairs(folder, ids, classes, voxel_size_um)}
    return Dataset(
        name=_read_text(content, "name", config) or folder.resolve().name,
        classes=classes,
        splits={
            split: tuple(_cut(whole[entry.image_id], entry, config) for entry in entries)
            for split, entries in splits.items()
        },
        licence=_read_text(content, "licence", config),
        citation=_read_text(content, "citation", config),
    )


def _load_config(folder: Path, config: Path) -> Mapping[str, Any]:
    if not folder.exists():
        raise DatasetError(f"{folder} does not exist; expected a folder with dataset.yaml. Check the name.")
    if not folder.is_dir():
        raise DatasetError(f"{folder} is a file; give the folder in which dataset.yaml lies.")
    if not config.is_file():
        found = ", ".join(sorted(item.name for item in folder.iterdir())[:8]) or "nothing"
        raise DatasetError(f"{folder} has no dataset.yaml (found {found}); add one with classes and splits.")
    content = read_yaml(config, DatasetError, "Correct it.")
    for key in content:
        if key not in KEYS:
            raise DatasetError(f"{config}: {unknown('key', str(key), KEYS)}")
    for key in ("classes", "splits"):
        if not isinstance(content.get(key), dict) or not content[key]:
            example = "{0: background, 1: cell}" if key == "classes" else "{train: [id, ...], test: [id, ...]}"
            raise DatasetError(f"{config}: {key} is {_kind(content.get(key))}; expected, for example, {example}.")
    return content


def _kind(value: Any) -> str:
    return "missing or empty" if value in (None, {}, []) else f"{value!r}"


def _read_text(content: Mapping[str, Any], key: str, config: Path) -> str:
    value = content.get(key, "")
    if not isinstance(value, str):
        raise DatasetError(f"{config}: {key} is {value!r}; expected text. Put it in quotes.")
    return value


def _read_classes(content: Mapping[str, Any], config: Path) -> ClassSet:
    ignore = content.get("ignore", 255)
    if type(ignore) is not int:
        raise DatasetError(f"{config}: ignore is {ignore!r}; expected an integer up to 255.")
    for name in content["classes"].values():
        if not isinstance(name, str) or not name.strip():
            raise DatasetError(f"{config}: class name {name!r} is not text. Put it in quotes.")
    try:
        return ClassSet.from_mapping(content["classes"], ignore)
    except DatasetError as error:
        raise DatasetError(f"{config}: {error}") from error


def _read_voxel_size(content: Mapping[str, Any], config: Path) -> tuple[float, float, float] | None:
    sizes = content.get("voxel_size_um")
    if sizes is None:
        return None
    numbers = sizes if isinstance(sizes, list) else []
    if len(numbers) != 3 or not all(type(size) in (int, float) and math.isfinite(size) and size > 0 for size in numbers):
        raise DatasetError(
            f"{config}: voxel_size_um is {sizes!r}; expected three positive numbers [z, y, x] in micrometres."
        )
    return float(numbers[0]), float(numbers[1]), float(numbers[2])


def _read_splits(content: Mapping[str, Any], config: Path) -> dict[str, list[Entry]]:
    splits: dict[str, list[Entry]] = {}
    for split, entries in content["splits"].items():
        if split not in SPLITS:
            raise DatasetError(f"{config}: {unknown('split', str(split), SPLITS)}")
        if not isinstance(entries, list) or not entries:
            raise DatasetError(f"{config}: split {split} is {_kind(entries)}; list at least one image id, or leave it out.")
        splits[split] = [_read_entry(entry, split, config) for entry in entries]
    return {split: splits[split] for split in SPLITS if split in splits}


def _read_entry(entry: Any, split: str, config: Path) -> Entry:
    where = f"{config}: split {split}"
    image_id, z = entry, None
    if isinstance(entry, dict):
        if set(entry) != {"id", "z"}:
            raise DatasetError(f"{where}: entry {entry!r}; expected {{id: name, z: [start, stop]}}.")
        image_id, z = entry["id"], entry["z"]
        ends = z if isinstance(z, list) and all(type(end) is int for end in z) else []
        if len(ends) != 2 or not 0 <= ends[0] < ends[1]:
            raise DatasetError(f"{where}: z of {image_id!r} is {z!r}; expected [start, stop] with 0 <= start < stop.")
    if not isinstance(image_id, str):
        raise DatasetError(f"{where}: id {image_id!r} is not text. Put it in quotes.")
    if image_id in ("", ".", "..") or any(sign in image_id for sign in "/\\\0"):
        raise DatasetError(
            f"{where}: id {image_id!r} is no plain file name; expected the name of a file in images/ without suffix."
        )
    return Entry(image_id, None if z is None else (z[0], z[1]))


def _check_leakage(splits: Mapping[str, Iterable[Entry]], config: Path) -> None:
    seen: dict[str, list[tuple[str, Entry]]] = {}
    for split, entries in splits.items():
        for entry in entries:
            for other_split, other in seen.setdefault(entry.image_id, []):
                if not _overlap(entry, other):
                    continue
                if other_split == split:
                    raise DatasetError(
                        f"{config}: split {split} lists slices of {entry.image_id} twice "
                        f"({other.name}, {entry.name}). Remove one."
                    )
                raise DatasetError(
                    f"{config}: slices of {entry.image_id} are in {other_split} ({other.name}) and in "
                    f"{split} ({entry.name}); what is trained on must not be scored. Remove one."
                )
            seen[entry.image_id].append((split, entry))


def _overlap(one: Entry, other: Entry) -> bool:
    if one.z is None or other.z is None:
        return True
    return one.z[0] < other.z[1] and other.z[0] < one.z[1]


def _read_pairs(
    folder: Path, ids: Iterable[str], classes: ClassSet, voxel_size_um: tuple[float, float, float] | None
) -> Iterable[Cutout]:
    files = [(find_image(folder / "images", name), find_image(folder / "labels", name)) for name in ids]
    slow = sum(path.stat().st_size for pair in files for path in pair) > SLOW_BYTES
    for image_path, labels_path in track(files, "reading images", len(files)) if slow else files:
        volume = read_image(image_path, voxel_size_um=voxel_size_um)
        labels = read_labels(labels_path)
        if labels.shape != volume.shape:
            raise DatasetError(
                f"{labels_path}: labels have shape {labels.shape}, the image {image_path} has {volume.shape} "
                "(z, y, x); every pixel of the image needs one label."
            )
        check_labels(labels, classes, str(labels_path))
        yield Cutout(volume, labels)


def _cut(whole: Cutout, entry: Entry, config: Path) -> Cutout:
    if entry.z is None:
        return whole
    start, stop = entry.z
    volume, labels = whole.volume, whole.labels
    if stop > volume.shape[0]:
        raise DatasetError(
            f"{config}: slices {start}..{stop} of {entry.image_id} are asked for, but {volume.path} has {volume.shape[0]}."
        )
    view: NDArray[Any] = volume.data[start:stop]
    part = Volume(view, entry.name, volume.voxel_size_um, (start, 0, 0), volume.path)
    return Cutout(part, np.asanyarray(labels[start:stop]))
