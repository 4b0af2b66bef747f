"""Tidy tables: a row per thing, units in the names of the columns; as CSV and as Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neurotome.atomic import atomic_path, write_text

Columns = Mapping[str, Any]
"""By name, numpy arrays or lists of text, all of one length; NaN is nothing."""


def gather(rows: Sequence[Mapping[str, Any]], types: Mapping[str, type]) -> dict[str, Any]:
    """Returns rows as columns of stated types, so that a table without rows has them too; None becomes NaN."""
    columns: dict[str, Any] = {}
    for name, kind in types.items():
        values = [row[name] for row in rows]
        columns[name] = values if kind is str else np.array([np.nan if v is None else v for v in values], kind)
    return columns


def write_table(stem: Path, columns: Columns) -> None:
    """Writes `stem`.csv and `stem`.parquet."""
    import pyarrow
    from pyarrow import parquet

    text_of = pyarrow.string()
    table = pyarrow.table(
        {
            name: pyarrow.array(values, text_of) if isinstance(values, list) else pyarrow.array(values, from_pandas=True)
            for name, values in columns.items()
        }
    )
    with atomic_path(stem.with_suffix(".parquet")) as temporary:
        parquet.write_table(table, temporary)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.column_names)
    writer.writerows(zip(*(column.to_pylist() for column in table.columns), strict=True))
    write_text(stem.with_suffix(".csv"), text.getvalue())
