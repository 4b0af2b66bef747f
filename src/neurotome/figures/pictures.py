"""Slices with labels: samples, augmentation, predictions, their errors and uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from neurotome.classes import ClassSet
from neurotome.figures.style import (
    MID_GREY,
    STYLE,
    bar_colours,
    draw_legend,
    has_repeated_colours,
    label_classes,
    painted_ids,
    unit,
)

WRONG = (190, 0, 70)  # dark and saturated, so that it stands out of a paled image also without colour vision
STRIPES = (150, 235)  # grey values of the stripes over pixels that are not labelled
OPACITY = 0.6  # of classes over an image; the image alone always stands beside


class Example(NamedTuple):
    """A slice with its true and predicted labels; arrays of shape (y, x)."""

    name: str
    grey: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    predicted: NDArray[np.uint8]


@matplotlib.rc_context(STYLE)
def plot_examples(examples: Sequence[Example], classes: ClassSet) -> Figure:
    """Draws a row per example: image, true labels, predicted labels, and where they differ."""
    figure, panels = _make_panels([[example.grey.shape] * 4 for example in examples])
    for row, (name, grey, truth, predicted) in zip(panels, examples, strict=True):
        labelled = truth != classes.ignore
        wrong = labelled & (truth != predicted)
        _show_grey(row[0], grey)
        _show_classes(row[1], grey, truth, classes)
        _show_classes(row[2], grey, predicted, classes)
        row[3].imshow(_hatch(_paint_errors(grey, wrong), ~labelled))
        row[0].set_ylabel(f"{name}\n{_say_size(grey)}", fontsize=9)
        row[3].set_xlabel(f"{100 * wrong.sum() / max(labelled.sum(), 1):.1f} % of labelled pixels wrong", fontsize=9)
    for axes, title in zip(panels[0], ("Image", "Ground truth", "Prediction", "Errors"), strict=True):
        axes.set_title(title, loc="center")
    shown = [labels for example in examples for labels in (example.truth, example.predicted)]
    draw_legend(figure, [*_overlay_patches(classes, shown), Patch(color=unit(WRONG), label="wrong")])
    return figure


@matplotlib.rc_context(STYLE)
def plot_samples(samples: Sequence[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]], classes: ClassSet) -> Figure:
    """Draws slices, each with its name, grey values and labels, shapes (y, x): the labels laid over them below."""
    columns = min(len(samples), 4)
    rows = [samples[start : start + columns] for start in range(0, len(samples), columns)]
    figure, panels = _make_panels([[grey.shape for _, grey, _ in row] for row in rows for _ in range(2)])
    for above, below, row in zip(panels[::2], panels[1::2], rows, strict=True):
        for image, overlay, (name, grey, labels) in zip(above, below, row, strict=False):
            _show_grey(image, grey)
            _show_classes(overlay, grey, labels, classes)
            image.set_title(name, loc="center", fontsize=10)
            overlay.set_xlabel(_say_size(grey), fontsize=9)
    draw_legend(figure, _overlay_patches(classes, [labels for _, _, labels in samples]))
    return figure


@matplotlib.rc_context(STYLE)
def plot_augmentation(
    before: tuple[NDArray[np.uint8], NDArray[np.uint8]],
    after: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]],
    classes: ClassSet,
) -> Figure:
    """Draws grey values and labels, shapes (y, x), of a patch and of what augmentation makes of it."""
    pairs = [before, *after]
    figure, panels = _make_panels([[grey.shape for grey, _ in pairs]] * 2)
    for column, (grey, labels) in enumerate(pairs):
        _show_grey(panels[0][column], grey)
        _show_classes(panels[1][column], grey, labels, classes)
        panels[0][column].set_title("As it is" if column == 0 else f"Augmented {column}", loc="center")
    panels[0][0].set_ylabel("image")
    panels[1][0].set_ylabel("labels")
    draw_legend(figure, _overlay_patches(classes, [labels for _, labels in pairs]))
    return figure


@matplotlib.rc_context(STYLE)
def plot_augmented(
    rows: Sequence[
        tuple[str, tuple[NDArray[np.uint8], NDArray[np.uint8]], Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]]]
    ],
    titles: Sequence[str],
    classes: ClassSet,
) -> Figure:
    """Draws a row per slice: as it is and after each of some augmentations, which `titles` name, each with its labels.

    A row is the slice's name, its grey values and labels, and those after each augmentation, all of shape (y, x).
    """
    figure, panels = _make_panels(
        [[grey.shape for grey, _ in (before, *after) for _ in range(2)] for _, before, after in rows]
    )
    for row, (name, before, after) in zip(panels, rows, strict=True):
        for image, overlay, (grey, labels) in zip(row[::2], row[1::2], (before, *after), strict=True):
            _show_grey(image, grey)
            _show_classes(overlay, grey, labels, classes)
        row[0].set_ylabel(name.replace(": ", "\n", 1), fontsize=9)
    for image, overlay, title in zip(panels[0][::2], panels[0][1::2], ("As it is", *titles), strict=True):
        image.set_title(title, loc="left")
        overlay.set_title("labels", loc="left", fontsize=9)
    shown = [labels for _, before, after in rows for _, labels in (before, *after)]
    draw_legend(figure, _overlay_patches(classes, shown))
    return figure


@matplotlib.rc_context(STYLE)
def plot_planes(
    grey: NDArray[np.uint8], labels: NDArray[np.uint8], classes: ClassSet, voxel_size_um: tuple[float, float, float]
) -> Figure:
    """Draws the middle planes of a volume along z, y and x: grey values above, classes over them below.

    Grey values and labels have the shape (z, y, x); a voxel's edges are in micrometres, and 255 is a voxel without a label.
    """
    middle = [size // 2 for size in grey.shape]
    sides = [size * edge for size, edge in zip(grey.shape, voxel_size_um, strict=True)]
    panels_um = [(sides[1], sides[2]), (sides[0], sides[2]), (sides[0], sides[1])]
    figure, panels = _make_panels([[(round(down), round(across)) for down, across in panels_um]] * 2)
    for column, (axis, (down, across)) in enumerate(zip("zyx", panels_um, strict=True)):
        plane, found = (np.take(array, middle[column], axis=column) for array in (grey, labels))
        _show_grey(panels[0][column], plane)
        _show_classes(panels[1][column], plane, np.where(found == 255, classes.ignore, found), classes)
        panels[0][column].set_title(f"{axis} = {middle[column]}", loc="center")
        panels[1][column].set_xlabel(f"{down:.0f} × {across:.0f} µm (height × width)", fontsize=9)
        for row in panels:
            row[column].set_aspect((down / plane.shape[0]) / (across / plane.shape[1]))
    panels[0][0].set_ylabel("image")
    panels[1][0].set_ylabel("labels")
    draw_legend(figure, _overlay_patches(classes, [labels[middle[0]]]))
    return figure


@matplotlib.rc_context(STYLE)
def plot_uncertainty(examples: Sequence[tuple[Example, NDArray[np.uint8]]], classes: ClassSet) -> Figure:
    """Draws a row per example: image, how unsure the classifier is, and where it is wrong.

    Uncertainty, shape (y, x), is 1 - the probability of the chosen class, times 255.
    """
    figure, panels = _make_panels([[example.grey.shape] * 3 for example, _ in examples])
    figure.set_figheight(figure.get_figheight() + 0.3 + 0.35 * len(examples))  # for the colour bar and the words below rows
    shades = matplotlib.colormaps["cividis"]  # made to look alike with and without colour vision
    for row, ((name, grey, truth, predicted), uncertainty) in zip(panels, examples, strict=True):
        labelled = truth != classes.ignore
        wrong = labelled & (truth != predicted)
        _show_grey(row[0], grey)
        row[0].set_ylabel(name, fontsize=9)
        image = row[1].imshow(uncertainty / 255, cmap=shades, vmin=0, vmax=1 - 1 / len(classes))
        row[2].imshow(_paint_errors(grey, wrong))
        row[2].set_xlabel(_say_share(labelled, wrong, uncertainty), fontsize=9)
    for axes, title in zip(panels[0], ("Image", "Uncertainty", "Errors"), strict=True):
        axes.set_title(title, loc="center")
    # below all columns: below one of them it would move that column's panels against the others
    bar = figure.colorbar(
        image,
        ax=[axes for row in panels for axes in row],
        location="bottom",
        shrink=0.3,
        aspect=16,
        pad=0.1 / figure.get_figheight(),
        label="1 − probability of the chosen class",
    )
    bar.outline.set_visible(False)
    return figure


def _say_share(labelled: NDArray[np.bool_], wrong: NDArray[np.bool_], uncertainty: NDArray[np.uint8]) -> str:
    """Returns how many of the errors lie in the tenth of the labelled pixels that is least sure."""
    if not wrong.any():
        return "no error"
    # pixels and errors of each uncertainty, the least sure first
    pixels = np.bincount(uncertainty[labelled], minlength=256)[::-1]
    errors = np.bincount(uncertainty[wrong], minlength=256)[::-1]
    before = np.cumsum(pixels) - pixels
    # where the tenth ends among equally unsure pixels, it has its share of their errors, wherever in the image they lie
    taken = (pixels.sum() / 10 - before).clip(0, pixels)
    caught = (errors * np.divide(taken, pixels, out=np.zeros(256), where=pixels > 0)).sum()
    return f"{100 * caught / wrong.sum():.0f} % of the errors are in the least\nsure tenth of the labelled pixels"


def _make_panels(shapes: Sequence[Sequence[tuple[int, ...]]]) -> tuple[Figure, list[list[Axes]]]:
    """Returns a figure with a panel per image, each row as high as its highest image of shape (y, x)."""
    columns = len(shapes[0])
    side = 2.9 if columns <= 4 else 11.6 / columns
    heights = [max(float(np.clip(y / x, 0.2, 3)) for y, x in row) for row in shapes]
    figure = Figure(figsize=(max(side * columns, 3.5) + 0.3, side * sum(heights) + 0.9))
    panels = figure.subplots(len(shapes), columns, squeeze=False, height_ratios=heights)
    for axes in panels.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    return figure, [list(row) for row in panels]


def _show_grey(axes: Axes, grey: NDArray[np.uint8]) -> None:
    """Draws an image without stretching its values."""
    axes.imshow(grey, cmap="gray", vmin=0, vmax=255)


def _show_classes(axes: Axes, grey: NDArray[np.uint8], labels: NDArray[Any], classes: ClassSet) -> None:
    """Draws an image with classes over it, and if colours repeat the id of each where it is widest."""
    axes.imshow(_hatch(classes.overlay(grey, labels, OPACITY), labels == classes.ignore))
    for number in painted_ids(classes) if has_repeated_colours(classes) else ():
        depth = distance_transform_edt(np.pad(labels == number, 1))[1:-1, 1:-1]
        if depth.any():
            y, x = map(int, np.unravel_index(depth.argmax(), depth.shape))
            edge = [withStroke(linewidth=1.5, foreground="white")]
            axes.text(x, y, str(number + classes.first_id), ha="center", va="center", fontsize=6.5, path_effects=edge)


def _paint_errors(grey: NDArray[np.uint8], wrong: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Returns a paled image, shape (y, x, 3), with the wrong pixels in one strong colour."""
    pale = 255 - (255 - grey.astype(np.float32)) * 0.4
    picture: NDArray[np.uint8] = np.repeat(pale[..., None], 3, -1).astype(np.uint8)
    picture[wrong] = WRONG
    return picture


