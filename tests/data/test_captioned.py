"""Captions of avatars and emoji: true, varied, the same in every run."""

import json
from importlib.resources import files

import numpy as np
import pytest

from aimamba.data import captioned
from aimamba.data.avatar_captions import attributes_of, captions_of, describe, is_held_out
from aimamba.data.avatar_words import STYLES
from aimamba.data.avatars import Avatars
from aimamba.data.captioned import SPLITS, CaptionedAvatars
from aimamba.data.emoji_names import Emoji
from aimamba.data.emoji_names import captions_of as emoji_captions
from aimamba.data.images import CaptionedSet, has_captions
from aimamba.data.sets import open_images, open_source
from aimamba.data.wording import Chooser, colour_name, listed, with_article
from aimamba.errors import ConfigError, DataError
from refusals import one_line_error


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("AIMAMBA_CACHE", str(folder))
        patch.setattr(captioned, "AVATARS_PER_CLASS", {"train": 50, "held-out": 40})
        yield folder


@pytest.fixture(scope="module")
def splits(cache):
    return {split: CaptionedAvatars(8, split, styles=["critters", "planets"]) for split in SPLITS}


def test_captions_tell_what_is_there(splits):
    train = splits["train"]
    assert isinstance(train, CaptionedSet)
    assert has_captions(train)
    attributes, captions = train.attributes(0), train.captions(0)
    assert attributes["style"] == "critters"
    assert set(attributes) == {"style", *STYLES["critters"].attributes}
    assert len(captions) == 4
    assert attributes["colour"] in captions[0]
    assert attributes["colour"] in captions[1]
    assert captions == CaptionedAvatars(8, styles=["critters"], per_class=1).captions(0)


def test_images_are_those_of_avatars(splits):
    avatars = Avatars(8, "held-out", 40, ("critters", "planets"))
    taken = {images.image(index).tobytes() for images in list(splits.values())[1:] for index in range(len(images))}
    assert taken == {avatars.image(index).tobytes() for index in range(len(avatars))}
    assert len(splits["train"]) < 100


def test_pairs_are_held_out_and_their_values_are_trained_on(splits):
    def pairs(images, style):
        found = [images.attributes(index) for index in range(len(images))]
        return {tuple(each[name] for name in STYLES[style].pair) for each in found if each["style"] == style}

    for style in ("critters", "planets"):
        train, held_out, apart = (pairs(images, style) for images in splits.values())
        assert not apart & (train | held_out)
        assert all({pair[place] for pair in apart} <= {pair[place] for pair in train} for place in (0, 1))


@pytest.mark.parametrize("style", STYLES)
def test_every_value_of_every_style_is_trained_on_with_words(style):
    colours = json.loads(files("dicebear_styles").joinpath(f"{style}.json").read_text())
    first, second = (STYLES[style].attributes[name] for name in STYLES[style].pair)
    values = [
        {colour_name(colour) for colour in colours["colors"][attribute.option.removesuffix("Color")]["values"]}
        if attribute.values is None
        else set(attribute.values.values())
        for attribute in (first, second)
    ]
    trained = [
        (one, other)
        for one in values[0]
        for other in values[1]
        if not is_held_out(style, dict(zip(STYLES[style].pair, (one, other), strict=True)))
    ]
    assert [{pair[place] for pair in trained} for place in (0, 1)] == values
    assert len(trained) < len(values[0]) * len(values[1])


@pytest.mark.parametrize("style", STYLES)
def test_every_part_of_a_style_has_a_value(style):
    parts = json.loads(files("dicebear_styles").joinpath(f"{style}.json").read_text())["components"]
    for attribute in STYLES[style].attributes.values():
        if attribute.values is not None:
            assert set(attribute.values) >= set(parts[attribute.option.removesuffix("Variant")]["variants"])
            assert not isinstance(attribute.words, dict) or set(attribute.words) <= {*attribute.values.values(), "none"}


def test_parts_that_cannot_be_seen_are_not_told():
    seen = {"bodyColor": "#7dd3fc", "eyesVariant": "mono", "mouthVariant": "tongue", "topVariant": "crown"}
    common = {"backgroundColor": "#c2410c", **seen}
    assert attributes_of("critters", {**common, "bodyVariant": "block"})["top"] == "spikes"
    attributes = attributes_of("critters", {**common, "bodyVariant": "tower"})
    assert attributes == {
        "colour": "blue",
        "shape": "tall",
        "eyes": "one",
        "mouth": "tongue",
        "top": "none",
        "background": "orange",
    }
    assert all("tongue" in caption and "an orange" in caption.replace(", orange", " an orange")
               for caption in captions_of("critters", attributes, "x")[:2])  # fmt: skip


def test_wordings_differ_by_key_alone():
    attributes = {"colour": "green", "eyes": "one", "mouth": "tongue", "background": "red"}
    captions = {describe("critters", attributes, str(key)) for key in range(50)}
    assert len(captions) > 30
    assert "a green monster with a single round eye and its tongue out, red background" in captions | {
        describe("critters", attributes, str(key)) for key in range(50, 3000)
    }
    assert describe("critters", attributes, "7") == describe("critters", attributes, "7")
    assert describe("planets", {"colour": "blue"}, "1").endswith(("planet", "world", "planet in space"))
    assert describe("sprouts", {}, "0") in ("pot", "flowerpot", "plant pot", "a pot", "a flowerpot", "a plant pot")


