"""What a stage of training has to know, so that one loop serves them all."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import torch
from PIL.Image import Image
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)
Batch = TypeVar("Batch", bound=tuple[Tensor, ...])


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

    def loss(self, model: Model, batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Give the scalar to descend and what else to report, averaged over the batch.

        All randomness comes from ``rng``, which lives on the batch's device and starts afresh with every step.
        """
        ...

    def companions(self) -> dict[str, nn.Module]:
        """Name the modules beside ``model`` that ``loss`` changes; ``fit`` moves them and keeps them in checkpoints.

        A task keeps nothing else from step to step, or a run that was stopped could not go on as if it had not been.
        """
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
