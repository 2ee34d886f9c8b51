"""What is found in a folder: formats, names, loose images, contact sheets, and the line that says so."""

import os
import sys

import numpy as np
import pytest
from PIL import Image

from aimamba.data import ImageFolder, files, open_source
from aimamba.data.image_files import ImageFiles
from aimamba.data.sets import open_splits
from aimamba.errors import DataError
from photo_folders import write_photos
from refusals import one_line_error


@pytest.fixture
def pets(tmp_path):
    """Two classes of twenty images, 12 x 9 pixels."""
    return write_photos(tmp_path / "pets", ("cat", "dog"), 20, width=12, height=9)


@pytest.fixture
def without_heif(monkeypatch):
    """As on a machine without pillow-heif and with a Pillow that reads no AVIF."""

    def forget():
        files.readable_suffixes.cache_clear()
        files._formats.cache_clear()

    monkeypatch.setattr(files, "find_spec", lambda name: None)
    monkeypatch.setattr(files.features, "check", lambda name: False)
    forget()
    yield
    monkeypatch.undo()
    forget()


def save_heic(path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    Image.new("RGB", (16, 16), (200, 100, 50)).save(path, format="HEIF")


@pytest.mark.parametrize("name", ["a.jfif", "a.JFIF", "a.avif", "a.heic", "a.HIF"])
def test_what_cameras_and_browsers_save_is_read(pets, name):
    path = pets / "cat" / name
    if path.suffix.lower() in (".heic", ".hif"):
        save_heic(path)
    else:
        kind = "AVIF" if path.suffix == ".avif" else "JPEG"
        Image.new("RGB", (16, 16), (200, 100, 50)).save(path, format=kind)
    images = ImageFolder(pets, size=8, split="all")
    assert f"cat/{name}" in images.names
    pixel = images.image(images.names.index(f"cat/{name}"))[4, 4]
    assert np.abs(pixel.astype(int) - (200, 100, 50)).max() < 12


def test_what_cannot_be_read_here_is_named(pets, without_heif, capsys):
    (pets / "cat" / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (pets / "dog" / "b.avif").write_bytes(b"\0\0\0\x18ftypavif")
    (pets / "dog" / "c.NEF").write_bytes(b"")
    (pets / "dog" / "notes.txt").write_text("no image")
    (pets / "dog" / "sheet.png").write_bytes((pets / "dog" / "0.png").read_bytes())
    (pets / "dog" / "0.png").write_bytes(b"broken")
    with pytest.warns(UserWarning, match=r"0\.png"):
        splits = open_splits(str(pets), size=8, progress=True)
    line = capsys.readouterr().err
    assert line.startswith(
        f"{pets}: {len(splits.train)} to train on, {len(splits.held_out)} held out, 2 classes, 5 files"
    )
    assert line.endswith(
        "left out: 1 HEIC (pip install 'aimamba[heif]' reads it), 1 AVIF (Pillow 11.3 or newer reads it), 1 NEF, "
        "1 contact sheet of aimamba's, 1 broken\n"
    )
    assert len(splits.train) + len(splits.held_out) == 39

    (pets / "cat" / "1.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    with pytest.raises(DataError, match=r"1\.jpg: this is HEIC, whatever its name says; pip install"):
        files.open_image(pets / "cat" / "1.jpg")
    for path in (pets / "cat").glob("*.[pj]*"):
        path.unlink()
    with one_line_error(DataError, match=r"cat: this class folder holds no images .*1 file left out: 1 HEIC"):
        ImageFolder(pets, size=8)


def test_a_set_to_measure_is_described_too(pets, capsys):
    open_source(str(pets), size=8, progress=True)
    assert capsys.readouterr().err == f"{pets}: 40 images, 2 classes\n"
    open_source(str(pets / "cat"), size=8, progress=True)
    assert capsys.readouterr().err == f"{pets / 'cat'}: 20 images, no classes\n"


@pytest.mark.parametrize("name", ["sheet.png", "sheet-page-2.png"])
def test_a_contact_sheet_is_no_image_of_a_class(pets, name):
    Image.new("RGB", (16, 16)).save(pets / "cat" / name)
    assert len(ImageFolder(pets, size=8, split="all")) == len(ImageFiles(pets, size=8)) == 40


@pytest.mark.parametrize("open_folder", [ImageFolder, ImageFiles])
def test_images_beside_class_folders_are_not_dropped(pets, open_folder):
    Image.new("RGB", (16, 16)).save(pets / "loose.png")
    with one_line_error(DataError, match=r"1 image lies beside its 2 class folders \(such as loose\.png\)"):
        open_folder(pets, size=8, split="all")
    assert len(open_folder(pets, size=8, split="all", classes=["cat", "dog"])) == 40


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.parametrize("open_folder", [ImageFolder, ImageFiles])
def test_a_class_folder_whose_name_is_no_text(pets, open_folder):
    os.rename(pets / "dog", os.fsencode(pets) + b"/d\xf6g")
    with one_line_error(DataError, match=r"class folder 'd\\udcf6g' is not valid UTF-8; rename it"):
        open_folder(pets, size=8, split="all")
