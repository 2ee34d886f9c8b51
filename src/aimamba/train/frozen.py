"""What the objectives share that fine-tune a generator beside a frozen copy of what it is when training begins.

Shape letters: B batch, L codes of an image, D width.
"""

import copy
from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor

from aimamba.checkpoints.fingerprint import fingerprint
from aimamba.config import check, to_mapping
from aimamba.models import AiM
from aimamba.ops.loss.log_likelihood import sliced_log_likelihood
from aimamba.train.conditions import Conditions
from aimamba.train.generator import GeneratorTask
from aimamba.train.settings import FitConfig


class FrozenCopyTask(GeneratorTask):
    """Fine-tuning of a generator beside a frozen copy of what it is when the task is made.

    The copy shares the weights that are not trained. It is not a part of checkpoints, which would be twice as large: a
    run that goes on takes it from ``init`` again, whose fingerprint has to be the same.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Take the arguments of ``GeneratorTask``."""
        super().__init__(*arguments, **options)
        self.copy = frozen_copy(self.model)

    def basis(self) -> dict[str, str]:
        """Return the fingerprints of ``GeneratorTask.basis`` and that of the frozen copy."""
        config = to_mapping(self.model.config)
        return {**super().basis(), "init": fingerprint(config, self.copy.state_dict())}

    def copy_on(self, device: torch.device) -> AiM:
        """Return the frozen copy, on a device."""
        if self.copy.word_embedding.weight.device != device:
            self.copy.to(device)
        return self.copy


def frozen_copy(model: AiM) -> AiM:
    """Return a frozen copy of ``model``, which shares the weights that are not trained."""
    frozen = {id(weight): weight for weight in model.parameters() if not weight.requires_grad}
    return copy.deepcopy(model, frozen).requires_grad_(False)


def hidden_states(
    model: AiM, given: Conditions, mask: Tensor | None, read: Tensor, *, checkpointing: bool = False
) -> Tensor:
    """Return the inputs of the head at each code (B L, D).

    Args:
        model: The generator.
        given: The conditions.
        mask: Factors for the word embeddings (B, L - 1, D).
        read: What the model reads in place of the codes before each (B, L - 1).
        checkpointing: See ``AiM.forward``.
    """
    hidden = model(read, given.labels, given.captions, token_mask=mask, head=False, checkpointing=checkpointing)
    return hidden.flatten(0, 1)


def log_likelihood(
    model: AiM,
    given: Conditions,
    codes: Tensor,
    mask: Tensor | None,
    read: Tensor,
    *,
    checkpointing: bool = False,
    logits_at_once: int | None = None,
) -> Tensor:
    """Return the logarithm of the likelihood of each image's codes (B, L), as (B,), given its condition.

    The other arguments are those of ``hidden_states`` and ``sliced_log_likelihood``.
    """
    hidden = hidden_states(model, given, mask, read, checkpointing=checkpointing)
    head = model.word_embedding.weight
    of_codes = sliced_log_likelihood(hidden, head, codes.flatten(), logits_at_once=logits_at_once)
    return of_codes.view(codes.shape).sum(dim=1)


@overload
def twice(rows: Tensor) -> Tensor: ...
@overload
def twice(rows: Tensor | None) -> Tensor | None: ...
def twice(rows: Tensor | None) -> Tensor | None:
    """Return rows, and the same rows again."""
    return None if rows is None else torch.cat([rows, rows])


def check_loop(objective: str, config: FitConfig) -> None:
    """Check that the loop of a run suits such an objective.

    Raises:
        ConfigError: It does not.
    """
    check(
        not config.compile,
        f"fit.compile would not compile the frozen copy of task.objective = '{objective}'; set it to false",
    )


def check_known(objective: str, *, fresh_classes: Sequence[str], fresh_captions: bool, init: str) -> None:
    """Check that a model knows the conditions of the images that it is to be fine-tuned on by such an objective.

    Args:
        objective: Its name.
        fresh_classes: The classes that ``init`` does not know.
        fresh_captions: Whether the generator begins to learn captions.
        init: The model that it starts from, for messages.

    Raises:
        ConfigError: It does not.
    """
    what = "captions" if fresh_captions else f"the class {fresh_classes[0]!r}" if fresh_classes else ""
    check(
        not what,
        f"task.objective = '{objective}' sharpens what a model knows, and {init} does not know {what}; train it first, "
        "as with 'aimamba train aim-finetune', and start from that run",
    )
