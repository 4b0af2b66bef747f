"""compare: the scores of any set of runs side by side, networks and baselines, as in Figure 4 of the founding report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from neurotome.atomic import write_json, write_text
from neurotome.datasets import open_dataset
from neurotome.datasets.base import DatasetOrName
from neurotome.errors import RunError
from neurotome.outputs import plan_outputs
from neurotome.report import build_report
from neurotome.runs import Run
from neurotome.runs.record import compare_data, list_settings

KEYS = ("precision", "recall", "f1")

SAID = ("model.decoder", "model.encoder", "learner", "features")
"""Settings that the plain name of a method says."""


def compare(
    *runs: Path,
    out: Path,
    split: Literal["train", "val", "test"] = "test",
    names: Annotated[Sequence[str], Parameter(consume_multiple=True)] = (),
    report: DatasetOrName | None = None,
) -> list[Path]:
    """Draws the scores of runs side by side: macro and weighted precision, recall and F1, baselines beside networks.

    Runs that differ in nothing but their seed are one method, shown as their mean and range. Methods of one name are told
    apart by every setting in which they differ.

    Args:
        runs: Run folders that were scored on the same data.
        out: Folder for methods.png, comparison.json and comparison.md.
        split: Which scores.
        names: What to call them, one name for each method or for each run; runs of one name are one method.
        report: The dataset of the runs; if given, the report of the first run is written again with the others beside it,
            all of them, and the first run's method, on this split.

    Returns:
        What was written.

    Raises:
        RunError: A folder is no scored run, the runs were scored on different data, or there are too few names.
    """
    from neurotome import figures

    opened = [Run.open(folder) for folder in runs]
    if not opened:
        raise RunError("found no run to compare; name one run folder or more.")
    if len({run.folder.resolve() for run in opened}) < len(opened):
        raise RunError("the same run folder is named twice; name each once, for a run more would count double.")
    paths = [Path(out) / name for name in ("methods.png", "comparison.json", "comparison.md")]
    plan_outputs(paths, inputs=[path for run in opened for path in run.list_files()], existing="replace")
    scores = {run: _read_scores(run, split) for run in opened}
    _check_same(scores)
    methods = group_runs(opened, names)
    grouped = {name: [scores[run] for run in members] for name, members in methods.items()}
    first = scores[opened[0]]
    rows = [_summarise(name, members, scores) for name, members in methods.items()]
    figures.save_figure(figures.plot_methods(grouped), paths[0])
    write_json(paths[1], {"dataset": first["dataset"], "split": split, "classes": first["classes"], "methods": rows})
    write_text(paths[2], format_table(first["dataset"], split, rows))
    if report is not None:
        own = next(name for name, members in methods.items() if opened[0] in members)
        others = {name: members for name, members in grouped.items() if name != own}
        seeds = [scores[run] for run in methods[own] if run is not opened[0]]
        paths.append(build_report(opened[0], open_dataset(report), comparisons=others, seeds=seeds))
    return paths


def group_runs(runs: Sequence[Run], names: Sequence[str] = ()) -> dict[str, list[Run]]:
    """Returns the runs of each method, by the method's name.

    Args:
        runs: Runs; one without a record is a method of its own.
        names: One for each run, or for each method in the order of their first runs; without them, methods are named by
            their records and by every setting in which methods of the same kind differ.

    Raises:
        RunError: The names are neither as many as the runs nor as the methods.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        record = run.read_record()
        groups.setdefault(record.method_sha256 if record else str(run.folder.resolve()), []).append(run)
    members = list(groups.values())
    if len(names) == len(members):
        return _join(names, members)
    if names and len(names) != len(runs):
        raise RunError(f"found {len(names)} names; expected one for each of {len(members)} methods or of {len(runs)} runs.")
    return _join(names, [[run] for run in runs]) if names else dict(zip(_name_methods(members), members, strict=True))


def _join(names: Sequence[str], members: Sequence[list[Run]]) -> dict[str, list[Run]]:
    named: dict[str, list[Run]] = {}
    for name, runs in zip(names, members, strict=True):
        named.setdefault(name, []).extend(runs)
    return named


def _name_methods(methods: Sequence[Sequence[Run]]) -> list[str]:
    """Returns a name for each method that no other has."""
    records = [members[0].read_record() for members in methods]
    plain = [
        record.method if record else members[0].folder.resolve().name
        for record, members in zip(records, methods, strict=True)
    ]
    settings = [list_settings(members[0].read_config()) for members in methods]
    names = []
    for own, record, name in zip(settings, records, plain, strict=True):
        peers = [
            other
            for other, record_, name_ in zip(settings, records, plain, strict=True)
            # a network beside any network; a pixel classifier beside those of its learner and features
            if record and record_ and record.kind == record_.kind and (record.kind == "network" or name == name_)
        ]
        differing = [key for key in own if key not in SAID and any(key in peer and peer[key] != own[key] for peer in peers)]
        names.append(", ".join([name, *(f"{key} {_say(own[key])}" for key in differing)]))
    for i, (name, record) in enumerate(zip(names, records, strict=True)):
        twins = [k for k in range(i) if names[k] == name]
        first = records[twins[0]] if twins else None
        if first and record and compare_data(first, record, ("train", "val")):
            names[i] = f"{name}, other training data"
    return [
        f"{name} ({members[0].folder.resolve().name})" if names.count(name) > 1 else name
        for name, members in zip(names, methods, strict=True)
    ]


def _say(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


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


def _summarise(name: str, members: Sequence[Run], scores: Mapping[Run, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns mean, lowest and highest of each score over the runs of a method."""
    runs = [scores[run] for run in members]
    summaries = [run.read_training() or {} for run in members]
    return {
        "method": name,
        "runs": [str(run) for run in members],
        **{
            mean: {key: _spread([run[mean][key] for run in runs]) for key in (*KEYS, "iou")}
            for mean in ("macro", "weighted")
        },
        "accuracy": _spread([run["accuracy"] for run in runs]),
        "training_seconds": _spread([summary.get("seconds") for summary in summaries]),
        "scoring_mpixel_per_s": _spread([summary.get("scoring_mpixel_per_s") for summary in summaries]),
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


def _read_scores(run: Run, split: str) -> dict[str, Any]:
    scores = run.read_scores(split)
    if scores is None:
        scored = run.list_scored()
        hint = f"it has scores of {', '.join(scored)}: choose with --split" if scored else "finish the run first"
        raise RunError(f"{run}: expected a run folder with scores of split {split}; {hint}.")
    return scores


def _check_same(scores: Mapping[Run, Mapping[str, Any]]) -> None:
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
            [content["per_class"][name]["support"] for name in content["classes"]]
            for content in (scores[first], scores[run])
        ]
        if truth[0] != truth[1]:
            raise RunError(
                f"{run}: scored on {truth[1]} pixels of the classes, but {first} on {truth[0]}; so the images or labels "
                "differ. Score them again on the same data."
            )
