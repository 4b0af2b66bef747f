"""Plan: a grid of settings in a YAML file becomes a list of runs, each checked before any of them begins."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from neurotome.augment import check_augment
from neurotome.datasets.base import SPLITS
from neurotome.documents import find_config, flatten, read_yaml
from neurotome.errors import SettingsError, show, unknown
from neurotome.keywords import replace_settings
from neurotome.losses import parse_terms
from neurotome.models.networks import settle_network
from neurotome.pixels.train import BaselineSettings
from neurotome.runs.contents import check_types
from neurotome.training.recipe import Recipe, check_training

Kind = Literal["network", "pixels"]

SCORED = ("val", "test")
GRID_KEYS = ("recipes", "runs", "seeds", "folds", "gap")
ENTRY_KEYS = ("kind", "recipe", "label", "optional", "splits", "seeds")
EXPECTED = "Expected runs: [{model.decoder: [unet, linknet]}], and if need be recipes, seeds and folds."
LABELS = {"network": "{decoder}-{encoder}", "pixels": "{learner}"}
"""What a run is called where its entry does not say."""


@dataclass(frozen=True)
class PlannedRun:
    """A run of a grid.

    Attributes:
        name: Unique, and its folder below `runs`: `ours/unet-resnet18/seed-0`, with folds `.../seed-0-fold-2`.
        method: The name without seed and fold.
        recipe: Name of the recipe that its settings began with.
        label: What the method is called among those of its recipe.
        settings: All settings, nested as a --config file has them: of a Recipe, or of BaselineSettings for `pixels`.
        fold: Which part of the data is tested; None where the dataset's own splits are used.
        splits: Those that are scored.
        optional: 0: always run; the higher, the sooner it is dropped where time is too short.
    """

    name: str
    method: str
    recipe: str
    label: str
    kind: Kind
    settings: Mapping[str, Any]
    seed: int
    fold: int | None = None
    splits: tuple[str, ...] = SCORED
    optional: int = 0

    def build(self) -> Recipe | BaselineSettings:
        """Returns its settings, checked as far as they can be without data; raises SettingsError."""
        return build_settings(self.kind, self.settings, self.name)


@dataclass(frozen=True)
class Plan:
    """The runs of a grid.

    Attributes:
        asked: For each run of the file, as it was before anything was scaled, a digest of what it is; tells grids apart.
        dataset: What `open_dataset` opens, "" while it is not chosen.
        folds: Parts of a cross-validation, 0 for none.
        gap: Slices left out between training and scoring where folds cut a stack, None for the usual number.
        scaled: Sentences that say what a budget changed.
        data: SHA-256 of each split's content, empty while the dataset is not chosen.
    """

    runs: tuple[PlannedRun, ...]
    asked: Mapping[str, str]
    dataset: str = ""
    folds: int = 0
    gap: int | None = None
    scaled: tuple[str, ...] = ()
    data: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns the content of `grid.json`."""
        return {"format": 1, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Plan:
        """Reads JSON values; raises LookupError, TypeError, ValueError or AttributeError where they are no plan."""
        check_types(content, {"format": int, "dataset": str, "folds": int, "scaled": [str], "runs": [dict]})
        check_types(content, {"asked": dict.fromkeys(content["asked"], str), "data": dict.fromkeys(content["data"], str)})
        if content["format"] != 1:
            raise ValueError(f"format {content['format']}, this version reads 1")
        runs = tuple(PlannedRun(**{**run, "splits": tuple(run["splits"])}) for run in content["runs"])
        values = {key: value for key, value in content.items() if key != "format"}
        return cls(**{**values, "runs": runs, "scaled": tuple(content["scaled"])})


def read_grid(path: str | Path, folds: int | None = None, gap: int | None = None) -> Plan:
    """Reads a grid of settings.

    Every entry of `runs` is the product of its lists: a setting's dotted name with a value or a list of values (a value
    that is a list stands in a list). Runs that are equal in everything are one.

    Args:
        path: A YAML file, or the name of one that comes with neurotome, such as `founding_report/grid`.
        folds: Parts of a cross-validation, in place of the file's.
        gap: Slices left out of training where folds cut a stack, in place of the file's.

    Returns:
        The plan, without a dataset.

    Raises:
        SettingsError: A key or a value cannot be used; names the file, the entry and the setting.
    """
    file = find_config(str(path), "grid")
    content = _read_keys(read_yaml(file, SettingsError, EXPECTED), str(file), GRID_KEYS)
    recipes, entries = content.get("recipes") or {}, content.get("runs")
    if not isinstance(recipes, dict) or not all(_is_name(name) for name in recipes):
        raise SettingsError(
            f"{file}: recipes is {show(recipes)}; expected settings by name, as in 'recipes: {{ours: {{}}}}'."
        )
    if not isinstance(entries, list) or not entries:
        raise SettingsError(f"{file}: runs is {show(entries)}; expected a list of settings. {EXPECTED}")
    seeds = _read_seeds(content.get("seeds", [0]), str(file))
    folds = content.get("folds", 0) if folds is None else folds
    if type(folds) is not int or (folds < 3 and folds != 0):
        raise SettingsError(f"{file}: folds is {show(folds)}; expected 0 for the dataset's own splits, or at least 3 parts.")
    gap = content.get("gap") if gap is None else gap
    if gap is not None and (type(gap) is not int or gap < 0 or not folds):
        raise SettingsError(f"{file}: gap is {show(gap)}; expected a number of slices beside folds, or no gap.")
    settings = {name: _read_recipe(value, f"{file}: recipe {name}") for name, value in recipes.items()}
    runs: dict[str, PlannedRun] = {}
    names: dict[str, str] = {}  # by digest
    asked: dict[str, str] = {}
    for number, entry in enumerate(entries, start=1):
        for run in _expand(entry, f"{file}: entry {number} of runs", settings, seeds, folds):
            digest = _digest(run, gap)
            name = names.setdefault(digest, run.name)
            if asked.setdefault(name, digest) != digest:
                raise SettingsError(
                    f"{file}: entry {number} of runs has another run named {name} than one before it. Give one of them "
                    "another label, such as label: '{decoder}-{encoder}-{terms}'."
                )
            known = runs.get(name, run)
            splits = tuple(split for split in SPLITS if split in known.splits + run.splits)
            runs[name] = dataclasses.replace(known, splits=splits, optional=min(known.optional, run.optional))
    return Plan(tuple(runs.values()), asked, folds=folds, gap=gap)


def list_folds(kind: Kind, label: str, settings: Mapping[str, Any], folds: int, gap: int | None) -> Plan:
    """Returns the plan of one method on every fold, scored on the fold's test part; SettingsError if it cannot work."""
    recipe = "pixels" if kind == "pixels" else "default"
    seed = settings["seed"] if kind == "pixels" else settings["train"]["seed"]
    method = f"{recipe}/{label}"
    runs = tuple(
        PlannedRun(f"{method}/seed-{seed}-fold-{fold}", method, recipe, label, kind, settings, seed, fold, ("test",))
        for fold in range(folds)
    )
    build_settings(kind, settings, label)
    return Plan(runs, {run.name: _digest(run, gap) for run in runs}, folds=folds, gap=gap)


def build_settings(kind: Kind, settings: Mapping[str, Any], where: str) -> Recipe | BaselineSettings:
    """Returns nested settings as dataclasses; SettingsError, which begins with `where`, if they cannot work."""
    try:
        if kind == "pixels":
            return replace_settings(BaselineSettings(), settings)
        recipe = replace_settings(Recipe(), settings)
        check_training(recipe.train)
        check_augment(recipe.augment)
        parse_terms(recipe.loss.terms)
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}") from error
    return recipe


