"""compare: the scores of any set of runs side by side, networks and baselines, as in Figure 4 of the founding report."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from neurotome.atomic import write_json, write_text
from neurotome.datasets import open_dataset
from neurotome.datasets.base import DatasetOrName
from neurotome.errors import RunError
from neurotome.outputs import check_own, plan_outputs
from neurotome.report import build_report, check_scored_on
from neurotome.runs import Run
from neurotome.runs.record import compare_data, list_settings
from neurotome.statistics import Estimate, IntervalSettings, compare_pairs, estimate_all, rank_methods

KEYS = ("precision", "recall", "f1")

SAID = ("model.decoder", "model.encoder", "learner", "features")
"""Settings that the plain name of a method says."""


def compare(
    *runs: Path,
    out: Path,
    split: Literal["train", "val", "test"] = "test",
    names: Annotated[Sequence[str], Parameter(consume_multiple=True)] = (),
    report: DatasetOrName | None = None,
    interval: IntervalSettings = IntervalSettings(),
) -> list[Path]:
    """Draws the scores of runs side by side: macro and weighted precision, recall and F1, baselines beside networks.

    Runs that differ in nothing but their seed are one method, shown as their mean and its interval over slices and seeds.
    Methods of one name are told apart by every setting in which they differ. Each is compared with the best on the same
    slices, and p is corrected for the number of comparisons.

    Args:
        runs: Run folders that were scored on the same data.
        out: Folder for methods.png, comparison.json and comparison.md.
        split: Which scores.
        names: What to call them, one name for each method or for each run; runs of one name are one method.
        report: The dataset of the runs; if given, the report of the first run is written again with the others beside it,
            all of them, and the first run's method, on this split.
        interval: How intervals and differences are measured.

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
    check_own(paths, paths[1], ("methods", "split", "dataset"))
    scores = _read_scores(opened, split)
    _note_other_images(opened, split)
    dataset = None if report is None else open_dataset(report)
    if dataset is not None:
        check_scored_on(opened[0], dataset)
    methods = group_runs(opened, names)
    grouped = {name: [scores[run] for run in members] for name, members in methods.items()}
    first = scores[opened[0]]
    rows = [_summarise(name, members, scores, interval) for name, members in methods.items()]
    differences = _compare_with_best(grouped, interval)
    figures.save_figure(figures.plot_methods(grouped, interval), paths[0])
    compared = {"methods": rows, **differences, "interval": dataclasses.asdict(interval)}
    write_json(paths[1], {"dataset": first["dataset"], "split": split, "classes": first["classes"], **compared})
    table = _format_table(first["dataset"], split, rows, interval.level)
    write_text(paths[2], table + _format_differences(differences, interval.level))
    if dataset is not None:
        own = next(name for name, members in methods.items() if opened[0] in members)
        others = {name: members for name, members in grouped.items() if name != own}
        seeds = [scores[run] for run in methods[own] if run is not opened[0]]
        paths.append(build_report(opened[0], dataset, comparisons=others, seeds=seeds))
    return paths


def _read_scores(runs: Sequence[Run], split: str) -> dict[Run, dict[str, Any]]:
    """Returns the scores of each run, which must be of the same pixels."""
    read: dict[Run, dict[str, Any]] = {}
    for run in runs:
        if (scores := run.read_scores(split)) is None:
            scored = run.list_scored()
            hint = f"it has scores of {', '.join(scored)}: choose with --split" if scored else "finish the run first"
            raise RunError(f"{run}: expected a run folder with scores of split {split}; {hint}.")
        read[run] = scores
        first = read[runs[0]]
        for key in ("dataset", "classes"):
            if scores[key] != first[key]:
                raise RunError(
                    f"{run}: scored on {key} {scores[key]}, but {runs[0]} on {first[key]}. Compare runs of the same data."
                )
        own, theirs = ([score["support"] for score in content["per_class"].values()] for content in (scores, first))
        if own != theirs:
            raise RunError(
                f"{run}: scored on {own} pixels of the classes, but {runs[0]} on {theirs}; so the images or labels differ. "
                "Score them again on the same data."
            )
    return read


