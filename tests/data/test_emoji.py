"""Emoji: from small packages in the real layout."""

import pickle
import shutil
from collections import Counter

import numpy as np
import pytest

from aimamba.data import emoji
from aimamba.data.emoji import DESIGNS, SPLITS, EmojiImages
from aimamba.data.emoji_names import choose_sides, plain_code
from aimamba.data.images import ImageSet
from aimamba.data.sets import open_images, open_source, open_splits
from aimamba.errors import ConfigError, DataError
from emoji_packages import CODES, HAND, TONES, use_small_packages
from refusals import one_line_error


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("emoji")
        use_small_packages(patch, root / "data" / "emoji")
        patch.setenv("AIMAMBA_DATA", str(root / "data"))
        patch.setenv("AIMAMBA_CACHE", str(root / "cache"))
        patch.setenv("npm_config_registry", "http://127.0.0.1:9")  # nothing is there
        yield root


@pytest.fixture
def splits(packages):
    return {split: EmojiImages(8, split) for split in SPLITS}


def test_a_design_is_a_class(splits):
    train = splits["train"]
    assert isinstance(train, ImageSet)
    assert (train.size, train.class_names) == (8, ("noto", "fluent-flat", "fluent-3d"))
    assert [name.partition("/")[0] for name in train.names] == [train.class_names[label] for label in train.labels]
    assert sum(map(len, splits.values())) == 3 * (len(CODES) + 4)  # neither the component nor the nameless one


def test_pixels_of_drawn_and_of_stored_pictures(splits):
    train = splits["train"]
    plain = next(index for index, name in enumerate(train.names) if name == f"noto/{CODES[5]}")
    image = train.image(plain)
    assert image[4, 1].tolist() == [200, 5, 0]
    assert image[4, 6].tolist() == [255, 255, 255]
    stored = next(index for index, name in enumerate(train.names) if name.startswith("fluent-3d"))
    assert train.image(stored)[0, 0, 2] == 255
    whole = next(images for images in splits.values() if f"noto/{CODES[1]}" in images.names)
    tall = whole.image(whole.names.index(f"noto/{CODES[1]}"))  # twice as high as wide, in the middle
    assert tall[1, 4].tolist() == [200, 255, 0]
    assert tall[1, 0].tolist() == tall[6, 4].tolist() == [255, 255, 255]


def test_no_picture_is_on_two_sides_and_names_are_known_as_promised(splits):
    names = [set(images.names) for images in splits.values()]
    assert len(set.union(*names)) == sum(map(len, names))
    concepts = {split: {each.concept for each in images.emoji} for split, images in splits.items()}
    assert concepts["held-out"] <= concepts["train"]
    assert not concepts["held-out-names"] & concepts["train"]
    assert concepts["held-out"]
    assert concepts["held-out-names"]


def test_variants_of_a_name_stay_together(splits):
    for images in splits.values():
        codes = {each.code for each in images.emoji}
        assert len(codes & {HAND, *(f"{HAND}-{tone}" for tone in TONES)}) in (0, 3)
        assert len(codes & {f"1f468-200d-{CODES[0]}", f"1f469-200d-{CODES[0]}"}) in (0, 2)


def test_sides_do_not_depend_on_the_chosen_designs(splits, packages):
    alone = EmojiImages(8, "held-out", designs=("fluent-3d", "noto"))
    assert alone.class_names == ("fluent-3d", "noto")
    assert set(alone.names) == {name for name in splits["held-out"].names if "flat" not in name}
    few = EmojiImages(8, "train", per_class=2)
    assert np.bincount(few.labels).tolist() == [2, 2, 2]
    assert set(few.names) < set(splits["train"].names)


def test_one_design_alone_has_no_pair_to_hold_out(splits, packages):
    emoji_names = {each.code: each for images in splits.values() for each in images.emoji}
    sides = choose_sides(emoji_names, {"noto": list(emoji_names)})
    assert set(sides.values()) == {"train", "held-out-names"}


def test_pictures_are_kept(splits, packages, monkeypatch):
    def fail(*_):
        raise AssertionError("drawn again")

    monkeypatch.setattr(emoji, "_pictures", fail)
    again = EmojiImages(8, "train")
    assert np.array_equal(again.image(3), splits["train"].image(3))
    other = pickle.loads(pickle.dumps(again))
    assert len(pickle.dumps(again)) < 100_000
    assert np.array_equal(other.image(3), again.image(3))
    assert np.array_equal(EmojiImages(8, flip=True).image(3, np.random.default_rng(2)), again.image(3)[:, ::-1])


