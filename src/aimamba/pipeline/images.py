"""Images and masks as people have them, and as the tokenizer takes them.

Shape letters: B images, H W height and width of an image, s side of the model's images, h w grid of codes.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor

from aimamba.data.sheets import to_pil, to_uint8
from aimamba.data.transforms import center_crop, to_rgb
from aimamba.errors import DataError, suggest
from aimamba.inference import undisturbed

Images = Any
"""An image, several in one array or tensor, or a sequence of images; see ``read_images``."""

Fit = str
"""An image of another size: ``exact`` refuses it, ``crop`` scales its centre square, ``stretch`` all of it."""

OutputType = str
"""``pil``; ``numpy``: 8-bit arrays (B, s, s, 3); ``tensor``: 8-bit tensors (B, 3, s, s); or as diffusers returns them,
``np``: float32 arrays (B, s, s, 3) in [0, 1], and ``pt``: float32 tensors (B, 3, s, s) in [0, 1].
"""

_FITS = ("exact", "crop", "stretch")
_OUTPUT_TYPES = ("pil", "numpy", "tensor", "np", "pt")
_OVERSHOOT = 1.5  # a tokenizer's floats may lie somewhat outside [-1, 1]
_KINDS = "a PIL image, an 8-bit array (H, W, 3), or a tensor (3, H, W) of 8 bits or of floats in [-1, 1]"


@undisturbed()
def read_images(images: Images, size: int, fit: Fit = "exact") -> UInt8[Tensor, "b 3 s s"]:
    """Return images as one 8-bit tensor on the host.

    Args:
        images: A PIL image of any mode; an 8-bit array (H, W, 3), or of grey (H, W); a tensor (3, H, W) of 8 bits or of
            floats in [-1, 1]; several as (B, H, W, 3) or (B, 3, H, W); or a sequence of any of these.
        size: Side that the model takes (s).
        fit: ``exact``, ``crop`` or ``stretch``.

    Raises:
        DataError: There is no image, or one has another type, shape, range or size.
    """
    check_choice("fit", fit, _FITS)
    found = [_fitted(pixels, number, size, fit) for number, pixels in enumerate(_each(images))]
    if not found:
        raise DataError("no images given; expected at least one")
    return torch.stack(found)


def write_images(images: UInt8[Tensor, "b 3 s s"], output_type: OutputType = "pil") -> Any:
    """Return images as a list of PIL images, or as one array or tensor on the host; see ``OutputType``."""
    check_choice("output_type", output_type, _OUTPUT_TYPES)
    if output_type == "pil":
        return to_pil(images)
    found = images.cpu().float() / 255 if output_type in ("np", "pt") else images.cpu()
    return found if output_type in ("tensor", "pt") else found.permute(0, 2, 3, 1).contiguous().numpy()


def put_back(
    pixels: UInt8[Tensor, "b 3 s s"], drawn: UInt8[Tensor, "b 3 s s"], hidden: Bool[Tensor, "b l"]
) -> UInt8[Tensor, "b 3 s s"]:
    """Put the pixels of images back outside of the tokens that were drawn again.

    Args:
        pixels: The images.
        drawn: The same with some tokens drawn again.
        hidden: Which tokens these are, in raster order.
    """
    grid = math.isqrt(hidden.shape[1])
    patch = pixels.shape[-1] // grid
    inside = hidden.unflatten(1, (1, grid, grid)).repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)
    return torch.where(inside, drawn, pixels)


@undisturbed()
def read_masks(masks: Any, count: int, size: int, grid: int) -> Bool[Tensor, "b l"]:
    """Return which tokens of each image are masked: those of which any pixel is.

    Args:
        masks: A mask for all images, or one for each in a sequence or with a first axis: a PIL image in grey levels, or
            an array or tensor, of booleans, of 0 and 1, or of 8 bits, where more than 127 is masked. Of pixels
            (s, s), or of tokens (h, w) or (L,).
        count: Number of images (B).
        size: Side of an image in pixels (s).
        grid: Side of the grid of codes (h = w).

    Raises:
        DataError: A mask has another type or size, or masks nothing; or there are as many masks as neither one nor B.
    """
    if isinstance(masks, list | tuple):
        if len(masks) not in (1, count):
            raise DataError(f"got {len(masks)} masks for {count} images; give one for all, or one for each")
        found = torch.cat([_mask(mask, size, grid) for mask in masks])
    else:
        found = _mask(masks, size, grid)
    if len(found) not in (1, count):
        raise DataError(f"got {len(found)} masks for {count} images; give one for all, or one for each")
    if not bool(found.any(dim=1).all()):
        raise DataError("a mask covers no token, so there is nothing to draw; what is white or true is drawn again")
    return found.expand(count, -1)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Check an argument that is one of a few words.

    Raises:
        DataError: It is another.
    """
    if value not in choices:
        raise DataError(f"{name} must be one of {', '.join(choices)}, got {value!r}{suggest(str(value), choices)}")


