"""Compare samples with real images.

SAMPLES and the reference each name a set of images, as described below: avatars-64:held-out, a folder (sub-folders are
classes) or an .npz file. With --model instead of SAMPLES, a model is sampled and its images are measured as they are
generated; the same command continues one that was interrupted. Several GPUs share the work with --devices or under
torchrun, with the same numbers: torchrun --nproc-per-node 8 -m aimamba evaluate ... Several SAMPLES are measured as one
set. Prints distances, precision and recall; if both sets have the same classes, the 5-NN accuracy of the samples; and
if training images are known, whether samples are copies of them.
"""

import argparse
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from aimamba.cli.arguments import (
    Parser,
    add_engine,
    add_foreign_tokenizer,
    add_measuring,
    add_placement,
    add_sampling,
    add_sweep,
    batch_size_of,
    load_pipeline,
    sampling_of,
    scales_of,
)
from aimamba.cli.kept import kept_samples
from aimamba.cli.many import add_devices, crew, started
from aimamba.data import spec
from aimamba.errors import Faults

if TYPE_CHECKING:
    from aimamba.evaluation.run import Evaluation, EvaluationRequest
    from aimamba.pipeline import Pipeline
    from aimamba.sharing import Sharing


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.epilog = spec.__doc__
    parser.add_argument(
        "samples", nargs="*", metavar="SAMPLES", help="the set to measure, see below; several are measured as one"
    )
    parser.add_argument("--reference", required=True, metavar="SET", help="set of real images, see below")
    parser.add_argument("--model", metavar="MODEL", help="sample this model instead: a folder, a run or a hub id")
    parser.add_argument("--tokenizer", metavar="MODEL", help="the tokenizer, if MODEL does not include one")
    parser.add_argument("-n", type=int, metavar="N", help="samples of the model (default 5000)")
    parser.add_argument("--labels", metavar="HOW", help="balanced (default): classes in turn; or random")
    add_foreign_tokenizer(parser)
    add_sampling(parser, fitting=True)
    parser.add_argument(
        "--train",
        metavar="SET",
        help="training images, to search for copies; default: those of a whole named held-out set; none: no search",
    )
    add_sweep(parser)
    parser.add_argument("--report", type=Path, metavar="DIR", help="write an HTML report to DIR")
    parser.add_argument("--save-npz", type=Path, metavar="FILE", help="write the samples to this .npz file as well")
    parser.add_argument("--skip-broken", action="store_true", help="leave out image files that cannot be read")
    parser.add_argument(
        "--protocol",
        metavar="NAME",
        help="aim-paper: the settings of the paper's numbers; a smaller -n or --features lite0 is a rehearsal",
    )
    add_measuring(parser)
    parser.set_defaults(features=None)  # lite0, or Inception with the protocol
    add_placement(parser)
    add_devices(parser)
    add_engine(parser)


def run(arguments: argparse.Namespace) -> None:
    """Evaluate, print and write."""
    from aimamba.cli.output import locked_parts, output_file, output_folder, require_apart
    from aimamba.devices import resolve_device
    from aimamba.distributed import find_place, one_voice
    from aimamba.evaluation.run import evaluate

    if started(arguments):
        return
    with one_voice(find_place()):
        request = _request(arguments)
        file = output_file("--json", arguments.json)
        folder = None if arguments.report is None else output_folder(arguments.report, "--report")
        saved = output_file("--save-npz", arguments.save_npz, suffix=".npz")
        sets = (*request.sample_sets, request.reference, request.train)
        written = [("--json", file), ("--report", folder), ("--save-npz", saved)]
        require_apart(written, spec.paths_of(filter(None, sets), missing_ok=True))
    with crew(arguments, "the same command goes on with the samples that are finished") as sharing:
        device, faults = resolve_device(arguments.device), Faults()
        pipeline = sharing.in_turn(lambda: _load(arguments, request, saved, faults, sharing))
        if pipeline is not None:
            request = replace(request, sampling=pipeline.settings(request.sampling))
            guided = request.protocol is not None or {request.sampling.cfg_scale, *(request.sweep or ())} != {1.0}
            size = batch_size_of(arguments, pipeline, request.sample_count, sharing, guided=guided)
            request = replace(request, batch_size=size)
        with ExitStack() as stack:
            if saved is not None:
                parts = locked_parts(saved.with_name(f"{saved.name}.parts"))
                sharing.in_first(lambda: stack.enter_context(parts), None)
            keep = None
            if pipeline is not None and request.model is not None:
                record = pipeline.record(request.model)
                keep = stack.enter_context(kept_samples(record, request.labelling, request.sampling, sharing))
            evaluation = evaluate(
                request,
                pipeline=pipeline,
                device=device,
                keep=keep,
                save_npz=saved,
                progress=sharing.is_first,
                sharing=sharing,
                faults=faults,
            )
            sharing.in_first(lambda: _write(evaluation, file, folder), None)
        if sharing.is_first:
            _print(request, evaluation, pipeline, saved, folder)


