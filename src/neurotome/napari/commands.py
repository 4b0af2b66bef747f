"""write_command: what a panel does, as a command for a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_command(name: str, /, *arguments: str | Path | None, **options: Any) -> str:
    """Returns a command of neurotome as one types it.

    Args:
        name: Of the command.
        arguments: What stands before the options; None is left out.
        options: By name; False, None and what is empty is left out, True is a flag.
    """
    words = ["neurotome", name, *(str(argument) for argument in arguments if argument is not None)]
    for key, value in options.items():
        if value is None or value is False or (isinstance(value, (str, Sequence)) and not len(value)):
            continue
        words.append(f"--{key.replace('_', '-')}")
        if value is not True:
            words += [
                f"{v:g}" if isinstance(v, float) else str(v) for v in (value if isinstance(value, tuple) else (value,))
            ]
    return shlex.join(words)
