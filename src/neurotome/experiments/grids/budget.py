"""scale_plan: makes a grid fit a stated wall-clock time, every network with the same time to train."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from neurotome.datasets.base import Dataset
from neurotome.datasets.folds import make_fold
from neurotome.datasets.statistics import count_slices
from neurotome.errors import SettingsError
from neurotome.experiments.grids.adapt import change
from neurotome.experiments.grids.measure import (
    NetSpeed,
    PixelSpeed,
    count_pixels,
    fill_in,
    measure_all,
    measure_network,
    measure_pixels,
)
from neurotome.experiments.grids.plan import Plan, PlannedRun
from neurotome.models.networks import settle_network
from neurotome.pixels.importance import REPEATS
from neurotome.pixels.sample import limit_rows
from neurotome.progress import format_duration
from neurotome.tables import count
from neurotome.training.machine import choose_precision
from neurotome.training.recipe import Recipe

MEASURING = 0.05
"""Most of the budget that measuring takes."""

RESERVE = 0.1
"""Of the budget that nothing is planned for: others may use the machine."""

LEAST_STEPS = 40
"""Training steps that the slowest network must reach, else smaller batches and patches or fewer runs are taken."""

SMALL_BATCH, SMALL_PATCH = 8, 64
"""Below which batches and patches are not made smaller."""

VALIDATING = 0.1
"""Most of a network's time that validation takes."""

EPOCHS, EPOCH_S = 10, 20.0
"""Most epochs of a training that ends by time, and the least seconds of one: each writes a checkpoint."""

START_S, START_GPU_S = 2.0, 12.0
"""Seconds that a run's process takes to begin and to write its files; one that uses a GPU imports everything anew."""

PIXELS_SHARE, LEAST_PIXELS = 0.15, 1000
"""Most of the budget for pixel classifiers, and training pixels of a class below which they are not cut for it."""

Rung = tuple[int, int]
"""Patches per step, and their edge in pixels."""


@dataclass(frozen=True)
class Costs:
    """What runs take on this machine and data.

    Attributes:
        nets: Speeds of networks, by decoder and encoder.
        learners: Speeds of pixel classifiers, by learner and features.
        start: Seconds that a run's process takes to begin and to write its files.
    """

    nets: Mapping[str, NetSpeed]
    learners: Mapping[str, PixelSpeed]
    dataset: Dataset
    start: float

    def knows(self, run: PlannedRun) -> bool:
        """Says whether anything is known about what a run takes."""
        return _key(run) in (self.nets if run.kind == "network" else self.learners)

    def time_scoring(self, run: PlannedRun) -> float:
        """Returns the seconds to predict the splits that are scored."""
        speed = (self.nets if run.kind == "network" else self.learners)[_key(run)]
        return speed.predict * count_pixels(self.dataset, run.splits)

    def time_around(self, run: PlannedRun) -> float:
        """Returns the seconds of a network's run that are not steps: start, last validation, scoring."""
        return self.start + self.nets[_key(run)].prepare + self.time_validation(run) + self.time_scoring(run)

    def time_validation(self, run: PlannedRun) -> float:
        """Returns the seconds of one validation."""
        pixels, slices = count_pixels(self.dataset, ("val",)), _count_slices(self.dataset, "val")
        share = min(1.0, (run.settings["train"]["val_slices"] or slices) / slices) if slices else 0.0
        return self.nets[_key(run)].predict * pixels * share

    def time_step(self, run: PlannedRun) -> float:
        """Returns the seconds of a training step."""
        return self.nets[_key(run)].time_step(*_rung(run))

    def time_pixels(self, run: PlannedRun) -> float:
        """Returns the seconds of a pixel classifier's run: learning, importance of its features, scoring."""
        speed, classes = self.learners[_key(run)], len(self.dataset.classes)
        totals = count_slices(self.dataset).sum(axis=0)
        rows = int(limit_rows(totals, run.settings["pixels_per_class"]).sum())
        learning = speed.pixel * count_pixels(self.dataset, ("train", "val")) + speed.row * rows
        importance = REPEATS * 2_000 * classes * speed.classify
        return self.start + learning + importance + self.time_scoring(run)

    def count_steps(self, run: PlannedRun) -> int:
        """Returns the steps that a run's own settings ask for."""
        from neurotome.training.sampler import SampleSettings
        from neurotome.training.sizes import choose_steps

        train, (batch, patch) = run.settings["train"], _rung(run)
        sample = SampleSettings(patch, run.settings["sample"]["depth"], batch, run.settings["sample"]["order"])
        steps = choose_steps(self.dataset, sample) if train["steps_per_epoch"] == "auto" else train["steps_per_epoch"]
        return int(steps) * int(train["epochs"])


