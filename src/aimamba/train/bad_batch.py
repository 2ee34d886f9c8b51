"""``bad-batch.pt``: the batch at which a run stopped because its loss or gradient was not finite, to look at it.

It holds what the step depends on: the examples, the weights before it, and the seed of its random numbers.
"""

import dataclasses
from collections.abc import Generator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aimamba.errors import CheckpointError
from aimamba.files import write_atomically
from aimamba.train.checkpoint import bytes_of_tensors, load_plain
from aimamba.train.settings import FitConfig
from aimamba.train.task import Example, Task

BAD_BATCH_FILE = "bad-batch.pt"
_FORMAT = "aimamba bad batch 1"
_NAMED = 3  # examples that a message names


@dataclasses.dataclass(frozen=True, kw_only=True)
class LastStep:
    """A step whose loss or gradient is not finite.

    Attributes:
        step: Number of the step, counted from 1 as in messages.
        precision: ``float32`` or ``bfloat16``, in which the forward pass was computed.
        loss: The loss as reported.
        gradient_norm: Norm of the gradient before clipping.
        recipe: The resolved recipe, as TOML.
    """

    step: int
    precision: str
    loss: float
    gradient_norm: float
    recipe: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadBatch(LastStep):
    """Such a step with everything that it depends on.

    Attributes:
        seed: The run's ``fit.seed``, from which the random numbers of a step follow.
        examples: What is known of each example, in the order of the batch.
        batch: The tensors of each part of the batch.
        weights: State of the model, and of a discriminator and a codebook's use where there are some, by name.
    """

    seed: int
    examples: tuple[Example, ...]
    batch: tuple[tuple[Tensor, ...], ...]
    weights: dict[str, dict[str, Any]]


def keep_bad_batch(
    out: Path, task: Task[Any, Any], config: FitConfig, last: LastStep, weights: dict[str, dict[str, Any]]
) -> str:
    """Write ``bad-batch.pt``.

    Examples depend on their position alone, so they are read again here, and nothing is kept from step to step.

    Args:
        out: Folder of the run.
        task: The task.
        config: Settings of the loop.
        last: The step.
        weights: See ``BadBatch``.

    Returns:
        A phrase that names the first examples, and the file, or why it could not be written.
    """
    size, parts, path = config.batch_size, config.accumulation, out / BAD_BATCH_FILE
    start = (last.step - 1) * size
    examples = tuple(task.examples(start, size))
    read = task.batches(start, size // parts)
    batch = tuple(tuple(part) for part in islice(read, parts))
    if isinstance(read, Generator):  # ends the processes that read images
        read.close()
    fields = {field.name: getattr(last, field.name) for field in dataclasses.fields(last)}
    bad = BadBatch(**fields, seed=config.seed, examples=examples, batch=batch, weights=weights)
    more = f" and {size - _NAMED} more" if size > _NAMED else ""
    of = f"its batch is {', '.join(map(str, examples[:_NAMED]))}{more}"
    try:
        _write(path, bad)
    except OSError as error:
        return f"{of}, which could not be saved ({error.strerror})"
    return f"{of}, saved with the weights in {path}"


def _write(path: Path, bad: BadBatch) -> None:
    content = {field.name: getattr(bad, field.name) for field in dataclasses.fields(bad)}
    content |= {"format": _FORMAT, "examples": [dataclasses.asdict(example) for example in bad.examples]}
    size = bytes_of_tensors(bad.weights)
    write_atomically(path, lambda draft: torch.save(content, draft), draft=f"{path.name}.partial", size=size)


def read_bad_batch(path: str | Path) -> BadBatch:
    """Read a bad batch. No code in it is executed.

    Raises:
        CheckpointError: The file is missing or damaged, or is something else.
    """
    path = Path(path)
    content = load_plain(path, "run the training again to make another")
    try:
        if content.pop("format", None) != _FORMAT:
            raise TypeError
        examples = tuple(Example(**example) for example in content.pop("examples"))
        return BadBatch(**content, examples=examples)
    except TypeError as error:
        raise CheckpointError(f"{path} is not a {BAD_BATCH_FILE} of a training run") from error
