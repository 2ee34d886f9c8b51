"""Run a study: several trainings or settings, compared in one table and figure.

NAME is the name of a packaged study (ablation, baseline, exposure-bias, guidance, guidance-free, mixer, scaling, text,
tokenizer) or the path of a .toml file. The study's folder gets the runs, results.json with their raw numbers, table.md
and figure.png. The same command continues a study that was stopped; finished runs are not repeated.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from aimamba.cli.arguments import Parser
from aimamba.errors import ConfigError, printable

if TYPE_CHECKING:
    import torch

    from aimamba.studies.results import Results
    from aimamba.studies.run import StudyRequest


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("study", metavar="NAME", nargs="?", help="name of a study, or path of a .toml file")
    parser.add_argument(
        "--budget",
        type=int,
        metavar="IMAGES",
        help="training images per run; in guidance, samples per setting (default: the study's)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the study (default: studies/NAME)")
    parser.add_argument("--tokenizer", metavar="MODEL", help="tokenizer of the training images (default: avatars-64)")
    parser.add_argument(
        "--model", metavar="MODEL", help="model that guidance and guidance-free start from (default: avatars-64)"
    )
    parser.add_argument("--text-encoder", metavar="DIR", help="frozen sentence encoder of the study text")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 or mps")
    parser.add_argument("--report-only", action="store_true", help="write table and figure again, and run nothing")


def run(arguments: argparse.Namespace) -> None:
    """Do the missing runs, then write table and figure."""
    from aimamba.cli.output import output_folder, print_line
    from aimamba.devices import resolve_device
    from aimamba.studies.figures import require_matplotlib
    from aimamba.studies.recipe import load_study, study_names
    from aimamba.studies.report import write_report
    from aimamba.studies.run import StudyRequest

    if arguments.study is None:
        raise ConfigError(f"study: no study given; expected one of {', '.join(study_names())}")
    name = Path(arguments.study).stem
    request = StudyRequest(
        name=name,
        study=load_study(arguments.study),
        out=output_folder(arguments.out or Path("studies") / name),
        budget=arguments.budget,
        tokenizer=arguments.tokenizer,
        model=arguments.model,
        text_encoder=arguments.text_encoder,
    )
    device = resolve_device(arguments.device)
    require_matplotlib()
    results = request.read_results() if arguments.report_only else _run(request, device)
    written = write_report(results)
    print_line(f"{len(results.runs)} runs in {results.path}; {', '.join(map(str, written))}")


def _run(request: "StudyRequest", device: "torch.device") -> "Results":
    """Load the model of the study and do the missing runs."""
    from aimamba.models import VQModel
    from aimamba.pipeline import Pipeline
    from aimamba.studies.run import run_guidance_study, run_tokenizer_study, run_training_study

    if request.trains_tokenizers:
        return run_tokenizer_study(request, device=device, log=_log)
    if request.samples_one_model:
        pipeline = Pipeline.from_pretrained(request.source, device=device)
        return run_guidance_study(request, pipeline, device=device, log=_log)
    tokenizer = VQModel.from_pretrained(request.source, device=device)
    return run_training_study(request, tokenizer, device=device, log=_log)


def _log(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)
