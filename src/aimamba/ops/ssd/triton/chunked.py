"""The chunked SSD for training on CUDA, with its backward pass: three Triton kernels.

With ``total`` the running sum of log-decays in a chunk, ``decay_ts = exp(total_t - total_s)`` for ``s <= t``,
``h`` the state before the chunk and ``h'`` after it (Dao and Gu, arXiv 2405.21060, section 6), a chunk computes

    y_t = sum_s (C_t . B_s) decay_ts dt_s x_s + exp(total_t) h C_t
    h'  = exp(total_Q) h + sum_s exp(total_Q - total_s) dt_s x_s B_s^T

and, with ``g'`` the gradient of ``h'`` and ``W_ts = decay_ts (dy_t . x_s)``, backwards

    g    = exp(total_Q) g' + sum_t exp(total_t) dy_t C_t^T
    dx_s = dt_s (sum_t (C_t . B_s) decay_ts dy_t + exp(total_Q - total_s) g' B_s)
    dC_t = sum over heads of (sum_s W_ts dt_s B_s + exp(total_t) h^T dy_t)
    dB_s = sum over heads of (sum_t W_ts dt_s C_t + exp(total_Q - total_s) dt_s g'^T x_s)

while the gradient of a log-decay is the sum of the gradients of all exponents that span its token. Matrix products take
numbers in the dtype of ``x`` and add up in float32; decays and states are float32.

Shape letters: B batch, L tokens, H heads, P head width, N state size, Q chunk length, K chunks.
"""

from typing import Any

import torch
import triton
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from aimamba.ops.ssd.reference import ssd_recurrent
from aimamba.ops.ssd.triton.backward import Gradients, backward
from aimamba.ops.ssd.triton.forward import SMALLEST_TILE, forward

_Prepared = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]

DTYPES = (torch.float32, torch.bfloat16)
_LARGEST_CHUNK = {torch.float32: 16, torch.bfloat16: 64}  # larger tiles do not fit into registers


def ssd_chunked(
    x: Float[Tensor, "b l h p"],
    dt: Float[Tensor, "b l h"],
    A: Float[Tensor, " h"],
    B: Float[Tensor, "b l n"],
    C: Float[Tensor, "b l n"],
    initial_state: Float[Tensor, "b h p n"] | None = None,
    *,
    chunk_size: int = 64,
) -> tuple[Float[Tensor, "b l h p"], Float[Tensor, "b h p n"]]:
    """Compute ``ssd_recurrent``, with its arguments and results; differentiable once.

    ``x`` must have one of ``DTYPES``. Chunks have the largest power of two up to ``chunk_size`` that the kernels
    support, at least 16, which changes results by no more than rounding.
    """
    if x.shape[1] == 0:
        return ssd_recurrent(x, dt, A, B, C, initial_state)
    chunk = chunk_length(x, chunk_size)
    y, state = _SSD.apply(x, dt, A, B, C, initial_state, chunk)  # type: ignore[no-untyped-call]
    return y, state


def chunk_length(x: Float[Tensor, "b l h p"], chunk_size: int) -> int:
    """Return the number of tokens in a chunk of the kernels, given the wanted ``chunk_size``."""
    enough = min(chunk_size, triton.next_power_of_2(x.shape[1]), _LARGEST_CHUNK[x.dtype])
    return max(SMALLEST_TILE, 1 << (enough.bit_length() - 1))


def _contiguous_last_axis(tensor: Tensor) -> Tensor:
    """Copy only if the last axis has a stride; slices of a projection need no copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _prepared(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> _Prepared:
    """Return the inputs with the dtypes and strides that the kernels take."""
    B, C = (_contiguous_last_axis(tensor.to(x.dtype)) for tensor in (B, C))
    return _contiguous_last_axis(x), dt.to(torch.float32).contiguous(), A.to(torch.float32).contiguous(), B, C


class _SSD(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor | None, chunk: int
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        first = None if initial_state is None else initial_state.contiguous()
        with torch.cuda.device_of(x):
            y, state, carried = forward(*_prepared(x, dt, A, B, C), first, chunk=chunk, keep=any(ctx.needs_input_grad))
        ctx.save_for_backward(x, dt, A, B, C, carried)
        ctx.chunk, ctx.state_dtype = chunk, None if first is None else first.dtype
        return y, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dstate: Tensor | None) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, carried = ctx.saved_tensors
        dy = torch.zeros(x.shape, dtype=x.dtype, device=x.device) if dy is None else dy.to(x.dtype).contiguous()
        with torch.cuda.device_of(x):
            found: Gradients = backward(
                *_prepared(x, dt, A, B, C), carried, dy, None if dstate is None else dstate.contiguous(),
                chunk=ctx.chunk, first=ctx.state_dtype is not None,
            )  # fmt: skip
        dinitial = None if found.initial_state is None else found.initial_state.to(ctx.state_dtype)
        narrow = (gradient.to(each.dtype) for gradient, each in zip(found[1:5], (dt, A, B, C), strict=True))
        return found.x, *narrow, dinitial, None
