"""Folders and file names that commands write."""

import unicodedata
from pathlib import Path

import pytest

from aimamba.cli import output
from aimamba.cli.output import file_name, file_names, output_folder
from aimamba.errors import ConfigError


def test_a_folder_is_checked_but_not_made(here):
    assert output_folder(Path("new/folder")) == Path("new/folder")
    assert list(here.iterdir()) == []
    assert output_folder(here) == here


def test_the_home_folder(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    assert output_folder(Path("~/samples")) == here / "samples"


@pytest.mark.parametrize("path", ["file", "file/below", "file/far/below"])
def test_a_file_in_the_way(here, path):
    (here / "file").touch()
    with pytest.raises(ConfigError, match=r"--out file.*file is a file, but a folder is needed; give another --out"):
        output_folder(Path(path))


def test_a_folder_that_may_not_be_written(here, monkeypatch):
    monkeypatch.setattr(output.os, "access", lambda path, mode: Path(path) != here)  # root may write anywhere
    with pytest.raises(ConfigError, match="is not permitted; give another --out"):
        output_folder(here / "new")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("planets", "planets"),
        (" sea  shells ", "sea-shells"),
        ("a/b\\c:d", "a-b-c-d"),
        ("../up", "up"),
        ("St. Bernard", "St.-Bernard"),
        ("猫", "猫"),
        ("😀", ""),
        (".", ""),
    ],
)
def test_file_name(text, name):
    assert file_name(text) == name


def test_long_names_fit_into_a_file_name():
    assert len(file_name("猫" * 300).encode()) < 200


def test_no_two_classes_share_a_file():
    names = ["sea shells", "sea-shells", "cats", "😀", "🐱", "Cats", "dogs"]
    made = file_names(names)
    assert made == ["sea-shells-0", "sea-shells-1", "cats-2", "class-3", "class-4", "Cats-5", "dogs"]


@pytest.mark.parametrize(
    "names",
    [
        ["ak 47", "ak-47", "ak-47-1"],
        ["ak-47-1", "ak 47", "ak-47", "AK 47", "ak-47-2", "ak-47-3-3"],
        ["a", "A", "a-1", "A-0", "a-1-1", "A-0-0"],
        [unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "É"), "é-1"],
        ["x" * 70, "x" * 71, "x" * 60 + "-1"],
        ["class", "?", "!", "class-1"],
    ],
)
def test_cleaned_names_never_collide(names):
    """On a disk that ignores case and the composition of accents, every class has its own file."""
    made = file_names(names)
    assert len({unicodedata.normalize("NFD", name).casefold() for name in made}) == len(names)


def test_names_are_cut_by_bytes():
    letters = "\U00020000" * 300  # a letter of four bytes
    [one, other] = file_names([letters, letters + "x"])
    assert len(f"{one}-seed{2**63}.png".encode()) < 255
    assert one != other
    assert one.encode().decode() == one
    assert file_name("猫" * 300) == "猫" * 60
