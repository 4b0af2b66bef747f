"""A suggestion as a folder: the list, the pictures, and the crops as a dataset whose labels wait to be corrected.

suggested.csv       rank, file, z, y, x, edge (pixels), uncertainty (nats), difference
pictures/           a picture of each slice with numbered frames
dataset/            dataset.yaml, images/ and labels/, which holds what the model says
suggest.json        models, settings, and a digest of every file, by which changes are known
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.annotating.dataset_file import write_config
from neurotome.annotating.disagreement import Seen, measure_disagreement, pick_slices
from neurotome.annotating.places import Chosen
from neurotome.atomic import atomic_folder, write_json
from neurotome.errors import RunError
from neurotome.io.sink import write_image, write_labels
from neurotome.outputs import plan_outputs
from neurotome.progress import track
from neurotome.runs.environment import describe_environment
from neurotome.sampling import sample_grey
from neurotome.volume import Volume, to_display

PROVENANCE = "suggest.json"

HEADER = "# The labels are the model's own. Correct them before training on them.\n"

Views = Sequence[Sequence[Seen]]
"""Every image as each model sees it."""


def check_out(out: Path, inputs: Sequence[Path], overwrite: bool) -> None:
    """Checks that a suggestion may be written into a folder; nothing that somebody has made or changed is replaced.

    Raises:
        RunError: It holds an input, something that is no suggestion, or one that may not be replaced.
    """
    plan_outputs([out / PROVENANCE], inputs=inputs, existing="replace")
    for path in inputs:
        if out.resolve() in path.resolve().parents:
            raise RunError(f"{out}: holds the input {path}, and would be replaced as a whole. Choose another output.")
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / PROVENANCE).is_file():
        raise RunError(f"{out}: holds something that is no suggestion. Choose another output, or empty it.")
    if not overwrite:
        raise RunError(f"{out}: holds a suggestion already. Choose another output, or say --overwrite.")
    try:
        written = dict(json.loads((out / PROVENANCE).read_text(encoding="utf-8"))["files"])
    except (ValueError, LookupError, TypeError) as error:
        raise RunError(f"{out / PROVENANCE}: is damaged ({error}). Choose another output, or empty the folder.") from error
    changed = sorted(name for name, digest in _list_digests(out).items() if written.get(name) != digest)
    if changed:
        raise RunError(
            f"{out}: {', '.join(changed[:8])} {'were' if len(changed) > 1 else 'was'} changed or added since; expected a "
            "suggestion as it was written, since annotations would be lost. Choose another output."
        )


def _list_digests(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file below a folder, but for the one that lists them."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / PROVENANCE)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def write_suggestion(
    out: Path,
    views: Views,
    chosen: Sequence[Chosen],
    maps: Mapping[tuple[int, int], NDArray[np.float32]],
    facts: Mapping[str, Any],
) -> None:
    """Writes all files of a suggestion, whole or not at all.

    Args:
        out: The folder.
        views: Every image as each model sees it.
        chosen: The places, the most useful first.
        maps: The uncertainty of slices, by image and slice, coarser than these.
        facts: What `suggest.json` says besides; JSON values, with `uncertainty` in words.
    """
    from neurotome.figures import plot_suggested, save_figure

    slices = sorted({(one.place.image, one.place.z) for one in chosen})
    with atomic_folder(out) as folder:
        for kind in ("images", "labels"):
            (folder / "dataset" / kind).mkdir(parents=True)
        names: dict[int, str] = {}
        for image, z in track(slices, "cutting out", len(slices), "slice"):
            seen = views[image]
            volume = seen[0].volume
            ranked = {rank: one.place for rank, one in enumerate(chosen, 1) if (one.place.image, one.place.z) == (image, z)}
            where = volume.name + (f"_z{z:04d}" if volume.shape[0] > 1 else "")
            frames = [(rank, place.y, place.x, place.edge) for rank, place in ranked.items()]
            grey = _show_slice(volume, z)
            figure = plot_suggested(where, grey, maps[image, z], frames, str(facts["uncertainty"]))
            save_figure(figure, folder / "pictures" / f"{image + 1:04d}_{where}.png")
            labels = _label_slice(seen, z)
            for rank, place in ranked.items():
                names[rank] = f"{rank:03d}_{where}_y{place.y}_x{place.x}"
                _write_crop(folder / "dataset", names[rank], seen, z, labels, place.window)
        volumes = [views[one.place.image][0].volume for one in chosen]
        sizes = {volume.voxel_size_um for volume in volumes}
        groups = {names[rank]: volume.name for rank, volume in enumerate(volumes, 1)}
        size_um = sizes.pop() if len(sizes) == 1 else None
        write_config(
            folder / "dataset" / "dataset.yaml", "suggested", views[0][0].predictor.classes, size_um, groups, HEADER
        )
        with (folder / "suggested.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("rank", "file", "z", "y", "x", "edge", "uncertainty", "difference", "crop"))
            for rank, one in enumerate(chosen, 1):
                place, path = one.place, views[one.place.image][0].volume.path
                numbers = f"{place.uncertainty:.6g}", "" if np.isnan(one.difference) else f"{one.difference:.6g}"
                table.writerow((rank, path, place.z, place.y, place.x, place.edge, *numbers, names[rank]))
        write_json(folder / PROVENANCE, {**facts, "environment": describe_environment(), "files": _list_digests(folder)})


def _show_slice(volume: Volume, z: int) -> NDArray[np.uint8]:
    """Returns a slice for a picture, uint8, shape (y, x), in the display range of its volume."""
    if volume.data.dtype == np.uint8:
        return np.asarray(volume.data[z])
    low, high = (float(grey) for grey in np.percentile(sample_grey(volume.data).values, (0.5, 99.5)))
    return to_display(np.asarray(volume.data[z]), low, high)


def _label_slice(seen: Sequence[Seen], z: int) -> NDArray[np.uint8]:
    """Returns what the models, as predict applies them, say of a slice together: class ids, uint8, shape (y, x)."""
    members = [one._replace(volume=pick_slices(one.volume, np.array([z]))) for one in seen]
    ((probs, _),) = measure_disagreement(members)
    return np.asarray(probs.argmax(0), np.uint8)


def _write_crop(
    folder: Path, name: str, seen: Sequence[Seen], z: int, labels: NDArray[np.uint8], window: tuple[slice, slice]
) -> None:
    """Writes an image and its labels; with the neighbouring slices that a model reads, of which nothing is labelled."""
    predictor, volume = seen[0].predictor, seen[0].volume
    classes = predictor.classes
    reach = max(max(one.predictor.in_channels // 2, one.predictor.halo_zyx[0]) for one in seen)
    first, stop = max(0, z - reach), min(volume.shape[0], z + reach + 1)
    grey = np.asarray(volume.data[first:stop, window[0], window[1]])
    stack = np.full(grey.shape, classes.ignore, np.uint8)
    stack[z - first] = labels[window]
    write_image(folder / "images" / f"{name}.tif", grey, volume)
    write_labels(folder / "labels" / f"{name}.tif", stack, classes, volume)
