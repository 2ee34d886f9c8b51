"""The exponential moving average of a model's weights.

It moves inside the recorded step of training: what a step cannot know, whether it is skipped and how far the average
moves, are numbers on the device.
"""

import copy
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Generic, Protocol

import torch
from torch import Tensor, nn

from aimamba.train.checkpoint import Stateful
from aimamba.train.optim import heeds_numbers
from aimamba.train.task import Model


class Average(Stateful, Protocol):
    """A moving average of the weights.

    Attributes:
        updates: Number of updates so far, which the caller counts: only the host knows which steps were skipped.
    """

    updates: int

    def prepare(self) -> None:
        """Tell the device how far the next update moves."""
        ...

    def update(self, model: Any, skip: Tensor) -> None:
        """Update the average with the weights of ``model``.

        Args:
            model: The model in training.
            skip: A float32 scalar on the device; 1 leaves the average as it is.
        """
        ...


class Followers:
    """Averages and the values that they follow, all on one device."""

    def __init__(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        self._moving: defaultdict[torch.dtype, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self._copied: list[tuple[Tensor, Tensor]] = []
        for average, value in pairs:
            if not average.is_floating_point():
                self._copied.append((average, value))
            elif average.numel() > 0:
                self._moving[average.dtype].append((average, value))

    @torch.no_grad()
    def move(self, share: Tensor, skip: Tensor) -> None:
        """Move each average by ``share`` of its distance from its value, unless ``skip`` is 1.

        Args:
            share: A float32 scalar on the device.
            skip: Likewise.
        """
        heeded = heeds_numbers(skip.device)
        if not heeded and skip == 1:
            return
        for average, value in self._copied:
            average.copy_(torch.where(skip == 1, average, value))
        for pairs in self._moving.values():
            averages, values = map(list, zip(*pairs, strict=True))
            if not heeded:
                torch._foreach_lerp_(averages, values, share.item())
                continue
            # One kernel for all tensors that reads both numbers on the device: a step of SGD for averages with the
            # gradient -value, to which a weight decay of 1 adds the average.
            torch._fused_sgd_(
                averages, values, [], lr=share, weight_decay=1.0, maximize=True, found_inf=skip,
                momentum=0.0, dampening=0.0, nesterov=False, is_first_step=False,
            )  # fmt: skip


class ExponentialAverage(Generic[Model]):
    """The moving average of a model.

    Each update changes every floating-point parameter and buffer by ``average = d * average + (1 - d) * value``; other
    buffers (counters) are copied. After ``t`` updates ``d = min(decay, (1 + t) / (10 + t))``, so that the random
    initial weights are soon forgotten.

    Attributes:
        model: The average, a model in evaluation mode and without gradients.
        decay: Largest value of ``d``.
        updates: Number of updates so far, see ``Average``.
    """

    def __init__(self, model: Model, decay: float) -> None:
        frozen = {id(weight): weight for weight in model.parameters() if not weight.requires_grad}
        self.model = copy.deepcopy(model, frozen).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0
        self._share = new_share(_tensors(model))
        self._source: Model | None = None
        self._followers = Followers([])

    def prepare(self) -> None:
        """See ``Average.prepare``."""
        self._share.fill_(1 - decay_now(self.decay, self.updates))

    def update(self, model: Model, skip: Tensor) -> None:
        """See ``Average.update``."""
        if self._source is not model:  # finding hundreds of tensors takes longer than queueing their update
            self._source = model
            both = zip(_tensors(self.model), _tensors(model), strict=True)
            self._followers = Followers((average, value) for average, value in both if average is not value)
        self._followers.move(self._share, skip)

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


def new_share(tensors: Iterable[Tensor]) -> Tensor:
    """Return the number that tells the device how far averages of ``tensors`` move."""
    return torch.zeros((), dtype=torch.float32, device=next(iter(tensors)).device)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
