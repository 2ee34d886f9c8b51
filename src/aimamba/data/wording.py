"""Choices of words that depend on a text alone, and the plain name of a colour."""

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

from aimamba.data.splits import hash_fraction

Choice = TypeVar("Choice")

_BLACK, _WHITE, _GREY = 0.05, 0.08, 0.035  # chroma below which a dark, a very light and any other colour has no hue


class Chooser:
    """Chooses words for one caption: the same key, asked the same questions, chooses the same on every machine."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._asked = 0

    def fraction(self) -> float:
        """Return a number in [0, 1)."""
        self._asked += 1
        return hash_fraction(f"{self._key}/{self._asked}")

    def one(self, among: Sequence[Choice]) -> Choice:
        """Return one of several."""
        return among[int(self.fraction() * len(among))]

    def some(self, among: Iterable[Choice], count: int | None = None) -> list[Choice]:
        """Return ``count`` of several, or all, in an order that is chosen too."""
        return [choice for _, choice in sorted(((self.fraction(), choice) for choice in among), key=_first)][:count]


def _first(pair: tuple[float, object]) -> float:
    return pair[0]


def listed(phrases: Sequence[str]) -> str:
    """Return ``"a, b and c"``."""
    return " and ".join([*([", ".join(phrases[:-1])] if len(phrases) > 1 else []), *phrases[-1:]])


def with_article(words: str) -> str:
    """Return words with ``a`` or ``an`` before them."""
    return f"{'an' if words[:1].lower() in tuple('aeiou') else 'a'} {words}"


def colour_name(colour: str) -> str:
    """Return the plain name that fits a colour best.

    It is red, orange, yellow, green, teal, blue, purple, pink, brown, white, grey or black. Lightness, chroma and hue
    are those of OKLCH (Ottosson, 2020); the limits between names were set by eye for the colours of avatars.

    Args:
        colour: As ``#7dd3fc``.
    """
    light, chroma, hue = _oklch(colour)
    if (light < 0.3 and chroma < _BLACK) or (light > 0.95 and chroma < _WHITE) or chroma < _GREY:
        return "white" if light > 0.85 else "black" if light < 0.35 else "grey"
    if hue < 33:
        return "red" if hue >= 15 and (chroma > 0.15 or light < 0.6) else "pink"
    if hue < 75:
        return "brown" if light < 0.6 and chroma < 0.16 else "orange"
    if 316 <= hue < 335:
        return "purple" if light < 0.75 else "pink"
    limits = ((111, "yellow"), (172, "green"), (212, "teal"), (276, "blue"), (316, "purple"))
    return next((name for limit, name in limits if hue < limit), "pink")


def _oklch(colour: str) -> tuple[float, float, float]:
    """Return lightness in [0, 1], chroma, and hue in degrees."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    long = math.cbrt(0.4122214708 * red + 0.5363325363 * green + 0.0514459929 * blue)
    medium = math.cbrt(0.2119034982 * red + 0.6806995451 * green + 0.1073969566 * blue)
    short = math.cbrt(0.0883024619 * red + 0.2817188376 * green + 0.6299787005 * blue)
    a = 1.9779984951 * long - 2.4285922050 * medium + 0.4505937099 * short
    b = 0.0259040371 * long + 0.7827717662 * medium - 0.8086757660 * short
    light = 0.2104542553 * long + 0.7936177850 * medium - 0.0040720468 * short
    return light, math.hypot(a, b), math.degrees(math.atan2(b, a)) % 360
