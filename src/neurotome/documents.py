"""JSON and YAML files, read strictly: what is no valid file ends in one message that names it and says what to do."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from neurotome.errors import NeurotomeError, SettingsError, unknown

CONFIGS = Path(__file__).parent / "configs"
"""Settings that come with the package, a YAML file each."""


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML in which a key given twice is an error; plain YAML keeps the last and says nothing.

    Aliases of collections are refused, because a few lines of them unfold without end, and text that is no Unicode and
    endless integers, because no message could be written.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if is_alias and isinstance(node, yaml.CollectionNode):
            raise yaml.composer.ComposerError(None, None, "an alias of a list or of keys; write them out", node.start_mark)
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        if isinstance(value, str) and any("\ud800" <= sign <= "\udfff" for sign in value):
            raise yaml.constructor.ConstructorError(None, None, "text that is no Unicode", node.start_mark)
        if node.tag == "tag:yaml.org,2002:int" and len(str(node.value)) > 40:
            raise yaml.constructor.ConstructorError(None, None, "a number of more than 40 digits", node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_json(path: Path | zipfile.Path, error: type[NeurotomeError], remedy: str) -> dict[str, Any]:
    """Reads a JSON object from a file that is there; raises `error` if it holds none, whose message ends with `remedy`."""
    return _read(path, partial(json.loads, parse_constant=_read_float, parse_float=_read_float), "JSON", error, remedy)


def read_yaml(path: Path, error: type[NeurotomeError], remedy: str) -> Mapping[str, Any]:
    """Reads keys with values from a YAML file that is there; raises `error` if it holds none or one twice, with `remedy`."""
    return _read(path, partial(yaml.load, Loader=_StrictLoader), "YAML", error, remedy)


def find_config(name: str, what: str = "--config") -> Path:
    """Returns the file of `--config`: a path, or what comes with the package: `fine_tune`, `configs/fine_tune.yaml`."""
    if Path(name).is_file():
        return Path(name)
    packaged = {path.relative_to(CONFIGS).with_suffix("").as_posix(): path for path in sorted(CONFIGS.rglob("*.yaml"))}
    plain = name.replace("\\", "/").removeprefix("configs/").removesuffix(".yaml")
    if plain in packaged:
        return packaged[plain]
    raise SettingsError(f"{what} {name}: no such file, and {unknown('built-in config', plain, packaged)}")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns settings by dotted name, such as `forest.trees`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return flat


def _read(
    path: Path | zipfile.Path, parse: Callable[[str], Any], form: str, error: type[NeurotomeError], remedy: str
) -> dict[str, Any]:
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, AttributeError, OverflowError) as failure:
        # dates that do not exist, integers of thousands of digits and keys that are lists raise more than YAML's own error
        reason = " ".join(str(failure).split())[:300] or type(failure).__name__
        raise error(f"{path}: no valid {form} ({reason}). {remedy}") from failure
    if not isinstance(content, dict):
        kind = "nothing" if content is None else f"a {type(content).__name__}"
        raise error(f"{path}: found {kind}, expected keys with values. {remedy}")
    return content


def _read_float(text: str) -> float:
    """Returns a number; JSON knows neither NaN nor infinities, and nothing that we write holds any."""
    if not math.isfinite(float(text)):
        raise ValueError(f"found the number {text[:40]}")
    return float(text)
