"""The part of a Mamba-2 mixer between its two projections, for one token a row.

The functions here compute what ``causal_conv_step``, ``ssd_step`` and the gated norm do, in the form that a recorded
graph needs: shapes never change, memory is updated in place, every row has its own position, and no value is read back
from the device. They are the plain versions of the kernels in ``aimamba.ops.mixer.triton.step``, which have the same
signatures.

SSD has two forms of a step (Dao and Gu, arXiv 2405.21060, section 5), and a third is made of both. With
a_u = exp(dt_u A),

    state    h_t = a_t h_{t-1} + dt_t x_t B_t^T,   y_t = h_t C_t
    dual     y_t = sum over s <= t of (C_t . B_s) (a_{s+1} ... a_t) dt_s x_s
    folded   y_t = (a_{f+1} ... a_t) h_f C_t + sum over f < s <= t of (C_t . B_s) (a_{s+1} ... a_t) dt_s x_s

The first reads and writes a state of H P N numbers. The second reads t tokens of N + H P + H numbers; it writes one
token, and the H weights ``(a_{s+1} ... a_t) dt_s`` of every token, which decay in place by a_t in each step. Its x may
be kept in 8 bits, with one scale a head and token, which is part of the weight. The third caches tokens likewise; when
the cache is full, they are folded into the state h_f, which is otherwise only read. So it moves less than half of what
the first does, however long the sequence.

Shape letters: B rows, E = H P inner width, H heads, P head width, N state size, C = E + 2 N convolved channels, K taps,
T tokens that a cache holds, F = E + C + H projected features, G partial sums.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor
from torch.nn import functional as F

from aimamba.ops.mixer.weights import MixerWeights


class _Token(NamedTuple):
    """One token after the convolution, in float32 or better."""

    x: Tensor  # (B, H, P)
    B: Tensor  # (B, N)
    C: Tensor  # (B, N)
    dt: Tensor  # (B, H)
    A: Tensor  # (H,)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _convolve(projected: Tensor, weights: MixerWeights, window: Tensor, position: Tensor) -> _Token:
    """Write the new input into the ring, convolve and split."""
    dtype = _wide(projected.dtype)
    heads, inner = weights.D.shape[0], weights.norm_weight.shape[0]
    taps, channels = window.shape[1:]
    rows = torch.arange(len(projected), device=projected.device)
    new, dt = projected[:, inner:].split([channels, heads], dim=-1)
    window[rows, position % taps] = new.to(window.dtype)
    age = torch.arange(taps - 1, -1, -1, device=projected.device)  # of the input that each tap is multiplied with
    read = position[:, None] - age  # (B, K)
    inputs = window[rows[:, None], read % taps].to(dtype).masked_fill(read[..., None] < 0, 0.0)  # (B, K, C)
    convolved = weights.conv_bias.to(dtype) + (inputs * weights.conv_weight.to(dtype).t()).sum(dim=1)
    states = (channels - inner) // 2
    x, B, C = F.silu(convolved).split([inner, states, states], dim=-1)
    dt = F.softplus(dt.to(dtype) + weights.dt_bias.to(dtype))
    return _Token(x.unflatten(-1, (heads, -1)), B, C, dt, -weights.A_log.to(dtype).exp())


def _gate(y: Tensor, token: _Token, projected: Tensor, weights: MixerWeights) -> tuple[Tensor, Tensor]:
    """Add the skip, gate, and do the part of the norm that needs one head alone: its scale and its sum of squares."""
    z = projected[:, : weights.norm_weight.shape[0]].to(y.dtype)
    y = (y + weights.D.to(y.dtype)[:, None] * token.x).flatten(1) * F.silu(z)  # (B, E)
    return (y * weights.norm_weight.to(y.dtype)).to(projected.dtype), y.square().sum(dim=-1, keepdim=True)


def state_mixer_step(
    projected: Float[Tensor, "b f"],
    weights: MixerWeights,
    window: Float[Tensor, "b k c"],
    ssm: Float[Tensor, "b h p n"],
    position: Int[Tensor, " b"],
) -> tuple[Float[Tensor, "b e"], Float[Tensor, "b g"]]:
    """Convolve, apply the SSD in its state form, add the skip and gate.

    Args:
        projected: Output of the input projection: z, (x, B, C) and dt.
        weights: Weights of the mixer.
        window: The last K inputs of the convolution, as a ring: the input at position p is in slot p mod K. Updated in
            place. Slots from before the first token are not read.
        ssm: State, float32 or wider. Updated in place; not read for a row at position 0.
        position: Tokens that each row has consumed before.

    Returns:
        ``y * silu(z) * norm_weight``, (B, E), still to be divided by the root mean square of ``y * silu(z)``, and the
        sum of the squares of ``y * silu(z)`` as G partial sums, (B, G).
    """
    token = _convolve(projected, weights, window, position)
    decay = torch.exp(token.dt * token.A)[..., None, None]  # (B, H, 1, 1)
    update = (token.dt[..., None] * token.x)[..., None] * token.B[:, None, None]  # (B, H, P, N)
    ssm.copy_(ssm.masked_fill(position[:, None, None, None] == 0, 0.0) * decay + update)
    y = torch.einsum("bhpn,bn->bhp", ssm.to(decay.dtype), token.C)
    return _gate(y, token, projected, weights)


def dual_mixer_step(
    projected: Float[Tensor, "b f"],
    weights: MixerWeights,
    window: Float[Tensor, "b k c"],
    B_cache: Float[Tensor, "b t n"],
    x_cache: Num[Tensor, "b h t p"],
    weight_cache: Float[Tensor, "b h t"],
    position: Int[Tensor, " b"],
) -> tuple[Float[Tensor, "b e"], Float[Tensor, "b g"]]:
    """Convolve, apply the SSD in its dual form, add the skip and gate.

    Takes and returns what ``state_mixer_step`` does, with caches of B, x and the tokens' weights instead of the state.
    The token at position p is in slot p of the caches, so positions must be below T; slots behind a row's position are
    not read. ``weight_cache`` is float32 or wider: a token enters it with its dt, and decays by ``exp(dt A)`` of each
    later token. The other caches may be narrower: only B and x themselves are rounded, and not those of this token.

    ``x_cache`` may be int8. Then a head's x of a token is stored in steps of its largest magnitude / 127, and a token
    enters ``weight_cache`` with dt times that step, so a number is wrong by at most half a step and the sum y of a head
    by at most the sum over s of ``|C . B_s| (weight of s) (largest |x_s|) / 254``. A token with NaN or infinity
    enters with an infinite weight, so that a state that is not finite stays so.
    """
    token = _convolve(projected, weights, window, position)
    return _gate(_attend(token, B_cache, x_cache, weight_cache, position), token, projected, weights)


def folded_mixer_step(
    projected: Float[Tensor, "b f"],
    weights: MixerWeights,
    window: Float[Tensor, "b k c"],
    B_cache: Float[Tensor, "b t n"],
    x_cache: Num[Tensor, "b h t p"],
    weight_cache: Float[Tensor, "b h t"],
    folded: Float[Tensor, "b h p n"],
    carry: Float[Tensor, "b h"],
    position: Int[Tensor, " b"],
    *,
    every: int,
) -> tuple[Float[Tensor, "b e"], Float[Tensor, "b g"]]:
    """Convolve, apply the SSD by fold and replay, add the skip and gate.

    Takes and returns what ``dual_mixer_step`` does, but positions may be of any size. The first T tokens of a row are
    cached, and then folded into a state; from then on every ``every`` tokens are. What is folded is what was cached, so
    the caches' dtypes round each token once.

    Args:
        projected: Output of the input projection.
        weights: Weights of the mixer.
        window: See ``state_mixer_step``.
        B_cache: See ``dual_mixer_step``. Tokens are cached from slot 0 on, and again after each fold.
        x_cache: Likewise.
        weight_cache: Likewise.
        folded: State of the tokens that are no longer cached. Updated in place once they are; not read before. In
            float32 or wider it rounds as the state form does, in fewer bits once more with every fold.
        carry: How far the state has decayed since, float32 or wider. Updated in place.
        position: Tokens that each row has consumed before.
        every: Tokens that are folded together after the first time, at most T.

    Returns:
        See ``state_mixer_step``.
    """
    first = B_cache.shape[1]
    assert 0 < every <= first
    token = _convolve(projected, weights, window, position)
    begun = position >= first  # rows that have a state
    cached = torch.where(begun, (position - first) % every, position)
    full = cached + 1 == torch.where(begun, every, first)
    y = _attend(token, B_cache, x_cache, weight_cache, cached)
    dtype = y.dtype
    older = folded.to(dtype).masked_fill(~begun[:, None, None, None], 0.0)
    decayed = torch.where(begun[:, None], carry.to(dtype) * torch.exp(token.dt * token.A), 0.0)  # (B, H)
    y = y + decayed[..., None] * torch.einsum("bhpn,bn->bhp", older, token.C)
    known = torch.arange(first, device=position.device) <= cached[:, None]  # (B, T), with the present token
    weight = weight_cache.to(dtype).masked_fill(~known[:, None], 0.0)
    values = x_cache.to(dtype).masked_fill(~known[:, None, :, None], 0.0) * weight[..., None]
    keys = B_cache.to(dtype).masked_fill(~known[..., None], 0.0)
    total = decayed[..., None, None] * older + torch.einsum("bhtp,btn->bhpn", values, keys)
    folded.copy_(torch.where(full[:, None, None, None], total.to(folded.dtype), folded))
    carry.copy_(torch.where(full[:, None], 1.0, decayed))
    return _gate(y, token, projected, weights)


def _attend(
    token: _Token, B_cache: Tensor, x_cache: Tensor, weight_cache: Tensor, position: Tensor
) -> Float[Tensor, "b h p"]:
    """Cache a token, let the weights of those before ``position`` decay, and return the sum y of the dual form."""
    rows = torch.arange(len(position), device=position.device)
    dtype = token.x.dtype
    fresh, stored = token.dt, token.x  # the weight with which the token enters, and what is stored of it
    if x_cache.dtype == torch.int8:
        step = token.x.abs().amax(dim=-1) / 127  # (B, H)
        stored = torch.floor(token.x / step.where(step > 0, 1.0)[..., None] + 0.5)
        fresh = fresh * step.where((token.x * 0).sum(dim=-1) == 0, torch.inf)
    B_cache[rows, position] = token.B.to(B_cache.dtype)
    x_cache[rows, :, position] = stored.to(x_cache.dtype)
    slot = torch.arange(B_cache.shape[1], device=position.device)
    known = (slot < position[:, None])[:, None]  # (B, 1, T)
    weight_cache.copy_(torch.where(known, weight_cache * torch.exp(token.dt * token.A)[..., None], weight_cache))
    weight_cache[rows, :, position] = fresh.to(weight_cache.dtype)
    similarity = (B_cache.to(dtype) @ token.C[..., None]).squeeze(-1)  # (B, T)
    weight = (similarity[:, None] * weight_cache.to(dtype)).masked_fill(~known, 0.0)  # (B, H, T)
    values = x_cache.to(dtype).masked_fill(~known[..., None], 0.0)
    present = token.dt * (token.B * token.C).sum(dim=-1, keepdim=True)  # (B, H)
    return (weight[:, :, None] @ values).squeeze(2) + present[..., None] * token.x