def _note_other_images(runs: Sequence[Run], split: str) -> None:
    """Warns where runs whose labels are the same were scored on other images, such as raw and denoised ones."""
    records = {run: record for run in runs if (record := run.read_record()) is not None}
    for run, record in records.items():
        first = next(iter(records))
        if changes := compare_data(records[first], record, (split,)):
            warnings.warn(
                f"{run} was scored on other data than {first}: {'; '.join(changes)}. So not only the methods are compared.",
                stacklevel=3,
            )


def group_runs(runs: Sequence[Run], names: Sequence[str] = ()) -> dict[str, list[Run]]:
    """Returns the runs of each method, by the method's name.

    Without names, one for each run or for each method in the order of their first runs, methods are named by their records
    and by every setting in which methods of the same kind differ. A run without a record is a method of its own.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        record = run.read_record()
        groups.setdefault(record.method_sha256 if record else str(run.folder.resolve()), []).append(run)
    members = list(groups.values())
    if not names:
        return dict(zip(_name_methods([runs[0] for runs in members]), members, strict=True))
    if len(names) != len(members):
        if len(names) != len(runs):
            raise RunError(
                f"found {len(names)} names; expected one for each of {len(members)} methods or of {len(runs)} runs."
            )
        members = [[run] for run in runs]
    named: dict[str, list[Run]] = {}
    for name, method in zip(names, members, strict=True):
        named.setdefault(name, []).extend(method)
    return named


def _name_methods(runs: Sequence[Run]) -> list[str]:
    """Returns a name for the method of each run that no other has."""
    records = [run.read_record() for run in runs]
    folders = [run.folder.resolve().name for run in runs]
    plain = [record.method if record else folder for record, folder in zip(records, folders, strict=True)]
    # a network is told apart from any network; a pixel classifier from those of its learner and features
    kinds = [name if record is None or record.kind == "pixels" else "" for record, name in zip(records, plain, strict=True)]
    settings = [list_settings(run.read_config()) if record else {} for run, record in zip(runs, records, strict=True)]
    names: list[str] = []
    for i, (own, name, record) in enumerate(zip(settings, plain, records, strict=True)):
        peers = [other for other, kind in zip(settings, kinds, strict=True) if kind == kinds[i]]
        differing = [key for key in own if key not in SAID and any(key in peer and peer[key] != own[key] for peer in peers)]
        values = (" ".join(map(str, own[key])) if isinstance(own[key], list) else own[key] for key in differing)
        full = ", ".join([name, *(f"{key} {value}" for key, value in zip(differing, values, strict=True))])
        twin = records[names.index(full)] if full in names else None
        if twin and record and compare_data(twin, record, ("train", "val")):
            full += ", other training data"
        names.append(full)
    return [f"{name} ({folder})" if names.count(name) > 1 else name for name, folder in zip(names, folders, strict=True)]


def _compare_with_best(methods: Mapping[str, Sequence[Mapping[str, Any]]], interval: IntervalSettings) -> dict[str, Any]:
    """Returns by macro F1 the order of the methods, how stable it is, and how far each is behind the best."""
    scored = {name: runs for name, runs in methods.items() if all(run["macro"]["f1"] is not None for run in runs)}
    if len(scored) < 2:
        return {"ranks": [], "best": None, "differences": []}
    ranks = rank_methods(scored, settings=interval)
    best = ranks[0].name
    pairs = {rank.name: (scored[rank.name], scored[best]) for rank in ranks[1:]}
    found = compare_pairs(pairs, settings=interval)
    differences = [{"method": name, **dataclasses.asdict(difference)} for name, difference in found.items()]
    rows = [dataclasses.asdict(rank) for rank in ranks]
    for row in rows:
        row["share_first"] = None if math.isnan(row["share_first"]) else row["share_first"]
    return {"ranks": rows, "best": best, "differences": differences}


def _format_differences(compared: Mapping[str, Any], level: float) -> str:
    """Returns how far each method is behind the best as a table in Markdown, nothing for a single method."""
    if compared["best"] is None:
        return ""
    behind = {difference["method"]: difference for difference in compared["differences"]}
    head = ["place", "method", f"macro F1 minus that of {compared['best']}", "p", "p corrected", "first in", "places"]
    lines = ["", "On the same slices, the best first", "", f"| {' | '.join(head)} |", "|-" * len(head) + "|"]
    notes: list[str] = []
    for rank in compared["ranks"]:
        cells = [str(rank["rank"]), rank["name"], "", "", ""]
        if (one := behind.get(rank["name"])) is not None:
            cells[2] = f"{one['effect']:+.3f}" + ("" if one["low"] is None else f" [{one['low']:+.3f}, {one['high']:+.3f}]")
            cells[3:] = ["–" if one[key] is None else f"{one[key]:.2g}" for key in ("p", "p_corrected")]
            notes += [one["note"]] if one["note"] and one["note"] not in notes else []
        share = "–" if rank["share_first"] is None else f"{100 * rank['share_first']:.0f} % of draws"
        cells += [share, f"{rank['low']} to {rank['high']}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"[{100 * level:g} % interval]; p: of no difference; corrected: by Holm for {len(behind)} comparisons."]
    return "\n".join([*lines, *(f"Note: {note}." for note in notes)]) + "\n"


def _format_table(dataset: str, split: str, rows: Sequence[Mapping[str, Any]], level: float) -> str:
    """Returns the scores of the methods as a table in Markdown."""
    scores = {f"{mean} {key.replace('f1', 'F1')}": (mean, key) for mean in ("macro", "weighted") for key in KEYS}
    head = ["method", "runs", *scores, "mean IoU", "accuracy", "training s", "prediction Mpixel/s"]
    lines = [f"{dataset}, split {split}", "", f"| {' | '.join(head)} |", "|-" * len(head) + "|"]
    for row in rows:
        cells = [row["method"], str(len(row["runs"])), *(_show(row[mean][key]) for mean, key in scores.values())]
        cells += [_show(row["macro"]["iou"]), _show(row["accuracy"])]
        cells += [_show(row["training_seconds"], 0), _show(row["scoring_mpixel_per_s"], 2)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"(lowest to highest run) [{100 * level:g} % interval of the mean, over slices and seeds]"]
    return "\n".join(lines) + "\n"


def _summarise(
    name: str, members: Sequence[Run], scores: Mapping[Run, Mapping[str, Any]], interval: IntervalSettings
) -> dict[str, Any]:
    """Returns mean, lowest and highest of each score over the runs of a method, and the interval of the mean."""
    runs = [scores[run] for run in members]
    keys = (*KEYS, "iou")
    metrics = ["accuracy", *(f"{mean}.{key}" for mean in ("macro", "weighted") for key in keys)]
    found = estimate_all(runs, metrics, interval)
    summaries = [run.read_training() or {} for run in members]
    means = {
        mean: {key: _spread([run[mean][key] for run in runs], found[f"{mean}.{key}"]) for key in keys}
        for mean in ("macro", "weighted")
    }
    work = {
        key: _spread([summary.get(measured) for summary in summaries])
        for key, measured in (("training_seconds", "seconds"), ("scoring_mpixel_per_s", "scoring_mpixel_per_s"))
    }
    accuracy = _spread([run["accuracy"] for run in runs], found["accuracy"])
    note = found["macro.f1"].note
    return {"method": name, "runs": [str(run) for run in members], **means, "accuracy": accuracy, "note": note, **work}


def _spread(values: Sequence[float | None], found: Estimate | None = None) -> dict[str, Any] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    spread = {"mean": sum(known) / len(known), "low": min(known), "high": max(known)}
    return spread if found is None else {**spread, "interval": None if found.low is None else [found.low, found.high]}


def _show(value: Mapping[str, Any] | None, digits: int = 3) -> str:
    if value is None:
        return "–"
    mean, low, high = (f"{value[key]:.{digits}f}" for key in ("mean", "low", "high"))
    text = f"{mean} ({low} to {high})" if value["high"] > value["low"] else mean
    if (bounds := value.get("interval")) is not None:
        text += f" [{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]"
    return text
