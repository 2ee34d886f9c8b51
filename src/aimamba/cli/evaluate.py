"""Compare samples with real pictures.

SAMPLES and the reference are each a named set such as avatars-64:held-out, a folder (sub-folders are classes), or an
.npz of ADM's layout; with --model in place of SAMPLES a model is sampled and measured as it draws. Prints distances,
precision and recall; where both have the same classes, the share of samples that is recognised; and where training
pictures are known, whether samples lie too near to them.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aimamba.cli.arguments import Parser, add_measuring, add_placement, add_sampling, require_positive
from aimamba.errors import ConfigError

if TYPE_CHECKING:
    from aimamba.evaluation.sources import Source


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("samples", nargs="?", metavar="SAMPLES", help="avatars-64:held-out, a folder, an .npz file")
    parser.add_argument("--reference", required=True, metavar="SET", help="real pictures: the same kinds of set")
    parser.add_argument("--model", metavar="MODEL", help="sample this model instead: a folder, a run or a hub id")
    parser.add_argument("--tokenizer", metavar="MODEL", help="the tokenizer, when the model has none inside")
    parser.add_argument("-n", type=int, default=5000, metavar="N", help="samples of the model (default 5000)")
    parser.add_argument("--labels", default="balanced", help="balanced (default): classes in turn; or random")
    add_sampling(parser)
    parser.add_argument(
        "--train",
        metavar="SET",
        help="training pictures, to look for copies; default: those of a named held-out reference; none for none",
    )
    add_measuring(parser)
    add_placement(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measure, print and write."""
    from aimamba.cli.output import output_file, print_table, write_json
    from aimamba.evaluation.compare import compare
    from aimamba.evaluation.features import open_extractor
    from aimamba.evaluation.settings import general_settings
    from aimamba.evaluation.sources import open_source
    from aimamba.evaluation.summary import summary
    from aimamba.models.placement import resolve_device

    if (arguments.samples is None) == (arguments.model is None):
        raise ConfigError("evaluate: give either SAMPLES or --model MODEL")
    require_positive(n=arguments.n, batch_size=arguments.batch_size)
    device = resolve_device(arguments.device)
    file = output_file("--json", arguments.json)
    samples, drawing = _samples(arguments)
    size = samples.size if arguments.size is None else arguments.size
    reference = open_source(arguments.reference, size=size, progress=True)
    name = _train_name(arguments)
    train = None if name is None else open_source(name, size=size, progress=True)
    extractor = open_extractor(arguments.features, device=device)
    found = compare(samples, reference, extractor, train=train, progress=True)
    print_table(summary(found.network, found.numbers))
    settings = {
        "samples": {"name": samples.name, "count": len(samples), "size": samples.size, **drawing},
        "reference": {"name": reference.name, "count": len(reference), "size": reference.size},
        **({} if train is None else {"train": {"name": train.name, "count": len(train)}}),
        **general_settings(extractor),
    }
    write_json(file, {found.network: found.numbers, "settings": settings})


def _samples(arguments: argparse.Namespace) -> "tuple[Source, dict[str, Any]]":
    """The samples, and how they are drawn."""
    from dataclasses import fields

    from aimamba.cli.sample import check_parts
    from aimamba.config import from_mapping, to_mapping
    from aimamba.evaluation.sources import ModelSource, draw_labels, open_source
    from aimamba.generation import SamplingConfig
    from aimamba.models.placement import resolve_device, resolve_dtype
    from aimamba.pipeline import Pipeline

    if arguments.model is None:
        return open_source(arguments.samples, size=arguments.size, progress=True), {}
    values = {field.name: getattr(arguments, field.name) for field in fields(SamplingConfig)}
    config = from_mapping(SamplingConfig, values, where="evaluate")
    device, dtype = resolve_device(arguments.device), resolve_dtype(arguments.dtype)
    check_parts(arguments.model, arguments.tokenizer)
    pipeline = Pipeline.from_pretrained(arguments.model, tokenizer=arguments.tokenizer, device=device, dtype=dtype)
    shape = pipeline.generator.config
    labels = draw_labels(arguments.labels, arguments.n, shape.num_classes, config.seed)
    source = ModelSource(arguments.model, pipeline, labels, config, arguments.batch_size)
    drawing = {
        "labels": arguments.labels,
        "sampling": to_mapping(config),
        "decode_position_shift": shape.decode_position_shift,
        "dtype": arguments.dtype,
    }
    return source, drawing


def _train_name(arguments: argparse.Namespace) -> str | None:
    """The training set given, or that of the same name as a named held-out reference."""
    if arguments.train is not None:
        return None if arguments.train == "none" else str(arguments.train)
    name, colon, rest = arguments.reference.partition(":held-out")
    return f"{name}:train" if colon and not rest and name.startswith("avatars-") and not Path(name).exists() else None
