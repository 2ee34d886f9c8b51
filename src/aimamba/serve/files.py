"""Images as files in memory, and files in memory as images."""

import base64
import io
import zipfile
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from aimamba.data.png_text import png_bytes

Encoding = Literal["png", "webp"]

MEDIA_TYPES = {"png": "image/png", "webp": "image/webp", "zip": "application/zip"}


def encode(pixels: UInt8[np.ndarray, "s s 3"], encoding: Encoding, text: str | None = None) -> bytes:
    """Return an image file without loss.

    Args:
        pixels: 8-bit RGB.
        encoding: The format.
        text: Kept in a PNG under the key ``aimamba``, as ``aimamba sample`` does.
    """
    image = Image.fromarray(pixels)
    if encoding == "png":
        return png_bytes(image, text)
    file = io.BytesIO()
    image.save(file, format="WEBP", lossless=True)
    return file.getvalue()


def as_base64(data: bytes) -> str:
    """Return bytes as text."""
    return base64.b64encode(data).decode("ascii")


def as_zip(files: Sequence[tuple[str, bytes]]) -> bytes:
    """Return an archive of named files; the same files make the same archive."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in files:
            archive.writestr(zipfile.ZipInfo(name), data)
    return target.getvalue()
