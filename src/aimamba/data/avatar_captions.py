"""Captions of avatars: sentences about their attributes, by a small grammar."""

from collections.abc import Mapping

from aimamba.data.avatar_words import STYLES, Role
from aimamba.data.splits import hash_fraction
from aimamba.data.wording import Chooser, listed, with_article

HELD_OUT_PAIRS = 0.15
"""Share of the pairs of values of two attributes that are not trained on."""

_PAIRS = 54  # of the first 300 numbers the one whose pairs are spread best: no value loses 40 % of its images


def options_of(style: str, options: Mapping[str, object]) -> dict[str, str]:
    """Return those options of an avatar, as DiceBear tells them, that decide its attributes."""
    found = {}
    for attribute in STYLES[style].attributes.values():
        value = options.get(attribute.option)
        if isinstance(value, list):  # a colour; more of them are a gradient
            value = value[0] if value else None
        if isinstance(value, str):
            found[attribute.option] = value
    return found


def attributes_of(style: str, options: Mapping[str, str]) -> dict[str, str]:
    """Return the attributes of an avatar of a style, from its options: name and value."""
    return {name: attribute.value(options) for name, attribute in STYLES[style].attributes.items()}


def is_held_out(style: str, attributes: Mapping[str, str]) -> bool:
    """Return whether an avatar has a pair of values that is not trained on."""
    pair = "/".join(attributes[name] for name in STYLES[style].pair)
    return hash_fraction(f"{style}/{_PAIRS}/{pair}") < HELD_OUT_PAIRS


def describe(style: str, attributes: Mapping[str, str], key: str) -> str:
    """Return a caption that mentions all of some attributes.

    Args:
        style: One of ``STYLES``.
        attributes: Name and value, not necessarily all that the style has.
        key: Decides the wording and the order.
    """
    chooser, known = Chooser(f"caption/{style}/{key}"), STYLES[style]
    words: dict[Role, list[str]] = {"adjective": [], "part": [], "setting": []}
    for name, value in attributes.items():
        attribute = known.attributes[name]
        if phrases := attribute.phrases(value):
            words[attribute.role].append(chooser.one(phrases))
    subject = " ".join([*chooser.some(words["adjective"]), chooser.one(known.nouns)])
    parts, setting = chooser.some(words["part"]), words["setting"]
    if chooser.fraction() < 0.25:  # a list of key words
        return ", ".join([subject, *parts, *setting])
    phrase = with_article(subject) + (f" with {listed(parts)}" if parts else "")
    for place in setting:
        if not place.startswith(("on ", "in ")):
            phrase += f", {place}"
        elif chooser.fraction() < 0.25:
            phrase = f"{place}, {phrase}"
        else:
            phrase += f" {place}"
    return phrase


def captions_of(style: str, attributes: Mapping[str, str], key: str) -> tuple[str, ...]:
    """Return four captions of an avatar: two that mention all that can be seen, and two that mention some of it."""
    told = enumerate(_told(style, attributes, key))
    return tuple(describe(style, some, f"{key}/{number}") for number, some in told)


def mentions_of(style: str, attributes: Mapping[str, str], key: str) -> tuple[dict[str, str], ...]:
    """Return the attributes that each of the captions of an avatar mentions: name and value."""
    known = STYLES[style].attributes
    return tuple(
        {name: value for name, value in some.items() if known[name].phrases(value)}
        for some in _told(style, attributes, key)
    )


def _told(style: str, attributes: Mapping[str, str], key: str) -> list[Mapping[str, str]]:
    """Return the attributes that each caption is to tell, as far as there are words for their values."""
    told = [attributes] * 2
    for number in (2, 3):
        chooser = Chooser(f"attributes/{style}/{key}/{number}")
        kept = set(chooser.some(attributes, 2 + int(chooser.fraction() * 2)))
        told.append({name: value for name, value in attributes.items() if name in kept})
    return told
