"""reproduce: every experiment of the founding report, and its tables and claims beside what was measured."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from neurotome.atomic import write_json
from neurotome.datasets import open_dataset
from neurotome.datasets.base import Dataset, DatasetOrName
from neurotome.datasets.statistics import measure_dataset
from neurotome.documents import read_json
from neurotome.errors import NeurotomeError, RunError
from neurotome.experiments.grids.grid import fit_plan, open_grid, run_grid
from neurotome.experiments.grids.plan import read_grid
from neurotome.experiments.reproduction.claims import DECODERS, ENCODERS, judge_claims, to_pair
from neurotome.experiments.reproduction.measured import Measured, Method, compare_methods
from neurotome.experiments.reproduction.published import SCORES
from neurotome.experiments.reproduction.side_by_side import REPORTS_DATA, find_memory, list_tables
from neurotome.report.chosen import draw_augmented, draw_predictions, draw_samples
from neurotome.report.judged import Pair
from neurotome.report.reproduction import Ranked, Reproduction, list_facts, write_reproduction
from neurotome.statistics import rank_methods

if TYPE_CHECKING:
    from neurotome.figures import Figure, Setting

MTNEURO = Path("mtneuro")
STATISTICS = "statistics.json"


def reproduce(
    *,
    out: Path,
    data: DatasetOrName | None = None,
    budget: str = "",
    grid: str = "founding_report/grid",
    page_only: bool = False,
) -> Path:
    """Runs every experiment of the founding report and sets its tables and claims beside what was measured.

    The same command given again goes on where it was stopped; once all is done it writes the page anew.

    Args:
        out: Folder for everything: the runs, the page reproduction.html, its tables as CSV and LaTeX.
        data: Folder with dataset.yaml, mtneuro:FOLDER@VARIANT, or phantom. Without it the report's own data,
            mtneuro:mtneuro@4class-with-zi, if the folder mtneuro is here, otherwise phantom.
        budget: Wall-clock time that all runs together may take, such as 45m; epochs, patches and the list of runs are made
            to fit, and the page says how. Without it everything is run as it is written.
        grid: Settings of all runs, a YAML file or the name of one that comes with neurotome.
        page_only: Trains nothing: writes the page from what the folder holds.

    Returns:
        The page.

    Raises:
        RunError: Runs have failed (the page is there, and says which), or the folder holds something else.
        NeurotomeError: The data, the grid or the budget cannot be used; nothing has been changed then.
    """
    out = Path(out)  # text from Python
    if not page_only:
        run_all(out, data, budget, grid)
    return write_page(out, data)


def run_all(out: Path, data: DatasetOrName | None, budget: str, grid: str) -> None:
    """Runs a grid in a folder, or goes on with what the folder holds; failed runs do not raise."""
    plan = read_grid(grid)
    source = open_grid(out).dataset if data is None and (out / "grid.json").is_file() else choose_data(data)
    run_grid(fit_plan(plan, source, out, budget), source, out)


def write_page(out: Path, data: DatasetOrName | None = None) -> Path:
    """Writes the page of a grid folder from its own files; pictures of the data where these can be opened.

    Raises:
        RunError: It holds no grid, or runs have failed; the page is written all the same then.
    """
    measured = Measured(out)
    dataset = _open_again(data, measured)
    if dataset is not None:
        write_json(out / STATISTICS, measure_dataset(dataset))
    best = find_best(measured)
    draw_figures(measured, dataset, best)
    page = write_reproduction(collect(measured, best), out)
    if measured.failures:
        listed = "\n".join(f"  {name}: {message}" for name, message in measured.failures.items())
        raise RunError(
            f"{len(measured.failures)} of {len(measured.plan.runs)} runs failed; the page is {page}. The same command "
            f"tries them again:\n{listed}"
        )
    return page


def choose_data(data: DatasetOrName | None) -> DatasetOrName:
    """Returns the dataset that is asked for; otherwise the report's own where it is at hand, or the phantom with a note."""
    if data is not None:
        return data
    if MTNEURO.is_dir():
        return f"mtneuro:{MTNEURO}@4class-with-zi"
    warnings.warn(
        "the report's data are not here (no folder mtneuro; `neurotome fetch mtneuro --out mtneuro` gets them), so the "
        "phantom stands in; --data names others.",
        stacklevel=3,
    )
    return "phantom"


def _open_again(data: DatasetOrName | None, measured: Measured) -> Dataset | None:
    try:
        return open_dataset(data or measured.plan.dataset)
    except NeurotomeError as error:
        warnings.warn(f"{error} Pictures of the data are those of before.", stacklevel=3)
        return None


def collect(measured: Measured, best: Method | None) -> Reproduction:
    """Returns what the page of a grid folder shows."""
    scores = measured.first_scores()
    path = measured.folder / STATISTICS
    statistics = read_json(path, RunError, "Delete it; --data makes it again.") if path.is_file() else None
    name = scores["dataset"] if scores else statistics["dataset"] if statistics else measured.plan.dataset
    judged = judge_claims(measured)
    same = compare_recipes(measured)
    reference = find_reference(measured)
    tables = list_tables(measured, statistics)
    methods = list(measured.methods.values())
    devices = {summary["device"] for method in methods for summary in method.training.values()}
    seconds = sum(float(summary["seconds"]) for method in methods for summary in method.training.values())
    environment = next((found for method in methods for found in method.list_environments()), {})
    seeds = sorted({seed for method in methods for seed, _ in method.runs})
    on_gpu = any(device.startswith("cuda") for device in devices)
    images = scores["per_image"]["name"] if scores else []
    return Reproduction(
        dataset=name,
        classes=scores["classes"] if scores else statistics["classes"] if statistics else (),
        comparable=name == REPORTS_DATA,
        scored_on=f"{name}, test, {len(images)} slices" if scores else "nothing yet",
        runs_planned=len(measured.plan.runs),
        single=len(seeds) == 1,
        scaled=measured.plan.scaled,
        judged=judged,
        tables=tables,
        ranking=rank(measured, reference),
        same=same,
        reference=reference.name if reference else "",
        failures=measured.failures,
        missing=measured.missing,
        facts=list_facts(environment, seeds, seconds, sorted(devices)),
        warnings=_list_warnings(methods),
        memory_note=(
            "Memory of Table 4 is the most that the GPU held."
            if on_gpu
            else "Memory of Table 4 is the most that the process held, with the program itself: no GPU was used."
        ),
        best=best.name if best else "",
    )


