"""Dataset and Cutout: annotated volumes, their classes, and which of them belong to which split."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.errors import DatasetError
from neurotome.io.lazy_array import LazyArray, Place, Source
from neurotome.tables import Shown, Table
from neurotome.volume import SIZE_TOLERANCE, Size, Volume

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Cutout:
    """An image volume and its labels, voxel by voxel.

    Attributes:
        volume: The grey values.
        labels: Class ids or the ignore value, of any integer dtype, shape of the volume (z, y, x); may be memory-mapped or
            lazy. Whoever builds a Cutout has checked them with `check_labels`.
    """

    volume: Volume
    labels: NDArray[Any]

    @property
    def name(self) -> str:
        """Name of the volume."""
        return self.volume.name

    def read_labels(self, z: int, rows: slice = slice(None), columns: slice = slice(None)) -> NDArray[np.uint8]:
        """Returns labels of one slice as uint8, shape (y, x); only what is asked for is read and narrowed."""
        return np.asarray(self.labels[z, rows, columns]).astype(np.uint8)

    def find_pixel(self, z: int, class_id: int, number: int) -> tuple[int, int]:
        """Returns (y, x) of a pixel of a class in a slice: which of them, `number` says, counted from 0."""
        labels = self.read_labels(z)
        y, x = divmod(int(np.flatnonzero(labels.reshape(-1) == class_id)[number]), labels.shape[1])
        return y, x

    def cut(self, name: str, place: Place) -> Cutout:
        """Returns a part (z, y, x) under another name; nothing is read."""
        volume = self.volume
        z, y, x = place
        part = Volume(view(volume.data, place), name, volume.voxel_size_um, (z.start, y.start, x.start), volume.path)
        return Cutout(part, view(self.labels, place))

    @property
    def slice_names(self) -> list[str]:
        """How scores and pictures call its slices: by their numbers in the stack, if there are several."""
        numbers = self.volume.numbers.tolist()
        return [f"{self.name}/{z:04d}" for z in numbers] if len(numbers) > 1 else [self.name]

    @cached_property
    def label_counts(self) -> NDArray[np.int64]:
        """Pixels of each slice per label value, int64, shape (slices, 256); read once, slice by slice."""
        planes = (self.read_labels(z).ravel() for z in range(self.volume.shape[0]))
        return np.stack([np.bincount(plane, minlength=256) for plane in planes]).astype(np.int64)

    @cached_property
    def digests(self) -> Mapping[str, Any]:
        """SHA-256 of the `pixels` (with their shape and dtype) and of the `labels`, and `voxel_size_um`; JSON values."""
        volume = self.volume
        pixels = hashlib.sha256(repr((volume.shape, str(volume.data.dtype))).encode())
        labels = hashlib.sha256()
        for plane, truth in zip(volume.data, self.labels, strict=True):
            pixels.update(np.ascontiguousarray(plane).tobytes())
            labels.update(np.ascontiguousarray(truth, np.uint8).tobytes())
        voxel_size_um = [float(edge) for edge in volume.voxel_size_um or ()] or None
        return {"pixels": pixels.hexdigest(), "labels": labels.hexdigest(), "voxel_size_um": voxel_size_um}


class CutoutSource:
    """Training cutouts by step; here the same at every step."""

    def __init__(self, cutouts: Iterable[Cutout] = ()) -> None:
        self._listed = list(enumerate(cutouts))

    @property
    def facts(self) -> Mapping[str, Any]:
        """What a run's summary says of it; JSON values."""
        return {}

    def window(self, step: int) -> Sequence[tuple[int, Cutout]]:
        """Returns the cutouts, each with a number of its own, from which a step draws; the same for the same step."""
        return self._listed


