"""The printed numbers of the founding report and of MTNeuro, as facts to set measured ones beside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from neurotome.documents import read_yaml
from neurotome.errors import NeurotomeError

PUBLISHED = Path(__file__).with_name("published.yaml")

SCORES = ("precision", "recall", "f1")
MEANS = ("macro", "weighted")


@dataclass(frozen=True)
class PrintedRow:
    """A row of a printed table.

    Attributes:
        name: As it is printed, or the class.
        run: Label of the run that it is about, "" for one about the data.
        split: Which split was scored or counted.
        mean: macro, weighted or a class.
        values: By what they are.
        again: Whether another row has the same printed numbers, since it is not said which of two runs they are of.
        doubts: Numbers of the table's doubts that concern it.
    """

    name: str
    run: str
    split: str
    mean: str
    values: Mapping[str, float]
    again: bool = False
    doubts: tuple[int, ...] = ()

    def find_score(self, key: str) -> str:
        """Returns the dotted path of a score in `scores/<split>.json`."""
        return f"{self.mean}.{key}" if self.mean in MEANS else f"per_class.{self.mean}.{key}"


@dataclass(frozen=True)
class PrintedTable:
    """A printed table; `doubts` say what in it contradicts itself or another table."""

    number: int
    title: str
    columns: tuple[str, ...]
    rows: tuple[PrintedRow, ...]
    doubts: tuple[str, ...]


@dataclass(frozen=True)
class PublishedScores:
    """F1 of each class on MTNeuro's split test, and their mean last, by network."""

    classes: tuple[str, ...]
    f1: Mapping[str, tuple[float, ...]]


@cache
def read_report() -> tuple[PrintedTable, ...]:
    """Returns Tables 1 to 14 of the founding report."""
    return tuple(_read_table(number, content) for number, content in _read()["report"].items())


@cache
def read_mtneuro() -> dict[str, PublishedScores]:
    """Returns MTNeuro's published results by the name of the dataset."""
    return {
        name: PublishedScores(tuple(content["classes"]), {key: tuple(values) for key, values in content["f1"].items()})
        for name, content in _read()["mtneuro"].items()
    }


@cache
def _read() -> Mapping[str, Any]:
    return read_yaml(PUBLISHED, NeurotomeError, "Install neurotome again.")


def _read_table(number: int, content: Mapping[str, Any]) -> PrintedTable:
    columns = tuple(content.get("values", SCORES))
    doubts = content.get("doubts", [])
    rows = []
    for row in content["rows"]:
        mean = row.get("mean", "macro")
        name = row.get("name", mean)
        marks = tuple(i for i, doubt in enumerate(doubts, start=1) if name in doubt.get("rows", ()))
        values = dict(zip(columns, row["values"], strict=True))
        split = row.get("split", content.get("split", "test"))
        rows.append(PrintedRow(name, row.get("run", content.get("run", "")), split, mean, values, doubts=marks))
        if "again" in row:
            rows.append(PrintedRow(f"{name}, class weights", row["again"], split, mean, values, again=True, doubts=marks))
    return PrintedTable(number, content["title"], columns, tuple(rows), tuple(doubt["text"] for doubt in doubts))
