"""Compare samples with real images.

SAMPLES and the reference each name a set of images, as described below: avatars-64:held-out, a folder (sub-folders are
classes) or an .npz file. With --model instead of SAMPLES, a model is sampled and its images are measured as they are
generated. Prints distances, precision and recall; if both sets have the same classes, the 5-NN accuracy of the samples;
and if training images are known, whether samples are copies of them.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from aimamba.cli.arguments import (
    Parser,
    add_engine,
    add_foreign_tokenizer,
    add_measuring,
    add_placement,
    add_sampling,
    load_pipeline,
)
from aimamba.data import spec
from aimamba.errors import ConfigError

if TYPE_CHECKING:
    from aimamba.evaluation.run import EvaluationRequest


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.epilog = spec.__doc__
    parser.add_argument("samples", nargs="?", metavar="SAMPLES", help="the set to measure, see below")
    parser.add_argument("--reference", required=True, metavar="SET", help="set of real images, see below")
    parser.add_argument("--model", metavar="MODEL", help="sample this model instead: a folder, a run or a hub id")
    parser.add_argument("--tokenizer", metavar="MODEL", help="the tokenizer, if MODEL does not include one")
    parser.add_argument("-n", type=int, metavar="N", help="samples of the model (default 5000)")
    parser.add_argument("--labels", metavar="HOW", help="balanced (default): classes in turn; or random")
    add_foreign_tokenizer(parser)
    add_sampling(parser)
    parser.add_argument(
        "--train",
        metavar="SET",
        help="training images, to search for copies; default: those of a named held-out reference; none: no search",
    )
    parser.add_argument("--sweep", metavar="SCALES", help="measure these guidance scales as well, as in 1,1.5,2,3")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write an HTML report to DIR")
    parser.add_argument("--protocol", metavar="NAME", help="aim-paper: the settings of the paper's numbers")
    add_measuring(parser)
    add_placement(parser)
    add_engine(parser)


def run(arguments: argparse.Namespace) -> None:
    """Evaluate, print and write."""
    from aimamba.cli.output import output_file, output_folder, print_line, print_table, write_json
    from aimamba.devices import resolve_device
    from aimamba.evaluation.report import write_report
    from aimamba.evaluation.run import evaluate
    from aimamba.evaluation.summary import summary

    request = _request(arguments)
    device = resolve_device(arguments.device)
    file = output_file("--json", arguments.json)
    folder = None if arguments.report is None else output_folder(arguments.report, "--report")
    pipeline = None if request.model is None else load_pipeline(arguments)
    evaluation = evaluate(request, pipeline=pipeline, device=device, progress=True)
    write_json(file, evaluation.to_dict())  # before anything else can fail
    if folder is not None:
        write_report(folder, evaluation)
    print_table(summary(evaluation.comparison.network, evaluation.comparison.metrics))
    if folder is not None:
        print_line(f"report: {folder / 'index.html'}")


def _request(arguments: argparse.Namespace) -> "EvaluationRequest":
    from dataclasses import fields

    from aimamba.config import from_mapping
    from aimamba.evaluation.run import EvaluationRequest
    from aimamba.generation import SamplingConfig

    sampling = {field.name: getattr(arguments, field.name) for field in fields(SamplingConfig)}
    return EvaluationRequest(
        reference=arguments.reference,
        samples=arguments.samples,
        model=arguments.model,
        train=arguments.train,
        count=arguments.n,
        labels=arguments.labels,
        sampling=from_mapping(SamplingConfig, sampling, where="evaluate"),
        batch_size=arguments.batch_size,
        dtype=arguments.dtype,
        sweep=_scales(arguments.sweep),
        protocol=arguments.protocol,
        features=arguments.features,
        size=arguments.size,
    )


def _scales(text: str | None) -> tuple[float, ...] | None:
    """Parse guidance scales separated by commas.

    Raises:
        ConfigError: One is not a number.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(f"--sweep expects numbers separated by commas, as in 1,1.5,2, got {text!r}") from error
