"""Read JSON and TOML strictly: what a hostile or damaged document could do to a program is refused first.

A document is limited in size and nesting, numbers are finite and of at most 64 bits, no name appears twice in an
object, and all text can be encoded. Every fault is a ``DocumentError``: a ``ValueError`` with a message of one line.
"""

import json
import math
import re
import stat
import tomllib
from pathlib import Path
from typing import Any, NoReturn

from aimamba.errors import is_unicode

_LARGEST_JSON = 64 << 20  # bytes; the results of a study are a few hundred thousand
_LARGEST_TOML = 1 << 20  # bytes; tomllib reads about a million a second
_DEEPEST = 64  # levels of nesting; ours have four
_LONGEST_KEY = 16  # parts of a dotted key; tomllib's time grows with their square
_BITS = 64


class DocumentError(ValueError):
    """A document is not valid, or beyond the limits."""


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DocumentError: It is not valid JSON in UTF-8, or beyond the limits.
        OSError: The file is missing or cannot be read.
    """
    return parse_json(_read_text(path, _LARGEST_JSON))


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        DocumentError: It is not valid TOML in UTF-8, or beyond the limits.
        OSError: The file is missing or cannot be read.
    """
    return parse_toml(_read_text(path, _LARGEST_TOML))


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        DocumentError: It is not valid, or beyond the limits.
    """
    _check_size(text, _LARGEST_JSON)
    _check_depth(_JSON_STRING.sub("", text))
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique, parse_int=_integer)
    except DocumentError:
        raise
    except ValueError as error:
        raise DocumentError(_one_line(error)) from error
    _check_values(value)
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """Return the values of a TOML text.

    Raises:
        DocumentError: It is not valid, or beyond the limits.
    """
    _check_size(text, _LARGEST_TOML)
    outline = _TOML_STRING_OR_COMMENT.sub("s", text)
    _check_depth(outline)
    if _TOML_LONG_KEY.search(outline):
        raise DocumentError(f"a key of more than {_LONGEST_KEY} parts")
    try:
        values = tomllib.loads(text)
    except ValueError as error:  # also an integer of thousands of digits
        raise DocumentError(_one_line(error)) from error
    _check_values(values)
    return values


# Strings are removed before brackets are counted. They are matched possessively, so in linear time; one that is not
# closed ends the document for the parsers too.
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.?)*+(?:"|\Z)', re.DOTALL)
_TOML_STRING_OR_COMMENT = re.compile(
    r'"""(?:[^"\\]|\\.?|"(?!""))*+(?:"{3,5}|\Z)'
    r"|'''(?:[^']|'(?!''))*+(?:'{3,5}|\Z)"
    r'|"(?:[^"\\\n]|\\.?)*+(?:"|$)'
    r"|'[^'\n]*+(?:'|$)"
    r"|#[^\n]*+",
    re.DOTALL | re.MULTILINE,
)
_TOML_LONG_KEY = re.compile(rf"[\w-]++(?:[ \t]*+\.[ \t]*+[\w-]++){{{_LONGEST_KEY},}}")


def _read_text(path: Path, largest: int) -> str:
    about = path.stat()
    if not stat.S_ISREG(about.st_mode) and not stat.S_ISDIR(about.st_mode):  # a folder is the system's own error
        raise DocumentError("not a regular file")  # reading a pipe would wait for ever
    if about.st_size > largest:
        raise DocumentError(f"{about.st_size:,} bytes, more than the {largest:,} that are read")
    try:
        return path.read_text(encoding="utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DocumentError(f"not UTF-8 text ({error.reason} at byte {error.start})") from error


def _check_size(text: str, largest: int) -> None:
    if len(text) > largest:
        raise DocumentError(f"{len(text):,} characters, more than the {largest:,} that are read")


def _check_depth(outline: str) -> None:
    depth = 0
    for bracket in re.findall(r"[][{}]", outline):
        depth += 1 if bracket in "[{" else -1
        if depth > _DEEPEST:
            raise DocumentError(f"nested more than {_DEEPEST} levels deep")


def _check_values(value: Any) -> None:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting += [*item, *item.values()]
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, float) and not math.isfinite(item):
            raise DocumentError("a number that is not finite")
        elif isinstance(item, int) and item.bit_length() > _BITS:
            raise DocumentError(f"a whole number of more than {_BITS} bits")
        elif isinstance(item, str) and not is_unicode(item):
            raise DocumentError("text with half of a surrogate pair, which is no character")


def _integer(digits: str) -> int:
    if len(digits) > _BITS:  # Python's own limit may be switched off
        raise DocumentError(f"a whole number of more than {_BITS} bits")
    return int(digits)


def _refuse_constant(name: str) -> NoReturn:
    raise DocumentError(f"{name} is not a number in JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DocumentError(f"the name {twice[:40]!r} appears twice in an object")
    return values


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
