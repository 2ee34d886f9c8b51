"""The exponential moving average of a model: smoother than any single step of it, and what is judged and kept."""

import copy
from typing import Any, Generic

import torch
from torch import nn

from aimamba.train.task import Model


class ExponentialAverage(Generic[Model]):
    """A copy of a model that follows it slowly.

    Each update moves every floating-point parameter and buffer by ``average = d * average + (1 - d) * value``; other
    buffers (counters) are copied. With ``t`` updates made before, ``d = min(decay, (1 + t) / (10 + t))``, so that the
    random start is soon forgotten.

    Attributes:
        model: The average itself, in evaluation mode and without gradients.
        decay: What ``d`` grows to.
        updates: How many there were.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: Model) -> None:
        """Move the average towards ``model``, which has the structure of the one it began with."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages, values = [], []
        for average, value in zip(_tensors(self.model), _tensors(model), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, values, 1 - decay)  # one kernel instead of one for each tensor
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Give what ``load_state_dict`` needs to continue exactly."""
        return {"updates": self.updates, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
