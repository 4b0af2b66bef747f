"""ClassSet: ids, names, colours, ignore value; the only source of the number of classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import DatasetError, SettingsError, unknown

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

REPORT_COLOURS: Mapping[str, Colour] = {
    "blood vessel": (247, 86, 124),
    "cell": (153, 225, 217),
    "axon": (238, 227, 171),
}

Palette = Literal["colour-blind-safe", "founding-report"]
PALETTES = get_args(Palette)


@dataclass(frozen=True)
class ClassSet:
    """The classes of a dataset or model; class id = position in `names`.

    Attributes:
        names: One name per class, id 0 first.
        ignore: Label value that means "not labelled": never trained on, never scored.
        palette: `colour-blind-safe` (repeats after eight classes) or `founding-report`.
    """

    names: tuple[str, ...]
    ignore: int = 255
    palette: str = "colour-blind-safe"
    colours: tuple[Colour, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not 2 <= len(self.names) <= 255:
            raise DatasetError(f"found {len(self.names)} classes ({', '.join(self.names)}); expected 2 to 255.")
        if len(set(self.names)) != len(self.names):
            raise DatasetError(f"class names must differ, found {', '.join(self.names)}.")
        if not 0 <= self.ignore <= 255 or self.ignore < len(self.names):
            raise DatasetError(f"the ignore value {self.ignore} must lie in {len(self.names)}..255, beside the class ids.")
        if self.palette not in PALETTES:
            raise SettingsError(unknown("palette", self.palette, PALETTES))
        object.__setattr__(self, "colours", self._choose_colours())

    def _choose_colours(self) -> tuple[Colour, ...]:
        if self.palette == "founding-report":
            missing = [name for name in self.names[1:] if name not in REPORT_COLOURS]
            if missing:
                raise SettingsError(
                    f"the founding-report palette has no colour for {', '.join(missing)}; it knows "
                    f"{', '.join(REPORT_COLOURS)}. Use --palette colour-blind-safe."
                )
            return (BACKGROUND, *(REPORT_COLOURS[name] for name in self.names[1:]))
        return (BACKGROUND, *(OKABE_ITO[i % len(OKABE_ITO)] for i in range(len(self.names) - 1)))

    @classmethod
    def from_mapping(cls, classes: Mapping[Any, Any], ignore: int = 255) -> ClassSet:
        """Builds a ClassSet from `{0: background, 1: ...}` as a dataset.yaml has it.

        Raises:
            DatasetError: The ids are not 0, 1, 2, ... without a gap.
        """
        ids = sorted(classes, key=str) if not all(isinstance(i, int) for i in classes) else sorted(classes)
        if ids != list(range(len(ids))):
            raise DatasetError(
                f"class ids must be 0, 1, 2, ... without a gap, found {', '.join(map(str, ids))}; renumber the labels."
            )
        return cls(tuple(str(classes[i]) for i in ids), ignore)

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Returns the id of a class.

        Raises:
            SettingsError: There is no such class.
        """
        if name not in self.names:
            raise SettingsError(unknown("class", name, self.names))
        return self.names.index(name)

    def with_palette(self, palette: str) -> ClassSet:
        """Returns the same classes in other colours."""
        return ClassSet(self.names, self.ignore, palette)

    def to_json(self) -> dict[str, Any]:
        """Returns what `from_json` reads."""
        return {"names": list(self.names), "ignore": self.ignore}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ClassSet:
        """Rebuilds a ClassSet from `to_json`."""
        return cls(tuple(content["names"]), int(content["ignore"]))

    def count(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        """Returns the pixels per class of integer labels of any shape; ignored pixels are left out.

        Reads 1 Mi labels at a time, so that memory-mapped labels are never expanded.

        Raises:
            DatasetError: A label is neither a class id nor the ignore value.
        """
        counts = np.zeros(256, np.int64)
        flat = labels.reshape(-1)
        for start in range(0, flat.size, 1 << 20):
            values = flat[start : start + (1 << 20)]
            stray = values[((values < 0) | (values >= len(self))) & (values != self.ignore)]
            if stray.size:
                raise DatasetError(
                    f"found label {stray[0]}; expected 0..{len(self) - 1} ({', '.join(self.names)}) or {self.ignore} for "
                    "pixels not labelled."
                )
            counts += np.bincount(values.astype(np.uint8), minlength=256)
        return counts[: len(self)]

    def paint(self, labels: NDArray[Any]) -> NDArray[np.uint8]:
        """Returns labels as colours.

        Args:
            labels: Integers of any shape.

        Returns:
            uint8, shape `(*labels.shape, 3)`; what is no class id is mid-grey, like ignored pixels.
        """
        table = np.full((256, 3), 128, np.uint8)
        table[: len(self)] = self.colours
        known = (labels >= 0) & (labels < len(self))
        return table[np.where(known, labels, 255).astype(np.uint8)]

    def overlay(self, grey: NDArray[np.uint8], labels: NDArray[Any], opacity: float = 0.45) -> NDArray[np.uint8]:
        """Returns a grey image with the classes laid over it; class 0 and ignored pixels stay grey.

        Args:
            grey: uint8 of any shape.
            labels: Integers of the same shape.
            opacity: 0 shows the image alone, 1 the colours alone.

        Returns:
            uint8, shape `(*grey.shape, 3)`.
        """
        image = np.repeat(grey[..., None], 3, axis=-1).astype(np.float32)
        mixed = (1 - opacity) * image + opacity * self.paint(labels)
        shown = (labels > 0) & (labels < len(self))
        return np.where(shown[..., None], mixed, image).round().astype(np.uint8)
