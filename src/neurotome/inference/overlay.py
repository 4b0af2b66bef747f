"""Overlays: classes in their colours over the image, and the legend that says which colour is which class."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neurotome.atomic import atomic_path
from neurotome.classes import ClassSet
from neurotome.sampling import sample_grey
from neurotome.volume import Volume, to_display

ROW = 28
"""Height of a line of the legend in pixels."""


class Painter:
    """Paints classes over the slices of a volume, all in the same display range."""

    def __init__(self, volume: Volume, classes: ClassSet, shown: Sequence[int]) -> None:
        """Measures the display range, percentiles 0.5 to 99.5 of a sample; 8-bit images are shown as they are."""
        self.volume, self.classes, self.shown = volume, classes, shown
        self.low = self.high = None
        if volume.data.dtype != np.uint8:
            self.low, self.high = (float(v) for v in np.percentile(sample_grey(volume.data).values, (0.5, 99.5)))

    def paint(self, z: int, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Returns slice `z` with its labels, shape (y, x), laid over it: uint8, shape (y, x, 3)."""
        grey = to_display(np.asarray(self.volume.data[z]), self.low, self.high)
        return self.classes.overlay(grey, np.where(np.isin(labels, self.shown), labels, self.classes.ignore))


def write_legend(path: Path, classes: ClassSet, shown: Sequence[int]) -> None:
    """Writes a picture of the classes that an overlay shows: colour, stored id and name, a line each.

    The font, matplotlib's, has the letters of Europe; the id tells the class where a name has others.
    """
    from PIL import Image, ImageDraw, ImageFont

    # found, not imported: that is slow
    font_file = metadata.distribution("matplotlib").locate_file("matplotlib/mpl-data/fonts/ttf/DejaVuSans.ttf")
    font = ImageFont.truetype(str(font_file), 16)
    stored = classes.to_stored(np.array(shown, np.uint8))
    lines = [f"{value}  {classes.names[i]}" for i, value in zip(shown, stored, strict=True)]
    width = ROW + 8 + max(int(font.getlength(line)) for line in lines) + 12
    picture = Image.new("RGB", (width, ROW * len(lines) + 8), "white")
    draw = ImageDraw.Draw(picture)
    for row, (line, i) in enumerate(zip(lines, shown, strict=True)):
        top = ROW * row + 8
        draw.rectangle((8, top, 8 + ROW - 12, top + ROW - 12), fill=classes.colours[i], outline="black")
        draw.text((ROW + 8, top - 2), line, fill="black", font=font)
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")
