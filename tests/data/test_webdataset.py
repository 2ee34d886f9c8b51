"""Images and captions in tar archives."""

import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from aimamba.data import webdataset
from aimamba.data.caption_files import CaptionWarning
from aimamba.data.content import content_hash
from aimamba.data.folder import BrokenImageWarning
from aimamba.data.images import has_captions
from aimamba.data.sets import open_images, open_source, open_splits
from aimamba.data.webdataset import TarImages
from aimamba.errors import DataError
from refusals import one_line_error


def picture(number, kind="PNG", side=8):
    content = io.BytesIO()
    Image.new("RGB", (side, side + 1), (number, 0, 0)).save(content, kind)
    return content.getvalue()


def write(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("AIMAMBA_CACHE", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path):
    """Two archives of 20 images with captions."""
    root = tmp_path / "wds"
    root.mkdir()
    for shard in range(2):
        members = [("._x.png", b"of a Mac"), ("README", b"nothing")]
        for number in range(20 * shard, 20 * shard + 20):
            members += [(f"deep/{number:03d}.txt", f"number {number}\nthe {number}th".encode())]
            members += [(f"deep/{number:03d}.PNG", picture(number)), (f"deep/{number:03d}.json", b"{}")]
        write(root / f"{shard}.tar", members)
    return root


def opened(path, **options):
    return TarImages(path, **{"size": 8, "split": "all"} | options)


def test_images_have_their_captions(folder):
    images = opened(folder)
    assert (len(images), images.class_names, images.size) == (40, ("images",), 8)
    assert images.names[0] == "0.tar/deep/000.png"
    assert has_captions(images)
    for index in range(40):
        assert images.image(index)[0, 0, 0] == index
        assert images.captions(index) == (f"number {index}", f"the {index}th")
    again = pickle.loads(pickle.dumps(images))
    assert again.captions(31) == images.captions(31)


def test_by_name(folder, capsys):
    train, held_out = open_splits(str(folder), size=8, progress=True)
    assert not set(train.names) & set(held_out.names)
    assert len(train) + len(held_out) == 40
    assert "40" not in capsys.readouterr().err
    one = open_source(f"{folder}/1.tar", size=8)
    assert (len(one), one.captions(0)) == (20, ("number 20", "the 20th"))
    assert one.identity == open_source(f"{folder}/1.tar", size=8).identity
    assert one.identity != open_source(f"{folder}/1.tar:train", size=8).identity
    assert len(open_source(f"{folder}:all:3", size=8)) == 3
    with one_line_error(DataError, "no class folders to choose from"):
        open_images(f"{folder}:cats", size=8, split="train")
    with one_line_error(DataError, "give --size"):
        open_source(str(folder))
    with one_line_error(DataError, "the size of the images is missing"):
        open_images(str(folder), split="train")
    with one_line_error(DataError, "8 x 9 pixels, but its shorter side must be at least 16 .and 39 more"):
        opened(folder, size=16)


def test_classes(tmp_path):
    members = [(f"{n}{suffix}", content) for n in range(6)
               for suffix, content in ((".png", picture(n)), (".cls", b"%d\n" % (10 - n % 2)))]  # fmt: skip
    images = opened(write(tmp_path / "a.tar", members))
    assert images.class_names == ("9", "10")
    assert [images.image(index)[0, 0, 0] for index in range(6)] == [1, 3, 5, 0, 2, 4]
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert not has_captions(images)
    write(tmp_path / "a.tar", members[:-1])
    with one_line_error(DataError, r"a.tar/5.png: has no class .*1 of 6; give all one, or none"):
        opened(tmp_path / "a.tar")


def test_the_index_is_made_once_and_again_when_the_archive_changes(folder, cache, monkeypatch):
    first = opened(folder / "0.tar")
    (kept,) = (cache / "tars").iterdir()

    def fail(_):
        raise AssertionError("indexed again")

    with monkeypatch.context() as patch:
        patch.setattr(webdataset, "_make_index", fail)
        assert opened(folder / "0.tar").names == first.names
    kept.write_bytes(kept.read_bytes()[:100])
    assert opened(folder / "0.tar").names == first.names
    write(folder / "0.tar", [("x.png", picture(7)), ("x.txt", b"seven")])
    os.utime(folder / "0.tar", (1, 1))
    changed = opened(folder / "0.tar")
    assert changed.captions(0) == ("seven",)
    assert content_hash(changed) != content_hash(first.__class__(folder / "1.tar", size=8, split="all"))
    monkeypatch.setenv("AIMAMBA_CACHE", str(kept))  # a file: nothing can be kept
    assert len(opened(folder / "1.tar")) == 20


def test_broken_and_missing_parts(tmp_path):
    jpeg = picture(3, "JPEG", 64)
    members = [("0.jpg", jpeg), ("0.txt", b"zero"), ("1.jpg", jpeg[:-40]), ("1.txt", b"one"), ("2.jpg", jpeg)]
    members += [("3.jpg", b"no image"), ("4.jpg", b""), ("5.txt", b"no image at all")]
    with pytest.warns(BrokenImageWarning) as caught:
        images = opened(write(tmp_path / "a.tar", members))
    assert len(images) == 3
    assert {str(warning.message).partition("a.tar")[2][:6] for warning in caught} == {"/3.jpg", "/4.jpg"}
    with pytest.warns(BrokenImageWarning, match="1.jpg"):
        images.image(1)
    with pytest.warns(CaptionWarning, match=r"1 image of 3 without a caption \(such as a.tar/2.jpg\)"):
        assert [images.captions(index) for index in range(3)] == [("zero",), (), ()]
    with one_line_error(DataError, "a.tar/3.jpg.*strict"):
        opened(tmp_path / "a.tar", strict=True)


def test_archives_that_are_refused(tmp_path):
    path = tmp_path / "a.tar"
    for members, message in (
        ([("a.png", picture(1)), ("b.png", picture(2)), ("a.txt", b"x")], "the key 'a' appears in two places"),
        ([("a.png", picture(1)), ("a.jpg", picture(2, "JPEG"))], "the key 'a' has two images, .png and .jpg"),
        ([("a.png", picture(1)), ("a.png", picture(2))], "'a.png' is in it twice"),
        ([("a.png", picture(1)), ("a.txt", b"x" * 300_000)], r"a.tar/a.txt: 300,000 bytes, more than the 262,144"),
        ([("a.png", picture(1)), ("a.cls", b"cat")], "expected a class as a whole number, got b'cat'"),
        ([("a.txt", b"alone")], "there are no images in a.tar"),
        ([], "there are no images in a.tar"),
    ):
        with one_line_error(DataError, message):
            opened(write(path, members))
    images = opened(write(path, [("a.png", picture(1)), ("a.txt", b"\xff")]))
    with one_line_error(DataError, "a.tar/a.png: the caption is not UTF-8 text"):
        images.captions(0)
    whole = write(path, [("a.png", picture(1)), ("a.txt", b"x" * 5000)]).read_bytes()
    for content in (whole[:1500], b"no tar" * 200, b""):
        path.write_bytes(content)
        with one_line_error(DataError, "not a whole tar archive"):
            opened(path)
    path.write_bytes(whole)
    images = opened(path)
    path.write_bytes(whole[:540])
    with pytest.warns(BrokenImageWarning, match="has become shorter"), one_line_error(DataError, "are broken"):
        images.image(0)


def test_names_in_an_archive_lead_nowhere(tmp_path):
    (tmp_path / "secret.png").write_bytes(picture(9))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.png")
        archive.addfile(link)
        inside = tarfile.TarInfo("../../inside.png")
        inside.size = len(picture(5))
        archive.addfile(inside, io.BytesIO(picture(5)))
    images = opened(tmp_path / "a.tar")
    assert [image[0, 0, 0] for image in images.batches(1) for image in image] == [5]
    assert np.array_equal(images.image(0), images.image(0, np.random.default_rng(0)))


def test_strange_members_of_an_archive(tmp_path):
    """Names that are not UTF-8 work, and are kept in the index; line ends in folders do not get there."""
    path = write(tmp_path / "a.tar", [("\udcff.png", picture(1)), ("\udcff.txt", b"x"), ("a\nb/c.png", picture(2))])
    for _ in range(2):
        images = opened(path)
        assert images.names == ("a.tar/\udcff.png",)
        assert images.captions(0) == ("x",)


def test_sizes_and_classes_that_no_file_has(tmp_path):
    path = write(tmp_path / "a.tar", [("a.png", picture(1)), ("a.cls", b"9" * 20)])
    with one_line_error(DataError, "a.tar/a.cls: 20 bytes, more than the 18"):
        opened(path)
    header = bytearray(tarfile.TarInfo("a.txt").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (-(1 << 70)).to_bytes(12, "big", signed=True)  # the size, in GNU's binary form
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(bytes(header) + bytes(1024))
    with one_line_error(DataError, "a.tar: not a whole tar archive"):
        opened(path)


def test_a_pipe_keeps_nobody_waiting(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    with one_line_error(DataError, "a.tar: cannot be read .this is a pipe"):
        opened(tmp_path)
