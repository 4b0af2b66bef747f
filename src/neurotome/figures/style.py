"""What all figures share: colours, fonts, legend, and how they are written."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from neurotome.atomic import atomic_path
from neurotome.classes import ClassSet
from neurotome.errors import SettingsError

Rgb = tuple[float, float, float]

DPI = 150
INK: Rgb = (0.15, 0.15, 0.15)
MID_GREY: Rgb = (0.55, 0.55, 0.55)
PALE_GREY: Rgb = (0.92, 0.92, 0.92)

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": MID_GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": PALE_GREY,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "text.parse_math": False,  # a dollar in the name of a class is a dollar
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "white",
}


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG with 150 dots per inch, whole or not at all.

    Raises:
        SettingsError: `path` does not end in .png.
    """
    if path.suffix.lower() != ".png":
        raise SettingsError(f"{path}: figures are written as PNG; expected a name that ends in .png.")
    # without the version of matplotlib in it, the same figure is the same file
    with atomic_path(path) as temporary, matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # a class named in a script that the font lacks is drawn as boxes; the report's page has it in letters
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        figure.savefig(temporary, dpi=DPI, format="png", metadata={"Software": None})


def bar_colours(classes: ClassSet) -> list[Rgb]:
    """Returns the class colours, class 0 in a mid grey: its own is made for pictures and too dark beside the others."""
    return [MID_GREY, *(unit(colour) for colour in classes.colours[1:])]


def line_colours(classes: ClassSet) -> list[Rgb]:
    """Returns the class colours a little darker: thin lines of the light ones would be lost on white."""
    return [MID_GREY, *((0.85 * r, 0.85 * g, 0.85 * b) for r, g, b in bar_colours(classes)[1:])]


def unit(colour: tuple[int, int, int]) -> Rgb:
    """Returns a colour of 0..255 as matplotlib has it, 0..1."""
    red, green, blue = colour
    return red / 255, green / 255, blue / 255


def class_patches(classes: ClassSet) -> list[Patch]:
    """Returns what the legend says of each class."""
    return [Patch(color=colour, label=name) for name, colour in zip(classes.names, bar_colours(classes), strict=True)]


def draw_legend(figure: Figure, handles: Sequence[Patch | Line2D]) -> None:
    """Puts a legend below, in as many columns of the longest name as fit."""
    inches = 0.7 + 0.075 * max(len(str(handle.get_label())) for handle in handles)
    figure.legend(handles=list(handles), loc="outside lower center", ncols=max(1, int(figure.get_figwidth() / inches)))


def check_classes(found: Sequence[str], classes: ClassSet) -> None:
    """Checks that values belong to the classes they are drawn with.

    Raises:
        SettingsError: Names differ, or their order.
    """
    if list(found) != list(classes.names):
        raise SettingsError(
            f"found values of the classes {', '.join(found)}; expected {', '.join(classes.names)}. Draw them with the "
            "ClassSet they were made with."
        )
