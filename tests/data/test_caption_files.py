"""Captions of a folder: text files, JSON lines, CSV; and what is wrong with them."""

import csv
import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from aimamba.data import caption_files
from aimamba.data.caption_files import CaptionWarning
from aimamba.data.caption_lines import CaptionLines
from aimamba.data.folder import BrokenImageWarning, ImageFolder
from aimamba.data.images import has_captions
from aimamba.data.sets import open_source
from aimamba.errors import DataError
from refusals import one_line_error

NAMES = ("cat/0.png", "cat/1.png", "dog/0.png", "dog/deep/1.jpg")


@pytest.fixture
def root(tmp_path):
    for number, name in enumerate(NAMES):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / name)
    return tmp_path


def opened(root, **options):
    return ImageFolder(root, **{"size": 8, "split": "all"} | options)


def captions(root):
    images = opened(root)
    assert has_captions(images)
    return {name: images.captions(index) for index, name in enumerate(images.names)}


def write_rows(path, rows):
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, fieldnames=list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def test_a_folder_without_captions(root):
    images = opened(root)
    assert not has_captions(images)
    assert images.captions(0) == ()


def test_text_files_have_a_caption_on_each_line(root):
    (root / "cat/0.txt").write_bytes("\ufeffa grey cat\r\n\r\n  a cat asleep  \n".encode())
    (root / "cat/1.txt").write_text("eine Katze, schön")
    (root / "cat/notes.txt").write_text("belongs to no image")
    (root / "dog/deep/1.txt").write_text(" \n")
    with pytest.warns(CaptionWarning, match=r"2 images of 4 without a caption \(such as dog/0.png\)"):
        found = captions(root)
    assert found == {
        "cat/0.png": ("a grey cat", "a cat asleep"),
        "cat/1.png": ("eine Katze, schön",),
        "dog/0.png": (),
        "dog/deep/1.jpg": (),
    }


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.parametrize("column", ["text", "caption"])
def test_metadata(root, suffix, column):
    rows = [{"file_name": name, column: f'about "{name}", ö'} for name in NAMES]
    write_rows(root / f"metadata.{suffix}", rows)
    assert captions(root) == {name: (f'about "{name}", ö',) for name in NAMES}


def test_metadata_in_folders_below_and_lists_of_captions(root):
    write_rows(root / "cat/metadata.jsonl", [{"file_name": "0.png", "text": ["a", "b", ""]}])
    rows = [{"file_name": "deep/1.jpg", "text": "c"}, {"file_name": "./0.png", "text": "d"}]
    write_rows(root / "dog/metadata.csv", [*rows, {"file_name": "0.png", "text": "e"}])
    with pytest.warns(CaptionWarning, match="1 image of 4"):
        found = captions(root)
    assert list(found.values()) == [("a", "b"), (), ("d", "e"), ("c",)]


def test_images_in_no_class_folder_are_one_class_if_they_have_captions(tmp_path):
    for number in range(30):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    with one_line_error(DataError, "or give them captions"):
        opened(tmp_path)
    write_rows(tmp_path / "metadata.jsonl", [{"file_name": f"{n}.png", "text": f"number {n}"} for n in range(30)])
    whole = opened(tmp_path)
    assert whole.class_names == ("images",)
    assert not whole.labels.any()
    parts = [opened(tmp_path, split=split) for split in ("train", "held-out")]
    assert sum(map(len, parts)) == 30
    for images in (whole, *parts):
        for index in range(len(images)):
            assert images.captions(index) == (f"number {images.image(index)[0, 0, 0]}",)
    with one_line_error(DataError, "no sub-folders"):
        opened(tmp_path, classes=("cats",))


def test_rows_that_help_nobody_are_counted(root):
    rows = [{"file_name": name, "text": "x"} for name in (*NAMES, "cat/9.png", "dog/9.png", NAMES[0])]
    write_rows(root / "metadata.jsonl", rows)
    with pytest.warns(CaptionWarning) as caught:
        found = captions(root)
    assert set(found.values()) == {("x",)}
    told = "\n".join(str(warning.message) for warning in caught)
    assert "2 rows of metadata name a file that does not exist (such as cat/9.png); they are left out" in told
    assert "1 row of metadata repeat a caption (such as cat/0.png)" in told


def row(**values):
    return json.dumps(values)


BAD_LINES = {
    row(file_name="../x.png", text="a"): r"line 2: '../x.png' leads out of the folder",
    row(file_name="/etc/passwd", text="a"): "leads out of the folder",
    row(file_name="..\\x.png", text="a"): "leads out of the folder",
    row(file_name="a\0", text="a"): "leads out of the folder",
    row(text="a"): "expected the name of an image under 'file_name', got None",
    row(file_name=3, text="a"): "expected the name of an image",
    row(file_name=NAMES[0]): "expected a caption under 'text' or 'caption', got file_name",
    row(file_name=NAMES[0], text=3): "expected a text or a list of texts under 'text', got '3'",
    row(file_name=NAMES[0], text=["a", 3]): "expected a text or a list",
    row(file_name=NAMES[0], text="x" * 70_000): "a caption of 70,000 characters, more than 65,536",
    "[]": "line 2: expected an object",
    "{": "line 2 is not valid JSON",
    "[" * 100_000: "line 2 is not valid JSON",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: line[:30])