def _load(
    arguments: argparse.Namespace,
    request: "EvaluationRequest",
    saved: Path | None,
    faults: Faults,
    sharing: "Sharing",
) -> "Pipeline | None":
    """Load and prepare the model, and check that there is room for its samples.

    Raises:
        AimambaError: The model is missing; the message also names what else is.
    """
    from aimamba.cli.output import require_space
    from aimamba.data.npz import npz_bytes
    from aimamba.evaluation.run import check_rest
    from aimamba.files import cache_folder

    if request.model is None:
        return None

    def load() -> "Pipeline":
        pipeline = load_pipeline(arguments, quiet=not sharing.is_first)
        pipeline.prepare()
        return pipeline

    pipeline = faults.attempt(load)
    if pipeline is None:
        check_rest(request, faults)
        faults.report()
    assert pipeline is not None
    count, size = request.sample_count, pipeline.image_size
    codes = 4 * count * pipeline.grid**2 * (1 + len(request.sweep or ()))
    faults.attempt(lambda: require_space(cache_folder(), codes, "keeping the samples' codes (AIMAMBA_CACHE)"))
    if saved is not None:
        faults.attempt(lambda: require_space(saved.parent, npz_bytes(count, size), f"--save-npz {saved}"))
    return pipeline


def _write(evaluation: "Evaluation", file: Path | None, folder: Path | None) -> None:
    from aimamba.cli.output import write_json
    from aimamba.evaluation.report import write_report

    write_json(file, evaluation.to_dict())  # before anything else can fail
    if folder is not None:
        write_report(folder, evaluation)


def _print(
    request: "EvaluationRequest",
    evaluation: "Evaluation",
    pipeline: "Pipeline | None",
    saved: Path | None,
    folder: Path | None,
) -> None:
    from aimamba.cli.output import print_line, print_table
    from aimamba.evaluation import protocol
    from aimamba.evaluation.summary import summary

    rows = summary(evaluation.comparison.network, evaluation.comparison.metrics)
    if pipeline and request.protocol and not request.rehearsal:
        row = protocol.row(pipeline.generator.config, evaluation.comparison.metrics)
        rows.append(("Table 2: FID | IS | precision | recall", row))
    if request.rehearsal is not None:
        rows.append((f"rehearsal of {request.protocol}", request.rehearsal))
    rows += [(f"left out of {name}", f"{count:,} files that cannot be read") for name, count in _broken(evaluation)]
    print_table(rows)
    if saved is not None:
        print_line(f"samples: {saved}")
    if folder is not None:
        print_line(f"report: {folder / 'index.html'}")


def _broken(evaluation: "Evaluation") -> list[tuple[str, int]]:
    """Return name and number of the files that were left out, for each set that had some."""
    sets = [evaluation.settings[key] for key in ("samples", "reference", "train") if key in evaluation.settings]
    return [(about["name"], about["broken"]) for about in sets if "broken" in about]


def _request(arguments: argparse.Namespace) -> "EvaluationRequest":
    from aimamba.evaluation.run import EvaluationRequest

    return EvaluationRequest(
        reference=arguments.reference,
        samples=tuple(arguments.samples),
        model=arguments.model,
        train=arguments.train,
        count=arguments.n,
        labels=arguments.labels,
        sampling=sampling_of(arguments, "evaluate"),
        batch_size=1 if arguments.batch_size is None else arguments.batch_size,  # chosen when the model is known
        dtype=arguments.dtype,
        sweep=scales_of(arguments.sweep),
        protocol=arguments.protocol,
        features=arguments.features,
        size=arguments.size,
        skip_broken=arguments.skip_broken,
    )
