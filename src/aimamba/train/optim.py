"""AdamW with decay on matrices only, the learning rate of each step, and the step itself."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.optim import AdamW

Schedule = Literal["constant", "cosine", "linear"]


def adamw(
    model: nn.Module,
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    no_weight_decay: Callable[[str], bool] | None = None,
) -> AdamW:
    """Make the optimiser (Loshchilov and Hutter, arXiv 1711.05101) of every parameter that wants a gradient.

    Decay shrinks what multiplies activations: parameters of two axes or more, matrices and convolution kernels. It
    spares gains, biases and Mamba's ``A_log``, ``D`` and ``dt_bias``, which have one axis, and tables that are looked
    up, that is the weights of ``nn.Embedding`` (also where a head is tied to one). Official AiM means to do the same,
    but its decay never applies.

    Args:
        model: What to train.
        lr: Learning rate; the loop sets it anew for every step.
        betas: Decay of the first and second moment.
        weight_decay: What a matrix loses per step, as a fraction of ``lr`` times itself.
        no_weight_decay: Says by its name that a parameter is to be spared although it has two axes or more.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spare = parameter.ndim < 2 or id(parameter) in tables or (no_weight_decay and no_weight_decay(name))
            (spared if spare else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return AdamW(groups, lr=lr, betas=betas, fused=True)


def learning_rate(
    step: int, *, peak: float, steps: int, warmup_steps: int, schedule: Schedule, final_fraction: float
) -> float:
    """Give the learning rate of step ``step``, counted from 0.

    It rises in equal parts to ``peak``, which the last of the ``warmup_steps`` has, then stays there or falls as half a
    cosine or a straight line that would be at ``final_fraction * peak`` in step ``steps``, the first not taken.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / (steps - warmup_steps)
    remaining = {"constant": 1.0, "cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done}[schedule]
    return peak * (final_fraction + (1 - final_fraction) * remaining)


class Learner(NamedTuple):
    """A network with its optimiser.

    Attributes:
        network: What learns.
        optimizer: Of its parameters.
        peak: Its highest learning rate.
    """

    network: nn.Module
    optimizer: AdamW
    peak: float

    def clip(self, limit: float) -> Tensor:
        """Shorten the gradient to ``limit`` (0 is no limit), over all parameters together, and give its old length."""
        return nn.utils.clip_grad_norm_(self.network.parameters(), limit or math.inf).float()

    def step(self, lr: float) -> None:
        """Take a step of learning rate ``lr``; what has no gradient stays as it is."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
