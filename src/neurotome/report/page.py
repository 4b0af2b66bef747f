"""build_report: a run folder as one self-contained page of scores, pictures, data and settings."""

from __future__ import annotations

import base64
import csv
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from neurotome.atomic import write_text
from neurotome.classes import ClassSet
from neurotome.datasets.base import SPLITS, Dataset
from neurotome.datasets.statistics import measure_dataset
from neurotome.errors import RunError
from neurotome.report.slides import ERROR, Slide, encode_layers, find_errors, load_slides, rank_images, read_beside, spread

SLIDES = 8
EXAMPLES = 3
EXTREMES = 5
FIRST_SPLITS = ("test", "val", "train")
"""Splits by how much their scores say."""


def build_report(
    run: Path,
    dataset: Dataset,
    *,
    comparisons: Mapping[str, Mapping[str, Any] | Sequence[Mapping[str, Any]]] | None = None,
    seeds: Sequence[Mapping[str, Any]] = (),
    title: str | None = None,
) -> Path:
    """Writes `run/report.html`, one page that needs no other file and no network, and `run/figures/*.png`.

    What a run folder lacks, as that of a baseline lacks a training curve, the page leaves out; scores it must have.

    Args:
        run: Run folder.
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
    scores = _read_scores(run, dataset.classes)
    split = next(iter(scores))
    config = _read_config(run)
    training = _read_json(run / "training.json") or {}
    environment = _read_json(run / "environment.json") or {}
    rows = _read_metrics(run / "metrics.csv")
    statistics = measure_dataset(dataset)
    ranked = rank_images(scores[split])
    slides = []
    if (run / "predictions" / split).is_dir():
        slides = load_slides(run, dataset, split, spread(ranked, SLIDES))
    method = name_method(config, run)
    if comparisons and method in comparisons:
        raise RunError(f"comparisons: {method!r} is this run's own name; give the other method another one.")
    importance = _read_json(run / "importance.json")
    compared = _gather(run, method, scores, comparisons or {}, seeds)
    page = _fill_template(
        title=title or f"{method} on {dataset.name}",
        run=run.resolve().name,
        method=method,
        dataset=dataset,
        chips=_list_chips(dataset.classes),
        split=split,
        scores=scores,
        training=training,
        environment=environment,
        config=yaml.safe_dump(config, sort_keys=False, allow_unicode=True) if config else "",
        commands=_list_commands(run, config, environment),
        compared=_summarise(compared),
        compared_on=next(iter(compared.values()))[0] if compared else {},
        figures=_draw_figures(run, dataset.classes, scores[split], rows, statistics, slides, compared)
        | _draw_pixels(run, dataset, split, slides, importance),
        importance=importance,
        statistics=statistics,
        worst=ranked[:EXTREMES] if len(ranked) > 2 * EXTREMES else ranked,
        best=ranked[-EXTREMES:] if len(ranked) > 2 * EXTREMES else [],
        error_colour=_to_css(*ERROR),
        some_ignored=any((slide.truth == dataset.classes.ignore).any() for slide in slides),
        slides=[{"slide": slide, "layers": encode_layers(slide, dataset.classes)} for slide in slides],
        version=metadata.version("neurotome"),
    )
    write_text(run / "report.html", page)
    return run / "report.html"


def _read_scores(run: Path, classes: ClassSet) -> dict[str, dict[str, Any]]:
    """Returns the scores of every split that has them, the most telling first."""
    found = {split: _read_json(run / "scores" / f"{split}.json") for split in FIRST_SPLITS}
    scores = {split: one for split, one in found.items() if one is not None}
    if not scores:
        raise RunError(
            f"{run}: found no scores/<split>.json for any of {', '.join(SPLITS)}, so there is nothing to report; give the "
            "run's neurotome train command again to finish it."
        )
    for split, one in scores.items():
        if tuple(one.get("classes", ())) != classes.names:
            raise RunError(
                f"{run / 'scores' / f'{split}.json'}: scores of the classes {', '.join(map(str, one.get('classes', ())))}, "
                f"but the dataset has {', '.join(classes.names)}. Give the dataset that the run was scored on."
            )
    return scores


def _gather(
    run: Path,
    method: str,
    scores: Mapping[str, Mapping[str, Any]],
    comparisons: Mapping[str, Mapping[str, Any] | Sequence[Mapping[str, Any]]],
    seeds: Sequence[Mapping[str, Any]],
) -> dict[str, list[Mapping[str, Any]]]:
    """Returns the scores of the runs of each method, this run's own first; none if there is nothing to compare with.

    Raises:
        RunError: They are not all of one split of one dataset, or this run has no scores of it.
    """
    others = {name: [found] if isinstance(found, Mapping) else list(found) for name, found in comparisons.items()}
    given = [*seeds, *(one for found in others.values() for one in found)]
    if not given:
        return {}
    splits = {(one["dataset"], one["split"]) for one in given}
    dataset, split = next(iter(splits))
    if len(splits) > 1 or split not in scores or scores[split]["dataset"] != dataset:
        there = ", ".join(f"{name} {part}" for name, part in sorted(splits))
        own = ", ".join(f"{one['dataset']} {part}" for part, one in scores.items())
        raise RunError(
            f"comparisons: scores of {there}, and this run ({run}) has those of {own}. Give scores of one split, which the "
            "run has too: others say nothing beside each other."
        )
    return {method: [scores[split], *seeds], **others}


def _summarise(compared: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
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


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is no valid JSON ({error}); delete it and give the run's command again.") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} holds a {type(content).__name__}; expected a JSON object. Delete it and run again.")
    return content


def _read_config(run: Path) -> dict[str, Any]:
    path = run / "config.yaml"
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is no valid YAML ({error}); restore it, or train into a new folder.") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} holds no settings; restore it, or train into a new folder.")
    return content


def _read_metrics(path: Path) -> list[dict[str, float | None]]:
    if not path.is_file():
        return []
    try:
        table = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")), strict=True)
        return [{key: float(value) if value else None for key, value in row.items()} for row in table]
    except (csv.Error, TypeError, ValueError) as error:
        raise RunError(f"{path}: cannot be read as a table of numbers ({error}); delete it to report without it.") from error


def name_method(config: Mapping[str, Any], run: Path) -> str:
    """Returns what a run's method is called: by its settings, or by its folder where it has none."""
    if {"learner", "features"} <= set(config):
        encoder = config.get("encoder") or {}
        if config["features"] == "encoder" and not encoder.get("model"):
            return f"{config['learner']} on {encoder.get('name')} with weights {encoder.get('weights')}"
        return f"{config['learner']} on {config['features']}"
    model = config.get("model")
    if isinstance(model, dict) and {"decoder", "encoder"} <= set(model):
        return f"{model['decoder']}, {model['encoder']}"
    return run.resolve().name


