"""ClassSet: ids, names, colours, ignore value; the only source of the number of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import DatasetError, SettingsError, show, unknown

Colour = tuple[int, int, int]

BACKGROUND: Colour = (40, 40, 40)

# Okabe and Ito (2008), Color Universal Design: distinct under the common forms of colour blindness.
OKABE_ITO: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
)

REPORT_COLOURS: Mapping[str, Colour] = {"blood vessel": (247, 86, 124), "cell": (153, 225, 217), "axon": (238, 227, 171)}

KINDS: Mapping[str, Sequence[str]] = {
    "cells": ("cell", "cells", "cell body", "cell bodies", "soma"),
    "vessels": ("blood vessel", "blood vessels", "vessel", "vessels", "capillary", "capillaries"),
    "axons": ("axon", "axons", "myelinated axon", "myelinated axons", "myelin", "white matter"),
}
"""What classes are called of which more is measured and scored than pixels."""

Palette = Literal["colour-blind-safe", "founding-report"]


@dataclass(frozen=True)
class ClassSet:
    """The classes of a dataset or model; class id = position in `names`.

    Files may count otherwise: where `first_id` is 1, they hold 1, 2, ... for the classes and 0 for "not labelled", as tools
    for scribbles write them. `from_stored` and `to_stored` are the way in and out; all else knows ids from 0.

    Attributes:
        names: One name per class, id 0 first.
        ignore: Label value that means "not labelled": never trained on, never scored.
        palette: `colour-blind-safe` (repeats after eight classes) or `founding-report`.
        first_id: What files hold for the first class, 0 or 1. With 0 it is the background, which pictures leave grey.
    """

    names: tuple[str, ...]
    ignore: int = 255
    palette: str = "colour-blind-safe"
    first_id: int = 0

    def __post_init__(self) -> None:
        if not 2 <= len(self.names) <= 255:
            raise DatasetError(f"found {len(self.names)} classes ({', '.join(self.names)}); expected 2 to 255.")
        if len(set(self.names)) < len(self.names):
            raise DatasetError(f"class names must differ, found {', '.join(self.names)}.")
        if not len(self.names) <= self.ignore <= 255:
            raise DatasetError(f"the ignore value {self.ignore} must lie in {len(self.names)}..255, beside the class ids.")
        if self.first_id not in (0, 1):
            raise DatasetError(f"the first class id is {self.first_id}; expected 0, or 1 where 0 means not labelled.")
        if self.palette not in get_args(Palette):
            raise SettingsError(unknown("palette", self.palette, get_args(Palette)))
        missing = [name for name in self.names[1 - self.first_id :] if name not in REPORT_COLOURS]
        if missing and self.palette == "founding-report":
            raise SettingsError(
                f"the founding-report palette has no colour for {', '.join(missing)}; it knows {', '.join(REPORT_COLOURS)}. "
                "Use --palette colour-blind-safe."
            )

    @cached_property
    def colours(self) -> tuple[Colour, ...]:
        """Red, green and blue of each class."""
        named = self.names[1 - self.first_id :]
        if self.palette == "founding-report":
            colours = [REPORT_COLOURS[name] for name in named]
        else:
            colours = [OKABE_ITO[i % len(OKABE_ITO)] for i in range(len(named))]
        return tuple(colours) if self.first_id else (BACKGROUND, *colours)

    @classmethod
    def from_config(cls, classes: Mapping[Any, Any] | Sequence[Any], ignore: int = 255) -> ClassSet:
        """Builds a ClassSet from what a dataset.yaml may have.

        Args:
            classes: `{0: background, 1: ...}`, ids in any order and as numbers or text; `{background: 0, ...}`, as nnU-Net
                has it; or the names alone, id 0 first.
            ignore: Label value in the files that means "not labelled". With 0 the ids begin with 1.

        Raises:
            DatasetError: A name is no text, or the ids are not 0, 1, 2, ... or 1, 2, ... without a gap.
        """
        pairs = _list_pairs(classes)
        for class_id, name in pairs:
            if type(class_id) is not int or class_id < 0:
                raise DatasetError(
                    f"class id {show(class_id)} of {show(name)} is no whole number from 0; write, for example, 1: cell."
                )
            if not isinstance(name, str) or not name.strip():
                raise DatasetError(f"class name {show(name)} is not text. Put it in quotes.")
        ids = sorted(class_id for class_id, _ in pairs)
        first_id = min(ids, default=0)
        if ids != list(range(first_id, first_id + len(ids))) or first_id not in (0, 1):
            raise DatasetError(
                f"class ids must be 0, 1, 2, ... each once and without a gap (or 1, 2, ... with ignore: 0), found "
                f"{', '.join(map(str, ids))}; renumber the labels."
            )
        if first_id == 1 and ignore != 0:
            raise DatasetError(
                "class ids begin with 1, and 0 is no class. Write ignore: 0 if 0 means not labelled, or add 0: background "
                "to classes."
            )
        names = dict(pairs)
        return cls(tuple(names[i] for i in ids), 255 if first_id else ignore, first_id=first_id)

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Returns the id of a class; SettingsError if there is none of that name."""
        if name not in self.names:
            raise SettingsError(unknown("class", name, self.names))
        return self.names.index(name)

    def find_kind(self, kind: str) -> int | None:
        """Returns the id of the first class that is called as one of a kind of `KINDS`, None if there is none."""
        return next((i for i, name in enumerate(self.names) if name.lower() in KINDS[kind]), None)

    def with_palette(self, palette: str) -> ClassSet:
        """Returns the same classes in other colours."""
        return replace(self, palette=palette)

    @property
    def stored_ignore(self) -> int:
        """What files hold for pixels not labelled."""
        return 0 if self.first_id else self.ignore

    @property
    def from_stored_table(self) -> NDArray[np.uint8]:
        """The label for each value of a file, uint8, shape (256,); a value that is no class is "not labelled"."""
        table = np.full(256, self.ignore, np.uint8)
        table[self.first_id : self.first_id + len(self)] = np.arange(len(self))
        return table

    def from_stored(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Returns labels from what a file holds, any shape; whether it holds classes only is for `check_labels` to say."""
        return np.asarray(self.from_stored_table[values])

    def to_stored(self, labels: NDArray[Any]) -> NDArray[np.uint8]:
        """Returns what a file holds for labels, uint8, any shape."""
        if self.first_id == 0 and labels.dtype == np.uint8:
            return np.asarray(labels)  # a lookup would take as long as writing them
        table = np.arange(256, dtype=np.uint8)
        table[: len(self)] += np.uint8(self.first_id)
        table[self.ignore] = self.stored_ignore
        return np.asarray(table[labels])

    def describe_stored(self) -> str:
        """Returns what files may hold, for messages."""
        last_id = self.first_id + len(self) - 1
        return f"{self.first_id}..{last_id} ({', '.join(self.names)}) or {self.stored_ignore} for pixels not labelled"

    def to_json(self) -> dict[str, Any]:
        """Returns what `from_json` reads."""
        return {"names": list(self.names), "ignore": self.ignore, **({"first_id": 1} if self.first_id else {})}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ClassSet:
        """Rebuilds a ClassSet from `to_json`."""
        return cls(tuple(content["names"]), int(content["ignore"]), first_id=int(content.get("first_id", 0)))

    def paint(self, labels: NDArray[Any]) -> NDArray[np.uint8]:
        """Returns labels as colours, uint8, shape `(*labels.shape, 3)`; what is no class id is mid-grey, as if ignored."""
        table = np.full((256, 3), 128, np.uint8)
        table[: len(self)] = self.colours
        return table[np.where((labels >= 0) & (labels < len(self)), labels, 255).astype(np.uint8)]

    def overlay(self, grey: NDArray[np.uint8], labels: NDArray[Any], opacity: float = 0.45) -> NDArray[np.uint8]:
        """Returns a grey image (uint8, any shape) with the classes laid over it, uint8, shape `(*grey.shape, 3)`.

        Background and ignored pixels stay grey; an opacity of 0 shows the image alone, 1 the colours alone.
        """
        image = np.repeat(grey[..., None], 3, axis=-1).astype(np.float32)
        mixed = (1 - opacity) * image + opacity * self.paint(labels)
        shown = (labels >= 1 - self.first_id) & (labels < len(self))
        return np.where(shown[..., None], mixed, image).round().astype(np.uint8)


def _list_pairs(classes: Mapping[Any, Any] | Sequence[Any]) -> list[tuple[Any, Any]]:
    """Returns ids with names from every form in which classes are written; not yet checked."""
    if not isinstance(classes, Mapping):
        return list(enumerate(classes))
    if all(type(value) is int for value in classes.values()) and all(isinstance(key, str) for key in classes):
        if "ignore" in classes:
            raise DatasetError(f"classes names ignore; write ignore: {classes['ignore']} beside classes instead.")
        return [(value, key) for key, value in classes.items()]
    return [
        (int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 9 else key, name)
        for key, name in classes.items()
    ]