def scale_plan(plan: Plan, dataset: Dataset, seconds: float, device: str = "auto") -> Plan:
    """Makes a grid fit a wall-clock time; measures for at most 5 % of it, and says what it predicts.

    All networks get the same time to train, so that recipes are compared at equal time. Optional runs are left out, the
    last first, until the slowest network has enough steps; then batches and at last patches become smaller, for all
    networks of a recipe alike. A tenth of the time is kept in reserve.

    Args:
        plan: Every run can be trained on the dataset.
        dataset: What the grid will run on.
        seconds: Wall-clock time for all runs together, one after the other.
        device: Where to train.

    Returns:
        The plan with other settings and perhaps fewer runs; `scaled` says in sentences what was changed.

    Raises:
        SettingsError: The time is too short for a single step of every network.
    """
    began = time.monotonic()
    if plan.folds:
        dataset = make_fold(dataset, 0, plan.folds, plan.gap)
    asked = [_settle(run, dataset, device) for run in plan.runs]
    costs = measure_costs(asked, dataset, began + MEASURING * seconds)
    runs = [run for run in asked if costs.knows(run)]
    unknown = [run for run in asked if not costs.knows(run)]  # none of their kind can work, as their messages will say
    usable = (1 - RESERVE) * seconds - (time.monotonic() - began)
    unscaled = {run.name: _time_unscaled(run, costs) for run in runs}
    if sum(unscaled.values()) <= usable:
        _show_prediction(unscaled)
        return plan
    runs, notes = _score_less(runs, costs, usable)
    runs, more = _choose_runs(runs, costs, usable)
    notes += more
    each = _share(runs, costs, usable)
    slowest = max((costs.time_step(run) for run in runs if run.kind == "network"), default=0.0)
    fixed = _time_fixed(runs, costs)
    if each < slowest or fixed > usable:
        fixed += sum(2 * costs.time_step(run) for run in runs if run.kind == "network")
        needed = fixed / (1 - RESERVE - MEASURING)
        raise SettingsError(
            f"the budget is {format_duration(seconds)}; expected at least about {format_duration(1.1 * needed)}, in which "
            "every network would do a single step. Give more time, or a grid of fewer runs."
        )
    if math.isfinite(each):
        notes.append(
            f"Every network trains for {format_duration(each)} at most, instead of all its epochs, so that all are compared "
            "at equal time."
        )
    runs = [_limit(run, costs, each) if run.kind == "network" else run for run in runs]
    if any(run.settings["train"]["val_slices"] for run in runs if run.kind == "network"):
        notes.append("Some networks are validated on a few slices only; scores are always those of all slices.")
    predicted = {
        run.name: costs.time_around(run) + costs.time_step(run) + min(each, _time_steps(run, costs))
        if run.kind == "network"
        else costs.time_pixels(run)
        for run in runs
    }
    _show_prediction(predicted)
    return dataclasses.replace(plan, runs=(*runs, *unknown), scaled=(*plan.scaled, *notes))


def measure_costs(runs: Sequence[PlannedRun], dataset: Dataset, deadline: float) -> Costs:
    """Measures every distinct network and pixel classifier, those of runs that are always run first, until a deadline."""
    import torch

    from neurotome.models.net import choose_device

    networks, classifiers = dict[str, PlannedRun](), dict[str, PlannedRun]()
    for run in sorted(runs, key=lambda run: run.optional):
        (networks if run.kind == "network" else classifiers).setdefault(_key(run), run)
    learners = measure_all(classifiers, partial(measure_pixels, dataset), "measuring classifiers", deadline)
    nets = measure_all(networks, partial(measure_network, dataset), "measuring networks", deadline)
    torch.cuda.empty_cache()  # what was measured is gone, and the runs are other processes
    is_gpu = any(choose_device(run.settings["train"]["device"]).startswith("cuda") for run in networks.values())
    return Costs(fill_in(nets, networks), fill_in(learners, classifiers), dataset, START_GPU_S if is_gpu else START_S)


