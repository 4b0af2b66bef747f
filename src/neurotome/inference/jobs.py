"""Which images a call of predict reads and which files it writes, settled before the first image is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from neurotome.errors import ImageError, RunError
from neurotome.io.files import OUTPUT_SUFFIXES, SUFFIXES, find_suffix, list_images, name_image, split_inner
from neurotome.io.ome_zarr import is_zarr
from neurotome.outputs import Existing, plan_outputs
from neurotome.volume import Volume

Output = Literal["labels", "confidence", "uncertainty", "overlay"]
"""What is written of a prediction."""


@dataclass(frozen=True)
class Job:
    """An image and the files to write for it, without those that are there already."""

    source: Path | Volume
    files: Mapping[Output, Path]


def list_sources(source: Path, target: Path) -> tuple[list[tuple[Path, Path]], Path]:
    """Returns every image with its label file, and the legend: of the image named, or of those of a folder.

    Raises:
        ImageError: There is no image, or two of one name.
        RunError: The input is a folder and the output a file.
    """
    if not split_inner(source)[0].exists():
        raise ImageError(f"{source}: no such file or folder; expected an image, a stack or a folder of them.")
    if not source.is_dir() or is_zarr(source) or find_suffix(source).endswith(".zarr"):
        labels = target / _name_labels(source) if target.is_dir() and not is_zarr(target) else target
        return [(source, labels)], name_beside(labels, "legend", ".png")
    if find_suffix(target).endswith(SUFFIXES):
        raise RunError(f"{target}: the input is a folder, so the output must be a folder too.")
    images = list_images(source)
    if not images:
        raise ImageError(f"{source}: no {', '.join(SUFFIXES)} file in this folder; expected at least one image.")
    names = [name_image(image) for image in images]
    for name in names:
        if names.count(name) > 1:
            raise ImageError(f"{source}: more than one image is named {name!r}; their label files would collide.")
    return [(image, target / _name_labels(image)) for image in images], target / "legend.png"


def plan_jobs(
    pairs: Sequence[tuple[Path, Path]] | Sequence[tuple[Volume, Path]],
    legend: Path,
    beside: Sequence[Output],
    existing: Existing,
) -> tuple[list[Job], Path | None]:
    """Checks every file that will be written, label files and those beside them.

    Args:
        pairs: Images and their label files.
        legend: Where the overlays' legend goes.
        beside: What is asked for beside labels; with overlays goes a legend.
        beside: What is asked for beside labels; with overlays goes a legend.
        existing: What to do about files that are there.

    Returns:
        A job for every image for which something is to be written, and the legend if it is.

    Raises:
        RunError: As for `plan_outputs`, or labels cannot be written in the format that a suffix names.
    """
    jobs = []
    for source, labels in pairs:
        if labels.suffix.lower() not in OUTPUT_SUFFIXES:
            raise RunError(f"{labels}: cannot write labels as {labels.suffix!r}; expected {', '.join(OUTPUT_SUFFIXES)}.")
        suffix = ".png" if labels.suffix.lower() == ".png" else ".tif"
        files: dict[Output, Path] = {"labels": labels}
        files |= {kind: name_beside(labels, kind, suffix) for kind in beside}
        jobs.append(Job(source, files))
    outputs = [path for job in jobs for path in job.files.values()] + [legend] * ("overlay" in beside)
    inputs = [split_inner(source)[0] for source, _ in pairs if isinstance(source, Path)]
    written = set(plan_outputs(outputs, inputs=inputs, existing=existing))
    jobs = [Job(job.source, {kind: path for kind, path in job.files.items() if path in written}) for job in jobs]
    return [job for job in jobs if job.files], legend if legend in written else None


def name_beside(labels: Path, what: str, suffix: str) -> Path:
    """Returns the name of a file beside a label file."""
    return labels.with_name(f"{name_image(labels)}_{what}{suffix}")


def _name_labels(image: Path) -> str:
    """Returns the name of the label file of an image: PNG for what is always one slice, TIFF otherwise."""
    flat = find_suffix(image) in (".png", ".bmp", ".jpg", ".jpeg")
    return f"{name_image(split_inner(image)[0])}{'.png' if flat else '.tif'}"
