"""AdamW with weight decay on matrices only, the learning rate schedule, and a network with its optimiser."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

Schedule = Literal["constant", "cosine", "linear"]

_HEEDING = ("cpu", "cuda")  # types of devices


def heeds_numbers(device: torch.device) -> bool:
    """Return whether PyTorch's fused optimisers heed ``grad_scale`` and ``found_inf`` there: Apple's do not."""
    return device.type in _HEEDING


def adamw(
    model: nn.Module,
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    no_weight_decay: Callable[[str], bool] | None = None,
) -> AdamW:
    """Create AdamW (Loshchilov and Hutter, arXiv 1711.05101) for every parameter that requires a gradient.

    Weight decay applies to parameters of two axes or more, that is matrices and convolution kernels. It skips gains,
    biases and Mamba's ``A_log``, ``D`` and ``dt_bias``, which have one axis, and the weights of ``nn.Embedding``, also
    where a head is tied to them. The official AiM code intends the same, but its weight decay never applies.

    Args:
        model: The model to train.
        lr: Learning rate; the training loop sets it again for every step.
        betas: Decay of the first and second moment.
        weight_decay: Each step multiplies a matrix by ``1 - lr * weight_decay``.
        no_weight_decay: Returns, for the name of a parameter of two axes or more, whether to skip it too.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spare = parameter.ndim < 2 or id(parameter) in tables or (no_weight_decay and no_weight_decay(name))
            (spared if spare else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return AdamW([group for group in groups if group["params"]], lr=lr, betas=betas, fused=True)


def learning_rate(
    step: int, *, peak: float, steps: int, warmup_steps: int, schedule: Schedule, final_fraction: float
) -> float:
    """Return the learning rate of a step.

    It rises linearly to ``peak`` in the last of the ``warmup_steps``. Then it stays there, or falls along half a cosine
    or a straight line that would reach ``final_fraction * peak`` in step ``steps``, the first one not taken.

    Args:
        step: Number of the step, counted from 0.
        peak: Highest learning rate.
        steps: Total number of steps.
        warmup_steps: Steps in which the learning rate rises.
        schedule: How it falls afterwards.
        final_fraction: Learning rate at the end, as a fraction of ``peak``.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / (steps - warmup_steps)
    remaining = {"constant": 1.0, "cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done}[schedule]
    return peak * (final_fraction + (1 - final_fraction) * remaining)


class Learner(NamedTuple):
    """A network with its optimiser.

    Attributes:
        network: The network.
        optimizer: The optimiser of its parameters.
        peak: Its highest learning rate.
    """

    network: nn.Module
    optimizer: AdamW
    peak: float

    def clip(self, limit: float) -> Tensor:
        """Let the next step clip the norm of the gradient of all parameters; return the norm.

        Where it can, the optimiser divides each gradient as it reads it, which saves a pass of its own.

        Args:
            limit: Largest norm; 0 is no limit.
        """
        gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
        device = next(self.network.parameters()).device
        if not gradients:  # as of a discriminator that does not train yet
            return torch.zeros((), device=device)
        norm = nn.utils.get_total_norm(gradients)
        if hasattr(norm, "full_tensor"):  # of sharded parameters, each process has a part of it
            norm = norm.full_tensor()
        norm = norm.float()
        scale = ((norm + 1e-6) / limit).clamp(min=1.0) if limit else None  # 1e-6 is what clip_grad_norm_ adds
        if scale is not None and not heeds_numbers(device):
            torch._foreach_div_(gradients, scale)
        else:  # how torch's GradScaler tells a fused optimiser
            self.optimizer.grad_scale = scale  # type: ignore[attr-defined]
        return norm

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next steps."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def step(self, skip: Tensor | None = None) -> None:
        """Update the parameters that have a gradient.

        Args:
            skip: A float32 scalar on the device; 1 leaves parameters and moments as they are. So nobody has to wait for
                it, unlike for a condition, but on devices whose optimisers do not heed it.
        """
        if skip is not None and not heeds_numbers(skip.device):
            if skip == 0:
                self.optimizer.step()
            return
        self.optimizer.found_inf = skip  # type: ignore[attr-defined]  # like grad_scale in clip
        self.optimizer.step()

    def make_recordable(self) -> None:
        """Prepare for a CUDA graph: the learning rate becomes a tensor, which ``set_lr`` fills.

        The states that are saved and loaded have numbers all the same.
        """

        def with_numbers(optimizer: Optimizer, state: dict[str, Any]) -> None:
            for group in state["param_groups"]:
                group |= {"lr": float(group["lr"]), "capturable": False}

        for group in self.optimizer.param_groups:
            rate = torch.tensor(float(group["lr"]), dtype=torch.float32, device=group["params"][0].device)
            group |= {"lr": rate, "capturable": True}
        self.optimizer.register_state_dict_post_hook(with_numbers)
