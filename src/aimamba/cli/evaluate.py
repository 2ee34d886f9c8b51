"""Compare samples with real images.

SAMPLES and the reference each name a set of images, see below: avatars-64:held-out, a folder (sub-folders are classes)
or an .npz file; with --model in place of SAMPLES a model is sampled and measured as it draws. Prints distances,
precision and recall; where both have the same classes, the share of samples that is recognised; and where training
images are known, whether samples lie too near to them.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aimamba.cli.arguments import Parser, add_engine, add_measuring, add_placement, add_sampling, require_positive
from aimamba.data import spec
from aimamba.errors import ConfigError

if TYPE_CHECKING:
    from aimamba.evaluation.features import Extractor
    from aimamba.evaluation.sources import Source


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.epilog = spec.__doc__
    parser.add_argument("samples", nargs="?", metavar="SAMPLES", help="avatars-64:held-out, a folder, an .npz file")
    parser.add_argument("--reference", required=True, metavar="SET", help="real images: the same kinds of set")
    parser.add_argument("--model", metavar="MODEL", help="sample this model instead: a folder, a run or a hub id")
    parser.add_argument("--tokenizer", metavar="MODEL", help="the tokenizer, when the model has none inside")
    parser.add_argument("-n", type=int, metavar="N", help="samples of the model (default 5000)")
    parser.add_argument("--labels", metavar="HOW", help="balanced (default): classes in turn; or random")
    add_sampling(parser)
    parser.add_argument(
        "--train",
        metavar="SET",
        help="training images, to look for copies; default: those of a named held-out reference; none for none",
    )
    parser.add_argument("--sweep", metavar="SCALES", help="measure these guidance scales as well, as in 1,1.5,2,3")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write a page with images and plots there")
    parser.add_argument("--protocol", metavar="NAME", help="aim-paper: everything that the paper's numbers need")
    add_measuring(parser)
    add_placement(parser)
    add_engine(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measure, print and write."""
    from aimamba.cli.output import output_file, output_folder, print_table, write_json
    from aimamba.devices import resolve_device
    from aimamba.evaluation.compare import compare
    from aimamba.evaluation.features import open_extractor
    from aimamba.evaluation.protocol import check_paper_reference
    from aimamba.evaluation.report import write_report
    from aimamba.evaluation.settings import general_settings
    from aimamba.evaluation.sources import open_source
    from aimamba.evaluation.summary import summary

    _check(arguments)
    device = resolve_device(arguments.device)
    file = output_file("--json", arguments.json)
    folder = None if arguments.report is None else output_folder(arguments.report, "--report")
    scales = _scales(arguments.sweep)
    samples, drawing = _samples(arguments)
    sizes = {"size": arguments.size, "default_size": samples.size or None}
    reference = open_source(arguments.reference, **sizes, progress=True)
    if arguments.protocol is not None:
        check_paper_reference(reference)
    name = _train_name(arguments)
    train = None if name is None else open_source(name, **sizes, progress=True)
    extractor = open_extractor(arguments.features, device=device)
    found = compare(samples, reference, extractor, train=train, progress=True)
    if scales:
        found.numbers["guidance"] = _sweep(samples, scales, reference, extractor, found.numbers)
    print_table(summary(found.network, found.numbers))
    settings = {
        "samples": {"name": samples.name, "count": len(samples), "size": samples.size, **drawing},
        "reference": {"name": reference.name, "count": len(reference), "size": reference.size},
        **({} if train is None else {"train": {"name": train.name, "count": len(train)}}),
        **({} if arguments.protocol is None else {"protocol": arguments.protocol}),
        **general_settings(extractor),
    }
    write_json(file, {found.network: found.numbers, "settings": settings})
    if folder is not None:
        write_report(folder, found, settings, samples=samples, reference=reference, train=train)
        print(f"report: {folder / 'index.html'}")


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be meant, and fill in what the protocol fixes or nobody said."""
    from aimamba.evaluation import protocol

    given = arguments.protocol
    if given is not None and given not in protocol.PROTOCOLS:
        raise ConfigError(f"--protocol must be {' or '.join(protocol.PROTOCOLS)}, got {given!r}")
    if (arguments.samples is None) == (arguments.model is None):
        raise ConfigError("evaluate: give either SAMPLES or --model MODEL")
    if arguments.model is None and (given is not None or arguments.sweep is not None):
        raise ConfigError("evaluate: --protocol and --sweep draw samples, so they need --model MODEL")
    if arguments.model is None and (arguments.n is not None or arguments.labels is not None):
        raise ConfigError("evaluate: -n and --labels are for samples drawn with --model")
    n, labels = (5000, "balanced") if given is None else (protocol.IMAGES, protocol.LABELS)
    for name, fixed in (("n", n), ("labels", labels)):
        value = getattr(arguments, name)
        if given is not None and value not in (None, fixed):
            raise ConfigError(f"--protocol {given} fixes {name} {fixed}, got {value}")
        setattr(arguments, name, fixed if value is None else value)
    if given is not None and arguments.features == "lite0":
        arguments.features = "inception"
    require_positive(n=arguments.n, batch_size=arguments.batch_size)


def _scales(text: str | None) -> list[float]:
    """Guidance scales by commas, each once.

    Raises:
        ConfigError: One is no number, or below 0.
    """
    try:
        scales = [float(part) for part in (text or "").split(",") if part.strip()]
    except ValueError as error:
        raise ConfigError(f"--sweep expects numbers by commas, as in 1,1.5,2, got {text!r}") from error
    if any(not 0 <= scale < float("inf") for scale in scales):
        raise ConfigError(f"--sweep expects guidance scales of 0 or more, got {text!r}")
    return list(dict.fromkeys(scales))


def _sweep(
    samples: "Source", scales: list[float], reference: "Source", extractor: "Extractor", numbers: dict[str, Any]
) -> list[dict[str, float]]:
    """Numbers by guidance scale: those already known, and those of further scales."""
    from aimamba.evaluation.compare import compare
    from aimamba.evaluation.sources import ModelSource

    assert isinstance(samples, ModelSource)
    known = {samples.config.cfg_scale: numbers}
    for scale in scales:
        if scale not in known:
            known[scale] = compare(samples.guided(scale), reference, extractor, progress=True).numbers
    entries = []
    for scale, found in sorted(known.items()):
        single = {key: value for key, value in found.items() if isinstance(value, float)}
        judged = {"recognised": found["recognition"]["share"]} if "recognition" in found else {}
        entries.append({"cfg_scale": scale, **single, **judged})
    return entries


def _samples(arguments: argparse.Namespace) -> "tuple[Source, dict[str, Any]]":
    """The samples, and how they are drawn."""
    from dataclasses import fields

    from aimamba.cli.sample import check_parts
    from aimamba.config import from_mapping, to_mapping
    from aimamba.devices import resolve_device, resolve_dtype
    from aimamba.evaluation.protocol import aim_paper
    from aimamba.evaluation.sources import ModelSource, make_labels, open_source
    from aimamba.generation import SamplingConfig
    from aimamba.pipeline import Pipeline

    if arguments.model is None:
        return open_source(arguments.samples, size=arguments.size, progress=True), {}
    values = {field.name: getattr(arguments, field.name) for field in fields(SamplingConfig)}
    config = from_mapping(SamplingConfig, values, where="evaluate")
    device, dtype = resolve_device(arguments.device), resolve_dtype(arguments.dtype)
    check_parts(arguments.model, arguments.tokenizer)
    pipeline = Pipeline.from_pretrained(
        arguments.model, tokenizer=arguments.tokenizer, device=device, dtype=dtype, engine=arguments.engine
    )
    shape = pipeline.generator.config
    if arguments.protocol is not None:
        config = aim_paper(config, shape)
    labels = make_labels(arguments.labels, arguments.n, shape.num_classes, config.seed)
    source = ModelSource(arguments.model, pipeline, labels, config, arguments.batch_size)
    drawing = {
        "labels": arguments.labels,
        "sampling": to_mapping(config),
        "decode_position_shift": shape.decode_position_shift,
        "dtype": arguments.dtype,
    }
    return source, drawing


def _train_name(arguments: argparse.Namespace) -> str | None:
    """The training set that was given, or the one that belongs to a whole held-out reference."""
    if arguments.train is not None:
        return None if arguments.train == "none" else str(arguments.train)
    return spec.training_set_of(arguments.reference)