def _settle(run: PlannedRun, dataset: Dataset, device: str) -> PlannedRun:
    """Returns a network's run with its patches and its device decided."""
    if run.kind != "network":
        return run
    from neurotome.training.prepare import settle_sample

    recipe = run.build()
    assert isinstance(recipe, Recipe)
    dimensions = settle_network(recipe.model).dimensions
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the run itself says when patches are smaller than usual
        sample = settle_sample(recipe.sample, dataset, int(dimensions))
        settled = {"patch": sample.patch, "depth": sample.depth}
    return change(run, {"sample": settled, "train": {} if device == "auto" else {"device": device}})


def _key(run: PlannedRun) -> str:
    """Returns what runs of the same speed share."""
    settings = run.build()
    if not isinstance(settings, Recipe):
        return f"{settings.learner} on {settings.features}"
    net = settle_network(settings.model)
    volumes = f" 3D {net.reach_from} {settings.sample.depth}" if net.dimensions == 3 else ""
    same = f"{net.decoder} {net.encoder} {net.in_channels} {net.encoder_depth} {choose_precision(settings.train)}"
    return same + volumes


def _rung(run: PlannedRun) -> Rung:
    return run.settings["sample"]["batch"], run.settings["sample"]["patch"]


def _count_slices(dataset: Dataset, split: str) -> int:
    return sum(cutout.volume.shape[0] for cutout in dataset.splits.get(split, ()))


def _time_steps(run: PlannedRun, costs: Costs) -> float:
    return costs.count_steps(run) * costs.time_step(run)


def _time_unscaled(run: PlannedRun, costs: Costs) -> float:
    if run.kind == "pixels":
        return costs.time_pixels(run)
    validations = int(run.settings["train"]["epochs"]) * costs.time_validation(run)
    return _time_steps(run, costs) + costs.time_around(run) + validations


def _time_fixed(runs: Iterable[PlannedRun], costs: Costs) -> float:
    """Returns the seconds of all runs that do not depend on how long networks train."""
    return sum(costs.time_pixels(run) if run.kind == "pixels" else costs.time_around(run) for run in runs)


def _share(runs: Sequence[PlannedRun], costs: Costs, usable: float) -> float:
    """Returns the training time of each network: an equal share of what is left, less a step by which each may run over."""
    networks = [run for run in runs if run.kind == "network"]
    left = usable - _time_fixed(runs, costs) - sum(costs.time_step(run) for run in networks)
    return left / len(networks) if networks else math.inf


