"""Describe a model: shape, parameters, classes.

MODEL is a folder, also that of a run that is not finished, an official checkpoint, a hub id, or the name of a preset
(aim-b, aim-l, aim-xl, aim-1b, vq-f16).
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aimamba.cli.arguments import Parser

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aimamba.checkpoints.checkpoint import Checkpoint
    from aimamba.models import AiM, VQModel

_CLASSES_SHOWN = 20
_NO_CLASSES = "a tokenizer has no classes; give a pipeline or a generator"


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("model", metavar="MODEL", help="folder, file, hub id, packaged model or preset")
    parser.add_argument("--classes", action="store_true", help="list the number and the name of every class")
    parser.add_argument("--verify", action="store_true", help="compare the weights with the SHA-256 sums saved")


def run(arguments: argparse.Namespace) -> None:
    """Print a description; weights are read only where an official checkpoint has to be translated."""
    import torch

    from aimamba.checkpoints.checkpoint import open_checkpoint
    from aimamba.cli.output import print_line
    from aimamba.data.imagenet import imagenet_class_names
    from aimamba.errors import CheckpointError, suggest
    from aimamba.models import AIM_PRESETS, VQ_PRESETS, AiM, VQModel
    from aimamba.pipeline import Pipeline, saved_class_names
    from aimamba.train.stopped import is_stopped

    source = arguments.model
    with torch.device("meta"):
        if source in AIM_PRESETS:
            if arguments.classes:
                return _list_classes(imagenet_class_names())
            return _describe("generator", AiM(AIM_PRESETS[source]))
        if source in VQ_PRESETS and not arguments.classes:
            return _describe("tokenizer", VQModel(VQ_PRESETS[source]))
    if is_stopped(source):
        return _describe_stopped(source, classes=arguments.classes, verify=arguments.verify)
    try:
        checkpoint = open_checkpoint(source)
        parts = checkpoint.parts
    except CheckpointError as error:
        near = "" if Path(source).exists() else suggest(source, [*AIM_PRESETS, *VQ_PRESETS])
        raise CheckpointError(f"{error}{near}") from error
    if arguments.verify:
        _verify(checkpoint)
    if arguments.classes:
        if "generator" not in parts:
            raise CheckpointError(f"{source}: {_NO_CLASSES}")
        count = AiM.from_pretrained(checkpoint, device="meta").config.num_classes
        return _list_classes(saved_class_names(checkpoint, count) or [f"class-{label}" for label in range(count)])
    if parts == {"generator"}:
        return _describe("generator", AiM.from_pretrained(checkpoint, device="meta"))
    if parts == {"tokenizer"}:
        return _describe("tokenizer", VQModel.from_pretrained(checkpoint, device="meta"))
    pipeline = Pipeline.from_pretrained(checkpoint, device="meta")
    print(f"pipeline    {pipeline.image_size} x {pipeline.image_size} pixels, {pipeline.grid} x {pipeline.grid} codes")
    _describe("generator", pipeline.generator)
    _describe("tokenizer", pipeline.tokenizer)
    if pipeline.vocabulary is not None:
        print(f"captions    read with a vocabulary of {len(pipeline.vocabulary):,} tokens: draw with --prompt")
    count = pipeline.generator.config.num_classes
    shown = ", ".join(pipeline.class_name(label) for label in range(min(count, _CLASSES_SHOWN)))
    print_line(f"classes     {shown}" + (f", ... ({count} in all)" if count > _CLASSES_SHOWN else ""))
    return None


def _describe_stopped(source: str, *, classes: bool, verify: bool) -> None:
    """Describe the model of a run that is not finished."""
    from aimamba.cli.arguments import notice_of_stopped
    from aimamba.errors import CheckpointError
    from aimamba.models import AiM
    from aimamba.train.stopped import open_stopped

    if verify:
        raise CheckpointError(f"{source}: the run is not finished, so there are no sums to verify; leave out --verify")
    run = open_stopped(Path(source))
    if classes and not isinstance(run.model, AiM):
        raise CheckpointError(f"{source}: {_NO_CLASSES}")
    notice_of_stopped(source, run.described)
    if classes:
        _list_classes(run.class_names)
    else:
        _describe("generator" if isinstance(run.model, AiM) else "tokenizer", run.model)


def _list_classes(names: "Sequence[str]") -> None:
    """Print a line for each class: its number, its name, and of ImageNet the id of its synset."""
    from aimamba.cli.output import print_line
    from aimamba.data.imagenet import imagenet_class_names, imagenet_synsets

    synsets = imagenet_synsets() if tuple(names) == imagenet_class_names() else ()
    for label, name in enumerate(names):
        print_line(f"{label:>{len(str(len(names) - 1))}}  " + (f"{synsets[label]}  " if synsets else "") + name)


def _verify(checkpoint: "Checkpoint") -> None:
    """Read all weights once and compare them with the sums in their configs."""
    for part in sorted(checkpoint.parts):
        checkpoint.read(part, values=False, verify=True)
        known = checkpoint.has_sum(part)
        print(f"verified    {part}: " + ("its weights are as saved" if known else "no sums were saved with it"))


def _describe(part: str, model: "AiM | VQModel") -> None:
    from aimamba.config import to_mapping

    settings = ", ".join(f"{key} {_short(value)}" for key, value in to_mapping(model.config).items())
    print(f"{part:<11} {model.num_parameters():,} parameters\n{'':<11} {settings}")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
