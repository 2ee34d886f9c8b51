"""From any image to square 8-bit RGB: colour modes, resizing, crops and flips, with Pillow and numpy alone.

The results equal those of ADM's and LlamaGen's loaders pixel for pixel, so measurements can be compared.
"""

import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.Image import Resampling, Transpose

from aimamba.data.bit_depth import check_colour, read_depth, scale_grey
from aimamba.errors import DataError

_LONGEST = 64  # times its shorter side an image may be long to be resized whole
_MOST_PIXELS = 1 << 28  # more than any image that Pillow opens
_ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to upright 8-bit RGB.

    The EXIF orientation is applied. Transparent parts (alpha channel, transparent palette entry or colour key) become
    white. 16-bit grey keeps its high byte, as Pillow does for 16-bit colour, unless the header has another range;
    floats and 32-bit integers need such a header (see ``bit_depth``). CMYK and other modes are converted.

    Args:
        image: An image that ``Image.open`` returned, loaded or not.

    Returns:
        An image of mode ``"RGB"``: ``image`` itself where nothing has to change.

    Raises:
        OSError: The file is truncated or damaged.
        ValueError: Pillow cannot convert this mode to RGB, or the range of its samples is unknown.
    """
    depth = read_depth(image)
    image.load()
    turn = _UPRIGHT.get(_orientation(image))
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = scale_grey(image, depth)
    else:
        check_colour(image, depth)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(layer, mask=layer.getchannel("A"))
    elif image.mode != "RGB":
        image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def resize(image: Image.Image, size: int) -> Image.Image:
    """Scale an image so that its shorter side is ``size`` pixels, keeping its proportions.

    It is halved by box averaging while the shorter side is at least twice ``size``, then scaled by bicubic
    interpolation: fast and without aliasing.

    Raises:
        DataError: The result would not fit into memory, as of a line one pixel wide that is enlarged.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    scale = size / min(image.size)
    if (reason := too_narrow(image.size, size)) is not None:
        raise DataError(reason)
    return image.resize((round(image.width * scale), round(image.height * scale)), Resampling.BICUBIC)


def moved(image: UInt8[np.ndarray, "s s 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "s s 3"]:
    """Return a square image moved by up to a sixteenth of its side and scaled by 0.9 to 1.1; its edges are repeated."""
    side, margin = len(image), len(image) // 4
    around = Image.fromarray(np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="edge"))
    seen = side / rng.uniform(0.9, 1.1)
    left, top = (margin + (side - seen) / 2 + rng.uniform(-side / 16, side / 16) for _ in range(2))
    return np.asarray(around.resize((side, side), Resampling.BICUBIC, box=(left, top, left + seen, top + seen)))


def too_narrow(extent: tuple[int, int], size: int) -> str | None:
    """Return why an image of this width and height cannot be enlarged to a shorter side of ``size``, or None."""
    pixels = size * max(extent) * size / max(1, min(extent))
    if min(extent) >= size or pixels <= _MOST_PIXELS:
        return None
    return (
        f"the image is {extent[0]} x {extent[1]} pixels, too narrow to be enlarged to {size}: it would have "
        f"{pixels:,.0f} pixels; remove it, or crop it"
    )


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize to ``size`` and crop the square in the middle: the view that every evaluation uses."""
    image = resize(_middle(image, size), size)
    return _square(image, (image.width - size) // 2, (image.height - size) // 2, size)


def _middle(image: Image.Image, size: int) -> Image.Image:
    """Return the middle of an image that is so long that scaling all of it down to ``size`` would take seconds."""
    most = _LONGEST * min(image.size)
    if min(image.size) < size or max(image.size) <= most:
        return image
    width, height = (min(side, most) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def random_crop(
    image: Image.Image, size: int, rng: np.random.Generator, *, least: float = 0.8, most: float = 1.0
) -> Image.Image:
    """Crop a random square that covers a random fraction of the shorter side, scaled to ``size`` pixels a side.

    Args:
        image: RGB image.
        size: Side of the crop in pixels.
        rng: Chooses the length to which the shorter side is scaled, then the row, then the column of the crop.
        least: The smallest fraction of the shorter side that a crop covers, in (0, 1].
        most: The largest such fraction, at least ``least``.

    Returns:
        RGB image of ``size`` x ``size``.
    """
    shorter = int(rng.integers(math.ceil(size / most), math.ceil(size / least), endpoint=True))
    image = resize(_middle(image, shorter), shorter)
    top = int(rng.integers(image.height - size, endpoint=True))
    left = int(rng.integers(image.width - size, endpoint=True))
    return _square(image, left, top, size)


def flip(image: Image.Image) -> Image.Image:
    """Mirror an image left to right."""
    return image.transpose(Transpose.FLIP_LEFT_RIGHT)


def half_mirrored(image: UInt8[np.ndarray, "s s ..."], rng: np.random.Generator) -> UInt8[np.ndarray, "s s ..."]:
    """Mirror an image left to right half of the time."""
    return image[:, ::-1] if rng.random() < 0.5 else image


def ten_crop(image: Image.Image, size: int, *, crop_range: float = 1.1) -> list[Image.Image]:
    """Return the ten views that LlamaGen's generators train on: four corners and the centre, plain and mirrored.

    Args:
        image: RGB image.
        size: Side of each crop in pixels.
        crop_range: The crops are taken from a centre crop of ``int(size * crop_range)``; at least 1.

    Returns:
        Ten images of ``size`` x ``size`` in the order of torchvision's ``TenCrop``: top left, top right, bottom left,
        bottom right, centre; then the same five places of the mirrored image.
    """
    whole = center_crop(image, int(size * crop_range))
    end = whole.width - size
    middle = round(end / 2)
    places = [(0, 0), (end, 0), (0, end), (end, end), (middle, middle)]
    return [_square(image, left, top, size) for image in (whole, flip(whole)) for left, top in places]


def to_array(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Copy an RGB image into a uint8 array, rows first.

    Raises:
        ValueError: The image is not RGB.
    """
    if image.mode != "RGB":
        raise ValueError(f"to_array needs an RGB image, got mode {image.mode!r}: convert it with to_rgb first")
    return np.array(image)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block makes Pillow raise half a dozen kinds of error; the pixels are intact
        return 1


def _square(image: Image.Image, left: int, top: int, size: int) -> Image.Image:
    return image.crop((left, top, left + size, top + size))
