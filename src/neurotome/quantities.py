"""Sizes as people write them."""

from __future__ import annotations

import re

from neurotome.errors import SettingsError


def read_bytes(text: str, setting: str = "max_memory") -> int:
    """Returns a size such as 500MB, 2GB or 1.5 GiB in bytes; `setting` is named where it is none."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", str(text), re.IGNORECASE)
    size = float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2].lower() or " ") if match else 0
    if size < 1:
        raise SettingsError(f"{setting} is {text!r}; expected a size such as 500MB or 2GB.")
    return int(size)


def format_bytes(size: float) -> str:
    """Returns a number of bytes as 950 kB, 1.4 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5 or unit == "TB":
            return f"{size:.3g} {unit}"
        size /= 1000
    raise AssertionError
