"""Show images beside what the tokenizer makes of them.

Each image is cut to a square from its centre; none is enlarged. Writes one PNG for each image, original left and
reconstruction right, and sheet.png with all of them (with the first 32, where there are more); prints the peak
signal-to-noise ratio.
"""

import argparse
from pathlib import Path

from aimamba.cli.arguments import Parser, add_placement, open_model, require_positive
from aimamba.errors import ConfigError, DataError

_SIZE_BY_DEFAULT = 256
_SHEET_ROWS = 32


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="tokenizer, pipeline, training run, .pt file or hub id"
    )
    parser.add_argument("--size", type=int, help="side in pixels (default 256, or less if an image is smaller)")
    parser.add_argument(
        "--out", type=Path, default=Path("reconstructions"), metavar="DIR", help="default: reconstructions"
    )
    add_placement(parser)


def run(arguments: argparse.Namespace) -> None:
    """Encode, decode, compare and write."""
    import torch
    from PIL import Image
    from tqdm import tqdm

    from aimamba.cli.output import file_name, output_folder
    from aimamba.data.files import find_images, open_image
    from aimamba.data.sheets import sheet, to_float, to_pil, to_uint8
    from aimamba.data.transforms import center_crop, to_array
    from aimamba.devices import resolve_device, resolve_dtype
    from aimamba.generation.fast_decoder.decoder import FastDecoder
    from aimamba.models import VQModel

    if arguments.size is not None:
        require_positive(size=arguments.size)
    device, dtype = resolve_device(arguments.device), resolve_dtype(arguments.dtype)
    out = output_folder(arguments.out)
    paths = [path for given in arguments.images for path in find_images(given)]
    if not paths:
        raise DataError(f"no images found in {', '.join(map(str, arguments.images))}; give files or folders of them")
    checkpoint = open_model(arguments.model)
    checkpoint.require("tokenizer", "give its tokenizer as --model")
    model = VQModel.from_pretrained(checkpoint, device=device, dtype=dtype)
    size = _common_size(paths, arguments.size, model.config.downsampling)

    out.mkdir(parents=True, exist_ok=True)
    decoder = FastDecoder(model)
    rows: list[list[Image.Image]] = []
    names, total = [], 0.0
    for number, path in enumerate(tqdm(paths, unit="image")):
        original = center_crop(open_image(path), size)
        pixels = torch.from_numpy(to_array(original)).permute(2, 0, 1)[None]
        reconstruction = to_uint8(decoder(model.encode(to_float(pixels).to(device, dtype)))).cpu()
        [image] = to_pil(reconstruction)
        error = (pixels[0].float() - reconstruction[0].float()).square().mean()
        psnr = float(10 * torch.log10(255**2 / error.clamp(min=1e-10)))
        pair = Image.new("RGB", (2 * size, size))
        pair.paste(original, (0, 0))
        pair.paste(image, (size, 0))
        pair.save(out / f"{number:04d}-{file_name(path.stem)}.png")
        total += psnr
        if number < _SHEET_ROWS:
            rows.append([original, image])
            names.append(f"{path.name}  {psnr:.1f} dB")
    sheet(rows, row_names=names, column_names=["original", "reconstruction"]).save(out / "sheet.png")
    print(f"{len(paths)} images at {size} px, mean PSNR {total / len(paths):.2f} dB: {out / 'sheet.png'}")


def _common_size(paths: list[Path], asked: int | None, factor: int) -> int:
    """Side in pixels that every image has and the tokenizer, whose down-sampling is ``factor``, can take."""
    from aimamba.data.files import read_sizes

    sizes = []
    for path, size in zip(paths, read_sizes(paths), strict=True):
        if isinstance(size, DataError):
            raise size
        sizes.append((min(size), size, path))
    least, (width, height), path = min(sizes)
    most = least // factor * factor
    chosen = min(_SIZE_BY_DEFAULT // factor * factor, most) if asked is None else asked
    if chosen > least or most < factor:
        mend = f"give --size {most} or less" if most else f"this tokenizer needs {factor} pixels at least"
        raise DataError(f"{path}: the image is {width} x {height} pixels and would have to be enlarged; {mend}")
    if chosen % factor:
        raise ConfigError(f"--size must be a multiple of {factor}, this model's down-sampling; got {chosen}")
    return chosen
