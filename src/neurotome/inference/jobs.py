"""Which images a call of predict reads and which files it writes, settled before the first image is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from neurotome.errors import ImageError, RunError
from neurotome.io.files import OUTPUT_SUFFIXES, SUFFIXES, find_suffix, list_images, name_image, split_inner
from neurotome.io.ome_zarr import is_zarr
from neurotome.outputs import Existing, plan_outputs
from neurotome.volume import Volume


@dataclass(frozen=True)
class Job:
    """An image and the files to write for it; None for those not asked for, or there already."""

    source: Path | Volume
    labels: Path | None = None
    confidence: Path | None = None
    overlay: Path | None = None


def list_sources(source: Path, target: Path) -> tuple[list[tuple[Path, Path]], Path]:
    """Returns every image with its label file, and the legend: of the image named, or of those of a folder.

    Raises:
        ImageError: There is no image, or two of one name.
        RunError: The input is a folder and the output a file.
    """
    if not split_inner(source)[0].exists():
        raise ImageError(f"{source}: no such file or folder; expected an image, a stack or a folder of them.")
    if not source.is_dir() or is_zarr(source):
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
    existing: Existing,
    *,
    overlay: bool,
    confidence: bool,
) -> tuple[list[Job], Path | None]:
    """Checks every file that will be written, label files and those beside them.

    Args:
        pairs: Images and their label files.
        legend: Where the overlays' legend goes.
        existing: What to do about files that are there.
        overlay: Whether overlays, and with them a legend, are asked for.
        confidence: Whether maps of the confidence are asked for.

    Returns:
        A job for every image for which something is to be written, and the legend if it is.

    Raises:
        RunError: As for `plan_outputs`, or labels cannot be written in the format that a suffix names.
    """
    files: list[tuple[Path | Volume, tuple[Path, Path | None, Path | None]]] = []
    for source, labels in pairs:
        if labels.suffix.lower() not in OUTPUT_SUFFIXES:
            raise RunError(f"{labels}: cannot write labels as {labels.suffix!r}; expected {', '.join(OUTPUT_SUFFIXES)}.")
        suffix = ".png" if labels.suffix.lower() == ".png" else ".tif"
        maps = name_beside(labels, "confidence", suffix) if confidence else None
        files.append((source, (labels, maps, name_beside(labels, "overlay", suffix) if overlay else None)))
    outputs = [path for _, paths in files for path in paths if path is not None]
    inputs = [split_inner(source)[0] for source, _ in pairs if isinstance(source, Path)]
    written = set(plan_outputs([*outputs, *([legend] if overlay else [])], inputs=inputs, existing=existing))
    jobs = [Job(source, *(path if path in written else None for path in paths)) for source, paths in files]
    return [job for job in jobs if job != Job(job.source)], legend if legend in written else None


def name_beside(labels: Path, what: str, suffix: str) -> Path:
    """Returns the name of a file beside a label file."""
    return labels.with_name(f"{name_image(labels)}_{what}{suffix}")


def _name_labels(image: Path) -> str:
    """Returns the name of the label file of an image: PNG for what is always one slice, TIFF otherwise."""
    flat = find_suffix(image) in (".png", ".bmp", ".jpg", ".jpeg")
    return f"{name_image(split_inner(image)[0])}{'.png' if flat else '.tif'}"
