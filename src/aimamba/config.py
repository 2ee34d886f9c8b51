"""Read, write and compare settings, which are held in frozen dataclasses.

``from_mapping`` turns a mapping (from JSON, TOML or flags) into a dataclass. Unknown keys are errors with a suggestion.
Values are checked against the annotations; lists become tuples and integers become floats where the field has that
type. Errors name the key.
"""

import dataclasses
import numbers
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from aimamba.errors import ConfigError, is_unicode, suggest

T = TypeVar("T")

_LONGEST_SHOWN = 100  # characters of a value in a message


def from_mapping(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """Build the dataclass ``cls`` from ``values``.

    Args:
        cls: A dataclass; fields that are dataclasses take nested mappings.
        values: Field names and values, as read from JSON or TOML.
        where: Where the values come from, such as a file's path; errors begin with it.

    Returns:
        The instance.

    Raises:
        ConfigError: A key is unknown or missing, or a value does not fit its field.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            near = suggest(key[:_LONGEST_SHOWN], fields)
            raise ConfigError(f"{where}: unknown key {_shown(key)}{near}; known keys: {', '.join(fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{where}: key {name!r} is missing")
    return cls(**{key: _fit(value, hints[key], f"{where}: {key}") for key, value in values.items()})


def to_mapping(config: Any) -> dict[str, Any]:
    """Return a dataclass as a mapping for JSON and TOML: tuples become lists, and fields that are None are left out."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return to_mapping(value)
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        return value

    pairs = ((field.name, getattr(config, field.name)) for field in dataclasses.fields(config))
    return {name: plain(value) for name, value in pairs if value is not None}


class Difference(NamedTuple):
    """A setting with two values.

    Attributes:
        key: The dotted name, such as ``fit.lr`` or ``recipe.variants.0.name``.
        before: The earlier value as text, or "not set".
        now: The new value as text, or "not set".
    """

    key: str
    before: str
    now: str

    def __str__(self) -> str:
        return f"{self.key} {self.before}, now it is {self.now}"


def first_difference(
    before: Mapping[str, Any], now: Mapping[str, Any], *, ignore: Collection[str] = ()
) -> Difference | None:
    """Return the first setting in which two nested mappings differ, or None if they agree.

    Args:
        before: Plain values, as ``to_mapping``, JSON or TOML return them.
        now: The same for the new settings, whose order decides which difference is the first.
        ignore: Dotted names that may differ.
    """
    old, new = dict(flatten(before)), dict(flatten(now))
    for key in [*new, *old]:
        if key not in ignore and old.get(key) != new.get(key):
            was, wanted = (repr(values[key]) if key in values else "not set" for values in (old, new))
            return Difference(key, was, wanted)
    return None


def flatten(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every setting of a nested mapping with its dotted name.

    The mappings in a list of mappings count from 0, as in ``variants.0.name``; any other list is one value.
    """
    for key, value in values.items():
        inner: Any = value
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            inner = {str(index): item for index, item in enumerate(value)}
        if isinstance(inner, Mapping):
            yield from ((f"{key}.{name}", item) for name, item in flatten(inner))
        else:
            yield key, value


def pythonic(value: Any) -> Any:
    """Return a number of another kind, as NumPy's, as Python's, which JSON can hold; everything else as it is."""
    if isinstance(value, numbers.Real) and not isinstance(value, int | float):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    return value


def check(holds: bool, message: str) -> None:
    """Raise ``ConfigError(message)`` unless ``holds``; used in the ``__post_init__`` of configs."""
    if not holds:
        raise ConfigError(message)


def check_text(name: str, text: str) -> None:
    """Raise a ``ConfigError`` unless a text is Unicode."""
    check(is_unicode(text), f"{name} must be valid UTF-8, got {text[:80]!r}")


def _fit(value: Any, hint: Any, where: str) -> Any:
    origin = get_origin(hint)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a table, got {_shown(value)}")
        return from_mapping(typing.cast(type[Any], hint), value, where=where)
    if origin is Literal:
        choices = get_args(hint)
        if value in choices:
            return value
        near = suggest(str(value)[:_LONGEST_SHOWN], [str(choice) for choice in choices])
        raise ConfigError(f"{where} must be one of {', '.join(map(repr, choices))}, got {_shown(value)}{near}")
    if origin in (typing.Union, types.UnionType):
        return _fit_any(value, get_args(hint), where)
    if origin is tuple and isinstance(value, list | tuple):
        item = get_args(hint)[0]
        return tuple(_fit(entry, item, f"{where}[{index}]") for index, entry in enumerate(value))
    value = pythonic(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise ConfigError(f"{where} must be a number below 1.8e308, got one of 309 digits or more") from error
    expected = origin or hint
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ConfigError(f"{where} must be {getattr(expected, '__name__', expected)}, got {_shown(value)}")
    return value


def _fit_any(value: Any, options: tuple[Any, ...], where: str) -> Any:
    """Fit a value to the first member of a union that takes it."""
    if value is None and type(None) in options:
        return None
    faults = []
    for option in (option for option in options if option is not type(None)):
        try:
            return _fit(value, option, where)
        except ConfigError as error:
            faults.append(str(error))
    if len(faults) == 1:
        raise ConfigError(faults[0])
    start, end = f"{where} must be ", f", got {_shown(value)}"
    *expected, last = (fault.removeprefix(start) for fault in faults)
    expected = [fault.partition(end)[0] for fault in expected]
    raise ConfigError(f"{start}{' or '.join([*expected, last])}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