def _hatch(picture: NDArray[np.uint8], where: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Lays diagonal stripes over pixels that are not labelled, which no image has of itself."""
    y, x = np.indices(where.shape)
    width = max(1, max(where.shape) // 60)
    stripes = np.where((x + y) // width % 2, *STRIPES)[..., None]
    striped: NDArray[np.uint8] = np.where(where[..., None], stripes, picture).astype(np.uint8)
    return striped


def _overlay_patches(classes: ClassSet, labels: Sequence[NDArray[Any]]) -> list[Patch]:
    """Returns what the legend of overlays says: what they paint, and of many classes only those shown."""
    shown = np.unique(np.concatenate([np.unique(plane) for plane in labels]))
    many = has_repeated_colours(classes)
    names, colours = label_classes(classes), bar_colours(classes)
    patches = [Patch(color=colours[i], label=names[i]) for i in painted_ids(classes) if i in shown or not many]
    if classes.ignore in shown:
        pale = unit((STRIPES[1], STRIPES[1], STRIPES[1]))
        patches.append(Patch(facecolor=pale, edgecolor=MID_GREY, hatch="////", label="not labelled"))
    return patches


def _say_size(grey: NDArray[Any]) -> str:
    return f"{grey.shape[0]} × {grey.shape[1]} pixels (height × width)"
