"""Enough to say where a number came from, and how much memory it took."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "lightning", "segmentation-models-pytorch", "timm", "numpy", "scikit-image", "scikit-learn", "scipy")


def describe_environment() -> dict[str, Any]:
    """Returns versions, machine, command and commit: where a number came from."""
    root = Path(__file__).resolve().parents[3]  # of the source tree, which an installed package lacks
    git = ["git", "-C", str(root), "rev-parse", "HEAD"]
    has_git = (root / ".git").exists()
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() if has_git else ""
    return {
        "neurotome": metadata.version("neurotome"),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "git_commit": commit or None,
    }


def measure_peak_memory() -> int:
    """Returns the most memory that this process has held so far, in bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
