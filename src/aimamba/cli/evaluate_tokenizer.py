"""Measure how well a tokenizer reconstructs images.

IMAGES names a set of images, as described below: avatars-64:held-out, a folder (FOLDER:held-out for the images that
training holds out) or an .npz file. Prints the distance between images and reconstructions, PSNR, SSIM, LPIPS if its
weights are there, and how the codebook is used.
"""

import argparse

from aimamba.cli.arguments import (
    Parser,
    add_foreign_tokenizer,
    add_lpips,
    add_measuring,
    add_placement,
    load_tokenizer,
)
from aimamba.data import spec


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.epilog = spec.__doc__
    parser.add_argument("model", metavar="MODEL", help="tokenizer, pipeline, training run, .pt file or hub id")
    parser.add_argument("images", metavar="IMAGES", help="avatars-64:held-out, a folder, or an .npz file")
    add_lpips(parser)
    parser.add_argument("--skip-broken", action="store_true", help="leave out image files that cannot be read")
    add_measuring(parser)
    add_foreign_tokenizer(parser)
    add_placement(parser)


def run(arguments: argparse.Namespace) -> None:
    """Reconstruct, compare, print."""
    from aimamba.cli.output import output_file, print_table, require_apart, write_json
    from aimamba.devices import resolve_device
    from aimamba.evaluation.features import open_extractor
    from aimamba.evaluation.image_size import default_size
    from aimamba.evaluation.lpips import open_lpips
    from aimamba.evaluation.sources import open_source
    from aimamba.evaluation.summary import reconstruction_summary, summary
    from aimamba.evaluation.tokenizer import compare_tokenizer, tokenizer_report

    device = resolve_device(arguments.device)
    file = output_file("--json", arguments.json)
    require_apart([("--json", file)], spec.paths_of([arguments.images]))
    model, checkpoint = load_tokenizer(arguments, "give its tokenizer as MODEL")
    side = None
    if arguments.size is None and checkpoint is not None:
        side = default_size(checkpoint, model.config.downsampling, arguments.images)
    images = open_source(
        arguments.images,
        size=arguments.size,
        default_size=side,
        skip_broken=arguments.skip_broken,
        progress=True,
    )
    extractor = open_extractor(arguments.features, device=device)
    lpips = open_lpips(arguments.lpips, images.size, device=device)
    found = compare_tokenizer(model, images, extractor, lpips=lpips, progress=True)
    named = {"tokenizer": arguments.model, "dtype": arguments.dtype}
    write_json(file, tokenizer_report(found, images, extractor, **named, lpips=lpips))
    print_table([*summary(found.network, found.distances), *reconstruction_summary(found.reconstruction)])
