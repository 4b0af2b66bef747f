"""Tables for whoever looks at a result: aligned text for terminals, HTML for notebooks."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Cells as text.

    Attributes:
        columns: Headings.
        rows: As many cells as headings each; the first names the row.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def to_text(self, indent: str = "") -> str:
        """Returns lines: the first column flush left, the others flush right."""
        cells = [self.columns, *self.rows]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        lines = (
            "  ".join(
                [f"{row[0]:<{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))]
            )
            for row in cells
        )
        return "\n".join((indent + line).rstrip() for line in lines)

    def to_html(self) -> str:
        """Returns a table element."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.columns)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def to_html(*pieces: str | Table) -> str:
    """Returns paragraphs of text and tables as HTML, for a notebook's `_repr_html_`."""
    return "".join(
        piece.to_html() if isinstance(piece, Table) else f"<p>{'<br>'.join(map(html.escape, piece.splitlines()))}</p>"
        for piece in pieces
    )
