"""dataset.yaml of crops: written anew, or extended by a line while everything somebody wrote in it stays as it is."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from neurotome.atomic import write_text
from neurotome.classes import ClassSet
from neurotome.documents import read_yaml
from neurotome.errors import DatasetError
from neurotome.volume import Size


def write_config(
    path: Path, name: str, classes: ClassSet, size_um: Size | None, groups: Mapping[str, str], header: str = ""
) -> None:
    """Writes dataset.yaml of images that are all for training.

    Args:
        path: The file.
        name: Of the dataset.
        classes: What its labels mean.
        size_um: Edges of a voxel (z, y, x), None if the images have several or none.
        groups: Each image, in the order of training, with the group of images that belong together.
        header: Comment that stands first.
    """
    content = {
        "name": name,
        "classes": dict(enumerate(classes.names, start=classes.first_id)),
        "ignore": classes.stored_ignore,
        **({"voxel_size_um": [float(edge) for edge in size_um]} if size_um else {}),
        "splits": {"train": list(groups)},
        "groups": dict(groups),
    }
    write_text(path, header + yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def plan_training(folder: Path, groups: Mapping[str, str]) -> dict[Path, str]:
    """Returns the files, with their new text, by which images are added to what a folder dataset trains on.

    That is dataset.yaml or, where it has no splits, splits.yaml. Lines are added and none is changed, comments stay. Where
    neither file has splits they are made when the dataset is opened. Images that are listed already stay as they are.

    Args:
        folder: Of the dataset.
        groups: Each image with its group, which is listed where the dataset has groups.

    Raises:
        DatasetError: A line cannot be added.
    """
    config, beside = folder / "dataset.yaml", folder / "splits.yaml"
    content = read_yaml(config, DatasetError, "Correct it.")
    in_config = content.get("splits") is not None
    planned = _extend(config, ("splits", "train") if in_config else None, groups, bool(content.get("groups")))
    if not in_config and beside.is_file():
        planned |= _extend(beside, ("train",), groups, False)
    return planned


def _extend(path: Path, train: tuple[str, ...] | None, groups: Mapping[str, str], grouped: bool) -> dict[Path, str]:
    """Adds images to the list at the keys `train`, and to the groups if there are some; checks what comes of it."""
    content = read_yaml(path, DatasetError, "Correct it.")
    text = path.read_text(encoding="utf-8")
    expected: Any = copy.deepcopy(dict(content))
    for name, group in reversed(list(groups.items())):  # each goes to the front
        if train is not None and not _is_listed(content, train[:-1], name):
            text = _insert(text, path, train, json.dumps(name, ensure_ascii=False))
            _follow(expected, train).insert(0, name)
        if grouped and name not in content["groups"]:
            quoted = ": ".join(json.dumps(word, ensure_ascii=False) for word in (name, group))
            text = _insert(text, path, ("groups",), quoted)
            expected["groups"][name] = group
    try:
        is_right = yaml.safe_load(text) == expected
    except yaml.YAMLError:
        is_right = False
    if not is_right:
        raise _refuse(path, train or ("groups",))
    return {path: text} if expected != content else {}


def _is_listed(content: Any, keys: tuple[str, ...], name: str) -> bool:
    """Says whether a split holds an image, or a part of it."""
    entries = [entry for listed in _follow(content, keys).values() if isinstance(listed, list) for entry in listed]
    return any(name == (entry.get("id") if isinstance(entry, dict) else entry) for entry in entries)


def _follow(content: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        content = content[key]
    return content


def _insert(text: str, path: Path, keys: tuple[str, ...], entry: str) -> str:
    """Returns YAML text with an entry put first into the list or mapping at some keys."""
    node = yaml.compose(text, yaml.SafeLoader)
    for key in keys:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        node = next((value for name, value in pairs if name.value == key), None)
    if not isinstance(node, yaml.CollectionNode) or not node.value:
        raise _refuse(path, keys)
    start = node.start_mark
    if node.flow_style:
        return f"{text[: start.index + 1]}{entry}, {text[start.index + 1 :]}"
    dash = "- " if isinstance(node, yaml.SequenceNode) else ""
    line = start.index - start.column
    return f"{text[:line]}{' ' * start.column}{dash}{entry}\n{text[line:]}"


def _refuse(path: Path, keys: tuple[str, ...]) -> DatasetError:
    return DatasetError(
        f"{path}: found no list {' / '.join(keys)} to which an image could be added; expected, for example, splits: "
        "{train: [id]}. Add it by hand, or collect crops into another folder."
    )
