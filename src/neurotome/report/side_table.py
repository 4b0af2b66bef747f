"""Printed and measured numbers side by side, for the page, as CSV and as LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from neurotome.statistics import Estimate

Form = Literal["score", "count", "grey", "memory"]

DIGITS: Mapping[Form, tuple[str, str]] = {
    "score": ("{:.2f}", "{:.3f}"),
    "count": ("{:,.0f}", "{:,.0f}"),
    "grey": ("{:.5g}", "{:.5g}"),
    "memory": ("{:,.0f}", "{:,.0f}"),
}
"""How printed and measured numbers of each form are written."""

NOT_RUN = "not run"
ABSENT = "–"


@dataclass(frozen=True)
class Cell:
    """A printed number, if there is one, and by source (a recipe, or the data) what was measured; None was not run."""

    printed: float | None
    measured: Mapping[str, Estimate | None]
    form: Form = "score"

    def show_printed(self) -> str:
        """Returns the printed number as text."""
        return ABSENT if self.printed is None else DIGITS[self.form][0].format(self.printed)

    def show(self, source: str) -> str:
        """Returns a measured number as text, without its interval."""
        found = self.measured[source]
        if found is None:
            return NOT_RUN
        return ABSENT if found.value is None else DIGITS[self.form][1].format(found.value)

    def show_interval(self, source: str) -> str:
        """Returns the interval of a measured number as text, "" if there is none."""
        found = self.measured[source]
        if found is None or found.low is None or found.high is None:
            return ""
        digits = DIGITS[self.form][1]
        return f"{digits.format(found.low)}–{digits.format(found.high)}"

    def show_difference(self, source: str) -> str:
        """Returns measured minus printed as text."""
        difference = self.find_difference(source)
        if difference is None:
            return ABSENT
        text = DIGITS[self.form][1].format(abs(difference))
        return ("+" if difference > 0 else "−" if difference < 0 else "") + text

    def find_difference(self, source: str) -> float | None:
        """Returns measured minus printed, None where either is not there."""
        found = self.measured[source]
        return None if self.printed is None or found is None or found.value is None else found.value - self.printed


@dataclass(frozen=True)
class SideRow:
    """A row; `doubts` are numbers of those of the table that concern it; `again`: its printed numbers stand twice."""

    name: str
    cells: tuple[Cell, ...]
    doubts: tuple[int, ...] = ()
    again: bool = False


@dataclass(frozen=True)
class SideTable:
    """A table; the difference is that of the first source.

    Attributes:
        key: Names its files, such as `table-04`.
        title: Such as `Table 4. Encoder size`.
        columns: What stands in the cells of every row.
        sources: Where measured numbers come from, by what to call them.
        doubts: What contradicts itself in the printed numbers.
        notes: What else is to be known.
    """

    key: str
    title: str
    columns: tuple[str, ...]
    sources: Mapping[str, str]
    rows: tuple[SideRow, ...]
    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def own_doubts(self) -> tuple[int, ...]:
        """Numbers of the doubts that concern the whole table."""
        of_rows = {number for row in self.rows for number in row.doubts}
        return tuple(number for number in range(1, len(self.doubts) + 1) if number not in of_rows)

    def to_csv(self) -> str:
        """Returns a row per row and column: printed, then of each source what was measured, its interval and difference."""
        parts = ("measured", "low", "high", "difference")
        head = ["row", "column", "printed", *(f"{part} {name}" for name in self.sources.values() for part in parts)]
        lines: list[list[object]] = []
        for row in self.rows:
            for column, cell in zip(self.columns, row.cells, strict=True):
                values: list[object] = [row.name, column, cell.printed]
                for source in self.sources:
                    found = cell.measured[source]
                    values += (None,) * 3 if found is None else (found.value, found.low, found.high)
                    values.append(cell.find_difference(source))
                lines.append(values)
        return write_csv([head, *lines])

    def to_latex(self) -> str:
        """Returns a `tabular` that needs no package: for each column printed, measured with interval, and difference."""
        first = next(iter(self.sources))
        parts = ["printed", *self.sources.values(), "difference"]
        width = len(parts)
        lines = [
            f"% {self.title}",
            rf"\begin{{tabular}}{{l{'r' * width * len(self.columns)}}}",
            r"\hline",
            " & ".join(["", *(rf"\multicolumn{{{width}}}{{c}}{{{to_latex(column)}}}" for column in self.columns)]) + r" \\",
            " & ".join(["", *(to_latex(part) for part in parts * len(self.columns))]) + r" \\",
            r"\hline",
        ]
        for row in self.rows:
            cells = [to_latex(row.name)]
            for cell in row.cells:
                cells.append(cell.show_printed())
                for source in self.sources:
                    interval = cell.show_interval(source)
                    cells.append(cell.show(source) + (f" [{interval}]" if interval else ""))
                cells.append(cell.show_difference(first).replace("−", "$-$"))
            lines.append(" & ".join(cells).replace(ABSENT, "--") + r" \\")
        return "\n".join([*lines, r"\hline", r"\end{tabular}", ""])


def write_csv(lines: Iterable[Iterable[object]]) -> str:
    """Returns lines as CSV; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["" if value is None else value for value in line] for line in lines])
    return text.getvalue()


def write_latex(title: str, head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Returns lines of text as a `tabular` that needs no package, the first column flush left."""
    rows = [" & ".join(map(to_latex, line)) + r" \\" for line in (head, *lines)]
    columns = "l" + "r" * (len(head) - 1)
    body = [rf"\begin{{tabular}}{{{columns}}}", r"\hline", rows[0], r"\hline", *rows[1:], r"\hline", r"\end{tabular}"]
    return "\n".join([f"% {title}", *body, ""])


def to_latex(text: str) -> str:
    """Returns text in which the letters that LaTeX reads as commands are escaped."""
    escaped = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "−": "$-$"}
    return "".join(escaped.get(sign, f"\\{sign}" if sign in "&%$#_{}" else sign) for sign in text)
