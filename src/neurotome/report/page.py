"""build_report: a run folder as one self-contained page of scores, pictures, data and settings."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from neurotome.atomic import write_text
from neurotome.classes import ClassSet
from neurotome.datasets.base import Dataset
from neurotome.datasets.statistics import Statistics, measure_dataset
from neurotome.errors import RunError
from neurotome.objects.scores import describe_objects, list_object_rows
from neurotome.progress import format_duration
from neurotome.report.slides import Slide, encode_layers, load_slides, rank_images, spread, to_url
from neurotome.report.verdict import Scores, read_scores, verdict
from neurotome.runs import Run
from neurotome.statistics import estimate

SLIDES, EXAMPLES, EXTREMES = 8, 3, 5


def check_scored_on(run: Run, dataset: Dataset) -> None:
    """Checks that a dataset is the one that a run was scored on; RunError if it is not."""
    for split, single in read_scores(run).items():
        if tuple(single["classes"]) != dataset.classes.names:
            raise RunError(
                f"{run}: the scores of split {split} are of the classes {', '.join(single['classes'])}, but the dataset "
                f"has {', '.join(dataset.classes.names)}. Give the dataset that the run was scored on."
            )
        made_from = single.get("made_from", {}).get("data_sha256")
        if made_from and (not dataset.splits.get(split) or dataset.fingerprint(split) != made_from):
            raise RunError(
                f"{run}: the scores of split {split} are of other images, labels or voxel sizes than those of the dataset "
                f"{dataset.name}. Give the dataset that the run was scored on."
            )


def build_report(
    run: Run,
    dataset: Dataset,
    *,
    comparisons: Mapping[str, Sequence[Scores]] | None = None,
    seeds: Sequence[Scores] = (),
    title: str | None = None,
) -> Path:
    """Writes `run/report.html`, one page that needs no other file and no network, and `run/figures/*.png`.

    What a run folder lacks, as that of a baseline lacks a training curve, the page leaves out; scores it must have.

    Args:
        run: A run.
        dataset: What it was trained and scored on.
        comparisons: By the name of another method, the scores of its runs, which differ in nothing but their seed; they are
            shown as their mean and range. All are of one split; this run's scores of it stand beside them.
        seeds: Scores of the further runs of this run's method.
        title: Heading of the page.

    Returns:
        The report.

    Raises:
        RunError: There are no scores, a file of the run cannot be read, the dataset is another one, or a comparison has
            this run's name or other images.
        ImageError: A prediction is missing or damaged.
    """
    scores = read_scores(run)
    if not scores:
        raise RunError(f"{run}: found no scores, so there is nothing to report; give the run's command again to finish it.")
    check_scored_on(run, dataset)
    split = next(iter(scores))
    record, config, environment = run.read_record(), run.read_config(), run.read_environment() or {}
    name = run.folder.resolve().name
    method = record.method if record else name
    compared = _gather(run, method, scores, comparisons or {}, seeds)
    statistics = measure_dataset(dataset)
    ranked = rank_images(scores[split])
    predicted = run.predictions(split).is_dir()
    slides = load_slides(run, dataset, split, spread(ranked, SLIDES)) if predicted else []
    few = len(ranked) <= 2 * EXTREMES
    page = fill_template(
        "template.html.j2",
        title=title or f"{method} on {dataset.name}",
        run=name,
        method=method,
        dataset=dataset,
        split=split,
        scores=scores,
        verdict=verdict(run, comparisons),
        list_object_rows=list_object_rows,
        describe_objects=describe_objects,
        training=run.read_training() or {},
        environment=environment,
        config=run.config.read_text(encoding="utf-8") if config else "",
        commands=_list_commands(run, config, environment),
        compared_on=next(iter(compared.values()))[0] if compared else {},
        importance=run.read_importance(),
        statistics=statistics,
        worst=ranked if few else ranked[:EXTREMES],
        best=[] if few else ranked[-EXTREMES:],
        some_ignored=any((slide.truth == dataset.classes.ignore).any() for slide in slides),
        slides=[{"slide": slide, "layers": encode_layers(slide, dataset.classes)} for slide in slides],
        version=metadata.version("neurotome"),
        **_draw_figures(run, dataset.classes, scores[split], statistics, slides, compared),
    )
    write_text(run.report, page)
    return run.report


def _gather(
    run: Run,
    method: str,
    scores: Mapping[str, Scores],
    comparisons: Mapping[str, Sequence[Scores]],
    seeds: Sequence[Scores],
) -> dict[str, Sequence[Scores]]:
    """Returns the scores of the runs of each method, this run's own first; none if there is nothing to compare with."""
    given = [*seeds, *(content for runs in comparisons.values() for content in runs)]
    if not given:
        return {}
    if method in comparisons:
        raise RunError(f"comparisons: {method!r} is this run's own name; give the other method another one.")
    asked = {(content["dataset"], content["split"]) for content in given}
    own = {(content["dataset"], split) for split, content in scores.items()}
    if len(asked) > 1 or not asked <= own:
        theirs, ours = (", ".join(f"{dataset} {split}" for dataset, split in sorted(pairs)) for pairs in (asked, own))
        raise RunError(
            f"comparisons: scores of {theirs}, and this run ({run}) has those of {ours}. Give scores of one split, which "
            "the run has too: others say nothing beside each other."
        )
    return {method: [scores[given[0]["split"]], *seeds], **comparisons}


