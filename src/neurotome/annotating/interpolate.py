"""interpolate: labels of every slice from a few that are labelled, and how uncertain they are."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray

from neurotome.annotating.shapes import blend, measure_gap
from neurotome.annotating.walks import walk_gap
from neurotome.classes import ClassSet
from neurotome.errors import ImageError, SettingsError
from neurotome.io.files import name_image
from neurotome.io.meanings import read_meanings
from neurotome.io.opening import open_label_volume, open_volume
from neurotome.io.sink import create_image, create_labels
from neurotome.outputs import Existing, plan_outputs
from neurotome.progress import Progress, track
from neurotome.tables import count
from neurotome.volume import Volume


@dataclass(frozen=True)
class InterpolateSettings:
    """Which slices are labelled, and whether an image is followed between them."""

    image: Path | None = None
    """Image of the whole stack, whose edges the labels then follow; none: shapes alone."""

    slices: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = ()
    """Numbers of the labelled slices, from 0; none: those that have a label."""

    depth: int | Literal["auto"] = "auto"
    """Slices of the whole stack, where LABELS holds nothing but the labelled ones, which --slices numbers; auto: LABELS is
    the whole stack."""

    ignore: int | Literal["auto"] = "auto"
    """Value of pixels that are not labelled; auto: what the file, or dataset.yaml beside its folder, says, else 255."""

    existing: Literal["refuse", "replace"] = "refuse"
    """What to do where an output is there already."""

    def __post_init__(self) -> None:
        if any(number < 0 for number in self.slices) or list(self.slices) != sorted(set(self.slices)):
            raise SettingsError(
                f"slices is {' '.join(map(str, self.slices))}; expected numbers from 0, increasing, each once."
            )
        if self.ignore != "auto" and not 0 <= self.ignore <= 255:
            raise SettingsError(f"ignore is {self.ignore}; expected 0..255.")
        if self.depth != "auto" and not (self.slices and self.depth > self.slices[-1]):
            raise SettingsError(
                f"depth is {self.depth}; expected more than the number of the last labelled slice, with --slices."
            )


def interpolate(
    labels: Path, *, out: Path, settings: Annotated[InterpolateSettings, Parameter(name="*")] = InterpolateSettings()
) -> list[Path]:
    """Labels the slices between labelled ones by their shapes or by an image, and says how uncertain that is.

    Labelled slices come back as they are. Before the first and after the last one nothing is labelled. Beside OUT a map of
    the same shape, OUT_uncertainty, has 0 (certain) to 255. Two labelled slices are in memory at a time and, with an image,
    what lies between them.

    Args:
        labels: Stack of labels: TIFF, OME-Zarr, npy, a folder of slices.
        out: Label file to write: .tif, .npy or .zarr.
        settings: Which slices are labelled, and whether an image is followed between them.

    Returns:
        The labels and the map of their uncertainty.

    Raises:
        ImageError: The labels or the image cannot be read or have different shapes, or fewer than two slices are labelled.
        RunError: An output is there already, or is the input.
        SettingsError: A slice is named that the stack does not have.
    """
    labels, out = Path(labels), Path(out)
    unsure = out.with_name(f"{name_image(out)}_uncertainty{out.suffix}")
    existing: Existing = settings.existing
    plan_outputs([out, unsure], inputs=[labels, *filter(None, [settings.image])], existing=existing)
    volume = open_label_volume(labels, stack=True)
    classes, _ = read_meanings(labels)
    unlabelled = classes.stored_ignore if classes else 255 if settings.ignore == "auto" else settings.ignore
    ignore = unlabelled if settings.ignore == "auto" else settings.ignore
    stored = _list_labelled(volume, ignore, settings)
    shape = (volume.shape[0] if settings.depth == "auto" else settings.depth, *volume.shape[1:])
    image = None if settings.image is None else _open_image(settings.image, shape, labels)
    progress = Progress("interpolating", shape[0], "slice")
    with contextlib.ExitStack() as stack:
        map_sink = stack.enter_context(create_image(unsure, shape, np.uint8, like=volume))
        label_sink = stack.enter_context(create_labels(out, shape, classes, volume))
        for z, (plane, unknown) in enumerate(_fill(volume, stored, shape, ignore, unlabelled, image, progress)):
            place = slice(z, z + 1), slice(None), slice(None)
            label_sink.write(place, _to_ids(plane, classes, labels)[None])
            map_sink.write(place, unknown[None])
            progress.update(z + 1)
    progress.finish()
    return [out, unsure]


def _list_labelled(volume: Volume, ignore: int, settings: InterpolateSettings) -> dict[int, int]:
    """Returns which slice of the file each labelled slice of the stack is, by its number."""
    depth, where = volume.shape[0], volume.path
    if settings.depth != "auto" and len(settings.slices) != depth:
        np.asarray(volume.data[0])  # slices that were taken for colours are refused as such
        raise SettingsError(
            f"{where} has {count(depth, 'slice')}, --slices numbers {len(settings.slices)}; expected as many."
        )
    if settings.depth == "auto" and settings.slices and settings.slices[-1] >= depth:
        raise SettingsError(f"slice {settings.slices[-1]} is named, but {where} has the slices 0 to {depth - 1}.")
    listed = settings.slices or [
        z for z in track(range(depth), "looking for labels", depth) if (np.asarray(volume.data[z]) != ignore).any()
    ]
    if len(listed) < 2:
        raise ImageError(
            f"{where}: {len(listed)} of {depth} slices have a label; expected at least two. Label another, or name the "
            f"value of pixels that are not labelled with --ignore (it was taken to be {ignore})."
        )
    if len(listed) == depth and settings.depth == "auto":
        raise ImageError(
            f"{where}: every one of {depth} slices has a label, so that there is nothing to fill in. Name the labelled "
            "slices with --slices, or the value of pixels that are not labelled with --ignore (it was taken to be "
            f"{ignore})."
        )
    return dict(zip(listed, range(depth) if settings.depth != "auto" else listed, strict=True))


def _open_image(path: Path, shape: tuple[int, int, int], labels: Path) -> Volume:
    image = open_volume(path, stack=True)
    if image.shape != shape:
        raise ImageError(
            f"{path} has {' x '.join(map(str, image.shape))} voxels (z, y, x) and the stack of {labels} "
            f"{' x '.join(map(str, shape))}; expected the image that was labelled, whole. Where {labels} holds the labelled "
            "slices alone, --slices and --depth say where they belong."
        )
    return image


def _fill(
    volume: Volume,
    stored: dict[int, int],
    shape: tuple[int, int, int],
    ignore: int,
    unlabelled: int,
    image: Volume | None,
    progress: Progress,
) -> Iterator[tuple[NDArray[Any], NDArray[np.uint8]]]:
    """Yields label values and their uncertainty, shape (y, x), of every slice of the stack.

    What is not labelled, `ignore` in the file, is `unlabelled` in the slices that are filled.
    """
    numbers = list(stored)
    certain = np.zeros(shape[1:], np.uint8)
    nothing = np.full(shape[1:], unlabelled), np.full(shape[1:], 255, np.uint8)
    yield from itertools.repeat(nothing, numbers[0])
    for first, second in itertools.pairwise(numbers):
        before, after = (np.asarray(volume.data[stored[z]]) for z in (first, second))
        yield before, certain
        if second == first + 1:
            continue
        between: Iterable[tuple[NDArray[Any], NDArray[Any]]]
        if image is None:
            gap = measure_gap(before, after)
            between = (blend(gap, share) for share in np.arange(1, second - first) / (second - first))
        else:
            grey = np.asarray(image.data[first : second + 1])

            def report(done: float, start: int = first + 1) -> None:
                progress.update(start + done)

            between = zip(*walk_gap(before, after, grey, report), strict=True)
        for plane, unknown in between:
            yield np.where(plane == ignore, unlabelled, plane), (unknown * 255).round().astype(np.uint8)
    yield np.asarray(volume.data[stored[numbers[-1]]]), certain
    yield from itertools.repeat(nothing, shape[0] - numbers[-1] - 1)


def _to_ids(values: NDArray[Any], classes: ClassSet | None, where: Path) -> NDArray[Any]:
    """Returns what the sink, which counts classes from 0, is given for values of the file."""
    if classes is None:
        return values
    ids = classes.from_stored(np.clip(values, 0, 255))
    if (wrong := classes.to_stored(ids) != values).any():
        raise ImageError(
            f"{where}: found {', '.join(map(str, np.unique(values[wrong])[:5]))}; expected {classes.describe_stored()}. "
            "Correct the labels."
        )
    return ids