def _expand(
    entry: Any, where: str, recipes: Mapping[str, Mapping[str, Any]], seeds: list[int], folds: int
) -> Iterator[PlannedRun]:
    """Yields the runs of an entry."""
    if not isinstance(entry, dict):
        raise SettingsError(f"{where} is {show(entry)}; expected settings, as in 'model.decoder: [unet, linknet]'.")
    kind, optional = entry.get("kind", "network"), entry.get("optional", 0)
    if kind not in LABELS:
        raise SettingsError(f"{where}: {unknown('kind', str(kind), LABELS)}")
    if not isinstance(optional, int) or optional < 0:
        raise SettingsError(f"{where}: optional is {show(optional)}; expected 0, or how soon it may be dropped.")
    splits = entry.get("splits", list(SCORED))
    if not isinstance(splits, list) or not splits or any(split not in SPLITS for split in splits):
        raise SettingsError(f"{where}: splits is {show(splits)}; expected some of {', '.join(SPLITS)}.")
    if "seeds" in entry:
        seeds = _read_seeds(entry["seeds"], where)
    values = _flatten({key: value for key, value in entry.items() if key not in ENTRY_KEYS})
    choices = {key: value if isinstance(value, list) else [value] for key, value in values.items()}
    varied = [key for key, options in choices.items() if len(options) > 1]
    for key, options in choices.items():
        if key.rpartition(".")[2] == "seed":
            raise SettingsError(f"{where} sets {key}; expected the seeds of runs under seeds: [0, 1, 2].")
        if not options:
            raise SettingsError(f"{where}: {key} is an empty list; expected values.")
    usual = "pixels" if kind == "pixels" else "default"
    names = entry.get("recipe", usual if kind == "pixels" or not recipes else list(recipes))
    for recipe in names if isinstance(names, list) else [names]:
        if recipe not in recipes and recipe != usual:
            raise SettingsError(f"{where}: {unknown('recipe', str(recipe), recipes)}")
        for chosen in itertools.product(*choices.values()):
            given = dict(zip(choices, chosen, strict=True))
            for seed in seeds:
                seeded = {**recipes.get(recipe, {}), **given, "seed" if kind == "pixels" else "train.seed": seed}
                built = build_settings(kind, _nest(seeded), where)
                label = _make_label(entry.get("label"), kind, built, given, varied, where)
                settings = json.loads(json.dumps(dataclasses.asdict(built)))
                for fold in range(folds) if folds else [None]:
                    place = f"seed-{seed}" + (f"-fold-{fold}" if fold is not None else "")
                    yield PlannedRun(
                        f"{recipe}/{label}/{place}",
                        f"{recipe}/{label}",
                        recipe,
                        label,
                        cast("Kind", kind),
                        settings,
                        seed,
                        fold,
                        tuple(split for split in SPLITS if split in splits),
                        optional,
                    )


