"""Keep the top of images and generate the rest.

Writes each completion as a PNG named by image and seed, and sheet.png with the image, what is kept, and the completions
side by side. Every PNG holds its settings.
"""

import argparse
from pathlib import Path

from aimamba.cli.arguments import Parser
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
        "--keep-rows", type=int, required=True, metavar="ROWS", help="rows of tokens to keep, such as 4 of 8"
    )
    parser.add_argument(
        "--class",
        dest="label",
        metavar="NAME",
        help="class (default: that in the settings of a PNG of ours, or under which the kept rows are likeliest)",
    )
    add_prompt(parser, "the rest is to show")
    add_fit(parser)
    add_drawing(parser, "completions", 4)


def run(arguments: argparse.Namespace) -> None:
    """Complete and write."""
    import torch

    begun = begin(arguments, "complete", images=arguments.images)
    pipeline, rows = begun.pipeline, arguments.keep_rows
    pixels = torch.cat([read_image(path, pipeline.image_size, arguments.fit) for path in arguments.images])
    codes = pipeline.encode(pixels)
    kept = pipeline.tokens_of_rows(rows).expand(len(codes), -1)
    given = classes_of(pipeline, arguments, codes, kept)
    advance, close = with_bar("completing")
    options = {"batch_size": arguments.batch_size, "progress": advance}
    found = pipeline.complete(pixels, rows, given, arguments.n, begun.config, **options)
    close()
    hidden = torch.zeros(len(codes), 1, *pixels.shape[2:], dtype=torch.bool)
    hidden[:, :, rows * pipeline.image_size // pipeline.grid :] = True
    about = [{"keep_rows": rows}] * len(codes)
    edits = Edits(arguments.images, pixels, hidden, codes, given, found, about)
    write_edits(begun, "complete", edits, "kept", f"{rows} of {pipeline.grid} rows kept")
