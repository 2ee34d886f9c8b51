"""Show images beside the tokenizer's reconstructions of them.

Each IMAGE is an image file or names a set of images, see below. Images are cropped to their centre square and scaled
down; none is enlarged. Writes one PNG for each image, original left and reconstruction right, and sheet.png with all of
them (of the first 32, or fewer if they are large); prints the peak signal-to-noise ratio.
"""

import argparse
from pathlib import Path

from aimamba.cli.arguments import Parser, add_foreign_tokenizer, add_placement, load_tokenizer, require_positive
from aimamba.data import spec

_SHEET_ROWS = 32


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.epilog = spec.__doc__
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or named sets of images")
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="tokenizer, pipeline, training run, .pt file or hub id"
    )
    parser.add_argument("--size", type=int, help="side in pixels (default 256, or the smallest image's)")
    parser.add_argument(
        "--out", type=Path, default=Path("reconstructions"), metavar="DIR", help="default: reconstructions"
    )
    add_foreign_tokenizer(parser)
    add_placement(parser)


def run(arguments: argparse.Namespace) -> None:
    """Reconstruct, write pairs and the sheet, print the mean error."""
    import numpy as np
    from PIL import Image

    from aimamba.cli.output import file_name, output_folder, print_line
    from aimamba.data.sheets import page_of, sheet
    from aimamba.devices import resolve_device, resolve_dtype
    from aimamba.evaluation.image_size import default_size
    from aimamba.evaluation.reconstruct import reconstruct

    if arguments.size is not None:
        require_positive(size=arguments.size)
    resolve_device(arguments.device), resolve_dtype(arguments.dtype)
    out = output_folder(arguments.out)
    for text in arguments.images:
        spec.parse_spec(text)  # a wrong name is reported before the model is loaded
    model, checkpoint = load_tokenizer(arguments, "give its tokenizer as --model")
    side = None
    if checkpoint is not None:
        side = default_size(checkpoint, model.config.downsampling, *arguments.images)
    found = reconstruct(model, arguments.images, size=arguments.size, default_size=side, progress=True)

    out.mkdir(parents=True, exist_ok=True)
    rows, names, ratios, size = [], [], [], 0
    for number, (name, original, reconstruction, psnr) in enumerate(found):
        pair = Image.fromarray(np.concatenate([original, reconstruction], axis=1))
        pair.save(out / f"{number:04d}-{file_name(Path(name).stem)}.png")
        size = len(original)
        ratios.append(psnr)
        if number < min(_SHEET_ROWS, page_of(size).rows):
            rows.append([Image.fromarray(original), Image.fromarray(reconstruction)])
            names.append(f"{name}  {psnr:.1f} dB")
    sheet(rows, row_names=names, column_names=["original", "reconstruction"]).save(out / "sheet.png")
    print_line(f"{len(ratios)} images at {size} px, mean PSNR {sum(ratios) / len(ratios):.2f} dB: {out / 'sheet.png'}")
