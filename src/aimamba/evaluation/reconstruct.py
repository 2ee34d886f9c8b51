"""Reconstructions of single images by a tokenizer, to look at beside the originals."""

from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple, NoReturn

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from aimamba.data.files import open_image, read_sizes
from aimamba.data.image_files import choose_files
from aimamba.data.images import Images
from aimamba.data.sets import open_source
from aimamba.data.sheets import to_float, to_uint8
from aimamba.data.spec import parse_spec
from aimamba.data.transforms import center_crop, to_array
from aimamba.errors import ConfigError, DataError
from aimamba.evaluation.lpips import lpips_distances
from aimamba.generation.fast_decoder.decoder import FastDecoder
from aimamba.models import VQModel
from aimamba.networks.perceptual import PerceptualLoss
from aimamba.ops.psnr import psnr

_LARGEST_DEFAULT = 256  # pixels


class Reconstruction(NamedTuple):
    """An image and its reconstruction.

    Attributes:
        name: Name of the file in its folder, with that of its class, or number of the image in its set.
        original: The image, cropped and scaled.
        reconstruction: What the tokenizer decodes from the codes of the image.
        psnr: Peak signal-to-noise ratio in dB.
        lpips: LPIPS, where it is measured.
    """

    name: str
    original: UInt8[np.ndarray, "s s 3"]
    reconstruction: UInt8[np.ndarray, "s s 3"]
    psnr: float
    lpips: float | None = None


def reconstruct(
    model: VQModel,
    images: Sequence[str],
    *,
    size: int | None = None,
    default_size: int | None = None,
    lpips: Callable[[int], PerceptualLoss | None] | None = None,
    on_broken: Callable[[DataError], object] | None = None,
    progress: bool = False,
) -> Generator[Reconstruction, None, None]:
    """Reconstruct images one by one, at one size.

    All images are found and their sizes checked before this returns. They are cropped to their centre square and
    scaled down; none is enlarged. The codes are decoded by ``FastDecoder``, as in ``Pipeline``.

    Args:
        model: The tokenizer, in evaluation mode.
        images: Image files and names of sets of images, see ``aimamba.data.spec``.
        size: Side in pixels. By default 256 or the side of the smallest image, rounded down to a multiple of the
            downsampling factor.
        default_size: The side of avatars where neither ``size`` nor their name has one.
        lpips: Loads LPIPS for images of that side, where it is to be measured.
        on_broken: Called for each image that cannot be read, which is then left out. By default it is an error.
        progress: Show a bar on stderr.

    Returns:
        An iterator over the reconstructions, in the order of ``images``. It reads an image when it comes to it, and
        without ``on_broken`` raises ``DataError`` for a damaged one.

    Raises:
        ConfigError: ``size`` is below 1 or not a multiple of the downsampling factor.
        DataError: There are no images, one cannot be read, or one is too small.
    """
    report = _refuse if on_broken is None else on_broken
    originals = [found for text in images for found in _open(text, size, default_size, report, progress=progress)]
    if not originals:
        raise DataError(f"no images found in {', '.join(images)}; give files or folders of them")
    common = _common_size(originals, size, model.config.downsampling)
    network = None if lpips is None else lpips(common)
    return _reconstruct(model, originals, common, network, report, progress=progress)


def _refuse(error: DataError) -> NoReturn:
    raise DataError(f"{error}; --skip-broken leaves such files out") from error


class _Original(NamedTuple):
    """An image to reconstruct.

    Attributes:
        name: Its name.
        place: The file or set that it is from, for messages.
        extent: Width and height in pixels.
        read: Returns the image, cropped and scaled to a side in pixels.
    """

    name: str
    place: str
    extent: tuple[int, int]
    read: Callable[[int], UInt8[np.ndarray, "s s 3"]]


def _reconstruct(
    model: VQModel,
    originals: Sequence[_Original],
    size: int,
    lpips: PerceptualLoss | None,
    on_broken: Callable[[DataError], object],
    *,
    progress: bool,
) -> Generator[Reconstruction, None, None]:
    decoder = FastDecoder(model)
    for found in tqdm(originals, unit="image", disable=not progress):
        try:
            original = found.read(size)
        except DataError as error:
            on_broken(error)
            continue
        pixels = torch.from_numpy(original).permute(2, 0, 1)[None]
        decoded = to_uint8(decoder(model.encode(to_float(pixels).to(model.device)))).cpu()
        yield Reconstruction(
            name=found.name,
            original=original,
            reconstruction=decoded[0].permute(1, 2, 0).contiguous().numpy(),
            psnr=float(psnr(decoded, pixels, data_range=255.0)),
            lpips=None if lpips is None else float(lpips_distances(lpips, decoded, pixels)),
        )


def _open(
    text: str,
    size: int | None,
    default_size: int | None,
    on_broken: Callable[[DataError], object],
    *,
    progress: bool,
) -> list[_Original]:
    """Find the images that one name stands for; files are read up to their headers."""
    spec = parse_spec(text)
    if spec.kind not in ("file", "folder"):
        return _of_set(text, open_source(text, size=size, default_size=default_size, progress=progress))
    assert spec.path is not None
    named = {spec.path.name: spec.path}
    if spec.kind == "folder":
        files = choose_files(spec.path, spec.split or "all", classes=spec.which, per_class=spec.per_class)
        named = {str(file): spec.path / file for file in files}
    originals = []
    for (name, path), extent in zip(named.items(), read_sizes(list(named.values())), strict=True):
        if isinstance(extent, DataError):
            on_broken(extent)
            continue
        originals.append(
            _Original(name, str(path), extent, lambda side, path=path: _crop(open_image(path), side))  # type: ignore[misc]
        )
    return originals


def _of_set(text: str, images: Images) -> list[_Original]:
    names = [str(index) for index in range(len(images))]
    if images.labels is not None and images.class_names:
        names = [f"{images.class_names[label]}-{index}" for index, label in enumerate(images.labels)]

    def read(index: int, side: int) -> UInt8[np.ndarray, "s s 3"]:
        pixels = images.image(index)
        return pixels.copy() if side == images.size else _crop(Image.fromarray(pixels), side)

    extent = (images.size, images.size)
    return [
        _Original(name, text, extent, lambda side, index=index: read(index, side))  # type: ignore[misc]
        for index, name in enumerate(names)
    ]


def _crop(image: Image.Image, side: int) -> UInt8[np.ndarray, "s s 3"]:
    return to_array(center_crop(image, side))


def _common_size(originals: Sequence[_Original], wanted: int | None, factor: int) -> int:
    """Return the side in pixels for all images: a multiple of ``factor``, and no image has to be enlarged.

    Args:
        originals: At least one image.
        wanted: The side that the user chose, if any.
        factor: Downsampling factor of the tokenizer.

    Raises:
        ConfigError: ``wanted`` is not a multiple of ``factor``.
        DataError: An image would have to be enlarged.
    """
    smallest = min(originals, key=lambda original: (min(original.extent), original.extent, original.place))
    width, height = smallest.extent
    least = min(width, height)
    most = least // factor * factor
    chosen = min(_LARGEST_DEFAULT // factor * factor, most) if wanted is None else wanted
    if chosen > least or most < factor:
        remedy = f"give --size {most} or less" if most else f"this tokenizer needs at least {factor} pixels"
        raise DataError(
            f"{smallest.place}: the image is {width} x {height} pixels and would have to be enlarged; {remedy}"
        )
    if chosen % factor:
        raise ConfigError(f"--size must be a multiple of {factor}, this model's downsampling; got {chosen}")
    return chosen
