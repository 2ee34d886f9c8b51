"""Strategies that damage a file as disks, editors and attackers do, inside its containers too.

Bytes are flipped, cut, repeated and replaced anywhere. What has a structure is also taken apart and put together again,
so that what lies behind checksums and lengths is reached: entries of zip archives (``.npz``, ``.pt``), the header of
``.safetensors``, chunks of PNG, values of JSON and TOML.
"""

import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

NUMBERS = ["0", "-1", "1", "2", "3", "7", "255", "65536", "2147483648", "9007199254740993", "18446744073709551615"]
_NUMBERS = [*NUMBERS, "-9223372036854775808", "1e308", "-0.0", "1e400", "1" * 400, "9" * 5000, "0.5", "1e-320"]
_JSON = [
    *_NUMBERS,
    "null",
    "true",
    "NaN",
    "-Infinity",
    "[]",
    "{}",
    '""',
    '"x"',
    '"AiM"',
    "[" * 10_000,
    '{"a":' * 10_000,
]
_JSON += ['"\\ud800"', '"\\u0000"', '"\\u202e"', '["a", "a"]', "[1, [2, [3]]]", '{"a": 1, "a": 2}', f'"{"x" * 70_000}"']
_TOML = [*_NUMBERS, "inf", "nan", "true", "[]", "{}", '""', '"x"', "'''a'''", "1979-05-27", "07:32:00", "[" * 10_000]
_TOML += [
    "{a = " * 10_000,
    '"auto"',
    '["a", 1]',
    "[[1, 2], [3]]",
    "{a = 1, a = 2}",
    "0xffffffffffffffffff",
    '"\\u0000"',
]
WORDS = [
    "",
    " ",
    "0",
    "-1",
    "#7",
    "#-1",
    "007",
    "1e9",
    "nan",
    "%s",
    "{}",
    "..",
    "~",
    "~root",
    "a,b",
    ",",
    "é",
    "e\u0301",
]
WORDS += ["\x00", "\n", "\x1b[2J", "\u202e", "\udcff", "\ud800", "💾", "CON", "x" * 5000, "9" * 5000, "[" * 3000, "="]
WORDS += ["avatars", "avatars-64", "planets", "held-out", ":train", "aim-b", "true", "1e400", "--", "-", "@file", "\\"]

words = st.one_of(st.sampled_from(WORDS), st.text(max_size=12))

_Rebuild = Callable[[bytes], bytes]


