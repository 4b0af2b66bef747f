"""Which images, or parts of them, are trained on and which are scored: read, checked, and made where nobody has said it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from neurotome.atomic import write_text
from neurotome.datasets.base import SPLITS, Cutout
from neurotome.errors import DatasetError, show, unknown

AXES = ("z", "y", "x")

FEWEST_SLICES = 8  # a stack of fewer is divided in y or x instead of z

HEADER = "# Made by neurotome, since dataset.yaml has no splits. Change it as you like: it is never written again.\n"


class Entry(NamedTuple):
    """An image, or the part of it that a split uses: `ranges` has start and stop along the axes of which it uses a part."""

    image_id: str
    ranges: Mapping[str, tuple[int, int]] = {}

    @property
    def name(self) -> str:
        """Name of the cutout."""
        return "_".join([self.image_id, *(f"{axis}{start}-{stop}" for axis, (start, stop) in self.ranges.items())])

    def overlaps(self, other: Entry) -> bool:
        """Says whether two parts of one image share a voxel."""
        shared = [(ends, other.ranges[axis]) for axis, ends in self.ranges.items() if axis in other.ranges]
        return all(mine[0] < theirs[1] and theirs[0] < mine[1] for mine, theirs in shared)

    def cut(self, whole: Cutout, config: Path) -> Cutout:
        """Returns this part of an image, which is not read; DatasetError, naming the file `config`, if that is smaller."""
        if not self.ranges:
            return whole
        volume, shape = whole.volume, whole.volume.stack.shape
        for axis, size in zip(AXES, shape, strict=True):
            start, stop = self.ranges.get(axis, (0, size))
            if stop > size:
                raise DatasetError(
                    f"{config}: {axis} {start}..{stop} of {self.image_id} is asked for, but {volume.path} has {size}."
                )
        z, y, x = (slice(*self.ranges.get(axis, (0, size))) for axis, size in zip(AXES, shape, strict=True))
        if not any(z.start <= number < z.stop for number in volume.numbers):
            there = ", ".join(map(str, volume.numbers[:8])) + ", ..." * (len(volume.numbers) > 8)
            raise DatasetError(
                f"{config}: z {z.start}..{z.stop} of {self.image_id} is asked for, but its labelled slices are {there}; "
                "expected one of them in it."
            )
        return whole.cut(self.name, (z, y, x))


Entries = dict[str, list[Entry]]
"""What each split lists."""


def read_splits(content: Mapping[Any, Any], config: Path) -> Entries:
    """Reads and checks `{train: [id, {id: name, z: [start, stop]}, ...], val: ..., test: ...}`.

    Raises:
        DatasetError: It has another form, or a voxel is listed twice; names the file `config`.
    """
    if not content:
        raise DatasetError(f"{config}: splits is missing or empty; expected, for example, {{train: [id], test: [id]}}.")
    for split, entries in content.items():
        if split not in SPLITS:
            raise DatasetError(f"{config}: {unknown('split', str(split), SPLITS)}")
        if not isinstance(entries, list) or not entries:
            raise DatasetError(
                f"{config}: split {split} is {describe_value(entries)}; list at least one image id, or leave it out."
            )
    splits: Entries = {split: [] for split in SPLITS if split in content}
    by_image: dict[str, list[tuple[str, Entry]]] = {}
    for split, entries in splits.items():
        for listed in content[split]:
            entry = _read_entry(listed, f"{config}: split {split}")
            for other_split, other in by_image.setdefault(entry.image_id, []):
                if entry.overlaps(other):
                    raise DatasetError(
                        f"{config}: pixels of {entry.image_id} are in {other_split} ({other.name}) and in {split} "
                        f"({entry.name}); they count once, and what is trained on must not be scored. Remove one."
                    )
            by_image[entry.image_id].append((split, entry))
            entries.append(entry)
    return splits


def describe_value(value: Any) -> str:
    """Returns a value of dataset.yaml for a message."""
    return "missing or empty" if value in (None, {}, []) else show(value)


def _read_entry(entry: Any, where: str) -> Entry:
    """Returns an image or part of one as a split lists it."""
    if isinstance(entry, dict) and ("id" not in entry or len(entry) < 2 or not set(entry) <= {"id", *AXES}):
        raise DatasetError(f"{where}: entry {show(entry)}; expected {{id: name, z: [start, stop]}}, or y or x for z.")
    parts = entry if isinstance(entry, dict) else {"id": entry}
    image_id, ranges = parts["id"], {axis: parts[axis] for axis in AXES if axis in parts}
    if not isinstance(image_id, str) or image_id in ("", ".", "..") or any(sign in image_id for sign in "/\\\0"):
        raise DatasetError(
            f"{where}: id {show(image_id)} is no plain file name; expected the name of a file in images/ without suffix, in "
            "quotes where it is not text."
        )
    for axis, ends in ranges.items():
        if not isinstance(ends, list) or [type(end) for end in ends] != [int, int] or not 0 <= ends[0] < ends[1]:
            raise DatasetError(
                f"{where}: {axis} of {show(image_id)} is {show(ends)}; expected [start, stop] with 0 <= start < stop."
            )
    return Entry(unicodedata.normalize("NFC", image_id), {axis: (start, stop) for axis, (start, stop) in ranges.items()})


def count_up(name: str) -> tuple[list[tuple[str, int]], str]:
    """Returns a key by which s2 comes before s10."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"([^0-9]*)([0-9]{0,18})", name)], name