def _list_commands(run: Path, config: Mapping[str, Any], environment: Mapping[str, Any]) -> list[dict[str, str]]:
    commands = []
    if environment.get("command"):
        commands.append({"what": "As it was given", "text": str(environment["command"])})
    if {"dataset", "model", "train"} <= set(config):
        text = shlex.join(["neurotome", "train", "--config", str(run / "config.yaml"), "--out", f"{run}-again"])
        commands.append({"what": "From the complete settings, into a new folder", "text": text})
    if {"dataset", "learner", "features"} <= set(config):
        text = shlex.join(["neurotome", "baseline", "--config", str(run / "config.yaml"), "--out", f"{run}-again"])
        commands.append({"what": "From the complete settings, into a new folder", "text": text})
    return commands


def _draw_figures(
    run: Path,
    classes: ClassSet,
    scores: Mapping[str, Any],
    rows: Sequence[Mapping[str, float | None]],
    statistics: Mapping[str, Any],
    slides: Sequence[Slide],
    compared: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, dict[str, Any]]:
    """Draws into `run/figures/`; returns each picture by its name."""
    from neurotome import figures

    drawn = {
        "class_scores": figures.plot_class_scores(scores, classes),
        "confusion": figures.plot_confusion(scores, classes),
        "class_shares": figures.plot_class_shares(statistics, classes),
    }
    first = next(iter(statistics["splits"]))
    drawn[f"histograms_{first}"] = figures.plot_histograms(statistics, first, classes)
    if rows:
        drawn["training"] = figures.plot_training(rows, classes)
    if compared:
        drawn["methods"] = figures.plot_methods(compared)
    if slides:
        drawn["examples"] = figures.plot_examples(
            [
                figures.Example(f"{slide.name}\nmacro F1 {slide.macro_f1:.3f}", slide.grey, slide.truth, slide.predicted)
                for slide in spread(slides, EXAMPLES)
            ],
            classes,
        )
    pictures = {}
    for name, figure in drawn.items():
        path = run / "figures" / f"{name}.png"
        figures.save_figure(figure, path)
        pictures[name.partition("_")[0] if name.startswith("histograms") else name] = _embed(path)
    return pictures


def _draw_pixels(
    run: Path, dataset: Dataset, split: str, slides: Sequence[Slide], importance: Mapping[str, Any] | None
) -> dict[str, dict[str, Any]]:
    """Draws what a pixel classifier relies on and where it is unsure, if the run folder says so."""
    from neurotome import figures

    drawn = {}
    if importance is not None:
        drawn["importance"] = figures.plot_importance(importance)
    maps = run / "uncertainty" / split
    if slides and maps.is_dir():
        classes = dataset.classes
        examples = [
            (
                f"{slide.name}\nmacro F1 {slide.macro_f1:.3f}",
                slide.grey,
                slide.truth != classes.ignore,
                find_errors(slide.truth, slide.predicted, classes),
                read_beside(maps, dataset, split, slide),
            )
            for slide in spread(slides, EXAMPLES)
        ]
        drawn["uncertainty"] = figures.plot_uncertainty(examples, len(classes))
    pictures = {}
    for name, figure in drawn.items():
        figures.save_figure(figure, run / "figures" / f"{name}.png")
        pictures[name] = _embed(run / "figures" / f"{name}.png")
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


def _list_chips(classes: ClassSet) -> list[dict[str, str]]:
    """Returns name and colour of each class, and its id where figures call it by more than its name."""
    from neurotome.figures import label_classes
    from neurotome.figures.style import bar_colours

    chips = zip(classes.names, label_classes(classes), bar_colours(classes), strict=True)
    return [
        {
            "name": name,
            "colour": _to_css(*(round(255 * part) for part in colour)),
            "id": "" if label == name else str(number),
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
