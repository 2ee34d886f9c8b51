"""Show pictures beside what the tokenizer makes of them.

Each picture is cut to a square from its centre. Writes one PNG for each picture, original left and reconstruction
right, and sheet.png with all of them; prints the peak signal-to-noise ratio.
"""

import argparse
from pathlib import Path

from aimamba.cli.arguments import Parser
from aimamba.errors import ConfigError, DataError


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="picture files, or folders of them")
    parser.add_argument("--model", required=True, help="tokenizer, pipeline, training run, .pt file or hub id")
    parser.add_argument("--size", type=int, default=256, help="side in pixels (default 256)")
    parser.add_argument("--out", type=Path, default=Path("reconstructions"), metavar="DIR")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 or mps")
    parser.add_argument("--dtype", default="float32", help="float32 (default), bfloat16, float16 or float64")


def run(arguments: argparse.Namespace) -> None:
    """Encode, decode, compare and write."""
    import torch
    from PIL import Image
    from tqdm import tqdm

    from aimamba.cli.sample import file_name, prepare_folder
    from aimamba.data.images import find_images, open_image
    from aimamba.data.sheets import sheet, to_float, to_images
    from aimamba.data.transforms import center_crop, to_array
    from aimamba.models import VQModel
    from aimamba.models.placement import resolve_device, resolve_dtype

    if arguments.size < 1:
        raise ConfigError(f"--size must be at least 1 pixel, got {arguments.size}")
    device, dtype = resolve_device(arguments.device), resolve_dtype(arguments.dtype)
    out = prepare_folder(arguments.out)
    model = VQModel.from_pretrained(arguments.model, device=device, dtype=dtype)
    factor = model.config.downsampling
    if arguments.size % factor:
        raise ConfigError(f"--size must be a multiple of {factor}, this model's down-sampling; got {arguments.size}")
    paths = [path for given in arguments.images for path in find_images(given)]
    if not paths:
        raise DataError(f"no pictures found in {', '.join(map(str, arguments.images))}")

    rows: list[list[Image.Image]] = []
    names, total = [], 0.0
    for path in tqdm(paths, unit="picture"):
        original = center_crop(open_image(path), arguments.size)
        pixels = torch.from_numpy(to_array(original)).permute(2, 0, 1)[None]
        with torch.no_grad():
            drawn = model.decode(model.encode(to_float(pixels).to(device, dtype))).float().cpu()
        [image] = to_images(drawn)
        error = (pixels[0].float() - torch.from_numpy(to_array(image)).permute(2, 0, 1).float()).square().mean()
        psnr = float(10 * torch.log10(255**2 / error.clamp(min=1e-10)))
        pair = Image.new("RGB", (2 * arguments.size, arguments.size))
        pair.paste(original, (0, 0))
        pair.paste(image, (arguments.size, 0))
        pair.save(out / f"{len(rows):04d}-{file_name(path.stem)}.png")
        rows.append([original, image])
        names.append(f"{path.name}  {psnr:.1f} dB")
        total += psnr
    sheet(rows, row_names=names, column_names=["original", "reconstruction"]).save(out / "sheet.png")
    print(f"{len(rows)} pictures at {arguments.size} px, mean PSNR {total / len(rows):.2f} dB: {out / 'sheet.png'}")
