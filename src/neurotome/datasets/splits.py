"""Which images, or parts of them, are trained on and which are scored: read, checked, and made where nobody has said it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from neurotome.atomic import write_text
from neurotome.datasets.base import SPLITS, Cutout, view
from neurotome.errors import DatasetError, show, unknown
from neurotome.volume import Volume

AXES = ("z", "y", "x")

FEWEST_SLICES = 8
"""A stack of fewer slices is divided in y or x instead of z."""

HEADER = "# Made by neurotome, since dataset.yaml has no splits. Change it as you like: it is never written again.\n"


class Entry(NamedTuple):
    """An image, or the part of it that a split uses.

    Attributes:
        image_id: The image.
        z: First slice and one past the last, None for all.
        y: The same for rows.
        x: The same for columns.
    """

    image_id: str
    z: tuple[int, int] | None = None
    y: tuple[int, int] | None = None
    x: tuple[int, int] | None = None

    @property
    def ranges(self) -> dict[str, tuple[int, int]]:
        """The axes of which only a part is used."""
        return {axis: ends for axis, ends in zip(AXES, self[1:], strict=True) if ends is not None}

    @property
    def name(self) -> str:
        """Name of the cutout."""
        return "_".join([self.image_id, *(f"{axis}{start}-{stop}" for axis, (start, stop) in self.ranges.items())])

    def overlaps(self, other: Entry) -> bool:
        """Says whether two entries share a voxel."""
        if self.image_id != other.image_id:
            return False
        return all(a is None or b is None or (a[0] < b[1] and b[0] < a[1]) for a, b in zip(self[1:], other[1:], strict=True))

    def cut(self, whole: Cutout, config: Path) -> Cutout:
        """Returns this part of an image, which is not read for it.

        Raises:
            DatasetError: The image is smaller; names the file `config`.
        """
        if not self.ranges:
            return whole
        volume = whole.volume
        for axis, size in zip(AXES, volume.shape, strict=True):
            start, stop = self.ranges.get(axis, (0, size))
            if stop > size:
                raise DatasetError(
                    f"{config}: {axis} {start}..{stop} of {self.image_id} is asked for, but {volume.path} has {size}."
                )
        z, y, x = (slice(None) if ends is None else slice(*ends) for ends in self[1:])
        place = (z, y, x)
        origin_zyx = (z.start or 0, y.start or 0, x.start or 0)
        part = Volume(view(volume.data, place), self.name, volume.voxel_size_um, origin_zyx, volume.path)
        return Cutout(part, view(whole.labels, place))


Entries = dict[str, list[Entry]]
"""What each split lists."""


def read_splits(content: Any, config: Path) -> Entries:
    """Reads and checks `{train: [id, {id: name, z: [start, stop]}, ...], val: ..., test: ...}`.

    Raises:
        DatasetError: It has another form, or a voxel is listed twice; names the file `config`.
    """
    if not isinstance(content, Mapping) or not content:
        raise DatasetError(
            f"{config}: splits is {describe_value(content)}; expected, for example, {{train: [id], test: [id]}}."
        )
    for split, entries in content.items():
        if split not in SPLITS:
            raise DatasetError(f"{config}: {unknown('split', str(split), SPLITS)}")
        if not isinstance(entries, list) or not entries:
            raise DatasetError(
                f"{config}: split {split} is {describe_value(entries)}; list at least one image id, or leave it out."
            )
    splits = {
        split: [_read_entry(entry, f"{config}: split {split}") for entry in content[split]]
        for split in SPLITS
        if split in content
    }
    _check_leakage(splits, config)
    return splits


def describe_value(value: Any) -> str:
    """Returns a value of dataset.yaml for a message."""
    return "missing or empty" if value in (None, {}, []) else show(value)


def _read_entry(entry: Any, where: str) -> Entry:
    ranges: dict[str, tuple[int, int]] = {}
    image_id = entry
    if isinstance(entry, dict):
        if "id" not in entry or len(entry) < 2 or not set(entry) <= {"id", *AXES}:
            raise DatasetError(f"{where}: entry {show(entry)}; expected {{id: name, z: [start, stop]}}, or y or x for z.")
        image_id = entry["id"]
        for axis in AXES:
            if axis not in entry:
                continue
            ends = entry[axis]
            if not isinstance(ends, list) or [type(end) for end in ends] != [int, int] or not 0 <= ends[0] < ends[1]:
                raise DatasetError(
                    f"{where}: {axis} of {show(image_id)} is {show(ends)}; expected [start, stop] with 0 <= start < stop."
                )
            ranges[axis] = (ends[0], ends[1])
    if not isinstance(image_id, str):
        raise DatasetError(f"{where}: id {show(image_id)} is not text. Put it in quotes.")
    if image_id in ("", ".", "..") or any(sign in image_id for sign in "/\\\0"):
        raise DatasetError(
            f"{where}: id {show(image_id)} is no plain file name; expected the name of a file in images/ without suffix."
        )
    return Entry(unicodedata.normalize("NFC", image_id), **ranges)


def _check_leakage(splits: Entries, config: Path) -> None:
    by_image: dict[str, list[tuple[str, Entry]]] = {}
    for split, entry in ((split, entry) for split, entries in splits.items() for entry in entries):
        for other_split, other in by_image.setdefault(entry.image_id, []):
            if not entry.overlaps(other):
                continue
            if other_split == split:
                raise DatasetError(
                    f"{config}: split {split} lists pixels of {entry.image_id} twice ({other.name}, {entry.name}). "
                    "Remove one."
                )
            raise DatasetError(
                f"{config}: pixels of {entry.image_id} are in {other_split} ({other.name}) and in {split} ({entry.name}); "
                "what is trained on must not be scored. Remove one."
            )
        by_image[entry.image_id].append((split, entry))


def make_splits(wholes: Sequence[Cutout], classes: int, where: str) -> Entries:
    """Divides annotated images into train (three fifths or more), val and test (a fifth each).

    Three images or more are divided as they are, in the order of their names, since neighbours in a stack that was saved
    slice by slice look alike. Fewer are cut: a stack between slices, another along y or x, whichever leaves more classes in
    every split, with a gap between, and where each split gets its share of the annotated pixels.

    Args:
        wholes: All images.
        classes: Number of classes; other labels are not annotated.
        where: What is divided, for messages.

    Raises:
        DatasetError: Nothing is annotated, or too little to be divided.
    """
    annotated = [whole for whole in wholes if whole.label_counts[:, :classes].any()]
    if not annotated:
        raise DatasetError(f"{where}: no image has a labelled pixel, so no split can be made; annotate some pixels.")
    if len(annotated) < 3:
        cut = [_divide_image(whole, classes, where) for whole in annotated]
        return {split: [parts[split] for parts in cut] for split in SPLITS}
    entries = [Entry(name) for name in sorted((whole.name for whole in annotated), key=_natural_key)]
    held_out = max(1, len(entries) // 5)
    return {
        "train": entries[: -2 * held_out],
        "val": entries[-2 * held_out : -held_out],
        "test": entries[-held_out:],
    }


def _natural_key(name: str) -> tuple[list[tuple[str, int]], str]:
    """Returns a key that sorts s2 before s10."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"([^0-9]*)([0-9]{0,18})", name)], name


