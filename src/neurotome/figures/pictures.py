"""Slices with labels: samples, augmentation, predictions and their errors."""

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
from neurotome.errors import ImageError
from neurotome.figures.style import MID_GREY, STYLE, class_patches, draw_legend, has_repeated_colours, painted_ids, unit
from neurotome.volume import to_display

WRONG = (190, 0, 70)
"""Dark and saturated, so that it stands out of a paled image also without colour vision."""

STRIPES = (150, 235)
"""Grey values of the stripes over pixels that are not labelled."""

OPACITY = 0.6
"""Of classes over an image; the image alone always stands beside."""


class Example(NamedTuple):
    """A slice with its true and predicted labels.

    Attributes:
        name: Shown beside the pictures.
        grey: uint8, shape (y, x).
        truth: Class ids or the ignore value, shape (y, x).
        predicted: Class ids, shape (y, x).
    """

    name: str
    grey: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    predicted: NDArray[np.uint8]


@matplotlib.rc_context(STYLE)
def plot_examples(examples: Sequence[Example], classes: ClassSet) -> Figure:
    """Draws a row per example: image, true labels, predicted labels, and where they differ.

    Raises:
        ImageError: There is no example, or the shapes within one differ.
    """
    _check_some(examples)
    for name, grey, truth, predicted in examples:
        if not grey.shape == truth.shape == predicted.shape:
            raise ImageError(
                f"{name}: the image has shape {grey.shape}, its labels {truth.shape}, the predicted ones "
                f"{predicted.shape}; expected the same shape (y, x)."
            )
    figure, panels = make_panels([[example.grey.shape] * 4 for example in examples])
    for row, (name, grey, truth, predicted) in zip(panels, examples, strict=True):
        labelled = truth != classes.ignore
        wrong = labelled & (truth != predicted)
        pictures = (
            np.repeat(to_display(grey)[..., None], 3, -1),
            _overlay(grey, truth, classes),
            _overlay(grey, predicted, classes),
            _hatch(paint_errors(grey, wrong), ~labelled),
        )
        for axes, picture in zip(row, pictures, strict=True):
            axes.imshow(picture)
        _write_ids(row[1], truth, classes)
        _write_ids(row[2], predicted, classes)
        row[0].set_ylabel(f"{name}\n{_say_size(grey)}", fontsize=9)
        row[3].set_xlabel(f"{100 * wrong.sum() / max(labelled.sum(), 1):.1f} % of labelled pixels wrong", fontsize=9)
    for axes, title in zip(panels[0], ("Image", "Ground truth", "Prediction", "Errors"), strict=True):
        axes.set_title(title, loc="center")
    error = Patch(color=unit(WRONG), label="wrong")
    shown = [labels for example in examples for labels in (example.truth, example.predicted)]
    draw_legend(figure, [*_overlay_patches(classes, shown), error])
    return figure


@matplotlib.rc_context(STYLE)
def plot_samples(samples: Sequence[tuple[str, NDArray[Any], NDArray[Any]]], classes: ClassSet) -> Figure:
    """Draws slices with their labels laid over them below.

    Args:
        samples: Name, grey values and labels of each slice, shapes (y, x).
        classes: What the labels mean.

    Raises:
        ImageError: There is no sample.
    """
    _check_some(samples)
    columns = min(len(samples), 4)
    rows = [samples[start : start + columns] for start in range(0, len(samples), columns)]
    shapes = [[grey.shape for _, grey, _ in row] for row in rows for _ in range(2)]
    figure, panels = make_panels(shapes)
    for above, below, row in zip(panels[::2], panels[1::2], rows, strict=True):
        for image, overlay, (name, grey, labels) in zip(above, below, row, strict=False):
            display = to_display(grey)
            image.imshow(display, cmap="gray", vmin=0, vmax=255)
            image.set_title(name, loc="center", fontsize=10)
            overlay.imshow(_overlay(display, labels, classes))
            _write_ids(overlay, labels, classes)
            overlay.set_xlabel(_say_size(grey), fontsize=9)
    draw_legend(figure, _overlay_patches(classes, [labels for _, _, labels in samples]))
    return figure


