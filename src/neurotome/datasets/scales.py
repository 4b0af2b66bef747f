"""On which grey scale the images of a dataset are learned from and scored: one, where they share it."""

from __future__ import annotations

import dataclasses

from neurotome.datasets.base import Dataset
from neurotome.normalize import Normalization
from neurotome.shared_scale import DatasetScales


def scale_dataset(normalization: Normalization, dataset: Dataset, split: str = "train") -> DatasetScales:
    """Measures the grey scale of a split together with those of train and val, by which a network is trained.

    Cutouts that are made while a network trains differ in their grey scale on purpose, so each keeps its own.
    """
    if dataset.source is not None:
        return DatasetScales(dataclasses.replace(normalization, reference=None), [])
    names = dict.fromkeys(("train", "val", split))
    return DatasetScales(normalization, [c.volume for name in names for c in dataset.splits.get(name, ())])
