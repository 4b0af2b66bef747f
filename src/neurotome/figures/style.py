"""What all figures share: colours, fonts, legend, and how they are written."""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.figure import Figure as Figure
from matplotlib.font_manager import findfont, get_font, get_font_names
from matplotlib.textpath import TextPath

from neurotome.atomic import atomic_path
from neurotome.classes import ClassSet

Rgb = tuple[float, float, float]

DPI = 150
INK: Rgb = (0.15, 0.15, 0.15)
MID_GREY: Rgb = (0.55, 0.55, 0.55)
PALE_GREY: Rgb = (0.92, 0.92, 0.92)

LONGEST_LABEL = 32  # letters of a name in a figure; longer ones lose their middle
LINE_STYLES: Sequence[Any] = ("-", "--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)), (0, (2, 4)))

# matplotlib's own font has no letters of East Asian scripts; those that people of these scripts have stand in
FONTS = ["DejaVu Sans"] + [
    name
    for name in ("Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei", "PingFang SC", "Hiragino Sans", "Malgun Gothic")
    if name in get_font_names()
]

STYLE: dict[Any, Any] = {
    "font.family": FONTS,
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
    """Writes a figure as PNG with 150 dots per inch, whole or not at all."""
    # without the version of matplotlib in it, the same figure is the same file
    with atomic_path(path) as temporary, matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # what else than classes is named in a script that the fonts lack is drawn as boxes; the page has it in letters
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        figure.savefig(temporary, dpi=DPI, format="png", metadata={"Software": None})


def bar_colours(classes: ClassSet) -> list[Rgb]:
    """Returns the class colours, the background in a mid grey: its own is made for pictures, too dark beside the others."""
    return [unit(colour) if number in painted_ids(classes) else MID_GREY for number, colour in enumerate(classes.colours)]


def line_colours(classes: ClassSet) -> list[Rgb]:
    """Returns the class colours a little darker: thin lines of the light ones would be lost on white."""
    return [(r, g, b) if (r, g, b) == MID_GREY else (0.85 * r, 0.85 * g, 0.85 * b) for r, g, b in bar_colours(classes)]


def painted_ids(classes: ClassSet) -> range:
    """Returns the classes that pictures paint: all but the background, where there is one."""
    return range(1 - classes.first_id, len(classes))


def unit(colour: tuple[int, int, int]) -> Rgb:
    """Returns a colour of 0..255 as matplotlib has it, 0..1."""
    return colour[0] / 255, colour[1] / 255, colour[2] / 255


def label_classes(classes: ClassSet) -> list[str]:
    """Returns what figures call the classes: their names, or what tells them apart in a picture.

    Where colours repeat, every name has its id before it, as have names that are too long to be written out. A name with a
    letter that no font has is `class` with its id.
    """
    repeated = has_repeated_colours(classes)
    labels = []
    for number, name in enumerate(classes.names, classes.first_id):
        text = " ".join(name.split())
        if len(text) > LONGEST_LABEL:
            text = f"{text[: LONGEST_LABEL - 12].rstrip()}…{text[-11:].lstrip()}"
        label = f"{number} {text}" if repeated or text != name else name
        labels.append(label if can_spell(name) else f"class {number}")
    return labels


def has_repeated_colours(classes: ClassSet) -> bool:
    """Says whether some classes share a colour, so that figures need ids or another form."""
    return len(set(classes.colours)) < len(classes)


def line_styles(classes: ClassSet) -> list[Any]:
    """Returns how the line of each class is dashed, so that classes of one colour differ."""
    earlier = [classes.colours[:number].count(colour) for number, colour in enumerate(classes.colours)]
    return [LINE_STYLES[count % len(LINE_STYLES)] for count in earlier]


def say_title(dataset: str, split: str) -> str:
    """Returns the heading of a figure of one split; a dataset's name that no font can write stays on the page alone."""
    return f"{dataset}, split {split}" if can_spell(dataset) else f"split {split}"


def can_spell(text: str) -> bool:
    """Says whether some font has every letter of a text."""
    return all(letter.isspace() or _has_letter(letter) for letter in text)


@cache
def _has_letter(letter: str) -> bool:
    return any(get_font(findfont(name)).get_char_index(ord(letter)) for name in FONTS)


def draw_legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Puts a legend below, in as many columns of the longest name as fit; the figure grows by all lines but the first."""
    letters = STYLE["font.size"]
    across = 72 * figure.get_figwidth() - 20
    for handle in handles:  # a letter is at most 0.62 of the size wide on average
        handle.set_label("\n".join(textwrap.wrap(str(handle.get_label()), int(across / (0.62 * letters)) - 5)))
    lines = [line for handle in handles for line in str(handle.get_label()).splitlines()]
    # a patch, the gap after it and the gap between columns are 4.8 letters wide
    points = 4.8 * letters + max(TextPath((0, 0), line, size=letters).vertices[:, 0].max(initial=0) for line in lines)
    rows = math.ceil(len(handles) / max(1, int(across / points)))
    figure.set_figheight(figure.get_figheight() + 0.21 * (rows - 1 + len(lines) - len(handles)))
    figure.legend(handles=list(handles), loc="outside lower center", ncols=math.ceil(len(handles) / rows))
