"""Folders and file names that commands write."""

import os
import unicodedata
from pathlib import Path

import pytest

from aimamba.cli import output
from aimamba.cli.output import (
    file_name,
    file_names,
    output_file,
    output_folder,
    require_apart,
    write_json,
)
from aimamba.errors import ConfigError
from refusals import one_line_error


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


class TestPlaces:
    """What is written replaces nothing else, and what cannot be written is found before the work."""

    @pytest.fixture
    def places(self, here):
        (here / "images").mkdir()
        for name in ("a.npz", "b.npz", "images/a.png"):
            (here / name).touch()
        (here / "link").symlink_to("a.npz")
        (here / "nowhere").symlink_to("missing/file")
        (here / "loop").symlink_to("loop")
        os.mkfifo(here / "pipe")
        return here

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("pipe", "--json pipe is a device or a pipe, but a file is needed"),
            ("/dev/null", "--json /dev/null is a device or a pipe"),
            ("/dev/stdout", "is a device or a pipe"),
            ("/proc/x.json", "is a device or a pipe"),
            ("nowhere", "there is no folder .*missing; make it first"),
            ("loop/file", "there is no folder loop; make it first"),
            ("x" * 222, "the name is too long, at most 221 bytes"),
            ("ü" * 111, "the name is too long, at most 221 bytes"),
        ],
    )
    def test_places_that_no_file_can_take(self, places, path, message):
        with one_line_error(ConfigError, message):
            output_file("--json", Path(path))

    def test_a_link_leads_to_its_file(self, places):
        assert output_file("--json", Path("link")) == places / "a.npz"
        name = "x" * 221
        write_json(output_file("--json", Path(name)), {})
        assert (places / name).read_text() == "{}\n"

    def test_a_folder_that_may_not_be_written_refuses_its_files(self, places, monkeypatch):
        monkeypatch.setattr(output.os, "access", lambda path, mode: Path(path) != places)
        with one_line_error(ConfigError, "--json a.npz: writing is not permitted there"):
            output_file("--json", Path("a.npz"))  # a draft beside it could not be written

    def test_a_link_to_nothing_is_no_folder(self, places):
        with one_line_error(ConfigError, "--report nowhere is a link to a place that does not exist"):
            output_folder(Path("nowhere"), "--report")

    @pytest.mark.parametrize(
        ("outputs", "read", "message"),
        [
            ({"--json": "new", "--save-npz": "new"}, [], "--json and --save-npz name the same file, new"),
            ({"--json": "./new", "--maps": "images/../new"}, [], "--json and --maps name the same file"),
            ({"--json": "a.npz"}, ["a.npz"], "--json a.npz: this is what the command reads"),
            ({"--json": "a.npz"}, ["link"], "--json a.npz: this is what the command reads"),
            ({"--out": "images"}, ["images/../images"], "--out images: this is what the command reads"),
            ({"--out": "images/a.png"}, ["images/a.png"], "--out images/a.png: this is what the command reads"),
            ({"--out": "link"}, ["link"], "--out link: this is what the command reads"),
            ({"--report": "images/report"}, ["a.npz", "images"], "--report images/report lies in a folder of images"),
            ({"--maps": "images/maps.png"}, ["images"], "--maps images/maps.png lies in a folder of images"),
        ],
    )
    def test_outputs_apart_from_what_is_read(self, places, outputs, read, message):
        with one_line_error(ConfigError, message):
            require_apart([(option, Path(path)) for option, path in outputs.items()], map(Path, read))

    def test_what_does_not_disturb(self, places):
        outputs = [("--json", Path("images/scores.json")), ("--report", Path("report")), ("--plot", None)]
        require_apart(outputs, [Path("images"), None, Path("loop")])
        require_apart([("--out", Path("."))], [Path("images/a.png")])
        made = [("--out", Path("images", name)) for name in ("sheet.png", "a-seed0.png")]
        require_apart(made, [Path("images/a.png"), Path("a.npz")])
        require_apart([("--out", Path("link"))], [Path("a.npz")])  # what is replaced is the link


@pytest.mark.parametrize("arguments", [["--out", ""], ["--out="]])
def test_an_empty_path_is_not_the_current_folder(aimamba, here, arguments):
    for command in (["reconstruct", "x.png"], ["sample"], ["complete", "x.png", "--keep-rows", 1]):
        status, _, err = aimamba(*command, *arguments)
        assert (status, err.count("\n")) == (2, 1)
        assert "--out: expected a file or a folder, got nothing" in err
    assert list(here.iterdir()) == []