@matplotlib.rc_context(STYLE)
def plot_augmentation(
    before: tuple[NDArray[Any], NDArray[Any]], after: Sequence[tuple[NDArray[Any], NDArray[Any]]], classes: ClassSet
) -> Figure:
    """Draws a patch and what augmentation makes of it, all with the same black and white.

    Args:
        before: Grey values and labels as they are, shapes (y, x).
        after: The same patch augmented, any number of times.
        classes: What the labels mean; pixels that augmentation invented have the ignore value.

    Raises:
        ImageError: Nothing is augmented.
    """
    _check_some(after)
    pairs = [before, *after]
    limits = (None, None) if before[0].dtype == np.uint8 else tuple(np.percentile(before[0], (0.5, 99.5)))
    figure, panels = make_panels([[grey.shape for grey, _ in pairs]] * 2)
    for column, (grey, labels) in enumerate(pairs):
        display = to_display(grey, *limits)
        panels[0][column].imshow(display, cmap="gray", vmin=0, vmax=255)
        panels[1][column].imshow(_overlay(display, labels, classes))
        _write_ids(panels[1][column], labels, classes)
        panels[0][column].set_title("As it is" if column == 0 else f"Augmented {column}", loc="center")
    panels[0][0].set_ylabel("image")
    panels[1][0].set_ylabel("labels")
    draw_legend(figure, _overlay_patches(classes, [labels for _, labels in pairs]))
    return figure


def make_panels(shapes: Sequence[Sequence[tuple[int, ...]]]) -> tuple[Figure, list[list[Axes]]]:
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


def paint_errors(grey: NDArray[Any], wrong: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Returns a paled image, shape (y, x, 3), with the wrong pixels in one strong colour."""
    pale = 255 - (255 - to_display(grey).astype(np.float32)) * 0.4
    picture: NDArray[np.uint8] = np.repeat(pale[..., None], 3, -1).astype(np.uint8)
    picture[wrong] = WRONG
    return picture


def _overlay(grey: NDArray[Any], labels: NDArray[Any], classes: ClassSet) -> NDArray[np.uint8]:
    return _hatch(classes.overlay(to_display(grey), labels, OPACITY), labels == classes.ignore)


def _hatch(picture: NDArray[np.uint8], where: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Lays diagonal stripes over pixels that are not labelled, which no image has of itself."""
    y, x = np.indices(where.shape)
    width = max(1, max(where.shape) // 60)
    stripes = np.where((x + y) // width % 2, *STRIPES)[..., None]
    striped: NDArray[np.uint8] = np.where(where[..., None], stripes, picture).astype(np.uint8)
    return striped


def _write_ids(axes: Axes, labels: NDArray[Any], classes: ClassSet) -> None:
    """Writes the id of each class where it is widest, for colours alone do not tell many classes apart."""
    if not has_repeated_colours(classes):
        return
    for number in painted_ids(classes):
        depth = distance_transform_edt(np.pad(labels == number, 1))[1:-1, 1:-1]
        if depth.any():
            y, x = np.unravel_index(depth.argmax(), depth.shape)
            edge = [withStroke(linewidth=1.5, foreground="white")]
            axes.text(
                int(x), int(y), str(number + classes.first_id), ha="center", va="center", fontsize=6.5, path_effects=edge
            )


def _overlay_patches(classes: ClassSet, labels: Sequence[NDArray[Any]]) -> list[Patch]:
    """Returns what the legend of overlays says: what they paint, and of many classes only those shown."""
    shown = np.unique(np.concatenate([np.unique(plane) for plane in labels]))
    many = has_repeated_colours(classes)
    patches = class_patches(classes)
    patches = [patches[number] for number in painted_ids(classes) if number in shown or not many]
    if classes.ignore in shown:
        patches.append(
            Patch(
                facecolor=unit((STRIPES[1], STRIPES[1], STRIPES[1])), edgecolor=MID_GREY, hatch="////", label="not labelled"
            )
        )
    return patches


def _say_size(grey: NDArray[Any]) -> str:
    return f"{grey.shape[0]} × {grey.shape[1]} pixels (height × width)"


def _check_some(items: Sequence[object]) -> None:
    if not items:
        raise ImageError("found no image to draw; expected at least one.")
