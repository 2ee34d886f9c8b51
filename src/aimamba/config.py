"""Strict conversion between plain mappings and the frozen dataclasses that hold all settings.

A mapping (from JSON, TOML or flags) becomes a dataclass, or a ``ConfigError`` names the key at fault. An unknown key is
refused with a suggestion, and values are checked against the annotations. Lists become tuples, and integers floats,
where the annotation says so.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

from aimamba.errors import ConfigError, suggest

T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """Build dataclass ``cls`` from ``values``.

    Args:
        cls: A dataclass; nested dataclass fields take nested mappings.
        values: Field names and values, as read from JSON or TOML.
        where: Named in the error, e.g. the file's path.

    Returns:
        The instance.

    Raises:
        ConfigError: A key is unknown or missing, or a value does not fit its field.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}{suggest(key, fields)}; known keys: {', '.join(fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{where}: key {name!r} is missing")
    return cls(**{key: _fit(value, hints[key], f"{where}: {key}") for key, value in values.items()})


def to_mapping(config: Any) -> dict[str, Any]:
    """Return a dataclass as plain values for JSON and TOML: tuples become lists, and ``None`` is left out."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return to_mapping(value)
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        return value

    pairs = ((field.name, getattr(config, field.name)) for field in dataclasses.fields(config))
    return {name: plain(value) for name, value in pairs if value is not None}


def check(holds: bool, message: str) -> None:
    """Raise ``ConfigError(message)`` unless ``holds``."""
    if not holds:
        raise ConfigError(message)


def _fit(value: Any, hint: Any, where: str) -> Any:
    origin = get_origin(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_mapping(typing.cast(type[Any], hint), value, where=where)
    if origin is Literal:
        choices = get_args(hint)
        if value in choices:
            return value
        near = suggest(str(value), [str(choice) for choice in choices])
        raise ConfigError(f"{where} must be one of {', '.join(map(repr, choices))}, got {value!r}{near}")
    if origin in (typing.Union, types.UnionType):
        options = get_args(hint)
        if value is None and type(None) in options:
            return None
        return _fit(value, next(option for option in options if option is not type(None)), where)
    if origin is tuple and isinstance(value, list | tuple):
        item = get_args(hint)[0]
        return tuple(_fit(entry, item, f"{where}[{index}]") for index, entry in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = origin or hint
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ConfigError(f"{where} must be {getattr(expected, '__name__', expected)}, got {value!r}")
    return value
