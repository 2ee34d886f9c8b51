"""Cross entropy of a linear head in slices of tokens, so that all logits never exist at once.

Shape letters: M tokens, D width, V vocabulary.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def sliced_cross_entropy(
    hidden: Float[Tensor, "m d"], weight: Float[Tensor, "v d"], targets: Int[Tensor, " m"], *, logits_at_once: int
) -> Float[Tensor, ""]:
    """Compute ``cross_entropy((hidden @ weight.T).float(), targets)``, the mean over tokens, slice by slice.

    The gradients of a slice are computed together with its loss, while its logits exist. So no product is computed
    twice, and only tensors of the shapes of ``hidden`` and ``weight`` are kept for the backward pass. Differentiable
    once. Under autocast the products have its dtype; everything else is float32 or better.

    Args:
        hidden: Inputs of the head.
        weight: Weight of the head.
        targets: The correct class of each token.
        logits_at_once: Logits that may exist at a time; a slice has at least one token.
    """
    device = hidden.device.type
    narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    rows = max(1, logits_at_once // weight.shape[0])
    with torch.autocast(device, enabled=False):
        return _SlicedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden, weight, targets, rows, narrow, torch.is_grad_enabled()
        )


class _SlicedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, rows: int, narrow: torch.dtype, learning: bool
    ) -> Tensor:
        wide = torch.promote_types(narrow, torch.float32)
        head = weight.to(narrow)
        wants_hidden, wants_weight = (learning and wanted for wanted in ctx.needs_input_grad[:2])
        dhidden = torch.empty_like(hidden) if wants_hidden else None
        dweight: Tensor | None = None
        total = hidden.new_zeros((), dtype=wide)
        for start in range(0, len(hidden), rows):
            part = hidden[start : start + rows].to(narrow)
            target = targets[start : start + rows, None]
            logs = F.log_softmax((part @ head.mT).to(wide), dim=-1)  # (rows, V)
            total -= logs.gather(1, target).sum()
            if wants_hidden or wants_weight:
                dlogits = logs.exp_().scatter_add_(1, target, logs.new_full(target.shape, -1.0))
                dlogits = dlogits.div_(len(hidden)).to(narrow)
                if dhidden is not None:
                    dhidden[start : start + rows] = dlogits @ head
                if wants_weight and dweight is None:
                    dweight = (dlogits.mT @ part).to(wide)
                elif dweight is not None and narrow == wide:
                    dweight.addmm_(dlogits.mT, part)
                elif dweight is not None:
                    dweight += dlogits.mT @ part
        ctx.save_for_backward(dhidden, None if dweight is None else dweight.to(weight.dtype))
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        dhidden, dweight = (None if saved is None else _scaled(saved, gradient) for saved in ctx.saved_tensors)
        return dhidden, dweight, None, None, None, None


def _scaled(tensor: Tensor, factor: Tensor) -> Tensor:
    """Multiply, except by the usual factor of 1 if it can be read without waiting for a device."""
    return tensor if factor.device.type == "cpu" and factor == 1 else tensor * factor.to(tensor.dtype)
