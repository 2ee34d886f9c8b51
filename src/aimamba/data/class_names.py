"""The one rule by which a class is found: by its exact name, by a similar spelling, or by its number.

1. The exact name.
2. The name in another spelling of the same letters (composed or decomposed accents, upper or lower case, spaces
   around it), if it is the only such name.
3. The id of its synset, such as ``n01440764``, if the names are ImageNet's.
4. The number of the class, counted from 0: always as ``#7``; as ``7`` only if no class is named by a number.
"""

import operator
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from aimamba.data.imagenet import imagenet_class_names, imagenet_synsets
from aimamba.errors import ConfigError, suggest

_SYNSET = re.compile(r"n\d{8}")
_NUMBER = re.compile(r"[+-]?\d+")
_LONGEST_QUOTE = 60  # characters of a name in a message
_LONGEST_NUMBER = 18  # digits; Python refuses to convert thousands of them
_SHOWN = 10  # names in a message


def normalise(name: str) -> str:
    """Return a name in the form in which spellings are compared: NFC, without spaces around it, case-folded."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).strip().casefold())


def find_class(name: Any, names: Sequence[str], count: int) -> int:
    """Return the label of a class that the user named.

    Args:
        name: A text, see above, or an integer: the label itself.
        names: Names of the classes in the order of their labels; empty if they have none.
        count: Number of classes.

    Raises:
        ConfigError: There is no such class, or it could be several.
    """
    if not isinstance(name, str):
        return _label(name, names, count)
    names = tuple(names)
    found = candidates(name, names)
    if len(found) > 1:
        listed = _listed([f"{_quoted(names[label])} (#{label})" for label in found])
        raise ConfigError(f"class {_quoted(name)} could be {listed}; write the exact name, or the number with its #")
    if found:
        return found[0]
    text = name.strip()
    numbered = _has_numbers(names)
    digits = text[1:] if text.startswith("#") else "" if numbered else text
    if _NUMBER.fullmatch(digits) and len(digits) <= _LONGEST_NUMBER and 0 <= int(digits) < count:
        return int(digits)
    if numbered and _NUMBER.fullmatch(text):
        raise ConfigError(_no_such_number(text, names, count))
    raise _unknown(name, names, count)


def find_classes(text: str, names: Sequence[str], count: int) -> list[int]:
    """Return the labels of the classes named in a text and separated by commas, each once. A name may contain commas.

    Args:
        text: Names or numbers, see ``find_class``.
        names: Names of the classes in the order of their labels; empty if they have none.
        count: Number of classes.

    Raises:
        ConfigError: A class is unknown or could be several.
    """
    names = tuple(names)
    longest = 1 + max((name.count(",") for name in names), default=0)
    pieces, labels = text.split(","), []
    while pieces:
        starts = {taken: ",".join(pieces[:taken]) for taken in range(longest, 0, -1)}
        taken = next((taken for taken, start in starts.items() if candidates(start, names)), 1)
        if starts[taken].strip():
            exact = starts[taken] in names
            labels.append(find_class(starts[taken] if exact else starts[taken].strip(), names, count))
        pieces = pieces[taken:]
    return list(dict.fromkeys(labels))


def candidates(name: str, names: tuple[str, ...]) -> list[int]:
    """Return the labels of the classes with this exact name, or else with another spelling of it or this synset."""
    exact, similar = _index(names)
    return exact.get(name) or similar.get(normalise(name)) or _of_synset(name, names)


def match_classes(names: Sequence[str], others: Sequence[str]) -> list[int] | None:
    """Return where each of ``names`` stands in ``others``, by the same rule.

    Returns:
        An index for each name, or None if the two do not name the same classes one to one.
    """
    names, others = tuple(names), tuple(others)
    found = [candidates(name, others) for name in names]
    places = [labels[0] for labels in found if len(labels) == 1]
    return places if len(set(places)) == len(names) == len(others) else None


def match_numbers(names: Sequence[str]) -> bool:
    """Return whether labels without names may be taken as the places of ``names``: no name is another number."""
    return not _has_numbers(tuple(names)) or all(name == str(place) for place, name in enumerate(names))


def _of_synset(name: str, names: tuple[str, ...]) -> list[int]:
    if not _SYNSET.fullmatch(name) or names != imagenet_class_names():
        return []
    return [label for label, synset in enumerate(imagenet_synsets()) if synset == name]


@lru_cache(maxsize=16)
def _index(names: tuple[str, ...]) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    exact: dict[str, list[int]] = {}
    similar: dict[str, list[int]] = {}
    for label, name in enumerate(names):
        exact.setdefault(name, []).append(label)
        similar.setdefault(normalise(name), []).append(label)
    return exact, similar


@lru_cache(maxsize=16)
def _has_numbers(names: tuple[str, ...]) -> bool:
    return any(_NUMBER.fullmatch(name.strip()) for name in names)


def _label(number: Any, names: Sequence[str], count: int) -> int:
    try:
        label = operator.index(number)
    except TypeError:
        label = None
    if label is None or isinstance(number, bool):
        raise ConfigError(f"expected a class as a name or a whole number from 0 to {count - 1}, got {number!r}")
    if not 0 <= label < count:
        raise _unknown(label, names, count)
    return label


def _no_such_number(text: str, names: tuple[str, ...], count: int) -> str:
    value = text.lstrip("+-0")
    same = [f"{name!r} (#{label})" for label, name in enumerate(names) if name.strip().lstrip("+-0") == value]
    meant = f"did you mean {_listed(same)}?" if same else f"expected one of: {_some(names)}"
    return (
        f"unknown class {_quoted(text)}: this model's classes are named by numbers, and none is named so; {meant} "
        f"(or a number from #0 to #{count - 1}, counted from 0)"
    )


def _unknown(name: str | int, names: Sequence[str], count: int) -> ConfigError:
    quoted = _quoted(name) if isinstance(name, str) else repr(name)
    if not names:
        return ConfigError(f"unknown class {quoted}: this model's classes have no names, expected 0 to {count - 1}")
    short = [known for known in names if len(known) <= _LONGEST_QUOTE]
    near = suggest(str(name), short) if len(str(name)) <= _LONGEST_QUOTE else ""
    some = _some(names)
    first, last = ("#0", f"#{count - 1}") if _has_numbers(tuple(names)) else ("0", str(count - 1))
    return ConfigError(f"unknown class {quoted}{near}; expected a number from {first} to {last} or one of: {some}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(_shortened(name) for name in names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _listed(items: list[str]) -> str:
    return " or ".join(items[:_SHOWN]) + (" or ..." if len(items) > _SHOWN else "")


def _quoted(name: str) -> str:
    return repr(_shortened(name))


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_QUOTE else f"{name[: _LONGEST_QUOTE - 1]}…"
