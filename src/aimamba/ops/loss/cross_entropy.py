"""Cross entropy of a linear head in slices of tokens, so that all logits never exist at once.

On a CUDA device, where Triton is installed, one kernel turns the logits of a slice into their gradient in place.

Shape letters: M tokens, D width, V vocabulary.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from aimamba.ops import triton as kernels

_ON_CPU = 2**22  # logits: 16 MiB in float32, slices of 256 tokens for 16,384 codes
_SHARE_OF_CUDA = 512  # bytes of a CUDA device's memory for each logit that may exist: 4 thousandths hold them


def sliced_cross_entropy(
    hidden: Float[Tensor, "m d"],
    weight: Float[Tensor, "v d"],
    targets: Int[Tensor, " m"],
    *,
    smoothing: float = 0.0,
    logits_at_once: int | None = None,
) -> Float[Tensor, ""]:
    """Compute ``cross_entropy((hidden @ weight.T).float(), targets)``, the mean over tokens, slice by slice.

    The gradients of a slice are computed together with its loss, while its logits exist. So no product is computed
    twice, and only tensors of the shapes of ``hidden`` and ``weight`` are kept for the backward pass. Differentiable
    once. Under autocast the products have its dtype; everything else is float32 or better.

    Args:
        hidden: Inputs of the head.
        weight: Weight of the head.
        targets: The correct class of each token.
        smoothing: Share of each target that all classes get in equal parts (label smoothing, arXiv 1512.00567).
        logits_at_once: Logits that may exist at a time; a slice has at least one token. By default 4 million, and on a
            CUDA device as many as its memory has room for: thousands of tokens.
    """
    device = hidden.device.type
    logits_at_once = logits_at_once or most_logits(hidden.device)
    narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    rows = max(1, logits_at_once // weight.shape[0])
    with torch.autocast(device, enabled=False):
        loss: Tensor = _SlicedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden, weight, targets, rows, narrow, torch.is_grad_enabled()
        )
        return loss + smoothing * cost_of_even_targets(hidden, weight, targets) if smoothing else loss


def cost_of_even_targets(
    hidden: Float[Tensor, "m d"], weight: Float[Tensor, "v d"], targets: Int[Tensor, " m"]
) -> Float[Tensor, ""]:
    """Compute how far the mean cross entropy with even targets is above that with the correct ones.

    The normalisers of the logits cancel, which leaves the correct logit above the mean one; no further logits exist.
    """
    wide = torch.promote_types(hidden.dtype, torch.float32)
    above = F.embedding(targets, weight).to(wide) - weight.to(wide).mean(0)
    return (hidden.to(wide) * above).sum(-1).mean()


def most_logits(device: torch.device) -> int:
    """Return how many logits may exist at a time on a device."""
    if device.type != "cuda":
        return _ON_CPU
    return max(_ON_CPU, torch.cuda.get_device_properties(device).total_memory // _SHARE_OF_CUDA)


def _fused(logits: Tensor) -> bool:
    """Return whether the Triton kernel can take these logits."""
    if not logits.is_cuda or logits.dtype not in (torch.float32, torch.bfloat16) or kernels.unsupported() is not None:
        return False
    from aimamba.ops.loss.triton import cross_entropy as kernel  # noqa: PLC0415 - imports Triton

    return logits.shape[1] <= kernel.MOST_CODES


def _loss_and_gradient(logits: Tensor, targets: Tensor, tokens: int, learning: bool) -> tuple[Tensor, Tensor]:
    """Return the sum of the cross entropies and, if ``learning``, the gradient of their mean over all ``tokens``.

    The gradient has the dtype of ``logits`` and may replace them.
    """
    if _fused(logits):
        from aimamba.ops.loss.triton.cross_entropy import cross_entropy_  # noqa: PLC0415

        return cross_entropy_(logits, targets, 1 / tokens, learning=learning).sum(), logits
    narrow, targets = logits.dtype, targets[:, None]
    logs = F.log_softmax(logits.to(torch.promote_types(narrow, torch.float32)), dim=-1)  # (rows, V)
    loss = -logs.gather(1, targets).sum()
    if not learning:
        return loss, logits
    dlogits = logs.exp_().scatter_add_(1, targets, logs.new_full(targets.shape, -1.0))
    return loss, dlogits.div_(tokens).to(narrow)


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
            loss, dlogits = _loss_and_gradient(
                part @ head.mT, targets[start : start + rows], len(hidden), wants_hidden or wants_weight
            )
            total += loss
            if wants_hidden or wants_weight:
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
