"""build_report: a run folder as one self-contained page of scores, pictures, data and settings."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from neurotome.atomic import write_text
from neurotome.classes import ClassSet
from neurotome.datasets.base import Dataset
from neurotome.datasets.statistics import measure_dataset
from neurotome.errors import RunError
from neurotome.report.slides import ERROR, Slide, encode_layers, find_errors, load_slides, rank_images, read_beside, spread
from neurotome.report.verdict import TELLING, Scores, verdict
from neurotome.runs import Run
from neurotome.runs.run import CONFIG

SLIDES = 8
EXAMPLES = 3
EXTREMES = 5


def build_report(
    run: Path | Run,
    dataset: Dataset,
    *,
    comparisons: Mapping[str, Scores | Sequence[Scores]] | None = None,
    seeds: Sequence[Scores] = (),
    title: str | None = None,
) -> Path:
    """Writes `run/report.html`, one page that needs no other file and no network, and `run/figures/*.png`.

    What a run folder lacks, as that of a baseline lacks a training curve, the page leaves out; scores it must have.

    Args:
        run: A run, or its folder.
        dataset: What it was trained and scored on.
        comparisons: Scores of other methods by their name, each like `scores/<split>.json`, or those of several seeds, which
            are shown as their mean and range. All are of one split; this run's scores of it stand beside them.
        seeds: Scores of the further runs of this run's method, which differ from it in nothing but their seed.
        title: Heading of the page.

    Returns:
        The report.

    Raises:
        RunError: There are no scores, a file of the run cannot be read, the dataset is another one, or a comparison has
            this run's name or other images.
        ImageError: A prediction is missing or damaged.
    """
    opened = run if isinstance(run, Run) else Run.open(run)
    scores = _read_scores(opened, dataset.classes)
    split = next(iter(scores))
    record = opened.read_record()
    config = opened.read_config()
    environment = opened.read_environment() or {}
    statistics = measure_dataset(dataset)
    ranked = rank_images(scores[split])
    slides = []
    if opened.predictions(split).is_dir():
        slides = load_slides(opened, dataset, split, spread(ranked, SLIDES))
    method = record.method if record else opened.folder.resolve().name
    if comparisons and method in comparisons:
        raise RunError(f"comparisons: {method!r} is this run's own name; give the other method another one.")
    importance = opened.read_importance()
    compared = _gather(opened, method, scores, comparisons or {}, seeds)
    page = _fill_template(
        title=title or f"{method} on {dataset.name}",
        run=opened.folder.resolve().name,
        method=method,
        dataset=dataset,
        chips=_list_chips(dataset.classes),
        split=split,
        scores=scores,
        verdict=verdict(opened, comparisons),
        training=opened.read_training() or {},
        environment=environment,
        config=yaml.safe_dump(config, sort_keys=False, allow_unicode=True) if config else "",
        commands=_list_commands(opened, config, environment),
        compared=_summarise(compared),
        compared_on=next(iter(compared.values()))[0] if compared else {},
        figures=_draw_figures(opened, dataset, scores[split], statistics, slides, compared, importance),
        importance=importance,
        statistics=statistics,
        worst=ranked[:EXTREMES] if len(ranked) > 2 * EXTREMES else ranked,
        best=ranked[-EXTREMES:] if len(ranked) > 2 * EXTREMES else [],
        error_colour=_to_css(*ERROR),
        some_ignored=any((slide.truth == dataset.classes.ignore).any() for slide in slides),
        slides=[{"slide": slide, "layers": encode_layers(slide, dataset.classes)} for slide in slides],
        version=metadata.version("neurotome"),
    )
    write_text(opened.report, page)
    return opened.report


def _read_scores(run: Run, classes: ClassSet) -> dict[str, Scores]:
    """Returns the scores of every split that has them, the most telling first."""
    read = {split: run.read_scores(split) for split in TELLING}
    scores: dict[str, Scores] = {split: content for split, content in read.items() if content is not None}
    if not scores:
        raise RunError(f"{run}: found no scores, so there is nothing to report; give the run's command again to finish it.")
    for split, single in scores.items():
        if tuple(single["classes"]) != classes.names:
            raise RunError(
                f"{run}: the scores of split {split} are of the classes {', '.join(single['classes'])}, but the dataset "
                f"has {', '.join(classes.names)}. Give the dataset that the run was scored on."
            )
    return scores


def _gather(
    run: Run,
    method: str,
    scores: Mapping[str, Scores],
    comparisons: Mapping[str, Scores | Sequence[Scores]],
    seeds: Sequence[Scores],
) -> dict[str, list[Scores]]:
    """Returns the scores of the runs of each method, this run's own first; none if there is nothing to compare with.

    Raises:
        RunError: They are not all of one split of one dataset, or this run has no scores of it.
    """
    others = {name: [given] if isinstance(given, Mapping) else list(given) for name, given in comparisons.items()}
    given = [*seeds, *(content for runs in others.values() for content in runs)]
    if not given:
        return {}
    splits = {(content["dataset"], content["split"]) for content in given}
    dataset, split = next(iter(splits))
    if len(splits) > 1 or split not in scores or scores[split]["dataset"] != dataset:
        asked = ", ".join(f"{dataset} {split}" for dataset, split in sorted(splits))
        own = ", ".join(f"{content['dataset']} {split}" for split, content in scores.items())
        raise RunError(
            f"comparisons: scores of {asked}, and this run ({run}) has those of {own}. Give scores of one split, which the "
            "run has too: others say nothing beside each other."
        )
    return {method: [scores[split], *seeds], **others}


def _summarise(compared: Mapping[str, Sequence[Scores]]) -> list[dict[str, Any]]:
    """Returns the rows of the comparison's table: the heights and whiskers of the figure, as numbers."""
    from neurotome.figures.methods import KEYS, MEANS, summarise

    rows = []
    for name, runs in compared.items():
        known = [run["accuracy"] for run in runs if run["accuracy"] is not None]
        cells = [summarise(runs, mean, key) for mean in MEANS for key in KEYS]
        cells.append((sum(known) / len(known), (min(known), max(known))) if known else (None, None))
        intervals = runs[0]["intervals"] if len(runs) == 1 else None
        rows.append(
            {
                "name": name,
                "runs": len(runs),
                # the whiskers of a single run are its interval, which has a column of its own
                "cells": [{"value": value, "range": reach if len(runs) > 1 else None} for value, reach in cells],
                "interval": intervals["macro_f1"] if intervals else None,
            }
        )
    return rows


