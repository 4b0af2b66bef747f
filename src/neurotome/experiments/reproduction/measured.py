"""What the runs of a grid folder have measured, by recipe and label."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from neurotome.errors import RunError
from neurotome.experiments.grids.grid import list_failures, open_grid
from neurotome.experiments.grids.plan import PlannedRun
from neurotome.runs import Run
from neurotome.statistics import Difference, Estimate, compare_pairs, estimate_all
from neurotome.training.recipe import Recipe

T = TypeVar("T")
Key = tuple[int, int | None]
"""Seed and fold."""

REPORTED = "as-reported"
"""The recipe whose numbers printed ones are compared with."""


@dataclass(frozen=True)
class Method:
    """The runs of one method: equal settings, by seed and fold."""

    name: str
    recipe: str
    label: str
    kind: str
    runs: Mapping[Key, tuple[PlannedRun, Run]]

    @cached_property
    def training(self) -> dict[Key, dict[str, Any]]:
        """What training.json says of each run that has one."""
        return _keep({key: _read(run.read_training) for key, (_, run) in self.runs.items()})

    @property
    def first_run(self) -> Run:
        """The first of its runs."""
        return next(iter(self.runs.values()))[1]

    def build(self) -> Recipe:
        """Returns the settings of a network."""
        built = next(iter(self.runs.values()))[0].build()
        assert isinstance(built, Recipe)
        return built

    def list_environments(self) -> list[dict[str, Any]]:
        """Returns versions, machine and command of each run that has begun."""
        return [found for _, run in self.runs.values() if (found := _read(run.read_environment)) is not None]

    @cached_property
    def _scores(self) -> dict[str, dict[Key, dict[str, Any]]]:
        return {}

    @cached_property
    def _estimates(self) -> dict[str, dict[str, Estimate]]:
        return {}

    def read_scores(self, split: str) -> dict[Key, dict[str, Any]]:
        """Returns the scores of a split of each run that has them."""
        if split not in self._scores:
            read = {key: _read(partial(run.read_scores, split)) for key, (_, run) in self.runs.items()}
            self._scores[split] = _keep(read)
        return self._scores[split]

    def estimate(self, split: str, path: str) -> Estimate | None:
        """Returns a score, a dotted path in scores/<split>.json, with its interval; None if it was not run.

        A class that the data lack has no value.
        """
        runs = list(self.read_scores(split).values())
        if not runs:
            return None
        if split not in self._estimates:
            groups = ("macro", "weighted", *(f"per_class.{name}" for name in runs[0]["classes"]))
            paths = [f"{group}.{key}" for group in groups for key in ("precision", "recall", "f1")]
            self._estimates[split] = estimate_all(runs, paths)  # from the same draws, which take the time
        return self._estimates[split].get(path) or Estimate(None, None, None, len(runs), 0, "")

    def mean(self, key: str) -> Estimate | None:
        """Returns the mean of what training.json says over the runs, low and high where there are several."""
        values = [float(summary[key]) for summary in self.training.values() if summary.get(key) is not None]
        if not values:
            return None
        low, high = (min(values), max(values)) if len(values) > 1 else (None, None)
        return Estimate(sum(values) / len(values), low, high, len(values), 0, "")


class Measured:
    """A grid folder: its plan, methods and failures; what is damaged counts as not run, with a note.

    Raises:
        RunError: The folder holds no grid.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plan = open_grid(folder)
        self.failures = list_failures(folder)
        found: dict[str, dict[Key, tuple[PlannedRun, Run]]] = {}
        for run in self.plan.runs:
            found.setdefault(run.method, {})[(run.seed, run.fold)] = (run, Run(folder / "runs" / run.name))
        self.methods = {}
        for name, runs in found.items():
            first = next(iter(runs.values()))[0]
            self.methods[name] = Method(name, first.recipe, first.label, first.kind, runs)

    @property
    def recipes(self) -> tuple[str, ...]:
        """The recipes of networks, in the order of the plan; the report's own first."""
        names = dict.fromkeys(method.recipe for method in self.methods.values() if method.kind == "network")
        return tuple(sorted(names or [REPORTED], key=lambda name: name != REPORTED))

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the runs that have not the scores that they are to have."""
        return tuple(
            run.name
            for method in self.methods.values()
            for key, (run, _) in method.runs.items()
            if any(key not in method.read_scores(split) for split in run.splits)
        )

    def find(self, recipe: str, label: str, network_only: bool = False) -> Method | None:
        """Returns a method by recipe and label; with `network_only` the one of this network with the recipe's own loss."""
        own = "-".join(label.split("-")[:2])
        for name in (own, label) if network_only else (label,):
            if (method := self.methods.get(f"{recipe}/{name}")) is not None:
                return method
        return None

    def first_scores(self, split: str = "test") -> dict[str, Any] | None:
        """Returns the scores of any run, which say what classes and images there are."""
        return next((scores for method in self.methods.values() for scores in method.read_scores(split).values()), None)


def compare_methods(pairs: Mapping[str, tuple[Method, Method]], split: str = "test") -> dict[str, Difference]:
    """Returns macro F1 of the first minus the second method for each pair, on the same slices, seeds and folds.

    Pairs of which either was not run are left out. p-values are corrected for all pairs together.
    """
    ready = {}
    for name, (first, second) in pairs.items():
        ours, theirs = first.read_scores(split), second.read_scores(split)
        if shared := [key for key in ours if key in theirs]:
            ready[name] = ([ours[key] for key in shared], [theirs[key] for key in shared])
    return compare_pairs(ready) if ready else {}


def _read(read: Callable[[], T | None]) -> T | None:
    try:
        return read()
    except RunError as error:
        warnings.warn(str(error), stacklevel=2)
        return None


def _keep(values: Mapping[Key, T | None]) -> dict[Key, T]:
    return {key: value for key, value in values.items() if value is not None}
