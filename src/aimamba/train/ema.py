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
        frozen = {id(weight): weight for weight in model.parameters() if not weight.requires_grad}
        self.model = copy.deepcopy(model, frozen).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0
        self._source: Model | None = None
        self._averages: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._counters: list[tuple[torch.Tensor, torch.Tensor]] = []

    @torch.no_grad()
    def update(self, model: Model) -> None:
        """Update the average with the weights of ``model``."""
        decay = decay_now(self.decay, self.updates)
        if self._source is not model:  # finding hundreds of tensors takes longer than queueing their update
            self._source = model
            both = zip(_tensors(self.model), _tensors(model), strict=True)
            pairs = [(average, value) for average, value in both if average is not value]
            self._averages = [average for average, _ in pairs if average.is_floating_point()]
            self._values = [value for average, value in pairs if average.is_floating_point()]
            self._counters = [pair for pair in pairs if not pair[0].is_floating_point()]
        for average, value in self._counters:
            average.copy_(value)
        torch._foreach_lerp_(self._averages, self._values, 1 - decay)  # one kernel for all tensors
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the state for ``load_state_dict``."""
        return {"updates": self.updates, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]


def decay_now(largest: float, updates: int) -> float:
    """Return the decay of the next update: small at first, so that the random initial weights are soon forgotten."""
    return min(largest, (1 + updates) / (10 + updates))


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
