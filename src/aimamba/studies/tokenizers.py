"""The study of tokenizers: each variant is a tokenizer that is trained and measured, and a generator of its codes."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from aimamba.config import check, from_mapping, to_mapping
from aimamba.evaluation.tokenizer import TokenizerComparison
from aimamba.models import VQ_PRESETS, AiMConfig, VQConfig, VQModel
from aimamba.networks.perceptual import perceptual_loss
from aimamba.studies.evaluator import Evaluator
from aimamba.studies.plan import Job
from aimamba.studies.recipe import StudyRecipe, Variant, tokenizer_recipe, training_recipe
from aimamba.studies.runner import StudyRunner, check_new_generator, of_variant
from aimamba.train.fit import fit
from aimamba.train.stages import make_task, model_config
from aimamba.train.tokenizer_settings import TokenizerTaskConfig


class TokenizerStudy:
    """Trains and measures the tokenizers of a study and their generators."""

    def __init__(
        self,
        study: StudyRecipe,
        out: Path,
        *,
        budget: int,
        compare: Callable[[VQModel], TokenizerComparison],
        evaluator: Evaluator,
        device: torch.device,
        log: Callable[[str], None],
    ) -> None:
        """Prepare a study; nothing runs yet.

        Args:
            study: The study, see ``check_tokenizers``.
            out: Its folder; each run gets a folder there, with ``tokenizer``, ``codes`` and ``runs``.
            budget: Images that every generator trains on; a tokenizer trains on ``tokenizer.share`` of it.
            compare: Measures the reconstructions of a tokenizer.
            evaluator: Measures samples of the generators.
            device: Where everything runs.
            log: Progress callback: called with a line before each step that takes long.
        """
        self._study, self._out, self._budget, self._device, self._log = study, out, budget, device, log
        self._compare, self._evaluator = compare, evaluator

    def jobs(self) -> Iterator[Job]:
        """Yield a job for each variant and seed."""
        for variant in self._study.variants:
            for seed in variant.seeds or self._study.seeds:
                name = f"{variant.name}-seed-{seed}"
                yield Job(name, partial(self._work, name, variant, seed))

    def _work(self, name: str, variant: Variant, seed: int) -> dict[str, Any]:
        """Return the numbers of a generator, and under ``tokenizer`` those of its tokenizer."""
        folder = self._out / name
        started = time.perf_counter()
        tokenizer, measured = self._tokenizer(folder / "tokenizer", variant, seed)
        seconds = time.perf_counter() - started
        runner = StudyRunner(
            replace(self._study, variants=(variant,)),
            folder,
            budget=self._budget,
            tokenizer=tokenizer,
            tokenizer_name=str(folder / "tokenizer"),
            device=self._device,
            log=self._log,
        )
        found = runner.train_and_evaluate(name, variant, self._evaluator, seed=seed)
        tokens = (self._study.data.size // tokenizer.config.downsampling) ** 2
        return {**found, "tokenizer": measured, "tokens": tokens, "seconds": seconds}

    def _tokenizer(self, folder: Path, variant: Variant, seed: int) -> tuple[VQModel, dict[str, Any]]:
        """Train a tokenizer in ``folder``, unless it is trained already, and return it with its numbers."""
        recipe = tokenizer_recipe(self._study, variant, budget=self._budget, seed=seed)
        fit(
            lambda: make_task(recipe, device=self._device, log=self._log),
            recipe.fit,
            folder,
            device=self._device,
            recipe=to_mapping(recipe),
        )
        model = VQModel.from_pretrained(folder, device=self._device)
        found = self._compare(model)
        numbers = found.reconstruction.to_dict()
        shape = {"parameters": model.num_parameters(), "codes": model.config.codebook_size}
        shape["decoder"] = sum(weight.numel() for weight in model.decoder.parameters())
        distance = found.distances
        frechet = distance.rfid if distance.frechet is None else distance.frechet
        return model, {**shape, **numbers, "frechet": frechet, "network": found.network}


def check_tokenizers(study: StudyRecipe, budget: int) -> None:
    """Check the settings of all models and losses of a study, before images are drawn and anything is trained.

    Args:
        study: The study.
        budget: Images that every generator trains on.

    Raises:
        ConfigError: One of them is unknown, out of range, or does not fit the images; or a perceptual network is not
            installed.
        CheckpointError: The weights of a perceptual network are missing or damaged.
    """
    for variant in study.variants:
        name = variant.name
        tokenizer = tokenizer_recipe(study, variant, budget=budget, seed=0)
        generator = training_recipe(study, variant, tokenizer="", budget=budget, seed=0)
        config = model_config(VQConfig, VQ_PRESETS, tokenizer.model)
        task = from_mapping(TokenizerTaskConfig, tokenizer.task, where=f"{name}: tokenizer_task")
        if task.perceptual_weight:
            perceptual_loss(task.perceptual)  # which may not be installed
        check(
            not task.decoder_only,
            f"{name}: tokenizer_task.decoder_only keeps the codes of a trained tokenizer, and this study trains new "
            "ones; leave it out",
        )
        with of_variant(name):
            task.check_recipe(tokenizer, config.downsampling)
        size = tokenizer.data.size
        sizes = {"vocab_size": config.codebook_size, "num_tokens": (size // config.downsampling) ** 2}
        shape = from_mapping(AiMConfig, {**generator.model, **sizes}, where=f"{name}: model")
        with torch.device("meta"):
            model = VQModel(config)
        check_new_generator(generator, shape, model, where=name)