def make_splits(wholes: Sequence[Cutout], classes: int, where: str, groups: Mapping[str, str] | None = None) -> Entries:
    """Divides annotated images into train (three fifths or more), val and test (a fifth each).

    Where there are groups, they are divided, and their images stay together. Three images or more are divided as they are,
    in the order of their names, since neighbours in a stack that was saved slice by slice look alike. Fewer are cut: a
    stack between slices, another along y or x, whichever leaves more classes in every split, with a gap between, and where
    each split gets its share of the annotated pixels.

    Args:
        wholes: All images.
        classes: Number of classes; other labels are not annotated.
        where: What is divided, for messages.
        groups: Group of each image by name, if there are any.

    Raises:
        DatasetError: Nothing is annotated, or too little to be divided.
    """
    annotated = [whole for whole in wholes if whole.label_counts[:, :classes].any()]
    if not annotated:
        raise DatasetError(f"{where}: no image has a labelled pixel, so no split can be made; annotate some pixels.")
    names = sorted((whole.name for whole in annotated), key=count_up)
    members: dict[str, list[Entry]] = {}
    for name in names:
        members.setdefault(groups[name] if groups else name, []).append(Entry(name))
    if groups and len(members) < 3:
        raise DatasetError(
            f"{where}: its annotated images are of {len(members)} groups ({', '.join(members)}); expected 3 or more, for "
            "train, val and test. List splits in dataset.yaml, or remove groups if they need not stay together."
        )
    if len(members) < 3:
        cut = [_divide_image(whole, classes, where) for whole in annotated]
        return {split: [parts[split] for parts in cut] for split in SPLITS}
    units = list(members.values())
    val, test = -2 * max(1, len(units) // 5), -max(1, len(units) // 5)
    divided = {"train": units[:val], "val": units[val:test], "test": units[test:]}
    return {split: [entry for unit in chosen for entry in unit] for split, chosen in divided.items()}


def _divide_image(whole: Cutout, classes: int, where: str) -> dict[str, Entry]:
    depth, height, width = whole.volume.stack.shape
    flat = [1, 2] if height >= width else [2, 1]
    best, most = {}, 0
    for axis in [0, *flat] if depth >= FEWEST_SLICES else flat:
        counts = _count_along(whole, axis, classes)
        ranges = _divide_line(counts.sum(axis=1))
        present = np.array([counts[start:stop].any(axis=0) for start, stop in ranges])
        if present.any(axis=1).all() and present.sum() > most:
            best = {split: Entry(whole.name, {AXES[axis]: ends}) for split, ends in zip(SPLITS, ranges, strict=True)}
            most = present.sum()
            if axis == 0:
                break
    if not best:
        raise DatasetError(
            f"{where}: {whole.name} has too few labelled pixels, or too close together, to divide them into train, val and "
            "test. Annotate more of it or another image, or list splits in dataset.yaml."
        )
    return best


def _count_along(whole: Cutout, axis: int, classes: int) -> NDArray[np.int64]:
    """Returns the labelled pixels of every slice, row or column per class, shape (positions, classes)."""
    if axis == 0:
        counts = np.zeros((whole.volume.stack.shape[0], classes), np.int64)
        counts[whole.volume.numbers] = whole.label_counts[:, :classes]
        return counts
    sums = np.zeros((classes, whole.volume.shape[axis]), np.int64)
    for z in range(whole.volume.shape[0]):
        sums += (whole.read_labels(z) == np.arange(classes)[:, None, None]).sum(axis=3 - axis)
    return sums.T


def _divide_line(weights: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Returns three ranges of positions with about 60, 20 and 20 % of the weight, and gaps between."""
    length, reached = len(weights), np.cumsum(weights)
    labelled = np.flatnonzero(weights)
    gap = max(1, int(labelled[-1] - labelled[0] + 1) // 20)
    first, second = (int(np.searchsorted(5 * reached, share * reached[-1])) + 1 for share in (3, 4))
    return [(0, first), (first + gap, second), (second + gap, length)]


def write_splits(path: Path, splits: Entries) -> None:
    """Writes splits as `read_splits` reads them."""

    def plain(entry: Entry) -> Any:
        ranges = {axis: list(ends) for axis, ends in entry.ranges.items()}
        return {"id": entry.image_id, **ranges} if ranges else entry.image_id

    content = {split: list(map(plain, entries)) for split, entries in splits.items()}
    text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False, default_flow_style=None, width=120)
    write_text(path, HEADER + text)
