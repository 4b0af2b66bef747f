"""Slices for the report's viewer and examples: image, ground truth, prediction and errors."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.datasets.base import Cutout, Dataset
from neurotome.errors import ImageError, RunError
from neurotome.io import find_image, read_labels
from neurotome.runs import Run
from neurotome.volume import to_display

T = TypeVar("T")

LARGEST = 1024
"""A slide shows at most this many pixels along an axis, so that the page stays small: the middle of larger slices."""

ERROR = (190, 0, 70)
"""As in the figures."""


@dataclass(frozen=True, eq=False)
class Slide:
    """One slice, or the middle of it.

    Attributes:
        name: As in the scores.
        macro_f1: Of the whole slice.
        grey: Shape (y, x).
        truth: Shape (y, x), class ids or the ignore value.
        predicted: Shape (y, x), class ids.
        size: Pixels (y, x) of the whole slice.
        place: Name of the image and its slice z.
    """

    name: str
    macro_f1: float
    grey: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    predicted: NDArray[np.uint8]
    size: tuple[int, int]
    place: tuple[str, int] = ("", 0)

    @property
    def cropped(self) -> bool:
        """Whether the slice is larger than what is shown."""
        return self.grey.shape != self.size


def rank_images(scores: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Returns name and macro F1 of every image that has one, the worst first."""
    single = scores["per_image"]
    scored = [(n, f1) for n, f1 in zip(single["name"], single["macro_f1"], strict=True) if f1 is not None]
    return sorted(scored, key=lambda image: image[1])


def spread(items: Sequence[T], count: int) -> list[T]:
    """Returns at most `count` of them: the first, the last, and evenly spread ones between."""
    count = min(count, len(items))
    return [items[i * (len(items) - 1) // max(1, count - 1)] for i in range(count)]


def load_slides(run: Run, dataset: Dataset, split: str, chosen: Sequence[tuple[str, float]]) -> list[Slide]:
    """Reads images, ground truth and predictions of slices.

    Args:
        run: Has predictions of the split.
        dataset: What was predicted.
        split: Which images.
        chosen: Name and macro F1 of the slices, as in the scores.

    Returns:
        One slide each, in the same order.

    Raises:
        RunError: The dataset has no such slice, or a prediction does not fit its image.
        ImageError: A prediction is missing or cannot be read.
    """
    places: dict[str, tuple[Cutout, int]] = {}
    for cutout in dataset.split(split):
        depth = cutout.volume.shape[0]
        for z in range(depth):
            places[cutout.name if depth == 1 else f"{cutout.name}/{z:04d}"] = cutout, z
    slides = []
    for name, macro_f1 in chosen:
        if name not in places:
            raise RunError(
                f"{run}: the scores of split {split} name the image {name!r}, which the dataset {dataset.name} does not "
                "have. Give the dataset that the run was scored on, or score it again."
            )
        cutout, z = places[name]
        path = find_image(run.predictions(split), cutout.name)
        stored, classes = read_labels(path), dataset.classes
        if stored.shape != cutout.volume.shape:
            raise RunError(
                f"{path}: shape {stored.shape}, but the image has {cutout.volume.shape}. Delete the run's predictions "
                "and scores, and score it again."
            )
        wrong = stored[z][(stored[z] < classes.first_id) | (stored[z] >= classes.first_id + len(classes))]
        if wrong.size:
            raise RunError(
                f"{path}: {wrong.size} pixels of slice {z} are no class, such as {wrong[0]}; expected "
                f"{classes.describe_stored()}. Delete the run's predictions and scores, and score it again."
            )
        height, width = cutout.volume.shape[1:]
        rows, columns = _middle(height), _middle(width)
        slides.append(
            Slide(
                name,
                macro_f1,
                to_display(np.asarray(cutout.volume.data[z, rows, columns])),
                cutout.read_labels(z, rows, columns),
                classes.from_stored(stored[z, rows, columns]),
                (height, width),
                (cutout.name, z),
            )
        )
    return slides


def read_beside(folder: Path, slide: Slide) -> NDArray[np.uint8]:
    """Reads the part of an image in `folder`, of the same names as the predictions, that a slide shows.

    Raises:
        ImageError: It is missing, cannot be read, or does not fit the slide.
    """
    name, z = slide.place
    path = find_image(folder, name)
    plane = read_labels(path)[z]  # not as a grey image, for of a sure classifier all are 0
    if plane.shape != slide.size or plane.dtype != np.uint8:
        raise ImageError(
            f"{path}: {plane.dtype} of shape {plane.shape}; expected uint8 of shape {slide.size}. Delete the run's "
            "scores and give its command again."
        )
    shown: NDArray[np.uint8] = plane[_middle(slide.size[0]), _middle(slide.size[1])]
    return shown


def find_errors(truth: NDArray[np.uint8], predicted: NDArray[np.uint8], classes: ClassSet) -> NDArray[np.bool_]:
    """Returns where a labelled pixel was given another class; shape (y, x)."""
    wrong: NDArray[np.bool_] = (truth != predicted) & (truth != classes.ignore)
    return wrong


def encode_layers(slide: Slide, classes: ClassSet) -> dict[str, str]:
    """Returns the image and its transparent layers as data URLs.

    The image is a JPEG, which keeps the page small; layers are PNG, so that no pixel gets a colour of no class. The
    background and what is no error are transparent; pixels without a label are grey.

    Returns:
        `image`, `truth`, `predicted` and `errors`.
    """
    colours = classes.paint(np.arange(256))
    background = {"transparency": 0} if classes.first_id == 0 else {}
    errors = find_errors(slide.truth, slide.predicted, classes).astype(np.uint8)
    return {
        "image": _encode_grey(slide.grey),
        "truth": _encode_layer(slide.truth, colours, background),
        "predicted": _encode_layer(slide.predicted, colours, background),
        "errors": _encode_layer(errors, np.full((256, 3), ERROR, np.uint8), {"transparency": 0}),
    }


def _middle(size: int) -> slice:
    shown = min(size, LARGEST)
    return slice((size - shown) // 2, (size + shown) // 2)


def _encode_grey(grey: NDArray[np.uint8]) -> str:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(grey)).save(stream, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def _encode_layer(values: NDArray[np.uint8], colours: NDArray[np.uint8], transparent: Mapping[str, int]) -> str:
    """Returns a PNG whose palette has a colour per value, shape (256, 3)."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(values))
    picture.putpalette(colours.tobytes())
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True, **transparent)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
