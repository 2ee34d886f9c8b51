"""Samples of a model after prompts or classes, generated when they are needed."""

from collections.abc import Callable, Sequence

import numpy as np

from aimamba.evaluation.kept_codes import KeptCodes
from aimamba.evaluation.sources import ModelSource
from aimamba.generation import SamplingConfig
from aimamba.pipeline import Pipeline, Prompt


class PromptedSource(ModelSource):
    """Samples of a model after prompts: image i has prompt i and seed ``config.seed + i``; they have no classes.

    The label of a class may stand in place of a prompt.
    """

    def __init__(
        self,
        name: str,
        pipeline: Pipeline,
        prompts: Sequence[int | Prompt],
        config: SamplingConfig,
        batch_size: int,
        *,
        keep: Callable[[SamplingConfig], KeptCodes | None] | None = None,
    ):
        """Describe the samples as ``ModelSource`` does."""
        self.prompts = tuple(prompts)
        null = np.full(len(self.prompts), pipeline.generator.condition.null_class, np.int64)
        super().__init__(name, pipeline, null, config, batch_size, keep=keep)

    @property
    def _wanted(self) -> Sequence[int | Prompt]:
        return self.prompts

    def _given(self, index: int) -> int | Prompt:
        return self.prompts[index]
