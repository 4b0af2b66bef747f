"""compare: the scores of any set of runs side by side, networks and baselines, as in Figure 4 of the founding report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from neurotome.atomic import write_json, write_text
from neurotome.datasets import open_dataset
from neurotome.datasets.base import DatasetOrName
from neurotome.errors import RunError
from neurotome.report.page import build_report, name_method

KEYS = ("precision", "recall", "f1")


def compare(
    *runs: Path, out: Path, split: Literal["train", "val", "test"] = "test", report: DatasetOrName | None = None
) -> list[Path]:
    """Draws the scores of runs side by side: macro and weighted precision, recall and F1, baselines beside networks.

    Runs that differ in nothing but their seed are one method, shown as their mean and range.

    Args:
        runs: Run folders that were scored on the same data.
        out: Folder for methods.png, comparison.json and comparison.md.
        split: Which scores.
        report: The dataset of the runs; if given, the report of the first run is written again with the others beside it,
            all of them, and the first run's method, on this split.

    Returns:
        What was written.

    Raises:
        RunError: A folder is no scored run, or the runs were scored on different data.
    """
    out = Path(out)  # text from Python
    runs = tuple(map(Path, runs))
    from neurotome import figures

    if not runs:
        raise RunError("found no run to compare; name one run folder or more.")
    if len({run.resolve() for run in runs}) < len(runs):
        raise RunError("the same run folder is named twice; name each once, for a run more would count double.")
    scores = {run: _read_scores(run, split) for run in runs}
    _check_same(scores)
    methods = group_runs(runs)
    grouped = {name: [scores[run] for run in members] for name, members in methods.items()}
    path = out / "methods.png"
    figures.save_figure(figures.plot_methods(grouped), path)
    first = scores[runs[0]]
    rows = [_summarise(name, members, scores) for name, members in methods.items()]
    write_json(
        out / "comparison.json",
        {"dataset": first["dataset"], "split": split, "classes": first["classes"], "methods": rows},
    )
    write_text(out / "comparison.md", format_table(first["dataset"], split, rows))
    written = [path, out / "comparison.json", out / "comparison.md"]
    if report is not None:
        own = next(name for name, members in methods.items() if runs[0] in members)
        others = {name: found for name, found in grouped.items() if name != own}
        seeds = [scores[run] for run in methods[own] if run != runs[0]]
        written.append(build_report(runs[0], open_dataset(report), comparisons=others, seeds=seeds))
    return written


def group_runs(runs: Sequence[Path]) -> dict[str, list[Path]]:
    """Returns the runs of each method: those whose settings differ in nothing but the seed.

    A run that starts from another run's model, or reads its features from it, has that run's settings among its own.

    Args:
        runs: Run folders; one without config.yaml is a method of its own.

    Returns:
        Run folders by the name of their method. Where two methods would have the same name, the settings in which they
        differ from the first of that name are added.
    """
    # how the data set's folder is spelled makes no method; the data are told apart by their content
    groups: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any], list[Path]]] = []
    for run in runs:
        config = _read_config(run)
        plain = _drop_seeds(_unfold_models(_name_data(run, config)))
        for *_, there, members in groups:
            if plain and there == plain:
                members.append(run)
                break
        else:
            spoken = {key: value for key, value in _drop_seeds(config).items() if key != "dataset"}
            groups.append((config, spoken, plain, [run]))
    named: dict[str, list[Path]] = {}
    firsts: dict[str, dict[str, Any]] = {}
    for config, spoken, _, members in groups:
        name = unique = name_method(config, members[0])
        if name in firsts:
            unique = f"{name}, {_say_difference(firsts[name], spoken)}"
        firsts.setdefault(name, spoken)
        if unique in named:
            unique = f"{unique} ({members[0].resolve().name})"
        named[unique] = members
    return named


def format_table(dataset: str, split: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the comparison as a table in Markdown."""
    head = ["method", "runs"]
    head += [f"{mean} {key if key != 'f1' else 'F1'}" for mean in ("macro", "weighted") for key in KEYS]
    head += ["mean IoU", "accuracy", "training s", "prediction Mpixel/s"]
    lines = [f"{dataset}, split {split}", "", "| " + " | ".join(head) + " |", "|-" * len(head) + "|"]
    for row in rows:
        cells = [row["method"], str(len(row["runs"]))]
        cells += [_show(row[mean][key]) for mean in ("macro", "weighted") for key in KEYS]
        cells += [_show(row["macro"]["iou"]), _show(row["accuracy"])]
        cells += [_show(row["training_seconds"], 0), _show(row["scoring_mpixel_per_s"], 2)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _summarise(name: str, members: Sequence[Path], scores: Mapping[Path, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns mean, lowest and highest of each score over the runs of a method."""
    runs = [scores[run] for run in members]
    trained = [_read_json(run / "training.json") for run in members]
    return {
        "method": name,
        "runs": [str(run) for run in members],
        **{
            mean: {key: _spread([run[mean][key] for run in runs]) for key in (*KEYS, "iou")}
            for mean in ("macro", "weighted")
        },
        "accuracy": _spread([run["accuracy"] for run in runs]),
        "training_seconds": _spread([one.get("seconds") for one in trained]),
        "scoring_mpixel_per_s": _spread([one.get("scoring_mpixel_per_s") for one in trained]),
    }


def _spread(values: Sequence[float | None]) -> dict[str, float] | None:
    known = [value for value in values if value is not None]
    return {"mean": sum(known) / len(known), "low": min(known), "high": max(known)} if known else None


def _show(value: Mapping[str, float] | None, digits: int = 3) -> str:
    if value is None:
        return "–"
    text = f"{value['mean']:.{digits}f}"
    if value["high"] > value["low"]:
        text += f" ({value['low']:.{digits}f} to {value['high']:.{digits}f})"
    return text


def _read_scores(run: Path, split: str) -> dict[str, Any]:
    path = run / "scores" / f"{split}.json"
    if not path.is_file():
        there = sorted(found.stem for found in (run / "scores").glob("*.json"))
        hint = f"it has scores of {', '.join(there)}: choose with --split" if there else "finish the run first"
        raise RunError(f"{path}: missing; expected a run folder with scores of split {split}; {hint}.")
    found = _read_json(path)
    if not {"dataset", "classes", "macro", "weighted", "accuracy", "intervals", "per_class"} <= set(found):
        raise RunError(f"{path}: no scores of neurotome; delete it and give the run's command again.")
    return found


def _check_same(scores: Mapping[Path, Mapping[str, Any]]) -> None:
    """Checks that all runs were scored on the same pixels."""
    first, *others = scores
    for run in others:
        for key, what in (("dataset", "dataset"), ("classes", "classes")):
            if scores[run][key] != scores[first][key]:
                raise RunError(
                    f"{run}: scored on {what} {scores[run][key]}, but {first} on {scores[first][key]}. Compare "
                    "runs of the same data."
                )
        truth = [
            [found["per_class"][name]["support"] for name in found["classes"]] for found in (scores[first], scores[run])
        ]
        if truth[0] != truth[1]:
            raise RunError(
                f"{run}: scored on {truth[1]} pixels of the classes, but {first} on {truth[0]}; so the images or labels "
                "differ. Score them again on the same data."
            )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is no valid JSON ({error}); delete it and give the run's command again.") from error
    return content if isinstance(content, dict) else {}


def _read_config(run: Path) -> dict[str, Any]:
    path = run / "config.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def _name_data(run: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings with the SHA-256 of the training data in place of the data set's folder, however it is spelled.

    Those of a stream differ with its seed, which makes no other method; it is no folder, and its word stays.
    """
    digests = _read_json(run / "environment.json").get("data_sha256")
    if not digests or config.get("dataset") in (None, "phantom-stream"):
        return dict(config)
    return {**config, "dataset": digests}


def _unfold_models(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings with those of the runs whose models they name, in place of the folders' names."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found[key] = _unfold_models(value)
        elif key in ("model", "init") and isinstance(value, str) and value:
            found[key] = _unfold_models(_name_data(Path(value), _read_config(Path(value)))) or value
        else:
            found[key] = value
    return found


def _drop_seeds(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings without any seed."""
    return {key: _drop_seeds(value) if isinstance(value, dict) else value for key, value in config.items() if key != "seed"}


def _say_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """Returns the settings in which the second differs, such as `forest.trees 60`."""
    there = dict(_flatten(first))
    changed = {key: value for key, value in _flatten(second) if there.get(key) != value}
    differing = [
        f"{key} {' '.join(map(str, value)) if isinstance(value, list) else value}" for key, value in changed.items()
    ]
    return ", ".join(differing[:3]) or "other training data"


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
