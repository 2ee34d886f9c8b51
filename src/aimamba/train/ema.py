"""The exponential moving average of a model's weights."""

import copy
from typing import Any, Generic

import torch
from torch import nn

from aimamba.train.task import Model


class ExponentialAverage(Generic[Model]):
    """The moving average of a model.

    Each update changes every floating-point parameter and buffer by ``average = d * average + (1 - d) * value``; other
    buffers (counters) are copied. After ``t`` updates ``d = min(decay, (1 + t) / (10 + t))``, so that the random
    initial weights are soon forgotten.

    Attributes:
        model: The average, a model in evaluation mode and without gradients.
        decay: Largest value of ``d``.
        updates: Number of updates so far.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: Model) -> None:
        """Update the average with the weights of ``model``."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages, values = [], []
        for average, value in zip(_tensors(self.model), _tensors(model), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, values, 1 - decay)  # one kernel for all tensors
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the state for ``load_state_dict``."""
        return {"updates": self.updates, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
