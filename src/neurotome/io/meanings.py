"""What the ids in a label file mean, by what the file, or the dataset around it, says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neurotome.classes import ClassSet
from neurotome.documents import read_yaml
from neurotome.errors import ImageError, NeurotomeError
from neurotome.io.files import find_suffix
from neurotome.io.ome_zarr import is_zarr
from neurotome.io.stack import list_slices
from neurotome.io.zarr_store import read_group
from neurotome.volume import Size


def read_meanings(path: Path) -> tuple[ClassSet | None, dict[str, Any]]:
    """Returns the classes of a label file and what it says of its making.

    Known are the metadata that `predict` writes into OME-Zarr and TIFF, of a folder those of its first slice; `image-label`
    properties of any OME-Zarr; and dataset.yaml beside the folder `labels` in which the file lies (its voxel size is in what
    is returned second).

    Returns:
        The classes, None if nobody says them; and JSON: `model` and `inference` as predict wrote them, `dataset`.
    """
    names: Mapping[int, str] = {}
    made: dict[str, Any] = {}
    if path.is_dir() and is_zarr(path) and not (path / ".zarray").is_file():
        names, made = _read_zarr(path)
    else:
        first = list_slices(path)[0][0] if path.is_dir() and not is_zarr(path) else path
        names = _read_tiff(first) if find_suffix(first).endswith((".tif", ".tiff")) and first.is_file() else {}
    config = path.absolute().parent.parent / "dataset.yaml"
    if not names and path.absolute().parent.name == "labels" and config.is_file():
        content = read_yaml(config, ImageError, "Mend it, or name the classes.")
        classes = ClassSet.from_config(content.get("classes", {}), int(content.get("ignore", 255)))
        return classes, {"dataset": str(content.get("name", "")), "voxel_size_um": content.get("voxel_size_um")}
    return _to_classes(names), made


def find_listed_size(made: Mapping[str, Any]) -> Size | None:
    """Returns the voxel size (z, y, x) in micrometres that dataset.yaml lists, from what `read_meanings` returned second."""
    listed = made.get("voxel_size_um")
    if isinstance(listed, list) and len(listed) == 3 and all(isinstance(edge, (int, float)) and edge > 0 for edge in listed):
        return float(listed[0]), float(listed[1]), float(listed[2])
    return None


def _read_zarr(path: Path) -> tuple[dict[int, str], dict[str, Any]]:
    try:
        found = read_group(path)
    except NeurotomeError:  # an array without a group says nothing
        return {}, {}
    attributes = {} if found is None else found[1]
    described = attributes.get("ome", attributes).get("image-label", {})
    own = attributes.get("neurotome", {})
    names = {
        int(entry["label-value"]): str(entry["name"])
        for entry in described.get("properties", ())
        if "name" in entry and entry["name"] != "not predicted"
    }
    inference = own.get("inference")
    return names, {"inference": inference, "model": inference.get("model")} if inference else {}


def _read_tiff(path: Path) -> dict[int, str]:
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            described = file.pages.first.description
        line = next(line for line in described.splitlines() if line.startswith("classes="))
        return {int(value): str(name) for value, name in json.loads(line.removeprefix("classes=")).items()}
    except (StopIteration, ValueError, AttributeError, OSError, KeyError):  # tifffile's own errors are ValueErrors
        return {}


def _to_classes(names: Mapping[int, str]) -> ClassSet | None:
    ids = sorted(names)
    if len(ids) < 2 or ids[0] not in (0, 1) or ids != list(range(ids[0], ids[0] + len(ids))):
        return None
    return ClassSet(tuple(names[i] for i in ids), first_id=ids[0])
