"""The interface between the training loop and a stage: model, batches, loss, evaluation."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from PIL.Image import Image
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)
Batch = TypeVar("Batch", bound=tuple[Tensor, ...])


@dataclass(frozen=True, kw_only=True)
class Auxiliary:
    """A network that is trained beside the model and not saved with it, such as a discriminator; it has its own AdamW.

    Attributes:
        name: What checkpoints and metrics call it.
        network: The network, in training mode; ``fit`` moves it to the device.
        lr: Highest learning rate, by default the model's; it follows the same schedule.
        betas: Decay of the first and second moment.
        weight_decay: Weight decay of matrices.
        recordable: Whether every step trains it alike, so that a step with it can be recorded as a CUDA graph.
    """

    name: str
    network: nn.Module
    lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    recordable: bool = False


class Objective(NamedTuple):
    """The held-out metric that decides which evaluation is the best; lower is better.

    Attributes:
        metric: Its name among the metrics that ``Task.evaluate`` returns.
        uniform: Its value, in the same unit, for a model that knows nothing; infinity where there is none.
    """

    metric: str
    uniform: float = math.inf


@dataclass(frozen=True)
class Example:
    """A training example, for people.

    Attributes:
        index: Which of the training images it is of, counted from 0.
        label: Class of the image.
        class_name: Name of the class.
        name: The file of the image, where there is one.
    """

    index: int
    label: int
    class_name: str
    name: str = ""

    def __str__(self) -> str:
        """Return a phrase."""
        return f"image {self.index} ({self.name or self.class_name})"


class Amount(NamedTuple):
    """How much there is to train on.

    Attributes:
        train: Number of training images.
        held_out: Number of held-out images.
        values: Numbers of an image that the model learns: codes, or values of pixels.
        unit: What they are called.
        views: Number of stored views of a training image.
        workers: Number of processes that read images ahead; None where there is nothing to decode.
    """

    train: int
    held_out: int
    values: int
    unit: str
    views: int = 1
    workers: int | None = None


@runtime_checkable
class Task(Protocol[Model, Batch]):
    """A stage of training: its model, training examples and loss, and how to evaluate and save the result.

    ``fit`` does the rest: device, optimiser, moving average, schedule, checkpoints. It calls ``loss`` with the model in
    training, and ``evaluate``, ``sheet`` and ``save`` with the moving average of it, or with the model itself where
    there is no average, in evaluation mode and without gradients.
    """

    @property
    def model(self) -> Model:
        """The model to train; ``fit`` moves it to the device."""
        ...

    def amount(self) -> Amount:
        """Return how much there is to train on."""
        ...

    def batches(self, start: int, batch_size: int, *, stride: int | None = None) -> Iterator[Batch]:
        """Yield batches of training examples without end, beginning with the example at position ``start``.

        Each batch has consecutive examples, and begins ``stride`` positions after the one before; by default that is
        ``batch_size``. Several processes share the examples so.

        The example at a position must depend on the task's seed and the position only, so that a run that was stopped
        continues with the examples it would have seen. The tensors may be on the CPU; ``fit`` moves them.
        """
        ...

    def examples(self, start: int, count: int) -> list[Example]:
        """Return what the examples at ``count`` positions from ``start`` on are, without reading them."""
        ...

    def loss(
        self, model: Model, batch: Batch, rng: torch.Generator, step: Any
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Compute the loss of a batch and the metrics to report.

        With a discriminator, the loss is the sum of the model's loss and the discriminator's, and neither part may have
        gradients with respect to the other network. A network that gets no gradient in a step is not updated.

        With ``fit.cuda_graph`` this is called in the first steps only, and what it did on the device is replayed:
        ``step`` is then a scalar tensor on the device, and nothing may depend on numbers that are read from there.

        Args:
            model: The model in training.
            batch: The examples, on the model's device.
            rng: The only source of randomness, on the same device; it is seeded again for every step. Numbers for the
                rows of a batch are drawn with ``distributed.uniform``.
            step: Number of the step, counted from 0: an int, or a tensor where the step is recorded.

        Returns:
            The scalar to minimise, and metrics by name, each a mean over the batch. A metric called ``loss`` is
            reported instead of the scalar: the model's loss without what an auxiliary network adds.
        """
        ...

    def end_step(self, skip: Tensor) -> None:
        """Change what no optimiser does, after the optimisers of a step: in ``model`` buffers, and companions.

        Args:
            skip: A float32 scalar on the device: 1 if the step is skipped and must leave no trace.
        """
        ...

    def companions(self) -> dict[str, nn.Module]:
        """Return the modules other than ``model`` that ``loss`` or ``end_step`` changes, by name.

        ``fit`` moves them to the device and stores them in checkpoints. A task must keep no other state from step to
        step; otherwise a stopped run could not continue exactly.
        """
        ...

    def basis(self) -> dict[str, str]:
        """Return a fingerprint of each input that the recipe only names, such as the tokenizer, by name.

        A run is continued only if they are the same as when it began.
        """
        ...

    def auxiliary(self) -> Auxiliary | None:
        """Return the network that is trained beside ``model``, the same one in every call, or None."""
        ...

    def no_weight_decay(self, name: str) -> bool:
        """Return whether weight decay must skip the parameter ``name`` although it has two axes or more."""
        ...

    def evaluate(self, model: Model) -> dict[str, float]:
        """Return metrics of ``model`` on held-out examples, the same ones in every call."""
        ...

    def objective(self) -> Objective | None:
        """Return which metric of ``evaluate`` decides what the best model is, or None if none of them can."""
        ...

    def sheet(self, model: Model) -> Image:
        """Render samples of ``model`` as a contact sheet."""
        ...

    def save(self, model: Model, folder: Path) -> None:
        """Save ``model`` to ``folder``, which ``fit`` has created, so that ``from_pretrained`` loads it."""
        ...


def map_tensors(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """Return a batch of the same kind, with every tensor changed."""
    tensors = [change(tensor) for tensor in batch]
    return type(batch)._make(tensors) if hasattr(batch, "_make") else type(batch)(tensors)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return ``batch`` with its tensors on ``device``."""
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))
