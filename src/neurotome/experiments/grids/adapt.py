"""adapt_plan: what a grid asks for that this data or this machine cannot give, and what stands in for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from neurotome.datasets.base import Dataset
from neurotome.datasets.mtneuro.variants import FOUR_CLASSES
from neurotome.errors import ModelError
from neurotome.experiments.grids.plan import Plan, PlannedRun
from neurotome.models.networks import ModelSettings, build_network

REPORTED_WEIGHTS = [0.1, 0.3, 0.3, 0.2]
"""Of MTNeuro's four classes in the founding report's listing."""


def adapt_plan(plan: Plan, dataset: Dataset) -> Plan:
    """Returns a plan that can run on a dataset, with a sentence in `scaled` for each change.

    Patches larger than every image become as large as fit. The class weights of the founding report's listing are for
    MTNeuro's four classes, and `balanced` stands in for them on others. Where the ImageNet weights of one encoder cannot be
    had, no network begins with any, so that all are compared alike.
    """
    runs, notes = list(plan.runs), list(plan.scaled)
    networks = [run for run in runs if run.kind == "network"]
    edge = max((min(cutout.volume.shape[1:]) for cutout in dataset.splits.get("train", ())), default=0)
    largest = max(8, edge // 32 * 32)
    asked = {run.settings["sample"]["patch"] for run in networks} - {"auto"}
    if any(patch > edge for patch in asked):
        runs = [_limit_patch(run, largest, edge) for run in runs]
        notes.append(f"Patches of {largest} x {largest} pixels at most, because no training image is larger.")
    if dataset.classes.names != FOUR_CLASSES.names and any(_has_listed_weights(run) for run in networks):
        runs = [change(run, {"loss": {"class_weights": "balanced"}}) if _has_listed_weights(run) else run for run in runs]
        notes.append("Class weights by pixel counts, because those of the report are for MTNeuro's four classes.")
    if not _has_weights(run.settings["model"] for run in networks):
        runs = [change(run, {"model": {"encoder_weights": "none"}}) if run.kind == "network" else run for run in runs]
        notes.append("All networks begin with random weights, because the ImageNet weights cannot be downloaded here.")
    return dataclasses.replace(plan, runs=tuple(runs), scaled=tuple(notes))


def change(run: PlannedRun, settings: Mapping[str, Mapping[str, Any]], **fields: Any) -> PlannedRun:
    """Returns a run with other settings in some groups, and other fields."""
    groups = {group: {**run.settings[group], **values} for group, values in settings.items()}
    return dataclasses.replace(run, settings={**run.settings, **groups}, **fields)


def _limit_patch(run: PlannedRun, largest: int, edge: int) -> PlannedRun:
    if run.kind == "pixels" or run.settings["sample"]["patch"] == "auto" or run.settings["sample"]["patch"] <= edge:
        return run
    return change(run, {"sample": {"patch": largest}})


def _has_listed_weights(run: PlannedRun) -> bool:
    return run.kind == "network" and list(run.settings["loss"]["class_weights"]) == REPORTED_WEIGHTS


def _has_weights(models: Iterable[Mapping[str, Any]]) -> bool:
    """Says whether the ImageNet weights that networks are to begin with are here or can be downloaded."""
    try:
        for encoder in sorted({model["encoder"] for model in models if model["encoder_weights"] == "imagenet"}):
            build_network(ModelSettings("unet", encoder, "imagenet"), 2)
    except ModelError:
        return False
    return True
