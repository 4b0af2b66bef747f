"""Slices that pictures show: spread over a split or chosen by number, as they are, augmented, or as a run labels them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neurotome.augment import AugmentSettings
from neurotome.augment import augment as transform
from neurotome.classes import ClassSet
from neurotome.datasets.base import Cutout, Dataset
from neurotome.errors import SettingsError
from neurotome.normalize import Normalization, fit_normalization
from neurotome.report.slides import load_slides, spread
from neurotome.runs import Run
from neurotome.training.recipe import Recipe
from neurotome.volume import to_display

if TYPE_CHECKING:
    from torch import Generator

    from neurotome.figures import Figure

Sample = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Grey values and labels of a slice, each (y, x)."""

LARGEST = 1024  # pixels along an axis that a picture shows: the middle of larger slices
AUGMENTED = 256  # pixels of the patch that is augmented, as large as a usual training patch

TRAIN_SLICES = (0, 200, 800, 1000)
"""Slices of the split train in the founding report's Figures 1 and 3."""

TEST_SLICES = (0, 50, 100, 150, 199)
"""Slices of the split test in its Figure 5."""


class Place(NamedTuple):
    """A slice of a cutout, and how pictures call it."""

    title: str
    cutout: Cutout
    z: int


def spread_slices(dataset: Dataset, count: int) -> list[Place]:
    """Returns at most `count` slices, evenly spread over the first split that has images."""
    every = [(cutout, z) for cutout in first_split(dataset) for z in range(cutout.volume.shape[0])]
    count = min(count, len(every))
    chosen = [every[(2 * i + 1) * len(every) // (2 * count)] for i in range(count)]
    return [Place(_say_place(cutout, z), cutout, z) for cutout, z in chosen]


def pick_slices(cutouts: Sequence[Cutout], numbers: Sequence[int]) -> list[Place]:
    """Returns slices by their number, counted from 0 through all cutouts of a split, one after the other.

    Raises:
        SettingsError: There is no slice of such a number.
    """
    every = [(cutout, z) for cutout in cutouts for z in range(cutout.volume.shape[0])]
    beyond = [number for number in numbers if not 0 <= number < len(every)]
    if beyond:
        raise SettingsError(
            f"found no slice {', '.join(map(str, beyond))}; expected numbers from 0 to {len(every) - 1}, counted "
            "through the images of the split one after the other."
        )
    return [Place(f"slice {number}: {_say_place(*every[number])}", *every[number]) for number in numbers]


def pick_or_spread(cutouts: Sequence[Cutout], numbers: Sequence[int]) -> list[Place]:
    """Returns slices by their number, or as many evenly spread ones where a split has not all of them."""
    total = sum(cutout.volume.shape[0] for cutout in cutouts)
    return pick_slices(cutouts, numbers if max(numbers) < total else spread(range(total), len(numbers)))


def draw_samples(dataset: Dataset, classes: ClassSet, split: str = "train", numbers: Sequence[int] = TRAIN_SLICES) -> Figure:
    """Draws slices with their labels laid over them below: the founding report's Figure 1."""
    from neurotome import figures

    return figures.plot_samples(list_samples(pick_or_spread(dataset.split(split), numbers)), classes)


def draw_augmented(
    dataset: Dataset,
    classes: ClassSet,
    recipes: Mapping[str, Recipe],
    split: str = "train",
    numbers: Sequence[int] = TRAIN_SLICES,
    seed: int = 0,
) -> Figure:
    """Draws slices as they are and as the augmentation of each recipe changes them: the founding report's Figure 3."""
    from neurotome import figures

    places = pick_or_spread(dataset.split(split), numbers)
    return figures.plot_augmented(*list_augmented(dataset, places, recipes, seed), classes)


def draw_predictions(
    run: Run, dataset: Dataset, classes: ClassSet, split: str = "test", numbers: Sequence[int] = TEST_SLICES
) -> Figure:
    """Draws slices, their labels and what a run predicted of them: the founding report's Figure 5.

    Raises:
        RunError: The run has no predictions of this split, or they are not of these images.
    """
    from neurotome import figures

    places = pick_or_spread(dataset.split(split), numbers)
    names = [cutout.slice_names[z] for _, cutout, z in places]
    slides = load_slides(run, dataset, split, [(name, math.nan) for name in names])
    examples = [
        figures.Example(title, slide.grey, slide.truth, slide.predicted)
        for (title, *_), slide in zip(places, slides, strict=True)
    ]
    return figures.plot_examples(examples, classes)


def list_samples(places: Sequence[Place]) -> list[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]]:
    """Returns title, grey values and labels of slices, ready to be drawn."""
    cut = [(title, *_crop(cutout, z, LARGEST)) for title, cutout, z in places]
    return [(title, to_display(grey), labels) for title, grey, labels in cut]


def list_augmented(
    dataset: Dataset, places: Sequence[Place], recipes: Mapping[str, Recipe], seed: int
) -> tuple[list[tuple[str, Sample, list[Sample]]], list[str]]:
    """Returns title, sample and augmented samples of slices, one per recipe, and the recipes' names."""
    import torch

    rows = []
    scales = {name: fit_scale(dataset, recipe) for name, recipe in recipes.items()}
    for number, (title, cutout, z) in enumerate(places):
        after = []
        for name, recipe in recipes.items():
            generator = torch.Generator().manual_seed(seed + number)
            before, drawn = augment_slice(cutout, z, recipe.augment, scales[name], dataset.classes.ignore, generator, 1)
            after += drawn
        rows.append((title, before, after))
    return rows, list(recipes)


def fit_scale(dataset: Dataset, recipe: Recipe) -> Normalization:
    """Returns how a recipe scales the grey values of the first split, on which its augmentation works."""
    volumes = [cutout.volume for cutout in first_split(dataset)]
    shared = len({volume.data.dtype for volume in volumes}) == 1
    mode = recipe.train.normalization
    return fit_normalization(volumes, ("dataset" if shared else "image") if mode == "auto" else mode)


def augment_slice(
    cutout: Cutout,
    z: int,
    settings: AugmentSettings,
    normalization: Normalization,
    ignore: int,
    generator: Generator,
    draws: int,
) -> tuple[Sample, list[Sample]]:
    """Returns the middle of a slice as it is and after each of some draws of the augmentation.

    Grey values (y, x) are uint8 on one common scale, labels (y, x) uint8 with the ignore value where a pixel was invented.
    """
    import torch

    grey, labels = _crop(cutout, z, min(AUGMENTED, *cutout.volume.shape[1:]))
    scale = normalization.scale_for(cutout.volume)
    # The patch's own percentiles for all pictures, so that brightness and contrast can be compared.
    low, high = (0.0, 255.0) if grey.dtype == np.uint8 else np.percentile(grey, (0.5, 99.5)).tolist()
    images = torch.from_numpy(scale.apply(grey)).expand(draws, 1, -1, -1).contiguous()
    truth = torch.from_numpy(labels).expand(draws, -1, -1).contiguous()
    moved, moved_labels = transform(images, truth, settings, ignore, generator)
    restored = moved[:, 0].numpy() * np.float32(scale.std) + np.float32(scale.mean)
    after = [(to_display(g, low, high), t) for g, t in zip(restored, moved_labels.numpy(), strict=True)]
    return (to_display(grey, low, high), labels), after


def first_split(dataset: Dataset) -> tuple[Cutout, ...]:
    """Returns the cutouts of the first split that has images."""
    return next(cutouts for cutouts in dataset.splits.values() if cutouts)


def _say_place(cutout: Cutout, z: int) -> str:
    return cutout.name if cutout.volume.shape[0] == 1 else f"{cutout.name}, z {cutout.volume.numbers[z]}"


def _crop(cutout: Cutout, z: int, largest: int) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Returns grey values and labels of the middle of a slice, at most `largest` pixels along an axis."""
    edges = ((size, min(size, largest)) for size in cutout.volume.shape[1:])
    rows, columns = (slice((size - edge) // 2, (size + edge) // 2) for size, edge in edges)
    return np.asarray(cutout.volume.data[z, rows, columns]), cutout.read_labels(z, rows, columns)