def _make_label(
    template: Any,
    kind: str,
    settings: Recipe | BaselineSettings,
    given: Mapping[str, Any],
    varied: list[str],
    where: str,
) -> str:
    """Returns a template in which {learning_rate} or {train.learning_rate} are that setting's value, fit for a folder."""
    if template is None:
        template = LABELS[kind]
        named = set(re.findall(r"\w+", template))
        template += "".join(f"-{{{key}}}" for key in varied if key.rpartition(".")[2] not in named)
    if not isinstance(template, str):
        raise SettingsError(f"{where}: label is {show(template)}; expected text, such as '{{decoder}}-{{encoder}}'.")
    if isinstance(settings, Recipe):
        settings = dataclasses.replace(settings, model=settle_network(settings.model))
    whole = flatten(dataclasses.asdict(settings))
    values = {key.rpartition(".")[2]: key for key in (*whole, *given)} | {key: key for key in whole}  # what is given wins

    def fill(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise SettingsError(f"{where}, label {template!r}: {unknown('setting', match[1], values)}")
        value = whole[values[match[1]]]
        if isinstance(value, float) and 0 < abs(value) < 0.1:
            mantissa, exponent = f"{value:e}".split("e")
            return f"{float(mantissa):g}e{int(exponent)}"
        return f"{value:g}" if isinstance(value, float) else str(value)

    label = re.sub(r"[^\w.]+", "-", re.sub(r"\{([\w.]+)\}", fill, template)).strip("-.")
    if not label:
        raise SettingsError(f"{where}: label is {template!r}; expected letters or digits.")
    return label[:120]


def _read_recipe(value: Any, where: str) -> dict[str, Any]:
    """Returns the settings of a recipe by dotted name: of a mapping, a --config file, or several of which later ones win."""
    flat: dict[str, Any] = {}
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, str):
            part = read_yaml(find_config(part, where), SettingsError, "Expected settings such as 'train: {epochs: 10}'.")
            part = {key: settings for key, settings in part.items() if key != "dataset"}  # a run's config.yaml names it
        if not isinstance(part, dict):
            raise SettingsError(f"{where} is {show(part)}; expected settings, or the name of a --config file.")
        flat |= _flatten(part)
    build_settings("pixels" if "learner" in flat else "network", _nest(flat), where)
    return flat


def _read_keys(content: Mapping[str, Any], where: str, known: tuple[str, ...]) -> Mapping[str, Any]:
    for key in content:
        if key not in known:
            raise SettingsError(f"{where}: {unknown('key', str(key), known)}")
    return content


def _read_seeds(seeds: Any, where: str) -> list[int]:
    if not isinstance(seeds, list) or not seeds or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise SettingsError(
            f"{where}: seeds is {show(seeds)}; expected whole numbers of at least 0, as in seeds: [0, 1, 2]."
        )
    return list(dict.fromkeys(seeds))


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name) is not None


def _flatten(settings: Mapping[Any, Any]) -> dict[str, Any]:
    """Returns settings by dotted name; YAML takes 3e-2 for text, which becomes a number."""
    return {key: _read_number(value) for key, value in flatten({str(key): value for key, value in settings.items()}).items()}


def _read_number(value: Any) -> Any:
    if isinstance(value, list):
        return [_read_number(item) for item in value]
    is_number = isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value)
    return float(value) if is_number else value


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings by group."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, name = key.split(".")
        inner = nested
        for group in groups:
            inner = inner.setdefault(group, {})
            if not isinstance(inner, dict):
                raise SettingsError(f"{group} is a value in one place and a group of settings, as in {key}, in another.")
        inner[name] = value
    return nested


def _digest(run: PlannedRun, gap: int | None) -> str:
    content = [run.kind, run.recipe, run.settings, run.seed, run.fold, *([] if gap is None else [gap])]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
