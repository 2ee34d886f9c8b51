"""One study from a request to its results."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import torch

from aimamba.config import check, to_mapping
from aimamba.evaluation.features import open_extractor
from aimamba.evaluation.lpips import open_lpips
from aimamba.evaluation.sources import open_source
from aimamba.evaluation.tokenizer import compare_tokenizer
from aimamba.models import VQModel
from aimamba.pipeline import Pipeline
from aimamba.studies.caption_evaluator import CaptionEvaluator
from aimamba.studies.evaluator import Evaluator, QualityBesideReconstructions, SampleEvaluator
from aimamba.studies.fine_tuner import FineTuner
from aimamba.studies.plan import fine_tuning_jobs, guidance_jobs, guidance_speed_job, run_jobs, training_jobs
from aimamba.studies.recipe import StudyRecipe
from aimamba.studies.results import RESULTS_FILE, Results
from aimamba.studies.runner import StudyRunner
from aimamba.studies.settings import check_budget
from aimamba.studies.tokenizers import TokenizerStudy, check_tokenizers
from aimamba.train.lock import locked

DEFAULT_MODEL = "avatars-64"
_NETWORK = "lite0"

Log = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class StudyRequest:
    """Which study to run, with which models and where.

    Attributes:
        name: Name of the study in its results.
        study: Its recipe.
        out: Its folder.
        budget: Images that every run trains on (``guidance``: generates); the recipe's budget by default.
        tokenizer: Name of the tokenizer whose codes the generators learn; not for studies of one model.
        model: Name of the model that ``guidance`` samples and ``guidance-free`` fine-tunes; for no other study.
        text_encoder: The frozen sentence encoder, where the study has one, instead of the one that it names.

    Raises:
        ConfigError: The budget is below 1 or too large, or the study does not use the kind of model that is given.
    """

    name: str
    study: StudyRecipe
    out: Path
    budget: int | None = None
    tokenizer: str | None = None
    model: str | None = None
    text_encoder: str | None = None

    def __post_init__(self) -> None:
        if self.budget is not None:
            check_budget(self.budget, "--budget", compared=self.study.kind == "guidance")
        check(
            not self.samples_one_model or self.tokenizer is None,
            f"study {self.study.kind} samples a whole model: give it with --model instead of --tokenizer",
        )
        check(
            not self.trains_tokenizers or (self.tokenizer is None and self.model is None),
            "study tokenizer trains its own tokenizers; leave --tokenizer and --model out",
        )
        check(
            self.samples_one_model or self.model is None,
            f"study {self.study.kind} trains its models: give their tokenizer with --tokenizer, not --model",
        )

    @property
    def samples_one_model(self) -> bool:
        """Whether the study samples one model, and perhaps what is fine-tuned from it, instead of training several."""
        return self.study.kind in ("guidance", "guidance-free")

    @property
    def trains_tokenizers(self) -> bool:
        """Whether the study trains a tokenizer for each of its generators."""
        return self.study.kind == "tokenizer"

    @property
    def source(self) -> str:
        """Name of the model, or of the tokenizer, to load for the study; of one that trains its own, nothing."""
        return "" if self.trains_tokenizers else self.model or self.tokenizer or DEFAULT_MODEL

    @property
    def images(self) -> int:
        """The budget: images that every run trains on or generates."""
        return self.study.budget if self.budget is None else self.budget

    def read_results(self) -> Results:
        """Return the results of runs so far.

        Raises:
            ConfigError: There are none, or the file holds something else.
        """
        return Results.read(self.out / RESULTS_FILE, self.name)


def run_training_study(request: StudyRequest, tokenizer: VQModel, *, device: torch.device, log: Log) -> Results:
    """Run what is missing of a study that trains generators.

    Args:
        request: The study.
        tokenizer: The loaded ``request.source``.
        device: Where everything runs.
        log: Progress callback: called with a line before each step that takes long.

    Raises:
        ConfigError: Tokenizer, images and variants do not fit each other, or the folder holds results of other
            settings.
        DataError: The reference cannot be opened, or its images have another size.
    """
    study = request.study if request.text_encoder is None else request.study.with_text_encoder(request.text_encoder)
    runner = StudyRunner(
        study,
        request.out,
        budget=request.images,
        tokenizer=tokenizer,
        tokenizer_name=request.source,
        device=device,
        log=log,
    )
    with locked(request.out):
        results = _begin(request, [tokenizer.fingerprint(), *dict.fromkeys(runner.text_encoders.values())])
        evaluator = _evaluator(study, study.judging.samples, study.data.size, device)
        run_jobs(training_jobs(runner, evaluator, results.runs), results, device=device, log=log)
    return results


def run_tokenizer_study(request: StudyRequest, *, device: torch.device, log: Log) -> Results:
    """Run what is missing of a study that trains tokenizers, and a generator on the codes of each.

    Args:
        request: The study.
        device: Where everything runs.
        log: Progress callback: called with a line before each step that takes long.

    Raises:
        ConfigError: A setting is unknown or out of range, a perceptual network is not installed, or the folder holds
            results of other settings.
        CheckpointError: The weights of a perceptual network are missing or damaged.
        DataError: A reference cannot be opened, or its images have another size.
    """
    study = request.study
    assert study.tokenizer is not None
    check_tokenizers(study, request.images)
    size, extractor = study.data.size, open_extractor(_NETWORK, device=device)
    images = open_source(study.tokenizer.reference, default_size=size, progress=True)
    check(
        images.size == size,
        f"tokenizer.reference {images.name} has images of {images.size} pixels, and data.size is {size}; name a set of "
        f"{size} pixels",
    )
    lpips = open_lpips("auto", size, device=device)
    with locked(request.out):
        study_of_tokenizers = TokenizerStudy(
            study,
            request.out,
            budget=request.images,
            compare=partial(compare_tokenizer, images=images, extractor=extractor, lpips=lpips, progress=True),
            evaluator=_evaluator(study, study.judging.samples, size, device),
            device=device,
            log=log,
        )
        results = _begin(request, [])
        run_jobs(study_of_tokenizers.jobs(), results, device=device, log=log)
    return results


def run_guidance_study(request: StudyRequest, pipeline: Pipeline, *, device: torch.device, log: Log) -> Results:
    """Run what is missing of a study that samples one model with every guidance setting, and fine-tunes of it.

    Args:
        request: The study.
        pipeline: The loaded ``request.source``.
        device: Where the pipeline runs.
        log: Progress callback: called with a line when a run begins.

    Raises:
        ConfigError: The folder holds results of other settings, or another process is writing to it; or a setting of
            fine-tuning is unknown or out of range.
        DataError: The reference cannot be opened, or its images have another size.
    """
    study, fine_tuned = request.study, request.study.kind == "guidance-free"
    tuner = FineTuner(study, request.out, init=request.source, budget=request.images, device=device, log=log)
    with locked(request.out):
        results = _begin(request, [part.fingerprint() for part in (pipeline.tokenizer, pipeline.generator)])
        samples = study.judging.samples if fine_tuned else request.images
        evaluator = _evaluator(study, samples, pipeline.image_size, device)
        speed = [guidance_speed_job(pipeline, study)] if fine_tuned else []
        jobs = chain(speed, fine_tuning_jobs(tuner, evaluator), guidance_jobs(pipeline, study.judging, evaluator))
        run_jobs(jobs, results, device=device, log=log)
    return results


def _begin(request: StudyRequest, weights: list[str]) -> Results:
    """Start or continue the results, with everything that they depend on."""
    recipe = to_mapping(request.study)
    recipe["data"].pop("workers")  # which decide nothing
    for variant in recipe["variants"]:
        for name in ("task", "tokenizer", "tokenizer_task"):
            if not variant[name]:
                del variant[name]  # as in results of earlier versions
    if not recipe["judging"]["intervals"]:
        del recipe["judging"]["intervals"]
    settings = {
        "budget": request.images,
        "model": request.source,
        "weights": weights,
        "recipe": recipe,
    }
    return Results.begin(request.out / RESULTS_FILE, request.name, settings)


def _evaluator(study: StudyRecipe, samples: int, size: int, device: torch.device) -> Evaluator:
    judging, extractor = study.judging, open_extractor(_NETWORK, device=device)
    if study.kind == "text":
        return CaptionEvaluator(judging.reference, extractor, size=size, samples=samples, batch_size=judging.batch_size)
    reference = open_source(judging.reference, default_size=size, progress=True)
    kind = QualityBesideReconstructions if study.kind == "guidance-free" else SampleEvaluator
    return kind(reference, extractor, size=size, samples=samples, batch_size=judging.batch_size)