def test_rows_that_are_refused(root, line):
    (root / "metadata.jsonl").write_text(f"{row(file_name=NAMES[1], text='fine')}\n{line}\n")
    with one_line_error(DataError, BAD_LINES[line]) as caught:
        captions(root)
    assert "metadata.jsonl" in str(caught.value)


def test_files_that_are_refused(root, monkeypatch):
    path = root / "metadata.csv"
    for content, message in {
        b"name,text\nx,y\n": "expected the columns file_name and text, got name, text",
        b"": "got none",
        b"file_name,text\ncat/0.png,a,b\n": "line 2 has more fields than columns; quote",
        b'file_name,text\ncat/0.png,"a"b\n': "line 2 is not valid CSV",
        b"file_name,text\ncat/0.png,\xff\n": "not UTF-8 text",
        b"file_name,text\nnone.png,x\n": "none of its rows names an image.*there is no none.png",
    }.items():
        path.write_bytes(content)
        with one_line_error(DataError, message):
            captions(root)
    monkeypatch.setattr(caption_files, "_LONGEST_LINE", 1000)
    path.write_bytes(b"file_name,text\ncat/0.png," + b"x" * 2000)
    with one_line_error(DataError, "line 2 has more than 1,000 characters"):
        captions(root)
    path.unlink()
    beside = root / "cat/0.txt"
    for content, message in {
        b"\xff\xfea": "cat/0.txt: the caption is not UTF-8 text .invalid start byte at byte 0.; save it as UTF-8",
        b"x" * 70_000: "a caption of 70,000 characters",
        b"x" * 300_000: "300,000 bytes are no caption",
    }.items():
        beside.write_bytes(content)
        with one_line_error(DataError, message):
            captions(root)


def test_two_kinds_of_captions_are_refused_when_they_are_asked_for(root):
    write_rows(root / "metadata.jsonl", [{"file_name": NAMES[0], "text": "x"}])
    (root / "dog/0.txt").write_text("y")
    opened(root).image(0)
    with one_line_error(DataError, "captions in metadata.jsonl and in dog/0.txt.*keep one kind"):
        captions(root)
    (root / "dog/0.txt").unlink()
    write_rows(root / "metadata.csv", [{"file_name": NAMES[0], "text": "x"}])
    with one_line_error(DataError, "captions in metadata.jsonl and in metadata.csv"):
        captions(root)


def test_a_broken_image_gives_its_place_with_the_caption_to_another(root):
    for name in NAMES:
        (root / name).with_suffix(".txt").write_text(f"about {name}")
    (root / NAMES[0]).write_bytes((root / NAMES[0]).read_bytes()[:45])  # the header is intact
    images = opened(root)
    with pytest.warns(BrokenImageWarning, match="cat/0.png"):
        assert images.image(0)[0, 0, 0] == 1
    assert images.captions(0) == images.captions(1) == ("about cat/1.png",)
    assert [images.stand_in(index) for index in range(4)] == [1, 1, 2, 3]
    again = pickle.loads(pickle.dumps(images))
    assert again.captions(0) == images.captions(0)


def test_images_to_show_have_captions_too(root):
    (root / "dog/0.txt").write_text("a dog")
    with pytest.warns(CaptionWarning):
        assert open_source(f"{root}:dog").captions(0) == ("a dog",)


def test_lines(tmp_path):
    captions = [("a", "ü\n\u2028"), (), ('"quoted"',)]
    lines = CaptionLines.of(captions)
    assert [lines[index] for index in range(3)] == captions
    path = tmp_path / "captions.jsonl"
    path.write_bytes(lines.lines.tobytes())
    mapped = CaptionLines.open(path)
    assert isinstance(mapped.lines, np.memmap)
    assert len(pickle.dumps(mapped)) < 1000
    assert [pickle.loads(pickle.dumps(mapped))[index] for index in range(3)] == captions
    with pytest.raises(IndexError):
        mapped[3]
    assert len(CaptionLines.of([])) == 0
    for bad in (b'{"a": 1}\n', b"[3]\n", b"[\n", b"\xff\n", b"\n"):
        path.write_bytes(bad)
        with one_line_error(DataError, "line 1 is no list of captions"):
            CaptionLines.open(path)[0]
    path.write_bytes(b'["a"]\n["b"')
    with one_line_error(DataError, "cut short"):
        CaptionLines.open(path)
    path.write_bytes(b"")
    assert len(CaptionLines.open(path)) == 0
    with one_line_error(DataError, "cannot be read"):
        CaptionLines.open(tmp_path / "missing")


def test_names_that_no_file_can_have(root):
    path = root / "metadata.jsonl"
    for name in ("x" * 5000, "x\n\x1b[31m", "\ud800"):
        path.write_text(f"{row(file_name='cat/0.png', text='a')}\n{row(file_name=name, text='b')}\n")
        with pytest.warns(CaptionWarning) as caught:
            assert captions(root)["cat/0.png"] == ("a",)
        told = [str(each.message) for each in caught]
        assert "1 row of metadata name a file that does not exist" in told[0]
        assert all(text.isprintable() and len(text) < 400 for text in told)
    path.write_text(f"{row(file_name='../' + 'x' * 5000, text='b')}\n")
    with pytest.raises(DataError) as error:
        captions(root)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("name", ["metadata.jsonl", "cat/0.txt"])
def test_a_pipe_keeps_nobody_waiting(root, name):
    os.mkfifo(root / name)
    with one_line_error(DataError, f"{name}: the captions? cannot be read .this is a pipe"):
        captions(root)
