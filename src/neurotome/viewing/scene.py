"""open_scene: an image and the labels laid over it, with contrast, colours and voxel size, whatever program shows them."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.classes import OKABE_ITO, ClassSet, Colour
from neurotome.datasets.base import SPLITS
from neurotome.errors import ImageError, NeurotomeError, RunError
from neurotome.io.files import find_image
from neurotome.io.lazy_array import Coarser, LazyArray
from neurotome.io.meanings import find_listed_size, read_meanings
from neurotome.io.opening import open_label_volume, open_volume
from neurotome.models.stored_model import read_model
from neurotome.runs import Run
from neurotome.sampling import sample_grey
from neurotome.volume import SIZE_TOLERANCE, Size, Volume

OPACITY = 0.45
"""Of labels over the image, as in overlays."""

HELD_BYTES = 1 << 26
"""Layers up to this size are read at once; of larger ones only what is looked at."""

UNNAMED = range(1, 255)
"""Ids that get a colour in labels of 8 bits that do not say what they mean; 255 is usually "not labelled"."""

NOT_LABELLED = 255
"""What many files hold there, whatever value their classes name."""


@dataclass(frozen=True)
class LabelLayer:
    """Labels of the scene's image.

    Attributes:
        name: Unlike that of any other layer.
        data: Whole numbers as stored, (z, y, x), lazy where they are large.
        path: The file.
        classes: What they mean; None if nobody says so.
    """

    name: str
    data: Any
    path: Path
    classes: ClassSet | None

    @property
    def colours(self) -> dict[int, Colour]:
        """The colour of each id that is shown; empty: numbered objects, each in a colour that the viewer gives it."""
        if self.classes is not None:
            first = 1 - self.classes.first_id  # background stays unpainted
            return {i + self.classes.first_id: self.classes.colours[i] for i in range(first, len(self.classes))}
        return {i: OKABE_ITO[(i - 1) % len(OKABE_ITO)] for i in UNNAMED} if self.data.dtype == np.uint8 else {}

    @property
    def names(self) -> dict[int, str]:
        """The name of each id that is shown, empty if they are not known."""
        return {} if self.classes is None else {i: self.classes.names[i - self.classes.first_id] for i in self.colours}


@dataclass(frozen=True)
class Scene:
    """What is shown.

    Attributes:
        image: Grey values, lazy where they are large.
        contrast: Grey values shown black and white.
        layers: Labels of the image's shape, in the order in which they lie over it.
        size_um: Edges of a voxel (z, y, x); None if not known.
    """

    image: Volume
    contrast: tuple[float, float]
    layers: Sequence[LabelLayer]
    size_um: Size | None


def open_scene(
    image: Path,
    labels: Path | None = None,
    compare: Sequence[Path] = (),
    *,
    classes: Sequence[str] = (),
    palette: str = "colour-blind-safe",
    size_um: Size | None = None,
    channel: int | None = None,
    time: int | None = None,
) -> Scene:
    """Opens an image with its labels.

    Args:
        image: What `open_volume` reads, or a folder of slices.
        labels: Labels of it, in any format but a lossy one.
        compare: More label files, and run folders that hold a prediction of an image of this name.
        classes: Names of the classes, id 0 first, in files that do not say them.
        palette: Colours of the classes.
        size_um: Edges of a voxel (z, y, x); None: what the image, or else the labels or their dataset say.
        channel: Which channel of an image of several.
        time: Which time of an image of several.

    Raises:
        ImageError: A file cannot be read, or labels have another shape than the image.
        RunError: A run holds no prediction of the image.
    """
    volume = open_volume(image, channel=channel, time=time, voxel_size_um=size_um, stack=True)
    volume = dataclasses.replace(volume, data=_hold(volume.data))
    stated = ClassSet(tuple(classes)) if classes else None
    layers: list[LabelLayer] = []
    for path, name, run in _list_labels(volume, labels, compare):
        opened = open_label_volume(path, stack=True)
        if opened.shape != volume.shape:
            raise ImageError(
                f"{path}: these labels have the shape {opened.shape} (z, y, x), and {image} has {volume.shape}; expected "
                "the same. Give labels of this image."
            )
        said, made = read_meanings(path)
        known = said or (read_model(run.model).classes if run else stated)
        if known is None:
            warnings.warn(
                f"{path}: these labels do not say what their ids mean; every id gets a colour, 0 none. Name them, the name "
                "of id 0 first: --classes background 'blood vessel' cell axon.",
                stacklevel=3,
            )
        else:
            known = known.with_palette(palette)
        taken = {layer.name for layer in layers} | {"image"}
        name = next(text for text in (name, *(f"{name} ({i})" for i in range(2, 1000))) if text not in taken)
        layer = LabelLayer(name, _hold(opened.data), path, known)
        _note_strays(layer)
        layers.append(layer)
        volume = dataclasses.replace(volume, voxel_size_um=_agree_on_size(volume, opened, made))
    if volume.voxel_size_um is None:
        warnings.warn(
            f"{image}: the voxel size is not known, so that there is no scale bar. State it, in micrometres: "
            "--voxel-size-um 1.17, or three numbers, z y x.",
            stacklevel=3,
        )
    return Scene(volume, find_contrast(volume.data), tuple(layers), volume.voxel_size_um)


def find_contrast(data: Any) -> tuple[float, float]:
    """Returns the grey values shown black and white: percentiles 0.5 and 99.5 of a sample, or its extremes if they agree."""
    sample = sample_grey(data)
    low, high = (float(value) for value in np.percentile(sample.values, (0.5, 99.5)))
    if low >= high:
        low, high = sample.low, max(sample.high, sample.low + 1)
    return (low, high) if data.dtype.kind == "f" else (math.floor(low), math.ceil(high))


def find_coarser(data: Any) -> Sequence[Coarser]:
    """Returns the coarser levels of a layer that stays in its file; the finest one can be seen without them."""
    if not isinstance(data, LazyArray):
        return ()
    try:
        return data.find_coarser()
    except ImageError as error:
        warnings.warn(f"{error} Its coarser levels are not used.", stacklevel=5)
        return ()


def show_size(size_um: Size | None) -> str:
    """Returns a voxel size as text."""
    return "unknown size" if size_um is None else f"{' x '.join(f'{edge:.4g}' for edge in size_um)} um (z y x)"


def _list_labels(image: Volume, labels: Path | None, compare: Sequence[Path]) -> list[tuple[Path, str, Run | None]]:
    """Returns label files with a name for each, and the run of which they are."""
    listed: list[tuple[Path, str, Run | None]] = [] if labels is None else [(labels, "labels", None)]
    for path in compare:
        run = Run(path)
        if run.read_record() is not None:
            listed.append((_find_prediction(run, image), path.resolve().name, run))
        else:
            listed.append((path, path.stem, None))
    return listed


def _find_prediction(run: Run, image: Volume) -> Path:
    for split in SPLITS:
        with contextlib.suppress(ImageError):
            return find_image(run.predictions(split), image.name)
    raise RunError(
        f"{run}: found no image {image.name} in its predictions; expected one. Predict it first, neurotome predict {run} "
        f"{image.path} {image.name}_labels.tif, and compare with that file."
    )


def _hold(data: Any) -> Any:
    """Reads a small array into memory, where every direction is as fast."""
    is_small = isinstance(data, LazyArray) and data.size * data.dtype.itemsize <= HELD_BYTES
    return np.asarray(data) if is_small else data


def _agree_on_size(image: Volume, labels: Volume, made: Mapping[str, Any]) -> Size | None:
    """Returns the image's voxel size, or else the labels'; says so if they differ."""
    own, said = image.voxel_size_um, labels.voxel_size_um or find_listed_size(made)
    if own and said and any(max(a / b, b / a) > SIZE_TOLERANCE for a, b in zip(own, said, strict=True)):
        warnings.warn(
            f"{labels.path}: voxels of {show_size(said)}, but the image's are {show_size(own)}; shown are the image's. "
            "Check whether these are labels of this image.",
            stacklevel=4,
        )
    return own or said


def _note_strays(layer: LabelLayer) -> None:
    """Says which ids are no classes, since they are not shown."""
    if layer.classes is None:
        return
    try:
        expected = {*range(layer.classes.first_id + len(layer.classes)), layer.classes.stored_ignore, NOT_LABELLED}
        strays = sorted(_list_ids(layer.data) - expected)
    except NeurotomeError as error:  # damaged somewhere: what can be read is worth a look
        warnings.warn(str(error), stacklevel=4)
        return
    if strays:
        more = ", ..." if len(strays) > 5 else ""
        warnings.warn(
            f"{layer.path}: found {', '.join(map(str, strays[:5]))}{more}; expected {layer.classes.describe_stored()}. "
            "What is no class is not shown.",
            stacklevel=4,
        )


def _list_ids(data: Any) -> set[int]:
    """Returns the ids in labels; those in a sample where they are not in memory."""
    planes: Sequence[NDArray[Any]] | NDArray[Any] = [sample_grey(data).values] if isinstance(data, LazyArray) else data
    return {int(value) for plane in planes for value in np.unique(plane)}
