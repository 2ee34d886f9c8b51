"""The runs of a study in their order, and running those that are missing."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

from aimamba.pipeline import Pipeline
from aimamba.studies.evaluator import Evaluator, evaluate_sampling
from aimamba.studies.fine_tuner import FineTuner
from aimamba.studies.provenance import provenance
from aimamba.studies.recipe import StudyRecipe, Variant
from aimamba.studies.results import Results
from aimamba.studies.runner import StudyRunner
from aimamba.studies.settings import EvaluationConfig, guidance_name
from aimamba.studies.speed import guidance_speed


class Job(NamedTuple):
    """A run: its name in the results, and the function that returns its numbers."""

    name: str
    work: Callable[[], dict[str, Any]]


def run_jobs(
    jobs: Iterable[Job], results: Results, *, device: torch.device, log: Callable[[str], None] = lambda line: None
) -> None:
    """Run every job whose name is not in ``results`` yet, and add its numbers.

    Args:
        jobs: The plan. It is read lazily, so it may depend on the results of earlier jobs.
        results: Written after every run.
        device: Recorded with the numbers.
        log: Progress callback: called with a line when a run begins.
    """
    for job in jobs:
        if job.name not in results.runs:
            log(f"{results.study}: {job.name}")
            results.add(job.name, {**job.work(), "provenance": provenance(device)})


def training_jobs(runner: StudyRunner, evaluator: Evaluator, runs: Mapping[str, Mapping[str, Any]]) -> Iterator[Job]:
    """Yield the jobs of a study that trains generators.

    Args:
        runner: Trains and times the variants.
        evaluator: Measures samples of the trained generators.
        runs: Numbers of the finished runs. In ``baseline`` those of the learning-rate sweep are read once it is done.
    """
    study = runner.study
    rates: dict[str, float | None] = {}
    if study.kind == "baseline":
        for family in dict.fromkeys(variant.family for variant in study.variants):
            smallest = next(variant for variant in study.variants if variant.family == family)
            yield from _sweep(runner, smallest)
            rates[family] = best_lr(study, smallest, runs)
        for variant in study.variants:
            yield Job(f"speed-{variant.name}", partial(runner.measure_speed, variant))
    for variant in study.variants:
        for seed in variant.seeds or study.seeds:
            name = f"{variant.name}-seed-{seed}"
            lr = rates.get(variant.family)
            yield Job(name, partial(runner.train_and_evaluate, name, variant, evaluator, seed=seed, lr=lr))


def _sweep(runner: StudyRunner, variant: Variant) -> Iterator[Job]:
    """Yield a short run of one variant for every learning rate."""
    study = runner.study
    assert study.sweep is not None
    budget = max(1, round(runner.budget * study.sweep.share))
    seed = (variant.seeds or study.seeds)[0]
    for lr in study.sweep.lrs:
        name = sweep_name(variant, lr)
        yield Job(name, partial(runner.train, name, variant, seed=seed, budget=budget, lr=lr))


def sweep_name(variant: Variant, lr: float) -> str:
    """Return the name of the short run of ``variant`` at a learning rate."""
    return f"sweep-{variant.name}-lr-{lr:g}"


def best_lr(study: StudyRecipe, variant: Variant, runs: Mapping[str, Mapping[str, Any]]) -> float:
    """Return the learning rate with the fewest held-out bits in its short run; a run that diverged never wins."""
    assert study.sweep is not None

    def bits(lr: float) -> float:
        found = runs[sweep_name(variant, lr)]["held_out"]["bits_per_token"]
        return float("inf") if found is None else float(found)

    return min(study.sweep.lrs, key=bits)


def guidance_speed_job(pipeline: Pipeline, study: StudyRecipe) -> Job:
    """Return the job that measures the speed of a model with every guidance setting."""
    samplings, batch = study.judging.samplings(), max(study.speed.batches)
    return Job("speed", lambda: {"speed": guidance_speed(pipeline, samplings, batch)})


def fine_tuning_jobs(tuner: FineTuner, evaluator: Evaluator) -> Iterator[Job]:
    """Yield the jobs of a study that fine-tunes one model in several ways and samples the results."""
    for variant in tuner.study.variants:
        for seed in variant.seeds or tuner.study.seeds:
            name = f"{variant.name}-seed-{seed}"
            yield Job(name, partial(tuner.train_and_evaluate, name, variant, evaluator, seed=seed))


def guidance_jobs(pipeline: Pipeline, judging: EvaluationConfig, evaluator: Evaluator) -> Iterator[Job]:
    """Yield the jobs of a study that samples one model with every guidance setting."""
    for sampling in judging.samplings():
        name = guidance_name(sampling)
        yield Job(name, lambda sampling=sampling: {"samples": [evaluate_sampling(pipeline, sampling, evaluator)]})  # type: ignore[misc]
