"""Tables of the benchmarks, as docs/benchmarks.md holds them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def show(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table, each row when it is there."""
    print(f"\n{title}\n\n| {' | '.join(headings)} |\n|{'-|' * len(headings)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def join(values: Iterable[float], digits: int = 3) -> str:
    return " / ".join(f"{value:.{digits}f}" for value in values)
