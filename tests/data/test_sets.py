import numpy as np
import pytest
from PIL import Image

from aimamba.data.avatars import AVATARS_PER_CLASS, Avatars
from aimamba.data.folder import ImageFolder
from aimamba.data.sets import ImageSet, open_images
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
        ("avatars:", "at least one avatar style"),
        ("avatars:tumbs", "'thumbs'"),
        ("some/where", "no such file, folder or named set"),
    ],
)
def test_sources_that_are_refused(source, match):
    with pytest.raises(DataError, match=match):
        open_images(source, size=8, split="train")


def test_avatars_have_two_splits():
    with pytest.raises(ConfigError, match="'train' or 'held-out' for avatars"):
        open_images("avatars", size=8, split="all")
