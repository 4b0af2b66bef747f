"""Folds: a dataset divided anew for cross-validation, so that every annotated voxel is in the split test of one fold."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from neurotome.datasets.base import SPLITS, Cutout, Dataset
from neurotome.datasets.leaks import check_leaks, choose_gap
from neurotome.datasets.splits import Entry, count_up
from neurotome.datasets.statistics import list_absent
from neurotome.errors import DatasetError, SettingsError

Part = list[Entry]
"""What one fold tests: whole images, or a block of slices of each."""


def make_fold(
    dataset: Dataset, fold: int, folds: int, gap: int | None = None, groups: Mapping[str, str] | None = None
) -> Dataset:
    """Returns a dataset whose split test is one part of the images, val the next, and train the others.

    What is kept together: the images of a group, where there are groups; otherwise whole images in the order of their
    names, where there are as many as folds; otherwise the slices of a block, for each image is cut along z into blocks with
    about as many annotated slices each. Then the slices of train that are next to test or val are left out.

    Args:
        dataset: One whose splits nobody has stated.
        fold: Which part is test, from 0.
        folds: Number of parts, 3 or more.
        gap: Slices of a stack that are left out of train on each side of test and val; by default 5 % of the stack, but at
            least 1 and at most 8.
        groups: Group (animal, region) of each image by name; the dataset's own if not given.

    Raises:
        SettingsError: A number is impossible, or there is a gap although no stack is cut.
        DatasetError: The splits are fixed, or there are too few groups, images or slices.
    """
    if not 0 <= fold < folds:
        raise SettingsError(f"found fold {fold}; expected one from 0 to {folds - 1}.")
    return make_folds(dataset, folds, gap, groups)[fold]


def make_folds(
    dataset: Dataset, folds: int, gap: int | None = None, groups: Mapping[str, str] | None = None
) -> list[Dataset]:
    """Returns what `make_fold` does, for every fold."""
    if folds < 3:
        raise SettingsError(
            f"found {folds} folds; expected 3 or more: one part is tested, one chooses the best epoch, the others train."
        )
    if gap is not None and gap < 0:
        raise SettingsError(f"found a gap of {gap} slices; expected 0 or more.")
    if not dataset.wholes:
        raise DatasetError(
            f"{dataset.name}: its splits are fixed, so it is not divided into folds. Remove splits from dataset.yaml if it "
            "is a folder of yours; the splits of other datasets belong to them, so that results can be compared."
        )
    groups = dataset.groups if groups is None else groups
    labelled = [whole for whole in dataset.wholes if whole.label_counts[:, : len(dataset.classes)].any()]
    wholes = {whole.name: whole for whole in sorted(labelled, key=lambda whole: count_up(whole.name))}
    if groups or len(wholes) >= folds:
        if gap is not None:
            raise SettingsError("a gap is given, but folds are whole images here, and no stack is cut. Leave out the gap.")
        parts = _deal_groups(dataset.name, wholes, groups, folds) if groups else _deal_images(list(wholes), folds)
        trained = [[entry for k in _others(fold, folds) for entry in parts[k]] for fold in range(folds)]
    else:
        blocks = [_cut_blocks(dataset, whole, folds) for whole in wholes.values()]
        parts = [[_enter(name, ends[k]) for name, ends in zip(wholes, blocks, strict=True)] for k in range(folds)]
        gaps = [choose_gap(whole.volume.stack.shape[0]) if gap is None else gap for whole in wholes.values()]
        trained = [
            [
                entry
                for whole, ends, width in zip(wholes.values(), blocks, gaps, strict=True)
                for entry in _leave_gap(whole, ends, fold, width)
            ]
            for fold in range(folds)
        ]

    def cut(entries: Part) -> tuple[Cutout, ...]:
        return tuple(entry.cut(wholes[entry.image_id], Path(dataset.name)) for entry in entries)

    made = []
    for fold in range(folds):
        listed = (trained[fold], parts[(fold + 1) % folds], parts[fold])
        splits = {split: cut(entries) for split, entries in zip(SPLITS, listed, strict=True)}
        if not any(cutout.label_counts[:, : len(dataset.classes)].any() for cutout in splits["train"]):
            raise DatasetError(
                f"{dataset.name}: between test, val and their gaps no annotated slice is left to train on in fold {fold}. "
                "Make more folds, or a smaller gap."
            )
        made.append(dataclasses.replace(dataset, splits=splits, wholes=(), groups=groups))
    return made


def check_folds(dataset: Dataset, folds: int, gap: int | None = None) -> None:
    """Checks that folds can be made, and warns once where some lack a class, and once where some leak.

    Raises:
        NeurotomeError: See `make_fold`.
    """
    made = make_folds(dataset, folds, gap)
    if leaking := [sentences for fold in made if (sentences := check_leaks(fold))]:
        example = max(itertools.chain(*leaking), key=lambda sentence: "Scores of test" in sentence)
        warnings.warn(f"{dataset.name}: {len(leaking)} of {folds} folds leak, such as: {example}", stacklevel=2)
    lacking = [
        f"fold {number} has none of {', '.join(absent)} in {split}"
        for number, fold in enumerate(made)
        for split, absent in list_absent(fold).items()
    ]
    if lacking:
        warnings.warn(
            f"{dataset.name}: {'; '.join(lacking)}. A class that is not trained on is never predicted; scores over all "
            "folds have it. Make other folds or groups, or annotate more of it.",
            stacklevel=2,
        )


def _others(fold: int, folds: int) -> list[int]:
    """Returns the parts that a fold trains on."""
    return [k for k in range(folds) if k not in (fold, (fold + 1) % folds)]


def _enter(name: str, ends: tuple[int, int]) -> Entry:
    return Entry(name, {"z": ends})


def _deal_images(names: Sequence[str], folds: int) -> list[Part]:
    """Returns parts of images that follow each other, since neighbours may be sections of one block of tissue."""
    starts = [len(names) * k // folds for k in range(folds + 1)]
    return [[Entry(name) for name in names[start:stop]] for start, stop in itertools.pairwise(starts)]


def _deal_groups(where: str, wholes: Mapping[str, Cutout], groups: Mapping[str, str], folds: int) -> list[Part]:
    """Returns parts of whole groups, the largest dealt first, each to the part that has fewest voxels."""
    members: dict[str, list[str]] = {}
    for name in wholes:
        if name not in groups:
            raise DatasetError(f"{where}: the image {name} has no group; expected one of each. Add it to groups.")
        members.setdefault(groups[name], []).append(name)
    if len(members) < folds:
        raise DatasetError(
            f"{where}: found {len(members)} groups of annotated images ({', '.join(members)}); expected {folds} or more, "
            "one for each fold. Make fewer folds, or remove groups from dataset.yaml if they need not stay together."
        )
    voxels = {group: sum(wholes[name].volume.data.size for name in names) for group, names in members.items()}
    parts: list[Part] = [[] for _ in range(folds)]
    filled = [0] * folds
    for group in sorted(members, key=lambda group: (-voxels[group], group)):
        emptiest = filled.index(min(filled))
        parts[emptiest] += [Entry(name) for name in members[group]]
        filled[emptiest] += voxels[group]
    return parts


def _cut_blocks(dataset: Dataset, whole: Cutout, folds: int) -> list[tuple[int, int]]:
    """Returns first slice and stop of the blocks of a stack, which have about as many annotated slices each."""
    labelled = np.flatnonzero(whole.label_counts[:, : len(dataset.classes)].any(axis=1))
    if len(labelled) < folds:
        raise DatasetError(
            f"{dataset.name}: there are fewer images than folds ({len(dataset.wholes)} and {folds}), so they are cut along "
            f"z, but {whole.name} has {len(labelled)} annotated slices; expected {folds} or more. Make fewer folds."
        )
    numbers = whole.volume.numbers[labelled]
    starts = [0, *(int(numbers[len(labelled) * k // folds]) for k in range(1, folds)), whole.volume.stack.shape[0]]
    return list(itertools.pairwise(starts))


def _leave_gap(whole: Cutout, blocks: Sequence[tuple[int, int]], fold: int, gap: int) -> list[Entry]:
    """Returns the runs of slices of a stack on which a fold trains."""
    kept = np.ones(whole.volume.stack.shape[0], bool)
    for start, stop in (blocks[fold], blocks[(fold + 1) % len(blocks)]):
        kept[max(0, start - gap) : stop + gap] = False
    steps = np.flatnonzero(np.diff(kept, prepend=False, append=False)).tolist()
    runs = zip(steps[::2], steps[1::2], strict=True)
    return [_enter(whole.name, ends) for ends in runs if any(ends[0] <= z < ends[1] for z in whole.volume.numbers)]
