"""Which images a call of predict reads and which files it writes, settled before the first image is read."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from neurotome.errors import ImageError, RunError
from neurotome.io.files import OUTPUT_SUFFIXES, SUFFIXES, find_suffix, list_images, name_image, split_inner
from neurotome.io.ome_zarr import is_zarr
from neurotome.outputs import Existing, plan_outputs
from neurotome.tables import count
from neurotome.volume import Volume

Output = Literal["labels", "confidence", "uncertainty", "overlay"]
"""What is written of a prediction."""


@dataclass(frozen=True)
class Job:
    """An image and the files to write for it, without those that are there already."""

    source: Path | Volume
    files: Mapping[Output, Path]


Pairs = list[tuple[Path | Volume, Path]]
"""Images and their label files."""


def list_sources(source: Path | Volume, target: Path) -> tuple[Pairs, Path]:
    """Returns the image named, or those of a folder, each with its label file, and where a legend goes."""
    if isinstance(source, Path) and not split_inner(source)[0].exists():
        raise ImageError(f"{source}: no such file or folder; expected an image, a stack or a folder of them.")
    if isinstance(source, Volume) or not source.is_dir() or is_zarr(source) or find_suffix(source).endswith(".zarr"):
        if isinstance(source, Path) and target.is_dir() and not is_zarr(target):
            target = target / _name_labels(source)
        return [(source, target)], _name_beside(target, "legend", ".png")
    if find_suffix(target).endswith(SUFFIXES):
        raise RunError(f"{target}: the input is a folder, so the output must be a folder too.")
    images = list_images(source)
    if not images:
        raise ImageError(f"{source}: no {', '.join(SUFFIXES)} file in this folder; expected at least one image.")
    return [(image, target / _name_labels(image)) for image in images], target / "legend.png"


def plan_jobs(pairs: Pairs, legend: Path, beside: Sequence[Output], existing: Existing) -> tuple[list[Job], Path | None]:
    """Checks every file that will be written, label files and those `beside` them; with overlays goes a legend.

    Returns a job for every image for which something is to be written, and the legend if it is.
    """
    jobs = []
    for source, labels in pairs:
        if labels.suffix.lower() not in OUTPUT_SUFFIXES:
            raise RunError(f"{labels}: cannot write labels as {labels.suffix!r}; expected {', '.join(OUTPUT_SUFFIXES)}.")
        suffix = ".png" if labels.suffix.lower() == ".png" else ".tif"
        files: dict[Output, Path] = {"labels": labels}
        files |= {kind: _name_beside(labels, kind, suffix) for kind in beside}
        jobs.append(Job(source, files))
    outputs = [path for job in jobs for path in job.files.values()] + [legend] * ("overlay" in beside)
    inputs = [split_inner(source)[0] for source, _ in pairs if isinstance(source, Path)]
    written = set(plan_outputs(outputs, inputs=inputs, existing=existing))
    if kept := len(outputs) - len(written):
        sys.stderr.write(f"note: {count(kept, 'file')} there already, and kept; nobody checks that this model made them.\n")
    jobs = [Job(job.source, {kind: path for kind, path in job.files.items() if path in written}) for job in jobs]
    return [job for job in jobs if job.files], legend if legend in written else None


def _name_beside(labels: Path, what: str, suffix: str) -> Path:
    return labels.with_name(f"{name_image(labels)}_{what}{suffix}")


def _name_labels(image: Path) -> str:
    """Returns the name of the label file of an image: PNG for what is always one slice, TIFF otherwise."""
    flat = find_suffix(image) in (".png", ".bmp", ".jpg", ".jpeg")
    return f"{name_image(split_inner(image)[0])}{'.png' if flat else '.tif'}"
