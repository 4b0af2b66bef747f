"""Settings as keywords: what is `--train.max-time 12m` on the command line is `max_time="12m"` in Python."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from neurotome.errors import SettingsError, show, unknown

T = TypeVar("T")


def accept_keywords(command: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a command that also takes the fields of its settings, which are dataclasses, as keywords, and text for paths.

    A keyword is a field's name, `max_time="12m"`, where one field has it; its dotted name, `**{"train.seed": 1}`; or a
    group, `train={"seed": 1}`. Keywords win over settings that are given whole. Several paths may be given as a list.
    """
    parameters = inspect.signature(command).parameters
    hints = typing.get_type_hints(command, include_extras=True)
    fields = _list_fields(parameters, hints)

    @functools.wraps(command)
    def call(*arguments: Any, **keywords: Any) -> Any:
        if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters.values()):
            several = arguments[0] if len(arguments) == 1 and isinstance(arguments[0], (list, tuple)) else arguments
            arguments = tuple(Path(path) for path in several)
        given: dict[str, Any] = {name: value for name, value in keywords.items() if name in parameters}
        for name, value in given.items():
            default, kinds = parameters[name].default, (hints[name], *typing.get_args(hints[name]))
            if dataclasses.is_dataclass(default) and isinstance(value, Mapping):
                given[name] = replace_settings(default, value, name)
            elif isinstance(value, str) and Path in kinds and str not in kinds:
                given[name] = Path(value)
        for name, value in keywords.items():
            if name not in parameters:
                dotted = _find_field(name, fields)
                root, path = fields[dotted]
                for key in reversed(path):
                    value = {key: value}
                prefix = "" if dotted == ".".join(path) else root
                given[root] = replace_settings(given.get(root, parameters[root].default), value, prefix)
        return command(*arguments, **given)

    if fields:
        listed = ", ".join(fields)
        call.__doc__ = f"{inspect.getdoc(command)}\n\nSettings are keywords too, by their last or whole name: {listed}."
    return call


def _list_fields(
    parameters: Mapping[str, inspect.Parameter], hints: Mapping[str, Any]
) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Returns by dotted name the parameter that a field or group of settings belongs to, and its path in there."""
    fields = {}
    for root, parameter in parameters.items():
        if dataclasses.is_dataclass(parameter.default):
            marks = getattr(hints[root], "__metadata__", ())
            is_flat = any("*" in (getattr(mark, "name", None) or ()) for mark in marks)  # options without the prefix
            for path in _walk(parameter.default):
                fields[".".join(path if is_flat else (root, *path))] = (root, path)
    return fields


def _walk(settings: Any) -> Iterator[tuple[str, ...]]:
    """Yields the paths of all fields of settings, those of groups before those in them."""
    for field in dataclasses.fields(settings):
        yield (field.name,)
        inner = getattr(settings, field.name)
        if dataclasses.is_dataclass(inner):
            yield from ((field.name, *path) for path in _walk(inner))


def _find_field(name: str, fields: Iterable[str]) -> str:
    """Returns the dotted name that a keyword, which may be its last part, means."""
    matching = [dotted for dotted in fields if name in (dotted, dotted.rpartition(".")[2])]
    if name in matching or len(matching) == 1:
        return name if name in matching else matching[0]
    if matching:
        example = f'**{{"{matching[0]}": ...}}'
        raise SettingsError(f"the keyword {name!r} may mean {' or '.join(matching)}; say which, as in {example}.")
    raise SettingsError(unknown("keyword", name, fields or ["none"]))


def replace_settings(settings: T, values: Mapping[str, Any], name: str = "") -> T:
    """Returns settings in which the fields that are named, or those of a group in it, have other values.

    Args:
        settings: A dataclass.
        values: By field, nested as groups are; lists become tuples.
        name: What the settings are called in messages.

    Raises:
        SettingsError: There is no such field, or its value is of another type.
    """
    hints = typing.get_type_hints(type(settings))
    for key, value in values.items():
        if key not in hints:
            raise SettingsError(unknown(f"field of {name}" if name else "setting", str(key), hints))
        where = f"{name}.{key}" if name else key
        kept, hint = getattr(settings, key), hints[key]
        if dataclasses.is_dataclass(kept) and isinstance(value, Mapping):
            value = replace_settings(kept, value, where)
        elif isinstance(value, list):
            value = tuple(value)
        if not _fits(value, hint):
            expected = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
            raise SettingsError(f"{where} is {show(value)}; expected {expected}.")
        settings = dataclasses.replace(settings, **{key: value})  # type: ignore[type-var]  # they are a dataclass
    return settings


def _fits(value: Any, hint: Any) -> bool:
    """Says whether a value is of a type as settings have them."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in arguments
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is tuple:
        kinds = [arguments[0]] * len(value) if isinstance(value, tuple) and arguments[-1] is Ellipsis else arguments
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return not isinstance(hint, type) or isinstance(value, hint)
