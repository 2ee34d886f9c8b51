"""The names of image sets."""

from pathlib import Path

import pytest

from aimamba.data import spec
from aimamba.data.spec import parse_spec, training_set_of
from aimamba.errors import DataError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    (tmp_path / "odd:name" / "cats").mkdir(parents=True)
    (tmp_path / "clothes").mkdir()
    (tmp_path / "clothes" / "t10k-images-idx3-ubyte.gz").touch()
    (tmp_path / "s.npz").touch()
    (tmp_path / "1.png").touch()


NAMED = {
    "avatars": {"kind": "avatars"},
    "avatars-64": {"kind": "avatars", "size": 64},
    "avatars:planets, sprouts": {"kind": "avatars", "which": ("planets", "sprouts")},
    "avatars:": {"kind": "avatars", "which": ()},
    "avatars:held-out": {"kind": "avatars", "split": "held-out"},
    "avatars-64:train:10": {"kind": "avatars", "size": 64, "split": "train", "per_class": 10},
    "avatars-64:planets,sprouts:held-out:6": {
        "kind": "avatars",
        "size": 64,
        "which": ("planets", "sprouts"),
        "split": "held-out",
        "per_class": 6,
    },
    "fashion-mnist": {"kind": "fashion-mnist"},
    "fashion-mnist:": {"kind": "fashion-mnist"},
    "fashion-mnist-28:train": {"kind": "fashion-mnist", "size": 28, "split": "train"},
    "fashion-mnist:no/where:held-out:3": {
        "kind": "fashion-mnist",
        "path": Path("no/where"),
        "split": "held-out",
        "per_class": 3,
    },
    "emoji-64:noto:held-out-names:3": {
        "kind": "emoji",
        "size": 64,
        "which": ("noto",),
        "split": "held-out-names",
        "per_class": 3,
    },
    "clothes": {"kind": "fashion-mnist", "path": Path("clothes")},
    "clothes:train": {"kind": "fashion-mnist", "path": Path("clothes"), "split": "train"},
    "photos": {"kind": "folder", "path": Path("photos")},
    "photos/cats": {"kind": "folder", "path": Path("photos/cats")},
    "photos:held-out": {"kind": "folder", "path": Path("photos"), "split": "held-out"},
    "photos:all:2": {"kind": "folder", "path": Path("photos"), "split": "all", "per_class": 2},
    "photos:cats": {"kind": "folder", "path": Path("photos"), "which": ("cats",)},
    "photos:cats:train:2": {
        "kind": "folder",
        "path": Path("photos"),
        "which": ("cats",),
        "split": "train",
        "per_class": 2,
    },
    "odd:name": {"kind": "folder", "path": Path("odd:name")},
    "odd:name:cats:train": {"kind": "folder", "path": Path("odd:name"), "which": ("cats",), "split": "train"},
    "s.npz": {"kind": "npz", "path": Path("s.npz")},
    "1.png": {"kind": "file", "path": Path("1.png")},
}


@pytest.mark.parametrize("text", NAMED)
def test_names(text):
    assert parse_spec(text) == spec.ImageSpec(text=text, **NAMED[text])


def test_a_path_that_exists_goes_before_a_name(tmp_path):
    for name in ("avatars", "avatars-64", "fashion-mnist"):
        (tmp_path / name).mkdir()
        assert parse_spec(name).kind == "folder"
        assert parse_spec(f"{name}:train").path == Path(name)
    (tmp_path / "fashion-mnist" / "train-images-idx3-ubyte").touch()
    assert parse_spec("fashion-mnist") == spec.ImageSpec(
        text="fashion-mnist", kind="fashion-mnist", path=Path("fashion-mnist")
    )
    assert parse_spec("fashion-mnist:clothes").path == Path("clothes")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("avatar", r"^avatar: no such file, folder or named set \(did you mean 'avatars'\?\)$"),
        ("Avatars-64:held-out", r"did you mean 'avatars'\?"),
        ("fashion_mnist:train", r"did you mean 'fashion-mnist'\?"),
        ("avatars-big", r"did you mean 'avatars'\?"),
        ("photo", r"did you mean 'photos'\?"),
        ("photo:held-out:3", r"did you mean 'photos'\?"),
        (
            "some/where",
            "^some/where: no such file, folder or named set; expected a folder, an .npz file, avatars, captioned",
        ),
        ("", "the name of the image set is empty"),
        ("avatars-0", "a size of 0 pixels is not possible"),
        ("photos-64", "a folder takes no -SIZE; give photos and --size 64"),
        ("avatars:planets:3", "a number needs a split before it, as in avatars:planets:held-out:3"),
        ("x" * 5000, "no such file, folder or named set"),
        ("avatars:train:", r"expected a number of images .* as in avatars:train:10, got ''"),
        ("avatars:train:-1", "got '-1'"),
        ("avatars:train:" + "1" * 5000, "expected a number of images"),
        ("avatars-1" + "9" * 5000, "no such file, folder or named set"),
        ("gone", "^gone: this is a link to a place that does not exist; give another set$"),
        ("photos:held-out:0", "got '0'"),
        ("photos:train:many", "got 'many'"),
        ("s.npz:held-out", r"a file has no classes or splits to choose from; give s\.npz alone"),
        ("s.npz:cats", "a file has no classes or splits"),
        ("1.png:train:2", "a file has no classes or splits"),
    ],
)
def test_names_that_are_refused(text, message):
    Path("gone").symlink_to("nowhere")
    with pytest.raises(DataError, match=message):
        parse_spec(text)


@pytest.mark.parametrize(
    ("text", "size", "default", "expected"),
    [
        ("avatars", None, None, None),
        ("avatars", None, 16, 16),
        ("avatars", 32, 16, 32),
        ("avatars-64", None, 16, 64),
        ("avatars-64", 64, 16, 64),
        ("fashion-mnist", None, None, 32),
        ("fashion-mnist", None, 64, 32),
        ("fashion-mnist", None, 28, 28),
        ("fashion-mnist", 28, None, 28),
        ("photos", None, None, None),
        ("photos", 0, 16, 0),
    ],
)
def test_sizes(text, size, default, expected):
    assert parse_spec(text).resolve_size(size, default=default) == expected


def test_two_sizes_that_differ():
    message = "avatars-64:train: the name says 64 pixels, but the size is set to 32; leave one out, or make them equal"
    with pytest.raises(DataError, match=message):
        parse_spec("avatars-64:train").resolve_size(32)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("avatars-64:held-out", "avatars-64:train"),
        ("avatars-64", "avatars-64:train"),
        ("avatars:planets:held-out", "avatars:planets:train"),
        ("fashion-mnist:held-out", "fashion-mnist:train"),
        ("avatars-64:held-out:6", None),
        ("avatars-64:train", None),
        ("photos:held-out", None),
        ("s.npz", None),
    ],
)
def test_the_training_set_of_a_held_out_set(text, expected):
    assert training_set_of(text) == expected


def test_every_line_of_the_table_is_a_name(tmp_path):
    for name in ("FOLDER", "FILE.npz", "FILE.tar"):
        (tmp_path / name).mkdir() if name == "FOLDER" else (tmp_path / name).touch()
    table = [line.split()[0] for line in spec.__doc__.splitlines() if line.startswith("  ")]
    assert len(table) == 13
    for name in [*table, "avatars-64:planets,sprouts:held-out:6", "photos:held-out"]:
        parse_spec(name)
