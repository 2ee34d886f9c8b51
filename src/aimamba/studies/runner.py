"""Where the generators of a study are made: one tokenizer, and codes that are encoded once."""

import dataclasses
import statistics
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from aimamba.config import check, from_mapping, to_mapping
from aimamba.data.codes import CodeSet
from aimamba.data.sets import open_splits
from aimamba.data.shards import encode_splits, open_code_splits
from aimamba.models import AiM, AiMConfig, VQModel
from aimamba.studies.evaluator import Measure, judged
from aimamba.studies.ordered import OrderedPipeline, OrderedTask, reordered
from aimamba.studies.recipe import StudyRecipe, Variant, training_recipe
from aimamba.studies.scans import grid_order
from aimamba.studies.speed import sampling_speed
from aimamba.train.fit import fit
from aimamba.train.generator import GeneratorTaskConfig
from aimamba.train.recipe import Recipe
from aimamba.train.tracking import read_metrics


class Codes(NamedTuple):
    """What all generators of a study learn, in raster order, and the names of the classes."""

    train: CodeSet
    held_out: CodeSet
    class_names: tuple[str, ...]


class StudyRunner:
    """Trains, judges and times the variants of a study."""

    def __init__(
        self,
        study: StudyRecipe,
        out: Path,
        *,
        budget: int,
        tokenizer: VQModel,
        tokenizer_name: str,
        device: torch.device,
        say: Callable[[str], None],
    ) -> None:
        """Check that tokenizer, images and orders fit each other; nothing is made yet.

        Args:
            study: The study.
            out: Its folder: ``codes`` and ``runs`` go there.
            budget: Images that every run trains on.
            tokenizer: Gives and draws the codes.
            tokenizer_name: By which it can be loaded again; kept with the runs.
            device: Where everything runs.
            say: Told what takes its time.

        Raises:
            ConfigError: They do not fit, or a setting of a variant is unknown or out of range.
        """
        self.study = study
        self.budget = budget
        self._out = out
        self._tokenizer = tokenizer.to(device)
        self._name = tokenizer_name
        self._device = device
        self._say = say
        factor = tokenizer.config.downsampling
        check(
            study.data.size % factor == 0,
            f"data.size must be a multiple of the tokenizer's down-sampling {factor}, got {study.data.size}",
        )
        self._side = study.data.size // factor
        for variant in study.variants:
            grid_order(variant.order, self._side)
            self.shape(variant, classes=1)
            self._recipe(variant, budget, 0, None)

    def shape(self, variant: Variant, *, classes: int) -> AiMConfig:
        """The generator's config: the settings of study and variant, and what follows from tokenizer and images."""
        fixed = {
            "vocab_size": self._tokenizer.config.codebook_size,
            "num_tokens": self._side**2,
            "num_classes": classes,
        }
        return from_mapping(AiMConfig, {**self.study.model, **variant.model, **fixed}, where=f"{variant.name}: model")

    def train(
        self, name: str, variant: Variant, *, seed: int, budget: int | None = None, lr: float | None = None
    ) -> dict[str, Any]:
        """Train a generator in ``runs/NAME``, or find it trained.

        Args:
            name: Of the run.
            variant: What to train.
            seed: Of weights, order of the images and dropout.
            budget: Images to train on, in place of the study's.
            lr: Highest learning rate, in place of the variant's.

        Returns:
            ``variant``, ``seed``, ``order``, ``lr``, ``parameters``, ``non_embedding``, ``steps``, ``images``,
            metrics ``held_out``, ``train_seconds``, ``train_pictures_per_second`` (median over the run) and, on CUDA,
            ``train_peak_bytes``.
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
        lines = [line for line in read_metrics(folder / "metrics.jsonl") if line["split"] == "train"]
        found = {
            "variant": variant.name,
            "seed": seed,
            "order": variant.order,
            "lr": recipe.fit.lr,
            **count_parameters(self.shape(variant, classes=len(self.codes.class_names))),
            "steps": result.steps,
            "pictures": result.steps * recipe.fit.batch_size,
            "held_out": result.metrics,
            "train_seconds": lines[-1]["seconds"],
            "train_pictures_per_second": statistics.median(line["pictures_per_second"] for line in lines),
        }
        if self._device.type == "cuda":
            found["train_peak_bytes"] = torch.cuda.max_memory_allocated(self._device)
        return found

    def train_and_judge(
        self, name: str, variant: Variant, measure: Measure, *, seed: int, lr: float | None = None
    ) -> dict[str, Any]:
        """Train a generator, then draw with every setting of guidance; adds ``samples`` to what ``train`` gives."""
        found = self.train(name, variant, seed=seed, lr=lr)
        generator = AiM.from_pretrained(self._out / "runs" / name, device=self._device)
        pipeline = OrderedPipeline(self._tokenizer, generator, self.codes.class_names, variant.order)
        drawn = [judged(pipeline, sampling, measure) for sampling in self.study.judging.samplings()]
        return {**found, "samples": drawn}

    def time_sampling(self, variant: Variant) -> dict[str, Any]:
        """Speed and memory of drawing with a generator of this shape."""
        config = self.shape(variant, classes=len(self.codes.class_names))
        return {"variant": variant.name, "speed": sampling_speed(config, self.study.speed, self._device)}

    @cached_property
    def codes(self) -> Codes:
        """Codes of all images, encoded on first use and kept in ``codes``."""
        data = self.study.data
        folder = self._out / "codes"
        images = open_splits(**dataclasses.asdict(data), progress=True)
        for split, part in (("train", images.train), ("held-out", images.held_out)):
            self._say(f"codes of {len(part):,} {split} images in {folder / split}")
        views = "center-flip" if data.flip else "center"
        encode_splits(self._tokenizer, images, folder, views=views, progress=sys.stderr.isatty())
        codes = open_code_splits(folder, self._tokenizer)
        return Codes(codes.train, codes.held_out, codes.meta.class_names)

    def _recipe(self, variant: Variant, budget: int, seed: int, lr: float | None) -> Recipe:
        return training_recipe(self.study, variant, tokenizer=self._name, budget=budget, seed=seed, lr=lr)

    def _task(self, recipe: Recipe, variant: Variant) -> OrderedTask:
        order = grid_order(variant.order, self._side)
        model = AiM(self.shape(variant, classes=len(self.codes.class_names)))
        model.init_weights(torch.Generator().manual_seed(recipe.fit.seed))
        return OrderedTask(
            model,
            self._tokenizer,
            reordered(self.codes.train, order),
            reordered(self.codes.held_out, order),
            self.codes.class_names,
            from_mapping(GeneratorTaskConfig, recipe.task, where=f"{variant.name}: task"),
            seed=recipe.fit.seed,
            order=variant.order,
        )


def count_parameters(config: AiMConfig) -> dict[str, int]:
    """``parameters`` of a generator, and ``non_embedding`` ones: those of no table of classes, codes or positions."""
    with torch.device("meta"):
        model = AiM(config)
    tables = (model.condition.table, model.word_embedding, model.position_embedding)
    embedded = sum(table.weight.numel() for table in tables if table is not None)
    return {"parameters": model.num_parameters(), "non_embedding": model.num_parameters() - embedded}
