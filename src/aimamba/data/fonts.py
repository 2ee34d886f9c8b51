"""Fonts for text in images: no script becomes boxes.

Pillow's own font has ASCII and little else. For other text the fonts of this machine are tried, and that of matplotlib
where it is installed; what no font has is transliterated.
"""

import unicodedata
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

from aimamba.errors import printable

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_NAMES = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc", "wqy-microhei.ttc"),
    *("Arial Unicode.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc"),
    *("segoeui.ttf", "msyh.ttc", "YuGothM.ttc", "malgun.ttf", "Nirmala.ttf", "seguisym.ttf"),
)
_TRIED_SIZE = 16  # pixels, at which glyphs are compared
_NO_CHARACTER = "\U0010ffff"  # in no font, so it shows a font's box
_LATIN = {
    **dict(zip("абвгдезийклмнопрстуфх", "abvgdeziyklmnoprstufh", strict=True)),
    **{"ё": "yo", "ж": "zh", "ц": "ts", "ч": "ch", "ш": "sh", "щ": "shch", "ъ": "'", "ы": "y", "ь": "'", "э": "e"},
    **{"ю": "yu", "я": "ya"},
    **dict(zip("αβγδεζηικλμνξοπρσςτυφω", "abgdeziiklmnxoprsstyfo", strict=True)),
    **{"θ": "th", "χ": "ch", "ψ": "ps"},
}


def typeset(text: str, size: int) -> tuple[str, Font]:
    """Return a text as it can be drawn, and a font that has all of it.

    Args:
        text: Any text; control characters and line ends become escapes.
        size: Of the font, in pixels.

    Returns:
        The text, transliterated as far as no font has it, and the font.
    """
    text = printable(unicodedata.normalize("NFC", text))
    text = "".join(char for char in text if unicodedata.category(char) != "Cf")  # joiners, which have no picture
    if not _missing(text, None):
        return text, _load(None, size)
    best = min(_places(), key=lambda place: len(_missing(text, place)))  # the first of equals
    missing = set(_missing(text, best))
    return "".join(transliterate(char) if char in missing else char for char in text), _load(best, size)


def transliterate(char: str) -> str:
    """Return a character in ASCII: without its accents, in Latin letters, or by its name or number."""
    plain = "".join(part for part in unicodedata.normalize("NFKD", char) if part.isascii())
    if plain.strip():
        return plain
    lower = char.lower()
    found = _LATIN.get(lower) or _LATIN.get(unicodedata.normalize("NFD", lower)[:1])
    if found is None:
        name = unicodedata.name(char, "").replace("SHARP S", "SS")
        for word in ("LETTER ", "SYLLABLE ", "VOWEL SIGN "):
            if word in name:
                found = name.rpartition(word)[2].partition(" WITH ")[0].lower()
        if found is None or " " in found:
            return f"U+{ord(char):04X}"
    return found.capitalize() if char != lower else found


def _missing(text: str, place: str | None) -> list[str]:
    return [char for char in text if not (char.isspace() or _has(place, char))]


@lru_cache(maxsize=1 << 14)
def _has(place: str | None, char: str) -> bool:
    """Return whether a font has a picture of a character other than its box."""
    if char.isascii() and char.isprintable():
        return True
    one, box = (_load(place, _TRIED_SIZE).getmask(text) for text in (char, _NO_CHARACTER))
    return one.size != box.size or bytes(one) != bytes(box)


@lru_cache(maxsize=1)
def _places() -> tuple[str | None, ...]:
    """Return the fonts of this machine, Pillow's own first, as None."""
    places: list[str | None] = [None]
    names = list(_NAMES)
    if (found := find_spec("matplotlib")) is not None and found.origin is not None:
        names.insert(0, str(Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"))
    for name in names:
        try:
            ImageFont.truetype(name, _TRIED_SIZE)
        except (OSError, ImportError):  # not on this machine, or Pillow has no FreeType
            continue
        places.append(name)
    return tuple(places)


@lru_cache(maxsize=64)
def _load(place: str | None, size: int) -> Font:
    return ImageFont.load_default(size) if place is None else ImageFont.truetype(place, size)
