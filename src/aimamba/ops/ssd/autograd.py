"""The chunked SSD with a hand-written backward pass: the same function as ``ssd_chunked``, faster to train.

Autograd would keep a dozen tensors of the size of the inputs or larger for every block. Here the backward pass starts
from the inputs and the states at the start of each chunk, and computes the decays again. Products with ``B`` and ``C``,
which all heads share, are one matrix product a chunk over all heads, with the state laid out as (N, H P).

With ``total`` the running sum of log-decays in a chunk, ``M_ts = (C_t . B_s) exp(total_t - total_s)`` for ``s <= t``
and ``h`` the state before the chunk (arXiv 2405.21060, section 6), a chunk computes

    y_t = sum_s M_ts dt_s x_s + exp(total_t) h C_t
    h'  = exp(total_Q) h + sum_s exp(total_Q - total_s) dt_s x_s B_s^T

and the gradient of ``total_t`` is the sum over its row of the exponents' gradients minus the sum over its column.

Shape letters: B batch, L tokens, H heads, P head width, N state size, Q chunk length, K chunks.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from aimamba.ops.chunks import cut
from aimamba.ops.ssd.chunked import ssd_chunked
from aimamba.ops.ssd.reference import LOWEST_LOG_DECAY, accumulation_dtype, ssd_recurrent


def ssd_autograd(
    x: Float[Tensor, "b l h p"],
    dt: Float[Tensor, "b l h"],
    A: Float[Tensor, " h"],
    B: Float[Tensor, "b l n"],
    C: Float[Tensor, "b l n"],
    initial_state: Float[Tensor, "b h p n"] | None = None,
    *,
    chunk_size: int = 64,
) -> tuple[Float[Tensor, "b l h p"], Float[Tensor, "b h p n"]]:
    """Compute ``ssd_chunked``, with its arguments and results, in less time and memory; differentiable once."""
    if x.shape[1] == 0:
        return ssd_recurrent(x, dt, A, B, C, initial_state)
    if torch.compiler.is_compiling():  # the compiler fuses the plain operations itself
        return ssd_chunked(x, dt, A, B, C, initial_state, chunk_size=chunk_size)
    y, state = _SSD.apply(  # type: ignore[no-untyped-call]
        x, dt, A, B, C, initial_state, min(chunk_size, x.shape[1])
    )
    return y, state


class _Chunks(NamedTuple):
    """The inputs in chunks. The chunk is the first axis, so that the states between chunks are slices."""

    x: Tensor  # (K, B, Q, H, P), a view
    dt: Tensor  # (K, B, Q, H), wide
    total: Tensor  # (K, B, Q, H), wide: log-decay from the start of the chunk up to each token
    B: Tensor  # (K, B, Q, N)
    C: Tensor  # (K, B, Q, N)
    dt_x: Tensor  # (K, B, Q, H, P)


def _chunks(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int) -> _Chunks:
    wide = accumulation_dtype(x)
    inputs = x, dt.to(wide), B.to(x.dtype), C.to(x.dtype)
    x, dt, B, C = (cut(tensor, chunk).transpose(0, 1) for tensor in inputs)  # a token with dt = 0 changes no state
    total = (dt * A.to(wide)).clamp(min=LOWEST_LOG_DECAY).cumsum(dim=2)
    return _Chunks(x, dt, total, B.contiguous(), C.contiguous(), (x * dt.to(x.dtype)[..., None]).contiguous())


def _joined(tensor: Tensor, length: int) -> Tensor:
    """Undo ``_cut``."""
    return tensor.transpose(0, 1).flatten(1, 2)[:, :length]


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply matrices (K, B, ., .) chunk by chunk."""
    left, right = (tensor.flatten(0, 1) for tensor in (left, right))
    return torch.bmm(left, right)


