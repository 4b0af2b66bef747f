"""Dataset and Cutout: annotated volumes, their classes, and which of them belong to which split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.errors import DatasetError
from neurotome.volume import Volume

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Cutout:
    """An image volume and its labels, voxel by voxel.

    Attributes:
        volume: The grey values.
        labels: Integers, shape of the volume (z, y, x); may be memory-mapped and of any integer dtype. Values are class
            ids or the ignore value: whoever builds a Cutout has checked that with `check_labels`.
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

    @cached_property
    def digests(self) -> Mapping[str, Any]:
        """SHA-256 of the `pixels` (with their shape and dtype) and of the `labels`, and `voxel_size_um`; JSON values."""
        volume = self.volume
        pixels = hashlib.sha256(repr((volume.shape, str(volume.data.dtype))).encode())
        labels = hashlib.sha256()
        for z in range(volume.shape[0]):
            pixels.update(np.ascontiguousarray(volume.data[z]).tobytes())
            labels.update(self.read_labels(z).tobytes())
        size = volume.voxel_size_um
        voxel_size_um = None if size is None else [float(edge) for edge in size]
        return {"pixels": pixels.hexdigest(), "labels": labels.hexdigest(), "voxel_size_um": voxel_size_um}


class CutoutStream(Protocol):
    """Training cutouts that change as training goes on."""

    waited_seconds: float

    def window(self, step: int) -> list[tuple[int, Cutout]]:
        """Returns the cutouts, each with a number of its own, from which a step draws; the same for the same step."""
        ...


@dataclass(frozen=True)
class Dataset:
    """Cutouts by split.

    Attributes:
        name: Short name.
        classes: What the labels mean.
        splits: Cutouts per split; a split that is absent has no entry.
        licence: Licence of the data, "" if not stated.
        citation: How to cite it, "" if not stated.
        stream: Training cutouts that are made as training goes on; the split train holds those of the first step.
    """

    name: str
    classes: ClassSet
    splits: Mapping[str, tuple[Cutout, ...]]
    licence: str = ""
    citation: str = ""
    stream: CutoutStream | None = None

    def split(self, name: str) -> tuple[Cutout, ...]:
        """Returns the cutouts of a split.

        Raises:
            DatasetError: The dataset has no such split, or it is empty.
        """
        if name not in self.splits:
            raise DatasetError(
                f"{self.name}: found no split {name!r}, only {', '.join(self.splits) or 'none'}. Name its images under "
                f"splits: {name} in dataset.yaml."
            )
        if not self.splits[name]:
            raise DatasetError(f"{self.name}: split {name!r} is empty; list at least one image id in dataset.yaml.")
        return self.splits[name]

    def fingerprint(self, name: str) -> str:
        """Returns the SHA-256 of a split: names, pixels, labels and voxel sizes of its images, classes and ignore value."""
        content = [self.classes.names, self.classes.ignore, [(c.name, dict(c.digests)) for c in self.split(name)]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def voxel_size_um(self) -> tuple[float, float, float] | None:
        """Voxel size shared by all cutouts, None if not known or not the same."""
        sizes = {c.volume.voxel_size_um for cutouts in self.splits.values() for c in cutouts}
        return sizes.pop() if len(sizes) == 1 else None


def _take_word(_: Any, tokens: Sequence[Any]) -> str:
    """Reads a dataset from the command line, where without it there would be as many words as `Dataset` has fields."""
    words = [str(token.value) for token in tokens]
    if len(words) != 1:
        raise ValueError(f"found {' '.join(words)!r}; expected one dataset")
    return words[0]


DatasetOrName = Annotated[str | Path | Dataset, Parameter(accepts_keys=False, n_tokens=1, converter=_take_word)]
"""A dataset, or what `open_dataset` opens; on the command line one word."""


def check_labels(labels: NDArray[Any], classes: ClassSet, where: str) -> None:
    """Checks that labels are integers and hold class ids or the ignore value only; reads slice by slice.

    Args:
        labels: Shape (z, y, x).
        classes: What is allowed.
        where: File or name for the message.

    Raises:
        DatasetError: Names the file, the values found, and how many pixels have them.
    """
    if labels.dtype.kind not in "iu":
        raise DatasetError(
            f"{where}: labels have dtype {labels.dtype}; expected integers 0..{len(classes) - 1} or "
            f"{classes.ignore}. Save them as uint8."
        )
    wrong: dict[int, int] = {}
    for plane in labels:
        values = np.asarray(plane)
        bad = values[((values < 0) | (values >= len(classes))) & (values != classes.ignore)]
        for value, count in zip(*np.unique(bad, return_counts=True), strict=True):
            wrong[int(value)] = wrong.get(int(value), 0) + int(count)
    if wrong:
        listed = ", ".join(f"{value} ({count} pixels)" for value, count in sorted(wrong.items())[:8])
        raise DatasetError(
            f"{where}: label values outside the classes: {listed}; expected 0..{len(classes) - 1} "
            f"({', '.join(classes.names)}) or {classes.ignore} for pixels not labelled. Correct the labels, or add the "
            "class to dataset.yaml."
        )
