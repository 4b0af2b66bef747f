"""A folder of slices, one image each, as one volume."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import ImageError
from neurotome.io.files import find_suffix, list_images, name_image
from neurotome.io.lazy_array import LazyArray, Place, Source

SLICE_SUFFIXES = (".tif", ".tiff", ".png", ".bmp", ".jpg", ".jpeg")

BESIDE, LEGEND = ("overlay", "confidence", "uncertainty"), "legend.png"
"""What `predict` writes beside labels: how its names end, and what colours mean."""

KEPT_SLICES = 4
"""Decoded slices that stay in memory, for windows that are read one after the other and for neighbours as channels."""


class Header(NamedTuple):
    """What is known of a slice before its pixels are read: its size, and how pixels are stored."""

    shape: tuple[int, int]
    kind: str


def open_stack(folder: Path, read_header: Callable[[Path], Header], open_slice: Callable[[Path], Source]) -> Source:
    """Opens the images of a folder, in the order of the numbers in their names, as the slices of one volume.

    Every file's header is read now, and pixels when they are asked for.

    Raises:
        ImageError: There are none, they are of several formats, or one differs in size or dtype from the first.
    """
    slices, beside = list_slices(folder)
    first = read_header(slices[0])
    for path in slices[1:]:
        found = read_header(path)
        if found != first:
            raise ImageError(
                f"{path}: {_describe(found)}, but {slices[0].name} has {_describe(first)}; expected slices of one stack "
                "to be alike. Take it out of the folder, or export it again."
            )
    opened = open_slice(slices[0])

    @functools.lru_cache(KEPT_SLICES)
    def decode(z: int) -> NDArray[Any]:
        return np.asarray(open_slice(slices[z]).data[0])

    def read(place: Place) -> NDArray[Any]:
        z, rows, columns = place
        if z.start == z.stop:
            return np.empty((0, rows.stop - rows.start, columns.stop - columns.start), opened.data.dtype)
        return np.stack([decode(number)[rows, columns] for number in range(z.start, z.stop)])

    data = LazyArray(folder, (len(slices), *first.shape), opened.data.dtype, read)
    data.chunk_zyx = (1, *first.shape)
    left_out = [f"{folder}: {', '.join(p.name for p in beside[:3])}{', ...' * (len(beside) > 3)} left out: no slices."]
    return Source(data, opened.voxel_size_um, (*opened.notes, *(left_out if beside else []), *_note_gaps(slices)))


def list_slices(folder: Path) -> tuple[Sequence[Path], Sequence[Path]]:
    """Returns the images of a folder, 2 before 10, and what `predict` wrote beside them; slices must be of one format."""
    found = list_images(folder)
    names = {name_image(path) for path in found}

    def is_beside(path: Path) -> bool:
        stem, _, what = name_image(path).rpartition("_")
        return what in BESIDE and stem in names

    beside = [path for path in found if is_beside(path)]
    beside += [path for path in found if beside and path.name == LEGEND]
    left_out = set(beside)
    images = [path for path in found if path not in left_out]
    suffixes = sorted({find_suffix(path) for path in images})
    if len(suffixes) != 1 or not suffixes[0].endswith(SLICE_SUFFIXES):
        raise ImageError(
            f"{folder}: found {', '.join(suffixes) or 'no images'}; expected the slices of one stack, one file each, all "
            f"with the same suffix of {', '.join(SLICE_SUFFIXES)}."
        )
    return sorted(images, key=lambda path: (split_numbers(path.name), path.name)), beside


def split_numbers(name: str) -> list[tuple[str, int]]:
    """Returns a name as texts and the numbers after them, by which files are sorted as people do."""
    return [(text, int(number or -1)) for text, number in re.findall(r"([^0-9]*)([0-9]*)", name)]


def _note_gaps(slices: Sequence[Path]) -> Sequence[str]:
    """Says where the one number that counts the slices leaves some out."""
    names = [split_numbers(path.name) for path in slices]
    if len({tuple(text for text, _ in name) for name in names}) != 1:
        return []
    numbers = np.array([[number for _, number in name] for name in names])
    counting = numbers[:, (numbers != numbers[0]).any(axis=0)]
    if counting.shape[1] != 1:
        return []
    steps = np.diff(counting[:, 0])
    gaps = np.flatnonzero(steps != steps.min())
    if not len(gaps):
        return []
    before, after = slices[gaps[0]].name, slices[gaps[0] + 1].name
    return [
        f"{slices[0].parent}: slices seem to be missing, in {len(gaps)} places; the first is between {before} and {after}. "
        "They are read as if they were neighbours."
    ]


def _describe(header: Header) -> str:
    return f"{header.shape[0]} x {header.shape[1]} pixels (y x x), {header.kind}"