def _divide_image(whole: Cutout, classes: int, where: str) -> dict[str, Entry]:
    depth, height, width = whole.volume.shape
    flat = [1, 2] if height >= width else [2, 1]
    best: tuple[int, dict[str, Entry]] = (0, {})
    for axis in [0, *flat] if depth >= FEWEST_SLICES else flat:
        counts = _count_along(whole, axis, classes)
        ranges = _divide_line(counts.sum(axis=1))
        present = [counts[start:stop].sum(axis=0) > 0 for start, stop in ranges]
        if all(found.any() for found in present) and (score := int(np.sum(present))) > best[0]:
            parts = {split: Entry(whole.name, **{AXES[axis]: ends}) for split, ends in zip(SPLITS, ranges, strict=True)}
            best = (score, parts)
            if axis == 0:
                break
    if not best[1]:
        raise DatasetError(
            f"{where}: {whole.name} has too few labelled pixels, or too close together, to divide them into train, val and "
            "test. Annotate more of it or another image, or list splits in dataset.yaml."
        )
    return best[1]


def _count_along(whole: Cutout, axis: int, classes: int) -> NDArray[np.int64]:
    """Returns the labelled pixels of every slice, row or column per class, shape (positions, classes)."""
    if axis == 0:
        return whole.label_counts[:, :classes]
    planes = (whole.read_labels(z) for z in range(whole.volume.shape[0]))
    sums = np.sum([[(plane == i).sum(axis=2 - axis) for i in range(classes)] for plane in planes], axis=0)
    return np.asarray(sums.T)


def _divide_line(weights: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Returns three ranges of positions with about 60, 20 and 20 % of the weight, and gaps between."""
    length, reached = len(weights), np.cumsum(weights)
    labelled = np.flatnonzero(weights)
    gap = max(1, int(labelled[-1] - labelled[0] + 1) // 20)
    first, second = (int(np.searchsorted(5 * reached, share * reached[-1])) + 1 for share in (3, 4))
    return [(0, first), (first + gap, second), (second + gap, length)]


def write_splits(path: Path, splits: Entries) -> None:
    """Writes splits as `read_splits` reads them.

    Raises:
        OSError: The file cannot be written.
    """
    content = {
        split: [
            {"id": entry.image_id, **{axis: list(ends) for axis, ends in entry.ranges.items()}}
            if entry.ranges
            else entry.image_id
            for entry in entries
        ]
        for split, entries in splits.items()
    }
    write_text(
        path, HEADER + yaml.safe_dump(content, allow_unicode=True, sort_keys=False, default_flow_style=None, width=120)
    )


def describe_splits(splits: Mapping[str, Iterable[Entry]]) -> str:
    """Returns which images each split has, in one line."""
    parts = []
    for split, entries in splits.items():
        names = [entry.name for entry in entries]
        parts.append(f"{split} {', '.join(names[:5])}" + (f", ... ({len(names)} in all)" if len(names) > 5 else ""))
    return "; ".join(parts)
