"""Tables for whoever looks at a result: aligned text for terminals, HTML for notebooks."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple


class Table(NamedTuple):
    """Cells as text; the first of each row names it."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def to_text(self) -> str:
        """Returns lines: the first column flush left, the others flush right."""
        cells = [self.columns, *self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        padded = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in cells)
        return "\n".join("  ".join(row).rstrip() for row in padded)

    def to_html(self) -> str:
        """Returns a table element."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.columns)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class Shown:
    """Base of results that are looked at: text and tables, as `_show` returns them, in terminals and notebooks."""

    def _show(self) -> Sequence[str | Table]:
        raise NotImplementedError

    def __str__(self) -> str:
        return "\n".join(piece.to_text() if isinstance(piece, Table) else piece for piece in self._show())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return "".join(
            piece.to_html()
            if isinstance(piece, Table)
            else f"<p>{'<br>'.join(map(html.escape, piece.strip().splitlines()))}</p>"
            for piece in self._show()
        )


def count(number: int, thing: str) -> str:
    """Returns a number of things: "1 image", "2 images"."""
    return f"{number:,} {thing}{'s' * (number != 1)}"
