"""Fine-tuning of one model in several ways, each an ordinary training on the same images."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from aimamba.config import from_mapping, to_mapping
from aimamba.generation import SamplingConfig
from aimamba.pipeline import Pipeline
from aimamba.studies.evaluator import Evaluator, evaluate_sampling
from aimamba.studies.recipe import StudyRecipe, Variant, training_recipe
from aimamba.studies.runner import numbers_of_run
from aimamba.train.fit import fit
from aimamba.train.generator_settings import GeneratorTaskConfig
from aimamba.train.recipe import Recipe
from aimamba.train.stages import make_task, resolved


class FineTuner:
    """Fine-tunes the variants of a study and samples them without guidance."""

    def __init__(
        self,
        study: StudyRecipe,
        out: Path,
        *,
        init: str,
        budget: int,
        device: torch.device,
        log: Callable[[str], None],
    ) -> None:
        """Check the settings; nothing runs yet.

        Args:
            study: The study; it has no variants if nothing is fine-tuned.
            out: Its folder; ``codes`` and ``runs`` are created there.
            init: Name of the model that all of them start from.
            budget: Images that every run trains on.
            device: Where everything runs.
            log: Progress callback: called with a line before each step that takes long.

        Raises:
            ConfigError: A setting of a variant is unknown or out of range.
        """
        self.study = study
        self._out, self._init, self._budget, self._device, self._log = out, init, budget, device, log
        for variant in study.variants:
            from_mapping(GeneratorTaskConfig, self._recipe(variant, 0).task, where=f"{variant.name}: task")

    def train_and_evaluate(self, name: str, variant: Variant, evaluator: Evaluator, *, seed: int) -> dict[str, Any]:
        """Fine-tune the model in ``runs/NAME``, unless that is done already, and sample it without guidance.

        Args:
            name: Name of the run.
            variant: How to train it.
            evaluator: Measures the samples.
            seed: Seed of the order of the images and of dropout.

        Returns:
            ``variant``, ``seed``, those of ``numbers_of_run``, and ``samples``.

        Raises:
            ConfigError: The settings do not fit the model.
            DataError: The images cannot be used.
            Interrupted: A signal has stopped the training; the next call continues it.
        """
        recipe, folder = self._recipe(variant, seed), self._out / "runs" / name
        result = fit(
            lambda: make_task(recipe, device=self._device, codes=self._out / "codes", log=self._log),
            recipe.fit,
            folder,
            device=self._device,
            recipe=resolved(to_mapping(recipe)),
            resolve=resolved,
        )
        found = {"variant": variant.name, "seed": seed, **numbers_of_run(folder, recipe.fit, result)}
        pipeline = Pipeline.from_pretrained(folder, device=self._device)
        return {**found, "samples": [evaluate_sampling(pipeline, SamplingConfig(), evaluator)]}

    def _recipe(self, variant: Variant, seed: int) -> Recipe:
        made = training_recipe(self.study, variant, tokenizer=self._init, budget=self._budget, seed=seed)
        return replace(made, init=self._init)
