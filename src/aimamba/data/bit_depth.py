"""Samples of more than eight bits, scaled to eight by the range that the file states.

Only grey images reach us with such samples; of 16-bit colour, Pillow keeps the high bytes.
"""

import struct
from typing import NamedTuple

import numpy as np
from PIL import Image

_BITS, _LEAST, _MOST, _LEAST_OF_ANY, _MOST_OF_ANY = 258, 280, 281, 340, 341  # TIFF tags
_DARK = 16  # where the brightest of 256 levels is darker, the samples do not fill their 16 bits
_HOW = "save it with 8 bits a channel, or with its range in the header (TIFF: SMinSampleValue and SMaxSampleValue)"


class SampleDepth(NamedTuple):
    """What a file's header says about its samples.

    Attributes:
        bits: Of a sample as it is stored.
        used: How many of them hold data, where the header says so.
        span: The values of black and white, where the header has them.
    """

    bits: int
    used: int | None = None
    span: tuple[float, float] | None = None


def read_depth(image: Image.Image) -> SampleDepth:
    """Read the header of an image that is not decoded yet; without a file, the depth is that of its mode."""
    bits = 16 if ";16" in _raw_mode(image) or image.mode.startswith("I;16") else 8
    if image.mode == "F" or (image.mode == "I" and not _raw_mode(image).endswith((";16", ";16B"))):
        bits = 32
    if bits == 8:
        return SampleDepth(8)
    if image.format == "PNG":
        return SampleDepth(bits, used=_significant_bits(image))
    tags = getattr(image, "tag_v2", {})
    stored = _numbers(tags.get(_BITS))
    used = int(max(stored)) if stored and 8 < max(stored) < 16 else None
    for least, most in ((_LEAST_OF_ANY, _MOST_OF_ANY), (_LEAST, _MOST)):
        if high := _numbers(tags.get(most)):
            low = _numbers(tags.get(least)) or (0.0,)
            return SampleDepth(bits, used, (min(low), max(high)))
    return SampleDepth(bits, used)


def scale_grey(image: Image.Image, depth: SampleDepth) -> Image.Image:
    """Scale a decoded image of mode ``I``, ``I;16`` or ``F`` to eight bits.

    Raises:
        ValueError: The range of its samples is unknown, or they leave the one in the header.
    """
    values = np.asarray(image)
    least, most = float(values.min()), float(values.max())
    what = f"{depth.bits}-bit grey (mode {image.mode}) with values {least:g} to {most:g}"
    if not (np.isfinite(least) and np.isfinite(most)):
        raise ValueError(f"{what}: they must be finite; {_HOW}")
    if depth.span is not None:
        low, high = depth.span
        if not (np.isfinite(low) and low < high < np.inf and low <= least and most <= high):
            raise ValueError(f"{what}, outside the range in its header, {low:g} to {high:g}: {_HOW}")
        scaled = (values.astype(np.float64) - low) * (255 / (high - low))
        return Image.fromarray(np.rint(scaled).astype(np.uint8))
    if depth.used is not None and depth.used < 16 and least >= 0 and most < 2**depth.used:
        scaled = values.astype(np.float64) * (255 / (2**depth.used - 1))
        return Image.fromarray(np.rint(scaled).astype(np.uint8))
    if depth.bits != 16 or least < 0 or most > 65535:
        raise ValueError(f"{what}: the file does not say which value is white; {_HOW}")
    if 0 < most < _DARK << 8 and depth.used != 16:
        raise ValueError(f"{what}: almost black if white is 65535, and the file does not say otherwise; {_HOW}")
    return Image.fromarray((values >> 8).astype(np.uint8))


def check_colour(image: Image.Image, depth: SampleDepth) -> None:
    """Refuse decoded 16-bit colour whose samples fill the low bits alone: Pillow has cut those off.

    Raises:
        ValueError: It is almost black, and the file does not say that all 16 bits are used.
    """
    if depth.bits == 8 or image.mode not in ("RGB", "RGBA", "RGBX") or depth.used == 16:
        return
    colours = image.getchannel("R"), image.getchannel("G"), image.getchannel("B")
    most = max(int(np.asarray(colour).max(initial=0)) for colour in colours)
    if most < _DARK:
        raise ValueError(
            f"16-bit colour (mode {image.mode}) whose high bytes are 0 to {most} of 255, almost black: its samples "
            f"seem to have fewer bits; save it with 8 bits a channel, or with all 16 in use"
        )


def _raw_mode(image: Image.Image) -> str:
    """How the samples are stored, such as ``I;16B``; empty for an image that is not from a file or is decoded."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0][3]
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _significant_bits(image: Image.Image) -> int | None:
    """Return the largest number in a PNG's ``sBIT`` chunk, which Pillow does not read."""
    file = getattr(image, "fp", None)
    if file is None:
        return None
    place = file.tell()
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"sBIT" and 1 <= length <= 4:
                return max(file.read(length)[:3]) or None
            if kind in (b"IDAT", b"IEND"):
                return None
            file.seek(length + 4, 1)
        return None
    finally:
        file.seek(place)


def _numbers(value: object) -> tuple[float, ...]:
    values = value if isinstance(value, tuple) else (value,)
    try:
        return tuple(float(item) for item in values)
    except (TypeError, ValueError, ZeroDivisionError):
        return ()
