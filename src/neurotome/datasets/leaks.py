"""Leaks: scored images next to those of training, whose scores are better than those of new tissue."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.datasets.base import Cutout, Dataset

NEAR = 8
"""Slices that are left out between train and test, where a stack is long enough: cell bodies of 10 um at 1.2 um."""

ALIKE = 0.5
"""Correlation from which two images, averaged in 32 x 32 cells, count as neighbouring sections.

Measured on 14 serial sections of 50 nm (Gerhard et al. 2013): next sections 0.69 to 0.77, every third 0.33 to 0.43; images
of different places -0.1 to 0.1.
"""

CELLS = 32


def choose_gap(slices: int) -> int:
    """Returns how many slices of a stack to leave out between train and test: 5 %, at least 1 and at most 8."""
    return min(NEAR, max(1, slices // 20))


def check_leaks(dataset: Dataset) -> list[str]:
    """Returns a sentence for each way in which val or test leak into train.

    They do where fewer slices lie between annotated ones of one stack than `choose_gap` of what they span; where two images
    are the same; where a group is on both sides; where serial sections, files of consecutive numbers that look alike, are.
    Cutouts are of one stack if they come from one file, or have one name and an origin in a larger volume.
    """
    trained = dataset.splits.get("train", ())
    sentences = []
    for split in ("val", "test"):
        scored = dataset.splits.get(split, ())
        if not trained or not scored:
            continue
        advice = f"Scores of {split} are better than those of new tissue will be"
        if near := list(_find_near(trained, scored, len(dataset.classes))):
            sentences.append(
                f"train and {split} are neighbours in {_name_some(near)}. {advice}; leave out {NEAR} slices or more between."
            )
        pixels = {cutout.digests["pixels"]: cutout.name for cutout in trained}
        same = [(pixels[c.digests["pixels"]], c.name) for c in scored if c.digests["pixels"] in pixels]
        if same:
            pairs = _name_some([f"{first} in train and {second}" for first, second in same])
            sentences.append(f"{split} has images of train: {pairs} are the same. {advice}; remove one of each.")
        groups = dataset.groups
        if shared := sorted({groups[c.name] for c in trained if c.name in groups} & {groups.get(c.name) for c in scored}):
            sentences.append(f"train and {split} share the group {_name_some(shared)}. {advice}; keep groups together.")
        if serial := list(_find_serial(trained, scored)):
            sentences.append(
                f"train and {split} have neighbouring sections: {_name_some(serial)}. {advice}; leave out some between."
            )
    return sentences


def _name_some(things: Sequence[str]) -> str:
    return "; ".join(things[:3]) + f" and {len(things) - 3} more" * (len(things) > 3)


def _find_near(trained: Sequence[Cutout], scored: Sequence[Cutout], classes: int) -> Iterator[str]:
    """Yields cutouts of `scored` with too few slices between one of `trained`."""
    stacks: dict[Any, list[Cutout]] = {}
    for cutout in trained:
        for key in _identify(cutout):
            stacks.setdefault(key, []).append(cutout)
    for cutout in scored:
        there = _list_labelled(cutout, classes)
        neighbours = {id(other): other for key in _identify(cutout) for other in stacks.get(key, ())}
        for other in neighbours.values():
            here = _list_labelled(other, classes)
            if not len(here) or not len(there) or not _share_pixels(cutout, other):
                continue
            padded = np.concatenate([[-np.inf], here, [np.inf]])
            after = np.searchsorted(here, there)
            distances = np.minimum(there - padded[after], padded[after + 1] - there)
            nearest = int(distances.argmin())
            between = max(0, int(distances[nearest]) - 1)
            low, high = min(here[0], there[0]), max(here[-1], there[-1])
            if between < choose_gap(int(high - low) + 1):
                z = there[nearest]
                partner = here[np.abs(here - z).argmin()]
                yield f"{cutout.name}, z {partner} and z {z}"
                break


def _identify(cutout: Cutout) -> list[Any]:
    """Returns what tells which stack a cutout is of."""
    volume = cutout.volume
    named = [volume.name] if any(volume.origin_zyx) else []
    return [*named, *([volume.path] if volume.path is not None else [])]


def _list_labelled(cutout: Cutout, classes: int) -> NDArray[np.int64]:
    """Returns the annotated slices of a cutout, counted in the volume it was cut from, int64, increasing."""
    volume = cutout.volume
    return volume.origin_zyx[0] + volume.numbers[cutout.label_counts[:, :classes].any(axis=1)]


def _share_pixels(first: Cutout, second: Cutout) -> bool:
    """Says whether two cutouts of a stack overlap in y and x."""
    boxes = [(c.volume.origin_zyx[1:], c.volume.shape[1:]) for c in (first, second)]
    (starts, sizes), (other_starts, other_sizes) = boxes
    return all(
        start < other + other_size and other < start + size
        for start, size, other, other_size in zip(starts, sizes, other_starts, other_sizes, strict=True)
    )


def _find_serial(trained: Sequence[Cutout], scored: Sequence[Cutout]) -> Iterator[str]:
    """Yields pairs of single images whose names differ by one in their last number and which look alike."""
    numbered = {key: cutout for cutout in trained if (key := _number(cutout))}
    for cutout in scored:
        if key := _number(cutout):
            prefix, number, suffix = key
            for near in (number - 1, number + 1):
                other = numbered.get((prefix, near, suffix))
                if other is not None and (likeness := _measure_likeness(other, cutout)) > ALIKE:
                    yield f"{other.name} and {cutout.name} (correlation {likeness:.2f})"


def _number(cutout: Cutout) -> tuple[str, int, str] | None:
    """Returns the name of a single image around its last number, and the number; None if there is none."""
    found = re.fullmatch(r"(.*?)([0-9]{1,18})([^0-9]*)", cutout.name, re.DOTALL)
    return (found[1], int(found[2]), found[3]) if found and cutout.volume.shape[0] == 1 else None


def _measure_likeness(first: Cutout, second: Cutout) -> float:
    """Returns the correlation of two images, averaged in cells; 0 if sizes differ or are too small, or one is constant."""
    if first.volume.shape != second.volume.shape or min(first.volume.shape[1:]) < CELLS:
        return 0.0
    planes = []
    for cutout in (first, second):
        plane = np.asarray(cutout.volume.data[0], np.float64)
        rows, columns = (max(1, size // CELLS) for size in plane.shape)
        whole = plane[: plane.shape[0] // rows * rows, : plane.shape[1] // columns * columns]
        cells = whole.reshape(whole.shape[0] // rows, rows, -1, columns).mean(axis=(1, 3))
        planes.append(cells - cells.mean())
    norm = np.sqrt(np.prod([np.square(plane).sum() for plane in planes]))
    return float((planes[0] * planes[1]).sum() / norm) if norm else 0.0
