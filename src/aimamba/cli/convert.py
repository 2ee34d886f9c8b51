"""Convert an official checkpoint to an aimamba folder, or merge the LoRA of a run into its weights.

MODEL is hp-l33/aim-base, -large or -xlarge, a folder or file with such weights, LlamaGen's vq_ds16_c2i.pt, or any model
of ours: one with LoRA is written whole. A checkpoint with both parts, or one that is given its --tokenizer, becomes a
pipeline with class names.
"""

import argparse
import errno
from collections.abc import Callable
from functools import partial
from pathlib import Path

from aimamba.cli.arguments import Parser, add_foreign_tokenizer, open_model
from aimamba.errors import ConfigError, counted


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("model", metavar="MODEL", help="hub id, folder or file, official or ours")
    parser.add_argument("--tokenizer", metavar="MODEL", help="the tokenizer, if MODEL does not include one")
    add_foreign_tokenizer(parser)
    parser.add_argument(
        "--weights",
        metavar="NAME",
        help="which weights of a pickle to take: ema, model or state_dict (default: the first of these that it has)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write, new or empty")
    parser.add_argument("--dtype", default="float32", help="dtype of the weights written (default float32)")


def run(arguments: argparse.Namespace) -> None:
    """Read the checkpoint, check every key, and write the folder."""
    from aimamba.cli.output import output_folder, print_line
    from aimamba.devices import resolve_dtype
    from aimamba.models import AiM, VQModel
    from aimamba.pipeline import Pipeline

    dtype = resolve_dtype(arguments.dtype)
    out = output_folder(arguments.out)
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"--out {out} is not empty, and a model among other files might not be found; give a new one")
    checkpoint = open_model(arguments.model, arguments.weights)
    if checkpoint.parts == {"tokenizer"}:
        _write(out, partial(VQModel.from_pretrained(checkpoint, dtype=dtype).save_pretrained, dtype=dtype))
        print_line(f"tokenizer written to {out}")
    elif checkpoint.parts == {"generator"} and arguments.tokenizer is None:
        generator = AiM.from_pretrained(checkpoint, dtype=dtype)
        _write(out, partial(generator.save_pretrained, dtype=dtype))
        print_line(f"generator without a tokenizer written to {out}; --tokenizer would make it a pipeline")
    else:
        pipeline = Pipeline.from_pretrained(
            checkpoint, tokenizer=arguments.tokenizer, dtype=dtype, foreign_tokenizer=arguments.foreign_tokenizer
        )
        _write(out, partial(pipeline.save_pretrained, dtype=dtype))
        classes = counted(pipeline.generator.config.num_classes, "class")
        print_line(f"pipeline of {pipeline.image_size} px and {classes} written to {out}")


def _write(out: Path, save: Callable[[Path], object]) -> None:
    from aimamba.files import write_folder_atomically

    try:
        write_folder_atomically(out, save)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise ConfigError(f"--out {out}: another process has written there meanwhile; give a new one") from error
        raise
