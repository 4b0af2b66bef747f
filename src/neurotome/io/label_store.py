"""LabelStore: labels, or a grey map, of a volume of any size as OME-Zarr, written block by block in any order.

A block is a file (0.5: a shard of Zarr 3) or a box of whole chunk files (0.4: Zarr 2), so that writers of different blocks
never meet in one. A block that holds nothing but the fill value has no file: whether it is done, the ledger knows.
Metadata after https://ngff.openmicroscopy.org/0.5/ and https://ngff.openmicroscopy.org/0.4/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.errors import ImageError, RunError, SettingsError
from neurotome.io.block_array import BlockArray, open_block_array
from neurotome.io.files import name_image
from neurotome.io.ome_zarr import LEVEL, describe_multiscale, is_zarr
from neurotome.io.zarr_store import Version, read_group, update_group
from neurotome.volume import Size

NOT_PREDICTED = 255
"""What labels hold where nothing was predicted; a grey map holds 0 there."""


class LabelStore(BlockArray):
    """The full resolution of labels or of a grey map, and the metadata of all of its levels."""

    @property
    def attributes(self) -> dict[str, Any]:
        """What neurotome keeps beside the standard's metadata, as it is on disk now."""
        return dict(self._read()["neurotome"])

    @property
    def is_labels(self) -> bool:
        """False for a grey map."""
        return bool(self.attributes["kind"] == "labels")

    @property
    def voxel_size_um(self) -> Size | None:
        """Edge lengths (z, y, x) at full resolution; None if not known."""
        sizes = self.attributes["voxel_size_um"]
        return None if sizes is None else tuple(sizes)

    @property
    def levels(self) -> list[str]:
        """Paths of the arrays that the metadata list, finest first."""
        return [dataset["path"] for dataset in self._ome()["multiscales"][0]["datasets"]]

    def set_attributes(self, **neurotome: Any) -> None:
        """Adds to `attributes`, JSON; what has the same name is replaced."""
        update_group(self.path, self.version, neurotome=neurotome)

    def set_levels(self, levels: Mapping[str, Sequence[int]], *, method: str) -> None:
        """Lists the arrays in the metadata, once the coarser ones are whole; `levels` as for `describe_multiscale`."""
        (before,) = self._ome()["multiscales"]
        multiscale = describe_multiscale(before["name"], self.voxel_size_um, self.attributes["origin_zyx"], levels)
        update_group(self.path, self.version, {"multiscales": [_add_version({**multiscale, "type": method}, self.version)]})
        if self.is_labels:
            _list_in_image(self.path, self.version)  # again: another command may have overwritten the list

    def open_level(self, level: str, shape_zyx: Sequence[int], block_zyx: Sequence[int]) -> BlockArray:
        """Opens a coarser array, or creates it empty; the metadata list it only after `set_levels`."""
        return open_block_array(
            self.path, level, shape_zyx, block_zyx, None, self.version, fill=NOT_PREDICTED if self.is_labels else 0
        )

    def _ome(self) -> dict[str, Any]:
        return dict(self._read()["ome"]) if self.version == "0.5" else self._read()

    def _read(self) -> dict[str, Any]:
        found = read_group(self.path)
        if found is None:
            raise ImageError(f"{self.path}: its metadata are gone; expected those of an OME-Zarr.")
        return found[1]


def create_label_store(
    path: str | Path,
    shape_zyx: Sequence[int],
    *,
    classes: ClassSet | None,
    block_zyx: Sequence[int],
    chunk_zyx: Sequence[int] | None = None,
    voxel_size_um: Size | None = None,
    origin_zyx: Sequence[int] = (0, 0, 0),
    attributes: Mapping[str, Any] | None = None,
    version: Version = "0.5",
) -> LabelStore:
    """Creates an OME-Zarr of labels, or of a grey map where `classes` is None; opens it again if this very one is there.

    Args:
        path: A folder of its own, or `IMAGE.zarr/labels/NAME`, which the image then lists.
        shape_zyx: Voxels.
        classes: Of the labels: names and colours go into the metadata. None: a grey map, such as confidence.
        block_zyx: Voxels that are written at once; a whole multiple of `chunk_zyx`. May reach beyond a small volume.
        chunk_zyx: Voxels that are compressed together; about 64^3 if not given.
        voxel_size_um: Edge lengths (z, y, x) in micrometres.
        origin_zyx: Voxel of a larger volume at which this one begins.
        attributes: JSON that is kept beside the metadata.
        version: Of the OME-Zarr specification.

    Raises:
        RunError: There is something else, or one of another shape, cut or version; or the image is not of this version.
        SettingsError: A class is stored as 255, which means not predicted; or a block is no multiple of a chunk.
    """
    path = Path(path)
    if classes is not None and classes.first_id + len(classes) > NOT_PREDICTED:
        raise SettingsError(
            f"{path}: the class {classes.names[-1]} is stored as {NOT_PREDICTED}, which means not predicted in a volume; "
            f"expected ids below it. Write another format, such as .tif, or merge classes."
        )
    check_output(path, version)
    own = {
        "kind": "grey map" if classes is None else "labels",
        "block_zyx": [int(size) for size in block_zyx],
        "voxel_size_um": None if voxel_size_um is None else [float(size) for size in voxel_size_um],
        "origin_zyx": [int(start) for start in origin_zyx],
    }
    found = read_group(path)
    if found is not None:
        _check_same(path, found, own, version)
    if found is None:  # before the array, for which zarr would write a group of nobody, which other jobs would refuse
        multiscale = describe_multiscale(name_image(path), voxel_size_um, origin_zyx, {LEVEL: (1, 1, 1)})
        ome: dict[str, Any] = {"multiscales": [_add_version(multiscale, version)]}
        if classes is not None:
            ome["image-label"] = _add_version(describe_labels(classes), version)
            if find_image_of(path) is not None:
                ome["image-label"]["source"] = {"image": "../../"}
        update_group(path, version, ome, {**own, **(attributes or {})})
    fill = 0 if classes is None else NOT_PREDICTED
    open_block_array(path, LEVEL, shape_zyx, block_zyx, chunk_zyx, version, fill=fill)
    store = LabelStore(path, LEVEL, block_zyx, version)
    if found is not None and attributes:
        store.set_attributes(**attributes)
    if classes is not None:
        _list_in_image(path, version)
    return store


