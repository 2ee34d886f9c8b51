"""Divergence of a model's tokens from those of a guided teacher in slices, so that all logits never exist at once.

Shape letters: M tokens, D width, V vocabulary.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from aimamba.ops.loss.cross_entropy import most_logits
from aimamba.ops.sampling.logits import guide


def sliced_guided_divergence(
    hidden: Float[Tensor, "m d"],
    weight: Float[Tensor, "v d"],
    conditional: Float[Tensor, "m d"],
    unconditional: Float[Tensor, "m d"],
    teacher_weight: Float[Tensor, "v d"],
    scale: float,
    *,
    logits_at_once: int | None = None,
) -> Float[Tensor, " m"]:
    """Compute the Kullback-Leibler divergence ``KL(teacher || model)`` of each token, in nats, slice by slice.

    The teacher's logits are those of classifier-free guidance, see ``aimamba.ops.sampling.logits.guide``. Logits are
    computed a second time in the backward pass. Under autocast the products have its dtype; everything else is float32
    or better.

    Args:
        hidden: Inputs of the model's head.
        weight: Weight of the model's head.
        conditional: Inputs of the teacher's head, given the condition; without a gradient.
        unconditional: Those without the condition.
        teacher_weight: Weight of the teacher's head.
        scale: Scale of guidance.
        logits_at_once: Logits of each of the three that may exist at a time, see ``sliced_cross_entropy``.
    """
    device = hidden.device.type
    rows = max(1, (logits_at_once or most_logits(hidden.device)) // weight.shape[0])
    # On the meta device, where memory is planned, autocast is that of the CPU.
    of = "cpu" if device == "meta" else device
    narrow = torch.get_autocast_dtype(of) if torch.is_autocast_enabled(of) else hidden.dtype
    with torch.autocast(of, enabled=False):
        head, teacher_head = weight.to(narrow), teacher_weight.detach().to(narrow)
        slices = zip(*(each.to(narrow).split(rows) for each in (hidden, conditional, unconditional)), strict=True)
        parts = [
            checkpoint(_of_slice, *each, head, teacher_head, scale, use_reentrant=False, preserve_rng_state=False)
            for each in slices
        ]
    return torch.cat(parts)


def _of_slice(
    hidden: Tensor, conditional: Tensor, unconditional: Tensor, head: Tensor, teacher_head: Tensor, scale: float
) -> Tensor:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    with torch.no_grad():
        conditional, unconditional = ((each @ teacher_head.mT).to(wide) for each in (conditional, unconditional))
        wanted = F.log_softmax(guide(conditional, unconditional, scale), dim=-1)
    logs = F.log_softmax((hidden @ head.mT).to(wide), dim=-1)
    return (wanted.exp() * (wanted - logs)).sum(dim=-1)
