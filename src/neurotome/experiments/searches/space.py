"""Search space: which settings are searched and what they may be; reads it, draws from it, applies what was drawn."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from neurotome.augment import scale_augment
from neurotome.documents import flatten
from neurotome.errors import SettingsError, show, unknown
from neurotome.experiments.grids.plan import build_settings
from neurotome.keywords import replace_settings
from neurotome.models.networks import find_encoder, import_smp
from neurotome.training.recipe import Recipe

if TYPE_CHECKING:
    from optuna.trial import Trial

STRENGTH = "augment.strength"
"""No setting of its own: the factor of `scale_augment`, by which all settings of augment are scaled."""

SCALES = ("log", "linear")
EXPECTED = "expected values to choose from, as in [cross_entropy, focal], or the ends of a range, as in [1e-4, 1e-2, log]"
LENGTHS = ("train.epochs", "train.max_time", "train.seed", "train.device")
"""Settings that cannot be searched: trials must cost the same and differ by more than luck."""

LOSSES = ("cross_entropy + dice", "cross_entropy", "focal", "focal + dice")
ENCODERS = ("resnet18", "resnet34", "efficientnet-b0")

Value = str | float | bool


@dataclass(frozen=True)
class Range:
    """A setting that may be any number from `low` to `high`; `whole` numbers only, drawn on a `log` scale."""

    low: float
    high: float
    log: bool
    whole: bool

    def holds(self, value: Any) -> bool:
        """Says whether a value is one of these."""
        return isinstance(value, (int, float)) and self.low <= value <= self.high

    def draw(self, trial: Trial, name: str) -> Value:
        """Returns a value for a trial, the same whenever it is asked for."""
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def to_json(self) -> list[str]:
        """Returns it as `read_space` takes it."""
        return [repr(self.low), repr(self.high), "log" if self.log else "linear"]


@dataclass(frozen=True)
class Choice:
    """A setting that may be one of some values."""

    values: tuple[Value, ...]

    def holds(self, value: Any) -> bool:
        """Says whether a value is one of these."""
        return value in self.values

    def draw(self, trial: Trial, name: str) -> Value:
        """Returns a value for a trial, the same whenever it is asked for."""
        return cast("Value", trial.suggest_categorical(name, self.values))

    def to_json(self) -> list[str]:
        """Returns it as `read_space` takes it."""
        return [str(value) for value in self.values]


Space = Mapping[str, Range | Choice]
"""What each searched setting may be, by dotted name."""


def choose_space(base: Recipe) -> dict[str, list[str]]:
    """Returns what is searched where nobody says: around settled settings, what acts most and costs no more time."""
    rate = float(base.train.learning_rate)
    space: dict[str, list[str]] = {
        "train.learning_rate": [f"{rate / 10:.6g}", f"{rate * 10:.6g}", "log"],
        "loss.terms": list(dict.fromkeys((base.loss.terms, *LOSSES))),
        "loss.class_weights": ["none", "balanced"],
    }
    if base.augment.enabled:
        space[STRENGTH] = ["0.3", "3", "log"]
    if not base.init:  # else the network comes with the weights
        space["model.encoder"] = list(dict.fromkeys((base.model.encoder, *ENCODERS)))
    return space


def read_space(asked: Mapping[str, Any], base: Recipe) -> Space:
    """Reads what is to be searched.

    Args:
        asked: By dotted name, or nested, a list: values to choose from, or two numbers and `log` or `linear`. Numbers may be
            text.
        base: What all other settings are.

    Raises:
        SettingsError: There is no such setting, it cannot be searched, or not among these values.
    """
    known: dict[str, Any] = {**flatten(dataclasses.asdict(base)), STRENGTH: 1.0}
    searchable = [name for name in known if name not in LENGTHS and not name.startswith("stream.") and name != "init"]
    space: dict[str, Range | Choice] = {}
    for key, values in flatten({str(key): value for key, value in asked.items()}).items():
        name = key.replace("-", "_")
        if name in LENGTHS:
            raise SettingsError(f"search: {name} cannot be searched, because trials would differ in cost or in luck alone.")
        if name not in searchable:
            raise SettingsError(f"search: {unknown('setting', name, searchable)}")
        if not isinstance(values, (list, tuple)) or len(values) < 2:
            raise SettingsError(f"search: {name} is {show(values)}; {EXPECTED}.")
        space[name] = _read_range(name, values, base) if values[-1] in SCALES else _read_choice(name, values, base)
    if not space:
        raise SettingsError(f"search: found no setting; {EXPECTED}.")
    return space


def apply_values(base: Recipe, values: Mapping[str, Value]) -> Recipe:
    """Returns settings of which some have other values; raises SettingsError where one cannot have that."""
    recipe = base
    for name, value in values.items():
        if name != STRENGTH:
            group, _, key = name.partition(".")
            recipe = replace_settings(recipe, {group: {key: value}})
    if STRENGTH in values:
        recipe = dataclasses.replace(recipe, augment=scale_augment(recipe.augment, float(values[STRENGTH])))
    return recipe


def find_values(base: Recipe, space: Space) -> dict[str, Value]:
    """Returns what the searched settings are in settings where nothing is auto."""
    flat = {**flatten(dataclasses.asdict(base)), STRENGTH: 1.0}
    return {name: flat[name] for name in space}


def draw_values(trial: Trial, space: Space, defaults: Mapping[str, Value]) -> dict[str, Value]:
    """Returns the values of a trial; the first has the defaults, also those that the space does not hold."""
    return {
        name: dimension.draw(trial, name) if trial.number or dimension.holds(defaults[name]) else defaults[name]
        for name, dimension in space.items()
    }


def _read_range(name: str, values: Sequence[Any], base: Recipe) -> Range:
    *ends, scale = values
    found = f"search: {name} is [{', '.join(map(str, values))}]"
    try:
        low, high = (float(end) for end in ends)
    except (TypeError, ValueError):
        raise SettingsError(f"{found}; expected two numbers before {scale!r}, as in [1e-4, 1e-2, log].") from None
    if not -math.inf < low < high < math.inf:
        raise SettingsError(f"{found}; expected two finite numbers, the smaller one first.")
    if scale == "log" and low <= 0:
        raise SettingsError(f"{found}; expected numbers above 0 on a log scale. Use linear, or begin higher.")
    is_whole = low == int(low) and high == int(high) and not _fits(name, low + 0.5, base)
    for end in (low, high):
        _check(name, int(end) if is_whole else end, base)
    return Range(low, high, scale == "log", is_whole)


def _read_choice(name: str, values: Sequence[Any], base: Recipe) -> Choice:
    chosen: list[Value] = []
    for value in values:
        if not isinstance(value, (str, int, float)):
            raise SettingsError(f"search: {name} holds {show(value)}; {EXPECTED}.")
        readings = [reading for reading in _read_value(str(value).strip()) if _fits(name, reading, base)]
        chosen.append(_check(name, readings[0] if readings else value, base))
    if len(set(chosen)) < len(chosen):
        raise SettingsError(f"search: {name} holds a value twice: {', '.join(map(str, values))}. Name each once.")
    return Choice(tuple(chosen))


def _read_value(text: str) -> list[Value]:
    """Returns what a text may mean, the narrowest first."""
    readings: list[Value] = []
    for kind in (int, float):
        try:
            readings.append(kind(text))
        except ValueError:
            continue
    if text.lower() in ("true", "false"):
        readings.append(text.lower() == "true")
    return [*readings, text]


def _fits(name: str, value: Value, base: Recipe) -> bool:
    """Says whether a value is of a setting's type."""
    try:
        apply_values(base, {name: value})
    except SettingsError:
        return False
    return True


def _check(name: str, value: Value, base: Recipe) -> Value:
    """Returns a value that a setting may have; SettingsError for any other."""
    build_settings("network", dataclasses.asdict(apply_values(base, {name: value})), "search")
    if name == "model.encoder":
        find_encoder(str(value))
    if name == "model.decoder" and value not in (decoders := import_smp().MODEL_ARCHITECTURES_MAPPING):
        raise SettingsError(f"search: {unknown('decoder', str(value), decoders)}")
    return value
