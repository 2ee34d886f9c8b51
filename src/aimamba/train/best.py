"""Follow the held-out loss of a run: keep the weights of its best evaluation, warn when it rises, stop it in time."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from aimamba.train.task import Objective

_IN_A_ROW = 3  # evaluations without improvement that are worth a warning
_CLEARLY = 0.1  # so is one that is this share above the best
_ABOVE = 1.01  # or above the uniform value times this: random weights are a little worse than uniform


class HeldOut:
    """The best evaluation of a run so far, and the evaluations since.

    It is a part of the checkpoint, so a run that continues compares with what it had before. An evaluation that is
    repeated after the same step, as at the start of a continued run, changes nothing.

    Attributes:
        value: The lowest value of the objective so far, or infinity.
        step: The step after which it was measured; 0 where there is none.
        metrics: All metrics of that evaluation.
        since: Evaluations after it.
        forgotten: Whether the comparison started again because a continued run had not kept its best weights.
    """

    def __init__(self, objective: Objective | None, *, keep: bool, patience: int) -> None:
        """Start with no evaluation.

        Args:
            objective: What decides; None follows nothing.
            keep: Whether to keep a copy of the best weights, in main memory.
            patience: Evaluations without improvement after which the run is to stop; 0 is no limit.
        """
        self._objective = objective
        self._keep = keep and objective is not None
        self._patience = patience
        self._weights: dict[str, Tensor] = {}
        self.value, self.step, self.since = math.inf, 0, 0
        self.metrics: dict[str, float] = {}
        self._seen = 0
        self._rising = self._above_uniform = False
        self.forgotten = False

    @property
    def exhausted(self) -> bool:
        """Whether there were as many evaluations without improvement as ``patience`` allows."""
        return 0 < self._patience <= self.since

    @property
    def name(self) -> str:
        """Name of the metric that decides, or an empty text."""
        return self._objective.metric if self._objective else ""

    def observe(self, step: int, metrics: Mapping[str, float], model: nn.Module) -> list[str]:
        """Take in an evaluation.

        Args:
            step: Number of steps taken.
            metrics: The metrics that the task returned.
            model: The model that was evaluated; its weights are copied if they are the best so far.

        Returns:
            Warnings for the user, one line each.
        """
        if self._objective is None or step <= self._seen:
            return []
        self._seen = step
        value = metrics[self._objective.metric]
        if value < self.value:  # never NaN
            self.value, self.step, self.since, self._rising = value, step, 0, False
            self.metrics = dict(metrics)
            if self._keep:
                self._weights = {
                    name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()
                }
        else:
            self.since += 1
        return self._warnings(value)

    def _warnings(self, value: float) -> list[str]:
        assert self._objective is not None
        name, uniform = self._objective
        lines = []
        above = value > uniform * _ABOVE
        if above and not self._above_uniform:
            lines.append(
                f"warning: held-out {name} is {value:.4g}, worse than the {uniform:.4g} of a model that knows nothing"
            )
        self._above_uniform = above
        if not math.isfinite(value):
            lines.append(f"warning: held-out {name} is {value:g}: the training diverges; lower fit.lr")
        elif math.isfinite(self.value) and not self._rising:
            clearly = value > self.value + _CLEARLY * abs(self.value)
            if self.since >= _IN_A_ROW or clearly:
                self._rising = True
                kept = "the best is kept" if self._keep else "the last model is kept all the same (fit.keep = 'last')"
                lines.append(
                    f"warning: held-out {name} rises: {value:.4g}, best {self.value:.4g} at step {self.step}. If the "
                    f"training loss falls, the model memorises its images; {kept}, and fit.patience stops such a run"
                )
        return lines

    def compared(self) -> str:
        """Return how the last evaluation compares with the best, to follow its metrics in a line."""
        return f" (best {self.name} {self.value:.4g} at step {self.step})" if self.step and self.since else ""

    @property
    def superseded(self) -> bool:
        """Whether the last evaluation was not the best, and the weights of the best are kept."""
        return bool(self._weights) and self.since > 0

    def load_best(self, model: nn.Module) -> None:
        """Load the weights of the best evaluation into ``model``."""
        model.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for ``load_state_dict``."""
        return {
            "value": self.value,
            "step": self.step,
            "since": self.since,
            "seen": self._seen,
            "rising": self._rising,
            "above_uniform": self._above_uniform,
            "metrics": dict(self.metrics),
            "weights": copy.copy(self._weights),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned.

        Where weights are to be kept and the state has none, because the run did not keep them before, the comparison
        starts again.
        """
        if self._objective is None:
            return
        if self._keep and not state["weights"]:
            self.forgotten = state["step"] > 0
            return
        self.value, self.step, self.since = float(state["value"]), int(state["step"]), int(state["since"])
        self._seen = int(state["seen"])
        self._rising, self._above_uniform = bool(state["rising"]), bool(state["above_uniform"])
        self.metrics = dict(state["metrics"])
        self._weights = dict(state["weights"]) if self._keep else {}


def not_finite(model: nn.Module) -> str | None:
    """Return the name of the first tensor of ``model`` with NaN or infinity in it, or None."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                return name
    return None
