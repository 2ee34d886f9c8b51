"""Turn an official checkpoint into an aimamba folder.

MODEL is hp-l33/aim-base, -large or -xlarge, a folder or file with such weights, or LlamaGen's vq_ds16_c2i.pt. A
checkpoint with both parts becomes a pipeline with class names.
"""

import argparse
from pathlib import Path

from aimamba.cli.arguments import Parser


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--tokenizer", metavar="MODEL", help="the tokenizer, when the model has none inside")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--dtype", default="float32", help="of the weights written (default float32)")


def run(arguments: argparse.Namespace) -> None:
    """Read, check every key, write."""
    from aimamba.cli.sample import prepare_folder
    from aimamba.models import VQModel
    from aimamba.models.hub import find, read_checkpoint
    from aimamba.models.placement import resolve_dtype
    from aimamba.pipeline import Pipeline

    dtype = resolve_dtype(arguments.dtype)
    place = find(arguments.model, VQModel.folder_in_pipeline)
    _, tensors = read_checkpoint(place)
    out = prepare_folder(arguments.out)
    if any(key.startswith("encoder.") for key in tensors):
        VQModel.from_pretrained(place, dtype=dtype).save_pretrained(out)
        print(f"tokenizer written to {out}")
        return
    pipeline = Pipeline.from_pretrained(arguments.model, tokenizer=arguments.tokenizer, dtype=dtype)
    pipeline.save_pretrained(out)
    print(f"pipeline of {pipeline.image_size} px and {pipeline.generator.config.num_classes} classes written to {out}")
