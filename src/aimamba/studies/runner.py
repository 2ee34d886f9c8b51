"""Training, evaluation and timing of the generators of a study, on codes that are encoded once."""

import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from aimamba.config import check, from_mapping, to_mapping
from aimamba.data.codes import CodeSet
from aimamba.data.encoding import encode_splits
from aimamba.data.images import has_captions
from aimamba.data.sets import open_splits
from aimamba.data.shards import open_code_splits
from aimamba.errors import ConfigError
from aimamba.models import AiM, AiMConfig, VQModel
from aimamba.pipeline import Pipeline
from aimamba.seeds import seeded
from aimamba.studies.evaluator import Evaluator, evaluate
from aimamba.studies.ordered import OrderedPipeline, OrderedTask, reorder
from aimamba.studies.recipe import StudyRecipe, Variant, training_recipe
from aimamba.studies.scans import scan_order
from aimamba.studies.speed import sampling_speed
from aimamba.train.fit import Result, fit
from aimamba.train.generator_settings import GeneratorTaskConfig
from aimamba.train.reading import Reading
from aimamba.train.recipe import Recipe
from aimamba.train.settings import FitConfig
from aimamba.train.tracking import read_metrics
from aimamba.train.tuning import check_fits


class StudyCodes(NamedTuple):
    """The codes that all generators of a study learn, in raster order, and the names of the classes."""

    train: CodeSet
    held_out: CodeSet
    class_names: tuple[str, ...]


class StudyRunner:
    """Trains, evaluates and times the variants of a study.

    Attributes:
        text_encoders: Fingerprints of the frozen sentence encoders, by the names of their variants.
    """

    def __init__(
        self,
        study: StudyRecipe,
        out: Path,
        *,
        budget: int,
        tokenizer: VQModel,
        tokenizer_name: str,
        device: torch.device,
        log: Callable[[str], None],
    ) -> None:
        """Check that tokenizer, images and scan orders fit each other; nothing runs yet.

        Args:
            study: The study.
            out: Its folder; ``codes`` and ``runs`` are created there.
            budget: Images that every run trains on.
            tokenizer: Encodes the images and decodes the samples.
            tokenizer_name: Name to load the tokenizer by; recorded with the runs.
            device: Where everything runs.
            log: Progress callback: called with a line before each step that takes long.

        Raises:
            ConfigError: They do not fit, a setting of a variant is unknown or out of range, or a frozen sentence
                encoder is not there.
            CheckpointError: A frozen sentence encoder is damaged.
        """
        self.study = study
        self.budget = budget
        self._out = out
        self._tokenizer = tokenizer.to(device)
        self._name = tokenizer_name
        self._device = device
        self._log = log
        study.data.check_size(tokenizer.config.downsampling)
        self._side = study.data.size // tokenizer.config.downsampling
        self._captioned = False
        self.text_encoders: dict[str, str] = {}
        for variant in study.variants:
            scan_order(variant.order, self._side)
            recipe, config = self._recipe(variant, budget, 0, None), self.model_config(variant, classes=1)
            for note in check_new_generator(recipe, config, tokenizer, where=variant.name).unfinished(recipe.fit.steps):
                log(f"{variant.name}: {note}")
            reading = self._reading(recipe, config)
            self._captioned |= reading.text is not None
            if reading.encoder is not None:
                self.text_encoders[variant.name] = reading.encoder.fingerprint

    def model_config(self, variant: Variant, *, classes: int) -> AiMConfig:
        """Return the generator's config: settings of study and variant, and sizes from tokenizer and images."""
        fixed = {
            "vocab_size": self._tokenizer.config.codebook_size,
            "num_tokens": self._side**2,
            "num_classes": classes,
        }
        return from_mapping(AiMConfig, {**self.study.model, **variant.model, **fixed}, where=f"{variant.name}: model")

    def train(
        self, name: str, variant: Variant, *, seed: int, budget: int | None = None, lr: float | None = None
    ) -> dict[str, Any]:
        """Train a generator in ``runs/NAME``, unless it is trained already.

        Args:
            name: Name of the run.
            variant: The generator to train.
            seed: Seed of weights, order of the images and dropout.
            budget: Images to train on, instead of the study's budget.
            lr: Peak learning rate, instead of the variant's.

        Returns:
            ``variant``, ``seed``, ``order``, ``parameters``, ``non_embedding``, those of ``numbers_of_run`` and, on
            CUDA, ``train_peak_bytes``.
        """
        recipe = self._recipe(variant, self.budget if budget is None else budget, seed, lr)
        folder = self._out / "runs" / name
        extra = {} if variant.order == "raster" else {"order": variant.order}
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        result = fit(
            lambda: self._task(recipe, variant),
            recipe.fit,
            folder,
            device=self._device,
            recipe={**to_mapping(recipe), **extra},
        )
        found = {
            "variant": variant.name,
            "seed": seed,
            "order": variant.order,
            **count_parameters(AiM.from_pretrained(folder, device="meta").config),
            **numbers_of_run(folder, recipe.fit, result),
        }
        if self._device.type == "cuda":
            found["train_peak_bytes"] = torch.cuda.max_memory_allocated(self._device)
        return found

    def train_and_evaluate(
        self, name: str, variant: Variant, evaluator: Evaluator, *, seed: int, lr: float | None = None
    ) -> dict[str, Any]:
        """Train a generator and sample it with every guidance setting; adds those of ``evaluate`` to the numbers."""
        found = self.train(name, variant, seed=seed, lr=lr)
        saved = Pipeline.from_pretrained(self._out / "runs" / name, device=self._device)
        place = {**self.study.task, **variant.task}.get("text_encoder")
        pipeline = OrderedPipeline(
            self._tokenizer,
            saved.generator,
            saved.class_names,
            saved.vocabulary,
            order=variant.order,
            **({"text_encoder": place} if place else {}),
        )
        return {**found, **evaluate(pipeline, self.study.judging.samplings(), evaluator)}

    def measure_speed(self, variant: Variant) -> dict[str, Any]:
        """Return speed and memory of sampling with a generator of this shape."""
        config = self.model_config(variant, classes=len(self.codes.class_names))
        return {"variant": variant.name, "speed": sampling_speed(config, self.study.speed, self._device)}

    @cached_property
    def codes(self) -> StudyCodes:
        """Codes of all images, encoded on first use and kept in the folder ``codes``."""
        data = self.study.data
        folder = self._out / "codes"
        images = open_splits(**data.images(), progress=True)
        check(
            not self._captioned or has_captions(images.train),
            f"model.text is for images with captions, and {data.source} has none; see docs/captions.md",
        )
        for split, part in (("train", images.train), ("held-out", images.held_out)):
            self._log(f"codes of {len(part):,} {split} images in {folder / split}")
        views = data.views
        encode_splits(self._tokenizer, images, folder, views=views, progress=sys.stderr.isatty())
        codes = open_code_splits(folder, self._tokenizer)
        return StudyCodes(codes.train, codes.held_out, codes.meta.class_names)

    def _recipe(self, variant: Variant, budget: int, seed: int, lr: float | None) -> Recipe:
        return training_recipe(self.study, variant, tokenizer=self._name, budget=budget, seed=seed, lr=lr)

    def _reading(self, recipe: Recipe, config: AiMConfig) -> Reading:
        task = new_generator_task(recipe, where=recipe.description)
        return Reading(config.text, task.text_encoder, captioned=True, source=recipe.data.source)

    def _task(self, recipe: Recipe, variant: Variant) -> OrderedTask:
        order = scan_order(variant.order, self._side)
        config = self.model_config(variant, classes=len(self.codes.class_names))
        learned = self._reading(recipe, config).learn(self.codes.train, self._log)
        model = AiM(replace(config, text=learned.text))
        model.init_weights(seeded(recipe.fit.seed))
        return OrderedTask(
            model,
            self._tokenizer,
            reorder(self.codes.train, order),
            reorder(self.codes.held_out, order),
            self.codes.class_names,
            new_generator_task(recipe, where=variant.name),
            *learned.readers,
            seed=recipe.fit.seed,
            order=variant.order,
        )


