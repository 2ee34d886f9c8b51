"""From logits to tokens: guidance, temperature, top-k, top-p, min-p, and sampling itself.

Rows are independent: each setting is a number for all rows or a tensor with one value a row, and a row's token depends
only on its own probabilities and its own uniform number. Nothing here waits for a device or copies to it, if the given
tensors are on it already.

Shape letters: B rows, V vocabulary.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

Setting = float | int | Tensor
"""A number for all rows, or a tensor with one value a row."""


def _column(setting: Setting, like: Tensor) -> Tensor:
    """Return a setting as a tensor of shape (B, 1), or (1, 1) if it is the same for all rows."""
    if isinstance(setting, Tensor):
        return setting.to(like.device).reshape(-1, 1)
    dtype = settings_dtype([setting])  # filled on the device; `as_tensor` would wait for a copy
    return torch.full((1, 1), setting, dtype=dtype, device=like.device)


def settings_dtype(settings: Sequence[float | int]) -> torch.dtype:
    """Return the dtype of settings of rows: int64 or float32, whatever PyTorch's default dtype is."""
    return torch.long if all(isinstance(setting, int) for setting in settings) else torch.float32


def uniform_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype that ``sample_categorical`` computes in: float64, or float32 on devices without float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def guide(
    conditional: Float[Tensor, "b v"], unconditional: Float[Tensor, "b v"], scale: Setting
) -> Float[Tensor, "b v"]:
    """Apply classifier-free guidance to logits: ``u + scale (c - u)`` (AiM, eq. 11, as in the official code)."""
    return unconditional + (conditional - unconditional) * _column(scale, conditional).to(conditional.dtype)


def top_k_filter(logits: Float[Tensor, "b v"], k: Setting) -> Float[Tensor, "b v"]:
    """Set all but the ``k`` largest logits of each row to -inf; ties with the k-th largest stay, and 0 keeps all."""
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
    """Keep the smallest set of most likely tokens whose probability reaches ``p``; set other logits to -inf.

    This is nucleus sampling (Holtzman et al., arXiv 1904.09751). A token is removed if the total probability of it and
    all less likely tokens is at most ``1 - p``. The most likely token always stays.
    """
    if isinstance(p, int | float) and p >= 1:
        return logits
    ordered, order = logits.sort(dim=-1)
    tail = ordered.softmax(dim=-1).cumsum(dim=-1)
    remove = tail <= 1 - _column(p, logits).to(tail.dtype)
    remove = remove & (_column(p, logits) < 1)
    remove[:, -1] = False
    return logits.masked_fill(remove.scatter(-1, order, remove), -torch.inf)


def min_p_filter(logits: Float[Tensor, "b v"], p: Setting) -> Float[Tensor, "b v"]:
    """Set logits of tokens less likely than ``p`` times the most likely one to -inf (Nguyen et al., arXiv 2407.01082).

    The most likely token always stays; 0 keeps all.
    """
    if isinstance(p, int | float) and p <= 0:
        return logits
    ratio = (logits - logits.amax(dim=-1, keepdim=True)).exp()
    return logits.masked_fill(ratio < _column(p, logits).to(ratio.dtype), -torch.inf)


def sample_categorical(probabilities: Float[Tensor, "b v"], uniform: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
    """Sample one token a row by inverting the cumulative distribution at ``uniform`` in [0, 1).

    A row's token does not depend on the other rows. The cumulative sum has ``uniform_dtype``.
    """
    wide = uniform_dtype(probabilities.device)
    cumulative = probabilities.cumsum(dim=-1, dtype=wide)
    total = cumulative[:, -1:].contiguous()
    target = uniform.to(device=cumulative.device, dtype=wide)[:, None] * total
    # right=True skips tokens of probability zero. The minimum with the last possible token guards against a target
    # that rounds up to the total. NaN is found after the last token, and `generate` reports it at the end of the image.
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
    min_p: Setting = 0.0,
) -> Int[Tensor, " b"]:
    """Sample a token a row: divide by the temperature, apply top-k, top-p and min-p, then choose at random.

    Args:
        logits: Logits of the tokens.
        uniform: A number in [0, 1) for each row; see ``sample_categorical``.
        temperature: Divisor of the logits; at 0 the most likely token is chosen.
        top_k: Number of most likely tokens to choose from; 0 for all.
        top_p: Probability of the most likely tokens to choose from; 1 for all.
        min_p: Least probability of a token, as a share of the most likely one's; 0 for all.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    divisor = _column(temperature, logits)  # (B or 1, 1)
    greedy = divisor == 0
    scaled = logits / divisor.masked_fill(greedy, 1).to(logits.dtype)
    filtered = min_p_filter(top_p_filter(top_k_filter(scaled, top_k), top_p), min_p)
    sampled = sample_categorical(filtered.softmax(dim=-1), uniform)
    return torch.where(greedy.squeeze(-1), logits.argmax(dim=-1), sampled)


def guided_sample(
    logits: Float[Tensor, "r v"],
    uniform: Float[Tensor, " b"],
    *,
    unconditional_rows: Int[Tensor, " b"] | None = None,
    scale: Float[Tensor, " b"] | None = None,
    temperature: Setting = 1.0,
    top_k: Setting = 0,
    top_p: Setting = 1.0,
    min_p: Setting = 0.0,
) -> Int[Tensor, " b"]:
    """Apply guidance, then sample the next token of each of B images.

    Args:
        logits: A row for each image, then the unconditional rows.
        uniform: A number in [0, 1) for each image, on the device of ``logits``.
        unconditional_rows: The unconditional row of each image, or its own row if it is not guided; None if no image is
            guided.
        scale: Scale of guidance for each image, 1 if it is not guided; needed with ``unconditional_rows``.
        temperature: See ``sample``.
        top_k: See ``sample``.
        top_p: See ``sample``.
        min_p: See ``sample``.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    guided = logits[: len(uniform)]
    if unconditional_rows is not None and scale is not None:
        guided = guide(guided, logits[unconditional_rows], scale)  # guiding a row by itself returns it exactly
    return sample(guided, uniform, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
