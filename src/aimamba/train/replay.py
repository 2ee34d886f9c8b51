"""Compute a bad batch again, which a run has left behind: see ``train.bad_batch``."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from aimamba.config import from_mapping
from aimamba.documents import parse_toml
from aimamba.errors import CheckpointError
from aimamba.train.bad_batch import BadBatch
from aimamba.train.recipe import Recipe
from aimamba.train.stages import make_task
from aimamba.train.step import step_generator
from aimamba.train.task import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay:
    """What a bad batch gives when its step is computed again.

    Attributes:
        loss: The sum that is minimised.
        not_finite: Names of the parameters whose gradient is not finite.
        alone: The loss of each example by itself, with other random numbers; where one is not finite, it is the cause.
    """

    loss: float
    not_finite: tuple[str, ...]
    alone: tuple[float, ...]


def replay(bad: BadBatch, task: Task[Any, Any] | None = None, *, device: torch.device | str = "cpu") -> Replay:
    """Compute the loss and the gradients of a bad batch again.

    Args:
        bad: The batch.
        task: The task of the run; by default it is prepared from the recipe, in the folder where the run began.
        device: Where to compute.

    Raises:
        ConfigError: The recipe cannot be used here.
        DataError: Its images are missing.
        CheckpointError: Its tokenizer is missing, or the weights do not fit the task.
    """
    device = torch.device(device)
    if task is None:
        task = make_task(from_mapping(Recipe, parse_toml(bad.recipe), where="recipe"), device=device, progress=False)
    for name, module in _modules_of(task).items():
        try:
            module.to(device).train().load_state_dict(bad.weights[name])
        except (LookupError, RuntimeError) as error:
            first = " ".join(str(error).split())[:160]
            raise CheckpointError(f"the weights of the bad batch do not fit this {name} ({first})") from error
    make = type(next(iter(task.batches(0, 1))))._make
    parts = [make(tensor.to(device) for tensor in part) for part in bad.batch]

    rng = step_generator(bad.seed, bad.step - 1, device)

    def loss_of(batch: Any) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bad.precision == "bfloat16"):
            return task.loss(task.model, batch, rng, bad.step - 1)[0]

    total = 0.0
    for part in parts:
        loss = loss_of(part)
        (loss / len(parts)).backward()
        total += float(loss.detach()) / len(parts)
    gradients = {name: parameter.grad for name, parameter in task.model.named_parameters()}
    wrong = [name for name, found in gradients.items() if found is not None and not bool(found.isfinite().all())]
    task.model.eval()
    with torch.no_grad():
        rows = [make(tensor[i : i + 1] for tensor in part) for part in parts for i in range(len(part[0]))]
        alone = tuple(float(loss_of(row)) for row in rows)
    return Replay(loss=total, not_finite=tuple(wrong), alone=alone)


def _modules_of(task: Task[Any, Any]) -> dict[str, nn.Module]:
    """Return the modules that a step of a task depends on, by their name in a checkpoint."""
    auxiliary = task.auxiliary()
    found = {"model": task.model} | ({} if auxiliary is None else {auxiliary.name: auxiliary.network})
    return found | {f"companion {name}": module for name, module in task.companions().items()}
