"""Names of emoji, and which of their pictures are held out: Unicode's names and keywords, from ``emojibase-data``."""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from aimamba.data.npm import Package, read_members
from aimamba.data.splits import Split, hash_fraction
from aimamba.data.wording import Chooser, with_article
from aimamba.errors import DataError

NAMES_PACKAGE = Package(
    name="emojibase-data",
    version="17.0.0",
    size=6_711_091,
    sha512="Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
    licence="MIT",
)

HELD_OUT_NAMES = 0.06
"""Share of the concepts none of whose pictures is trained on."""

HELD_OUT_PAIRS = 0.15
"""Share of the other concepts of which one design is not trained on."""

DESIGN_WORDS = {
    "noto": ("noto style", "noto design", "noto drawing"),
    "fluent-flat": ("flat style", "flat design", "flat drawing"),
    "fluent-3d": ("3d style", "3d design", "3d render"),
}
"""How the captions call a design."""

_KEYWORD = re.compile("[a-z][a-z' -]{2,}")  # others are numbers, codes of countries and such
_FILE = "en/data.json"
_COMPONENTS = 2  # Unicode's group of skin tones and hair, which are no pictures of their own
_FAMILY = 30  # its subgroup of couples and families
_PASSED_OVER = frozenset(
    {"fe0f", "200d", "2640", "2642", "27a1", "1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
)  # marks of presentation, joining, sex, direction and skin tone
_PERSONS = {
    **dict.fromkeys(("1f468", "1f469"), "1f9d1"),  # man, woman: person
    **dict.fromkeys(("1f466", "1f467"), "1f9d2"),  # boy, girl: child
    **dict.fromkeys(("1f474", "1f475"), "1f9d3"),  # old man, old woman: older person
}


class Emoji(NamedTuple):
    """An emoji.

    Attributes:
        code: Its code points in hexadecimal, joined by hyphens, without the mark of presentation: ``"1f680"``.
        label: Its name, such as ``"rocket"`` or ``"waving hand: dark skin tone"``.
        tags: Keywords.
        concept: What it has in common with its variants of another skin tone, sex or direction: a code. All of one
            concept are on one side of the split by names.
    """

    code: str
    label: str
    tags: tuple[str, ...]
    concept: str


def plain_code(code: str) -> str:
    """Return a sequence of code points as ``Emoji.code`` has it."""
    points = code.lower().replace("_", "-").split("-")
    return "-".join(point.lstrip("0") for point in points if point != "fe0f")


def read_names(path: Path) -> dict[str, Emoji]:
    """Read names and keywords of all emoji from the file of ``emojibase-data``.

    Returns:
        Emoji by code, in Unicode's order, without components and letters of flags.

    Raises:
        DataError: The package is not as expected.
    """
    for _, content in read_members(path, [_FILE]):
        found = {}
        for entry in json.loads(content):
            if entry.get("group", _COMPONENTS) == _COMPONENTS:
                continue
            concept = _concept(entry)
            tags = tuple(entry.get("tags", ()))
            for variant in (entry, *entry.get("skins", ())):
                code = plain_code(variant["hexcode"])
                found[code] = Emoji(code, variant["label"], tags, concept)
        return found
    raise DataError(f"{path}: there is no {_FILE} in it; remove the file to have it downloaded again")


def choose_sides(emoji: Mapping[str, Emoji], designs: Mapping[str, Collection[str]]) -> dict[tuple[str, str], Split]:
    """Choose the side of every picture by hashes of concept and design, the same on every machine.

    ``"held-out-names"`` has all pictures of some concepts. ``"held-out"`` has, of some other concepts that several
    designs have, the pictures of one design.

    Args:
        emoji: See ``read_names``.
        designs: The codes of the pictures of every design.

    Returns:
        The side of every (design, code): ``"train"``, ``"held-out"`` or ``"held-out-names"``.
    """
    drawn_in: dict[str, set[str]] = {}
    for design, codes in designs.items():
        for code in codes:
            drawn_in.setdefault(emoji[code].concept, set()).add(design)
    unknown = {concept for concept in drawn_in if hash_fraction(f"emoji/{concept}") < HELD_OUT_NAMES}
    left_out = {
        concept: min(sorted(among), key=lambda design: hash_fraction(f"emoji/{concept}/{design}"))
        for concept, among in drawn_in.items()
        if len(among) > 1 and hash_fraction(f"emoji/{concept}/pair") < HELD_OUT_PAIRS
    }

    def side(design: str, concept: str) -> Split:
        if concept in unknown:
            return "held-out-names"
        return "held-out" if left_out.get(concept) == design else "train"

    return {(design, code): side(design, emoji[code].concept) for design, codes in designs.items() for code in codes}


def captions_of(emoji: Emoji, design: str) -> tuple[str, ...]:
    """Return four captions of an emoji in a design.

    Two have its name and design alone, worded and ordered in different ways; the others have a keyword or two as well.
    """
    chooser = Chooser(f"emoji/{emoji.code}/{design}")
    name = _in_words(emoji.label, chooser)
    first, *_ = known = re.findall("[a-z]+", name.lower()) or [""]
    tags = chooser.some([tag for tag in emoji.tags if _KEYWORD.fullmatch(tag) and not set(tag.split()) <= set(known)])
    plural = first.endswith("s") or first in ("the", "flag", "men", "women", "people", "family")
    thing = with_article(name) if name[:1].islower() and not plural else name
    drawing, style = chooser.some(DESIGN_WORDS[design])[:2]
    captions = [f"{thing}, {drawing}", chooser.one((f"{name}, {style}", f"{style}: {name}", f"{style} of {thing}"))]
    captions.append(", ".join([name, *tags[:1], chooser.one((drawing, style))]))
    captions.append(", ".join([*chooser.some([name, *tags[1:3]]), chooser.one((drawing, style))]))
    return tuple(dict.fromkeys(captions))


def _in_words(label: str, chooser: Chooser) -> str:
    """Return a name as one would say it: ``flag: Cuba`` as ``flag of Cuba``."""
    head, colon, rest = label.partition(": ")
    if not colon:
        return label
    if head == "flag":
        return chooser.one((f"flag of {rest}", f"the flag of {rest}", f"flag: {rest}"))
    if rest.endswith("skin tone") and "," not in rest:
        return chooser.one((f"{head} with {rest}", f"{head}, {rest}"))
    return f"{head}, {rest}"


def _concept(entry: Mapping[str, Any]) -> str:
    if entry.get("subgroup") == _FAMILY or entry["label"].startswith("family:"):
        return "family"
    points = [point for point in plain_code(entry["hexcode"]).split("-") if point not in _PASSED_OVER]
    return "-".join(_PERSONS.get(point, point) for point in points) or plain_code(entry["hexcode"])
