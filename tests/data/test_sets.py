from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aimamba.data.avatars import AVATARS_PER_CLASS, Avatars
from aimamba.data.folder import ImageFolder
from aimamba.data.sets import Images, ImageSet, open_images, open_source, open_splits
from aimamba.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AIMAMBA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pets(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (20, 16), (number, 0, 0)).save(tmp_path / "pets" / name / f"{number}.png")
    return str(tmp_path / "pets")


def test_avatars_of_chosen_styles():
    images = open_images("avatars:thumbs, landscape", size=8, split="train", per_class=2)
    assert isinstance(images, Avatars)
    assert isinstance(images, ImageSet)
    assert images.class_names == ("thumbs", "landscape")
    assert len(images) == 4


def test_avatars_alone_can_be_passed_over(pets):
    fresh = open_images("avatars:thumbs", size=8, split="train", per_class=1, skip_per_class=2)
    every = open_images("avatars:thumbs", size=8, split="train", per_class=3)
    assert np.array_equal(fresh.image(0), every.image(2))
    with pytest.raises(ConfigError, match="skip_per_class is for avatars alone, got 2 for"):
        open_images(pets, size=8, split="train", skip_per_class=2)


def test_how_many_avatars_there_are_by_default(monkeypatch):
    asked = []

    def few(size, split, per_class, styles, **options):
        asked.append((split, per_class, len(styles)))
        return Avatars(size, split, 1, styles[-1:], **options)

    monkeypatch.setattr("aimamba.data.sets.Avatars", few)
    for split in ("train", "held-out"):
        open_images("avatars", size=8, split=split)
    assert asked == [("train", None, 10), ("held-out", None, 10)]
    assert AVATARS_PER_CLASS == {"train": 3000, "held-out": 500}


def test_a_folder(pets):
    images = open_images(pets, size=16, split="train", crop="random", flip=True, per_class=2)
    assert isinstance(images, ImageFolder)
    assert isinstance(images, ImageSet)
    assert len(images) == 4
    assert images.image(0, np.random.default_rng(0)).shape == (16, 16, 3)


def test_the_options_reach_the_folder(pets):
    (held_out,) = open_images(pets, size=8, split="held-out").names
    assert held_out not in open_images(pets, size=8, split="train").names
    with open(f"{pets}/{held_out}", "wb"), pytest.raises(DataError, match="empty"):
        open_images(pets, size=8, split="held-out", strict=True)


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("avatar", r"did you mean 'avatars'\?"),
        ("Avatars:thumbs", r"did you mean 'avatars'\?"),
        ("avatars:", "no avatar style is named"),
        ("avatars:tumbs", "'thumbs'"),
        ("some/where", "no such file, folder or named set"),
    ],
)
def test_sources_that_are_refused(source, match):
    with pytest.raises(DataError, match=match):
        open_images(source, size=8, split="train")


def test_avatars_have_two_splits():
    with pytest.raises(ConfigError, match="avatars have no split"):
        open_images("avatars", size=8, split="all")


def test_a_split_in_the_name_is_left_to_the_command(pets):
    for name in ("avatars:held-out", f"{pets}:train"):
        with pytest.raises(DataError, match="training and encoding choose the split themselves"):
            open_images(name, size=8, split="train")


def test_both_splits(pets):
    train, held_out = open_splits(pets, size=8, crop="random", flip=True, per_class=2, held_out_per_class=1)
    assert (len(train), len(held_out)) == (4, 1)
    assert not set(train.names) & set(held_out.names)
    rng = np.random.default_rng(0)
    assert all(np.array_equal(held_out.image(0, rng), held_out.image(0)) for _ in range(5))
    train, held_out = open_splits("avatars:thumbs", size=8, per_class=2, held_out_per_class=1, skip_per_class=1)
    assert (train.name, len(train), held_out.name, len(held_out)) == ("avatars-8:train", 2, "avatars-8:held-out", 1)


def test_every_set_can_be_read_in_three_ways(pets, tmp_path):
    np.savez(tmp_path / "s.npz", arr_0=np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8))
    opened = [
        open_images("avatars:thumbs", size=8, split="train", per_class=5),
        open_images(pets, size=8, split="all"),
        open_source("avatars-8:thumbs:train:5"),
        open_source(f"{pets}:dog", size=8),
        open_source(str(tmp_path / "s.npz")),
    ]
    for images in opened:
        assert isinstance(images, Images)
        one_by_one = np.stack([images.image(index) for index in range(len(images))])
        assert np.array_equal(np.concatenate(list(images.batches(3))), one_by_one)
        assert np.array_equal(images.take([3, 0]), one_by_one[[3, 0]])
        for index in (-1, len(images)):
            with pytest.raises(IndexError, match=f"of {len(images)}"):
                images.image(index)


def test_identities_do_not_change(pets):
    """Features are kept under them."""
    versions = {package: version(package) for package in ("dicebear-core", "dicebear-styles", "resvg-py")}
    assert open_source("avatars-8:thumbs:train:2").identity == {"avatars": [8, "train", 2, "thumbs"], **versions}
    passed = open_images("avatars:thumbs", size=8, split="train", per_class=2, skip_per_class=1)
    assert passed.identity == {"avatars": [8, "train", 2, "thumbs"], "skip": 1, **versions}
    files = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(4)]
    stats = [Path(pets, file).stat() for file in files]
    assert open_source(pets, size=8).identity == {
        "folder": str(Path(pets).resolve()),
        "size": 8,
        "cropped": True,
        "files": [[file, stat.st_size, stat.st_mtime_ns] for file, stat in zip(files, stats, strict=True)],
    }
