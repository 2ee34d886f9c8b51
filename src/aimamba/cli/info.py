"""Tell what a model is: shape, parameters, classes.

MODEL is a folder, an official checkpoint, a hub id, or the name of a preset (aim-b, aim-l, aim-xl, aim-1b, vq-f16).
"""

import argparse
from typing import TYPE_CHECKING

from aimamba.cli.arguments import Parser

if TYPE_CHECKING:
    from aimamba.models import AiM, VQModel


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--tokenizer", metavar="MODEL", help="the tokenizer, when the model has none inside")


def run(arguments: argparse.Namespace) -> None:
    """Print a description."""
    import torch

    from aimamba.errors import CheckpointError
    from aimamba.models import AIM_PRESETS, VQ_PRESETS, AiM, VQModel
    from aimamba.pipeline import Pipeline

    with torch.device("meta"):
        if arguments.model in AIM_PRESETS:
            return _describe("generator", AiM(AIM_PRESETS[arguments.model]))
        if arguments.model in VQ_PRESETS:
            return _describe("tokenizer", VQModel(VQ_PRESETS[arguments.model]))
    try:
        pipeline = Pipeline.from_pretrained(arguments.model, tokenizer=arguments.tokenizer)
    except CheckpointError as whole:
        for name, kind in (("generator", AiM), ("tokenizer", VQModel)):
            try:
                return _describe(name, kind.from_pretrained(arguments.model))
            except CheckpointError:
                continue
        raise whole
    print(f"pipeline    {pipeline.image_size} x {pipeline.image_size} pixels, {pipeline.grid} x {pipeline.grid} codes")
    _describe("generator", pipeline.generator)
    _describe("tokenizer", pipeline.tokenizer)
    names = pipeline.class_names or [pipeline.class_name(i) for i in range(pipeline.generator.config.num_classes)]
    shown = ", ".join(names[:20]) + (f", ... ({len(names)} in all)" if len(names) > 20 else "")
    print(f"classes     {shown}")


def _describe(part: str, model: "AiM | VQModel") -> None:
    from aimamba.config import to_mapping

    settings = ", ".join(f"{key} {value}" for key, value in to_mapping(model.config).items())
    print(f"{part:<11} {model.num_parameters():,} parameters\n{'':<11} {settings}")