def new_generator_task(recipe: Recipe, *, where: str) -> GeneratorTaskConfig:
    """Return the settings of the loss of a generator that a study trains from the beginning.

    Args:
        recipe: Its training recipe.
        where: The variant, for messages.

    Raises:
        ConfigError: A setting is unknown, out of range, or only for a generator that starts from another one.
    """
    task = from_mapping(GeneratorTaskConfig, recipe.task, where=f"{where}: task")
    check(
        not task.of_init,
        f"{where}: task.{', task.'.join(task.of_init)} is for a generator that starts from another one, and this study "
        "trains new ones; leave it out",
    )
    return task


def check_new_generator(recipe: Recipe, config: AiMConfig, tokenizer: VQModel, *, where: str) -> GeneratorTaskConfig:
    """Check the settings of the loss of a generator that a study trains, with its shape and tokenizer; return them.

    Args:
        recipe: Its training recipe.
        config: Its shape.
        tokenizer: The tokenizer of its codes, also on the meta device.
        where: The variant, for messages.

    Raises:
        ConfigError: A setting is unknown, out of range, or does not fit; see ``new_generator_task``.
    """
    task = new_generator_task(recipe, where=where)
    with of_variant(where):
        check_fits(task, config, tokenizer)
    return task


@contextmanager
def of_variant(name: str) -> Iterator[None]:
    """Name the variant in an error of its settings."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def numbers_of_run(folder: Path, config: FitConfig, result: Result) -> dict[str, Any]:
    """Return what a finished training in ``folder`` says of itself.

    Returns:
        ``lr``, ``steps``, ``pictures``, metrics ``held_out``, ``train_seconds``, and ``train_pictures_per_second``
        (median over the run).
    """
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if line["split"] == "train"]
    return {
        "lr": config.lr,
        "steps": result.steps,
        "pictures": result.steps * config.batch_size,
        "held_out": result.metrics,
        "train_seconds": lines[-1]["seconds"],
        "train_pictures_per_second": statistics.median(line["pictures_per_second"] for line in lines),
    }


def count_parameters(config: AiMConfig) -> dict[str, int]:
    """Return ``parameters``, and ``non_embedding``: the parameters without embeddings of classes, codes, positions."""
    with torch.device("meta"):
        model = AiM(config)
    tables = (model.condition.table, model.word_embedding, model.position_embedding)
    embedded = sum(table.weight.numel() for table in tables if table is not None)
    return {"parameters": model.num_parameters(), "non_embedding": model.num_parameters() - embedded}