def open_label_store(path: str | Path) -> LabelStore:
    """Opens what `create_label_store` made, for reading and writing.

    Raises:
        ImageError: There is nothing of that kind.
    """
    path = Path(path)
    found = read_group(path)
    if found is None or "block_zyx" not in found[1].get("neurotome", {}):
        raise ImageError(f"{path}: found no labels or grey map that neurotome wrote; expected an output of predict.")
    version, attributes = found
    return LabelStore(path, LEVEL, attributes["neurotome"]["block_zyx"], version)


def describe_labels(classes: ClassSet) -> dict[str, Any]:
    """Returns `image-label`: names and colours of the stored ids, and of 255, not predicted, which is transparent."""
    ids = range(classes.first_id, classes.first_id + len(classes))
    entries = [(i, name, (*colour, 255)) for i, name, colour in zip(ids, classes.names, classes.colours, strict=True)]
    entries.append((NOT_PREDICTED, "not predicted", (128, 128, 128, 0)))
    return {
        "colors": [{"label-value": value, "rgba": list(rgba)} for value, _, rgba in entries],
        "properties": [{"label-value": value, "name": name} for value, name, _ in entries],
    }


def count_ids(labels: NDArray[np.uint8]) -> dict[int, int]:
    """Returns how many voxels have each id that occurs; labels are (z, y, x)."""
    counts = sum((np.bincount(plane.ravel(), minlength=256) for plane in labels), np.zeros(256, np.int64))
    return {int(i): int(counts[i]) for i in np.flatnonzero(counts)}


def name_confidence(labels: Path) -> Path:
    """Returns where the confidence of labels goes: beside them, or beside the image in which they lie."""
    image = find_image_of(labels)
    name = f"{name_image(labels)}_confidence.zarr"
    return labels.with_name(name) if image is None else image.with_name(f"{name_image(image)}_{name}")


def find_image_of(path: Path) -> Path | None:
    """Returns the image under whose `labels` a path lies; None if it is a store of its own."""
    path = path.absolute()
    image = path.parent.parent
    inside = path.parent.name == "labels" and (is_zarr(image) or image.suffix.lower() == ".zarr")
    return image if inside else None


def check_output(path: Path, version: Version) -> None:
    """Checks that labels or a grey map may be written to a path, or overwrite what is there; writes nothing.

    Raises:
        RunError: There is a Zarr that is none of ours; or the path lies beneath what is no image of this version.
    """
    there = read_group(path)
    if there is not None and "block_zyx" not in there[1].get("neurotome", {}):
        raise RunError(f"{path}: found a Zarr that is no output of predict; choose another output, or delete it.")
    image = find_image_of(path)
    if image is None:
        return
    found = read_group(image)
    described = {} if found is None else found[1].get("ome", found[1])
    if found is None or "multiscales" not in described:
        raise RunError(
            f"{image}: found no OME-Zarr image (`multiscales`); expected one, because labels shall lie beneath it. "
            "Name an output of its own, such as labels.zarr."
        )
    if found[0] != version:
        raise RunError(
            f"{image} is an OME-Zarr {found[0]}; labels of {version} cannot lie beneath it. Use --ome-version {found[0]}, "
            "or name an output of its own, such as labels.zarr."
        )


def _check_same(path: Path, found: tuple[Version, dict[str, Any]], own: Mapping[str, Any], version: Version) -> None:
    there = found[1].get("neurotome", {})
    if there.get("kind") != own["kind"]:
        raise RunError(f"{path}: found something that is no {own['kind']} of neurotome; choose another output.")
    differing = [f"{key} {there.get(key)} instead of {value}" for key, value in own.items() if there.get(key) != value]
    if found[0] != version:
        differing.append(f"OME-Zarr {found[0]} instead of {version}")
    if differing:
        raise RunError(f"{path}: was begun with {'; '.join(differing)}. Choose another output, or --overwrite it.")


def _add_version(described: dict[str, Any], version: Version) -> dict[str, Any]:
    """0.4 has the version in every object, 0.5 once in `ome`."""
    return {"version": "0.4", **described} if version == "0.4" else described


def _list_in_image(path: Path, version: Version) -> None:
    """Adds a name to the list of labels of the image in which it lies, if it lies in one; others are kept."""
    if find_image_of(path) is None:
        return
    found = read_group(path.parent)
    attributes = {} if found is None else found[1]
    described = attributes.get("ome", {}) if version == "0.5" else attributes
    listed = described.get("labels", [])
    if path.name not in listed or (version == "0.5" and "version" not in described):
        update_group(path.parent, version, {"labels": list(dict.fromkeys([*listed, path.name]))})
