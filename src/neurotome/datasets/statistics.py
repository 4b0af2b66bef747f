"""What is in a dataset: pixels per class, grey values, imbalance (Table 1 of the founding report)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.datasets.base import Cutout, Dataset, format_size
from neurotome.datasets.leaks import check_leaks
from neurotome.errors import DatasetError
from neurotome.normalize import measure_grey
from neurotome.sampling import LARGE
from neurotome.tables import Shown, Table, count

BINS = 256


def count_slices(dataset: Dataset, split: str = "train") -> NDArray[np.int64]:
    """Returns the labelled pixels of each slice of a split, shape (slices of all cutouts, classes).

    Raises:
        DatasetError: There is no such split, or none of its pixels is labelled.
    """
    counts = np.concatenate([cutout.label_counts[:, : len(dataset.classes)] for cutout in dataset.split(split)])
    if not counts.any():
        raise DatasetError(
            f"{dataset.name}: all pixels of split {split!r} have the ignore value {dataset.classes.stored_ignore}; expected "
            f"labelled ones. Label some, or list other ids under splits: {split}."
        )
    return counts


def is_labelled(dataset: Dataset, split: str) -> bool:
    """Says whether a split is there and has a labelled pixel."""
    return any(cutout.label_counts[:, : len(dataset.classes)].any() for cutout in dataset.splits.get(split, ()))


def list_seen(dataset: Dataset, totals: NDArray[np.int64], warn: bool = True) -> NDArray[np.int64]:
    """Returns the classes that have a training pixel, int64, increasing, and unless `warn` is false warns about the others.

    `totals` are the labelled pixels of each class in the split train.

    Raises:
        DatasetError: There is only one.
    """
    classes = dataset.classes
    seen = np.flatnonzero(totals)
    absent = ", ".join(name for name, total in zip(classes.names, totals, strict=True) if total == 0)
    unlabelled = int(sum(cutout.volume.data.size for cutout in dataset.split("train")) - totals.sum())
    mask = ""
    if unlabelled and absent and not classes.first_id:
        mask = (
            f" {unlabelled:,} pixels have the value {classes.ignore}, which means not labelled: in masks of 0 and "
            f"{classes.ignore} write 1 for it."
        )
    if len(seen) < 2:
        raise DatasetError(
            f"{dataset.name}: all labelled training pixels are of class {classes.names[seen[0]]}; expected two "
            f"classes or more, for there is nothing to tell apart. Label others.{mask}"
        )
    if absent and warn:
        warnings.warn(
            f"{dataset.name}: no training pixel of class {absent}; expected some of each. What is trained never predicts "
            f"it: label some, or drop the class.{mask}",
            stacklevel=3,
        )
    return seen


def list_absent(dataset: Dataset) -> dict[str, list[str]]:
    """Returns for each split that lacks some of the classes that occur in the dataset their names."""
    counts = {
        split: np.sum([cutout.label_counts[:, : len(dataset.classes)].sum(axis=0) for cutout in cutouts], axis=0)
        for split, cutouts in dataset.splits.items()
        if cutouts
    }
    occurs = np.sum(list(counts.values()), axis=0) > 0
    absent = {
        split: [name for name, there, count in zip(dataset.classes.names, occurs, found, strict=True) if there and not count]
        for split, found in counts.items()
    }
    return {split: names for split, names in absent.items() if names}


def note_splits(dataset: Dataset) -> None:
    """Warns of what leaks from training to scoring, and of classes that val or test lacks."""
    for sentence in check_leaks(dataset):
        warnings.warn(f"{dataset.name}: {sentence}", stacklevel=3)
    for split, names in list_absent(dataset).items():
        if split != "train":  # of which `list_seen` says it
            warnings.warn(
                f"{dataset.name}: no pixel of class {', '.join(names)} in split {split}; expected some of each. Scores of "
                f"{split} do not say how well it is found: label some, or list other images under splits: {split}.",
                stacklevel=3,
            )


class Statistics(Shown, dict[str, Any]):
    """What `measure_dataset` returns: JSON values, shown as text, and as tables in a notebook."""

    def _show(self) -> list[str | Table]:
        lines = [f"{self['dataset']}: {len(self['classes'])} classes, voxel size {format_size(self['voxel_size_um'])}"]
        lines += [f"{key}: {self[key]}" for key in ("licence", "citation") if self[key]]
        lines += [f"in no split: {', '.join(self['unlisted'])}"] if self["unlisted"] else []
        lines += [*self["leaks"], *self["sampled"]]
        pieces: list[str | Table] = ["\n".join(lines)]
        for split, measured in self["splits"].items():
            images, slices, pixels = (count(measured[f"{thing}s"], thing) for thing in ("image", "slice", "pixel"))
            low, high, mean, std = (measured[key] for key in ("min", "max", "mean", "std"))
            imbalance = "not known" if measured["imbalance"] is None else f"{measured['imbalance']:.3g}"
            pieces.append(
                f"\n{split}: {images}, {slices}, {pixels}\n"
                f"grey values {low:g} to {high:g}, mean {mean:.5g}, standard deviation {std:.5g}\n"
                f"imbalance {imbalance} (most frequent class over the rarest)"
            )
            rows = [
                (name, f"{measured['counts'][name]:,}", "–" if share is None else f"{100 * share:.2f} %")
                for name, share in measured["share"].items()
            ]
            rows += [("not labelled", f"{measured['ignored']:,}", "")] if measured["ignored"] else []
            pieces.append(Table(("class", "pixels", "share"), rows))
        return pieces


def measure_dataset(dataset: Dataset) -> Statistics:
    """Measures every split of a dataset; reads slice by slice, and of images above 2^28 voxels a sample of grey values.

    Returns:
        Ready for JSON: `dataset`, `classes`, `voxel_size_um`, `licence`, `citation`, `histogram_edges` (grey
        values), `leaks` (sentences, see `check_leaks`), `sampled` (sentences: of which images grey values are measured on
        some slices, because they are large; classes are always counted in all) and per split in `splits`:

        - `images`, `slices`, `pixels`, of which `ignored` have no label; `counts` and `share` (of those labelled) per class;
        - `mean`, `std`, `min`, `max` of all grey values, with float64 sums;
        - `imbalance`: the most frequent class over the rarest that occurs;
        - `histogram`: pixels of each class per grey-value bin, with bins as `numpy.histogram` has them.

    Raises:
        DatasetError: The dataset has no image.
    """
    cutouts = [cutout for group in dataset.splits.values() for cutout in group]
    if not cutouts:
        raise DatasetError(f"{dataset.name} has no image; expected at least one.")
    edges = _choose_edges(cutouts)
    return Statistics(
        dataset=dataset.name,
        classes=list(dataset.classes.names),
        voxel_size_um=list(dataset.voxel_size_um or ()) or None,
        licence=dataset.licence,
        citation=dataset.citation,
        histogram_edges=edges.tolist(),
        unlisted=list(dataset.unlisted),
        leaks=check_leaks(dataset),
        sampled=[
            f"grey values of {cutout.name} are those of {len(slices)} of its {cutout.volume.shape[0]} slices"
            for cutout in cutouts
            if len(slices := _choose_slices(cutout)) < cutout.volume.shape[0]
        ],
        splits={split: _measure_split(group, dataset.classes, edges) for split, group in dataset.splits.items() if group},
    )


def _measure_split(cutouts: Sequence[Cutout], classes: ClassSet, edges: NDArray[np.float64]) -> dict[str, Any]:
    histogram = _count_grey(cutouts, len(classes), edges)
    labels = np.sum([cutout.label_counts[:, : len(classes)].sum(axis=0) for cutout in cutouts], axis=0)
    counts = dict(zip(classes.names, labels.tolist(), strict=True))
    labelled = sum(counts.values())
    pixels = sum(cutout.volume.data.size for cutout in cutouts)
    present = [number for number in counts.values() if number]
    mean, std = measure_grey(cutout.volume.data for cutout in cutouts)
    low, high = _measure_range(cutouts)
    return {
        "images": len(cutouts),
        "slices": sum(cutout.volume.shape[0] for cutout in cutouts),
        "pixels": pixels,
        "ignored": pixels - labelled,
        "counts": counts,
        "share": {name: number / labelled if labelled else None for name, number in counts.items()},
        "mean": mean,
        "std": std,
        "min": low,
        "max": high,
        "imbalance": max(present) / min(present) if present else None,
        "histogram": dict(zip(classes.names, histogram.tolist(), strict=True)),
    }


def _choose_slices(cutout: Cutout) -> NDArray[np.int64]:
    """Returns the slices on which grey values are measured: all, or of a large image some evenly spread, `LARGE` voxels."""
    depth, height, width = cutout.volume.shape
    few = min(depth, max(1, LARGE // (height * width)))
    return np.linspace(0, depth - 1, few).round().astype(np.int64)


def _iterate_slices(cutout: Cutout) -> Iterable[tuple[int, NDArray[Any]]]:
    """Returns number and grey values of the chosen slices, read one after the other."""
    chosen, data = _choose_slices(cutout), cutout.volume.data
    return enumerate(data) if len(chosen) == len(data) else ((z, np.asarray(data[z])) for z in chosen.tolist())


def _measure_range(cutouts: Iterable[Cutout]) -> tuple[float, float]:
    ranges = [(plane.min(), plane.max()) for cutout in cutouts for _, plane in _iterate_slices(cutout)]
    return float(min(low for low, _ in ranges)), float(max(high for _, high in ranges))


def _choose_edges(cutouts: Sequence[Cutout]) -> NDArray[np.float64]:
    """Returns edges of at most 256 bins of one width that cover all grey values.

    Bins of integers are whole numbers wide: others would hold now more, now fewer values and show a comb.
    """
    low, high = _measure_range(cutouts)
    if all(cutout.volume.data.dtype.kind in "iu" for cutout in cutouts):
        width = -(-(int(high) - int(low) + 1) // BINS)
        bins = -(-(int(high) - int(low) + 1) // width)
        return low - 0.5 + width * np.arange(bins + 1, dtype=np.float64)
    return np.linspace(low, high, BINS + 1)


def _count_grey(cutouts: Iterable[Cutout], classes: int, edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """Returns the pixels of each class per bin, int64, shape (classes, bins)."""
    counts = np.zeros((classes, len(edges) - 1), np.int64)
    for cutout in cutouts:
        for z, grey in _iterate_slices(cutout):
            labels = cutout.read_labels(z)
            for class_id in range(classes):
                values = grey[labels == class_id].astype(np.float64)
                counts[class_id] += np.histogram(values, counts.shape[1], (edges[0], edges[-1]))[0]
    return counts