def _list_commands(run: Run, config: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, str]:
    """Returns the commands that repeat a run, each by what it does."""
    commands = {"As it was given": str(environment["command"])} if environment.get("command") else {}
    if config:
        command = "train" if "train" in config else "baseline"
        again = ["neurotome", command, "--config", str(run.config), "--out", f"{run}-again"]
        commands["From the complete settings, into a new folder"] = shlex.join(again)
    return commands


def _draw_figures(
    run: Run,
    classes: ClassSet,
    scores: Scores,
    statistics: Statistics,
    slides: Sequence[Slide],
    compared: Mapping[str, Sequence[Scores]],
) -> dict[str, Any]:
    """Draws into the run's folder of figures; returns what of it the page shows: pictures by name, colours, a table."""
    from neurotome import figures
    from neurotome.figures.pictures import WRONG
    from neurotome.figures.scores import KEYS, MEANS, summarise
    from neurotome.figures.style import DPI, bar_colours, label_classes, painted_ids

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
    if importance := run.read_importance():
        drawn["importance"] = figures.plot_importance(importance)
    if slides:
        chosen = spread(slides, EXAMPLES)
        examples = [
            figures.Example(f"{slide.name}\nmacro F1 {slide.macro_f1:.3f}", slide.grey, slide.truth, slide.predicted)
            for slide in chosen
        ]
        drawn["examples"] = figures.plot_examples(examples, classes)
        maps = [slide.uncertainty for slide in chosen if slide.uncertainty is not None]
        if maps:
            drawn["uncertainty"] = figures.plot_uncertainty(list(zip(examples, maps, strict=True)), classes)
    pictures = {}
    for name, figure in drawn.items():
        path = run.figures / f"{name}.png"
        figures.save_figure(figure, path)
        # the width in CSS pixels shows it in the size it was drawn for
        width = round(96 * round(figure.get_figwidth() * DPI) / DPI)
        pictures[name] = {"source": to_url("png", path.read_bytes()), "width": width}
    labels = zip(classes.names, label_classes(classes), bar_colours(classes), strict=True)
    return {
        "figures": pictures,
        "chips": [
            {
                "name": name,
                "colour": _to_css([255 * part for part in colour]),
                "id": "" if label == name else str(number + classes.first_id),
                "painted": number in painted_ids(classes),
            }
            for number, (name, label, colour) in enumerate(labels)
        ],
        "error_colour": _to_css(WRONG),
        "compared": [
            {
                "name": name,
                "runs": len(runs),
                "cells": [summarise([scores[mean][key] for scores in runs]) for mean in MEANS for key in KEYS]
                + [summarise([scores["accuracy"] for scores in runs])],
                "interval": None if (found := estimate(runs, "macro.f1")).low is None else (found.low, found.high),
            }
            for name, runs in compared.items()
        ],
    }


def fill_template(template: str, filters: Mapping[str, Callable[..., str]] | None = None, **content: Any) -> str:
    """Returns a page; every value is escaped. `filters` are those that it has beyond the usual ones."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("neurotome", "report"),
        autoescape=True,  # names of classes, images and datasets come from strangers
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "score": lambda value: "–" if value is None else f"{value:.3f}",
        "share": lambda value: "–" if value is None else f"{100 * value:.2f} %",
        "time": format_duration,
        "bytes": lambda size: f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB",
        **(filters or {}),
    }
    return environment.get_template(template).render(content)


def _to_css(colour: Sequence[float]) -> str:
    return "#" + "".join(f"{round(part):02x}" for part in colour)
