"""collect: corrected crops as images and labels of a dataset, as training reads it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neurotome.annotating.crop_folder import Crop, is_crop, read_crop
from neurotome.annotating.dataset_file import plan_training, write_config
from neurotome.atomic import hold_folder, write_text
from neurotome.classes import ClassSet
from neurotome.documents import read_yaml
from neurotome.errors import DatasetError, RunError
from neurotome.io.files import list_images, name_image
from neurotome.io.meanings import find_listed_size
from neurotome.io.opening import read_image, read_labels
from neurotome.io.sink import write_image, write_labels
from neurotome.volume import SIZE_TOLERANCE, Size


class _Known(NamedTuple):
    """What dataset.yaml says."""

    classes: ClassSet
    size_um: Size | None


def collect(*crops: Path, out: Path) -> Path:
    """Puts corrected crops into a dataset, for fine-tune and train to learn from.

    Each becomes OUT/images/NAME.tif and OUT/labels/NAME.tif and is listed in OUT/dataset.yaml under train. The folder may be
    a dataset already: no file in it is replaced, and dataset.yaml keeps all that it says. A crop that is there already is
    left as it is.

    Args:
        crops: Folders that `crop` made, or folders of such.
        out: Folder of the dataset; made if missing.

    Returns:
        The folder.

    Raises:
        RunError: A folder is no crop, nothing in it is labelled, or another image has its name.
        DatasetError: The dataset has other classes or voxels of another size, or its dataset.yaml cannot be extended.
        ImageError: A file cannot be read.
    """
    out = Path(out)
    found = [read_crop(folder) for folder in _list_crops([Path(path) for path in crops])]
    _check_crops(found)
    with hold_folder(out):
        config = out / "dataset.yaml"
        known = _read_known(config) if config.is_file() else None
        classes = known.classes if known else found[0].classes
        for one in found:
            _check_fit(one, classes, known.size_um if known else found[0].image.voxel_size_um, out)
        ids = [_to_ids(one, classes) for one in found]
        missing = [
            _list_missing(one, {"images": one.image.data, "labels": classes.to_stored(labels)}, out)
            for one, labels in zip(found, ids, strict=True)
        ]
        groups = {one.folder.name: one.source for one in found}
        listing = plan_training(out, groups) if known else {}
        for one, labels, kinds in zip(found, ids, missing, strict=True):
            if "images" in kinds:
                write_image(out / "images" / f"{one.folder.name}.tif", one.image.data, one.image)
            if "labels" in kinds:
                write_labels(out / "labels" / f"{one.folder.name}.tif", labels, classes, one.image)
        for path, text in listing.items():
            write_text(path, text)
        if known is None:
            write_config(config, "corrected", classes, found[0].image.voxel_size_um, groups)
    return out


def _list_crops(folders: Sequence[Path]) -> list[Path]:
    """Returns the crops that are named, and those in folders that are named."""
    listed: dict[Path, Path] = {}
    for folder in folders:
        inside = [folder] if is_crop(folder) else sorted(path for path in folder.glob("*") if is_crop(path))
        if not inside:
            raise RunError(f"{folder}: no crop, nor a folder of crops; expected what neurotome crop made.")
        listed |= {path.resolve(): path for path in inside}
    if not listed:
        raise RunError("no crop was named; expected a folder that neurotome crop made, or a folder of such.")
    return list(listed.values())


def _check_crops(crops: Sequence[Crop]) -> None:
    names: dict[str, Path] = {}
    for one in crops:
        if (one.labels == one.classes.stored_ignore).all():
            raise RunError(f"{one.folder}: nothing in it is labelled. Label some of it, or leave it out.")
        if one.folder.name in names:
            raise RunError(f"{one.folder}: has the name of {names[one.folder.name]}; expected another. Rename one of them.")
        names[one.folder.name] = one.folder
        if one.digest == one.first_digest:
            warnings.warn(
                f"{one.folder}: its labels are as they were cut out. If a model made them, it learns its own errors.",
                stacklevel=3,
            )


def _read_known(config: Path) -> _Known:
    content = read_yaml(config, DatasetError, "Correct it.")
    try:
        ignore: Any = content.get("ignore", 255)
        classes = ClassSet.from_config(content.get("classes") or {}, ignore)
    except DatasetError as error:
        raise DatasetError(f"{config}: {error}") from error
    return _Known(classes, find_listed_size(content))


def _check_fit(crop: Crop, classes: ClassSet, size_um: Size | None, out: Path) -> None:
    if crop.classes.names != classes.names:
        raise DatasetError(
            f"{crop.folder}: its classes are {', '.join(crop.classes.names)}, and those of {out} "
            f"{', '.join(classes.names)}; expected the same. Collect it into another folder."
        )
    own = crop.image.voxel_size_um
    if own and size_um and any(max(a / b, b / a) > SIZE_TOLERANCE for a, b in zip(own, size_um, strict=True)):
        raise DatasetError(
            f"{crop.folder}: its voxels have {own} um (z, y, x), and those of {out} {size_um}; expected the same. Collect "
            "it into another folder."
        )


def _list_missing(crop: Crop, wanted: Mapping[str, NDArray[Any]], out: Path) -> list[str]:
    """Returns what a dataset does not hold yet of a crop; RunError if it holds something else of its name."""
    missing = []
    for kind, values in wanted.items():
        files = list_images(out / kind) if (out / kind).is_dir() else []
        path = next((path for path in files if name_image(path) == crop.folder.name), None)
        if path is None:
            missing.append(kind)
        elif not np.array_equal(read_image(path).data if kind == "images" else read_labels(path), values):
            raise RunError(
                f"{path}: is there already and holds something else than {crop.folder}; it is left as it is. Move it away "
                "to have it replaced, or rename the crop's folder."
            )
    return missing


def _to_ids(crop: Crop, classes: ClassSet) -> NDArray[np.uint8]:
    """Returns the labels of a crop as ids of a dataset's classes, which may mean "not labelled" by another value."""
    ids = crop.classes.from_stored(crop.labels)
    return np.where(ids == crop.classes.ignore, classes.ignore, ids).astype(np.uint8)