def damaged(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """Return the files that come of damage to one of ``seeds``."""
    return st.composite(_damaged)(seeds)  # type: ignore[return-value]


def _damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    data = draw(st.sampled_from(seeds))
    for _ in range(3):  # a container may be in a container
        parts = _parts(data)
        if not parts or draw(st.integers(0, 3)) == 0:
            break
        part, rebuild = draw(st.sampled_from(parts))
        return rebuild(_damaged(draw, [part]))
    return draw(st.one_of(_flipped(data), _cut(data), _values(data), _numbers(data)))


def _parts(data: bytes) -> list[tuple[bytes, _Rebuild]]:
    """Return the parts of a container, each with the function that makes the file again with another."""
    if data.startswith(b"PK"):
        return _zip_parts(data)
    if data.startswith(b"\x89PNG"):
        return _png_parts(data)
    if len(data) > 8 and data[8:9] == b"{" and 8 + (length := struct.unpack("<Q", data[:8])[0]) <= len(data):
        header, rest = data[8 : 8 + length], data[8 + length :]
        return [(header, lambda new: struct.pack("<Q", len(new)) + new + rest)]
    return []


def _zip_parts(data: bytes) -> list[tuple[bytes, _Rebuild]]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [(item.filename, archive.read(item)) for item in archive.infolist()]
    except Exception:
        return []

    def rebuild(chosen: int, new: bytes) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for number, (name, content) in enumerate(entries):
                archive.writestr(name, new if number == chosen else content)
        return file.getvalue()

    return [(content, lambda new, n=number: rebuild(n, new)) for number, (_, content) in enumerate(entries)]


def _png_parts(data: bytes) -> list[tuple[bytes, _Rebuild]]:
    place, found = 8, []
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        before, kind, content = data[:place], data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        after = data[place + 12 + length :]

        def rebuild(new: bytes, before: bytes = before, kind: bytes = kind, after: bytes = after) -> bytes:
            return before + struct.pack(">I", len(new)) + kind + new + struct.pack(">I", zlib.crc32(kind + new)) + after

        found.append((content, rebuild))
        place += 12 + length
    return found


def _flipped(data: bytes) -> st.SearchStrategy[bytes]:
    places = st.lists(st.tuples(st.integers(0, max(0, len(data) - 1)), st.integers(0, 255)), min_size=1, max_size=8)

    def apply(changes: list[tuple[int, int]]) -> bytes:
        new = bytearray(data)
        for place, value in changes:
            new[place : place + 1] = bytes([value])
        return bytes(new)

    return places.map(apply)


def _cut(data: bytes) -> st.SearchStrategy[bytes]:
    cuts = st.tuples(st.integers(0, len(data)), st.integers(0, len(data)), st.sampled_from([0, 0, 1, 2]))
    inserted = st.one_of(st.just(b""), st.binary(max_size=16))

    def apply(value: tuple[tuple[int, int, int], bytes]) -> bytes:
        (one, other, times), new = value
        start, stop = min(one, other), max(one, other)
        return data[:start] + new + data[start:stop] * times + data[stop:]

    return st.tuples(cuts, inserted).map(apply)


def _numbers(data: bytes) -> st.SearchStrategy[bytes]:
    """Replace a binary number by an extreme one."""
    extremes = [
        b"\0" * 8,
        b"\xff" * 8,
        b"\xff\xff\xff\x7f",
        b"\0\0\0\x80",
        b"\x7f\xff\xff\xff",
        b"\xff\xff",
        b"\0\0\0\x10",
    ]
    return st.tuples(st.integers(0, len(data)), st.sampled_from(extremes)).map(
        lambda value: data[: value[0]] + value[1] + data[value[0] + len(value[1]) :]
    )


def _values(data: bytes) -> st.SearchStrategy[bytes]:
    """Replace a value of a JSON document, of one of several lines, or of a TOML document; else a number in a text."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return _flipped(data)
    lines = text.splitlines()
    try:
        return _json_values(json.loads(text))
    except (ValueError, RecursionError):
        pass
    if any(re.match(r"\s*[\w.-]+\s*=", line) for line in lines):
        return _toml_values(lines)
    if re.search(r"\d", text):
        spans = [found.span() for found in re.finditer(r"-?\d+", text)]
        return st.tuples(st.sampled_from(spans), st.sampled_from(_NUMBERS)).map(
            lambda value: (text[: value[0][0]] + value[1] + text[value[0][1] :]).encode()
        )
    return _flipped(data)


def _json_values(value: Any) -> st.SearchStrategy[bytes]:
    paths: list[tuple[Any, ...]] = []

    def walk(node: Any, path: tuple[Any, ...]) -> None:
        paths.append(path)
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, item in items:
            walk(item, (*path, key))

    walk(value, ())
    mark = "@@here@@"

    def replaced(node: Any, path: tuple[Any, ...]) -> Any:
        if not path:
            return mark
        if isinstance(node, dict):
            return {key: replaced(item, path[1:]) if key == path[0] else item for key, item in node.items()}
        return [replaced(item, path[1:]) if index == path[0] else item for index, item in enumerate(node)]

    def renamed(node: Any, path: tuple[Any, ...], name: str | None) -> Any:
        """Give a key another name, or remove it."""
        if isinstance(node, dict) and len(path) == 1:
            items = [(name if key == path[0] else key, item) for key, item in node.items()]
            return {key: item for key, item in items if key is not None}
        if not path or not isinstance(node, dict):
            return node
        return {key: renamed(item, path[1:], name) if key == path[0] else item for key, item in node.items()}

    one = st.tuples(st.sampled_from(paths), st.sampled_from(_JSON)).map(
        lambda change: json.dumps(replaced(value, change[0])).replace(f'"{mark}"', change[1]).encode()
    )
    other = st.tuples(st.sampled_from(paths), st.one_of(st.none(), words)).map(
        lambda change: json.dumps(renamed(value, *change)).encode()
    )
    return st.one_of(one, one, other)


def _toml_values(lines: list[str]) -> st.SearchStrategy[bytes]:
    places = [number for number, line in enumerate(lines) if "=" in line]

    def apply(change: tuple[int, str]) -> bytes:
        place, new = change
        key = lines[place].partition("=")[0]
        return "\n".join([*lines[:place], f"{key}= {new}", *lines[place + 1 :]]).encode("utf-8", "surrogatepass")

    added = st.tuples(st.sampled_from(["a." * 50_000 + "a", '"" = 1\na', "[a]\n[a]\nb", "[[fit]]\nb", "[model]\nx"]))
    return st.one_of(
        st.tuples(st.sampled_from(places), st.sampled_from(_TOML)).map(apply),
        added.map(lambda new: "\n".join([*lines, f"{new[0]} = 1"]).encode()),
    )