@dataclass(frozen=True, repr=False)
class Dataset(Shown):
    """Cutouts by split.

    Attributes:
        name: Short name.
        classes: What the labels mean.
        splits: Cutouts per split; a split that is absent has no entry.
        licence: Licence of the data, "" if not stated.
        citation: How to cite it, "" if not stated.
        source: Training cutouts by step where they change as training goes on; the split train holds those of the first.
        unlisted: Images that lie beside the others and are in no split.
        groups: The group (animal, region) of each cutout by its name, {} where none are stated.
        wholes: The images that splits were made of, for folds; () where somebody has decided what the splits are.
    """

    name: str
    classes: ClassSet
    splits: Mapping[str, tuple[Cutout, ...]]
    licence: str = ""
    citation: str = ""
    source: CutoutSource | None = None
    unlisted: tuple[str, ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict)
    wholes: tuple[Cutout, ...] = ()

    def split(self, name: str) -> tuple[Cutout, ...]:
        """Returns the cutouts of a split; DatasetError if there is none."""
        cutouts = self.splits.get(name)
        if not cutouts:
            raise DatasetError(
                f"{self.name}: found no split {name!r} with an image, only {', '.join(self.splits) or 'none'}. List its "
                f"images under splits: {name} in dataset.yaml."
            )
        return cutouts

    def fingerprint(self, name: str) -> str:
        """Returns the SHA-256 of a split: names, pixels, labels and voxel sizes of its images, classes and ignore value."""
        content = [self.classes.to_json(), [(c.name, dict(c.digests)) for c in self.split(name)]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def voxel_size_um(self) -> Size | None:
        """Voxel size (z, y, x) shared by all cutouts, None if not known or not the same."""
        sizes = self._list_sizes()
        return sizes[0] if len(sizes) == 1 else None

    def _list_sizes(self) -> list[Size | None]:
        return list(list_sizes(cutout.volume for cutouts in self.splits.values() for cutout in cutouts))

    def _show(self) -> list[str | Table]:
        rows = []
        for split, cutouts in self.splits.items():
            planes = sorted({cutout.volume.shape[1:] for cutout in cutouts})
            sizes = ", ".join(f"{y} x {x}" for y, x in planes[:3]) + ", ..." * (len(planes) > 3)
            slices = sum(cutout.volume.shape[0] for cutout in cutouts)
            rows.append((split, str(len(cutouts)), str(slices), sizes))
        voxels = " and ".join(map(format_size, self._list_sizes()))
        headline = f"{self.name}: {', '.join(self.classes.names)}; voxel size {voxels}\n"
        unlisted = [f"in no split: {', '.join(self.unlisted)}"] if self.unlisted else []
        return [headline, Table(("split", "images", "slices", "pixels (y x x)"), rows), *unlisted]


def list_sizes(volumes: Iterable[Volume]) -> dict[Size | None, str]:
    """Returns the voxel sizes that differ by more than rounding, each with the name of the first volume that has it."""

    def is_same(first: Size | None, second: Size | None) -> bool:
        if first is None or second is None:
            return first is second
        return all(max(a / b, b / a) <= SIZE_TOLERANCE for a, b in zip(first, second, strict=True))

    sizes: dict[Size | None, str] = {}
    for volume in volumes:
        if not any(is_same(volume.voxel_size_um, size) for size in sizes):
            sizes[volume.voxel_size_um] = volume.name
    return sizes


def format_size(size: Size | None) -> str:
    """Returns a voxel size (z, y, x) as text."""
    return "not known" if size is None else " x ".join(f"{edge:.4g}" for edge in size) + " um (z, y, x)"


def _take_word(_: Any, tokens: Sequence[Any]) -> str:
    """Reads a dataset from the command line, where without it there would be as many words as `Dataset` has fields."""
    words = [str(token.value) for token in tokens]
    if len(words) != 1:
        raise ValueError(f"found {' '.join(words)!r}; expected one dataset")
    return words[0]


DatasetOrName = Annotated[str | Path | Dataset, Parameter(accepts_keys=False, n_tokens=1, converter=_take_word)]
"""A dataset, or what `open_dataset` opens; on the command line one word."""


def check_labels(labels: NDArray[Any], classes: ClassSet, where: str) -> None:
    """Checks that integer labels (z, y, x) are those that files may hold for these classes; reads slice by slice.

    Raises:
        DatasetError: Names the file (`where`), the values found, and how many pixels have them.
    """
    first, ignore = classes.first_id, classes.stored_ignore
    wrong: Counter[int] = Counter()
    for z in range(labels.shape[0]):
        plane = np.asarray(labels[z])
        stray = plane[((plane < first) | (plane >= first + len(classes))) & (plane != ignore)]
        values, counts = np.unique(stray, return_counts=True)
        wrong.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    if wrong:
        listed = ", ".join(f"{value} ({count} pixels)" for value, count in sorted(wrong.items())[:8])
        raise DatasetError(
            f"{where}: label values outside the classes: {listed}; expected {classes.describe_stored()}. Correct the "
            "labels, or add the class to dataset.yaml."
        )


def view(source: NDArray[Any], place: Place = (slice(None),) * 3, table: NDArray[np.uint8] | None = None) -> NDArray[Any]:
    """Returns part of a volume (z, y, x) without reading it: numpy's own view, or a lazy array.

    With a `table`, uint8, shape (256,), it holds what stands there for each value.
    """
    if isinstance(source, np.ndarray) and table is None:
        return source[place]
    starts = [kept.start or 0 for kept in place]
    z_size, y_size, x_size = (len(range(size)[kept]) for size, kept in zip(source.shape, place, strict=True))

    def read(inner: Place) -> NDArray[Any]:
        z, y, x = (slice(start + part.start, start + part.stop) for start, part in zip(starts, inner, strict=True))
        values: NDArray[Any] = np.asarray(source[z, y, x])
        return values if table is None else np.asarray(table[values])

    dtype = source.dtype if table is None else table.dtype
    lazy = LazyArray(getattr(source, "path", Path()), (z_size, y_size, x_size), dtype, read)
    lazy.chunk_zyx = getattr(source, "chunk_zyx", None)
    lazy.reopen = functools.partial(_view_again, source, place, table)
    return cast("NDArray[Any]", lazy)  # as which it behaves wherever volumes are used


def _view_again(*arguments: Any) -> Source:
    return Source(view(*arguments))
