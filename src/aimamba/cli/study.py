"""Answer a question by several runs: the paper's studies, on avatars.

NAME is the name of a packaged study (ablation, baseline, guidance, scaling) or the path of a .toml file. The study's
folder gets the runs, results.json with their raw numbers, table.md and figure.png. The same command continues a study
that was stopped, and repeats no run that is finished.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aimamba.cli.arguments import Parser, require_positive
from aimamba.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from aimamba.models.pretrained import PretrainedModel
    from aimamba.studies.recipe import StudyRecipe
    from aimamba.studies.results import Results

_MODEL = "avatars-64"


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("study", metavar="NAME", nargs="?", help="without one, those packaged are named")
    parser.add_argument(
        "--budget",
        type=int,
        metavar="IMAGES",
        help="images that every run trains on; in guidance, that every setting draws (default: the study's)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the study (default: studies/NAME)")
    parser.add_argument("--tokenizer", metavar="MODEL", help=f"whose codes the generators learn (default: {_MODEL})")
    parser.add_argument("--model", metavar="MODEL", help=f"what the study guidance draws with (default: {_MODEL})")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 or mps")
    parser.add_argument("--report-only", action="store_true", help="make table and figure again, and run nothing")


def run(arguments: argparse.Namespace) -> None:
    """Make the runs that are missing, then table and figure."""
    from aimamba.cli.output import output_folder
    from aimamba.devices import resolve_device
    from aimamba.studies.figures import require_matplotlib
    from aimamba.studies.recipe import load_study, study_names
    from aimamba.studies.report import write_report
    from aimamba.studies.results import RESULTS_FILE, Results

    if arguments.study is None:
        raise ConfigError(f"study: no study given; expected one of {', '.join(study_names())}")
    if arguments.budget is not None:
        require_positive(budget=arguments.budget)
    name = Path(arguments.study).stem
    study = load_study(arguments.study)
    _check_models(study, arguments)
    device = resolve_device(arguments.device)
    out = output_folder(arguments.out or Path("studies") / name)
    require_matplotlib()
    if arguments.report_only:
        results = Results.read(out / RESULTS_FILE, name)
    else:
        draw = _draw if study.kind == "guidance" else _train
        results = draw(study, name, arguments, out, device)
    table, figure = write_report(results)
    print(f"{len(results.runs)} runs in {results.path}; {table}, {figure}")


def _check_models(study: "StudyRecipe", arguments: argparse.Namespace) -> None:
    if study.kind == "guidance" and arguments.tokenizer is not None:
        raise ConfigError("study guidance draws with a whole model: give it with --model instead of --tokenizer")
    if study.kind != "guidance" and arguments.model is not None:
        raise ConfigError(f"study {study.kind} trains its models: give their tokenizer with --tokenizer, not --model")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _judge(study: "StudyRecipe", samples: int, size: int, device: "torch.device") -> "SampleEvaluator":
    from aimamba.evaluation.features import open_extractor
    from aimamba.evaluation.sources import open_source
    from aimamba.studies.evaluator import SampleEvaluator

    reference = open_source(study.judging.reference, default_size=size, progress=True)
    extractor = open_extractor("lite0", device=device)
    return SampleEvaluator(reference, extractor, size=size, samples=samples, batch_size=study.judging.batch_size)


def _begin(
    study: "StudyRecipe", name: str, out: Path, *, budget: int, model: str, parts: "Sequence[PretrainedModel[Any]]"
) -> "Results":
    """Results of a study, begun or taken up, with what they depend on."""
    from aimamba.config import to_mapping
    from aimamba.studies.provenance import weights_hash
    from aimamba.studies.results import RESULTS_FILE, Results

    weights = [weights_hash(part) for part in parts]
    settings = {"budget": budget, "model": model, "weights": weights, "recipe": to_mapping(study)}
    return Results.begin(out / RESULTS_FILE, name, settings)


def _train(
    study: "StudyRecipe", name: str, arguments: argparse.Namespace, out: Path, device: "torch.device"
) -> "Results":
    """Make the runs of a study that trains."""
    from aimamba.models import VQModel
    from aimamba.studies.plan import run_jobs, training_jobs
    from aimamba.studies.runner import StudyRunner

    budget = study.budget if arguments.budget is None else arguments.budget
    source = arguments.tokenizer or _MODEL
    tokenizer = VQModel.from_pretrained(source, device=device)
    workshop = StudyRunner(
        study,
        out,
        budget=budget,
        tokenizer=tokenizer,
        tokenizer_name=source,
        device=device,
        say=_say,
    )
    results = _begin(study, name, out, budget=budget, model=source, parts=(tokenizer,))
    judge = _judge(study, study.judging.samples, study.data.size, device)
    run_jobs(training_jobs(workshop, judge, results.runs), results, device=device, say=_say)
    return results


def _draw(
    study: "StudyRecipe", name: str, arguments: argparse.Namespace, out: Path, device: "torch.device"
) -> "Results":
    """Make the runs of a study that draws with one model."""
    from aimamba.pipeline import Pipeline
    from aimamba.studies.plan import guidance_jobs, run_jobs

    budget = study.budget if arguments.budget is None else arguments.budget
    source = arguments.model or _MODEL
    pipeline = Pipeline.from_pretrained(source, device=device)
    results = _begin(study, name, out, budget=budget, model=source, parts=(pipeline.tokenizer, pipeline.generator))
    judge = _judge(study, budget, pipeline.image_size, device)
    run_jobs(guidance_jobs(pipeline, study.judging, judge), results, device=device, say=_say)
    return results
