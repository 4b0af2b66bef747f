"""The founding report's tables with what was measured beside every printed number."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from neurotome.experiments.reproduction.measured import Measured, Method
from neurotome.experiments.reproduction.published import PrintedRow, PrintedTable, read_mtneuro, read_report
from neurotome.report.side_table import Cell, Form, SideRow, SideTable
from neurotome.statistics import Estimate

HEADINGS = {"precision": "Precision", "recall": "Recall", "f1": "F1", "memory": "Memory, MiB"}

BY_NETWORK = 4
"""The first table that compares networks rather than losses or learning rates: there ours is the recipe's own loss."""

REPORTS_DATA = "mtneuro-4class-with-zi"


def list_tables(measured: Measured, statistics: Mapping[str, Any] | None) -> list[SideTable]:
    """Returns Tables 1 to 14, then MTNeuro's published results where the data are theirs."""
    scores = measured.first_scores()
    classes = tuple(scores["classes"]) if scores else ()
    tables = [
        _set_data(table, statistics) if table.number == 1 else _set_scores(table, measured, classes)
        for table in read_report()
    ]
    dataset = scores["dataset"] if scores else ""
    if dataset in read_mtneuro():
        tables.append(_set_mtneuro(measured, dataset))
    return tables


def _set_data(table: PrintedTable, statistics: Mapping[str, Any] | None) -> SideTable:
    """Returns Table 1, whose rows are the classes, with a column for each split."""
    splits: Mapping[str, Any] = statistics["splits"] if statistics else {}
    found: dict[str, dict[str, float]] = {
        split: {**values["counts"], "slices": values["slices"], "grey std": values["std"], "grey mean": values["mean"]}
        for split, values in splits.items()
    }
    others = dict.fromkeys(name for values in found.values() for name in values if name not in table.columns)
    named = [*table.columns[:4], *others, *table.columns[4:]]
    rows = []
    for name in named:
        form: Form = "grey" if name.startswith("grey") else "count"
        cells = []
        for row in table.rows:
            value = found.get(row.split, {}).get(name)
            measured = Estimate(value, None, None, 1, 0, "") if found else None
            cells.append(Cell(row.values.get(name), {"data": measured}, form))
        rows.append(SideRow(name, tuple(cells)))
    columns = tuple(row.name for row in table.rows)
    return SideTable("table-01", f"Table 1. {table.title}", columns, {"data": "this data"}, tuple(rows))


def _set_scores(table: PrintedTable, measured: Measured, classes: Sequence[str]) -> SideTable:
    rows = [_set_row(row, table, measured) for row in table.rows]
    printed = {row.mean for row in table.rows}
    notes = []
    if "background" in printed:  # a table of classes
        others = [name for name in classes if name not in printed]
        rows += [
            _set_row(dataclasses.replace(table.rows[0], name=name, mean=name, values={}, doubts=()), table, measured)
            for name in others
        ]
        if absent := [row.name for row in table.rows if classes and row.name not in classes]:
            notes.append(f"This data has no class {', '.join(absent)}.")
    recipes = measured.recipes
    if table.number >= BY_NETWORK and len(recipes) > 1:
        notes.append(f"In {', '.join(recipes[1:])} the network has that recipe's own loss and learning rate.")
    return SideTable(
        f"table-{table.number:02d}",
        f"Table {table.number}. {table.title}",
        tuple(HEADINGS[column] for column in table.columns),
        {recipe: recipe for recipe in recipes},
        tuple(rows),
        table.doubts,
        tuple(notes),
    )


def _set_row(row: PrintedRow, table: PrintedTable, measured: Measured) -> SideRow:
    cells = []
    for column in table.columns:
        found: dict[str, Estimate | None] = {}
        for recipe in measured.recipes:
            own_loss = table.number >= BY_NETWORK and recipe != measured.recipes[0]
            method = measured.find(recipe, row.run, own_loss)
            if method is None:
                found[recipe] = None
            else:
                found[recipe] = (
                    find_memory(method) if column == "memory" else method.estimate(row.split, row.find_score(column))
                )
        cells.append(Cell(row.values.get(column), found, "memory" if column == "memory" else "score"))
    return SideRow(row.name, tuple(cells), row.doubts, row.again)


def find_memory(method: Method) -> Estimate | None:
    """Returns the peak memory of a training in MiB."""
    found = method.mean("peak_memory_bytes")
    if found is None or found.value is None:
        return None
    low, high = (None if edge is None else edge / 2**20 for edge in (found.low, found.high))
    return dataclasses.replace(found, value=found.value / 2**20, low=low, high=high)


def _set_mtneuro(measured: Measured, dataset: str) -> SideTable:
    published = read_mtneuro()[dataset]
    rows = []
    for network, values in published.f1.items():
        paths = [*(f"per_class.{name}.f1" for name in published.classes), "macro.f1"]
        found = {recipe: measured.find(recipe, f"{network}-resnet18") for recipe in measured.recipes}
        cells = [
            Cell(value, {recipe: method.estimate("test", path) if method else None for recipe, method in found.items()})
            for value, path in zip(values, paths, strict=True)
        ]
        rows.append(SideRow(network, tuple(cells)))
    return SideTable(
        "mtneuro",
        f"MTNeuro's published F1 on {dataset.removeprefix('mtneuro-')}, test",
        (*published.classes, "mean"),
        {recipe: recipe for recipe in measured.recipes},
        tuple(rows),
        notes=("Quesada et al. (2022), arXiv:2301.00345, and its project page.",),
    )