def _score_less(runs: list[PlannedRun], costs: Costs, usable: float) -> tuple[list[PlannedRun], list[str]]:
    """Leaves training images unscored, and lets classifiers learn fewer pixels, where these take too much of the time."""
    notes = []
    needed = [run for run in runs if run.optional == 0]
    if any("train" in run.splits for run in runs) and sum(map(costs.time_scoring, needed)) > usable / 4:
        kept = {run.name: tuple(split for split in run.splits if split != "train") for run in runs}
        runs = [dataclasses.replace(run, splits=kept[run.name] or run.splits) for run in runs]
        notes.append("Training images are not scored.")
    learners = [run for run in runs if run.kind == "pixels"]
    asked = max((run.settings["pixels_per_class"] or 1 << 30 for run in learners), default=0)
    limit = asked
    while limit > LEAST_PIXELS and sum(map(costs.time_pixels, learners)) > PIXELS_SHARE * usable:
        limit = max(LEAST_PIXELS, limit // 2)
        learners = [dataclasses.replace(r, settings={**r.settings, "pixels_per_class": limit}) for r in learners]
    if limit < asked:
        runs = [run for run in runs if run.kind == "network"] + learners
        notes.append(f"Pixel classifiers learn from {limit:,} pixels of each class.")
    return runs, notes


def _choose_runs(runs: list[PlannedRun], costs: Costs, usable: float) -> tuple[list[PlannedRun], list[str]]:
    """Returns the runs for which there is time, with their batches and patches, and what was changed.

    Only where the runs that are always run do not fit as they are, patches become smaller.
    """
    for level in sorted({run.optional for run in runs}, reverse=True):
        kept = [run for run in runs if run.optional <= level]
        smallest = {recipe: _list_rungs(kept, recipe)[:2] for recipe in _list_recipes(kept)}
        chosen, enough = _descend(kept, costs, usable, smallest)
        if enough:
            break
    if not enough:
        chosen, _ = _descend(kept, costs, usable, {recipe: _list_rungs(kept, recipe) for recipe in _list_recipes(kept)})
    notes = []
    names, methods = {run.name for run in kept}, {run.method for run in kept}
    dropped = [run for run in runs if run.name not in names]
    if dropped:
        parts = list(dict.fromkeys(run.method for run in dropped if run.method not in methods))
        again = sum(run.method in methods for run in dropped)
        parts += [count(again, "further seed")] if again else []
        notes.append(f"{len(dropped)} of {count(len(runs), 'run')} are left out, which are optional: {', '.join(parts)}.")
    for recipe in _list_recipes(kept):
        before, after = (next(_rung(r) for r in group if _is_of(r, recipe)) for group in (kept, chosen))
        if after[0] != before[0]:
            notes.append(
                f"Recipe {recipe}: {after[0]} patches per step instead of {before[0]}, so that the slowest network does "
                "more steps."
            )
        if after[1] != before[1]:
            notes.append(f"Recipe {recipe}: patches of {after[1]} x {after[1]} pixels instead of {before[1]} x {before[1]}.")
    return chosen, notes


def _descend(
    runs: list[PlannedRun], costs: Costs, usable: float, rungs: Mapping[str, list[Rung]]
) -> tuple[list[PlannedRun], bool]:
    """Makes the steps of recipes smaller until the slowest network of each does enough; says whether all do."""
    left = {recipe: list(ladder[1:]) for recipe, ladder in rungs.items()}
    while True:
        each = _share(runs, costs, usable)
        slow = {r.recipe for r in runs if r.kind == "network" and each < LEAST_STEPS * costs.time_step(r)}
        movable = [recipe for recipe in slow if left[recipe]]
        if not movable:
            return runs, not slow
        for recipe in movable:
            batch, patch = left[recipe].pop(0)
            runs = [_shrink(run, batch, patch) if _is_of(run, recipe) else run for run in runs]


def _shrink(run: PlannedRun, batch: int, patch: int) -> PlannedRun:
    own_batch, own_patch = _rung(run)
    return change(run, {"sample": {"batch": min(batch, own_batch), "patch": min(patch, own_patch)}})


def _list_recipes(runs: Iterable[PlannedRun]) -> list[str]:
    return list(dict.fromkeys(run.recipe for run in runs if run.kind == "network"))


def _is_of(run: PlannedRun, recipe: str) -> bool:
    return run.kind == "network" and run.recipe == recipe


def _list_rungs(runs: Iterable[PlannedRun], recipe: str) -> list[Rung]:
    """Returns the batches and patches of a recipe: as asked, then in batches of 8, then in ever smaller patches."""
    batch, patch = max(_rung(run) for run in runs if _is_of(run, recipe))
    rungs = [(batch, patch), (min(batch, SMALL_BATCH), patch)]
    while patch > SMALL_PATCH:
        patch = max(SMALL_PATCH, patch // 2 // 32 * 32)
        rungs.append((rungs[1][0], patch))
    return rungs


def _limit(run: PlannedRun, costs: Costs, seconds: float) -> PlannedRun:
    """Returns a network's run that ends by time, with as much validation as fits into a tenth of it."""
    train = run.settings["train"]
    limited: dict[str, Any] = {"max_time": f"{seconds:.1f}s"}
    own = run.build().train.max_seconds  # type: ignore[union-attr]  # a network's
    if own and own < seconds:
        limited["max_time"] = train["max_time"]
    steps = math.ceil(seconds / costs.time_step(run))
    asked = costs.count_steps(run)
    slices, each = _count_slices(costs.dataset, "val"), costs.time_validation(change(run, {"train": {"val_slices": 0}}))
    affordable = max(1, int(slices * VALIDATING / 2 * seconds / each)) if each else slices
    wanted = 1 if train["keep"] == "last" else train["val_slices"] or slices
    kept = min(wanted, affordable)
    limited["val_slices"] = 0 if kept >= slices else kept
    if asked > steps:
        cost = each * kept / slices if slices else 0.0
        often = int(min(VALIDATING * seconds / cost if cost else EPOCHS, seconds / EPOCH_S))
        epochs = max(1, min(EPOCHS, often, steps))
        limited["steps_per_epoch"] = math.ceil(steps / epochs)
        limited["epochs"] = math.ceil(asked / limited["steps_per_epoch"])
    return change(run, {"train": limited})


def _show_prediction(seconds: Mapping[str, float]) -> None:
    width = max(map(len, seconds), default=0)
    sys.stderr.writelines(f"predict: {name:<{width}}  {format_duration(each)}\n" for name, each in seconds.items())
    sys.stderr.write(f"predict: {count(len(seconds), 'run')}, {format_duration(sum(seconds.values()))}\n")
