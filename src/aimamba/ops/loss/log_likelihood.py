"""Log-likelihood of tokens under a linear head in slices, so that all logits never exist at once.

Unlike the mean of ``cross_entropy``, it may be a part of any function of the likelihoods: logits are computed a second
time in the backward pass, when it is known how much each token counts.

Shape letters: M tokens, D width, V vocabulary.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from aimamba.ops.loss.cross_entropy import most_logits


def sliced_log_likelihood(
    hidden: Float[Tensor, "m d"],
    weight: Float[Tensor, "v d"],
    targets: Int[Tensor, " m"],
    *,
    logits_at_once: int | None = None,
) -> Float[Tensor, " m"]:
    """Compute ``log_softmax((hidden @ weight.T).float())`` at the targets, slice by slice.

    Under autocast the products have its dtype; everything else is float32 or better.

    Args:
        hidden: Inputs of the head.
        weight: Weight of the head.
        targets: The class of each token.
        logits_at_once: Logits that may exist at a time, see ``sliced_cross_entropy``.
    """
    device = hidden.device.type
    rows = max(1, (logits_at_once or most_logits(hidden.device)) // weight.shape[0])
    # On the meta device, where memory is planned, autocast is that of the CPU.
    of = "cpu" if device == "meta" else device
    narrow = torch.get_autocast_dtype(of) if torch.is_autocast_enabled(of) else hidden.dtype
    with torch.autocast(of, enabled=False):
        inputs, head = hidden.to(narrow), weight.to(narrow)
        parts = [
            checkpoint(_of_slice, part, head, of_part, use_reentrant=False, preserve_rng_state=False)
            for part, of_part in zip(inputs.split(rows), targets.split(rows), strict=True)
        ]
    return torch.cat(parts)


def _of_slice(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    logits = hidden @ head.mT
    logs = F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
    return logs.gather(1, targets[:, None])[:, 0]
