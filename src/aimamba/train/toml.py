"""Read TOML, and write it as recipes use it: values, then tables."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aimamba import documents
from aimamba.errors import ConfigError


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: The file cannot be opened or is not valid TOML.
    """
    try:
        return documents.read_toml(path)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; check the path") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}; fix that place in the file") from error


def to_toml(values: Mapping[str, Any]) -> str:
    """Return ``values`` as TOML text, which ``tomllib`` reads back as the same mapping (tuples become lists).

    Args:
        values: Strings, numbers, bools and lists of these, by key, or mappings of them, which become tables.

    Raises:
        TypeError: A value has another type.
    """
    return "\n".join(_blocks(values, ""))


def _blocks(values: Mapping[str, Any], name: str) -> Iterator[str]:
    """Yield the values of a table, then its own tables; ``name`` is its dotted name, empty at the top."""
    tables = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    plain = {key: value for key, value in values.items() if key not in tables}
    if plain or (name and not tables):
        yield (f"[{name}]\n" if name else "") + _lines(plain)
    for key, table in tables.items():
        yield from _blocks(table, f"{name}.{_key(key)}" if name else _key(key))


def _lines(values: Mapping[str, Any]) -> str:
    return "".join(f"{_key(key)} = {_value(value)}\n" for key, value in values.items())


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _value(value: Any) -> str:
    match value:
        case str():  # a JSON string is a TOML string, except for DEL, which JSON does not escape
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case list() | tuple():
            return f"[{', '.join(map(_value, value))}]"
    raise TypeError(f"cannot write {value!r} as a TOML value")