def test_a_cache_that_cannot_be_written(packages, tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="cannot keep the emoji here"):
        images = EmojiImages(9, cache_dir=tmp_path / "file", designs=["noto"])
    assert images.image(0).shape == (9, 9, 3)


def test_by_name(packages, capsys):
    train, held_out = open_splits("emoji-8:noto,fluent-3d", per_class=3, progress=True)
    assert (len(train), train.name) == (6, "emoji-8:train")
    assert held_out.class_names == ("noto", "fluent-3d")
    source = open_source("emoji:noto:held-out-names:2", size=8)
    assert (len(source), source.name) == (2, "emoji:noto:held-out-names:2")
    assert open_source("emoji-8").names == EmojiImages(8, "held-out").names
    assert open_source("emoji-8").identity != source.identity


def test_refusals(packages, tmp_path):
    with one_line_error(DataError, "no design of emoji 'not'.*did you mean 'noto'"):
        open_images("emoji-8:not", split="train")
    with one_line_error(DataError, "named twice in noto, noto"):
        open_images("emoji-8:noto,noto", split="train")
    with one_line_error(DataError, "leave the colon out"):
        open_images("emoji-8:", split="train")
    with one_line_error(DataError, "write it in the name, as in emoji-64:noto"):
        open_images("emoji:noto", split="train")
    with one_line_error(ConfigError, "8 to 256 pixels for emoji, got 300"):
        open_images("emoji-300", split="train")
    with one_line_error(ConfigError, "no split 'all'; use one of train, held-out, held-out-names"):
        open_source("emoji-8:all")
    with one_line_error(ConfigError, "no split 'held-out-names'"):
        open_source("avatars-8:held-out-names")
    (tmp_path / "cats").mkdir()
    for name in (f"{tmp_path}:held-out-names", "fashion-mnist:held-out-names"):
        with one_line_error(ConfigError, "no split 'held-out-names'"):
            open_source(name, size=32)


def test_without_a_network_the_message_says_which_files_to_put_where(packages, tmp_path, monkeypatch):
    monkeypatch.setenv("AIMAMBA_DATA", str(tmp_path))
    monkeypatch.setenv("AIMAMBA_CACHE", str(tmp_path / "cache"))
    shutil.copytree(packages / "data" / "emoji", tmp_path / "emoji")
    (package,) = (tmp_path / "emoji").glob("*noto*")
    package.write_bytes(package.read_bytes()[:-1])
    with one_line_error(DataError) as caught:
        EmojiImages(8)
    text = str(caught.value)
    address = f"https://registry.npmjs.org/@iconify-json/noto/-/noto-{DESIGNS['noto'].version}.tgz"
    for part in ("cannot download @iconify-json/noto@", f"{package} is another file or damaged", address):
        assert part in text
    assert "fluent" not in text  # those are there


@pytest.mark.parametrize(
    ("code", "plain"),
    [("1F680", "1f680"), ("0023-FE0F-20E3", "23-20e3"), ("1f3f4-e0067_e007f", "1f3f4-e0067-e007f")],
)
def test_codes(code, plain):
    assert plain_code(code) == plain


def test_few_variants_of_a_concept_are_taken_in_each_design(packages):
    every, few = EmojiImages(8, "train"), EmojiImages(8, "train", variants=2)
    counted = [
        Counter((label, each.concept) for label, each in zip(images.labels.tolist(), images.emoji, strict=True))
        for images in (every, few)
    ]
    assert counted[1] == {concept: min(2, count) for concept, count in counted[0].items()}
    assert max(counted[0].values()) > 2
    assert set(few.names) < set(every.names)
    assert few.identity != every.identity
    train, held_out = open_splits("emoji", size=8, variants=1)
    assert len(train) == len(counted[0])
    assert len(held_out) <= len(EmojiImages(8, "held-out"))
    with pytest.raises(ConfigError, match="variants must be at least 1, got 0"):
        EmojiImages(8, variants=0)
    with pytest.raises(ConfigError, match="variants is for emoji alone, got 2 for avatars:thumbs"):
        open_images("avatars:thumbs", size=8, split="train", variants=2)