def _list_warnings(methods: Sequence[Method]) -> list[str]:
    """Returns what limits the intervals, each once."""
    found = (method.estimate("test", "macro.f1") for method in methods)
    return list(dict.fromkeys(one.note for one in found if one is not None and one.note))


def draw_figures(measured: Measured, dataset: Dataset | None, best: Method | None) -> None:
    """Draws the report's figures into `figures/`: those of the data only where these are open."""
    from neurotome import figures

    drawing: dict[str, Callable[[], Figure]] = {"workflow": figures.plot_workflow}
    if settings := list_settings(measured):
        whiskers = "whiskers: 95 % intervals"
        drawing["settings"] = partial(figures.plot_settings, settings, "Every setting on the split test", whiskers)
    if dataset is not None:
        classes = dataset.classes
        recipes = {
            method.recipe: method.build() for method in reversed(measured.methods.values()) if method.kind == "network"
        }
        shown = {name: recipes[name] for name in measured.recipes if name in recipes}
        drawing["samples"] = partial(draw_samples, dataset, classes)
        if shown:
            drawing["augmentation"] = partial(draw_augmented, dataset, classes, shown)
        if best is not None:
            drawing["predictions"] = partial(draw_predictions, best.first_run, dataset, classes)
    for name, draw in drawing.items():
        try:
            figures.save_figure(draw(), measured.folder / "figures" / f"{name}.png")
        except NeurotomeError as error:  # no training images, predictions of a fold: the page does without
            warnings.warn(f"{error} The page goes without the figure {name}.", stacklevel=3)


def list_settings(measured: Measured) -> list[Setting]:
    """Returns a row of Figure 4 for each method that was scored on the split test, by recipe."""
    from neurotome import figures

    rows = []
    for recipe in dict.fromkeys(method.recipe for method in measured.methods.values()):
        for method in measured.methods.values():
            found = [one for key in SCORES if (one := method.estimate("test", f"macro.{key}")) is not None]
            if method.recipe == recipe and found:
                precision, recall, f1 = (
                    (one.value, None if one.low is None or one.high is None else (one.low, one.high)) for one in found
                )
                rows.append(figures.Setting(recipe, method.label, precision, recall, f1))
    return rows


def compare_recipes(measured: Measured) -> list[Pair]:
    """Returns for each network of the report by how much ours is better than as-reported, with focal loss."""
    pairs = {}
    for recipe in measured.recipes[1:]:
        for decoder in DECODERS:
            for encoder in ENCODERS:
                theirs = measured.find(measured.recipes[0], f"{decoder}-{encoder}-focal-lr3e-2")
                ours = measured.find(recipe, f"{decoder}-{encoder}")
                if ours and theirs:
                    pairs[f"{ours.name} - {theirs.name}"] = (ours, theirs)
    found = compare_methods(pairs)
    return [to_pair(pairs[key][0].name, pairs[key][1].name, difference) for key, difference in found.items()]


def find_reference(measured: Measured) -> Method | None:
    """Returns the method that all are compared with: UNet on ResNet18 in our recipe, or the first one there is."""
    scored = [method for method in measured.methods.values() if method.read_scores("test")]
    return next((method for method in scored if method.name == "ours/unet-resnet18"), scored[0] if scored else None)


def find_best(measured: Measured) -> Method | None:
    """Returns the network with the best macro F1 on the split val, whose labels Figure 5 shows."""

    def rate(method: Method) -> float:
        found = method.estimate("val", "macro.f1") or method.estimate("test", "macro.f1")
        return -math.inf if found is None or found.value is None else found.value

    networks = [method for method in measured.methods.values() if method.kind == "network" and method.read_scores("test")]
    return max(networks, key=rate, default=None)


def rank(measured: Measured, reference: Method | None) -> list[Ranked]:
    """Returns the methods that were scored on the split test, the best first; without those that lack a fold of others."""
    scored = {method.name: method for method in measured.methods.values() if method.read_scores("test")}
    folds = {fold for method in scored.values() for _, fold in method.read_scores("test")}
    scored = {name: m for name, m in scored.items() if {fold for _, fold in m.read_scores("test")} == folds}
    if not scored or reference is None:
        return []
    pairs = {name: (method, reference) for name, method in scored.items() if method is not reference}
    differences = compare_methods(pairs)
    rows = []
    for found in rank_methods({name: list(method.read_scores("test").values()) for name, method in scored.items()}):
        method = scored[found.name]
        f1 = method.estimate("test", "macro.f1")
        assert f1 is not None  # it has scores
        means = {key: method.mean(key) for key in ("seconds", "scoring_mpixel_per_s")}
        memory = find_memory(method)
        rows.append(
            Ranked(
                name=found.name,
                runs=len(method.read_scores("test")),
                f1=f1,
                rank=found,
                difference=differences.get(found.name),
                seconds=means["seconds"].value if means["seconds"] else None,
                memory=memory.value if memory else None,
                speed=means["scoring_mpixel_per_s"].value if means["scoring_mpixel_per_s"] else None,
            )
        )
    return rows
