"""Errors of the user's input. A message is one line: what is wrong, what was given, what is expected, how to fix it.

The command line prints the message and exits with status 2. Every other exception is a bug and keeps its traceback.
"""

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import TypeVar

Value = TypeVar("Value")

_SIMILAR = 0.55  # similarity from 0 to 1; below it, words are alike by chance
_LONG_ENOUGH = 4  # letters; shorter pieces are in many names by chance
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode's control, format, surrogate, line and paragraph characters
_JOINERS = "\u200c\u200d"  # format characters that belong to scripts and emoji
_AS_SIMILAR = 0.15  # a word whose similarity is lower than the best by this much is not suggested


class AimambaError(Exception):
    """Base class of all errors that the user can fix.

    The message becomes one line that is safe to print, whatever it quotes; see ``printable``.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.splitlines())))


class ConfigError(AimambaError):
    """A setting, option, preset or recipe is unknown or out of range."""


class DataError(AimambaError):
    """An image, a folder of images or a class label cannot be used."""


class CheckpointError(AimambaError):
    """Weights are missing, truncated or belong to another model."""


class LostError(AimambaError):
    """Another process of the same run has ended or hangs."""


class Faults:
    """What is wrong with several things that a long command needs, to be reported in one line before it begins."""

    def __init__(self) -> None:
        self.found: list[AimambaError] = []

    def attempt(self, make: Callable[[], Value]) -> Value | None:
        """Return what ``make`` returns; None if it raises an error of the user's, which is kept."""
        try:
            return make()
        except AimambaError as error:
            self.found.append(error)
            return None

    def report(self) -> None:
        """Raise what was found, if there is anything.

        Raises:
            AimambaError: The only error, or one of the kind of the first that lists all of them.
        """
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            listed = "; ".join(f"({number}) {error}" for number, error in enumerate(self.found, 1))
            raise type(self.found[0])(f"{len(self.found)} things are missing or wrong: {listed}")


def printable(text: str) -> str:
    """Return text of the user's, such as a class name, as one line that is safe to print to a terminal.

    Control characters, line ends and marks that reverse the direction of text become escapes, as in Python's strings.
    """
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in _UNSEEN and char not in _JOINERS
        else char
        for char in text
    )


def is_unicode(text: str) -> bool:
    """Return whether a text can be encoded. Python makes halves of surrogate pairs of bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 image``, ``2,000 images``, ``10 classes``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")


def suggest(word: str, known: Iterable[str], *, most: int = 3) -> str:
    """Return ``" (did you mean 'planets'?)"`` with the known names nearest to ``word``.

    Names that have it as one of their words come first (``panda``: ``giant panda``), then names spelt alike, then names
    that contain it.

    Args:
        word: What the user wrote.
        known: What is accepted.
        most: The largest number of words to suggest.

    Returns:
        The suggestion, to be appended to a message; empty if no known word is similar.
    """
    by_lower = {name.lower(): name for name in known}
    if part := _stem(word):
        whole = [name for name in by_lower if part in (words := _words(name)) and len(words) > 1]
        if whole:
            return _did_you_mean(by_lower[name] for name in whole[:most])
    near = difflib.get_close_matches(word.lower(), by_lower, n=most, cutoff=_SIMILAR)
    if not near:
        inside = [name for name in by_lower if len(part) >= _LONG_ENOUGH and part in name]
        return _did_you_mean(by_lower[name] for name in sorted(inside, key=len)[:most])
    best, *others = (difflib.SequenceMatcher(None, name, word.lower()).ratio() for name in near)
    near = near[: 1 + sum(similarity > best - _AS_SIMILAR for similarity in others)]
    return _did_you_mean(by_lower[name] for name in near)


def _did_you_mean(names: Iterable[str]) -> str:
    listed = " or ".join(map(repr, names))
    return f" (did you mean {listed}?)" if listed else ""


def _words(name: str) -> list[str]:
    """The words of a name in lower case, without the s of a plural."""
    return [_stem(word) for word in re.findall(r"[^\W_]+", name)]


def _stem(word: str) -> str:
    return word.lower().removesuffix("s")
