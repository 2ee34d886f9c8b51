"""What can be seen on avatars of some styles, in words: attributes, their values, and phrases for them.

The styles are those, under CC0 1.0, whose parts and colours are clear at 64 pixels. Parts that look alike have one
value; parts that can hardly be seen have none. Every word was compared with the pictures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from aimamba.data.wording import colour_name, with_article

Role = Literal["adjective", "part", "setting"]


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """Something that can be seen.

    Attributes:
        option: The option of DiceBear that decides it.
        role: Where its words stand: ``{adjective} critter with {part} on a {setting} background``.
        values: Which parts have which value; None for a colour, whose value is its name.
        words: Phrases for every value, of which one is chosen; for a colour how it is worded, with ``{}`` for its name,
            or ``{a}`` for the name with an article.
            A value without phrases is not mentioned.
        unseen: Parts that cannot be seen beside another: option and part of that one.
    """

    option: str
    role: Role
    values: Mapping[str, str] | None = None
    words: Mapping[str, Sequence[str]] | Sequence[str] = ("{}",)
    unseen: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def value(self, options: Mapping[str, str]) -> str:
        """Return the value that an avatar has; ``"none"`` if it lacks the part or that cannot be seen."""
        found = options.get(self.option)
        option, part = self.unseen.get(found or "", ("", ""))
        if found is None or (option and options.get(option) == part):
            return "none"
        return colour_name(found) if self.values is None else self.values[found]

    def phrases(self, value: str) -> Sequence[str]:
        """Return how a value can be worded."""
        if isinstance(self.words, Mapping):
            return self.words.get(value, ())
        return [pattern.format(value, a=with_article(value)) for pattern in self.words]


@dataclass(frozen=True, kw_only=True)
class CaptionedStyle:
    """A style of avatars with words.

    Attributes:
        nouns: What an avatar of it is called.
        attributes: What can be seen, by name.
        pair: Two attributes; some pairs of their values are held out.
    """

    nouns: Sequence[str]
    attributes: Mapping[str, Attribute]
    pair: tuple[str, str]


def _values(**parts: str) -> dict[str, str]:
    """Return the value of every part from the parts of every value, separated by spaces."""
    return {part: value.replace("_", " ") for value, listed in parts.items() for part in listed.split()}


_BACKGROUND = Attribute(
    option="backgroundColor", role="setting", words=("on {a} background", "in front of {a} wall", "{} background")
)
_EYES = _values(
    round="round bigPupils sideeye inward uneven wide",
    small="dots close",
    one="mono",
    one_sleepy="monoSleepy",
    three="trio threeRow",
    four="four",
    happy="happy",
    closed="closedLine",
    winking="wink",
    squinting="squint",
    sleepy="sleepy",
    angry="angry",
)
_EYE_WORDS = {
    "round": ("round eyes", "two round white eyes"),
    "small": ("small black eyes", "tiny dots for eyes"),
    "one": ("one eye", "a single round eye"),
    "one sleepy": ("one sleepy eye", "a single half-closed eye"),
    "three": ("three eyes",),
    "four": ("four eyes", "four small eyes"),
    "happy": ("happy eyes", "smiling eyes"),
    "closed": ("closed eyes", "eyes shut"),
    "winking": ("one eye winking", "a wink"),
    "squinting": ("squinting eyes", "eyes squeezed shut"),
    "sleepy": ("sleepy eyes", "half-closed eyes"),
    "angry": ("angry eyes", "an angry look"),
}
_MOUTHS = _values(
    smiling="smile tinySmile",
    laughing="grin laugh",
    teeth="teeth tooth",
    round="ooh open",
    straight="line slant",
    smirking="smirk",
    wavy="wavy catMouth",
    zigzag="zigzag",
    frowning="frown sad",
    tiny="dot",
    tongue="tongue blep",
)
_MOUTH_WORDS = {
    "smiling": ("a smile", "a smiling mouth"),
    "laughing": ("a big open laugh", "a laughing mouth"),
    "teeth": ("white teeth", "its teeth showing"),
    "round": ("a round open mouth", "its mouth open in surprise"),
    "straight": ("a straight mouth", "a line for a mouth"),
    "smirking": ("a smirk", "a crooked smile"),
    "wavy": ("a wavy mouth",),
    "zigzag": ("a zigzag mouth",),
    "frowning": ("a frown", "a sad mouth"),
    "tiny": ("a tiny mouth", "a dot for a mouth"),
    "tongue": ("its tongue out", "its tongue sticking out"),
}

STYLES: Mapping[str, CaptionedStyle] = {
    "critters": CaptionedStyle(
        nouns=("critter", "monster", "creature"),
        attributes={
            "colour": Attribute(option="bodyColor", role="adjective"),
            "shape": Attribute(
                option="bodyVariant",
                role="adjective",
                values=_values(
                    wide="dome squat round blob",
                    square="block",
                    tall="tower chimney tilt lean",
                    pointed="peak",
                    bell_shaped="bell wedge",
                    stepped="steps",
                    tapering="wedgeInv",
                ),
                words={
                    "wide": ("wide", "round"),
                    "square": ("square", "blocky"),
                    "tall": ("tall", "narrow"),
                    "pointed": ("pointed",),
                    "bell shaped": ("bell-shaped",),
                },
            ),
            "eyes": Attribute(option="eyesVariant", role="part", values=_EYES, words=_EYE_WORDS),
            "mouth": Attribute(option="mouthVariant", role="part", values=_MOUTHS, words=_MOUTH_WORDS),
            "top": Attribute(
                option="topVariant",
                role="part",
                values=_values(
                    horns="horns hornsIn hornsSmall",
                    spike="spike",
                    antenna="antenna bobble",
                    antennae="antennae",
                    round_ears="earsRound",
                    pointed_ears="earsPointy earsDroop",
                    spikes="spikes crown",
                    fin="fin",
                    knob="nub",
                    leaves="sprout",
                ),
                words={
                    "horns": ("horns", "two horns"),
                    "spike": ("a spike on its head",),
                    "antenna": ("an antenna", "one antenna on its head"),
                    "antennae": ("two antennae", "a pair of antennae"),
                    "round ears": ("round ears", "two round ears"),
                    "pointed ears": ("pointed ears", "two pointed ears"),
                    "spikes": ("small spikes on its head",),
                    "fin": ("a fin on its head",),
                    "knob": ("a knob on its head",),
                    "leaves": ("leaves on its head", "a sprout on its head"),
                },
                unseen=dict.fromkeys(("crown", "hornsSmall"), ("bodyVariant", "tower")),
            ),
            "background": _BACKGROUND,
        },
        pair=("colour", "eyes"),
    ),
    "sprouts": CaptionedStyle(
        nouns=("pot", "flowerpot", "plant pot"),
        attributes={
            "pot": Attribute(option="potColor", role="adjective"),
            "plant": Attribute(
                option="plantVariant",
                role="part",
                values=_values(
                    sprout="sprout seedling tall",
                    cactus="cactus",
                    round_cactus="ball",
                    aloe="succulent",
                    bush="bush",
                    flower="flower",
                    tulip="tulip",
                    palm="palm",
                    grass="grass",
                    buds="buds",
                ),
                words={
                    "sprout": ("a sprout", "a leafy stem"),
                    "cactus": ("a cactus",),
                    "round cactus": ("a round cactus", "a ball cactus"),
                    "aloe": ("an aloe", "a spiky succulent"),
                    "bush": ("a bush", "a small round bush"),
                    "flower": ("a flower", "a flower in bloom"),
                    "tulip": ("a tulip",),
                    "palm": ("a palm", "a palm tree"),
                    "grass": ("grass", "blades of grass"),
                    "buds": ("two buds", "a pair of buds"),
                },
            ),
            "eyes": Attribute(option="eyesVariant", role="part", values=_EYES, words=_EYE_WORDS),
            "mouth": Attribute(option="mouthVariant", role="part", values=_MOUTHS, words=_MOUTH_WORDS),
            "background": _BACKGROUND,
        },
        pair=("pot", "plant"),
    ),
    "planets": CaptionedStyle(
        nouns=("planet", "world", "planet in space"),
        attributes={
            "colour": Attribute(option="planetColor", role="adjective"),
            "surface": Attribute(
                option="surfaceVariant",
                role="part",
                values=_values(
                    stripes="banded belted",
                    craters="cratered",
                    waves="swirl",
                    cap="cap",
                    spots="spotted",
                    patches="marbled",
                    cracks="cracked",
                    continents="terra",
                    speckles="speckled",
                ),
                words={
                    "stripes": ("stripes", "dark bands"),
                    "craters": ("craters", "dark craters"),
                    "waves": ("wavy bands",),
                    "cap": ("a pale cap", "a polar cap"),
                    "spots": ("a spot", "a few spots"),
                    "patches": ("patches", "large patches"),
                    "cracks": ("cracks", "a cracked surface"),
                    "continents": ("continents", "bright continents"),
                    "speckles": ("speckles", "fine speckles"),
                    "none": ("a smooth surface",),
                },
            ),
            "ring": Attribute(
                option="ringVariant",
                role="part",
                values=_values(thin="thin double", thick="bold"),
                words={
                    "thin": ("a thin ring", "a narrow ring"),
                    "thick": ("a thick ring", "a broad ring"),
                    "none": ("no ring",),
                },
            ),
            "moons": Attribute(
                option="moonsVariant",
                role="part",
                values=_values(one="one tiny", two="two"),
                words={"one": ("a moon", "one moon"), "two": ("two moons",), "none": ("no moon",)},
            ),
        },
        pair=("colour", "surface"),
    ),
    "voxel-bot": CaptionedStyle(
        nouns=("robot", "bot", "voxel robot"),
        attributes={
            "colour": Attribute(option="bodyColor", role="adjective"),
            "eyes": Attribute(
                option="eyesVariant",
                role="part",
                values=_values(
                    round="round",
                    square="square",
                    visor="visor",
                    one="cyclops",
                    happy="happy",
                    sleepy="sleepy",
                    crosses="plus",
                ),
                words={
                    "round": ("round eyes",),
                    "square": ("square eyes",),
                    "visor": ("a visor", "a visor for eyes"),
                    "one": ("one eye", "a single big eye"),
                    "happy": ("happy eyes", "smiling eyes"),
                    "sleepy": ("sleepy eyes", "narrow eyes"),
                    "crosses": ("crosses for eyes", "star-shaped eyes"),
                },
            ),
            "lights": Attribute(option="glowColor", role="part", words=("{} lights", "{a} glow")),
            "top": Attribute(
                option="topVariant",
                role="part",
                values=_values(
                    antenna="antenna",
                    antennas="twin",
                    dish="dish",
                    fin="fin",
                    lamps="lightbar",
                    studs="studs",
                    siren="siren",
                ),
                words={
                    "antenna": ("an antenna", "one antenna"),
                    "antennas": ("two antennas", "a pair of antennas"),
                    "dish": ("a dish on its head",),
                    "fin": ("a fin on its head",),
                    "lamps": ("a row of lamps on its head",),
                    "studs": ("two studs on its head",),
                    "siren": ("a siren on its head",),
                },
            ),
            "chest": Attribute(
                option="chestVariant",
                role="part",
                values={part: part for part in ("buttons", "vents", "screen", "heart", "dial", "slot")},
                words={
                    "buttons": ("buttons on its chest",),
                    "vents": ("vents in its chest",),
                    "screen": ("a screen on its chest",),
                    "heart": ("a heart on its chest",),
                    "dial": ("a dial on its chest",),
                    "slot": ("a slot in its chest",),
                },
            ),
        },
        pair=("colour", "eyes"),
    ),
}
