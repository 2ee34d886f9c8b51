"""Measure what a tokenizer keeps of images.

IMAGES names a set of images, see below: avatars-64:held-out, a folder (FOLDER:held-out for the images that training
holds out) or an .npz file. Prints the distance between images and reconstructions, PSNR, SSIM, LPIPS where its weights
are given, and how the codes are used.
"""

import argparse

from aimamba.cli.arguments import Parser, add_measuring, add_placement
from aimamba.data import spec
from aimamba.errors import CheckpointError


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.epilog = spec.__doc__
    parser.add_argument("model", metavar="MODEL", help="tokenizer, pipeline, training run, .pt file or hub id")
    parser.add_argument("images", metavar="IMAGES", help="avatars-64:held-out, a folder, or an .npz file")
    parser.add_argument("--lpips", metavar="PATH", help="weights of VGG16 and LPIPS: a file, or a folder of both")
    add_measuring(parser)
    add_placement(parser)


def run(arguments: argparse.Namespace) -> None:
    """Reconstruct, compare, print."""
    from aimamba.cli.image_size import default_size
    from aimamba.cli.output import output_file, print_table, write_json
    from aimamba.cli.parts import parts_inside
    from aimamba.devices import resolve_device, resolve_dtype
    from aimamba.evaluation.features import open_extractor
    from aimamba.evaluation.settings import general_settings
    from aimamba.evaluation.sources import open_source
    from aimamba.evaluation.summary import summary, tokenizer_summary
    from aimamba.evaluation.tokenizer import compare_tokenizer
    from aimamba.models import VQModel
    from aimamba.networks.perceptual import lpips_vgg16

    device, dtype = resolve_device(arguments.device), resolve_dtype(arguments.dtype)
    file = output_file("--json", arguments.json)
    if "tokenizer" not in parts_inside(arguments.model):
        raise CheckpointError(f"{arguments.model}: holds a generator alone; give its tokenizer as MODEL")
    model = VQModel.from_pretrained(arguments.model, device=device, dtype=dtype)
    side = None
    if arguments.size is None:
        side = default_size(arguments.model, model.config.downsampling, arguments.images)
    images = open_source(arguments.images, size=arguments.size, default_size=side, progress=True)
    extractor = open_extractor(arguments.features, device=device)
    lpips = None if arguments.lpips is None else lpips_vgg16(arguments.lpips).to(device)
    between, kept = compare_tokenizer(model, images, extractor, lpips=lpips, progress=True)
    print_table([*summary(extractor.name, between), *tokenizer_summary(kept)])
    settings = {
        "tokenizer": arguments.model,
        "dtype": arguments.dtype,
        "pictures": {"name": images.name, "count": len(images), "size": images.size},
        **general_settings(extractor),
    }
    write_json(file, {extractor.name: between, "tokenizer": kept, "settings": settings})
