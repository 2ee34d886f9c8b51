"""PNG files that say how their image was made, in a text chunk."""

import io
import warnings
import zlib
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from aimamba.errors import DataError
from aimamba.files import write_atomically

KEY = "aimamba"

_LARGEST_FILE = 1 << 28  # bytes; a sample has far fewer
_LONGEST_TEXT = 1 << 16  # characters; ours have about 700


def write_png(path: Path, image: Image.Image, text: str) -> None:
    """Write an image with a text under the key ``aimamba``; the file is either whole or absent.

    Args:
        path: The file.
        image: The image.
        text: The text; ASCII, as JSON may be written.
    """
    write_atomically(path, lambda draft: draft.write_bytes(png_bytes(image, text)))


def png_bytes(image: Image.Image, text: str | None) -> bytes:
    """Return the content of the file that ``write_png`` writes; without a text, an image alone."""
    info = PngInfo()
    if text is not None:
        info.add_text(KEY, text)
    file = io.BytesIO()
    image.save(file, format="PNG", pnginfo=info, compress_type=zlib.Z_RLE)  # decoded images are noisy: as small, sooner
    return file.getvalue()


def text_in_png(content: bytes) -> str | None:
    """Return the text that ``write_png`` has put into a PNG; None if it is another file or has none."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            text = image.info.get(KEY)
    except Exception:  # a damaged chunk can fail in any way
        return None
    return text if isinstance(text, str) and len(text) <= _LONGEST_TEXT else None


def read_png_text(path: Path) -> str:
    """Return the text that ``write_png`` wrote. Only what stands before the pixels is read.

    Raises:
        DataError: The file is missing, is not a PNG, is damaged or very large, or holds no such text.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; give a PNG that 'aimamba sample' wrote")
    if (size := path.stat().st_size) > _LARGEST_FILE:
        raise DataError(f"{path}: {size:,} bytes are too many for a sample; give a PNG that 'aimamba sample' wrote")
    try:
        # Pillow bounds a compressed text to 1 MB and all texts to 64 MB; an image of absurd size is not decoded here
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=("PNG",)) as image:
            text = image.info.get(KEY)
    except Exception as error:  # a damaged chunk can fail in any way
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: not a readable PNG ({reason}); give one that 'aimamba sample' wrote") from error
    if not isinstance(text, str):
        raise DataError(
            f"{path}: holds no settings of a sample; give a PNG that 'aimamba sample' wrote, and that no other program "
            "has saved again"
        )
    if len(text) > _LONGEST_TEXT:
        raise DataError(f"{path}: its settings have {len(text):,} characters, more than the {_LONGEST_TEXT:,} read")
    return text
