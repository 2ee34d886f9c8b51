"""From logits to a drawn code: guidance, temperature, top-k, top-p and the draw itself.

Every row stands alone: each setting is a number for all rows or a tensor with one value a row, and a draw needs only
the row's own probabilities and its own uniform number. Nothing here waits for a device or moves numbers to it, as long
as the tensors given are there already.

Shape letters: B rows, V vocabulary.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

Setting = float | int | Tensor


def _column(setting: Setting, like: Tensor) -> Tensor:
    """Give a setting the shape (B, 1), or (1, 1) for all rows alike."""
    if isinstance(setting, Tensor):
        return setting.to(like.device).reshape(-1, 1)
    return torch.full((1, 1), setting, device=like.device)  # filled there; `as_tensor` would wait for a transfer


def uniform_dtype(device: torch.device) -> torch.dtype:
    """The dtype that ``draw`` computes in: float64, float32 where a device lacks it."""
    return torch.float32 if device.type == "mps" else torch.float64


def guide(
    conditional: Float[Tensor, "b v"], unconditional: Float[Tensor, "b v"], scale: Setting
) -> Float[Tensor, "b v"]:
    """Classifier-free guidance on logits, ``u + scale (c - u)`` (AiM eq. 11, which the official code applies here)."""
    return unconditional + (conditional - unconditional) * _column(scale, conditional).to(conditional.dtype)


def top_k_filter(logits: Float[Tensor, "b v"], k: Setting) -> Float[Tensor, "b v"]:
    """Keep the ``k`` largest logits of each row (and what ties with the last of them); 0 keeps all."""
    if isinstance(k, int | float):
        if k <= 0 or k >= logits.shape[-1]:
            return logits
        threshold = logits.topk(int(k), dim=-1).values[:, -1:]
    else:
        size = logits.shape[-1]
        kept = k.masked_fill(k <= 0, size).clamp(max=size).to(torch.int64)
        threshold = logits.sort(dim=-1, descending=True).values.gather(-1, _column(kept - 1, logits))
    return logits.masked_fill(logits < threshold, -torch.inf)


def top_p_filter(logits: Float[Tensor, "b v"], p: Setting) -> Float[Tensor, "b v"]:
    """Keep the smallest set of most likely codes whose probability reaches ``p`` (nucleus sampling, 1904.09751).

    A code goes when it and all less likely ones together have at most ``1 - p``; the most likely one always stays.
    """
    if isinstance(p, int | float) and p >= 1:
        return logits
    ordered, order = logits.sort(dim=-1)
    tail = ordered.softmax(dim=-1).cumsum(dim=-1)
    remove = tail <= 1 - _column(p, logits).to(tail.dtype)
    remove = remove & (_column(p, logits) < 1)
    remove[:, -1] = False
    return logits.masked_fill(remove.scatter(-1, order, remove), -torch.inf)


def draw(probabilities: Float[Tensor, "b v"], uniform: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
    """Draw one code a row by inverting the cumulative distribution at ``uniform`` in [0, 1).

    A row's draw does not depend on the other rows. The sum runs in ``uniform_dtype``.
    """
    wide = uniform_dtype(probabilities.device)
    cumulative = probabilities.cumsum(dim=-1, dtype=wide)
    total = cumulative[:, -1:].contiguous()
    target = uniform.to(device=cumulative.device, dtype=wide)[:, None] * total
    # right=True steps over codes of probability zero; the last possible code guards the rounding of target up to the
    # total. What is not a number is found behind the last code, and `generate` reports it when the image ends.
    index = torch.searchsorted(cumulative, target, right=True)
    last = torch.searchsorted(cumulative, total)
    return torch.minimum(index, last).clamp_(max=probabilities.shape[-1] - 1).squeeze(-1)


def sample(
    logits: Float[Tensor, "b v"],
    uniform: Float[Tensor, " b"],
    *,
    temperature: Setting = 1.0,
    top_k: Setting = 0,
    top_p: Setting = 1.0,
) -> Int[Tensor, " b"]:
    """Draw a code a row: temperature, then top-k, then top-p, then the draw; temperature 0 takes the most likely."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    divisor = _column(temperature, logits)  # (B or 1, 1)
    greedy = divisor == 0
    scaled = logits / divisor.masked_fill(greedy, 1).to(logits.dtype)
    filtered = top_p_filter(top_k_filter(scaled, top_k), top_p)
    drawn = draw(filtered.softmax(dim=-1), uniform)
    return torch.where(greedy.squeeze(-1), logits.argmax(dim=-1), drawn)


def guided_sample(
    logits: Float[Tensor, "r v"],
    uniform: Float[Tensor, " b"],
    *,
    twins: Int[Tensor, " b"] | None = None,
    scale: Float[Tensor, " b"] | None = None,
    temperature: Setting = 1.0,
    top_k: Setting = 0,
    top_p: Setting = 1.0,
) -> Int[Tensor, " b"]:
    """Guide, then draw a code for each of B images; all that stands between a step's logits and the next step.

    Args:
        logits: A row for each image, and behind them rows of other conditions to guide away from.
        uniform: See ``draw``; on the device of ``logits``.
        twins: The row that each image is guided away from, its own where it is not; absent where none is guided.
        scale: Scale of guidance for each image, 1 where there is none; goes with ``twins``.
        temperature: See ``sample``.
        top_k: See ``sample``.
        top_p: See ``sample``.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    guided = logits[: len(uniform)]
    if twins is not None and scale is not None:
        guided = guide(guided, logits[twins], scale)  # of a row and itself: the row, exactly
    return sample(guided, uniform, temperature=temperature, top_k=top_k, top_p=top_p)
