"""crop: a small piece of an image and its labels, to be corrected by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from cyclopts import Parameter

from neurotome.annotating.crop_folder import DESCRIPTION, write_crop
from neurotome.classes import ClassSet
from neurotome.datasets.base import check_labels
from neurotome.errors import ImageError, SettingsError
from neurotome.inference.predict import invert_grey
from neurotome.io.files import split_inner
from neurotome.io.meanings import find_listed_size, read_meanings
from neurotome.io.opening import open_label_volume, open_volume
from neurotome.outputs import plan_outputs
from neurotome.volume import Volume, state_size


@dataclass(frozen=True)
class CropSettings:
    """Which piece is cut out."""

    at: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = ()
    """Voxel in its middle, z y x, from 0; none: the middle of the image. Near a border the piece is moved inwards."""

    size: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (1, 128, 128)
    """Voxels, z y x; what the image does not have is left out."""

    context: int = 0
    """Slices above and below that are kept without labels, for models that read neighbouring slices."""

    name: str = ""
    """Name of the crop; none: that of the image and where the piece begins."""

    invert: bool = False
    """Flip the grey values, as predict does: a dataset of crops holds what the model shall see."""

    classes: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = ()
    """Names of the classes by their ids, the first is id 0, where LABELS does not say them, or where there are none."""

    voxel_size_um: Annotated[tuple[float, ...], Parameter(consume_multiple=True)] = ()
    """Edges of a voxel in micrometres, z y x, or one number for all three; none: what the files say."""

    channel: int | Literal["auto"] = "auto"
    """Which channel of an image of several, from 0; auto: the only one."""

    time: int | Literal["auto"] = "auto"
    """Which time of an image of several, from 0; auto: the only one."""

    def __post_init__(self) -> None:
        state_size(self.voxel_size_um)
        if len(self.at) not in (0, 3):
            raise SettingsError(f"at is {' '.join(map(str, self.at))}; expected three numbers, z y x.")
        if len(self.size) != 3 or min(self.size) < 1:
            raise SettingsError(f"size is {' '.join(map(str, self.size))}; expected three numbers of at least 1, z y x.")
        if self.context < 0:
            raise SettingsError(f"context is {self.context}; expected 0 slices or more.")
        if self.name in (".", "..") or any(sign in self.name for sign in "/\\\0"):
            raise SettingsError(f"name is {self.name!r}; expected the name of a folder, without / and \\.")


class Window(NamedTuple):
    """A box in an image (z, y, x)."""

    z: slice
    y: slice
    x: slice


def crop(
    image: Path,
    labels: Path | None = None,
    *,
    out: Path,
    settings: Annotated[CropSettings, Parameter(name="*")] = CropSettings(),
) -> Path:
    """Cuts a small piece of an image and its labels out, to be corrected by hand.

    OUT/NAME then holds image.zarr, labels.zarr (both OME-Zarr) and crop.json. Correct the labels with any tool that keeps
    their values, in napari with neurotome's panel Correct; then `collect` puts the crop into a dataset. A crop that is there
    is never replaced. Only the piece is read.

    Args:
        image: An image or a volume, as predict reads it.
        labels: Labels of it, such as predict wrote; without them nothing in the crop is labelled.
        out: Folder of crops; made if missing.
        settings: Which piece.

    Returns:
        The crop's folder.

    Raises:
        ImageError: A file cannot be read, or the labels have another shape.
        DatasetError: A label is no class.
        RunError: A crop of this name is there already, or OUT is an input.
        SettingsError: A setting cannot work, or nobody says the classes.
    """
    image, out = Path(image), Path(out)
    inputs = [split_inner(path)[0] for path in (image, None if labels is None else Path(labels)) if path]
    plan_outputs([out / (settings.name or "crop") / DESCRIPTION], inputs=inputs, existing="replace")
    channel, time = (None if choice == "auto" else choice for choice in (settings.channel, settings.time))
    size_um = state_size(settings.voxel_size_um)
    volume = open_volume(image, channel=channel, time=time, voxel_size_um=size_um, stack=True)
    classes = ClassSet(settings.classes) if settings.classes else None
    stored = None
    if labels is not None:
        opened = open_label_volume(Path(labels), stack=True)
        said, made = read_meanings(Path(labels))
        classes, stored = said or classes, opened.data
        volume = dataclasses.replace(
            volume, voxel_size_um=volume.voxel_size_um or opened.voxel_size_um or find_listed_size(made)
        )
    if classes is None:
        raise SettingsError(
            f"{labels or image}: nothing says what ids mean. Name the classes, that of id 0 first: --classes background "
            "'blood vessel' cell axon."
        )
    return cut_out(volume, stored, classes, out, settings)


def cut_out(volume: Volume, labels: Any | None, classes: ClassSet, out: Path, settings: CropSettings) -> Path:
    """Does what `crop` does, with an image and labels that are open.

    Args:
        volume: The image; may be lazy.
        labels: Values as stored, shape (z, y, x), may be lazy; None: nothing is labelled.
        classes: What they mean.
        out: Folder of crops.
        settings: Which piece; what says how files are read is left aside.

    Returns:
        The crop's folder.
    """
    if labels is not None and tuple(labels.shape) != volume.shape:
        raise ImageError(
            f"{volume.path or volume.name}: the image has {volume.shape} voxels (z, y, x), and the labels "
            f"{tuple(labels.shape)}; expected the same. Give labels of this image."
        )
    window = place_window(volume.shape, settings.at, settings.size)
    first, last = window.z.start, window.z.stop
    low, high = max(0, first - settings.context), min(volume.shape[0], last + settings.context)
    place = slice(low, high), window.y, window.x
    grey = np.asarray((invert_grey(volume) if settings.invert else volume).data[place])
    stack = np.full(grey.shape, classes.stored_ignore, np.uint8)
    if labels is not None:
        inside = np.asarray(labels[window])
        check_labels(inside, classes, "the labels")
        stack[first - low : last - low] = inside
    parts = [f"z{first:04d}"] * (volume.shape[0] > 1) + [f"y{window.y.start}", f"x{window.x.start}"]
    folder = out / (settings.name or "_".join([volume.name, *parts]))
    start = low, window.y.start, window.x.start
    write_crop(folder, dataclasses.replace(volume, data=grey, origin_zyx=start), stack, classes)
    return folder


def place_window(shape: Sequence[int], at: Sequence[int], size: Sequence[int]) -> Window:
    """Returns the box of a size around a voxel, moved inwards where it would leave the image.

    Args:
        shape: Of the image (z, y, x).
        at: The voxel (z, y, x); empty: the middle of the image.
        size: Voxels (z, y, x); an image that is smaller gives what it has.

    Raises:
        SettingsError: The voxel is not in the image.
    """
    middle = tuple(at) or tuple(length // 2 for length in shape)
    if not all(0 <= place < length for place, length in zip(middle, shape, strict=True)):
        raise SettingsError(f"at is {' '.join(map(str, middle))}; expected a voxel of the image, which has {tuple(shape)}.")
    kept = [min(edge, length) for edge, length in zip(size, shape, strict=True)]
    starts = [min(max(0, place - edge // 2), length - edge) for place, edge, length in zip(middle, kept, shape, strict=True)]
    return Window(*(slice(start, start + edge) for start, edge in zip(starts, kept, strict=True)))
