"""describe: what is in a dataset, as numbers and pictures, before anything is trained on it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray

from neurotome.atomic import write_json
from neurotome.augment import AugmentSettings, check_augment
from neurotome.augment import augment as transform
from neurotome.classes import Palette
from neurotome.datasets import list_datasets, open_dataset
from neurotome.datasets.base import SPLITS, Cutout, Dataset, DatasetOrName
from neurotome.datasets.statistics import Statistics, count_slices, list_seen, measure_dataset
from neurotome.errors import DatasetError, SettingsError
from neurotome.normalize import fit_normalization
from neurotome.outputs import plan_outputs
from neurotome.volume import to_display

Sample = tuple[NDArray[np.uint8], NDArray[np.uint8]]

SAMPLES = 4
DRAWS = 6
PICTURES = ("samples", "augmentation", "class_shares", *(f"histograms_{split}" for split in SPLITS))

LARGEST = 1024  # pixels along an axis that a picture shows: the middle of larger slices
AUGMENTED = 256  # pixels of the patch that is augmented, as large as a usual training patch


def describe(
    dataset: DatasetOrName | None = None,
    *,
    known: Annotated[bool, Parameter(name="--list", negative=())] = False,
    out: Path | None = None,
    palette: Palette = "colour-blind-safe",
    augment: AugmentSettings = AugmentSettings(),
    seed: int = 0,
) -> Statistics | dict[str, str]:
    """Measures a dataset, and draws samples, augmentation, grey values and class shares.

    Args:
        dataset: Folder with dataset.yaml, mtneuro:FOLDER, mtneuro:FOLDER@VARIANT, or phantom.
        known: Instead lists every kind of dataset and every variant, a line each; no data are needed.
        out: Folder that gets statistics.json and the pictures; without it nothing is written.
        palette: Colours of the classes.
        augment: Augmentation that is shown.
        seed: Seed of the augmentation.

    Returns:
        The statistics, see `measure_dataset`; with `known` the datasets that can be opened, `{name: description}`.

    Raises:
        NeurotomeError: The dataset or a setting cannot be used; nothing has been written then.
    """
    out = None if out is None else Path(out)  # text from Python
    if known:
        if dataset is not None or out is not None:
            raise SettingsError("--list shows what can be opened; leave out the dataset and --out, or leave out --list.")
        return list_datasets()
    if dataset is None:
        raise SettingsError("no dataset is given; expected one of those that `neurotome describe --list` shows.")
    check_augment(augment)
    if out is not None:
        read = [] if isinstance(dataset, Dataset) else [Path(dataset, name) for name in ("images", "labels", "dataset.yaml")]
        plan_outputs([out / "statistics.json", *(out / f"{name}.png" for name in PICTURES)], inputs=read, existing="replace")
    opened = open_dataset(dataset)
    classes = opened.classes.with_palette(palette)
    statistics = measure_dataset(opened)
    if opened.splits.get("train"):
        try:
            list_seen(opened, count_slices(opened).sum(axis=0))
        except DatasetError as error:  # nothing can be trained on it, but it can be looked at
            warnings.warn(str(error), stacklevel=2)
    if out is None:
        return statistics

    from neurotome import figures

    samples = [
        (cutout.name if cutout.volume.shape[0] == 1 else f"{cutout.name}, z {z}", to_display(grey), labels)
        for cutout, z in choose_slices(opened, SAMPLES)
        for grey, labels in [_crop(cutout, z, LARGEST)]
    ]
    pictures = {
        "samples": figures.plot_samples(samples, classes),
        "augmentation": figures.plot_augmentation(*draw_augmentation(opened, augment, seed), classes),
        "class_shares": figures.plot_class_shares(statistics, classes),
        **{f"histograms_{split}": figures.plot_histograms(statistics, split, classes) for split in statistics["splits"]},
    }
    write_json(out / "statistics.json", statistics)
    for name, picture in pictures.items():
        figures.save_figure(picture, out / f"{name}.png")
    return statistics


def choose_slices(dataset: Dataset, count: int) -> list[tuple[Cutout, int]]:
    """Returns cutout and z of at most `count` slices, evenly spread over the first split that has images."""
    every = [(cutout, z) for cutout in _first_split(dataset) for z in range(cutout.volume.shape[0])]
    count = min(count, len(every))
    return [every[(2 * i + 1) * len(every) // (2 * count)] for i in range(count)]


def draw_augmentation(dataset: Dataset, settings: AugmentSettings, seed: int) -> tuple[Sample, list[Sample]]:
    """Returns a patch, the middle of a slice, as it is and after each of `DRAWS` draws of the augmentation.

    Grey values (y, x) are uint8 on one common scale, labels (y, x) uint8 with the ignore value where a pixel was invented.
    """
    import torch

    cutout, z = choose_slices(dataset, 1)[0]
    grey, labels = _crop(cutout, z, min(AUGMENTED, *cutout.volume.shape[1:]))
    volumes = [cutout.volume for cutout in _first_split(dataset)]
    shared = len({volume.data.dtype for volume in volumes}) == 1
    scale = fit_normalization(volumes, "dataset" if shared else "image").scale_for(cutout.volume)
    # The patch's own percentiles for all pictures, so that brightness and contrast can be compared.
    low, high = (0.0, 255.0) if grey.dtype == np.uint8 else np.percentile(grey, (0.5, 99.5)).tolist()
    images = torch.from_numpy(scale.apply(grey)).expand(DRAWS, 1, -1, -1).contiguous()
    truth = torch.from_numpy(labels).expand(DRAWS, -1, -1).contiguous()
    generator = torch.Generator().manual_seed(seed)
    moved, moved_labels = transform(images, truth, settings, dataset.classes.ignore, generator)
    restored = moved[:, 0].numpy() * np.float32(scale.std) + np.float32(scale.mean)
    after = [(to_display(g, low, high), t) for g, t in zip(restored, moved_labels.numpy(), strict=True)]
    return (to_display(grey, low, high), labels), after


def _first_split(dataset: Dataset) -> tuple[Cutout, ...]:
    return next(cutouts for cutouts in dataset.splits.values() if cutouts)


def _crop(cutout: Cutout, z: int, largest: int) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Returns grey values and labels of the middle of a slice, at most `largest` pixels along an axis."""
    edges = ((size, min(size, largest)) for size in cutout.volume.shape[1:])
    rows, columns = (slice((size - edge) // 2, (size + edge) // 2) for size, edge in edges)
    return np.asarray(cutout.volume.data[z, rows, columns]), cutout.read_labels(z, rows, columns)
