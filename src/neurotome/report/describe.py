"""describe: what is in a dataset, as numbers and pictures, before anything is trained on it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from neurotome.atomic import write_json
from neurotome.augment import check_augment
from neurotome.classes import Palette
from neurotome.datasets import list_datasets, open_dataset
from neurotome.datasets.base import SPLITS, Dataset, DatasetOrName
from neurotome.datasets.statistics import Statistics, count_slices, list_seen, measure_dataset
from neurotome.errors import DatasetError, SettingsError
from neurotome.outputs import check_own, plan_outputs
from neurotome.report.chosen import (
    Sample,
    augment_slice,
    first_split,
    fit_scale,
    list_augmented,
    list_samples,
    pick_slices,
    spread_slices,
)
from neurotome.training.recipe import Recipe

SAMPLES = 4
DRAWS = 6
PICTURES = ("samples", "augmentation", "class_shares", *(f"histograms_{split}" for split in SPLITS))


def describe(
    dataset: DatasetOrName | None = None,
    *,
    known: Annotated[bool, Parameter(name="--list", negative=())] = False,
    out: Path | None = None,
    palette: Palette = "colour-blind-safe",
    slices: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (),
    recipe: Annotated[Recipe, Parameter(name="*", show=False)] = Recipe(),
    seed: int = 0,
) -> Statistics | dict[str, str]:
    """Measures a dataset, and draws samples, augmentation, grey values and class shares.

    Args:
        dataset: Folder with dataset.yaml, mtneuro:FOLDER, mtneuro:FOLDER@VARIANT, or phantom.
        known: Instead lists every kind of dataset and every variant, a line each; no data are needed.
        out: Folder that gets statistics.json and the pictures; without it nothing is written.
        palette: Colours of the classes.
        slices: Slices of the first split that are shown, as they are and augmented, counted from 0 through its images one
            after the other, such as 0 200 800 1000; without them a few, evenly spread.
        recipe: Settings of `train`, whose augmentation is shown.
        seed: Seed of the augmentation, which is that of train's settings: --config FILE, --augment.NAME.

    Returns:
        The statistics, see `measure_dataset`; with `known` the names of all datasets that can be opened, with what each is.

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
    check_augment(recipe.augment)
    if out is not None:
        read = [] if isinstance(dataset, Dataset) else [Path(dataset, name) for name in ("images", "labels", "dataset.yaml")]
        written = [out / "statistics.json", *(out / f"{name}.png" for name in PICTURES)]
        plan_outputs(written, inputs=read, existing="replace")
        check_own(written, written[0], ("classes", "splits"))
    opened = open_dataset(dataset)
    classes = opened.classes.with_palette(palette)
    statistics = measure_dataset(opened)
    places = pick_slices(first_split(opened), slices)
    if opened.splits.get("train"):
        try:
            list_seen(opened, count_slices(opened).sum(axis=0))
        except DatasetError as error:  # nothing can be trained on it, but it can be looked at
            warnings.warn(str(error), stacklevel=2)
    if out is None:
        return statistics

    from neurotome import figures

    if places:
        augmentation = figures.plot_augmented(*list_augmented(opened, places, {"Augmented": recipe}, seed), classes)
    else:
        augmentation = figures.plot_augmentation(*draw_augmentation(opened, recipe, seed), classes)
    pictures = {
        "samples": figures.plot_samples(list_samples(places or spread_slices(opened, SAMPLES)), classes),
        "augmentation": augmentation,
        "class_shares": figures.plot_class_shares(statistics, classes),
        **{f"histograms_{split}": figures.plot_histograms(statistics, split, classes) for split in statistics["splits"]},
    }
    write_json(out / "statistics.json", statistics)
    for name, picture in pictures.items():
        figures.save_figure(picture, out / f"{name}.png")
    return statistics


def draw_augmentation(dataset: Dataset, recipe: Recipe, seed: int) -> tuple[Sample, list[Sample]]:
    """Returns the middle of a middle slice as it is and after each of `DRAWS` draws of a recipe's augmentation."""
    import torch

    (_, cutout, z), generator = spread_slices(dataset, 1)[0], torch.Generator().manual_seed(seed)
    scale = fit_scale(dataset, recipe)
    return augment_slice(cutout, z, recipe.augment, scale, dataset.classes.ignore, generator, DRAWS)
