"""Show images beside the tokenizer's reconstructions of them.

Each IMAGE is an image file or names a set of images, see below. Images are cropped to their centre square and scaled
down; none is enlarged. Writes one PNG for each image, original left and reconstruction right, and sheet.png with all of
them (of 32 spread over all, or fewer if they are large); prints the peak signal-to-noise ratio, and LPIPS
if its weights are there.
"""

import argparse
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from aimamba.cli.arguments import (
    Parser,
    add_foreign_tokenizer,
    add_lpips,
    add_placement,
    load_tokenizer,
    require_positive,
)
from aimamba.data import spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from PIL import Image

_SHEET_PAIRS, _SHEET_ROWS = 32, 8


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
    parser.add_argument("--skip-broken", action="store_true", help="leave out image files that cannot be read")
    add_lpips(parser)
    add_foreign_tokenizer(parser)
    add_placement(parser)


def run(arguments: argparse.Namespace) -> None:
    """Reconstruct, write pairs and the sheet, print the mean error."""
    import numpy as np
    from PIL import Image

    from aimamba.cli.output import output_folder, print_line, print_notice, require_apart
    from aimamba.data.sheets import page_of
    from aimamba.devices import resolve_device, resolve_dtype
    from aimamba.errors import DataError, counted
    from aimamba.evaluation.image_size import default_size
    from aimamba.evaluation.lpips import open_lpips
    from aimamba.evaluation.reconstruct import reconstruct

    if arguments.size is not None:
        require_positive(size=arguments.size)
    device, _ = resolve_device(arguments.device), resolve_dtype(arguments.dtype)
    out = output_folder(arguments.out)
    written = [out, out / "sheet.png", *(out / _name(*each) for each in enumerate(arguments.images))]
    read = spec.paths_of(arguments.images)  # a wrong name is reported before the model is loaded
    require_apart((("--out", path) for path in written), read)
    model, checkpoint = load_tokenizer(arguments, "give its tokenizer as --model")
    side = None
    if checkpoint is not None:
        side = default_size(checkpoint, model.config.downsampling, *arguments.images)
    broken: list[DataError] = []
    found = reconstruct(
        model,
        arguments.images,
        size=arguments.size,
        default_size=side,
        lpips=lambda size: open_lpips(arguments.lpips, size, device=device),
        on_broken=broken.append if arguments.skip_broken else None,
        progress=True,
    )

    out.mkdir(parents=True, exist_ok=True)
    shown: list[tuple[str, np.ndarray, np.ndarray]] = []
    ratios, distances, size, every = [], [], 0, 1
    with closing(found):  # ends its bar before an error is printed
        for number, (name, original, reconstruction, psnr, lpips) in enumerate(found):
            pair = Image.fromarray(np.concatenate([original, reconstruction], axis=1))
            _save(out / _name(number, name), pair)
            size = len(original)
            ratios.append(psnr)
            distances += [] if lpips is None else [lpips]
            if number % every == 0:
                shown.append((f"{name}  {psnr:.1f} dB", original, reconstruction))
            if len(shown) > 2 * _SHEET_PAIRS:  # how many images there will be is not known
                shown, every = shown[::2], 2 * every
    if not ratios:
        raise DataError(f"none of the images can be read: {broken[0]}")
    if broken:
        print_notice(f"{counted(len(broken), 'image')} left out, the first: {broken[0]}")
    most = min(_SHEET_PAIRS, _SHEET_ROWS * page_of(size).columns // 4)
    step = max(1.0, len(shown) / most)
    chosen = [shown[int(index * step)] for index in range(min(len(shown), most))]
    _save(out / "sheet.png", pairs_sheet(chosen, _SHEET_ROWS))
    means = f"mean PSNR {sum(ratios) / len(ratios):.2f} dB"
    means += f", LPIPS {sum(distances) / len(distances):.4f}" if distances else ""
    print_line(f"{counted(len(ratios), 'image')} at {size} px, {means}: {out / 'sheet.png'}")


def _name(number: int, image: str) -> str:
    """Return the name of the file of an image and its reconstruction."""
    from aimamba.cli.output import file_name

    return f"{number:04d}-{file_name(str(Path(image).with_suffix('')))}.png"


def _save(path: Path, image: "Image.Image") -> None:
    from aimamba.files import write_atomically

    write_atomically(path, lambda draft: image.save(draft, format="PNG"))


def pairs_sheet(pairs: "Sequence[tuple[str, np.ndarray, np.ndarray]]", rows: int) -> "Image.Image":
    """Arrange named pairs of images in blocks of about equal length, of at most ``rows`` pairs, side by side."""
    from PIL import Image

    from aimamba.data.sheets import sheet

    rows = -(-len(pairs) // -(-len(pairs) // rows))
    blocks = [
        sheet(
            [[Image.fromarray(image) for image in images] for _, *images in pairs[start : start + rows]],
            row_names=[name for name, *_ in pairs[start : start + rows]],
            column_names=["original", "reconstruction"],
        )
        for start in range(0, len(pairs), rows)
    ]
    whole = Image.new("RGB", (sum(block.width for block in blocks), max(block.height for block in blocks)), "white")
    left = 0
    for block in blocks:
        whole.paste(block, (left, 0))
        left += block.width
    return whole