def _decay(total: Tensor) -> Tensor:
    """Return exp(total_t - total_s) for s <= t, else 0: (K, B, H, Q, Q). Masked before the exponential."""
    total = total.transpose(2, 3).contiguous()  # (K, B, H, Q)
    length = total.shape[-1]
    ahead = torch.full((length, length), -torch.inf, dtype=total.dtype, device=total.device).triu(1)
    return (total[..., :, None] - total[..., None, :]).add_(ahead).exp_()


class _SSD(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor | None, chunk: int
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        parts = _chunks(x, dt, A, B, C, chunk)
        total, narrow = parts.total, x.dtype
        count, batch, _, heads, width = parts.x.shape

        similarity = _product(parts.C, parts.B.mT).view(count, batch, 1, chunk, chunk)
        weights = _decay(total).mul_(similarity).to(narrow)  # (K, B, H, Q, Q)
        dt_x = parts.dt_x.transpose(2, 3).flatten(0, 2)  # (K B H, Q, P)
        y = torch.bmm(weights.flatten(0, 2), dt_x).view(count, batch, heads, chunk, width).transpose(2, 3)

        to_end = (total[:, :, -1:] - total).exp().to(narrow)[..., None]
        added = _product(parts.B.mT, (parts.dt_x * to_end).flatten(3)).view(count, batch, -1, heads, width)
        across = _across(total)
        state = None if initial_state is None else initial_state.to(total.dtype).permute(0, 3, 1, 2)
        before = []  # each (B, N, H, P)
        for k in range(count):
            if state is None:  # the first chunk starts from a state of zeros
                state = added[0].to(total.dtype)
            else:
                before.append(state.to(narrow))
                state = torch.addcmul(added[k].to(total.dtype), state, across[k])
        assert state is not None
        if before:
            first = count - len(before)
            carried = torch.stack(before)  # (K or K - 1, B, N, H, P)
            read = _product(parts.C[first:], carried.flatten(3)).view(-1, batch, chunk, heads, width)
            later = torch.addcmul(y[first:], read, total[first:].exp().to(narrow)[..., None])
            y = torch.cat([y[:first], later]) if first else later
        else:
            carried = added.new_empty(0, *added.shape[1:])
        ctx.save_for_backward(x, dt, A, B, C, carried)
        ctx.chunk, ctx.state_dtype = chunk, None if initial_state is None else initial_state.dtype
        return _joined(y, x.shape[1]).to(narrow), state.permute(0, 2, 3, 1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dstate: Tensor | None) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, carried = ctx.saved_tensors
        dy = torch.zeros_like(x) if dy is None else dy.to(x.dtype)
        parts = _chunks(x, dt, A, B, C, ctx.chunk)
        dy = cut(dy, ctx.chunk).transpose(0, 1).contiguous()  # (K, B, Q, H, P)
        if dstate is not None:
            dstate = dstate.to(parts.total.dtype).permute(0, 3, 1, 2)  # (B, N, H, P)
        ddt_x, dtotal, dB, dC = _backward_within(parts, dy)
        dstate = _backward_across(parts, dy, carried, dstate, (ddt_x, dtotal, dB, dC))

        wide, rate, length = parts.total.dtype, A.to(parts.total.dtype), x.shape[1]
        dlog = dtotal.flip(2).cumsum(dim=2).flip(2).masked_fill_(parts.dt * rate < LOWEST_LOG_DECAY, 0)
        ddt = (ddt_x * parts.x).sum(dim=-1, dtype=wide) + dlog * rate
        dA = (dlog * parts.dt).sum(dim=(0, 1, 2))
        dx = ddt_x * parts.dt.to(x.dtype)[..., None]
        dinitial = None
        if ctx.state_dtype is not None:
            assert dstate is not None
            dinitial = dstate.permute(0, 2, 3, 1).to(ctx.state_dtype)
        dx, ddt, dB, dC = (_joined(tensor, length) for tensor in (dx, ddt, dB, dC))
        return dx, ddt.to(dt.dtype), dA.to(A.dtype), dB.to(B.dtype), dC.to(C.dtype), dinitial, None


def _across(total: Tensor) -> Tensor:
    """Return the decay of a state over a whole chunk: (K, B, 1, H, 1)."""
    return total[:, :, -1].exp()[:, :, None, :, None]


def _backward_within(parts: _Chunks, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of dt_x, total, B and C through the products within chunks."""
    count, batch, chunk, heads, width = dy.shape
    similarity = _product(parts.C, parts.B.mT).view(count, batch, 1, chunk, chunk).to(parts.total.dtype)
    decay = _decay(parts.total)  # (K, B, H, Q, Q)
    dy = dy.transpose(2, 3).flatten(0, 2)  # (K B H, Q, P)
    dt_x = parts.dt_x.transpose(2, 3).flatten(0, 2)

    weights = (decay * similarity).to(dy.dtype).flatten(0, 2)
    ddt_x = torch.bmm(weights.mT, dy).view(count, batch, heads, chunk, width).transpose(2, 3).contiguous()
    dweights = torch.bmm(dy, dt_x.mT).view_as(decay).to(decay.dtype)
    dsimilarity = decay.mul_(dweights)  # per head
    shared = dsimilarity.sum(dim=2).to(dy.dtype)  # (K, B, Q, Q)
    dexponent = dsimilarity.mul_(similarity)
    dtotal = (dexponent.sum(dim=-1) - dexponent.sum(dim=-2)).transpose(2, 3).contiguous()  # (K, B, Q, H)
    dB = _product(shared.mT, parts.C).view_as(parts.B)
    dC = _product(shared, parts.B).view_as(parts.C)
    return ddt_x, dtotal, dB, dC


def _backward_across(
    parts: _Chunks, dy: Tensor, carried: Tensor, dstate: Tensor | None, into: tuple[Tensor, Tensor, Tensor, Tensor]
) -> Tensor | None:
    """Add the gradients through the states to ``into``, and return the gradient of the first state.

    ``dstate`` (B, N, H, P) is the gradient of the last state. ``carried`` are the states before the chunks, without the
    first one if it is zero.
    """
    ddt_x, dtotal, dB, dC = into
    count = len(dy)
    first, narrow = count - len(carried), dy.dtype
    across = _across(parts.total)
    after: list[Tensor] = []  # gradients of the states after each chunk, from the last chunk that has one backwards
    dbefore = carried
    if len(carried):
        dread = dy[first:] * parts.total[first:].exp().to(narrow)[..., None]
        states, C = carried.flatten(3), parts.C[first:]
        read = _product(C, states).view_as(dread)
        dtotal[first:] += (read * dread).sum(dim=-1, dtype=dtotal.dtype)
        dread = dread.flatten(3)
        dC[first:] += _product(dread, states.mT).view_as(C)
        dbefore = _product(C.mT, dread).view_as(carried)
    for k in range(count - 1, -1, -1):
        if dstate is not None:
            after.append(dstate.to(narrow))
        if k >= first:
            gradient = dbefore[k - first].to(dtotal.dtype)
            if dstate is not None:
                dtotal[k, :, -1] += (dstate * carried[k - first]).sum(dim=(1, 3)) * across[k, :, 0, :, 0]
                gradient = torch.addcmul(gradient, dstate, across[k])
            dstate = gradient
    if after:
        last = len(after)
        dafter = torch.stack(after[::-1]).flatten(3)  # (K or K - 1, B, N, H P)
        to_end = (parts.total[:last, :, -1:] - parts.total[:last]).exp().to(narrow)[..., None]
        weighted = parts.dt_x[:last] * to_end
        dB[:last] += _product(weighted.flatten(3), dafter.mT).view_as(dB[:last])
        dweighted = _product(parts.B[:last], dafter).view_as(weighted)
        dexponent = (weighted * dweighted).sum(dim=-1, dtype=dtotal.dtype)
        dtotal[:last] -= dexponent
        dtotal[:last, :, -1] += dexponent.sum(dim=2)
        ddt_x[:last].addcmul_(dweighted, to_end)
    return dstate
