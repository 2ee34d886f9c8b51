"""The doors through which captions come in: files beside images, archives, codes, and a vocabulary."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

_NAMES = ("0.png", "1.png")


def add_caption_doors(file: Callable[[str, Path, Callable[[], object]], None], folder: Path) -> None:
    """Add the doors.

    Args:
        file: Adds a door that is one file: its name, the file, and how it is opened.
        folder: A folder to work in.
    """
    from aimamba.data.caption_lines import CaptionLines
    from aimamba.data.vocabulary import Vocabulary

    rows = [{"file_name": name, "text": f"number {name}"} for name in _NAMES]
    contents = {
        "metadata.jsonl": "".join(f"{json.dumps(row)}\n" for row in rows),
        "metadata.csv": "file_name,text\n" + "".join(f'{name},"number, {name}"\n' for name in _NAMES),
        "0.txt": "ein Bär\nzwei\n",
    }
    for name, content in contents.items():
        root = folder / f"captions-{name}"
        root.mkdir()
        for image in _NAMES:
            Image.new("RGB", (4, 4)).save(root / image)
        (root / name).write_text(content, "utf-8")
        file(f"captions-{name.partition('.')[2]}", root / name, lambda root=root: _read_folder(root))  # type: ignore[misc]
    archive = folder / "captions.tar"
    _write_tar(archive)
    file("tar", archive, lambda: _read_tar(archive))
    lines = folder / "captions.jsonl"
    lines.write_bytes(CaptionLines.of([("a", "b"), ()]).lines.tobytes())
    file("captions", lines, lambda: _read_lines(lines))
    vocabulary = folder / "vocabulary.json"
    Vocabulary.train(["a red rocket", "a red heart"], 260).save(vocabulary)
    file("vocabulary", vocabulary, lambda: Vocabulary.load(vocabulary).encode(["a rocket"], 8))


def _read_folder(root: Path) -> None:
    from aimamba.data.folder import ImageFolder

    images = ImageFolder(root, size=4, split="all", classes=None)
    for index in range(len(images)):
        images.captions(index)


def _write_tar(path: Path) -> None:
    content = io.BytesIO()
    Image.new("RGB", (4, 4)).save(content, "PNG")
    with tarfile.open(path, "w") as archive:
        for name, data in (("a.png", content.getvalue()), ("a.txt", b"a text"), ("a.cls", b"3")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    path.write_bytes(path.read_bytes()[: 8 * 512])  # without most of the empty blocks at the end


def _read_tar(path: Path) -> None:
    from aimamba.data.webdataset import TarImages

    images = TarImages(path, size=4, split="all")
    for index in range(len(images)):
        images.image(index)
        images.captions(index)


def _read_lines(path: Path) -> None:
    from aimamba.data.caption_lines import CaptionLines

    lines = CaptionLines.open(path)
    for index in range(len(lines)):
        lines[index]