def _list_commands(run: Run, config: Mapping[str, Any], environment: Mapping[str, Any]) -> list[dict[str, str]]:
    commands = []
    if environment.get("command"):
        commands.append({"what": "As it was given", "text": str(environment["command"])})
    if config:
        command = "train" if "train" in config else "baseline"
        text = shlex.join(["neurotome", command, "--config", str(run.folder / CONFIG), "--out", f"{run}-again"])
        commands.append({"what": "From the complete settings, into a new folder", "text": text})
    return commands


def _draw_figures(
    run: Run,
    dataset: Dataset,
    scores: Scores,
    statistics: Mapping[str, Any],
    slides: Sequence[Slide],
    compared: Mapping[str, Sequence[Scores]],
    importance: Mapping[str, Any] | None,
) -> dict[str, dict[str, Any]]:
    """Draws into the run's folder of figures; returns each picture by its name."""
    from neurotome import figures

    classes = dataset.classes
    first = next(iter(statistics["splits"]))
    drawn = {
        "class_scores": figures.plot_class_scores(scores, classes),
        "confusion": figures.plot_confusion(scores, classes),
        "class_shares": figures.plot_class_shares(statistics, classes),
        f"histograms_{first}": figures.plot_histograms(statistics, first, classes),
    }
    if rows := run.read_metrics():
        drawn["training"] = figures.plot_training(rows, classes)
    if compared:
        drawn["methods"] = figures.plot_methods(compared)
    if importance is not None:
        drawn["importance"] = figures.plot_importance(importance)
    shown = [(slide, f"{slide.name}\nmacro F1 {slide.macro_f1:.3f}") for slide in spread(slides, EXAMPLES)]
    if shown:
        examples = [figures.Example(name, slide.grey, slide.truth, slide.predicted) for slide, name in shown]
        drawn["examples"] = figures.plot_examples(examples, classes)
    maps = run.uncertainty(scores["split"])
    if shown and maps.is_dir():
        unsure = [
            (
                name,
                slide.grey,
                slide.truth != classes.ignore,
                find_errors(slide.truth, slide.predicted, classes),
                read_beside(maps, slide),
            )
            for slide, name in shown
        ]
        drawn["uncertainty"] = figures.plot_uncertainty(unsure, len(classes))
    pictures = {}
    for name, figure in drawn.items():
        path = run.figures / f"{name}.png"
        figures.save_figure(figure, path)
        pictures["histograms" if name.startswith("histograms") else name] = _embed(path)
    return pictures


def _embed(path: Path) -> dict[str, Any]:
    """Returns a PNG file as data URL, and the width that shows it in the size it was drawn for, in CSS pixels."""
    from neurotome.figures.style import DPI

    content = path.read_bytes()
    pixels = int.from_bytes(content[16:20], "big")  # of the header, which comes first in every PNG file
    return {"source": "data:image/png;base64," + base64.b64encode(content).decode(), "width": round(pixels * 96 / DPI)}


def _fill_template(**content: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("neurotome", "report"),
        autoescape=True,  # names of classes, images and datasets come from strangers
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"score": _show_score, "share": _show_share, "time": _show_time, "bytes": _show_bytes}
    return environment.get_template("template.html.j2").render(content)


def _list_chips(classes: ClassSet) -> list[dict[str, Any]]:
    """Returns name and colour of each class, and its id where figures call it by more than its name."""
    from neurotome.figures import label_classes
    from neurotome.figures.style import bar_colours, painted_ids

    chips = zip(classes.names, label_classes(classes), bar_colours(classes), strict=True)
    return [
        {
            "name": name,
            "colour": _to_css(*(round(255 * part) for part in colour)),
            "id": "" if label == name else str(number + classes.first_id),
            "painted": number in painted_ids(classes),
        }
        for number, (name, label, colour) in enumerate(chips)
    ]


def _to_css(red: int, green: int, blue: int) -> str:
    return f"#{red:02x}{green:02x}{blue:02x}"


def _show_score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _show_share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


def _show_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _show_bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
