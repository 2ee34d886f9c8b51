"""Draw the masked part of images again, so that it fits what is around it.

The mask is an image, white where to draw again. Writes each result as a PNG named by image and seed, and sheet.png with
the image, the hole, and the results side by side. Every PNG holds its settings.
"""

import argparse
from pathlib import Path

from aimamba.cli.arguments import Parser, require_positive
from aimamba.cli.edits import (
    Edits,
    add_drawing,
    add_fit,
    add_prompt,
    begin,
    classes_of,
    read_image,
    with_bar,
    write_edits,
)


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files")
    parser.add_argument(
        "--mask", type=Path, required=True, metavar="FILE", help="grey image of the model's size, white to draw again"
    )
    parser.add_argument(
        "--class",
        dest="label",
        metavar="NAME",
        help="class (default: that in the settings of a PNG of ours, or under which what is kept is likeliest)",
    )
    parser.add_argument(
        "--method",
        default="resample",
        help="resample (default): candidates that fit what follows are copied; best: the best of all candidates; "
        "plain: from left to right",
    )
    parser.add_argument("--candidates", type=int, default=16, help="candidates decoded side by side (default 16)")
    parser.add_argument("--keep-pixels", action="store_true", help="put the image's own pixels back around the mask")
    add_prompt(parser, "the image is to show")
    add_fit(parser)
    add_drawing(parser, "inpaintings", 4)


def run(arguments: argparse.Namespace) -> None:
    """Draw again and write."""
    import torch

    from aimamba.data.files import open_image
    from aimamba.errors import DataError
    from aimamba.files import expand_home
    from aimamba.pipeline.images import read_masks

    require_positive(candidates=arguments.candidates)
    begun = begin(arguments, "inpaint", images=arguments.images, beside=[arguments.mask])
    pipeline = begun.pipeline
    pixels = torch.cat([read_image(path, pipeline.image_size, arguments.fit) for path in arguments.images])
    mask_file = open_image(expand_home(arguments.mask))
    try:
        mask = read_masks(mask_file, len(pixels), pipeline.image_size, pipeline.grid)
    except DataError as error:
        raise DataError(f"--mask {arguments.mask}: {error}") from error
    grid_mask = mask.unflatten(1, (pipeline.grid, pipeline.grid))
    codes = pipeline.encode(pixels)
    given = classes_of(pipeline, arguments, codes, (~mask).expand(len(codes), -1))
    advance, close = with_bar("drawing")
    found = pipeline.inpaint(
        pixels,
        grid_mask,
        given,
        arguments.n,
        begun.config,
        method=arguments.method,
        candidates=arguments.candidates,
        keep_pixels=arguments.keep_pixels,
        batch_size=max(1, arguments.batch_size // arguments.candidates),
        progress=advance,
    )
    close()
    patch = pipeline.image_size // pipeline.grid
    about = [
        {
            "masked": tuple(tokens.nonzero().flatten().tolist()),
            "method": arguments.method,
            "candidates": 1 if arguments.method == "plain" else arguments.candidates,
            "keep_pixels": arguments.keep_pixels,
        }
        for tokens in mask
    ]
    hidden = grid_mask[:, None].repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)
    edits = Edits(arguments.images, pixels, hidden, codes, given, found, about)
    write_edits(begun, "inpaint", edits, "hole", f"inpainting by {arguments.method}")
