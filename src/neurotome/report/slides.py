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
from neurotome.errors import RunError
from neurotome.io import find_image, open_labels
from neurotome.runs import Run
from neurotome.volume import to_display

T = TypeVar("T")

LARGEST = 1024  # pixels along an axis that a slide shows, so that the page stays small: the middle of larger slices


@dataclass(frozen=True, eq=False)
class Slide:
    """One slice, or the middle of it; arrays have the shape (y, x), `size` and `macro_f1` are those of the whole slice."""

    name: str
    macro_f1: float
    grey: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    predicted: NDArray[np.uint8]
    size: tuple[int, ...]
    uncertainty: NDArray[np.uint8] | None = None


def rank_images(scores: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Returns name and macro F1 of every image that has one, the worst first."""
    images = scores["per_image"]
    scored = [(name, f1) for name, f1 in zip(images["name"], images["macro_f1"], strict=True) if f1 is not None]
    return sorted(scored, key=lambda image: image[1])


def spread(items: Sequence[T], count: int) -> list[T]:
    """Returns at most `count` of them: the first, the last, and evenly spread ones between."""
    count = min(count, len(items))
    return [items[i * (len(items) - 1) // max(1, count - 1)] for i in range(count)]


def load_slides(run: Run, dataset: Dataset, split: str, chosen: Sequence[tuple[str, float]]) -> list[Slide]:
    """Returns slides of slices of a split, which are chosen by name and macro F1, as in the scores."""
    places: dict[str, tuple[Cutout, int]] = {}
    for cutout in dataset.split(split):
        places |= {name: (cutout, z) for z, name in enumerate(cutout.slice_names)}
    slides = []
    classes = dataset.classes
    for name, macro_f1 in chosen:
        if name not in places:
            raise RunError(
                f"{run}: the scores of split {split} name the image {name!r}, which the dataset {dataset.name} does not "
                "have. Give the dataset that the run was scored on, or score it again."
            )
        cutout, z = places[name]
        size = cutout.volume.shape[1:]
        rows, columns = (slice((edge - min(edge, LARGEST)) // 2, (edge + min(edge, LARGEST)) // 2) for edge in size)
        stored = _read_plane(run.predictions(split), cutout, z)
        strange = stored[(stored < classes.first_id) | (stored >= classes.first_id + len(classes))]
        if strange.size:
            raise RunError(
                f"{run}: {strange.size} pixels of the prediction of {name} are no class, such as {strange[0]}; expected "
                f"{classes.describe_stored()}. Delete the run's predictions and scores, and score it again."
            )
        maps = run.uncertainty(split)
        slides.append(
            Slide(
                name,
                macro_f1,
                to_display(np.asarray(cutout.volume.data[z, rows, columns])),
                cutout.read_labels(z, rows, columns),
                classes.from_stored(stored[rows, columns]),
                size,
                _read_plane(maps, cutout, z)[rows, columns] if maps.is_dir() else None,
            )
        )
    return slides


def _read_plane(folder: Path, cutout: Cutout, z: int) -> NDArray[np.uint8]:
    """Reads a slice of what a run has predicted of an image, labels or uncertainty."""
    path = find_image(folder, cutout.name)
    stored = open_labels(path)  # uncertainty too: as a grey image that of a sure classifier, all 0, would be refused
    if stored.shape != cutout.volume.shape or stored.dtype != np.uint8:
        raise RunError(
            f"{path}: {stored.dtype} of shape {stored.shape}, but the image has {cutout.volume.shape}; expected uint8 of "
            "that shape. Delete the run's predictions and scores, and score it again."
        )
    return np.asarray(stored[z])


def encode_layers(slide: Slide, classes: ClassSet) -> dict[str, str]:
    """Returns `image`, `truth`, `predicted` and `errors` as data URLs.

    The image is a JPEG, which keeps the page small; the others are PNG, so that no pixel gets a colour of no class. Their
    background and what is no error are transparent; pixels without a label are grey.
    """
    from PIL import Image

    from neurotome.figures.pictures import WRONG

    def encode(values: NDArray[np.uint8], kind: str, colours: NDArray[np.uint8] | None = None, **options: Any) -> str:
        picture = Image.fromarray(np.ascontiguousarray(values))
        if colours is not None:
            picture.putpalette(colours.tobytes())
        stream = io.BytesIO()
        picture.save(stream, kind, optimize=True, **options)
        return to_url(kind, stream.getvalue())

    colours = classes.paint(np.arange(256))
    background = {"transparency": 0} if classes.first_id == 0 else {}
    errors = ((slide.truth != slide.predicted) & (slide.truth != classes.ignore)).astype(np.uint8)
    return {
        "image": encode(slide.grey, "jpeg", quality=90),
        "truth": encode(slide.truth, "png", colours, **background),
        "predicted": encode(slide.predicted, "png", colours, **background),
        "errors": encode(errors, "png", np.full((256, 3), WRONG, np.uint8), transparency=0),
    }


def to_url(kind: str, content: bytes) -> str:
    """Returns a picture, of the kind png or jpeg, as data URL."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
