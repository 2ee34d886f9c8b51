"""Which runs a study is made of, in their order, and making those that are missing."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

from aimamba.pipeline import Pipeline
from aimamba.studies.evaluator import Measure, judged
from aimamba.studies.provenance import provenance
from aimamba.studies.recipe import EvaluationConfig, StudyRecipe, Variant
from aimamba.studies.results import Results
from aimamba.studies.runner import StudyRunner


class Job(NamedTuple):
    """A run: its name in the results, and what makes its numbers."""

    name: str
    work: Callable[[], dict[str, Any]]


def run_jobs(
    jobs: Iterable[Job], results: Results, *, device: torch.device, say: Callable[[str], None] = lambda line: None
) -> None:
    """Make every run that ``results`` does not hold yet, and add it; a plan may look at those before.

    Args:
        jobs: The plan.
        results: Written after every run.
        device: Kept with the numbers.
        say: Told the name of each run when it begins.
    """
    for job in jobs:
        if job.name not in results.runs:
            say(f"{results.study}: {job.name}")
            results.add(job.name, {**job.work(), "provenance": provenance(device)})


def training_jobs(workshop: StudyRunner, measure: Measure, runs: Mapping[str, Mapping[str, Any]]) -> Iterator[Job]:
    """The plan of a study that trains.

    Args:
        workshop: Where.
        measure: Judges.
        runs: Numbers of the runs that are finished; those of the learning rates are looked at when they are there.
    """
    study = workshop.study
    rates: dict[str, float | None] = {}
    if study.kind == "baseline":
        for family in dict.fromkeys(variant.family for variant in study.variants):
            smallest = next(variant for variant in study.variants if variant.family == family)
            yield from _sweep(workshop, smallest)
            rates[family] = best_lr(study, smallest, runs)
        for variant in study.variants:
            yield Job(f"speed-{variant.name}", partial(workshop.time_sampling, variant))
    for variant in study.variants:
        for seed in variant.seeds or study.seeds:
            name = f"{variant.name}-seed-{seed}"
            lr = rates.get(variant.family)
            yield Job(name, partial(workshop.train_and_judge, name, variant, measure, seed=seed, lr=lr))


def _sweep(workshop: StudyRunner, variant: Variant) -> Iterator[Job]:
    """Short runs of one variant at every learning rate."""
    study = workshop.study
    assert study.sweep is not None
    budget = max(1, round(workshop.budget * study.sweep.share))
    seed = (variant.seeds or study.seeds)[0]
    for lr in study.sweep.lrs:
        name = sweep_name(variant, lr)
        yield Job(name, partial(workshop.train, name, variant, seed=seed, budget=budget, lr=lr))


def sweep_name(variant: Variant, lr: float) -> str:
    """Name of the short run of ``variant`` at a learning rate."""
    return f"sweep-{variant.name}-lr-{lr:g}"


def best_lr(study: StudyRecipe, variant: Variant, runs: Mapping[str, Mapping[str, Any]]) -> float:
    """The learning rate whose short run has the fewest held-out bits; a run that fell apart has none."""
    assert study.sweep is not None

    def bits(lr: float) -> float:
        found = runs[sweep_name(variant, lr)]["held_out"]["bits_per_token"]
        return float("inf") if found is None else float(found)

    return min(study.sweep.lrs, key=bits)


def guidance_jobs(pipeline: Pipeline, judging: EvaluationConfig, measure: Measure) -> Iterator[Job]:
    """The plan of a study that draws with one model under every setting of guidance."""
    for sampling in judging.samplings():
        name = f"{sampling.cfg_schedule}-{sampling.cfg_scale:g}"
        yield Job(name, lambda sampling=sampling: {"samples": [judged(pipeline, sampling, measure)]})  # type: ignore[misc]
