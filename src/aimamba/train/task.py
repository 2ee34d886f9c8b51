"""What a stage of training has to know, so that one loop serves them all."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import torch
from PIL.Image import Image
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)
Batch = TypeVar("Batch", bound=tuple[Tensor, ...])


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """A network that is trained against the model, with an optimiser of its own (AdamW).

    Attributes:
        network: In training mode; ``fit`` moves it to its device.
        lr: Learning rate where the model's is at its highest; it rises and falls with that.
        betas: Decay of the first and second moment.
        weight_decay: Decay of matrices.
    """

    network: nn.Module
    lr: float
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0


@runtime_checkable
class Task(Protocol[Model, Batch]):
    """One stage: its model, its examples, its loss, and how to judge and keep the result.

    ``fit`` owns the rest: device, optimiser, average, schedule, checkpoints. The ``model`` it hands to ``loss`` is the
    one in training; the one it hands to ``evaluate``, ``sheet`` and ``save`` is the average of it where there is one,
    in evaluation mode and without gradients.
    """

    @property
    def model(self) -> Model:
        """What is trained; ``fit`` moves it to its device."""
        ...

    def batches(self, start: int, batch_size: int) -> Iterator[Batch]:
        """Give the examples from global position ``start`` on, ``batch_size`` at a time, without end.

        The example at a position must be a function of the task's seed and that position: then a run that was stopped
        sees what it would have seen. Tensors may stay on the CPU; ``fit`` moves them.
        """
        ...

    def loss(
        self, model: Model, batch: Batch, rng: torch.Generator, step: int
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Give the scalar to descend and what else to report, averaged over the batch.

        Where there is an adversary its loss is part of the scalar; neither player's may have gradients for the other.
        One that gets no gradient in a step stays as it is. ``loss`` in the report is shown in place of the scalar: the
        model's loss without the adversary's. All randomness comes from ``rng``, which lives on the
        batch's device and starts afresh with every step; ``step`` counts from 0.
        """
        ...

    def companions(self) -> dict[str, nn.Module]:
        """Name the modules beside ``model`` that ``loss`` changes; ``fit`` moves them and keeps them in checkpoints.

        A task keeps nothing else from step to step, or a run that was stopped could not go on as if it had not been.
        """
        ...

    def basis(self) -> dict[str, str]:
        """Name what else the examples depend on, with a fingerprint of each: a run goes on only upon the same."""
        ...

    def adversary(self) -> Adversary | None:
        """Give the network that is trained against ``model``, always the same one; ``None`` where there is none."""
        ...

    def no_weight_decay(self, name: str) -> bool:
        """Say whether the parameter ``name``, though of two axes or more, is a table that decay must spare."""
        ...

    def evaluate(self, model: Model) -> dict[str, float]:
        """Measure ``model`` on held-out examples, the same ones each time."""
        ...

    def sheet(self, model: Model) -> Image:
        """Draw what a person should look at."""
        ...

    def save(self, model: Model, folder: Path) -> None:
        """Write the finished model into the new folder ``folder``, for ``from_pretrained`` to load."""
        ...


def moved(batch: Batch, device: torch.device) -> Batch:
    """Give ``batch`` with its tensors on ``device``."""
    tensors = [tensor.to(device, non_blocking=True) for tensor in batch]
    return type(batch)._make(tensors) if hasattr(batch, "_make") else type(batch)(tensors)
