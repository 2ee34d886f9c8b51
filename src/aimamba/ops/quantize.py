"""From vectors to codes and back: nearest codebook vectors, rounding to levels, signs, and relaxed one-hot vectors.

Shape letters: M vectors, V codebook size, E width of a codebook vector.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

_SCORES_AT_ONCE = 1 << 24
_WIDER = 1e-3  # share by which the range of FSQ exceeds its outermost levels, so that all of them are reached


@torch.no_grad()
def nearest_code(
    vectors: Float[Tensor, "m e"],
    codebook: Float[Tensor, "v e"],
    *,
    unit: bool = True,
    scores_at_once: int = _SCORES_AT_ONCE,
) -> Int[Tensor, " m"]:
    """Return the code of each vector: the index of the nearest codebook vector.

    Args:
        vectors: Vectors to replace.
        codebook: Codebook vectors.
        unit: Whether all rows have unit length, so that the nearest codebook vector has the largest inner product.
        scores_at_once: Most inner products to hold in memory.

    Returns:
        Indices into the codebook; the lowest one on a tie.
    """
    slices = vectors.split(max(1, scores_at_once // codebook.shape[0]))
    if unit:
        return torch.cat([(part @ codebook.t()).argmax(dim=-1) for part in slices])
    half = codebook.square().sum(dim=-1) / 2  # |v - e|^2 is smallest where v . e - |e|^2 / 2 is largest
    return torch.cat([(part @ codebook.t()).sub_(half).argmax(dim=-1) for part in slices])


def bound_to_levels(latents: Float[Tensor, "*b e"], levels: Sequence[int]) -> Float[Tensor, "*b e"]:
    """Squash each channel so that rounding gives as many integers as it has levels (FSQ, arXiv 2309.15505, A.1).

    The integers of L levels are ``-(L // 2)`` to ``(L - 1) // 2``, and a latent of 0 gives 0.
    """
    count = _numbers(tuple(levels), latents.dtype, latents.device)
    half = (count - 1) * (1 + _WIDER) / 2
    offset = (1 - count % 2) / 2  # an even number of integers is not symmetric
    return torch.tanh(latents + torch.atanh(offset / half)) * half - offset


def levels_to_codes(integers: Float[Tensor, "*b e"], levels: Sequence[int]) -> Int[Tensor, "*b"]:
    """Return the codes of rounded latents, see ``bound_to_levels``: the first channel is the lowest digit."""
    half, place = half_levels(levels, torch.long, integers.device), _places(levels, integers.device)
    return ((integers.round().long() + half) * place).sum(dim=-1)


def codes_to_levels(codes: Int[Tensor, "*b"], levels: Sequence[int]) -> Int[Tensor, "*b e"]:
    """Return the integers of codes, see ``levels_to_codes``."""
    count = _numbers(tuple(levels), torch.long, codes.device)
    half, place = half_levels(levels, torch.long, codes.device), _places(levels, codes.device)
    return codes.long()[..., None] // place % count - half


def half_levels(levels: Sequence[int], dtype: torch.dtype, device: torch.device) -> Shaped[Tensor, " e"]:
    """Return half of each number of levels, rounded down: the largest integer below 0, see ``bound_to_levels``."""
    return _numbers(tuple(count // 2 for count in levels), dtype, device)


def _places(levels: Sequence[int], device: torch.device) -> Tensor:
    return _numbers(tuple(math.prod(levels[:index]) for index in range(len(levels))), torch.long, device)


@lru_cache(maxsize=16)
def _numbers(numbers: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return constants, which are kept: a step of training would wait for their copy."""
    with torch.inference_mode(mode=False):  # a normal tensor, which later calls can use in every mode
        return torch.tensor(numbers, dtype=dtype, device=device)


def signs_to_codes(latents: Float[Tensor, "*b e"]) -> Int[Tensor, "*b"]:
    """Return the codes of the signs of latents: bit i is set where channel i is above 0."""
    bits = torch.arange(latents.shape[-1], device=latents.device)
    return ((latents > 0).long() << bits).sum(dim=-1)


def codes_to_signs(codes: Int[Tensor, "*b"], width: int) -> Int[Tensor, "*b e"]:
    """Return the signs of codes, -1 or 1."""
    bits = torch.arange(width, device=codes.device)
    return 2 * (codes.long()[..., None] >> bits & 1) - 1


def sign_entropies(
    latents: Float[Tensor, "m e"], temperature: float, average: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return two entropies in nats of codes that are chosen by distance (LFQ, arXiv 2310.05737, eq. 4).

    A latent takes a code with a probability proportional to ``exp(-d / temperature)``, d being the squared distance to
    the code's signs. So bits are independent, and a bit is set with probability ``sigmoid(4 latent / temperature)``.

    Args:
        latents: Latents of a batch.
        temperature: See above.
        average: Averages a tensor over processes, with a gradient.

    Returns:
        The mean entropy of a latent's code, and the entropy of the mean distribution over all ``2^e`` codes, the mean
        being over all latents of all processes.
    """
    logits = 4 / temperature * latents
    each = F.softplus(logits) - logits * torch.sigmoid(logits)  # of a bit
    half = latents.shape[-1] // 2
    # The probability of a code is that of its first bits times that of the others, so the mean is a matrix product.
    first, others = (_probabilities(part) for part in (logits[:, :half], logits[:, half:]))
    mean = average(first.t() @ others / len(latents))
    return each.sum(dim=-1).mean(), -torch.xlogy(mean, mean.clamp(min=torch.finfo(mean.dtype).tiny)).sum()


def _probabilities(logits: Float[Tensor, "m e"]) -> Float[Tensor, "m v"]:
    """Return the probability of each combination of independent bits."""
    found = logits.new_ones(len(logits), 1)
    for logit in logits.unbind(dim=-1):
        set_ = torch.sigmoid(logit)[:, None]
        found = torch.cat([found * (1 - set_), found * set_], dim=-1)
    return found


def relaxed_one_hot(
    logits: Float[Tensor, "*b v"], uniform: Float[Tensor, "*b v"], temperature: float
) -> Float[Tensor, "*b v"]:
    """Return a sample of the Gumbel-softmax distribution (arXiv 1611.01144): weights that add up to 1.

    Args:
        logits: Unnormalised logarithms of the probabilities of codes.
        uniform: Random numbers in [0, 1).
        temperature: The lower, the nearer to one-hot vectors.
    """
    noise = -(-uniform.clamp(min=torch.finfo(uniform.dtype).tiny).log()).log()
    return F.softmax((logits + noise) / temperature, dim=-1)


def divergence_from_uniform(logits: Float[Tensor, "*b v"]) -> Float[Tensor, ""]:
    """Return the mean KL divergence in nats of the distributions over codes from the uniform one."""
    logs = F.log_softmax(logits, dim=-1)
    return (logs.exp() * logs).sum(dim=-1).mean() + math.log(logits.shape[-1])
