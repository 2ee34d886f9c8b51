"""Captions in a folder of codes: ``captions.jsonl``, a line for each image in the order of the codes.

The captions follow from the images, as the labels do, except where an image was found broken while it was encoded and
another took its place: then they are those of the other. ``replaced.json`` keeps which images those are.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from aimamba.checkpoints.sums import sum_of_file
from aimamba.data.caption_lines import CAPTIONS_FILE, CaptionLines
from aimamba.data.code_sums import read_sums, write_sums
from aimamba.data.codes_meta import read_meta
from aimamba.data.images import ImageSet, has_captions
from aimamba.documents import DocumentError, read_json
from aimamba.errors import DataError
from aimamba.files import write_atomically

_REPLACED_FILE = "replaced.json"


def store_captions(folder: Path, images: ImageSet, replaced: Mapping[int, int]) -> None:
    """Write the captions of images whose codes are in a folder, with their checksum.

    Args:
        folder: The folder of a split.
        images: The images; without captions, those that an earlier encoding left there are removed.
        replaced: Which image has replaced which, as found now.

    Raises:
        DataError: The captions cannot be read, or ``replaced.json`` is damaged.
    """
    before = read_sums(folder)
    sums = {name: value for name, value in (before or {}).items() if name not in (CAPTIONS_FILE, _REPLACED_FILE)}
    meta = read_meta(folder)
    if has_captions(images) and meta is not None and meta.captions:
        replaced = {**_read_replaced(folder), **replaced}
        lines = CaptionLines.of(images.captions(replaced.get(index, index)) for index in range(len(images)))
        files = {CAPTIONS_FILE: lines.lines.tobytes()}
        if replaced:
            files[_REPLACED_FILE] = json.dumps(sorted(replaced.items())).encode()
        for name, content in files.items():
            write_atomically(folder / name, lambda draft, content=content: draft.write_bytes(content))  # type: ignore[misc]
            sums[name] = sum_of_file(folder / name)
    else:
        for name in (CAPTIONS_FILE, _REPLACED_FILE):
            (folder / name).unlink(missing_ok=True)
    if before is not None and sums != before:
        write_sums(folder, sums)


def _read_replaced(folder: Path) -> dict[int, int]:
    path = folder / _REPLACED_FILE
    try:
        return {index + 0: other + 0 for index, other in read_json(path)}
    except FileNotFoundError:
        return {}
    except (OSError, DocumentError, TypeError, ValueError) as error:
        raise DataError(f"{path}: damaged; remove the folder and encode again") from error