def test_what_is_kept_is_read_again_and_what_is_damaged_is_found_out_again(splits, cache, monkeypatch):
    (path,) = (cache / "avatars").glob("planets-train-parts-*.json")
    good = path.read_text()
    monkeypatch.setattr(captioned, "options_of", None)  # would fail
    assert CaptionedAvatars(8, styles=["planets"], per_class=3).captions(2)
    monkeypatch.undo()
    monkeypatch.setenv("AIMAMBA_CACHE", str(cache))
    monkeypatch.setattr(captioned, "AVATARS_PER_CLASS", {"train": 4, "held-out": 4})
    for bad in ("[{}, 3]", "[", '[{"surfaceVariant": "unknown"}]', '{"a": 1}'):
        path.write_text(bad)
        images = CaptionedAvatars(8, styles=["planets"])
        assert json.loads(path.read_text()) == json.loads(good)[:4]
        assert len(images) <= 4


def test_how_many(splits, cache):
    few = CaptionedAvatars(8, "held-out-pairs", per_class=5, styles=["critters"])
    assert len(few) == 5
    assert np.array_equal(few.image(0), splits["held-out-pairs"].image(0))
    assert open_source("captioned-avatars-8:critters:held-out-pairs:5").captions(3) == few.captions(3)
    assert open_source("captioned-avatars-8:critters").identity != few.identity
    assert open_images("captioned-avatars-8:critters", split="train", per_class=2).captioned
    assert not open_images("avatars-8:critters", split="train", per_class=2).captioned
    assert open_images("avatars-8:critters", split="train", per_class=2).captions(1) == ()


def test_refusals(cache):
    with one_line_error(ConfigError, "per_class must be from 1 to 1,000,000, got 100000000000"):
        CaptionedAvatars(64, per_class=10**11)
    with one_line_error(ConfigError, "no split 'all'; use one of train, held-out, held-out-pairs"):
        open_source("captioned-avatars-8:all")
    with one_line_error(DataError, "style 'critter' have no captions.*did you mean 'critters'"):
        open_source("captioned-avatars-8:critter")
    with one_line_error(DataError, "no avatar style is named"):
        open_source("captioned-avatars-8:")
    with one_line_error(DataError, "named twice"):
        open_source("captioned-avatars-8:critters,critters:train:1")
    with one_line_error(DataError, "write it in the name, as in captioned-avatars-64"):
        open_source("captioned-avatars")
    images = CaptionedAvatars(8, styles=["critters"], per_class=1)
    for ask in (images.image, images.captions, images.attributes):
        with pytest.raises(IndexError):
            ask(1)


def test_captions_of_emoji():
    rocket = Emoji("1f680", "rocket", ("space", "fly", "rocket", "143"), "1f680")
    captions = emoji_captions(rocket, "fluent-flat")
    assert captions == emoji_captions(rocket, "fluent-flat")
    assert captions[0].startswith("a rocket, flat ")
    assert "space" in " ".join(captions)
    assert all("rocket" in caption and "flat" in caption and "143" not in caption for caption in captions)
    flags = {emoji_captions(Emoji(f"c{n}", "flag: Cuba", (), "c"), "noto")[0].partition(",")[0] for n in range(20)}
    assert flags == {"flag of Cuba", "the flag of Cuba", "flag: Cuba"}
    hand = emoji_captions(Emoji("1f44b-1f3ff", "waving hand: dark skin tone", (), "1f44b"), "noto")
    assert hand[0].startswith(("a waving hand with dark skin tone, ", "a waving hand, dark skin tone, "))


@pytest.mark.parametrize(
    ("colour", "name"),
    [("#bd1700", "red"), ("#fdba74", "orange"), ("#7a4a2d", "brown"), ("#fcd34d", "yellow"), ("#bef264", "green"),
     ("#5eead4", "teal"), ("#7dd3fc", "blue"), ("#c4b5fd", "purple"), ("#f0abfc", "pink"), ("#ffffff", "white"),
     ("#aeb8c2", "grey"), ("#000000", "black"), ("#1e293b", "black"), ("#ff0000", "red"), ("#0000ff", "blue"),
     ("#00ff00", "green"), ("#ffff00", "yellow"), ("#800080", "purple"), ("#ffc0cb", "pink"), ("#ffa500", "orange"),
     ("#808080", "grey")],
)  # fmt: skip
def test_colours(colour, name):
    assert colour_name(colour) == name


def test_words():
    assert [listed(list("abc")[:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]
    assert [with_article(word) for word in ("rocket", "orange pot")] == ["a rocket", "an orange pot"]
    assert sorted(Chooser("x").some("abcd")) == list("abcd")
    assert {Chooser(str(key)).one("ab") for key in range(20)} == {"a", "b"}