def _each(images: Images) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Yield every image as 8-bit RGB."""
    if isinstance(images, list | tuple):
        for image in images:
            yield from _each(image)
    elif isinstance(images, Image.Image):
        try:
            yield np.asarray(to_rgb(images))
        except (OSError, ValueError) as error:
            raise DataError(f"an image cannot be read: {error}") from error
    elif isinstance(images, Tensor):
        yield from _of_tensor(images.detach().cpu())
    elif isinstance(images, np.ndarray):
        yield from _of_array(images)
    else:
        raise DataError(f"expected {_KINDS}; got {type(images).__name__}")


def _of_tensor(images: Tensor) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    if images.ndim not in (3, 4) or images.shape[-3] != 3:
        raise DataError(f"a tensor of images must be (3, H, W) or (B, 3, H, W), got {tuple(images.shape)}")
    if images.numel() == 0:
        raise DataError(f"images of shape {tuple(images.shape)} have no pixels")
    if images.is_floating_point():
        images = _from_floats(images)
    elif images.dtype != torch.uint8:
        raise DataError(f"a tensor of images must be of 8 bits (uint8) or of floats, got {images.dtype}")
    yield from images.reshape(-1, *images.shape[-3:]).permute(0, 2, 3, 1).contiguous().numpy()


def _from_floats(images: Tensor) -> Tensor:
    """Convert floats in [-1, 1] to 8 bits. Those in [0, 1] would come out pale, so they are refused."""
    low, high = float(images.min()), float(images.max())
    if not (-_OVERSHOOT <= low <= high <= _OVERSHOOT):
        raise DataError(
            f"floats of an image must be in [-1, 1], got {low:g} to {high:g}; pixels from 0 to 255 are given as uint8"
        )
    if low >= 0:
        raise DataError(
            f"floats of an image must be in [-1, 1], and these look like [0, 1], from {low:g} to {high:g}; convert "
            "them with 2 * x - 1, or give pixels as uint8"
        )
    return to_uint8(images.reshape(-1, *images.shape[-3:]))


def _of_array(images: np.ndarray) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    if images.dtype != np.uint8:
        raise DataError(f"an array of images must be of 8 bits (uint8), got {images.dtype}; give floats as a tensor")
    if images.ndim == 2:
        images = np.repeat(images[..., None], 3, axis=-1)
    if images.ndim not in (3, 4) or images.shape[-1] != 3:
        raise DataError(f"an array of images must be (H, W, 3) or (B, H, W, 3), got {images.shape}")
    if images.size == 0:
        raise DataError(f"images of shape {images.shape} have no pixels")
    yield from images.reshape(-1, *images.shape[-3:])


def _fitted(pixels: UInt8[np.ndarray, "H W 3"], number: int, size: int, fit: Fit) -> UInt8[Tensor, "3 s s"]:
    height, width = pixels.shape[:2]
    if (height, width) != (size, size):
        if fit == "exact":
            raise DataError(
                f"image {number} has {width} x {height} pixels, and the model's have {size} x {size}; resize it, or "
                "give fit='crop' (its centre square) or fit='stretch'"
            )
        image = Image.fromarray(pixels)
        image = center_crop(image, size) if fit == "crop" else image.resize((size, size), Resampling.BICUBIC)
        pixels = np.asarray(image)
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous()


def _mask(mask: Any, size: int, grid: int) -> Bool[Tensor, "b l"]:
    """Return one or several masks as tokens."""
    if isinstance(mask, Image.Image):
        if mask.has_transparency_data:
            raise DataError("a mask must be in grey levels, without transparency: white is drawn again, black is kept")
        if mask.mode[0] in "IF":
            raise DataError(f"a mask must be in 8-bit grey levels or black and white, got the mode {mask.mode}")
        mask = np.asarray(mask.convert("L"))
    if not isinstance(mask, np.ndarray | Tensor):
        raise DataError(f"a mask must be a PIL image, an array or a tensor, got {type(mask).__name__}")
    values = torch.as_tensor(mask if isinstance(mask, Tensor) else mask.copy()).detach().cpu()
    if values.dtype != torch.bool:
        most = float(values.max()) if values.numel() else 0.0
        if not (float(values.min() if values.numel() else 0) >= 0 and most <= 255):
            raise DataError("the values of a mask must be booleans, 0 and 1, or 8 bits")
        values = values > (0.5 if most <= 1 else 127)
    if values.shape == (grid * grid,):
        return values[None]
    side = values.shape[-1] if values.ndim in (2, 3) else 0
    if side not in (size, grid) or values.shape[-2] != side:
        raise DataError(
            f"a mask must be of pixels ({size}, {size}) or of tokens ({grid}, {grid}), got {tuple(values.shape)}"
        )
    patch = side // grid
    tokens = values.reshape(-1, grid, patch, grid, patch).any(dim=4).any(dim=2)
    return tokens.flatten(1)
