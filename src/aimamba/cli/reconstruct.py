"""Show images beside the tokenizer's reconstructions of them.

Each IMAGE is an image file or names a set of images, see below. Images are cropped to their centre square and scaled
down; none is enlarged. Writes one PNG for each image, original left and reconstruction right, and sheet.png with all of
them (with the first 32 if there are more); prints the peak signal-to-noise ratio.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from aimamba.cli.arguments import Parser, add_placement, open_model, require_positive
from aimamba.data import spec
from aimamba.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL import Image

_DEFAULT_SIZE = 256
_SHEET_ROWS = 32


class _Original(NamedTuple):
    """An image to reconstruct: its name, where it is from, width and height in pixels, and what reads it."""

    name: str
    place: str
    extent: tuple[int, int]
    read: "Callable[[], Image.Image]"


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.epilog = spec.__doc__
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or named sets of images")
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="tokenizer, pipeline, training run, .pt file or hub id"
    )
    parser.add_argument("--size", type=int, help=f"side in pixels (default {_DEFAULT_SIZE}, or the smallest image's)")
    parser.add_argument(
        "--out", type=Path, default=Path("reconstructions"), metavar="DIR", help="default: reconstructions"
    )
    add_placement(parser)


def run(arguments: argparse.Namespace) -> None:
    """Encode, decode, compare and write."""
    import torch
    from PIL import Image
    from tqdm import tqdm

    from aimamba.cli.image_size import default_size
    from aimamba.cli.output import file_name, output_folder, print_line
    from aimamba.data.sheets import sheet, to_float, to_pil, to_uint8
    from aimamba.data.transforms import center_crop, to_array
    from aimamba.devices import resolve_device, resolve_dtype
    from aimamba.generation.fast_decoder.decoder import FastDecoder
    from aimamba.models import VQModel

    if arguments.size is not None:
        require_positive(size=arguments.size)
    device, dtype = resolve_device(arguments.device), resolve_dtype(arguments.dtype)
    out = output_folder(arguments.out)
    for text in arguments.images:
        spec.parse_spec(text)  # a wrong name is reported before the model is loaded
    checkpoint = open_model(arguments.model)
    checkpoint.require("tokenizer", "give its tokenizer as --model")
    model = VQModel.from_pretrained(checkpoint, device=device, dtype=dtype)
    side = default_size(checkpoint, model.config.downsampling, *arguments.images)
    originals = [found for text in arguments.images for found in _open(text, arguments.size, side)]
    if not originals:
        raise DataError(f"no images found in {', '.join(arguments.images)}; give files or folders of them")
    size = _common_size(originals, arguments.size, model.config.downsampling)

    out.mkdir(parents=True, exist_ok=True)
    decoder = FastDecoder(model)
    rows: list[list[Image.Image]] = []
    names, total = [], 0.0
    for number, found in enumerate(tqdm(originals, unit="image")):
        original = center_crop(found.read(), size)
        pixels = torch.from_numpy(to_array(original)).permute(2, 0, 1)[None]
        reconstruction = to_uint8(decoder(model.encode(to_float(pixels).to(device, dtype)))).cpu()
        [image] = to_pil(reconstruction)
        error = (pixels[0].float() - reconstruction[0].float()).square().mean()
        psnr = float(10 * torch.log10(255**2 / error.clamp(min=1e-10)))
        pair = Image.new("RGB", (2 * size, size))
        pair.paste(original, (0, 0))
        pair.paste(image, (size, 0))
        pair.save(out / f"{number:04d}-{file_name(Path(found.name).stem)}.png")
        total += psnr
        if number < _SHEET_ROWS:
            rows.append([original, image])
            names.append(f"{found.name}  {psnr:.1f} dB")
    sheet(rows, row_names=names, column_names=["original", "reconstruction"]).save(out / "sheet.png")
    print_line(f"{len(originals)} images at {size} px, mean PSNR {total / len(originals):.2f} dB: {out / 'sheet.png'}")


def _open(text: str, size: int | None, side: int | None) -> list[_Original]:
    """The images that one argument names; ``side`` is the size of avatars where no other is given."""
    from PIL import Image

    from aimamba.data.files import open_image, read_sizes
    from aimamba.data.image_files import choose_files
    from aimamba.data.sets import open_source

    named = spec.parse_spec(text)
    if named.kind in ("file", "folder"):
        assert named.path is not None
        paths, originals = [named.path], []
        if named.kind == "folder":
            files = choose_files(named.path, named.split or "all", classes=named.which, per_class=named.per_class)
            paths = [named.path / file for file in files]
        for path, extent in zip(paths, read_sizes(paths), strict=True):
            if isinstance(extent, DataError):
                raise extent
            originals.append(_Original(path.name, str(path), extent, lambda path=path: open_image(path)))  # type: ignore[misc]
        return originals
    images = open_source(text, size=size, default_size=side, progress=True)
    names = [str(index) for index in range(len(images))]
    if images.labels is not None and images.class_names:
        names = [f"{images.class_names[label]}-{index}" for index, label in enumerate(images.labels)]
    return [
        _Original(name, text, (images.size, images.size), lambda index=index: Image.fromarray(images.image(index)))  # type: ignore[misc]
        for index, name in enumerate(names)
    ]


def _common_size(originals: list[_Original], wanted: int | None, factor: int) -> int:
    """The side in pixels that no image is smaller than and that is a multiple of ``factor``, the downsampling."""
    smallest = min(originals, key=lambda original: (min(original.extent), original.extent, original.place))
    width, height = smallest.extent
    least = min(width, height)
    most = least // factor * factor
    chosen = min(_DEFAULT_SIZE // factor * factor, most) if wanted is None else wanted
    if chosen > least or most < factor:
        remedy = f"give --size {most} or less" if most else f"this tokenizer needs at least {factor} pixels"
        raise DataError(
            f"{smallest.place}: the image is {width} x {height} pixels and would have to be enlarged; {remedy}"
        )
    if chosen % factor:
        raise ConfigError(f"--size must be a multiple of {factor}, this model's downsampling; got {chosen}")
    return chosen
