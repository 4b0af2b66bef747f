"""Settings as keywords: what is `--train.max-time 12m` on the command line is `max_time="12m"` in Python."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from neurotome.errors import SettingsError, show, unknown


def accept_keywords(command: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a command that also takes the fields of its settings as keywords, and text for paths.

    A keyword is a field's name, `max_time="12m"`, where one field has it; its dotted name, `**{"train.seed": 1}`; or a
    group, `train={"seed": 1}`. Keywords win over settings that are given whole. Several paths may be given as a list.

    Args:
        command: A function whose settings are dataclasses, as defaults of its parameters.
    """
    signature = inspect.signature(command)

    @functools.wraps(command)
    def call(*arguments: Any, **keywords: Any) -> Any:
        hints = typing.get_type_hints(command, include_extras=True)
        parameters = signature.parameters
        first = next(iter(parameters.values()), None)
        if first is not None and first.kind is first.VAR_POSITIONAL:
            several = arguments[0] if len(arguments) == 1 and isinstance(arguments[0], (list, tuple)) else arguments
            arguments = tuple(Path(path) for path in several)
        given: dict[str, Any] = {name: value for name, value in keywords.items() if name in parameters}
        fields = _list_fields(parameters, hints)
        for name, value in given.items():
            default = parameters[name].default
            if dataclasses.is_dataclass(default) and isinstance(value, Mapping):
                given[name] = _replace(default, value, name)
            elif isinstance(value, str) and Path in (hints[name], *typing.get_args(hints[name])):
                given[name] = value if str in typing.get_args(hints[name]) else Path(value)
        for name, value in keywords.items():
            if name not in parameters:
                root, path = _find_field(name, fields)
                settings = given.get(root, parameters[root].default)
                given[root] = _replace_at(settings, path, value, name)
        return command(*arguments, **given)

    names = ", ".join(_list_fields(signature.parameters, typing.get_type_hints(command, include_extras=True)))
    if names:
        call.__doc__ = f"{inspect.getdoc(command)}\n\nSettings are keywords too, by their last or whole name: {names}."
    return call


def _list_fields(
    parameters: Mapping[str, inspect.Parameter], hints: Mapping[str, Any]
) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Returns by dotted name the parameter that a field or group of settings belongs to, and its path in there."""
    fields: dict[str, tuple[str, tuple[str, ...]]] = {}

    def collect(settings: Any, root: str, prefix: tuple[str, ...], path: tuple[str, ...]) -> None:
        for field in dataclasses.fields(settings):
            inner = (*path, field.name)
            fields[".".join((*prefix, *inner))] = (root, inner)
            if dataclasses.is_dataclass(getattr(settings, field.name)):
                collect(getattr(settings, field.name), root, prefix, inner)

    for root, parameter in parameters.items():
        if dataclasses.is_dataclass(parameter.default):
            marks = getattr(hints[root], "__metadata__", ())
            is_flat = any("*" in (getattr(mark, "name", None) or ()) for mark in marks)  # options without the prefix
            collect(parameter.default, root, () if is_flat else (root,), ())
    return fields


def _find_field(name: str, fields: Mapping[str, tuple[str, tuple[str, ...]]]) -> tuple[str, tuple[str, ...]]:
    if name in fields:
        return fields[name]
    matching = [dotted for dotted in fields if dotted.rpartition(".")[2] == name]
    if len(matching) == 1:
        return fields[matching[0]]
    if matching:
        example = f'**{{"{matching[0]}": ...}}'
        raise SettingsError(f"the keyword {name!r} may mean {' or '.join(matching)}; say which, as in {example}.")
    raise SettingsError(unknown("keyword", name, fields or ["none"]))


def _replace_at(settings: Any, path: tuple[str, ...], value: Any, name: str) -> Any:
    """Returns settings in which one field, or group of fields, has another value."""
    field, *rest = path
    kept = getattr(settings, field)
    if rest:
        return dataclasses.replace(settings, **{field: _replace_at(kept, tuple(rest), value, name)})
    if dataclasses.is_dataclass(kept) and isinstance(value, Mapping):
        return dataclasses.replace(settings, **{field: _replace(kept, value, name)})
    hint = typing.get_type_hints(type(settings))[field]
    if isinstance(value, list):
        value = tuple(value)
    if not _fits(value, hint):
        expected = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
        raise SettingsError(f"{name} is {show(value)}; expected {expected}.")
    return dataclasses.replace(settings, **{field: value})


def _replace(settings: Any, values: Mapping[str, Any], name: str) -> Any:
    """Returns settings in which the fields that are named have other values."""
    known = [field.name for field in dataclasses.fields(settings)]
    for key, value in values.items():
        if key not in known:
            raise SettingsError(unknown(f"field of {name}", str(key), known))
        settings = _replace_at(settings, (key,), value, f"{name}.{key}")
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
